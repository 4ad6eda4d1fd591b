//! GCM (NIST SP 800-38D) with any IV and any tag length, built from AES and GHASH.

use ghash::{GHash, universal_hash::UniversalHash};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{
    aes_block::{Aes, BLOCK, Block, xor},
    counter::KeyStream,
};

/// Longest IV (CK_GCM_PARAMS of PKCS #11 2.40).
const MAX_IV: usize = 256;
/// Most blocks of text under one IV (5.2.1.1).
const MAX_BLOCKS: u128 = (1 << 32) - 2;

/// One message under one IV.
pub(super) struct Gcm {
    stream: KeyStream,
    hash: Ghash,
    /// Bits of additional data.
    aad_bits: u64,
    /// Bits of ciphertext so far.
    text_bits: u64,
    /// The encrypted first counter block. It is XORed with the tag.
    mask: Zeroizing<Block>,
    tag_len: usize,
}

impl Gcm {
    /// Returns `None` for an empty IV or one over 256 bytes, and for a tag that is not 32 to 128 bits in whole bytes.
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

    /// Returns whether `len` more bytes of text are allowed under this IV.
    pub(super) fn reaches(&self, len: usize) -> bool {
        self.stream.reaches(len)
    }

    pub(super) fn encrypt(&mut self, aes: &Aes, text: &mut [u8]) {
        self.stream.apply(aes, text);
        self.absorb(text);
    }

    /// Decrypts a whole message. If the tag does not match, returns `None` and leaves `text` unchanged.
    pub(super) fn decrypt(mut self, aes: &Aes, text: &mut [u8], tag: &[u8]) -> Option<()> {
        self.absorb(text);
        let (stream, expected) = self.into_tag();
        let same = tag.ct_eq(&expected);
        let mut stream = bool::from(same).then_some(stream)?;
        stream.apply(aes, text);
        Some(())
    }

    /// Returns the tag of the encrypted message.
    pub(super) fn tag(self) -> Vec<u8> {
        self.into_tag().1
    }

    fn absorb(&mut self, ciphertext: &[u8]) {
        self.hash.absorb(ciphertext);
        // `reaches` keeps the text under 2^36 bytes.
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

/// Returns J0 (7.1, step 2).
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

/// GHASH over data that comes in parts.
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

    /// Holds a partial block until it is complete.
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

    /// Pads a partial block with zeros and hashes it.
    fn pad(&mut self) {
        if self.len > 0 {
            self.hash.update(&[self.waiting.into()]);
            self.waiting = [0; BLOCK];
            self.len = 0;
        }
    }

    /// Hashes the last block, which holds two lengths in bits.
    fn finish(mut self, first: u64, second: u64) -> Block {
        let mut lengths = [0; BLOCK];
        lengths[..8].copy_from_slice(&first.to_be_bytes());
        lengths[8..].copy_from_slice(&second.to_be_bytes());
        self.hash.update(&[lengths.into()]);
        self.hash.finalize().into()
    }
}
