//! GCM (NIST SP 800-38D) with any IV and any tag length, from AES and GHASH.

use ghash::{GHash, universal_hash::UniversalHash};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{
    aes_block::{Aes, BLOCK, Block, xor},
    counter::KeyStream,
};

/// Longest IV (CK_GCM_PARAMS of PKCS #11 2.40).
const MAX_IV: usize = 256;
/// Blocks of text under one IV (5.2.1.1).
const MAX_BLOCKS: u128 = (1 << 32) - 2;

/// One message under one IV.
pub(super) struct Gcm {
    stream: KeyStream,
    hash: Ghash,
    /// Bits of additional data.
    aad_bits: u64,
    /// Bits of ciphertext so far.
    text_bits: u64,
    /// The encrypted first counter block, which the tag is XORed with.
    mask: Zeroizing<Block>,
    tag_len: usize,
}

impl Gcm {
    /// `None` for an empty or endless IV, and for tags other than 32 to 128 bits in whole bytes.
    pub(super) fn new(aes: &Aes, iv: &[u8], aad: &[u8], tag_bits: usize) -> Option<Self> {
        let fits = (1..=MAX_IV).contains(&iv.len())
            && (32..=128).contains(&tag_bits)
            && tag_bits.is_multiple_of(8);
        if !fits {
            return None;
        }
        let mut key = Zeroizing::new(Block::default());
        aes.encrypt(&mut key);
        let first = first_counter(&key, iv)?;
        let mut stream = KeyStream::new(first, 32, MAX_BLOCKS + 1);
        let mut mask = Zeroizing::new(Block::default());
        stream.apply(aes, &mut *mask);
        let mut hash = Ghash::new(&key);
        hash.absorb(aad);
        hash.pad();
        Some(Self {
            stream,
            hash,
            aad_bits: bits(aad.len())?,
            text_bits: 0,
            mask,
            tag_len: tag_bits / 8,
        })
    }

    pub(super) const fn tag_len(&self) -> usize {
        self.tag_len
    }

    /// Whether so much more text may be under this IV.
    pub(super) fn reaches(&self, len: usize) -> bool {
        self.stream.reaches(len)
    }

    pub(super) fn encrypt(&mut self, aes: &Aes, text: &mut [u8]) {
        self.stream.apply(aes, text);
        self.absorb(text);
    }

    /// Decrypts the whole of a message, or leaves it as it is when the tag is another.
    pub(super) fn decrypt(mut self, aes: &Aes, text: &mut [u8], tag: &[u8]) -> Option<()> {
        self.absorb(text);
        let (stream, expected) = self.into_tag();
        let same = tag.ct_eq(&expected);
        let mut stream = bool::from(same).then_some(stream)?;
        stream.apply(aes, text);
        Some(())
    }

    /// The tag of what was encrypted.
    pub(super) fn tag(self) -> Vec<u8> {
        self.into_tag().1
    }

    fn absorb(&mut self, ciphertext: &[u8]) {
        self.hash.absorb(ciphertext);
        // `reaches` holds the text under 2^36 bytes.
        self.text_bits = self
            .text_bits
            .saturating_add(bits(ciphertext.len()).unwrap_or(0));
    }

    fn into_tag(mut self) -> (KeyStream, Vec<u8>) {
        self.hash.pad();
        let mut tag = self.hash.finish(self.aad_bits, self.text_bits);
        xor(&mut tag, &*self.mask);
        let tag = tag.get(..self.tag_len).unwrap_or_default().to_vec();
        (self.stream, tag)
    }
}

/// J0 (7.1, step 2).
fn first_counter(key: &Block, iv: &[u8]) -> Option<Block> {
    if let Ok(short) = <[u8; 12]>::try_from(iv) {
        let mut block = [0; BLOCK];
        block[..12].copy_from_slice(&short);
        block[15] = 1;
        return Some(block);
    }
    let mut hash = Ghash::new(key);
    hash.absorb(iv);
    hash.pad();
    Some(hash.finish(0, bits(iv.len())?))
}

fn bits(len: usize) -> Option<u64> {
    u64::try_from(len).ok()?.checked_mul(8)
}

/// GHASH over bytes that come in parts.
struct Ghash {
    hash: GHash,
    waiting: Block,
    len: usize,
}

impl Ghash {
    fn new(key: &Block) -> Self {
        Self {
            hash: GHash::new(key.into()),
            waiting: [0; BLOCK],
            len: 0,
        }
    }

    fn absorb(&mut self, data: &[u8]) {
        let (head, rest) = match self.len {
            0 => (&[][..], data),
            len => data.split_at((BLOCK - len).min(data.len())),
        };
        self.wait_for(head);
        let (blocks, tail) = rest.as_chunks::<BLOCK>();
        for block in blocks {
            self.hash.update(&[(*block).into()]);
        }
        self.wait_for(tail);
    }

    /// Keeps a part of a block until there is a whole one.
    fn wait_for(&mut self, part: &[u8]) {
        let end = self.len + part.len();
        if let Some(gap) = self.waiting.get_mut(self.len..end) {
            gap.copy_from_slice(part);
            self.len = end;
        }
        if self.len == BLOCK {
            self.pad();
        }
    }

    /// Zeros up to a whole block.
    fn pad(&mut self) {
        if self.len > 0 {
            self.hash.update(&[self.waiting.into()]);
            self.waiting = [0; BLOCK];
            self.len = 0;
        }
    }

    /// After a last block of two lengths in bits.
    fn finish(mut self, first: u64, second: u64) -> Block {
        let mut lengths = [0; BLOCK];
        lengths[..8].copy_from_slice(&first.to_be_bytes());
        lengths[8..].copy_from_slice(&second.to_be_bytes());
        self.hash.update(&[lengths.into()]);
        self.hash.finalize().into()
    }
}
