//! What all operations have in common: how they begin, and how their output reaches the caller.

use std::sync::Arc;

use claviger_apdu::Secret;
use claviger_token::{Mechanism, Object, Parameter, TokenError, operation::mechanism_for};
use cryptoki_sys::{CK_FLAGS, CK_MECHANISM, CK_OBJECT_HANDLE, CK_ULONG};

use crate::{
    operations::ActiveOperation,
    parameter,
    pointer::{Input, Output, OutputFit, fit},
    rv::{Failure, ReturnCode},
    sessions::Session,
};

/// What an operation begins with.
pub(crate) struct OperationInit {
    pub(crate) mechanism: Mechanism,
    pub(crate) parameter: Parameter,
    pub(crate) key: Arc<Object>,
}

impl OperationInit {
    /// An operation of this beginning.
    pub(crate) fn active<T>(&self, operation: T) -> ActiveOperation<T> {
        ActiveOperation::new(operation, self.key.is_private())
    }
}

/// The mechanism an operation is to begin with. Null ends the operation in `place` (PKCS #11 3.0, 5.8.1 and the like)
/// and there is none to begin; with nothing to end it is a missing argument, as in version 2.40.
///
/// # Errors
/// OPERATION_ACTIVE, ARGUMENTS_BAD.
pub(crate) fn init_or_cancel<T>(
    place: &mut Option<T>,
    mechanism: Input<'_, CK_MECHANISM>,
) -> Result<Option<CK_MECHANISM>, Failure> {
    match (place.is_some(), mechanism.is_null()) {
        (true, true) => {
            *place = None;
            Ok(None)
        }
        (true, false) => Err(ReturnCode::OPERATION_ACTIVE.into()),
        (false, _) => mechanism.get().map(Some),
    }
}

/// Mechanism, parameter and key of an operation that does `function` (CKF_SIGN …), all looked at; `missing` is the code
/// for a key handle that is none.
///
/// # Errors
/// As the standard's …Init functions.
pub(crate) fn resolve_init(
    session: &Session,
    mechanism: &CK_MECHANISM,
    key: CK_OBJECT_HANDLE,
    function: CK_FLAGS,
    missing: ReturnCode,
) -> Result<OperationInit, Failure> {
    let key = session.key(key, missing)?;
    let known = mechanism_for(mechanism.mechanism, function)?;
    if !session.offers(known.kind) {
        return Err(TokenError::MechanismInvalid(known.kind).into());
    }
    Ok(OperationInit {
        mechanism: known,
        parameter: parameter::read(mechanism, known)?,
        key,
    })
}

/// Gives `output` if the caller's buffer has room for it.
///
/// # Errors
/// BUFFER_TOO_SMALL, with the length that is needed.
pub(crate) fn write_output(
    output: &[u8],
    buffer: Output<'_, u8>,
    len: Output<'_, CK_ULONG>,
) -> Result<OutputFit, Failure> {
    let room = fit(buffer, len, output.len())?;
    if room == OutputFit::Fits {
        buffer.put_all(output)?;
    }
    Ok(room)
}

/// Whether an error leaves an operation as it was.
pub(crate) fn keeps_operation(failure: &Failure) -> bool {
    matches!(
        failure,
        Failure::ReturnCode(ReturnCode::BUFFER_TOO_SMALL | ReturnCode::USER_NOT_LOGGED_IN)
    )
}

/// [`room`] for the output of the operation in `place`, which is over when there is no place for the length.
///
/// # Errors
/// BUFFER_TOO_SMALL, ARGUMENTS_BAD.
pub(crate) fn room_or_end<T>(
    place: &mut Option<T>,
    buffer: Output<'_, u8>,
    len: Output<'_, CK_ULONG>,
    needed: usize,
) -> Result<OutputFit, Failure> {
    let room = fit(buffer, len, needed);
    if room
        .as_ref()
        .is_err_and(|failure| !keeps_operation(failure))
    {
        *place = None;
    }
    room
}

/// Gives the last output of an operation, which is then over; without room it is kept and the operation goes on.
///
/// # Errors
/// BUFFER_TOO_SMALL.
pub(crate) fn write_final<T>(
    place: &mut Option<ActiveOperation<T>>,
    output: Secret,
    buffer: Output<'_, u8>,
    len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let given = write_output(output.expose(), buffer, len);
    match (&given, place.as_mut()) {
        (Ok(OutputFit::LengthQuery), Some(active)) => active.unread_output = Some(output),
        (Err(failure), Some(active)) if keeps_operation(failure) => {
            active.unread_output = Some(output);
        }
        _ => *place = None,
    }
    given.map(|_| ())
}
