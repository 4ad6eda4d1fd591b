//! The functions that say CKR_FUNCTION_NOT_SUPPORTED, each with its reason. Nothing else says so.

use crate::{
    module::Module,
    rv::{Failure, Rule},
};

const WRITING: &str = "the token is read-only so far";
const HOST: &str =
    "done in software by the caller's own library so far; only card operations are offered";
const CARD: &str = "a card operation that is not offered so far; its mechanisms are not listed";
const ASYNC: &str = "no session is asynchronous: no token has CKF_ASYNC_SESSION_SUPPORTED";

/// Function and reason.
pub(crate) const UNSUPPORTED: &[(&str, &str)] = &[
    ("C_InitToken", WRITING),
    ("C_InitPIN", WRITING),
    ("C_SetPIN", WRITING),
    ("C_GenerateKeyPair", WRITING),
    ("C_MessageEncryptInit", HOST),
    ("C_EncryptMessage", HOST),
    ("C_EncryptMessageBegin", HOST),
    ("C_EncryptMessageNext", HOST),
    ("C_MessageEncryptFinal", HOST),
    ("C_MessageDecryptInit", CARD),
    ("C_DecryptMessage", CARD),
    ("C_DecryptMessageBegin", CARD),
    ("C_DecryptMessageNext", CARD),
    ("C_MessageDecryptFinal", CARD),
    ("C_EncapsulateKey", CARD),
    ("C_DecapsulateKey", CARD),
    ("C_AsyncComplete", ASYNC),
    ("C_AsyncGetID", ASYNC),
    ("C_AsyncJoin", ASYNC),
    ("C_WrapKeyAuthenticated", "keys of a card never leave it"),
    ("C_UnwrapKeyAuthenticated", CARD),
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
    Err(Rule::FUNCTION_NOT_SUPPORTED.into())
}
