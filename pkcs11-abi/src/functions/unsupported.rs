//! The functions that say CKR_FUNCTION_NOT_SUPPORTED, each with its reason. Nothing else says so.

use crate::{
    module::Module,
    rv::{Failure, ReturnCode},
};

const AEAD: &str =
    "only a session's own AES keys could; C_Encrypt and C_Decrypt with CKM_AES_GCM do";
const AUTHENTICATED: &str =
    "C_WrapKey and C_UnwrapKey with CKM_AES_GCM take additional data as well";
const KEM: &str = "no card and no key here has a mechanism for it";
const ASYNC: &str = "no session is asynchronous: no token has CKF_ASYNC_SESSION_SUPPORTED";

/// Function and reason.
pub(crate) const UNSUPPORTED: &[(&str, &str)] = &[
    (
        "C_InitToken",
        "a card has no room for a label; resetting it is for its own tool",
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

/// Says so, whatever the arguments.
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
