//! Verification on the host: also with recovery (PKCS #11 3.1, 5.14 and 5.15), and with the signature given first (PKCS #11
//! 3.2, C_VerifySignature…).

use claviger_token::VerifyOperation;
use cryptoki_sys::{
    CK_MECHANISM, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_ULONG, CKF_VERIFY, CKF_VERIFY_RECOVER,
};

use super::operation::{resolve_init, write_output};
use crate::{
    module::Module,
    operations::{ActiveOperation, VerifySignatureOperation},
    pointer::{Input, Output, fit},
    rv::{Failure, ReturnCode},
    sessions::Session,
};

/// The limit for the length of a signature. Every valid signature is shorter.
const MAX_SIGNATURE: CK_ULONG = 64 * 1024;

/// Makes the operation of a verification with the key `key`.
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

/// Returns the bytes of a signature. A signature over `MAX_SIGNATURE` is not read. An empty one stands in, whose length is
/// wrong for every key too.
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
    let state = &mut session.operations().verify;
    state.init(mechanism, |mechanism| {
        start(&session, mechanism, key, false)
    })
}

/// C_Verify. Ends the operation, also with an error.
pub(crate) fn verify(
    module: &Module,
    session: CK_SESSION_HANDLE,
    message: Input<'_, u8>,
    len: CK_ULONG,
    signature: Input<'_, u8>,
    signature_len: CK_ULONG,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().verify;
    state.single_part(|active| {
        let signature = signature_bytes(signature, signature_len)?;
        active.operation.update(message.bytes(len)?)?;
        Ok(active.operation.verify(signature)?)
    })
}

/// C_VerifyUpdate.
pub(crate) fn update(
    module: &Module,
    session: CK_SESSION_HANDLE,
    part: Input<'_, u8>,
    len: CK_ULONG,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().verify;
    state.update(|active| Ok(active.operation.update(part.bytes(len)?)?))
}

/// C_VerifyFinal. Ends the operation, also with an error.
pub(crate) fn finish(
    module: &Module,
    session: CK_SESSION_HANDLE,
    signature: Input<'_, u8>,
    signature_len: CK_ULONG,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().verify;
    state.final_part(|active| {
        let signature = signature_bytes(signature, signature_len)?;
        Ok(active.operation.verify(signature)?)
    })
}

/// C_VerifyRecoverInit.
pub(crate) fn recover_init(
    module: &Module,
    session: CK_SESSION_HANDLE,
    mechanism: Input<'_, CK_MECHANISM>,
    key: CK_OBJECT_HANDLE,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().verify_recover;
    state.init(mechanism, |mechanism| start(&session, mechanism, key, true))
}

/// C_VerifyRecover. Returns the signed data.
pub(crate) fn recover(
    module: &Module,
    session: CK_SESSION_HANDLE,
    signature: Input<'_, u8>,
    signature_len: CK_ULONG,
    data: Output<'_, u8>,
    data_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().verify_recover;
    state.single_part(|active| {
        if data.is_null() || data_len.is_null() {
            return fit(data, data_len, active.operation.signature_len());
        }
        let signature = signature_bytes(signature, signature_len)?;
        write_output(&active.operation.recover(signature)?, data, data_len)
    })
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
    let state = &mut session.operations().verify_signature;
    state.init(mechanism, |mechanism| {
        let signature = signature_bytes(signature, signature_len)?.to_vec();
        let active = start(&session, mechanism, key, false)?;
        Ok(active.map(|verification| VerifySignatureOperation {
            verification,
            signature,
        }))
    })
}

/// C_VerifySignature. Ends the operation, also with an error.
pub(crate) fn signature_single(
    module: &Module,
    session: CK_SESSION_HANDLE,
    message: Input<'_, u8>,
    len: CK_ULONG,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().verify_signature;
    state.single_part(|active| {
        let operation = &mut active.operation;
        operation.verification.update(message.bytes(len)?)?;
        Ok(operation.verification.verify(&operation.signature)?)
    })
}

/// C_VerifySignatureUpdate.
pub(crate) fn signature_update(
    module: &Module,
    session: CK_SESSION_HANDLE,
    part: Input<'_, u8>,
    len: CK_ULONG,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().verify_signature;
    state.update(|active| Ok(active.operation.verification.update(part.bytes(len)?)?))
}

/// C_VerifySignatureFinal. Ends the operation, also with an error.
pub(crate) fn signature_finish(module: &Module, session: CK_SESSION_HANDLE) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().verify_signature;
    state.final_part(|active| {
        let operation = &mut active.operation;
        Ok(operation.verification.verify(&operation.signature)?)
    })
}
