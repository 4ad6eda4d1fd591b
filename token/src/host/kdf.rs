//! ANSI X9.63's key derivation function (SEC 1, 3.6.1). ECDH mechanisms call it CKD_SHA…_KDF.

use claviger_apdu::Secret;

use crate::digest::Hash;

/// Longest derived key, in bytes.
const MAX_LEN: usize = 64 * 1024;

/// Returns `len` bytes of Hash(Z || 1 || shared) || Hash(Z || 2 || shared) .., or `None` for more than 64 KiB.
///
/// The standard's own limit is 2^32 - 1 digests, far beyond that.
#[must_use]
pub fn x963(hash: Hash, z: &Secret, shared: &[u8], len: usize) -> Option<Secret> {
    if len > MAX_LEN {
        return None;
    }
    let mut key = Secret::new(Vec::with_capacity(len.next_multiple_of(hash.len())));
    for counter in (1u32..).take(len.div_ceil(hash.len())) {
        let part = hash.digest(&[z.expose(), &counter.to_be_bytes(), shared]);
        key.extend(part.expose());
    }
    key.truncate(len);
    Some(key)
}
