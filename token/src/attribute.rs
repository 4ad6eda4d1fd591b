//! Attribute values and templates: what an object has, and what a search asks for.

use std::borrow::Cow;

use cryptoki_sys::{CK_ATTRIBUTE_TYPE, CK_MECHANISM_TYPE, CK_ULONG};

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
    /// There is a value, and the card never gives it away.
    Sensitive,
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

/// What a search asks for: every entry must be there and equal, byte for byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template(pub Vec<(CK_ATTRIBUTE_TYPE, Vec<u8>)>);

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
