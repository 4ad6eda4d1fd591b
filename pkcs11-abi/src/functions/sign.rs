//! Signing (PKCS #11 2.40, 5.11).

use claviger_token::{SignOperation, TokenError};
use cryptoki_sys::{CK_MECHANISM, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_ULONG};

use crate::{
    module::Module,
    pointer::{In, Out, Room, mechanism_parameter, room},
    rv::{Failure, Rule},
    sessions::{Operations, Session, Signature},
};

/// No mechanism of signing has a parameter near this long.
const MAX_PARAMETER: CK_ULONG = 64 * 1024;

/// C_SignInit. Touches no card.
pub(crate) fn init(
    module: &Module,
    session: CK_SESSION_HANDLE,
    mechanism: In<'_, CK_MECHANISM>,
    key: CK_OBJECT_HANDLE,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mechanism = mechanism.get()?;
    let mut operations = session.operations();
    if operations.signature.is_some() {
        return Err(Rule::OPERATION_ACTIVE.into());
    }
    let key = session
        .reader
        .object(session.card, session.applet, key)
        .ok_or(Rule::KEY_HANDLE_INVALID)?;
    let parameter = parameter(&mechanism)?;
    let operation = SignOperation::new(mechanism.mechanism, &parameter, &key)?;
    operations.signature = Some(Signature {
        operation,
        in_parts: false,
    });
    Ok(())
}

fn parameter(mechanism: &CK_MECHANISM) -> Result<Vec<u8>, Failure> {
    if mechanism.ulParameterLen > MAX_PARAMETER {
        return Err(TokenError::MechanismParamInvalid(mechanism.mechanism).into());
    }
    mechanism_parameter(mechanism)
}

/// C_Sign: the whole message at once.
pub(crate) fn sign(
    module: &Module,
    session: CK_SESSION_HANDLE,
    message: In<'_, u8>,
    len: CK_ULONG,
    signature: Out<'_, u8>,
    signature_len: Out<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mut operations = session.operations();
    let current = operations
        .signature
        .as_mut()
        .ok_or(Rule::OPERATION_NOT_INITIALIZED)?;
    if current.in_parts {
        operations.signature = None;
        return Err(Rule::OPERATION_ACTIVE.into());
    }
    if room(signature, signature_len, current.operation.signature_len())? == Room::Asked {
        return Ok(());
    }
    if current.operation.lacks_context_login() {
        return Err(Rule::USER_NOT_LOGGED_IN.into());
    }
    // The caller may have the signature written over the message: it is read to the end here.
    let taken = message
        .bytes(len)
        .and_then(|message| Ok(current.operation.update(message)?));
    if taken.is_err() {
        operations.signature = None;
    }
    taken?;
    finish(&session, &mut operations, signature, signature_len)
}

/// C_SignUpdate: one part of the message. Touches no card.
pub(crate) fn update(
    module: &Module,
    session: CK_SESSION_HANDLE,
    part: In<'_, u8>,
    len: CK_ULONG,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mut operations = session.operations();
    let current = operations
        .signature
        .as_mut()
        .ok_or(Rule::OPERATION_NOT_INITIALIZED)?;
    let result = part
        .bytes(len)
        .and_then(|part| Ok(current.operation.update(part)?));
    current.in_parts = true;
    if result.is_err() {
        operations.signature = None;
    }
    result
}

/// C_SignFinal: the signature of all parts.
pub(crate) fn finish_parts(
    module: &Module,
    session: CK_SESSION_HANDLE,
    signature: Out<'_, u8>,
    signature_len: Out<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mut operations = session.operations();
    let current = operations
        .signature
        .as_ref()
        .ok_or(Rule::OPERATION_NOT_INITIALIZED)?;
    if room(signature, signature_len, current.operation.signature_len())? == Room::Asked {
        return Ok(());
    }
    if current.operation.lacks_context_login() {
        return Err(Rule::USER_NOT_LOGGED_IN.into());
    }
    finish(&session, &mut operations, signature, signature_len)
}

/// Signs what was collected; the operation is over however it ends.
fn finish(
    session: &Session,
    operations: &mut Operations,
    out: Out<'_, u8>,
    out_len: Out<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let mut current = operations
        .signature
        .take()
        .ok_or(Rule::OPERATION_NOT_INITIALIZED)?;
    let operation = &mut current.operation;
    let signature = session
        .reader
        .with_token(session.card, session.applet, |card, token| {
            token.sign(card, operation)
        })?;
    if signature.len() > operation.signature_len() {
        return Err(TokenError::malformed("signature", "longer than the key").into());
    }
    out.put_all(&signature)?;
    out_len.put(CK_ULONG::try_from(signature.len()).unwrap_or(CK_ULONG::MAX))
}
