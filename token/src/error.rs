//! What can go wrong between a Cryptoki call and a card, each with its story.

use claviger_apdu::{StatusWord, TransportError, tlv::TlvError};

use crate::algorithm::KeyAlgorithm;

/// A failed operation of a token. `pkcs11-abi` turns it into one return code, in one exhaustive match.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The way to the card failed.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The card refused a command with a status that has no better name here.
    #[error("{operation}: {status}")]
    Refused {
        /// Command and thing, as in "PIV GENERAL AUTHENTICATE on 9A".
        operation: String,
        /// What the card said.
        status: StatusWord,
    },
    /// The card's answer is not what the standard says; `what` names answer and fault.
    #[error("{what}")]
    Malformed {
        /// For a person.
        what: String,
    },
    /// The card compared the PIN and it was wrong.
    #[error("wrong PIN{}", tries(*.tries_left))]
    WrongPin {
        /// Tries left, where the card says.
        tries_left: Option<u8>,
    },
    /// No tries are left.
    #[error("the PIN is blocked; unblock it with the PUK or the admin PIN")]
    PinLocked,
    /// A PIN the card cannot have; it was not sent, and no try was spent.
    #[error("a PIN of {len} bytes cannot be right: {min} to {max} are possible; no try was spent")]
    PinLength {
        /// What the caller gave.
        len: usize,
        /// Shortest possible.
        min: usize,
        /// Longest possible.
        max: usize,
    },
    /// The card compared the security officer's secret and it was wrong.
    #[error("wrong SO PIN{}", tries(*.tries_left))]
    WrongSoPin {
        /// Tries left, where the card says.
        tries_left: Option<u8>,
    },
    /// No tries are left for the security officer.
    #[error("the SO PIN is blocked")]
    SoPinLocked,
    /// A security officer's secret the card cannot have; it was not sent, and no try was spent.
    #[error("{what}; no try was spent")]
    SoPinForm {
        /// What the card can have.
        what: String,
    },
    /// A new PIN the card cannot have; nothing was sent.
    #[error("a new PIN of {len} bytes is not possible: {min} to {max} are")]
    NewPinLength {
        /// What the caller gave.
        len: usize,
        /// Shortest possible.
        min: usize,
        /// Longest possible.
        max: usize,
    },
    /// A new PIN that is refused for what it is.
    #[error("the new PIN is refused: {what}")]
    NewPinInvalid {
        /// By whom and why.
        what: String,
    },
    /// The card cannot make such a key, or not there.
    #[error("the card cannot make a key of this kind there: {0:?}")]
    KeyNotGenerable(KeyAlgorithm),
    /// A place or a value that the card has no object for.
    #[error("{what}")]
    ValueInvalid {
        /// Which, and why.
        what: String,
    },
    /// The card has no room for it.
    #[error("{operation}: no room for it on the card")]
    NoSpace {
        /// Command and thing.
        operation: String,
    },
    /// Somebody else is logged in.
    #[error("another user is logged in")]
    AnotherLoggedIn,
    /// The operation needs a login that is not there, or not there any more.
    #[error("{operation}: not logged in")]
    NotLoggedIn {
        /// What was asked.
        operation: String,
    },
    /// The user did not confirm: a touch was asked for and not given.
    #[error(
        "{operation}: refused by the card although the PIN is verified; was its button touched in time?"
    )]
    TouchMissing {
        /// What was asked.
        operation: String,
    },
    /// No such key on the card.
    #[error("{key}: no such key on the card")]
    NoSuchKey {
        /// Which.
        key: String,
    },
    /// The mechanism is not one of this key's, or of this token's.
    #[error("mechanism {0:#x} cannot be used here")]
    MechanismInvalid(cryptoki_sys::CK_MECHANISM_TYPE),
    /// The mechanism's parameter is not what it must be.
    #[error("bad parameter of mechanism {0:#x}")]
    MechanismParamInvalid(cryptoki_sys::CK_MECHANISM_TYPE),
    /// The key's type does not go with the mechanism.
    #[error("the key's type does not go with mechanism {0:#x}")]
    KeyTypeInconsistent(cryptoki_sys::CK_MECHANISM_TYPE),
    /// The key may not be used for this.
    #[error("the key may not be used for this function")]
    KeyFunctionNotPermitted,
    /// The mechanism could do this, but a value of the input cannot be.
    #[error("the input cannot be: it is not below the modulus, or no whole number of blocks")]
    DataInvalid,
    /// A signature of the wrong length.
    #[error("a signature of {len} bytes; {expected} are expected")]
    SignatureLength {
        /// What the caller gave.
        len: usize,
        /// What the key makes.
        expected: usize,
    },
    /// A signature that is none of this message by this key.
    #[error("the signature is not of this message by this key")]
    SignatureInvalid,
    /// A ciphertext of a length that cannot be.
    #[error("a ciphertext of {len} bytes cannot be")]
    EncryptedDataLength {
        /// What the caller gave.
        len: usize,
    },
    /// A ciphertext that decrypts to nothing.
    #[error("the ciphertext was not made so with this key")]
    EncryptedDataInvalid,
    /// The tag of authenticated encryption is wrong.
    #[error("the authentication tag is wrong: the ciphertext was changed")]
    AuthenticationTag,
    /// A key of a length that cannot be.
    #[error("a key of this length cannot be")]
    KeySize,
    /// The key's value never leaves it.
    #[error("the key's value may not leave it")]
    KeyUnextractable,
    /// No key that can be wrapped, or not with this one.
    #[error("the object cannot be wrapped")]
    KeyNotWrappable,
    /// A key whose value cannot be hashed.
    #[error("the key's value cannot be hashed")]
    KeyIndigestible,
    /// A template that cannot be; `attribute` is the culprit.
    #[error("template: {fault} (attribute {attribute:#x})")]
    Template {
        /// What is wrong.
        fault: TemplateFault,
        /// Of which attribute.
        attribute: cryptoki_sys::CK_ATTRIBUTE_TYPE,
    },
    /// The object's own attributes forbid it.
    #[error("the object may not be changed, copied or destroyed")]
    ActionProhibited,
    /// A curve this module does not know, or not for this type of key.
    #[error("the curve is not supported")]
    CurveNotSupported,
    /// CKA_EC_PARAMS that name no curve.
    #[error("CKA_EC_PARAMS name no curve")]
    DomainParameters,
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes")]
    NoRandom,
    /// Input of a length the mechanism or the key cannot take.
    #[error("{len} bytes of input; {max} are possible")]
    DataLength {
        /// What the caller gave.
        len: usize,
        /// Most the key and mechanism take.
        max: usize,
    },
}

/// What is wrong with a template (PKCS #11 3.1, 4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateFault {
    /// Something is missing.
    #[error("incomplete")]
    Incomplete,
    /// It contradicts itself, or what is to be made.
    #[error("inconsistent")]
    Inconsistent,
    /// The class has no such attribute.
    #[error("no such attribute")]
    TypeInvalid,
    /// A value that cannot be.
    #[error("bad value")]
    ValueInvalid,
    /// Not the caller's to say.
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
    /// An answer of `thing` that does not parse.
    pub fn malformed(thing: impl std::fmt::Display, fault: impl std::fmt::Display) -> Self {
        Self::Malformed {
            what: format!("{thing}: {fault}"),
        }
    }

    /// A TLV fault in `thing`, for `map_err`.
    pub fn tlv(thing: &'static str) -> impl Fn(TlvError) -> Self {
        move |fault| Self::malformed(thing, fault)
    }

    /// A place or value there is no object for.
    #[must_use]
    pub fn value(what: impl Into<String>) -> Self {
        Self::ValueInvalid { what: what.into() }
    }

    /// A refusal to write, of which a want of room has a name of its own.
    pub(crate) fn not_written(operation: impl Into<String>, status: StatusWord) -> Self {
        let operation = operation.into();
        match status {
            StatusWord::NOT_ENOUGH_MEMORY | StatusWord::MEMORY_FAILURE => {
                Self::NoSpace { operation }
            }
            _ => Self::refused(operation, status),
        }
    }

    /// A refusal of `operation` with `status`.
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
