//! Signing and MACing, also with recovery (PKCS #11 3.1, 5.11 and 5.12).

use claviger_apdu::Secret;
use claviger_token::{SignOperation, TokenError};
use cryptoki_sys::{
    CK_MECHANISM, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_ULONG, CKF_SIGN, CKF_SIGN_RECOVER,
};

use super::operation::{init_or_cancel, resolve_init, room_or_end, write_output};
use crate::{
    module::Module,
    operations::ActiveOperation,
    pointer::{Input, Output, OutputFit},
    rv::{Failure, ReturnCode},
    sessions::Session,
};

type Place = Option<ActiveOperation<SignOperation>>;

/// C_SignInit. Touches no card.
pub(crate) fn init(
    module: &Module,
    session: CK_SESSION_HANDLE,
    mechanism: Input<'_, CK_MECHANISM>,
    key: CK_OBJECT_HANDLE,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    begin(
        &session,
        &mut session.operations().sign,
        mechanism,
        key,
        false,
    )
}

/// C_SignRecoverInit. Touches no card.
pub(crate) fn recover_init(
    module: &Module,
    session: CK_SESSION_HANDLE,
    mechanism: Input<'_, CK_MECHANISM>,
    key: CK_OBJECT_HANDLE,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let place = &mut session.operations().sign_recover;
    begin(&session, place, mechanism, key, true)
}

fn begin(
    session: &Session,
    place: &mut Place,
    mechanism: Input<'_, CK_MECHANISM>,
    key: CK_OBJECT_HANDLE,
    recover: bool,
) -> Result<(), Failure> {
    let Some(mechanism) = init_or_cancel(place, mechanism)? else {
        return Ok(());
    };
    *place = Some(new_operation(session, &mechanism, key, recover)?);
    Ok(())
}

/// A signature with the key behind `key`.
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

/// C_Sign: the whole message at once.
pub(crate) fn sign(
    module: &Module,
    session: CK_SESSION_HANDLE,
    message: Input<'_, u8>,
    len: CK_ULONG,
    signature: Output<'_, u8>,
    signature_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let place = &mut session.operations().sign;
    single(&session, place, (message, len), signature, signature_len)
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
    let place = &mut session.operations().sign_recover;
    single(&session, place, (message, len), signature, signature_len)
}

fn single(
    session: &Session,
    place: &mut Place,
    (message, len): (Input<'_, u8>, CK_ULONG),
    signature: Output<'_, u8>,
    signature_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let active = place
        .as_mut()
        .ok_or(ReturnCode::OPERATION_NOT_INITIALIZED)?;
    if active.multi_part {
        *place = None;
        return Err(ReturnCode::OPERATION_ACTIVE.into());
    }
    let needed = active.operation.signature_len();
    if room_or_end(place, signature, signature_len, needed)? == OutputFit::LengthQuery {
        return Ok(());
    }
    let active = place
        .as_mut()
        .ok_or(ReturnCode::OPERATION_NOT_INITIALIZED)?;
    if active.operation.lacks_context_login() {
        return Err(ReturnCode::USER_NOT_LOGGED_IN.into());
    }
    // The caller may have the signature written over the message: it is read to the end here.
    let taken = message
        .bytes(len)
        .and_then(|message| Ok(active.operation.update(message)?));
    if taken.is_err() {
        *place = None;
    }
    taken?;
    finish(session, place, signature, signature_len)
}

/// C_SignUpdate: one part of the message. Touches no card.
pub(crate) fn update(
    module: &Module,
    session: CK_SESSION_HANDLE,
    part: Input<'_, u8>,
    len: CK_ULONG,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let place = &mut session.operations().sign;
    let active = place
        .as_mut()
        .ok_or(ReturnCode::OPERATION_NOT_INITIALIZED)?;
    let result = part
        .bytes(len)
        .and_then(|part| Ok(active.operation.update(part)?));
    active.multi_part = true;
    if result.is_err() {
        *place = None;
    }
    result
}

/// C_SignFinal: the signature of all parts.
pub(crate) fn sign_final(
    module: &Module,
    session: CK_SESSION_HANDLE,
    signature: Output<'_, u8>,
    signature_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let place = &mut session.operations().sign;
    let active = place
        .as_ref()
        .ok_or(ReturnCode::OPERATION_NOT_INITIALIZED)?;
    let needed = active.operation.signature_len();
    if room_or_end(place, signature, signature_len, needed)? == OutputFit::LengthQuery {
        return Ok(());
    }
    let active = place
        .as_mut()
        .ok_or(ReturnCode::OPERATION_NOT_INITIALIZED)?;
    if active.operation.lacks_context_login() {
        return Err(ReturnCode::USER_NOT_LOGGED_IN.into());
    }
    finish(&session, place, signature, signature_len)
}

/// Signs what was collected; the operation is over however it ends.
fn finish(
    session: &Session,
    place: &mut Place,
    out: Output<'_, u8>,
    out_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let mut active = place.take().ok_or(ReturnCode::OPERATION_NOT_INITIALIZED)?;
    let signature = make(session, &mut active.operation)?;
    write_output(signature.expose(), out, out_len).map(|_| ())
}

/// The signature, by the card or on the host; never longer than was said.
pub(super) fn make(session: &Session, operation: &mut SignOperation) -> Result<Secret, Failure> {
    if operation.private_key().is_none() {
        return Ok(operation.mac().unwrap_or_default());
    }
    let signature = session.with_token(|card, token| token.sign(card, operation))?;
    if signature.len() > operation.signature_len() {
        return Err(TokenError::malformed("signature", "longer than the key").into());
    }
    Ok(signature)
}
