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
    (
        "C_GetOperationState",
        "a signature under way on a card cannot be saved",
    ),
    (
        "C_SetOperationState",
        "a signature under way on a card cannot be restored",
    ),
    ("C_CreateObject", WRITING),
    ("C_CopyObject", WRITING),
    ("C_DestroyObject", WRITING),
    ("C_SetAttributeValue", WRITING),
    ("C_EncryptInit", HOST),
    ("C_Encrypt", HOST),
    ("C_EncryptUpdate", HOST),
    ("C_EncryptFinal", HOST),
    ("C_DecryptInit", CARD),
    ("C_Decrypt", CARD),
    ("C_DecryptUpdate", CARD),
    ("C_DecryptFinal", CARD),
    ("C_DigestInit", HOST),
    ("C_Digest", HOST),
    ("C_DigestUpdate", HOST),
    ("C_DigestKey", HOST),
    ("C_DigestFinal", HOST),
    ("C_SignRecoverInit", CARD),
    ("C_SignRecover", CARD),
    ("C_VerifyInit", HOST),
    ("C_Verify", HOST),
    ("C_VerifyUpdate", HOST),
    ("C_VerifyFinal", HOST),
    ("C_VerifyRecoverInit", HOST),
    ("C_VerifyRecover", HOST),
    ("C_DigestEncryptUpdate", HOST),
    ("C_DecryptDigestUpdate", HOST),
    ("C_SignEncryptUpdate", HOST),
    ("C_DecryptVerifyUpdate", HOST),
    ("C_GenerateKey", WRITING),
    ("C_GenerateKeyPair", WRITING),
    ("C_WrapKey", "keys of a card never leave it"),
    ("C_UnwrapKey", CARD),
    ("C_DeriveKey", CARD),
    ("C_LoginUser", "a user of a card has no name"),
    ("C_SessionCancel", CARD),
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
    ("C_MessageSignInit", CARD),
    ("C_SignMessage", CARD),
    ("C_SignMessageBegin", CARD),
    ("C_SignMessageNext", CARD),
    ("C_MessageSignFinal", CARD),
    ("C_MessageVerifyInit", HOST),
    ("C_VerifyMessage", HOST),
    ("C_VerifyMessageBegin", HOST),
    ("C_VerifyMessageNext", HOST),
    ("C_MessageVerifyFinal", HOST),
    ("C_EncapsulateKey", CARD),
    ("C_DecapsulateKey", CARD),
    ("C_VerifySignatureInit", HOST),
    ("C_VerifySignature", HOST),
    ("C_VerifySignatureUpdate", HOST),
    ("C_VerifySignatureFinal", HOST),
    (
        "C_GetSessionValidationFlags",
        "no card tells what it was validated for",
    ),
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
