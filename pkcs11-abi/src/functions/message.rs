//! Signs and verifies a series of messages with one key (PKCS #11 3.0, 5.13 and 5.17).
//!
//! No mechanism of this module has a parameter for each message, so a given parameter is ARGUMENTS_BAD.

use claviger_token::SignOperation;
use cryptoki_sys::{CK_MECHANISM, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_ULONG};

use super::{sign, verify};
use crate::{
    card::TokenRef,
    module::Module,
    operations::{MessageOperation, OperationState},
    pointer::{Input, Output, OutputFit, fit},
    rv::{Failure, ReturnCode},
};

/// The parameter for one message. Only an empty one is valid.
#[derive(Clone, Copy)]
pub(crate) struct MessageParameter<'call>(pub(crate) Input<'call, u8>, pub(crate) CK_ULONG);

impl MessageParameter<'_> {
    fn expect_none(self) -> Result<(), Failure> {
        if self.0.is_null() && self.1 == 0 {
            Ok(())
        } else {
            Err(ReturnCode::ARGUMENTS_BAD.into())
        }
    }
}

/// C_MessageSignInit.
pub(crate) fn sign_init(
    module: &Module,
    session: CK_SESSION_HANDLE,
    mechanism: Input<'_, CK_MECHANISM>,
    key: CK_OBJECT_HANDLE,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().sign_messages;
    state.init(mechanism, |mechanism| {
        let active = sign::new_operation(&session, mechanism, key, false)?;
        Ok(active.map(MessageOperation::new))
    })
}

/// C_SignMessage. Signs one message of the series.
pub(crate) fn sign(
    module: &Module,
    session: CK_SESSION_HANDLE,
    parameter: MessageParameter<'_>,
    message: Input<'_, u8>,
    len: CK_ULONG,
    signature: Output<'_, u8>,
    signature_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().sign_messages;
    idle_operation(state)?;
    parameter.expect_none()?;
    finish_message(
        &session.token,
        state,
        (message, len),
        signature,
        signature_len,
    )
}

/// C_SignMessageBegin.
pub(crate) fn sign_begin(
    module: &Module,
    session: CK_SESSION_HANDLE,
    parameter: MessageParameter<'_>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().sign_messages;
    let messages = idle_operation(state)?;
    parameter.expect_none()?;
    messages.message_open = true;
    Ok(())
}

/// C_SignMessageNext. Adds a part to the message. The part is the last one if `signature_len` is not null.
pub(crate) fn sign_next(
    module: &Module,
    session: CK_SESSION_HANDLE,
    parameter: MessageParameter<'_>,
    part: Input<'_, u8>,
    len: CK_ULONG,
    signature: Output<'_, u8>,
    signature_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().sign_messages;
    open_message(state)?;
    parameter.expect_none()?;
    if signature_len.is_null() {
        let part = part.bytes(len)?;
        return state.update(|active| Ok(active.operation.operation.update(part)?));
    }
    finish_message(&session.token, state, (part, len), signature, signature_len)
}

/// Signs a message that ends with `rest`. Bad arguments keep the series. A missing context login keeps the message open. An
/// error of the signature ends the series.
fn finish_message(
    token: &TokenRef,
    state: &mut OperationState<MessageOperation<SignOperation>>,
    (rest, len): (Input<'_, u8>, CK_ULONG),
    signature: Output<'_, u8>,
    signature_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let needed = state.active()?.operation.operation.signature_len();
    if fit(signature, signature_len, needed)? == OutputFit::LengthQuery {
        return Ok(());
    }
    let rest = rest.bytes(len)?;
    state.update(|active| {
        let MessageOperation {
            operation,
            message_open,
        } = &mut active.operation;
        sign::write_signature(token, operation, || Ok(rest), signature, signature_len)?;
        *message_open = false;
        Ok(())
    })
}

/// C_MessageSignFinal.
pub(crate) fn sign_final(module: &Module, session: CK_SESSION_HANDLE) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().sign_messages;
    state.final_part(|_| Ok(()))
}

/// C_MessageVerifyInit.
pub(crate) fn verify_init(
    module: &Module,
    session: CK_SESSION_HANDLE,
    mechanism: Input<'_, CK_MECHANISM>,
    key: CK_OBJECT_HANDLE,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().verify_messages;
    state.init(mechanism, |mechanism| {
        let active = verify::start(&session, mechanism, key, false)?;
        Ok(active.map(MessageOperation::new))
    })
}

/// C_VerifyMessage. Verifies one message of the series. A wrong signature does not end the series.
pub(crate) fn verify(
    module: &Module,
    session: CK_SESSION_HANDLE,
    parameter: MessageParameter<'_>,
    message: Input<'_, u8>,
    len: CK_ULONG,
    signature: Input<'_, u8>,
    signature_len: CK_ULONG,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().verify_messages;
    let messages = idle_operation(state)?;
    parameter.expect_none()?;
    let signature = verify::signature_bytes(signature, signature_len)?;
    let operation = &mut messages.operation;
    operation.update(message.bytes(len)?)?;
    Ok(operation.verify(signature)?)
}

/// C_VerifyMessageBegin.
pub(crate) fn verify_begin(
    module: &Module,
    session: CK_SESSION_HANDLE,
    parameter: MessageParameter<'_>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().verify_messages;
    let messages = idle_operation(state)?;
    parameter.expect_none()?;
    messages.message_open = true;
    Ok(())
}

/// C_VerifyMessageNext. Adds a part to the message. The part is the last one if `signature` is not null.
pub(crate) fn verify_next(
    module: &Module,
    session: CK_SESSION_HANDLE,
    parameter: MessageParameter<'_>,
    part: Input<'_, u8>,
    len: CK_ULONG,
    signature: Input<'_, u8>,
    signature_len: CK_ULONG,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().verify_messages;
    let messages = open_message(state)?;
    parameter.expect_none()?;
    let operation = &mut messages.operation;
    let part = part.bytes(len)?;
    if signature.is_null() {
        return Ok(operation.update(part)?);
    }
    let signature = verify::signature_bytes(signature, signature_len)?;
    messages.message_open = false;
    operation.update(part)?;
    Ok(operation.verify(signature)?)
}

/// C_MessageVerifyFinal.
pub(crate) fn verify_final(module: &Module, session: CK_SESSION_HANDLE) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().verify_messages;
    state.final_part(|_| Ok(()))
}

/// Returns the series, in which no message may be open.
///
/// # Errors
/// OPERATION_NOT_INITIALIZED, OPERATION_ACTIVE.
fn idle_operation<T>(
    state: &mut OperationState<MessageOperation<T>>,
) -> Result<&mut MessageOperation<T>, Failure> {
    let messages = &mut state.active()?.operation;
    if messages.message_open {
        return Err(ReturnCode::OPERATION_ACTIVE.into());
    }
    Ok(messages)
}

/// Returns the series, in which a message must be open.
///
/// # Errors
/// OPERATION_NOT_INITIALIZED.
fn open_message<T>(
    state: &mut OperationState<MessageOperation<T>>,
) -> Result<&mut MessageOperation<T>, Failure> {
    let messages = &mut state.active()?.operation;
    if !messages.message_open {
        return Err(ReturnCode::OPERATION_NOT_INITIALIZED.into());
    }
    Ok(messages)
}
