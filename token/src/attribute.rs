//! Attribute values and templates: what an object has, and what a search asks for.

use std::{borrow::Cow, ops::Deref, sync::Arc};

use claviger_apdu::Secret;
use cryptoki_sys::{CK_ATTRIBUTE_TYPE, CK_MECHANISM_TYPE, CK_ULONG};
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

/// A secret that an object and the operations with it hold together; the last of them wipes it.
#[derive(Clone, Debug)]
pub struct SharedSecret(Arc<Secret>);

impl SharedSecret {
    /// Shares `secret`.
    #[must_use]
    pub fn new(secret: Secret) -> Self {
        Self(Arc::new(secret))
    }
}

impl Deref for SharedSecret {
    type Target = Secret;

    fn deref(&self) -> &Secret {
        &self.0
    }
}

impl PartialEq for SharedSecret {
    fn eq(&self, other: &Self) -> bool {
        self.expose().ct_eq(other.expose()).into()
    }
}

impl Eq for SharedSecret {}

/// The value of one attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A CK_BBOOL.
    Bool(bool),
    /// A CK_ULONG, or one of its many names.
    Ulong(CK_ULONG),
    /// Anything else, as it goes over the ABI.
    Bytes(Vec<u8>),
    /// An array of CK_MECHANISM_TYPE.
    Mechanisms(Vec<CK_MECHANISM_TYPE>),
    /// There is a value, and it is never given away.
    Sensitive,
    /// The value of a secret key that may be read.
    Secret(SharedSecret),
}

impl Value {
    /// The bytes of the C value in this machine's byte order; `None` for [`Value::Sensitive`].
    #[must_use]
    pub fn encode(&self) -> Option<Cow<'_, [u8]>> {
        match self {
            Self::Bool(value) => Some(Cow::Owned(vec![u8::from(*value)])),
            Self::Ulong(value) => Some(Cow::Owned(value.to_ne_bytes().to_vec())),
            Self::Bytes(bytes) => Some(Cow::Borrowed(bytes)),
            Self::Mechanisms(list) => Some(Cow::Owned(
                list.iter().flat_map(|m| m.to_ne_bytes()).collect(),
            )),
            Self::Secret(secret) => Some(Cow::Borrowed(secret.expose())),
            Self::Sensitive => None,
        }
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<CK_ULONG> for Value {
    fn from(value: CK_ULONG) -> Self {
        Self::Ulong(value)
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        Self::Bytes(value)
    }
}

impl From<&[u8]> for Value {
    fn from(value: &[u8]) -> Self {
        Self::Bytes(value.to_vec())
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Bytes(value.as_bytes().to_vec())
    }
}

/// What a search asks for, where every entry must be there and equal, byte for byte; or what a new object shall have.
/// It may hold a secret key: it is wiped when dropped, and prints no values.
#[derive(Default, PartialEq, Eq)]
pub struct Template(pub Vec<(CK_ATTRIBUTE_TYPE, Vec<u8>)>);

impl Drop for Template {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(|(_, value)| value.zeroize());
    }
}

impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lengths = self.0.iter().map(|(kind, value)| (kind, value.len()));
        f.debug_map().entries(lengths).finish()
    }
}

impl Template {
    /// The bytes asked of `attribute`, if it is asked for.
    #[must_use]
    pub fn bytes(&self, attribute: CK_ATTRIBUTE_TYPE) -> Option<&[u8]> {
        self.0
            .iter()
            .find(|(kind, _)| *kind == attribute)
            .map(|(_, value)| value.as_slice())
    }

    /// The number asked of `attribute`; a value of another size is none and will match nothing.
    #[must_use]
    pub fn ulong(&self, attribute: CK_ATTRIBUTE_TYPE) -> Option<CK_ULONG> {
        self.bytes(attribute)?
            .try_into()
            .ok()
            .map(CK_ULONG::from_ne_bytes)
    }
}
