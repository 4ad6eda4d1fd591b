//! Bytes that must not be printed, copied by accident, or left in memory.

use std::fmt;

use zeroize::Zeroize;

/// Bytes that are wiped when dropped. Debug output shows only the length.
///
/// There is no `Clone`: [`Secret::duplicate`] makes a copy, and its name shows that in the code. The buffer never grows
/// in place, because a reallocation would leave the old bytes behind.
#[derive(Default)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Takes ownership of `bytes`. Drop wipes the spare capacity too.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Copies `bytes`. The caller keeps the original and wipes it.
    #[must_use]
    pub fn copy_from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// Returns the bytes. Call this only where the bytes are needed.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Returns a second copy, which is wiped when it is dropped.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self(self.0.clone())
    }

    /// Returns the length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Appends `more`. If the capacity is used up, the bytes move to a larger buffer and the old one is wiped.
    pub fn extend(&mut self, more: &[u8]) {
        let needed = self.0.len().saturating_add(more.len());
        if needed > self.0.capacity() {
            let mut larger = Vec::with_capacity(needed.max(self.0.capacity().saturating_mul(2)));
            larger.extend_from_slice(&self.0);
            self.0.zeroize();
            self.0 = larger;
        }
        self.0.extend_from_slice(more);
    }

    /// Wipes the bytes and keeps the buffer.
    pub fn clear(&mut self) {
        // `Vec::zeroize` wipes the whole capacity. A response buffer is 64 KiB and rarely full.
        self.0.as_mut_slice().zeroize();
        self.0.clear();
    }

    /// Shortens the value to `len` bytes and wipes the rest. A value that is not longer stays as it is.
    pub fn truncate(&mut self, len: usize) {
        if let Some(rest) = self.0.get_mut(len..) {
            rest.zeroize();
            self.0.truncate(len);
        }
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

impl From<Vec<u8>> for Secret {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_prints_only_the_length() {
        assert_eq!(
            format!("{:?}", Secret::copy_from(b"123456")),
            "Secret(6 bytes)"
        );
    }

    #[test]
    fn extend_keeps_all_bytes_across_reallocation() {
        let mut secret = Secret::default();
        for n in 0..=255u8 {
            secret.extend(&[n, n]);
        }
        assert_eq!(secret.len(), 512);
        assert_eq!(secret.expose()[510..], [255, 255]);
    }

    #[test]
    fn truncate_shortens_and_never_lengthens() {
        let mut secret = Secret::copy_from(&[1, 2, 3]);
        secret.truncate(9);
        assert_eq!(secret.expose(), [1, 2, 3]);
        secret.truncate(1);
        assert_eq!(secret.expose(), [1]);
    }
}
