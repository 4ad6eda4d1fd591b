//! HMAC (RFC 2104).

use claviger_apdu::Secret;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::digest::{Hash, Hasher};

/// An HMAC in progress.
#[derive(Debug)]
pub struct Mac {
    /// The hash of the key under ipad and of the message so far.
    inner: Hasher,
    /// The hash of the key under opad.
    outer: Hasher,
}

impl Mac {
    /// Begins an HMAC with a key of any length. A key longer than a block is hashed first.
    #[must_use]
    pub fn new(hash: Hash, key: &Secret) -> Self {
        let hashed = (key.len() > hash.block_len()).then(|| hash.digest(&[key.expose()]));
        let key = hashed.as_ref().unwrap_or(key).expose();
        let under = |pad: u8| {
            let mut block = Zeroizing::new(vec![pad; hash.block_len()]);
            for (byte, key) in block.iter_mut().zip(key) {
                *byte ^= key;
            }
            let mut hasher = Hasher::new(hash);
            hasher.update(&block);
            hasher
        };
        Self {
            inner: under(0x36),
            outer: under(0x5C),
        }
    }

    /// Processes `part`.
    pub fn update(&mut self, part: &[u8]) {
        self.inner.update(part);
    }

    /// Returns the whole tag, which is as long as the digest.
    #[must_use]
    pub fn finish(mut self) -> Secret {
        self.outer.update(self.inner.finish().expose());
        self.outer.finish()
    }

    /// Returns whether `tag` is the tag or its beginning, compared in constant time. The caller checks whether such a
    /// short tag is allowed. An empty one matches nothing.
    #[must_use]
    pub fn matches(self, tag: &[u8]) -> bool {
        let whole = self.finish();
        let expected = whole.expose().get(..tag.len());
        !tag.is_empty() && expected.is_some_and(|expected| expected.ct_eq(tag).into())
    }
}
