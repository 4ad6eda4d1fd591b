//! PKCS #1 v1.5: EMSA-PKCS1-v1_5 and RSAES-PKCS1-v1_5 (RFC 8017, 9.2 and 7.2), with implicit rejection.

use std::sync::OnceLock;

use claviger_apdu::Secret;
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq, ConstantTimeLess};
use zeroize::Zeroizing;

use super::{PaddingError, sealed};
use crate::{
    digest::Hash,
    host::{mac::Mac, random},
};

/// 00, the kind of block, eight bytes of padding at least, 00.
const OVERHEAD: usize = 11;

/// T of EMSA-PKCS1-v1_5: `digest` in a DigestInfo (RFC 8017, 9.2, note 1).
#[must_use]
pub fn digest_info(hash: Hash, digest: &[u8]) -> Secret {
    let mut info = Secret::copy_from(digest_info_prefix(hash));
    info.extend(digest);
    info
}

const fn digest_info_prefix(hash: Hash) -> &'static [u8] {
    match hash {
        Hash::Sha1 => &[
            0x30, 0x21, 0x30, 0x09, 0x06, 0x05, 0x2B, 0x0E, 0x03, 0x02, 0x1A, 0x05, 0x00, 0x04,
            0x14,
        ],
        Hash::Sha224 => const { &sha2_prefix(0x04, 0x1C) },
        Hash::Sha256 => const { &sha2_prefix(0x01, 0x20) },
        Hash::Sha384 => const { &sha2_prefix(0x02, 0x30) },
        Hash::Sha512 => const { &sha2_prefix(0x03, 0x40) },
    }
}

const fn sha2_prefix(arc: u8, len: u8) -> [u8; 19] {
    let mut prefix = [
        0x30, 0x11, 0x30, 0x0D, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x00,
        0x05, 0x00, 0x04, 0x00,
    ];
    prefix[1] += len;
    prefix[14] = arc;
    prefix[18] = len;
    prefix
}

/// The block `00 01 FF .. FF 00 T` of `len` bytes; `None` when T leaves no room for eight bytes of padding.
#[must_use]
pub fn pkcs1_sign(t: &[u8], len: usize) -> Option<Secret> {
    let padding = len
        .checked_sub(t.len())?
        .checked_sub(3)
        .filter(|len| *len >= 8)?;
    let mut block = Vec::with_capacity(len);
    block.extend_from_slice(&[0x00, 0x01]);
    block.resize(2 + padding, 0xFF);
    block.push(0x00);
    block.extend_from_slice(t);
    Some(Secret::new(block))
}

/// T out of the block of a signature, which is public.
#[must_use]
pub fn pkcs1_recover(block: &[u8]) -> Option<&[u8]> {
    let rest = block.strip_prefix(&[0x00, 0x01])?;
    let padding = rest.iter().take_while(|byte| **byte == 0xFF).count();
    let (_, rest) = rest.split_at_checked(padding).filter(|_| padding >= 8)?;
    rest.strip_prefix(&[0x00])
}

/// The block `00 02 PS 00 M` of `len` bytes, whose padding is random and has no zeros.
///
/// # Errors
///
/// When the message leaves no room for eight bytes of padding, or nothing is random.
pub fn pkcs1_encrypt(message: &[u8], len: usize) -> Result<Secret, PaddingError> {
    let max = len.saturating_sub(OVERHEAD);
    if len < OVERHEAD || message.len() > max {
        return Err(PaddingError::TooLong { max });
    }
    let mut block = Zeroizing::new(vec![0; len]);
    if let Some((head, tail)) = block.split_at_mut_checked(len - message.len()) {
        tail.copy_from_slice(message);
        if let [_, kind, padding @ .., _] = head {
            *kind = 0x02;
            fill_nonzero(padding)?;
        }
    }
    Ok(sealed(block))
}

fn fill_nonzero(padding: &mut [u8]) -> Result<(), PaddingError> {
    random::fill(padding)?;
    for byte in padding {
        while *byte == 0 {
            random::fill(std::slice::from_mut(byte))?;
        }
    }
    Ok(())
}

/// What a block with bad padding is said to hold (draft-irtf-cfrg-rsa-guidance, 7): a message made of the
/// ciphertext and a secret, so that nobody learns from it whether the padding was good.
///
/// The draft's secret is made of the private exponent, which no card gives. This one is random and lasts as long
/// as the process: until then the same ciphertext has the same message.
#[derive(Debug)]
pub struct Rejection(Secret);

impl Rejection {
    /// For this ciphertext under the key with this modulus.
    ///
    /// # Errors
    ///
    /// When nothing is random.
    pub fn new(modulus: &[u8], ciphertext: &[u8]) -> Result<Self, PaddingError> {
        static SECRET: OnceLock<Secret> = OnceLock::new();
        let secret = match SECRET.get() {
            Some(secret) => secret,
            None => {
                let fresh = random::random(32)?;
                SECRET.get_or_init(|| fresh)
            }
        };
        Ok(Self::under(secret, modulus, ciphertext))
    }

    /// KDK = HMAC-SHA256(secret, SHA-256(modulus) || ciphertext).
    fn under(secret: &Secret, modulus: &[u8], ciphertext: &[u8]) -> Self {
        let mut mac = Mac::new(Hash::Sha256, secret);
        mac.update(Hash::Sha256.digest(&[modulus]).expose());
        mac.update(ciphertext);
        Self(mac.finish())
    }

    /// IRPRF (7.1): `len` bytes, each block of which is HMAC-SHA256(KDK, number || label || bits in all).
    fn stream(&self, label: &[u8], len: usize) -> Secret {
        let bits = u16::try_from(len * 8).unwrap_or(u16::MAX).to_be_bytes();
        let mut stream = Secret::default();
        for number in (0u16..).take(len.div_ceil(32)) {
            let mut mac = Mac::new(Hash::Sha256, &self.0);
            mac.update(&number.to_be_bytes());
            mac.update(label);
            mac.update(&bits);
            stream.extend(mac.finish().expose());
        }
        stream.truncate(len);
        stream
    }

    /// The message's length (7.2, steps 4 to 8): the last of 128 numbers that fits a block of `len` bytes.
    fn message_len(&self, len: usize) -> u32 {
        // The draft's max_sep_offset: a longer message would leave too little padding.
        let limit = u32::try_from(len.saturating_sub(10)).unwrap_or(u32::MAX);
        let mask = limit
            .checked_next_power_of_two()
            .unwrap_or(0)
            .wrapping_sub(1);
        let mask = mask | limit;
        let candidates = self.stream(b"length", 256);
        let (pairs, _) = candidates.expose().as_chunks::<2>();
        pairs.iter().fold(0, |chosen, pair| {
            let candidate = u32::from(u16::from_be_bytes(*pair)) & mask;
            u32::conditional_select(&chosen, &candidate, candidate.ct_lt(&limit))
        })
    }
}

/// The message of a decrypted block `00 02 PS 00 M`, or `rejection`'s when it is not such a block.
///
/// Which of the two it is shows neither in time nor in an error. The length alone is the caller's to see.
#[must_use]
pub fn pkcs1_decrypt(block: &Secret, rejection: &Rejection) -> Secret {
    let block = block.expose();
    let synthetic = rejection.stream(b"message", block.len());
    let len = u32::try_from(block.len()).unwrap_or(u32::MAX);
    let (good, real) = separator(block);
    let rejected = len - rejection.message_len(block.len());
    let from = u32::conditional_select(&rejected, &real, good);
    let mut message = Zeroizing::new(Vec::with_capacity(block.len()));
    for (real, synthetic) in block.iter().zip(synthetic.expose()) {
        message.push(u8::conditional_select(synthetic, real, good));
    }
    let from = usize::try_from(from).unwrap_or(usize::MAX);
    Secret::copy_from(message.get(from..).unwrap_or_default())
}

/// Whether the block is padded as it must be, and where its message begins.
fn separator(block: &[u8]) -> (Choice, u32) {
    let byte = |at: usize| block.get(at).copied().unwrap_or(0xFF);
    let mut found = Choice::from(0);
    let mut from = 0u32;
    for (next, byte) in (1u32..).zip(block).skip(2) {
        let here = byte.ct_eq(&0) & !found;
        from.conditional_assign(&next, here);
        found |= here;
    }
    let first = u32::try_from(OVERHEAD).unwrap_or(u32::MAX);
    let good = byte(0).ct_eq(&0) & byte(1).ct_eq(&2) & found & !from.ct_lt(&first);
    (good, from)
}

/// A block as decrypted: it always has a message, the same each time, and its own when it is a good one.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let block = Secret::copy_from(bytes);
    let rejection = Rejection::under(&Secret::copy_from(b"of a fuzzer"), &[0xC1; 64], bytes);
    let message = pkcs1_decrypt(&block, &rejection);
    assert!(message.len() <= bytes.len().saturating_sub(OVERHEAD));
    assert_eq!(pkcs1_decrypt(&block, &rejection).expose(), message.expose());
    let padding = bytes.iter().skip(2).take_while(|byte| **byte != 0).count();
    let own = bytes.get(3 + padding..);
    if let Some(own) = own.filter(|_| bytes.starts_with(&[0, 2]) && padding >= 8) {
        assert_eq!(message.expose(), own);
    }
    if let Some(t) = pkcs1_recover(bytes) {
        let again = pkcs1_sign(t, bytes.len());
        assert_eq!(again.as_ref().map(Secret::expose), Some(bytes));
    }
}
