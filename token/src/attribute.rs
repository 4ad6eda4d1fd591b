//! Attribute values and templates.

use std::{borrow::Cow, ops::Deref, sync::Arc};

use claviger_apdu::Secret;
use cryptoki_sys::{CK_ATTRIBUTE_TYPE, CK_MECHANISM_TYPE, CK_ULONG};
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

/// A secret that an object shares with its operations. Dropping the last reference wipes the secret.
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
    /// A CK_ULONG, or a type defined as one.
    Ulong(CK_ULONG),
    /// Any other value, in the form of the C interface.
    Bytes(Vec<u8>),
    /// An array of CK_MECHANISM_TYPE.
    Mechanisms(Vec<CK_MECHANISM_TYPE>),
    /// A value that exists and is never revealed.
    Sensitive,
    /// The value of a secret key that may be read.
    Secret(SharedSecret),
}

impl Value {
    /// Returns the bytes of the C value in the byte order of this machine, or `None` for [`Value::Sensitive`].
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

/// The attributes that a search asks for, or that a new object is given. A search matches if every entry is present
/// with the same bytes. A template may hold a secret key: it is wiped when dropped, and Debug output shows no values.
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
    /// Returns the bytes given for `attribute`, if the template has it.
    #[must_use]
    pub fn bytes(&self, attribute: CK_ATTRIBUTE_TYPE) -> Option<&[u8]> {
        self.0
            .iter()
            .find(|(kind, _)| *kind == attribute)
            .map(|(_, value)| value.as_slice())
    }

    /// Returns the number given for `attribute`. A value of another size is not a number and matches nothing.
    #[must_use]
    pub fn ulong(&self, attribute: CK_ATTRIBUTE_TYPE) -> Option<CK_ULONG> {
        self.bytes(attribute)?
            .try_into()
            .ok()
            .map(CK_ULONG::from_ne_bytes)
    }
}
