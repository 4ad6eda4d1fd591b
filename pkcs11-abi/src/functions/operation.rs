//! What all operations have in common: how they begin, and how their output reaches the caller.

use std::sync::Arc;

use claviger_token::{Mechanism, Object, Parameter, TokenError, operation::mechanism_for};
use cryptoki_sys::{CK_FLAGS, CK_MECHANISM, CK_OBJECT_HANDLE, CK_ULONG};

use crate::{
    operations::ActiveOperation,
    parameter,
    pointer::{Output, OutputFit, fit},
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
    if !session.token.has_mechanism(known.kind) {
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
