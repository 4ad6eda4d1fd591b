//! Digests (PKCS #11 3.1, 5.10) and the saving of their state (5.6.5 and 5.6.6); all on the host.

use claviger_apdu::Secret;
use claviger_token::{
    Key, TokenError,
    digest::{Hash, Hasher},
    operation::mechanism_for,
};
use cryptoki_sys::{
    CK_MECHANISM, CK_MECHANISM_TYPE, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_ULONG, CKF_DIGEST,
};

use super::operation::{init_or_cancel, room_or_end, write_output};
use crate::{
    module::Module,
    operations::{ActiveOperation, Operations},
    parameter,
    pointer::{Input, Output, OutputFit},
    rv::{Failure, ReturnCode},
};

/// C_DigestInit.
pub(crate) fn init(
    module: &Module,
    session: CK_SESSION_HANDLE,
    mechanism: Input<'_, CK_MECHANISM>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mut operations = session.operations();
    let Some(mechanism) = init_or_cancel(&mut operations.digest, mechanism)? else {
        return Ok(());
    };
    let known = mechanism_for(mechanism.mechanism, CKF_DIGEST)?;
    parameter::read(&mechanism, known)?;
    let hash = known
        .hash
        .ok_or(TokenError::MechanismInvalid(mechanism.mechanism))?;
    operations.digest = Some(ActiveOperation::new(Hasher::new(hash), false));
    Ok(())
}

/// C_Digest: all at once.
pub(crate) fn single(
    module: &Module,
    session: CK_SESSION_HANDLE,
    data: Input<'_, u8>,
    len: CK_ULONG,
    digest: Output<'_, u8>,
    digest_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mut operations = session.operations();
    let active = active(&mut operations)?;
    if active.multi_part {
        operations.digest = None;
        return Err(ReturnCode::OPERATION_ACTIVE.into());
    }
    let needed = active.operation.hash().len();
    if room_or_end(&mut operations.digest, digest, digest_len, needed)? == OutputFit::LengthQuery {
        return Ok(());
    }
    let active = self::active(&mut operations)?;
    let taken = data.bytes(len).map(|data| active.operation.update(data));
    end(&mut operations, taken, digest, digest_len)
}

/// C_DigestUpdate.
pub(crate) fn update(
    module: &Module,
    session: CK_SESSION_HANDLE,
    part: Input<'_, u8>,
    len: CK_ULONG,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mut operations = session.operations();
    let active = active(&mut operations)?;
    active.multi_part = true;
    let taken = part.bytes(len).map(|part| active.operation.update(part));
    if taken.is_err() {
        operations.digest = None;
    }
    taken
}

/// C_DigestKey: the value of a secret key of a session; no other can be hashed.
pub(crate) fn key(
    module: &Module,
    session: CK_SESSION_HANDLE,
    key: CK_OBJECT_HANDLE,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mut operations = session.operations();
    let active = active(&mut operations)?;
    let object = session.object(key, ReturnCode::KEY_HANDLE_INVALID);
    let taken = object.and_then(|object| match &object.key {
        Some(Key::Secret(key)) => {
            active.operation.update(key.value.expose());
            Ok(())
        }
        Some(Key::Private(_) | Key::Public(_)) => Err(ReturnCode::KEY_INDIGESTIBLE.into()),
        None => Err(ReturnCode::KEY_HANDLE_INVALID.into()),
    });
    active.multi_part = true;
    if taken.is_err() {
        operations.digest = None;
    }
    taken
}

/// C_DigestFinal.
pub(crate) fn finish(
    module: &Module,
    session: CK_SESSION_HANDLE,
    digest: Output<'_, u8>,
    digest_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mut operations = session.operations();
    let needed = active(&mut operations)?.operation.hash().len();
    if room_or_end(&mut operations.digest, digest, digest_len, needed)? == OutputFit::LengthQuery {
        return Ok(());
    }
    end(&mut operations, Ok(()), digest, digest_len)
}

fn active(operations: &mut Operations) -> Result<&mut ActiveOperation<Hasher>, Failure> {
    let active = operations.digest.as_mut();
    active.ok_or_else(|| ReturnCode::OPERATION_NOT_INITIALIZED.into())
}

fn end(
    operations: &mut Operations,
    taken: Result<(), Failure>,
    digest: Output<'_, u8>,
    digest_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let active = operations
        .digest
        .take()
        .ok_or(ReturnCode::OPERATION_NOT_INITIALIZED)?;
    taken?;
    write_output(active.operation.finish().expose(), digest, digest_len).map(|_| ())
}

/// How a saved state begins: that it is ours, and of which form.
const SAVED: &[u8] = b"claviger digest 1";

/// ```text
/// "claviger digest 1" | mechanism, a CK_ULONG | parts were taken, 1 byte | the hash's own state
/// ```
fn save(active: &ActiveOperation<Hasher>) -> Secret {
    let mut state = Secret::copy_from(SAVED);
    state.extend(&active.operation.hash().mechanism().to_ne_bytes());
    state.extend(&[u8::from(active.multi_part)]);
    state.extend(&active.operation.save());
    state
}

fn restore(state: &[u8]) -> Option<ActiveOperation<Hasher>> {
    let rest = state.strip_prefix(SAVED)?;
    let (mechanism, rest) = rest.split_first_chunk()?;
    let (in_parts, state) = rest.split_first()?;
    let mechanism = CK_MECHANISM_TYPE::from_ne_bytes(*mechanism);
    let hasher = Hasher::restore(Hash::from_mechanism(mechanism)?, state)?;
    Some(ActiveOperation {
        multi_part: *in_parts != 0,
        ..ActiveOperation::new(hasher, false)
    })
}

/// C_GetOperationState: of a digest. What a card or a key has begun cannot be saved.
pub(crate) fn get_state(
    module: &Module,
    session: CK_SESSION_HANDLE,
    state: Output<'_, u8>,
    state_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    state_len.check()?;
    let operations = session.operations();
    if operations.uses_key() {
        return Err(ReturnCode::STATE_UNSAVEABLE.into());
    }
    let active = operations.digest.as_ref();
    let saved = save(active.ok_or(ReturnCode::OPERATION_NOT_INITIALIZED)?);
    write_output(saved.expose(), state, state_len).map(|_| ())
}

/// Longer than any state of ours.
const MAX_STATE: CK_ULONG = 4096;

/// C_SetOperationState: everything under way in the session ends, and the saved digest goes on.
pub(crate) fn set_state(
    module: &Module,
    session: CK_SESSION_HANDLE,
    state: Input<'_, u8>,
    len: CK_ULONG,
    encryption_key: CK_OBJECT_HANDLE,
    authentication_key: CK_OBJECT_HANDLE,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    if state.is_null() {
        return Err(ReturnCode::ARGUMENTS_BAD.into());
    }
    let invalid = || Failure::from(ReturnCode::SAVED_STATE_INVALID);
    if len > MAX_STATE {
        return Err(invalid());
    }
    let restored = restore(state.bytes(len)?).ok_or_else(invalid)?;
    if encryption_key != 0 || authentication_key != 0 {
        return Err(ReturnCode::KEY_NOT_NEEDED.into());
    }
    let mut operations = session.operations();
    *operations = Operations {
        search: operations.search.take(),
        digest: Some(restored),
        ..Operations::default()
    };
    Ok(())
}
