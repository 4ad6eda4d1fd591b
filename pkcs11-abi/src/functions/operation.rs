//! Common parts of all operations: the beginning, and writing the output.

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

/// The checked arguments of a …Init function.
pub(crate) struct OperationInit {
    pub(crate) mechanism: Mechanism,
    pub(crate) parameter: Parameter,
    pub(crate) key: Arc<Object>,
}

impl OperationInit {
    /// Makes the active operation.
    pub(crate) fn active<T>(&self, operation: T) -> ActiveOperation<T> {
        ActiveOperation::new(operation, self.key.is_private())
    }
}

/// Checks the mechanism, its parameter and the key of an operation. `function` is the operation's flag (CKF_SIGN …).
/// `missing` is the code for an invalid key handle.
///
/// # Errors
/// `missing`, MECHANISM_INVALID, MECHANISM_PARAM_INVALID.
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

/// Writes `output` to the caller's buffer, and its length to `len` in every case. Without a buffer, writes only the length.
///
/// # Errors
/// BUFFER_TOO_SMALL.
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
