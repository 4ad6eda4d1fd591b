//! Signing and verifying message after message with one key (PKCS #11 3.0, 5.13 and 5.17).
//!
//! No mechanism here has a parameter for each message: one that is given is a wrong argument.

use cryptoki_sys::{CK_MECHANISM, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_ULONG};

use super::{
    operation::{init_or_cancel, write_output},
    sign, verify,
};
use crate::{
    module::Module,
    operations::{MessageOperation, Operations},
    pointer::{Input, Output, OutputFit, fit},
    rv::{Failure, ReturnCode},
    sessions::Session,
};

/// A parameter for one message, of which there is none.
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
    let place = &mut session.operations().sign_messages;
    if let Some(mechanism) = init_or_cancel(place, mechanism)? {
        *place = Some(MessageOperation {
            active: sign::new_operation(&session, &mechanism, key, false)?,
            message_open: false,
        });
    }
    Ok(())
}

/// C_SignMessage: one message at once; any number of them.
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
    let mut operations = session.operations();
    let messages = idle_operation(&mut operations.sign_messages)?;
    parameter.expect_none()?;
    if fit(
        signature,
        signature_len,
        messages.active.operation.signature_len(),
    )? == OutputFit::LengthQuery
    {
        return Ok(());
    }
    let message = message.bytes(len)?;
    finish_message(&session, &mut operations, message, signature, signature_len)
}

/// C_SignMessageBegin.
pub(crate) fn sign_begin(
    module: &Module,
    session: CK_SESSION_HANDLE,
    parameter: MessageParameter<'_>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mut operations = session.operations();
    let messages = idle_operation(&mut operations.sign_messages)?;
    parameter.expect_none()?;
    messages.message_open = true;
    Ok(())
}

/// C_SignMessageNext: a part of the message, the last one when there is room for a length.
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
    let mut operations = session.operations();
    let messages = open_message(&mut operations.sign_messages)?;
    parameter.expect_none()?;
    let operation = &mut messages.active.operation;
    if !signature_len.is_null()
        && fit(signature, signature_len, operation.signature_len())? == OutputFit::LengthQuery
    {
        return Ok(());
    }
    let part = part.bytes(len)?;
    if signature_len.is_null() {
        let taken = operation.update(part);
        if taken.is_err() {
            operations.sign_messages = None;
        }
        return Ok(taken?);
    }
    finish_message(&session, &mut operations, part, signature, signature_len)
}

/// The signature of a message that ends with `rest`; only a missing PIN leaves it open.
fn finish_message(
    session: &Session,
    operations: &mut Operations,
    rest: &[u8],
    signature: Output<'_, u8>,
    signature_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let messages = operations.sign_messages.as_mut();
    let messages = messages.ok_or(ReturnCode::OPERATION_NOT_INITIALIZED)?;
    let operation = &mut messages.active.operation;
    if operation.lacks_context_login() {
        return Err(ReturnCode::USER_NOT_LOGGED_IN.into());
    }
    messages.message_open = false;
    let made = operation
        .update(rest)
        .map_err(Failure::from)
        .and_then(|()| sign::make(session, operation));
    match made {
        Ok(made) => write_output(made.expose(), signature, signature_len).map(|_| ()),
        Err(failure) => {
            operations.sign_messages = None;
            Err(failure)
        }
    }
}

/// C_MessageSignFinal.
pub(crate) fn sign_final(module: &Module, session: CK_SESSION_HANDLE) -> Result<(), Failure> {
    let session = module.session(session)?;
    end(&mut session.operations().sign_messages)
}

/// C_MessageVerifyInit.
pub(crate) fn verify_init(
    module: &Module,
    session: CK_SESSION_HANDLE,
    mechanism: Input<'_, CK_MECHANISM>,
    key: CK_OBJECT_HANDLE,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let place = &mut session.operations().verify_messages;
    if let Some(mechanism) = init_or_cancel(place, mechanism)? {
        *place = Some(MessageOperation {
            active: verify::start(&session, &mechanism, key, false)?,
            message_open: false,
        });
    }
    Ok(())
}

/// C_VerifyMessage: one message at once; a wrong signature does not end the series.
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
    let mut operations = session.operations();
    let messages = idle_operation(&mut operations.verify_messages)?;
    parameter.expect_none()?;
    let signature = verify::signature_bytes(signature, signature_len)?;
    let operation = &mut messages.active.operation;
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
    let mut operations = session.operations();
    let messages = idle_operation(&mut operations.verify_messages)?;
    parameter.expect_none()?;
    messages.message_open = true;
    Ok(())
}

/// C_VerifyMessageNext: a part of the message, the last one when there is a signature.
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
    let mut operations = session.operations();
    let messages = open_message(&mut operations.verify_messages)?;
    parameter.expect_none()?;
    let operation = &mut messages.active.operation;
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
    end(&mut session.operations().verify_messages)
}

/// A series in which no message is under way.
fn idle_operation<T>(
    place: &mut Option<MessageOperation<T>>,
) -> Result<&mut MessageOperation<T>, Failure> {
    let messages = place
        .as_mut()
        .ok_or(ReturnCode::OPERATION_NOT_INITIALIZED)?;
    if messages.message_open {
        return Err(ReturnCode::OPERATION_ACTIVE.into());
    }
    Ok(messages)
}

/// A series in which a message is under way.
fn open_message<T>(
    place: &mut Option<MessageOperation<T>>,
) -> Result<&mut MessageOperation<T>, Failure> {
    place
        .as_mut()
        .filter(|messages| messages.message_open)
        .ok_or_else(|| ReturnCode::OPERATION_NOT_INITIALIZED.into())
}

fn end<T>(place: &mut Option<MessageOperation<T>>) -> Result<(), Failure> {
    let ended = place.take();
    ended
        .map(|_| ())
        .ok_or_else(|| ReturnCode::OPERATION_NOT_INITIALIZED.into())
}
