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

use super::operation::{give, given, room_or_end};
use crate::{
    module::Module,
    parameter,
    pointer::{In, Out, Room},
    rv::{Failure, Rule},
    sessions::{Active, Operations},
};

/// C_DigestInit.
pub(crate) fn init(
    module: &Module,
    session: CK_SESSION_HANDLE,
    mechanism: In<'_, CK_MECHANISM>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mut operations = session.operations();
    let Some(mechanism) = given(&mut operations.digest, mechanism)? else {
        return Ok(());
    };
    let known = mechanism_for(mechanism.mechanism, CKF_DIGEST)?;
    parameter::read(&mechanism, known)?;
    let hash = known
        .hash
        .ok_or(TokenError::MechanismInvalid(mechanism.mechanism))?;
    operations.digest = Some(Active::new(Hasher::new(hash), false));
    Ok(())
}

/// C_Digest: all at once.
pub(crate) fn single(
    module: &Module,
    session: CK_SESSION_HANDLE,
    data: In<'_, u8>,
    len: CK_ULONG,
    digest: Out<'_, u8>,
    digest_len: Out<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mut operations = session.operations();
    let active = active(&mut operations)?;
    if active.in_parts {
        operations.digest = None;
        return Err(Rule::OPERATION_ACTIVE.into());
    }
    let needed = active.operation.hash().len();
    if room_or_end(&mut operations.digest, digest, digest_len, needed)? == Room::Asked {
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
    part: In<'_, u8>,
    len: CK_ULONG,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mut operations = session.operations();
    let active = active(&mut operations)?;
    active.in_parts = true;
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
    let object = session.object(key, Rule::KEY_HANDLE_INVALID);
    let taken = object.and_then(|object| match &object.key {
        Some(Key::Secret(key)) => {
            active.operation.update(key.value.expose());
            Ok(())
        }
        Some(Key::Private(_) | Key::Public(_)) => Err(Rule::KEY_INDIGESTIBLE.into()),
        None => Err(Rule::KEY_HANDLE_INVALID.into()),
    });
    active.in_parts = true;
    if taken.is_err() {
        operations.digest = None;
    }
    taken
}

/// C_DigestFinal.
pub(crate) fn finish(
    module: &Module,
    session: CK_SESSION_HANDLE,
    digest: Out<'_, u8>,
    digest_len: Out<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mut operations = session.operations();
    let needed = active(&mut operations)?.operation.hash().len();
    if room_or_end(&mut operations.digest, digest, digest_len, needed)? == Room::Asked {
        return Ok(());
    }
    end(&mut operations, Ok(()), digest, digest_len)
}

fn active(operations: &mut Operations) -> Result<&mut Active<Hasher>, Failure> {
    let active = operations.digest.as_mut();
    active.ok_or_else(|| Rule::OPERATION_NOT_INITIALIZED.into())
}

fn end(
    operations: &mut Operations,
    taken: Result<(), Failure>,
    digest: Out<'_, u8>,
    digest_len: Out<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let active = operations
        .digest
        .take()
        .ok_or(Rule::OPERATION_NOT_INITIALIZED)?;
    taken?;
    give(active.operation.finish().expose(), digest, digest_len).map(|_| ())
}

/// How a saved state begins: that it is ours, and of which form.
const SAVED: &[u8] = b"claviger digest 1";

/// ```text
/// "claviger digest 1" | mechanism, a CK_ULONG | parts were taken, 1 byte | the hash's own state
/// ```
fn save(active: &Active<Hasher>) -> Secret {
    let mut state = Secret::copy_from(SAVED);
    state.extend(&active.operation.hash().mechanism().to_ne_bytes());
    state.extend(&[u8::from(active.in_parts)]);
    state.extend(&active.operation.save());
    state
}

fn restore(state: &[u8]) -> Option<Active<Hasher>> {
    let rest = state.strip_prefix(SAVED)?;
    let (mechanism, rest) = rest.split_first_chunk()?;
    let (in_parts, state) = rest.split_first()?;
    let mechanism = CK_MECHANISM_TYPE::from_ne_bytes(*mechanism);
    let hasher = Hasher::restore(Hash::from_mechanism(mechanism)?, state)?;
    Some(Active {
        in_parts: *in_parts != 0,
        ..Active::new(hasher, false)
    })
}

/// C_GetOperationState: of a digest. What a card or a key has begun cannot be saved.
pub(crate) fn get_state(
    module: &Module,
    session: CK_SESSION_HANDLE,
    state: Out<'_, u8>,
    state_len: Out<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    state_len.check()?;
    let operations = session.operations();
    if operations.has_keyed() {
        return Err(Rule::STATE_UNSAVEABLE.into());
    }
    let active = operations.digest.as_ref();
    let saved = save(active.ok_or(Rule::OPERATION_NOT_INITIALIZED)?);
    give(saved.expose(), state, state_len).map(|_| ())
}

/// Longer than any state of ours.
const MAX_STATE: CK_ULONG = 4096;

/// C_SetOperationState: everything under way in the session ends, and the saved digest goes on.
pub(crate) fn set_state(
    module: &Module,
    session: CK_SESSION_HANDLE,
    state: In<'_, u8>,
    len: CK_ULONG,
    encryption_key: CK_OBJECT_HANDLE,
    authentication_key: CK_OBJECT_HANDLE,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    if state.is_null() {
        return Err(Rule::ARGUMENTS_BAD.into());
    }
    let invalid = || Failure::from(Rule::SAVED_STATE_INVALID);
    if len > MAX_STATE {
        return Err(invalid());
    }
    let restored = restore(state.bytes(len)?).ok_or_else(invalid)?;
    if encryption_key != 0 || authentication_key != 0 {
        return Err(Rule::KEY_NOT_NEEDED.into());
    }
    let mut operations = session.operations();
    *operations = Operations {
        search: operations.search.take(),
        digest: Some(restored),
        ..Operations::default()
    };
    Ok(())
}
