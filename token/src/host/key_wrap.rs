//! AES key wrap (RFC 3394) and AES key wrap with padding (RFC 5649).

use aes_kw::{AesKw, AesKwp, KeyInit};
use claviger_apdu::Secret;
use zeroize::Zeroizing;

/// Longest key that is wrapped or unwrapped.
const MAX_LEN: usize = 64 * 1024;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrap {
    /// Keys of two or more whole semiblocks (RFC 3394).
    Kw,
    /// Keys of any length but none (RFC 5649).
    Kwp,
}

impl Wrap {
    /// Whether a key of `len` bytes can be wrapped.
    fn takes(self, len: usize) -> bool {
        match self {
            Self::Kw => (16..=MAX_LEN).contains(&len) && len.is_multiple_of(8),
            Self::Kwp => (1..=MAX_LEN).contains(&len),
        }
    }

    /// Whether a wrapped key can have `len` bytes.
    pub(crate) fn gives(self, len: usize) -> bool {
        let shortest = match self {
            Self::Kw => 24,
            Self::Kwp => 16,
        };
        (shortest..=MAX_LEN + 8).contains(&len) && len.is_multiple_of(8)
    }
}

/// The same with a key of each length AES has; `None` with any other.
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

/// `key` wrapped under `kek`; `None` when either has a length it cannot have.
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

/// The key in `wrapped`; `None` when it was not wrapped so under `kek`.
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

/// `| length of the key, and the kind | a wrapped key |`, under a key of known bytes: what is unwrapped wraps to the same.
/// Whether something is.
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
