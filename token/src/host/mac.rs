//! HMAC (RFC 2104).

use claviger_apdu::Secret;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::digest::{Hash, Hasher};

/// An HMAC in the making.
#[derive(Debug)]
pub struct Mac {
    /// Has hashed the key under ipad, then the message.
    inner: Hasher,
    /// Has hashed the key under opad.
    outer: Hasher,
}

impl Mac {
    /// Under a key of any length; one longer than a block is hashed first.
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

    /// Goes on with `part`.
    pub fn update(&mut self, part: &[u8]) {
        self.inner.update(part);
    }

    /// The whole tag, as long as the hash.
    #[must_use]
    pub fn finish(mut self) -> Secret {
        self.outer.update(self.inner.finish().expose());
        self.outer.finish()
    }

    /// Whether `tag` is the tag or its beginning, in constant time. Whether so short a tag is allowed is the
    /// caller's to know; an empty one matches nothing.
    #[must_use]
    pub fn matches(self, tag: &[u8]) -> bool {
        let whole = self.finish();
        let expected = whole.expose().get(..tag.len());
        !tag.is_empty() && expected.is_some_and(|expected| expected.ct_eq(tag).into())
    }
}
