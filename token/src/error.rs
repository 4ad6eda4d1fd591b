//! The errors between a Cryptoki call and a card.

use claviger_apdu::{StatusWord, TransportError, tlv::TlvError};

use crate::algorithm::KeyAlgorithm;

/// A failed operation of a token. `pkcs11-abi` turns it into one return code, in one exhaustive match.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The transport to the card failed.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The card refused a command with a status that has no variant of its own here.
    #[error("{operation}: {status}")]
    Refused {
        /// Command and target, as in "PIV GENERAL AUTHENTICATE on 9A".
        operation: String,
        /// The status word of the card.
        status: StatusWord,
    },
    /// The card's response violates the standard. `what` names the response and the fault.
    #[error("{what}")]
    Malformed {
        /// The text for a person.
        what: String,
    },
    /// The card compared the PIN, and the PIN was wrong.
    #[error("wrong PIN{}", tries(*.tries_left))]
    WrongPin {
        /// Tries left, if the card reports them.
        tries_left: Option<u8>,
    },
    /// No tries are left.
    #[error("the PIN is blocked; unblock it with the PUK or the admin PIN")]
    PinLocked,
    /// A PIN of impossible length. It was not sent, and no try was spent.
    #[error(
        "the PIN has {len} bytes; this card takes {min} to {max}. It was not sent, so no try was spent"
    )]
    PinLength {
        /// Length that the caller passed.
        len: usize,
        /// Shortest possible length.
        min: usize,
        /// Longest possible length.
        max: usize,
    },
    /// The card compared the SO PIN, and the SO PIN was wrong.
    #[error("wrong SO PIN{}", tries(*.tries_left))]
    WrongSoPin {
        /// Tries left, if the card reports them.
        tries_left: Option<u8>,
    },
    /// No tries are left for the SO PIN.
    #[error("the SO PIN is blocked")]
    SoPinLocked,
    /// An SO PIN of impossible form. It was not sent, and no try was spent.
    #[error("{what}; no try was spent")]
    SoPinForm {
        /// The forms that the card takes.
        what: String,
    },
    /// A new PIN of impossible length. Nothing was sent.
    #[error("the new PIN has {len} bytes; this card takes {min} to {max}")]
    NewPinLength {
        /// Length that the caller passed.
        len: usize,
        /// Shortest possible length.
        min: usize,
        /// Longest possible length.
        max: usize,
    },
    /// The value of the new PIN was refused.
    #[error("the new PIN is refused: {what}")]
    NewPinInvalid {
        /// Which command refused it, and why.
        what: String,
    },
    /// The card cannot generate a key of this algorithm, or not in this key reference.
    #[error("the card cannot generate a key of this algorithm in this key reference: {0:?}")]
    KeyNotGenerable(KeyAlgorithm),
    /// A key reference or a value for which the card has no object.
    #[error("{what}")]
    ValueInvalid {
        /// The key reference or value, and the reason.
        what: String,
    },
    /// The card has no space left.
    #[error("{operation}: the card has no space left")]
    NoSpace {
        /// Command and target.
        operation: String,
    },
    /// The user or the security officer (SO) is logged in, and the other of them is requested.
    #[error("another user is logged in; log that user out first")]
    AnotherLoggedIn,
    /// The operation needs a login. There is none, or the card has lost it.
    #[error("{operation}: not logged in; log in first")]
    NotLoggedIn {
        /// The requested operation.
        operation: String,
    },
    /// The card refused although the PIN is verified. It probably waited for a touch in vain.
    #[error(
        "{operation}: the card refused although the PIN is verified; if it has a button, touch it in time and try again"
    )]
    TouchMissing {
        /// The requested operation.
        operation: String,
    },
    /// The key is not on the card.
    #[error("{key}: no such key on the card")]
    NoSuchKey {
        /// The key.
        key: String,
    },
    /// The key or the token does not support the mechanism.
    #[error("the key or the token does not support mechanism {0:#x}")]
    MechanismInvalid(cryptoki_sys::CK_MECHANISM_TYPE),
    /// The mechanism's parameter is invalid.
    #[error("the parameter of mechanism {0:#x} is invalid")]
    MechanismParamInvalid(cryptoki_sys::CK_MECHANISM_TYPE),
    /// The key's type does not fit the mechanism.
    #[error("the key's type does not fit mechanism {0:#x}")]
    KeyTypeInconsistent(cryptoki_sys::CK_MECHANISM_TYPE),
    /// The key may not be used for this.
    #[error("the key may not be used for this function")]
    KeyFunctionNotPermitted,
    /// The value of the input is invalid, although the mechanism supports its length.
    #[error("the input is invalid: it is not below the modulus, or not a whole number of blocks")]
    DataInvalid,
    /// A signature of the wrong length.
    #[error("the signature has {len} bytes; {expected} are expected")]
    SignatureLength {
        /// Length that the caller passed.
        len: usize,
        /// Length of the key's signatures.
        expected: usize,
    },
    /// The signature does not match the message and the key.
    #[error("the signature does not match the message and the key")]
    SignatureInvalid,
    /// A ciphertext of impossible length.
    #[error("the ciphertext has an impossible length: {len} bytes")]
    EncryptedDataLength {
        /// Length that the caller passed.
        len: usize,
    },
    /// A ciphertext that does not decrypt to a padded message.
    #[error("the ciphertext was not encrypted with this mechanism and key")]
    EncryptedDataInvalid,
    /// The tag of authenticated encryption is wrong.
    #[error("the authentication tag is wrong: the ciphertext was changed")]
    AuthenticationTag,
    /// A key of impossible length.
    #[error("the key has an impossible length")]
    KeySize,
    /// The key's value must not leave its token or session.
    #[error("the key is not extractable")]
    KeyUnextractable,
    /// The object is not a key that can be wrapped, or not with this wrapping key.
    #[error("the object cannot be wrapped")]
    KeyNotWrappable,
    /// A key whose value cannot be hashed.
    #[error("the key's value cannot be hashed")]
    KeyIndigestible,
    /// An invalid template. `attribute` has the fault.
    #[error("template: {fault} (attribute {attribute:#x})")]
    Template {
        /// The fault.
        fault: TemplateFault,
        /// The attribute with the fault.
        attribute: cryptoki_sys::CK_ATTRIBUTE_TYPE,
    },
    /// The object's own attributes forbid the action.
    #[error("the object may not be changed, copied or destroyed")]
    ActionProhibited,
    /// A curve that is unknown here, or that does not fit the type of the key.
    #[error("the curve is not supported")]
    CurveNotSupported,
    /// CKA_EC_PARAMS that name no curve.
    #[error("CKA_EC_PARAMS name no curve")]
    DomainParameters,
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes")]
    NoRandom,
    /// Input of a length that the mechanism or the key cannot take.
    #[error("the input has {len} bytes; {max} are possible")]
    DataLength {
        /// Length that the caller passed.
        len: usize,
        /// The most that the key and the mechanism take.
        max: usize,
    },
}

/// The fault of a template (PKCS #11 3.1, 4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateFault {
    /// A required attribute is missing.
    #[error("incomplete")]
    Incomplete,
    /// The template contradicts itself, or the object that it is for.
    #[error("inconsistent")]
    Inconsistent,
    /// The class has no such attribute.
    #[error("no such attribute")]
    TypeInvalid,
    /// The value is invalid.
    #[error("bad value")]
    ValueInvalid,
    /// The caller must not set this attribute.
    #[error("read-only")]
    ReadOnly,
}

impl From<crate::padding::PaddingError> for TokenError {
    fn from(error: crate::padding::PaddingError) -> Self {
        match error {
            crate::padding::PaddingError::TooLong { max } => Self::DataLength {
                len: max.saturating_add(1),
                max,
            },
            crate::padding::PaddingError::NoRandom => Self::NoRandom,
        }
    }
}

impl TokenError {
    /// Returns the error for a response of `thing` that does not parse.
    pub fn malformed(thing: impl std::fmt::Display, fault: impl std::fmt::Display) -> Self {
        Self::Malformed {
            what: format!("{thing}: {fault}"),
        }
    }

    /// Returns a function for `map_err` that reports a TLV fault in `thing`.
    pub fn tlv(thing: &'static str) -> impl Fn(TlvError) -> Self {
        move |fault| Self::malformed(thing, fault)
    }

    /// Returns the error for a key reference or value without an object.
    #[must_use]
    pub fn value(what: impl Into<String>) -> Self {
        Self::ValueInvalid { what: what.into() }
    }

    /// Returns the error for a refused write. Lack of space has a variant of its own.
    pub(crate) fn not_written(operation: impl Into<String>, status: StatusWord) -> Self {
        let operation = operation.into();
        match status {
            StatusWord::NOT_ENOUGH_MEMORY | StatusWord::MEMORY_FAILURE => {
                Self::NoSpace { operation }
            }
            _ => Self::refused(operation, status),
        }
    }

    /// Returns the error for a refusal of `operation` with `status`.
    pub fn refused(operation: impl Into<String>, status: StatusWord) -> Self {
        Self::Refused {
            operation: operation.into(),
            status,
        }
    }
}

fn tries(left: Option<u8>) -> String {
    match left {
        Some(1) => ", 1 try left".to_owned(),
        Some(left) => format!(", {left} tries left"),
        None => String::new(),
    }
}
