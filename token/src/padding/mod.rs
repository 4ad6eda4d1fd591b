//! RFC 8017's encodings of what an RSA key is applied to. Pure: no key, no card.
//!
//! A *block* has the length of the modulus. What is decoded from a secret block is looked at in constant time.

mod oaep;
mod pkcs1;
mod pss;

use claviger_apdu::Secret;
use zeroize::Zeroizing;

pub use self::{
    oaep::{Oaep, oaep_decrypt, oaep_encrypt},
    pkcs1::{
        ImplicitRejection, digest_info, pkcs1_decrypt, pkcs1_encrypt, pkcs1_recover, pkcs1_sign,
    },
    pss::{Pss, pss_encode, pss_verify},
};
use crate::{digest::Hash, host::random::NoRandom};

/// Why something is not padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PaddingError {
    /// More than the key has room for.
    #[error("longer than the {max} bytes there is room for")]
    TooLong {
        /// Most bytes that fit.
        max: usize,
    },
    /// No random numbers are to be had.
    #[error("no random numbers are to be had")]
    NoRandom,
}

impl From<NoRandom> for PaddingError {
    fn from(_: NoRandom) -> Self {
        Self::NoRandom
    }
}

/// MGF1 (RFC 8017, B.2.1) of `seed`, as long as `target`, XORed into it.
fn mask(hash: Hash, seed: &[u8], target: &mut [u8]) {
    for (counter, chunk) in (0u32..).zip(target.chunks_mut(hash.len())) {
        let pad = hash.digest(&[seed, &counter.to_be_bytes()]);
        for (byte, pad) in chunk.iter_mut().zip(pad.expose()) {
            *byte ^= pad;
        }
    }
}

/// Takes the bytes out without a copy.
fn sealed(mut bytes: Zeroizing<Vec<u8>>) -> Secret {
    Secret::new(std::mem::take(&mut *bytes))
}

/// A fuzz target for each decoder.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz {
    use super::Hash;
    pub use super::{
        oaep::fuzz as oaep_decrypt, pkcs1::fuzz as pkcs1_decrypt, pss::fuzz as pss_verify,
    };

    /// The hash and that of the mask, one in each half of a byte.
    pub(super) fn hashes(choice: u8) -> (Hash, Hash) {
        let hash = |half: u8| {
            let chosen = Hash::ALL.get(usize::from(half) % Hash::ALL.len());
            chosen.copied().unwrap_or(Hash::Sha256)
        };
        (hash(choice >> 4), hash(choice & 0x0F))
    }
}
