//! The functions that return CKR_FUNCTION_NOT_SUPPORTED, each with its reason. No other function returns this code.

use crate::{
    module::Module,
    rv::{Failure, ReturnCode},
};

const AEAD: &str =
    "only AES keys of a session could do this; use C_Encrypt and C_Decrypt with CKM_AES_GCM";
const AUTHENTICATED: &str =
    "use C_WrapKey and C_UnwrapKey with CKM_AES_GCM, which take additional data as well";
const KEM: &str = "no token has a mechanism for key encapsulation";
const ASYNC: &str = "no session is asynchronous: no token has CKF_ASYNC_SESSION_SUPPORTED";

/// Each function with its reason.
pub(crate) const UNSUPPORTED: &[(&str, &str)] = &[
    (
        "C_InitToken",
        "a card has no room for a label; use the card's own tool to reset it",
    ),
    ("C_MessageEncryptInit", AEAD),
    ("C_EncryptMessage", AEAD),
    ("C_EncryptMessageBegin", AEAD),
    ("C_EncryptMessageNext", AEAD),
    ("C_MessageEncryptFinal", AEAD),
    ("C_MessageDecryptInit", AEAD),
    ("C_DecryptMessage", AEAD),
    ("C_DecryptMessageBegin", AEAD),
    ("C_DecryptMessageNext", AEAD),
    ("C_MessageDecryptFinal", AEAD),
    ("C_EncapsulateKey", KEM),
    ("C_DecapsulateKey", KEM),
    ("C_AsyncComplete", ASYNC),
    ("C_AsyncGetID", ASYNC),
    ("C_AsyncJoin", ASYNC),
    ("C_WrapKeyAuthenticated", AUTHENTICATED),
    ("C_UnwrapKeyAuthenticated", AUTHENTICATED),
];

/// Returns FUNCTION_NOT_SUPPORTED for all arguments, and logs the reason.
pub(crate) fn refuse(
    _: &Module,
    function: &'static str,
    _arguments: impl Copy,
) -> Result<(), Failure> {
    let reason = UNSUPPORTED
        .iter()
        .find(|(name, _)| *name == function)
        .map_or("", |(_, reason)| reason);
    tracing::debug!("{function}: {reason}");
    Err(ReturnCode::FUNCTION_NOT_SUPPORTED.into())
}
