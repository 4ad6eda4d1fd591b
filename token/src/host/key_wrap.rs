//! AES key wrap (RFC 3394) and AES key wrap with padding (RFC 5649).

use aes_kw::{AesKw, AesKwp, KeyInit};
use claviger_apdu::Secret;
use zeroize::Zeroizing;

/// Longest key that is wrapped or unwrapped, in bytes.
const MAX_LEN: usize = 64 * 1024;

/// The kind of key wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrap {
    /// For keys of two or more whole semiblocks (RFC 3394).
    Kw,
    /// For keys of any length from one byte (RFC 5649).
    Kwp,
}

impl Wrap {
    /// Returns whether a key of `len` bytes can be wrapped.
    fn takes(self, len: usize) -> bool {
        match self {
            Self::Kw => (16..=MAX_LEN).contains(&len) && len.is_multiple_of(8),
            Self::Kwp => (1..=MAX_LEN).contains(&len),
        }
    }

    /// Returns whether a wrapped key can have `len` bytes.
    pub(crate) fn gives(self, len: usize) -> bool {
        let shortest = match self {
            Self::Kw => 24,
            Self::Kwp => 16,
        };
        (shortest..=MAX_LEN + 8).contains(&len) && len.is_multiple_of(8)
    }
}

/// Runs the same expression for a key of each length that AES has. Gives `None` for any other length.
macro_rules! with_aes {
    ($wrapper:ident, $kek:expr, $cipher:ident => $body:expr) => {
        match $kek.len() {
            16 => $wrapper::<aes::Aes128>::new_from_slice($kek.expose())
                .ok()
                .and_then(|$cipher| $body),
            24 => $wrapper::<aes::Aes192>::new_from_slice($kek.expose())
                .ok()
                .and_then(|$cipher| $body),
            32 => $wrapper::<aes::Aes256>::new_from_slice($kek.expose())
                .ok()
                .and_then(|$cipher| $body),
            _ => None,
        }
    };
}

/// Wraps `key` under `kek`. Returns `None` if either has an impossible length.
#[must_use]
pub fn wrap(wrap: Wrap, kek: &Secret, key: &Secret) -> Option<Secret> {
    if !wrap.takes(key.len()) {
        return None;
    }
    let mut wrapped = Zeroizing::new(vec![0; key.len().next_multiple_of(8) + 8]);
    let buffer = wrapped.as_mut_slice();
    match wrap {
        Wrap::Kw => with_aes!(AesKw, kek, cipher => {
            cipher.wrap_key(key.expose(), buffer).ok().map(Secret::copy_from)
        }),
        Wrap::Kwp => with_aes!(AesKwp, kek, cipher => {
            cipher.wrap_key(key.expose(), buffer).ok().map(Secret::copy_from)
        }),
    }
}

/// Unwraps the key in `wrapped`. Returns `None` if it was not wrapped this way under `kek`.
#[must_use]
pub fn unwrap(wrap: Wrap, kek: &Secret, wrapped: &[u8]) -> Option<Secret> {
    if !wrap.gives(wrapped.len()) {
        return None;
    }
    let mut key = Zeroizing::new(vec![0; wrapped.len() - 8]);
    let buffer = key.as_mut_slice();
    match wrap {
        Wrap::Kw => with_aes!(AesKw, kek, cipher => {
            cipher.unwrap_key(wrapped, buffer).ok().map(Secret::copy_from)
        }),
        Wrap::Kwp => with_aes!(AesKwp, kek, cipher => {
            cipher.unwrap_key(wrapped, buffer).ok().map(Secret::copy_from)
        }),
    }
}

/// `| kind and length of the key | wrapped key |`, under a key of known bytes. An unwrapped key must wrap to the same
/// bytes. Returns whether a key was unwrapped.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) -> bool {
    let Some((choice, wrapped)) = bytes.split_first() else {
        return false;
    };
    let kek = Secret::new((0..16 + (choice & 3) * 8).collect());
    let kind = if choice & 4 == 0 { Wrap::Kw } else { Wrap::Kwp };
    let Some(key) = unwrap(kind, &kek, wrapped) else {
        return false;
    };
    let again = wrap(kind, &kek, &key);
    assert_eq!(again.as_ref().map(Secret::expose), Some(wrapped));
    true
}
