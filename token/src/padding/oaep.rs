//! EME-OAEP (RFC 8017, 7.1).

use claviger_apdu::Secret;
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use zeroize::Zeroizing;

use super::{PaddingError, mask, sealed};
use crate::{digest::Hash, host::random};

/// CK_RSA_PKCS_OAEP_PARAMS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oaep<'a> {
    /// The hash of the label.
    pub hash: Hash,
    /// The hash of MGF1.
    pub mgf: Hash,
    /// The label L, to which the ciphertext is bound. It is usually empty.
    pub label: &'a [u8],
}

/// Encodes `message` in a block of `len` bytes.
///
/// ```text
/// | 00 | seed ^ mask of DB | DB = (Hash(label) 00 .. 00 01 message) ^ mask of the seed |
/// ```
///
/// # Errors
///
/// An error if the message does not fit, or if there are no random numbers.
pub fn oaep_encrypt(message: &[u8], oaep: &Oaep<'_>, len: usize) -> Result<Secret, PaddingError> {
    let seed = random::random(oaep.hash.len())?;
    encrypt_with(message, oaep, len, seed.expose())
}

fn encrypt_with(
    message: &[u8],
    oaep: &Oaep<'_>,
    len: usize,
    seed: &[u8],
) -> Result<Secret, PaddingError> {
    let overhead = 2 * oaep.hash.len() + 2;
    let max = len.saturating_sub(overhead);
    if len < overhead || message.len() > max {
        return Err(PaddingError::TooLong { max });
    }
    let mut db = Zeroizing::new(Vec::with_capacity(len));
    db.extend_from_slice(oaep.hash.digest(&[oaep.label]).expose());
    db.resize(oaep.hash.len() + max - message.len(), 0);
    db.push(0x01);
    db.extend_from_slice(message);
    mask(oaep.mgf, seed, &mut db);
    let mut seed = Zeroizing::new(seed.to_vec());
    mask(oaep.mgf, &db, &mut seed);
    let block = [&[0x00], &**seed, &**db].concat();
    Ok(sealed(Zeroizing::new(block)))
}

/// Returns the message of a decrypted block, or `None` if the block is not valid for this label.
///
/// Takes constant time up to the result, and the result is the same for each reason (RFC 8017, 7.1.2, note).
#[must_use]
pub fn oaep_decrypt(block: &Secret, oaep: &Oaep<'_>) -> Option<Secret> {
    let hash_len = oaep.hash.len();
    let (first, rest) = block.expose().split_first()?;
    let (seed, db) = rest.split_at_checked(hash_len)?;
    if db.len() < hash_len + 1 {
        return None;
    }
    let mut seed = Zeroizing::new(seed.to_vec());
    let mut db = Zeroizing::new(db.to_vec());
    mask(oaep.mgf, &db, &mut seed);
    mask(oaep.mgf, &seed, &mut db);
    let (label, padded) = db.split_at_checked(hash_len)?;
    let (good, from) = separator(padded);
    let expected = oaep.hash.digest(&[oaep.label]);
    let good = good & first.ct_eq(&0) & label.ct_eq(expected.expose());
    let message = padded.get(usize::try_from(from).ok()?..);
    bool::from(good).then(|| message.map(Secret::copy_from))?
}

/// Returns whether `padded` consists of zeros, 01 and a message, and the offset of the message.
fn separator(padded: &[u8]) -> (Choice, u32) {
    let mut found = Choice::from(0);
    let mut odd = Choice::from(0);
    let mut from = 0u32;
    for (next, byte) in (1u32..).zip(padded) {
        let here = byte.ct_eq(&1) & !found;
        odd |= !byte.ct_eq(&0) & !here & !found;
        from.conditional_assign(&next, here);
        found |= here;
    }
    (found & !odd, from)
}

/// `| hashes | length of the label | label | block |`. A decoded message must encode to the same block. Returns whether
/// a message was decoded.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) -> bool {
    let [hashes, label_len, rest @ ..] = bytes else {
        return false;
    };
    let Some((label, block)) = rest.split_at_checked(usize::from(*label_len)) else {
        return false;
    };
    let (hash, mgf) = super::fuzz::hashes(*hashes);
    let oaep = Oaep { hash, mgf, label };
    let Some(message) = oaep_decrypt(&Secret::copy_from(block), &oaep) else {
        return false;
    };
    let (seed, db) = block.split_at(1 + hash.len());
    let mut seed = seed.get(1..).unwrap_or_default().to_vec();
    mask(mgf, db, &mut seed);
    let again = encrypt_with(message.expose(), &oaep, block.len(), &seed);
    assert_eq!(again.as_ref().map(Secret::expose), Ok(block));
    true
}
