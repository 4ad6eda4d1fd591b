//! Signatures and MACs, also with recovery (PKCS #11 3.1, 5.11 and 5.12).

use claviger_token::SignOperation;
use cryptoki_sys::{
    CK_MECHANISM, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_ULONG, CKF_SIGN, CKF_SIGN_RECOVER,
};

use super::operation::{resolve_init, write_output};
use crate::{
    card::TokenRef,
    module::Module,
    operations::ActiveOperation,
    pointer::{Input, Output, OutputFit, fit},
    rv::{Failure, ReturnCode},
    sessions::Session,
};

/// C_SignInit. Touches no card.
pub(crate) fn init(
    module: &Module,
    session: CK_SESSION_HANDLE,
    mechanism: Input<'_, CK_MECHANISM>,
    key: CK_OBJECT_HANDLE,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().sign;
    state.init(mechanism, |mechanism| {
        new_operation(&session, mechanism, key, false)
    })
}

/// C_SignRecoverInit. Touches no card.
pub(crate) fn recover_init(
    module: &Module,
    session: CK_SESSION_HANDLE,
    mechanism: Input<'_, CK_MECHANISM>,
    key: CK_OBJECT_HANDLE,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().sign_recover;
    state.init(mechanism, |mechanism| {
        new_operation(&session, mechanism, key, true)
    })
}

/// Makes the operation of a signature or MAC with the key `key`.
pub(super) fn new_operation(
    session: &Session,
    mechanism: &CK_MECHANISM,
    key: CK_OBJECT_HANDLE,
    recover: bool,
) -> Result<ActiveOperation<SignOperation>, Failure> {
    let function = if recover { CKF_SIGN_RECOVER } else { CKF_SIGN };
    let from = resolve_init(
        session,
        mechanism,
        key,
        function,
        ReturnCode::KEY_HANDLE_INVALID,
    )?;
    let operation = SignOperation::new(from.mechanism, &from.parameter, &from.key, recover)?;
    Ok(from.active(operation))
}

/// C_Sign.
pub(crate) fn sign(
    module: &Module,
    session: CK_SESSION_HANDLE,
    message: Input<'_, u8>,
    len: CK_ULONG,
    signature: Output<'_, u8>,
    signature_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().sign;
    state.single_part(|active| {
        let operation = &mut active.operation;
        let rest = || message.bytes(len);
        write_signature(&session.token, operation, rest, signature, signature_len)
    })
}

/// C_SignRecover.
pub(crate) fn sign_recover(
    module: &Module,
    session: CK_SESSION_HANDLE,
    message: Input<'_, u8>,
    len: CK_ULONG,
    signature: Output<'_, u8>,
    signature_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().sign_recover;
    state.single_part(|active| {
        let operation = &mut active.operation;
        let rest = || message.bytes(len);
        write_signature(&session.token, operation, rest, signature, signature_len)
    })
}

/// C_SignUpdate. Touches no card.
pub(crate) fn update(
    module: &Module,
    session: CK_SESSION_HANDLE,
    part: Input<'_, u8>,
    len: CK_ULONG,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().sign;
    state.update(|active| Ok(active.operation.update(part.bytes(len)?)?))
}

/// C_SignFinal.
pub(crate) fn sign_final(
    module: &Module,
    session: CK_SESSION_HANDLE,
    signature: Output<'_, u8>,
    signature_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().sign;
    state.final_part(|active| {
        let operation = &mut active.operation;
        let rest = || Ok([].as_slice());
        write_signature(&session.token, operation, rest, signature, signature_len)
    })
}

/// Writes the signature of a message that ends with `rest`. The card makes a signature, the host a MAC.
///
/// # Errors
/// BUFFER_TOO_SMALL. USER_NOT_LOGGED_IN if a context login is missing. Errors of the card.
pub(super) fn write_signature<'call>(
    token: &TokenRef,
    operation: &mut SignOperation,
    rest: impl FnOnce() -> Result<&'call [u8], Failure>,
    signature: Output<'_, u8>,
    signature_len: Output<'_, CK_ULONG>,
) -> Result<OutputFit, Failure> {
    if fit(signature, signature_len, operation.signature_len())? == OutputFit::LengthQuery {
        return Ok(OutputFit::LengthQuery);
    }
    if operation.lacks_context_login() {
        return Err(ReturnCode::USER_NOT_LOGGED_IN.into());
    }
    // The signature buffer may overlap the message. The whole message is read before the signature is written.
    operation.update(rest()?)?;
    let signed = match operation.mac() {
        Some(mac) => mac,
        None => token.with_token(|card, token| token.sign(card, operation))?,
    };
    write_output(signed.expose(), signature, signature_len)
}
