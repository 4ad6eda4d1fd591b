//! Errors, and the one place where an error becomes a CK_RV.

use claviger_apdu::TransportErrorKind;
use claviger_token::{TemplateFault, TokenError, algorithm::KeyAlgorithm};
use cryptoki_sys::{
    CK_RV, CKR_ACTION_PROHIBITED, CKR_AEAD_DECRYPT_FAILED, CKR_ARGUMENTS_BAD,
    CKR_ATTRIBUTE_READ_ONLY, CKR_ATTRIBUTE_SENSITIVE, CKR_ATTRIBUTE_TYPE_INVALID,
    CKR_ATTRIBUTE_VALUE_INVALID, CKR_BUFFER_TOO_SMALL, CKR_CANT_LOCK,
    CKR_CRYPTOKI_ALREADY_INITIALIZED, CKR_CRYPTOKI_NOT_INITIALIZED, CKR_CURVE_NOT_SUPPORTED,
    CKR_DATA_INVALID, CKR_DATA_LEN_RANGE, CKR_DEVICE_ERROR, CKR_DEVICE_MEMORY, CKR_DEVICE_REMOVED,
    CKR_DOMAIN_PARAMS_INVALID, CKR_ENCRYPTED_DATA_INVALID, CKR_ENCRYPTED_DATA_LEN_RANGE,
    CKR_FUNCTION_CANCELED, CKR_FUNCTION_FAILED, CKR_FUNCTION_NOT_PARALLEL,
    CKR_FUNCTION_NOT_SUPPORTED, CKR_FUNCTION_REJECTED, CKR_GENERAL_ERROR,
    CKR_KEY_FUNCTION_NOT_PERMITTED, CKR_KEY_HANDLE_INVALID, CKR_KEY_INDIGESTIBLE,
    CKR_KEY_NOT_NEEDED, CKR_KEY_NOT_WRAPPABLE, CKR_KEY_SIZE_RANGE, CKR_KEY_TYPE_INCONSISTENT,
    CKR_KEY_UNEXTRACTABLE, CKR_MECHANISM_INVALID, CKR_MECHANISM_PARAM_INVALID, CKR_NO_EVENT,
    CKR_OBJECT_HANDLE_INVALID, CKR_OPERATION_ACTIVE, CKR_OPERATION_NOT_INITIALIZED,
    CKR_PIN_INCORRECT, CKR_PIN_INVALID, CKR_PIN_LEN_RANGE, CKR_PIN_LOCKED,
    CKR_RANDOM_SEED_NOT_SUPPORTED, CKR_SAVED_STATE_INVALID, CKR_SESSION_ASYNC_NOT_SUPPORTED,
    CKR_SESSION_HANDLE_INVALID, CKR_SESSION_PARALLEL_NOT_SUPPORTED, CKR_SESSION_READ_ONLY,
    CKR_SESSION_READ_ONLY_EXISTS, CKR_SESSION_READ_WRITE_SO_EXISTS, CKR_SIGNATURE_INVALID,
    CKR_SIGNATURE_LEN_RANGE, CKR_SLOT_ID_INVALID, CKR_STATE_UNSAVEABLE, CKR_TEMPLATE_INCOMPLETE,
    CKR_TEMPLATE_INCONSISTENT, CKR_TOKEN_NOT_PRESENT, CKR_TOKEN_NOT_RECOGNIZED,
    CKR_UNWRAPPING_KEY_HANDLE_INVALID, CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT,
    CKR_USER_ALREADY_LOGGED_IN, CKR_USER_ANOTHER_ALREADY_LOGGED_IN, CKR_USER_NOT_LOGGED_IN,
    CKR_USER_TYPE_INVALID, CKR_WRAPPED_KEY_INVALID, CKR_WRAPPED_KEY_LEN_RANGE,
    CKR_WRAPPING_KEY_HANDLE_INVALID, CKR_WRAPPING_KEY_TYPE_INCONSISTENT,
};

/// The reason why a Cryptoki function does not return CKR_OK.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// An error of the caller, or a rule of the standard. The code is the whole description.
    #[error("{}", .0.name())]
    ReturnCode(ReturnCode),
    /// An error of the card or of the transport.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// An error of the environment. The text describes the error and its cure.
    #[error("{0}")]
    Environment(String),
}

/// A return code that this module chooses by itself, with its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReturnCode(CK_RV, &'static str);

macro_rules! return_codes {
    ($($name:ident = $code:ident;)*) => {
        impl ReturnCode {
            $(pub(crate) const $name: Self = Self($code, stringify!($code));)*
        }
    };
}

return_codes! {
    ACTION_PROHIBITED = CKR_ACTION_PROHIBITED;
    ALREADY_INITIALIZED = CKR_CRYPTOKI_ALREADY_INITIALIZED;
    ARGUMENTS_BAD = CKR_ARGUMENTS_BAD;
    ATTRIBUTE_SENSITIVE = CKR_ATTRIBUTE_SENSITIVE;
    ATTRIBUTE_TYPE_INVALID = CKR_ATTRIBUTE_TYPE_INVALID;
    BUFFER_TOO_SMALL = CKR_BUFFER_TOO_SMALL;
    CANT_LOCK = CKR_CANT_LOCK;
    DEVICE_REMOVED = CKR_DEVICE_REMOVED;
    FUNCTION_NOT_PARALLEL = CKR_FUNCTION_NOT_PARALLEL;
    FUNCTION_NOT_SUPPORTED = CKR_FUNCTION_NOT_SUPPORTED;
    KEY_HANDLE_INVALID = CKR_KEY_HANDLE_INVALID;
    KEY_INDIGESTIBLE = CKR_KEY_INDIGESTIBLE;
    KEY_NOT_NEEDED = CKR_KEY_NOT_NEEDED;
    MECHANISM_INVALID = CKR_MECHANISM_INVALID;
    NOT_INITIALIZED = CKR_CRYPTOKI_NOT_INITIALIZED;
    NO_EVENT = CKR_NO_EVENT;
    OBJECT_HANDLE_INVALID = CKR_OBJECT_HANDLE_INVALID;
    OPERATION_ACTIVE = CKR_OPERATION_ACTIVE;
    OPERATION_NOT_INITIALIZED = CKR_OPERATION_NOT_INITIALIZED;
    RANDOM_SEED_NOT_SUPPORTED = CKR_RANDOM_SEED_NOT_SUPPORTED;
    SAVED_STATE_INVALID = CKR_SAVED_STATE_INVALID;
    SESSION_ASYNC_NOT_SUPPORTED = CKR_SESSION_ASYNC_NOT_SUPPORTED;
    SESSION_HANDLE_INVALID = CKR_SESSION_HANDLE_INVALID;
    SESSION_PARALLEL_NOT_SUPPORTED = CKR_SESSION_PARALLEL_NOT_SUPPORTED;
    SESSION_READ_ONLY = CKR_SESSION_READ_ONLY;
    SESSION_READ_ONLY_EXISTS = CKR_SESSION_READ_ONLY_EXISTS;
    SESSION_READ_WRITE_SO_EXISTS = CKR_SESSION_READ_WRITE_SO_EXISTS;
    SLOT_ID_INVALID = CKR_SLOT_ID_INVALID;
    STATE_UNSAVEABLE = CKR_STATE_UNSAVEABLE;
    TEMPLATE_INCONSISTENT = CKR_TEMPLATE_INCONSISTENT;
    TOKEN_NOT_PRESENT = CKR_TOKEN_NOT_PRESENT;
    TOKEN_NOT_RECOGNIZED = CKR_TOKEN_NOT_RECOGNIZED;
    UNWRAPPING_KEY_HANDLE_INVALID = CKR_UNWRAPPING_KEY_HANDLE_INVALID;
    UNWRAPPING_KEY_TYPE_INCONSISTENT = CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT;
    USER_ALREADY_LOGGED_IN = CKR_USER_ALREADY_LOGGED_IN;
    USER_ANOTHER_ALREADY_LOGGED_IN = CKR_USER_ANOTHER_ALREADY_LOGGED_IN;
    USER_NOT_LOGGED_IN = CKR_USER_NOT_LOGGED_IN;
    USER_TYPE_INVALID = CKR_USER_TYPE_INVALID;
    WRAPPED_KEY_INVALID = CKR_WRAPPED_KEY_INVALID;
    WRAPPED_KEY_LEN_RANGE = CKR_WRAPPED_KEY_LEN_RANGE;
    WRAPPING_KEY_HANDLE_INVALID = CKR_WRAPPING_KEY_HANDLE_INVALID;
    WRAPPING_KEY_TYPE_INCONSISTENT = CKR_WRAPPING_KEY_TYPE_INCONSISTENT;
}

impl ReturnCode {
    pub(crate) const fn name(self) -> &'static str {
        self.1
    }

    /// Returns whether the code occurs in normal use. Such a code is logged at debug level only.
    const fn is_ordinary(self) -> bool {
        matches!(
            self.0,
            CKR_BUFFER_TOO_SMALL
                | CKR_NO_EVENT
                | CKR_ATTRIBUTE_SENSITIVE
                | CKR_ATTRIBUTE_TYPE_INVALID
                | CKR_FUNCTION_NOT_SUPPORTED
                | CKR_FUNCTION_NOT_PARALLEL
                | CKR_TOKEN_NOT_PRESENT
                | CKR_CRYPTOKI_NOT_INITIALIZED
                | CKR_CRYPTOKI_ALREADY_INITIALIZED
        )
    }
}

impl From<ReturnCode> for Failure {
    fn from(code: ReturnCode) -> Self {
        Self::ReturnCode(code)
    }
}

impl From<claviger_apdu::TransportError> for Failure {
    fn from(error: claviger_apdu::TransportError) -> Self {
        Self::Token(error.into())
    }
}

impl Failure {
    /// Returns the return code.
    pub(crate) fn code(&self) -> CK_RV {
        match self {
            Self::ReturnCode(code) => code.0,
            Self::Token(error) => token_code(error),
            Self::Environment(_) => CKR_GENERAL_ERROR,
        }
    }

    /// Logs the error, at a level that suits it.
    pub(crate) fn log(&self, function: &str) {
        match self {
            Self::ReturnCode(code) if code.is_ordinary() => tracing::debug!("{function}: {self}"),
            Self::ReturnCode(_) => tracing::info!("{function}: {self}"),
            // Callers try a key in this way to find out its abilities.
            Self::Token(
                TokenError::MechanismInvalid(_)
                | TokenError::MechanismParamInvalid(_)
                | TokenError::KeyTypeInconsistent(_)
                | TokenError::KeyFunctionNotPermitted
                | TokenError::DataLength { .. }
                | TokenError::DataInvalid
                | TokenError::SignatureLength { .. }
                | TokenError::SignatureInvalid
                | TokenError::EncryptedDataLength { .. }
                | TokenError::EncryptedDataInvalid
                | TokenError::AuthenticationTag
                | TokenError::KeySize
                | TokenError::KeyUnextractable
                | TokenError::KeyNotWrappable
                | TokenError::KeyIndigestible
                | TokenError::Template { .. }
                | TokenError::ActionProhibited
                | TokenError::CurveNotSupported
                | TokenError::DomainParameters,
            ) => tracing::info!("{function}: {self}"),
            Self::Token(_) | Self::Environment(_) => tracing::warn!("{function}: {self}"),
        }
    }
}

const fn token_code(error: &TokenError) -> CK_RV {
    match error {
        TokenError::Transport(error) => transport_code(error.kind),
        TokenError::Refused { .. } | TokenError::Malformed { .. } => CKR_DEVICE_ERROR,
        // C_Login must not return PIN_LEN_RANGE (PKCS #11 2.40, 5.6), so a PIN of a wrong length is a wrong PIN.
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
        TokenError::NoSpace { .. } => CKR_DEVICE_MEMORY,
        TokenError::AnotherLoggedIn => CKR_USER_ANOTHER_ALREADY_LOGGED_IN,
        TokenError::NotLoggedIn { .. } => CKR_USER_NOT_LOGGED_IN,
        TokenError::TouchMissing { .. } => CKR_FUNCTION_REJECTED,
        TokenError::NoSuchKey { .. } => CKR_KEY_HANDLE_INVALID,
        TokenError::MechanismInvalid(_) => CKR_MECHANISM_INVALID,
        TokenError::MechanismParamInvalid(_) => CKR_MECHANISM_PARAM_INVALID,
        TokenError::KeyTypeInconsistent(_) => CKR_KEY_TYPE_INCONSISTENT,
        TokenError::KeyFunctionNotPermitted => CKR_KEY_FUNCTION_NOT_PERMITTED,
        TokenError::DataLength { .. } => CKR_DATA_LEN_RANGE,
        TokenError::DataInvalid => CKR_DATA_INVALID,
        TokenError::SignatureLength { .. } => CKR_SIGNATURE_LEN_RANGE,
        TokenError::SignatureInvalid => CKR_SIGNATURE_INVALID,
        TokenError::EncryptedDataLength { .. } => CKR_ENCRYPTED_DATA_LEN_RANGE,
        TokenError::EncryptedDataInvalid => CKR_ENCRYPTED_DATA_INVALID,
        TokenError::AuthenticationTag => CKR_AEAD_DECRYPT_FAILED,
        TokenError::KeySize => CKR_KEY_SIZE_RANGE,
        TokenError::KeyUnextractable => CKR_KEY_UNEXTRACTABLE,
        TokenError::KeyNotWrappable => CKR_KEY_NOT_WRAPPABLE,
        TokenError::KeyIndigestible => CKR_KEY_INDIGESTIBLE,
        TokenError::Template { fault, .. } => match fault {
            TemplateFault::Incomplete => CKR_TEMPLATE_INCOMPLETE,
            TemplateFault::Inconsistent => CKR_TEMPLATE_INCONSISTENT,
            TemplateFault::TypeInvalid => CKR_ATTRIBUTE_TYPE_INVALID,
            TemplateFault::ValueInvalid => CKR_ATTRIBUTE_VALUE_INVALID,
            TemplateFault::ReadOnly => CKR_ATTRIBUTE_READ_ONLY,
        },
        TokenError::ActionProhibited => CKR_ACTION_PROHIBITED,
        TokenError::CurveNotSupported => CKR_CURVE_NOT_SUPPORTED,
        TokenError::DomainParameters => CKR_DOMAIN_PARAMS_INVALID,
        TokenError::NoRandom => CKR_FUNCTION_FAILED,
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
