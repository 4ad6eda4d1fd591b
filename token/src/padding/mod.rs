//! RFC 8017's encodings of the input of an RSA key. They use no key and no card.
//!
//! A *block* has the length of the modulus. A secret block is decoded in constant time.

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

/// Why a message cannot be padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PaddingError {
    /// The message is longer than the key has space for.
    #[error("the message is longer than the {max} bytes that fit the key")]
    TooLong {
        /// Most bytes that fit.
        max: usize,
    },
    /// The operating system gives no random numbers.
    #[error("the operating system gives no random numbers")]
    NoRandom,
}

impl From<NoRandom> for PaddingError {
    fn from(_: NoRandom) -> Self {
        Self::NoRandom
    }
}

/// XORs `target` with MGF1 (RFC 8017, B.2.1) of `seed`.
fn mask(hash: Hash, seed: &[u8], target: &mut [u8]) {
    for (counter, chunk) in (0u32..).zip(target.chunks_mut(hash.len())) {
        let pad = hash.digest(&[seed, &counter.to_be_bytes()]);
        for (byte, pad) in chunk.iter_mut().zip(pad.expose()) {
            *byte ^= pad;
        }
    }
}

/// Moves the bytes into a [`Secret`] without a copy.
fn sealed(mut bytes: Zeroizing<Vec<u8>>) -> Secret {
    Secret::new(std::mem::take(&mut *bytes))
}

/// Fuzz targets, one for each decoder.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz {
    use super::Hash;
    pub use super::{
        oaep::fuzz as oaep_decrypt, pkcs1::fuzz as pkcs1_decrypt, pss::fuzz as pss_verify,
    };

    /// Returns the hash, and the hash of the mask. Each is chosen by one half of the byte.
    pub(super) fn hashes(choice: u8) -> (Hash, Hash) {
        let hash = |half: u8| {
            let chosen = Hash::ALL.get(usize::from(half) % Hash::ALL.len());
            chosen.copied().unwrap_or(Hash::Sha256)
        };
        (hash(choice >> 4), hash(choice & 0x0F))
    }
}
