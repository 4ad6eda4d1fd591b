//! Failures and the one place where they become a CK_RV.

use claviger_apdu::TransportErrorKind;
use claviger_token::{TokenError, algorithm::KeyAlgorithm};
use cryptoki_sys::{
    CK_RV, CKR_ARGUMENTS_BAD, CKR_ATTRIBUTE_SENSITIVE, CKR_ATTRIBUTE_TYPE_INVALID,
    CKR_ATTRIBUTE_VALUE_INVALID, CKR_BUFFER_TOO_SMALL, CKR_CANT_LOCK,
    CKR_CRYPTOKI_ALREADY_INITIALIZED, CKR_CRYPTOKI_NOT_INITIALIZED, CKR_CURVE_NOT_SUPPORTED,
    CKR_DATA_LEN_RANGE, CKR_DEVICE_ERROR, CKR_DEVICE_MEMORY, CKR_DEVICE_REMOVED,
    CKR_FUNCTION_CANCELED, CKR_FUNCTION_NOT_PARALLEL, CKR_FUNCTION_NOT_SUPPORTED,
    CKR_FUNCTION_REJECTED, CKR_GENERAL_ERROR, CKR_KEY_FUNCTION_NOT_PERMITTED,
    CKR_KEY_HANDLE_INVALID, CKR_KEY_SIZE_RANGE, CKR_KEY_TYPE_INCONSISTENT, CKR_MECHANISM_INVALID,
    CKR_MECHANISM_PARAM_INVALID, CKR_NO_EVENT, CKR_OBJECT_HANDLE_INVALID, CKR_OPERATION_ACTIVE,
    CKR_OPERATION_NOT_INITIALIZED, CKR_PIN_INCORRECT, CKR_PIN_INVALID, CKR_PIN_LEN_RANGE,
    CKR_PIN_LOCKED, CKR_RANDOM_NO_RNG, CKR_SESSION_HANDLE_INVALID,
    CKR_SESSION_PARALLEL_NOT_SUPPORTED, CKR_SLOT_ID_INVALID, CKR_TOKEN_NOT_PRESENT,
    CKR_TOKEN_NOT_RECOGNIZED, CKR_USER_ALREADY_LOGGED_IN, CKR_USER_ANOTHER_ALREADY_LOGGED_IN,
    CKR_USER_NOT_LOGGED_IN, CKR_USER_TYPE_INVALID,
};

/// Why a Cryptoki function did not return CKR_OK.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The caller's own doing, or a rule of the standard: the code says it all.
    #[error("{}", .0.name())]
    Rule(Rule),
    /// Something of the card or the way to it.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The environment; the text says what and the cure.
    #[error("{0}")]
    Environment(String),
}

/// Codes this module decides on by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule(CK_RV, &'static str);

macro_rules! rules {
    ($($name:ident = $code:ident;)*) => {
        impl Rule {
            $(pub(crate) const $name: Self = Self($code, stringify!($code));)*
        }
    };
}

rules! {
    ALREADY_INITIALIZED = CKR_CRYPTOKI_ALREADY_INITIALIZED;
    ARGUMENTS_BAD = CKR_ARGUMENTS_BAD;
    ATTRIBUTE_SENSITIVE = CKR_ATTRIBUTE_SENSITIVE;
    ATTRIBUTE_TYPE_INVALID = CKR_ATTRIBUTE_TYPE_INVALID;
    BUFFER_TOO_SMALL = CKR_BUFFER_TOO_SMALL;
    CANT_LOCK = CKR_CANT_LOCK;
    FUNCTION_NOT_PARALLEL = CKR_FUNCTION_NOT_PARALLEL;
    FUNCTION_NOT_SUPPORTED = CKR_FUNCTION_NOT_SUPPORTED;
    KEY_HANDLE_INVALID = CKR_KEY_HANDLE_INVALID;
    MECHANISM_INVALID = CKR_MECHANISM_INVALID;
    NO_EVENT = CKR_NO_EVENT;
    NOT_INITIALIZED = CKR_CRYPTOKI_NOT_INITIALIZED;
    OBJECT_HANDLE_INVALID = CKR_OBJECT_HANDLE_INVALID;
    OPERATION_ACTIVE = CKR_OPERATION_ACTIVE;
    OPERATION_NOT_INITIALIZED = CKR_OPERATION_NOT_INITIALIZED;
    RANDOM_NO_RNG = CKR_RANDOM_NO_RNG;
    SESSION_HANDLE_INVALID = CKR_SESSION_HANDLE_INVALID;
    SESSION_PARALLEL_NOT_SUPPORTED = CKR_SESSION_PARALLEL_NOT_SUPPORTED;
    SLOT_ID_INVALID = CKR_SLOT_ID_INVALID;
    TOKEN_NOT_PRESENT = CKR_TOKEN_NOT_PRESENT;
    TOKEN_NOT_RECOGNIZED = CKR_TOKEN_NOT_RECOGNIZED;
    DEVICE_REMOVED = CKR_DEVICE_REMOVED;
    USER_ALREADY_LOGGED_IN = CKR_USER_ALREADY_LOGGED_IN;
    USER_NOT_LOGGED_IN = CKR_USER_NOT_LOGGED_IN;
    USER_TYPE_INVALID = CKR_USER_TYPE_INVALID;
}

impl Rule {
    pub(crate) const fn name(self) -> &'static str {
        self.1
    }

    /// Whether a caller meets it in the ordinary run of things, so that nobody need read of it.
    const fn is_ordinary(self) -> bool {
        matches!(
            self.0,
            CKR_BUFFER_TOO_SMALL
                | CKR_NO_EVENT
                | CKR_ATTRIBUTE_SENSITIVE
                | CKR_ATTRIBUTE_TYPE_INVALID
                | CKR_FUNCTION_NOT_SUPPORTED
                | CKR_FUNCTION_NOT_PARALLEL
                | CKR_RANDOM_NO_RNG
                | CKR_TOKEN_NOT_PRESENT
                | CKR_CRYPTOKI_NOT_INITIALIZED
                | CKR_CRYPTOKI_ALREADY_INITIALIZED
        )
    }
}

impl From<Rule> for Failure {
    fn from(rule: Rule) -> Self {
        Self::Rule(rule)
    }
}

impl From<claviger_apdu::TransportError> for Failure {
    fn from(error: claviger_apdu::TransportError) -> Self {
        Self::Token(error.into())
    }
}

impl Failure {
    /// The return code.
    pub(crate) fn code(&self) -> CK_RV {
        match self {
            Self::Rule(rule) => rule.0,
            Self::Token(error) => token_code(error),
            Self::Environment(_) => CKR_GENERAL_ERROR,
        }
    }

    /// Writes the one line a person may look for.
    pub(crate) fn log(&self, function: &str) {
        match self {
            Self::Rule(rule) if rule.is_ordinary() => tracing::debug!("{function}: {self}"),
            Self::Rule(_) => tracing::info!("{function}: {self}"),
            // Asked of a key that cannot: how callers find out what it can.
            Self::Token(
                TokenError::MechanismInvalid(_)
                | TokenError::MechanismParamInvalid(_)
                | TokenError::KeyTypeInconsistent(_)
                | TokenError::KeyFunctionNotPermitted
                | TokenError::DataLength { .. },
            ) => tracing::info!("{function}: {self}"),
            Self::Token(_) | Self::Environment(_) => tracing::warn!("{function}: {self}"),
        }
    }
}

const fn token_code(error: &TokenError) -> CK_RV {
    match error {
        TokenError::Transport(error) => transport_code(error.kind),
        TokenError::Refused { .. } | TokenError::Malformed { .. } => CKR_DEVICE_ERROR,
        // PIN_LEN_RANGE is not among C_Login's codes (PKCS #11 2.40, 5.6); such a PIN is a wrong one.
        TokenError::WrongPin { .. }
        | TokenError::PinLength { .. }
        | TokenError::WrongSoPin { .. }
        | TokenError::SoPinForm { .. } => CKR_PIN_INCORRECT,
        TokenError::PinLocked | TokenError::SoPinLocked => CKR_PIN_LOCKED,
        TokenError::NewPinLength { .. } => CKR_PIN_LEN_RANGE,
        TokenError::NewPinInvalid { .. } => CKR_PIN_INVALID,
        TokenError::KeyNotGenerable(KeyAlgorithm::Rsa { .. }) => CKR_KEY_SIZE_RANGE,
        TokenError::KeyNotGenerable(_) => CKR_CURVE_NOT_SUPPORTED,
        TokenError::ValueInvalid { .. } => CKR_ATTRIBUTE_VALUE_INVALID,
        TokenError::NoRoom { .. } => CKR_DEVICE_MEMORY,
        TokenError::AnotherLoggedIn => CKR_USER_ANOTHER_ALREADY_LOGGED_IN,
        TokenError::NotLoggedIn { .. } => CKR_USER_NOT_LOGGED_IN,
        TokenError::NotConfirmed { .. } => CKR_FUNCTION_REJECTED,
        TokenError::NoSuchKey { .. } => CKR_KEY_HANDLE_INVALID,
        TokenError::MechanismInvalid(_) => CKR_MECHANISM_INVALID,
        TokenError::MechanismParamInvalid(_) => CKR_MECHANISM_PARAM_INVALID,
        TokenError::KeyTypeInconsistent(_) => CKR_KEY_TYPE_INCONSISTENT,
        TokenError::KeyFunctionNotPermitted => CKR_KEY_FUNCTION_NOT_PERMITTED,
        TokenError::DataLength { .. } => CKR_DATA_LEN_RANGE,
    }
}

const fn transport_code(kind: TransportErrorKind) -> CK_RV {
    match kind {
        TransportErrorKind::CardRemoved
        | TransportErrorKind::NoCard
        | TransportErrorKind::NoReader => CKR_DEVICE_REMOVED,
        TransportErrorKind::Cancelled => CKR_FUNCTION_CANCELED,
        TransportErrorKind::NoService
        | TransportErrorKind::CardReset
        | TransportErrorKind::Busy
        | TransportErrorKind::Denied
        | TransportErrorKind::TimedOut
        | TransportErrorKind::Protocol => CKR_DEVICE_ERROR,
    }
}
