//! EMSA-PSS (RFC 8017, 9.1).

use claviger_apdu::Secret;
use zeroize::Zeroizing;

use super::{PaddingError, mask, sealed};
use crate::{digest::Hash, host::random};

/// The last byte of a block.
const TRAILER: u8 = 0xBC;

/// CK_RSA_PKCS_PSS_PARAMS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pss {
    /// The hash of the message, and of salt and digest.
    pub hash: Hash,
    /// The hash of MGF1.
    pub mgf: Hash,
    /// Bytes of salt. A signature with another number of bytes is invalid.
    pub salt_len: usize,
}

/// The parts of a block.
///
/// ```text
/// | 00 where emBits is a multiple of 8 | maskedDB = (00 .. 00 01 salt) ^ mask | H | BC |
/// ```
struct Layout {
    /// Number of zero bytes before EM: none or one.
    lead: usize,
    /// Length of maskedDB.
    db: usize,
    /// Mask of the bits that may be set in maskedDB's first byte.
    top: u8,
}

impl Layout {
    /// Returns the layout for a modulus of `bits` bits. EM has one bit less. The error has the longest possible salt.
    fn new(pss: Pss, bits: usize) -> Result<Self, PaddingError> {
        let em_bits = bits.saturating_sub(1);
        let em = em_bits.div_ceil(8);
        let max = em.saturating_sub(pss.hash.len() + 2);
        if em < pss.hash.len() + 2 || pss.salt_len > max {
            return Err(PaddingError::TooLong { max });
        }
        Ok(Self {
            lead: bits.div_ceil(8) - em,
            db: em - pss.hash.len() - 1,
            top: 0xFF >> (em * 8 - em_bits),
        })
    }
}

/// Returns H = Hash(00 x 8 || digest || salt).
fn bound(hash: Hash, digest: &[u8], salt: &[u8]) -> Secret {
    hash.digest(&[&[0; 8], digest, salt])
}

/// Returns the block for a signature over `digest`, with a new random salt, as long as a modulus of `bits` bits.
///
/// # Errors
///
/// An error if the salt does not fit, if `digest` does not have the length of the hash's digests, or if there are no
/// random numbers. No salt fits if the hash is too long for the key.
pub fn pss_encode(digest: &[u8], pss: Pss, bits: usize) -> Result<Secret, PaddingError> {
    let salt = random::random(pss.salt_len.min(bits))?;
    encode_with(digest, pss, bits, &salt)
}

fn encode_with(
    digest: &[u8],
    pss: Pss,
    bits: usize,
    salt: &Secret,
) -> Result<Secret, PaddingError> {
    let layout = Layout::new(pss, bits)?;
    if digest.len() != pss.hash.len() {
        return Err(PaddingError::TooLong {
            max: pss.hash.len(),
        });
    }
    let h = bound(pss.hash, digest, salt.expose());
    let mut db = Zeroizing::new(vec![0; layout.db - pss.salt_len - 1]);
    db.push(0x01);
    db.extend_from_slice(salt.expose());
    mask(pss.mgf, h.expose(), &mut db);
    if let Some(first) = db.first_mut() {
        *first &= layout.top;
    }
    let lead = vec![0; layout.lead];
    let block = [&lead, &**db, h.expose(), &[TRAILER]].concat();
    Ok(sealed(Zeroizing::new(block)))
}

/// Returns whether `block` signs `digest` with a key whose modulus has `bits` bits. All input is public.
#[must_use]
pub fn pss_verify(digest: &[u8], block: &[u8], pss: Pss, bits: usize) -> bool {
    digest.len() == pss.hash.len()
        && salt(block, pss, bits)
            .is_some_and(|(salt, h)| bound(pss.hash, digest, &salt).expose() == h)
}

/// Returns the salt and H of a block of the right form.
fn salt(block: &[u8], pss: Pss, bits: usize) -> Option<(Vec<u8>, &[u8])> {
    let layout = Layout::new(pss, bits).ok()?;
    let (lead, em) = block.split_at_checked(layout.lead)?;
    let (masked, rest) = em.split_at_checked(layout.db)?;
    let (h, trailer) = rest.split_at_checked(pss.hash.len())?;
    let fits = lead.iter().all(|byte| *byte == 0)
        && trailer == [TRAILER]
        && masked.first().is_some_and(|first| first & !layout.top == 0);
    let mut db = masked.to_vec();
    mask(pss.mgf, h, &mut db);
    *db.first_mut()? &= layout.top;
    let (padding, salt) = db.split_at_checked(layout.db.checked_sub(pss.salt_len)?)?;
    let (one, zeros) = padding.split_last()?;
    (fits && *one == 1 && zeros.iter().all(|byte| *byte == 0)).then(|| (salt.to_vec(), h))
}

/// `| hashes | length of the salt | bits that the modulus lacks | block |`. An accepted block must fit one digest only,
/// and its own salt must encode to the same block. Returns whether the block was accepted.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) -> bool {
    let [hashes, salt_len, odd, block @ ..] = bytes else {
        return false;
    };
    let (hash, mgf) = super::fuzz::hashes(*hashes);
    let pss = Pss {
        hash,
        mgf,
        salt_len: usize::from(*salt_len),
    };
    let bits = (block.len() * 8).saturating_sub(usize::from(odd % 8));
    let digest = hash.digest(&[b"of a fuzzer"]);
    if !pss_verify(digest.expose(), block, pss, bits) {
        return false;
    }
    let salt = salt(block, pss, bits).map_or_else(Secret::default, |(salt, _)| salt.into());
    let again = encode_with(digest.expose(), pss, bits, &salt);
    assert_eq!(again.as_ref().map(Secret::expose), Ok(block));
    let other = hash.digest(&[b"another"]);
    assert!(!pss_verify(other.expose(), block, pss, bits));
    true
}
