//! Verification, also with recovery (PKCS #11 3.1, 5.14 and 5.15), and with a signature known from the start
//! (PKCS #11 3.2, C_VerifySignature…); all on the host.

use claviger_token::VerifyOperation;
use cryptoki_sys::{
    CK_MECHANISM, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_ULONG, CKF_VERIFY, CKF_VERIFY_RECOVER,
};

use super::operation::{init_or_cancel, resolve_init, room_or_end, write_output};
use crate::{
    module::Module,
    operations::{ActiveOperation, VerifySignatureOperation},
    pointer::{Input, Output, OutputFit},
    rv::{Failure, ReturnCode},
    sessions::Session,
};

/// No signature is this long.
const MAX_SIGNATURE: CK_ULONG = 64 * 1024;

/// A verification with the key behind `key`.
pub(super) fn start(
    session: &Session,
    mechanism: &CK_MECHANISM,
    key: CK_OBJECT_HANDLE,
    recover: bool,
) -> Result<ActiveOperation<VerifyOperation>, Failure> {
    let function = if recover {
        CKF_VERIFY_RECOVER
    } else {
        CKF_VERIFY
    };
    let from = resolve_init(
        session,
        mechanism,
        key,
        function,
        ReturnCode::KEY_HANDLE_INVALID,
    )?;
    let operation = VerifyOperation::new(from.mechanism, &from.parameter, &from.key, recover)?;
    Ok(from.active(operation))
}

/// The bytes of a signature. Of one that is too long to be any nothing is read: none has the length of no bytes either.
pub(super) fn signature_bytes(signature: Input<'_, u8>, len: CK_ULONG) -> Result<&[u8], Failure> {
    if signature.is_null() {
        return Err(ReturnCode::ARGUMENTS_BAD.into());
    }
    signature.bytes(if len > MAX_SIGNATURE { 0 } else { len })
}

/// C_VerifyInit.
pub(crate) fn init(
    module: &Module,
    session: CK_SESSION_HANDLE,
    mechanism: Input<'_, CK_MECHANISM>,
    key: CK_OBJECT_HANDLE,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let place = &mut session.operations().verify;
    if let Some(mechanism) = init_or_cancel(place, mechanism)? {
        *place = Some(start(&session, &mechanism, key, false)?);
    }
    Ok(())
}

/// C_Verify: the whole message at once. The operation is over however it ends.
pub(crate) fn verify(
    module: &Module,
    session: CK_SESSION_HANDLE,
    message: Input<'_, u8>,
    len: CK_ULONG,
    signature: Input<'_, u8>,
    signature_len: CK_ULONG,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let place = &mut session.operations().verify;
    let mut active = place.take().ok_or(ReturnCode::OPERATION_NOT_INITIALIZED)?;
    if active.multi_part {
        return Err(ReturnCode::OPERATION_ACTIVE.into());
    }
    let signature = signature_bytes(signature, signature_len)?;
    active.operation.update(message.bytes(len)?)?;
    Ok(active.operation.verify(signature)?)
}

/// C_VerifyUpdate.
pub(crate) fn update(
    module: &Module,
    session: CK_SESSION_HANDLE,
    part: Input<'_, u8>,
    len: CK_ULONG,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let place = &mut session.operations().verify;
    let active = place
        .as_mut()
        .ok_or(ReturnCode::OPERATION_NOT_INITIALIZED)?;
    let taken = part
        .bytes(len)
        .and_then(|part| Ok(active.operation.update(part)?));
    active.multi_part = true;
    if taken.is_err() {
        *place = None;
    }
    taken
}

/// C_VerifyFinal. The operation is over however it ends.
pub(crate) fn finish(
    module: &Module,
    session: CK_SESSION_HANDLE,
    signature: Input<'_, u8>,
    signature_len: CK_ULONG,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let place = &mut session.operations().verify;
    let mut active = place.take().ok_or(ReturnCode::OPERATION_NOT_INITIALIZED)?;
    let signature = signature_bytes(signature, signature_len)?;
    Ok(active.operation.verify(signature)?)
}

/// C_VerifyRecoverInit.
pub(crate) fn recover_init(
    module: &Module,
    session: CK_SESSION_HANDLE,
    mechanism: Input<'_, CK_MECHANISM>,
    key: CK_OBJECT_HANDLE,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let place = &mut session.operations().verify_recover;
    if let Some(mechanism) = init_or_cancel(place, mechanism)? {
        *place = Some(start(&session, &mechanism, key, true)?);
    }
    Ok(())
}

/// C_VerifyRecover: gives what was signed.
pub(crate) fn recover(
    module: &Module,
    session: CK_SESSION_HANDLE,
    signature: Input<'_, u8>,
    signature_len: CK_ULONG,
    data: Output<'_, u8>,
    data_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let place = &mut session.operations().verify_recover;
    let active = place
        .as_ref()
        .ok_or(ReturnCode::OPERATION_NOT_INITIALIZED)?;
    if data.is_null() || data_len.is_null() {
        let needed = active.operation.signature_len();
        return room_or_end(place, data, data_len, needed).map(|_| ());
    }
    let recovered = signature_bytes(signature, signature_len)
        .and_then(|signature| Ok(active.operation.recover(signature)?));
    let given = recovered.and_then(|recovered| write_output(&recovered, data, data_len));
    if !matches!(
        given,
        Err(Failure::ReturnCode(ReturnCode::BUFFER_TOO_SMALL))
    ) {
        *place = None;
    }
    given.map(|given| debug_assert_eq!(given, OutputFit::Fits))
}

/// C_VerifySignatureInit.
pub(crate) fn signature_init(
    module: &Module,
    session: CK_SESSION_HANDLE,
    mechanism: Input<'_, CK_MECHANISM>,
    key: CK_OBJECT_HANDLE,
    signature: Input<'_, u8>,
    signature_len: CK_ULONG,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let place = &mut session.operations().verify_signature;
    let Some(mechanism) = init_or_cancel(place, mechanism)? else {
        return Ok(());
    };
    let signature = signature_bytes(signature, signature_len)?.to_vec();
    let ActiveOperation {
        operation, private, ..
    } = start(&session, &mechanism, key, false)?;
    let foreknown = VerifySignatureOperation {
        verification: operation,
        signature,
    };
    *place = Some(ActiveOperation::new(foreknown, private));
    Ok(())
}

/// C_VerifySignature: the whole message at once. The operation is over however it ends.
pub(crate) fn signature_single(
    module: &Module,
    session: CK_SESSION_HANDLE,
    message: Input<'_, u8>,
    len: CK_ULONG,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let place = &mut session.operations().verify_signature;
    let mut active = place.take().ok_or(ReturnCode::OPERATION_NOT_INITIALIZED)?;
    if active.multi_part {
        return Err(ReturnCode::OPERATION_ACTIVE.into());
    }
    active.operation.verification.update(message.bytes(len)?)?;
    let VerifySignatureOperation {
        verification,
        signature,
    } = &mut active.operation;
    Ok(verification.verify(signature)?)
}

/// C_VerifySignatureUpdate.
pub(crate) fn signature_update(
    module: &Module,
    session: CK_SESSION_HANDLE,
    part: Input<'_, u8>,
    len: CK_ULONG,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let place = &mut session.operations().verify_signature;
    let active = place
        .as_mut()
        .ok_or(ReturnCode::OPERATION_NOT_INITIALIZED)?;
    let taken = part
        .bytes(len)
        .and_then(|part| Ok(active.operation.verification.update(part)?));
    active.multi_part = true;
    if taken.is_err() {
        *place = None;
    }
    taken
}

/// C_VerifySignatureFinal. The operation is over however it ends.
pub(crate) fn signature_finish(module: &Module, session: CK_SESSION_HANDLE) -> Result<(), Failure> {
    let session = module.session(session)?;
    let place = &mut session.operations().verify_signature;
    let mut active = place.take().ok_or(ReturnCode::OPERATION_NOT_INITIALIZED)?;
    let VerifySignatureOperation {
        verification,
        signature,
    } = &mut active.operation;
    Ok(verification.verify(signature)?)
}
