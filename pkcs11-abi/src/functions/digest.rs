//! Digests (PKCS #11 3.1, 5.10), and saving their state (5.6.5 and 5.6.6). The host does all the work.

use claviger_apdu::Secret;
use claviger_token::{
    Key, TokenError,
    digest::{Hash, Hasher},
    operation::mechanism_for,
};
use cryptoki_sys::{
    CK_MECHANISM, CK_MECHANISM_TYPE, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_ULONG, CKF_DIGEST,
};

use super::operation::write_output;
use crate::{
    module::Module,
    operations::{ActiveOperation, Operations},
    parameter,
    pointer::{Input, Output, OutputFit, fit},
    rv::{Failure, ReturnCode},
};

/// C_DigestInit.
pub(crate) fn init(
    module: &Module,
    session: CK_SESSION_HANDLE,
    mechanism: Input<'_, CK_MECHANISM>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().digest;
    state.init(mechanism, |mechanism| {
        let known = mechanism_for(mechanism.mechanism, CKF_DIGEST)?;
        parameter::read(mechanism, known)?;
        let hash = known
            .hash
            .ok_or(TokenError::MechanismInvalid(mechanism.mechanism))?;
        Ok(ActiveOperation::new(Hasher::new(hash), false))
    })
}

/// C_Digest.
pub(crate) fn single(
    module: &Module,
    session: CK_SESSION_HANDLE,
    data: Input<'_, u8>,
    len: CK_ULONG,
    digest: Output<'_, u8>,
    digest_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().digest;
    state.single_part(|active| {
        let rest = || data.bytes(len);
        write_digest(&mut active.operation, rest, digest, digest_len)
    })
}

/// C_DigestUpdate.
pub(crate) fn update(
    module: &Module,
    session: CK_SESSION_HANDLE,
    part: Input<'_, u8>,
    len: CK_ULONG,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().digest;
    state.update(|active| {
        active.operation.update(part.bytes(len)?);
        Ok(())
    })
}

/// C_DigestKey. Hashes the value of a session's secret key. Other keys cannot be hashed.
pub(crate) fn key(
    module: &Module,
    session: CK_SESSION_HANDLE,
    key: CK_OBJECT_HANDLE,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().digest;
    state.update(|active| {
        let object = session.object(key, ReturnCode::KEY_HANDLE_INVALID)?;
        match &object.key {
            Some(Key::Secret(key)) => active.operation.update(key.value.expose()),
            Some(Key::Private(_) | Key::Public(_)) => {
                return Err(ReturnCode::KEY_INDIGESTIBLE.into());
            }
            None => return Err(ReturnCode::KEY_HANDLE_INVALID.into()),
        }
        Ok(())
    })
}

/// C_DigestFinal.
pub(crate) fn finish(
    module: &Module,
    session: CK_SESSION_HANDLE,
    digest: Output<'_, u8>,
    digest_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().digest;
    state.final_part(|active| {
        let rest = || Ok([].as_slice());
        write_digest(&mut active.operation, rest, digest, digest_len)
    })
}

/// Writes the digest of data that ends with `rest`.
fn write_digest<'call>(
    hasher: &mut Hasher,
    rest: impl FnOnce() -> Result<&'call [u8], Failure>,
    digest: Output<'_, u8>,
    digest_len: Output<'_, CK_ULONG>,
) -> Result<OutputFit, Failure> {
    if fit(digest, digest_len, hasher.hash().len())? == OutputFit::LengthQuery {
        return Ok(OutputFit::LengthQuery);
    }
    hasher.update(rest()?);
    let fresh = Hasher::new(hasher.hash());
    let finished = std::mem::replace(hasher, fresh).finish();
    write_output(finished.expose(), digest, digest_len)
}

/// The first bytes of a saved state. They identify the module and the format.
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
    let (multi_part, state) = rest.split_first()?;
    let mechanism = CK_MECHANISM_TYPE::from_ne_bytes(*mechanism);
    let hasher = Hasher::restore(Hash::from_mechanism(mechanism)?, state)?;
    let mut active = ActiveOperation::new(hasher, false);
    active.multi_part = *multi_part != 0;
    Some(active)
}

/// C_GetOperationState. Saves a digest. While an operation with a key is active, nothing can be saved.
pub(crate) fn get_state(
    module: &Module,
    session: CK_SESSION_HANDLE,
    state: Output<'_, u8>,
    state_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    state_len.check()?;
    let mut operations = session.operations();
    if operations.uses_key() {
        return Err(ReturnCode::STATE_UNSAVEABLE.into());
    }
    let saved = save(operations.digest.active()?);
    write_output(saved.expose(), state, state_len).map(|_| ())
}

/// The limit for the length of a saved state. A valid state is shorter.
const MAX_STATE: CK_ULONG = 4096;

/// C_SetOperationState. Restores the saved digest. Ends all other operations of the session except a search.
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
        search: std::mem::take(&mut operations.search),
        digest: restored.into(),
        ..Operations::default()
    };
    Ok(())
}
