//! Encryption and decryption (PKCS #11 3.1, 5.8 and 5.9): one set of functions for both.

use claviger_apdu::Secret;
use claviger_token::{DecryptOperation, EncryptOperation, TokenError, operation::Purpose};
use cryptoki_sys::{
    CK_MECHANISM, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_ULONG, CKF_DECRYPT, CKF_ENCRYPT,
};

use super::operation::{init_or_cancel, keeps_operation, resolve_init, write_final};
use crate::{
    module::Module,
    operations::{ActiveOperation, Operations},
    pointer::{Input, Output, OutputFit, fit},
    rv::{Failure, ReturnCode},
    sessions::Session,
};

/// Encrypting or decrypting, on the host or on the card.
pub(crate) trait CipherOperation: Sized {
    /// Where a session keeps it.
    fn state_in(operations: &mut Operations) -> &mut Option<ActiveOperation<Self>>;
    /// Room enough for all of `len` bytes.
    fn single_len(&self, len: usize) -> usize;
    /// Whether all that room must be there before the work begins, because a card does it.
    fn is_on_card(&self) -> bool;
    /// Whether a key's own PIN is missing.
    fn lacks_pin(&self) -> bool;
    fn single(&mut self, session: &Session, data: &[u8]) -> Result<Secret, Failure>;
    fn update_len(&self, part: usize) -> usize;
    fn update(&mut self, part: &[u8]) -> Result<Secret, TokenError>;
    fn finish_len(&self) -> usize;
    fn finish(&mut self, session: &Session) -> Result<Secret, Failure>;
}

impl CipherOperation for EncryptOperation {
    fn state_in(operations: &mut Operations) -> &mut Option<ActiveOperation<Self>> {
        &mut operations.encrypt
    }

    fn single_len(&self, len: usize) -> usize {
        Self::single_len(self, len)
    }

    fn is_on_card(&self) -> bool {
        false
    }

    fn lacks_pin(&self) -> bool {
        false
    }

    fn single(&mut self, _: &Session, data: &[u8]) -> Result<Secret, Failure> {
        Ok(Self::single(self, data)?)
    }

    fn update_len(&self, part: usize) -> usize {
        Self::update_len(self, part)
    }

    fn update(&mut self, part: &[u8]) -> Result<Secret, TokenError> {
        Self::update(self, part)
    }

    fn finish_len(&self) -> usize {
        Self::finish_len(self)
    }

    fn finish(&mut self, _: &Session) -> Result<Secret, Failure> {
        Ok(Self::finish(self)?)
    }
}

impl CipherOperation for DecryptOperation {
    fn state_in(operations: &mut Operations) -> &mut Option<ActiveOperation<Self>> {
        &mut operations.decrypt
    }

    fn single_len(&self, len: usize) -> usize {
        Self::single_len(self, len)
    }

    fn is_on_card(&self) -> bool {
        self.private_key().is_some()
    }

    fn lacks_pin(&self) -> bool {
        self.lacks_context_login()
    }

    fn single(&mut self, session: &Session, data: &[u8]) -> Result<Secret, Failure> {
        match Self::single(self, data)? {
            Some(output) => Ok(output),
            None => {
                Self::update(self, data)?;
                session.with_token(|card, token| token.decrypt(card, self))
            }
        }
    }

    fn update_len(&self, part: usize) -> usize {
        Self::update_len(self, part)
    }

    fn update(&mut self, part: &[u8]) -> Result<Secret, TokenError> {
        Self::update(self, part)
    }

    fn finish_len(&self) -> usize {
        Self::finish_len(self)
    }

    fn finish(&mut self, session: &Session) -> Result<Secret, Failure> {
        match Self::finish(self)? {
            Some(output) => Ok(output),
            None => session.with_token(|card, token| token.decrypt(card, self)),
        }
    }
}

/// C_EncryptInit.
pub(crate) fn encrypt_init(
    module: &Module,
    session: CK_SESSION_HANDLE,
    mechanism: Input<'_, CK_MECHANISM>,
    key: CK_OBJECT_HANDLE,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mut operations = session.operations();
    let Some(mechanism) = init_or_cancel(&mut operations.encrypt, mechanism)? else {
        return Ok(());
    };
    let from = resolve_init(
        &session,
        &mechanism,
        key,
        CKF_ENCRYPT,
        ReturnCode::KEY_HANDLE_INVALID,
    )?;
    let operation =
        EncryptOperation::new(from.mechanism, &from.parameter, &from.key, Purpose::Data)?;
    operations.encrypt = Some(from.active(operation));
    Ok(())
}

/// C_DecryptInit. Touches no card.
pub(crate) fn decrypt_init(
    module: &Module,
    session: CK_SESSION_HANDLE,
    mechanism: Input<'_, CK_MECHANISM>,
    key: CK_OBJECT_HANDLE,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mut operations = session.operations();
    let Some(mechanism) = init_or_cancel(&mut operations.decrypt, mechanism)? else {
        return Ok(());
    };
    let from = resolve_init(
        &session,
        &mechanism,
        key,
        CKF_DECRYPT,
        ReturnCode::KEY_HANDLE_INVALID,
    )?;
    let operation =
        DecryptOperation::new(from.mechanism, &from.parameter, &from.key, Purpose::Data)?;
    operations.decrypt = Some(from.active(operation));
    Ok(())
}

/// C_Encrypt, C_Decrypt: all at once. In a buffer too small for the longest possible answer of a card nothing is begun.
pub(crate) fn single<T: CipherOperation>(
    module: &Module,
    session: CK_SESSION_HANDLE,
    data: Input<'_, u8>,
    len: CK_ULONG,
    output: Output<'_, u8>,
    output_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mut operations = session.operations();
    let place = T::state_in(&mut operations);
    let active = place
        .as_mut()
        .ok_or(ReturnCode::OPERATION_NOT_INITIALIZED)?;
    if active.multi_part {
        *place = None;
        return Err(ReturnCode::OPERATION_ACTIVE.into());
    }
    let result = single_output(&session, active, (data, len), output, output_len);
    end_unless(place, result, output, output_len)
}

/// The whole output, or `None` when only its length was asked for.
fn single_output<T: CipherOperation>(
    session: &Session,
    active: &mut ActiveOperation<T>,
    (data, len): (Input<'_, u8>, CK_ULONG),
    output: Output<'_, u8>,
    output_len: Output<'_, CK_ULONG>,
) -> Result<Option<Secret>, Failure> {
    output_len.check()?;
    let operation = &mut active.operation;
    let most = operation.single_len(usize::try_from(len).unwrap_or(usize::MAX));
    if (output.is_null() || operation.is_on_card())
        && fit(output, output_len, most)? == OutputFit::LengthQuery
    {
        return Ok(None);
    }
    if operation.lacks_pin() {
        return Err(ReturnCode::USER_NOT_LOGGED_IN.into());
    }
    // The caller may have the output written over the input, which is read to the end here.
    operation.single(session, data.bytes(len)?).map(Some)
}

/// Gives a finished output; the operation is over, unless there was no room or only a length was asked for.
fn end_unless<T>(
    place: &mut Option<ActiveOperation<T>>,
    result: Result<Option<Secret>, Failure>,
    output: Output<'_, u8>,
    output_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    match result {
        Ok(None) => Ok(()),
        Ok(Some(all)) => match super::operation::write_output(all.expose(), output, output_len) {
            Err(failure) if keeps_operation(&failure) => Err(failure),
            given => {
                *place = None;
                given.map(|_| ())
            }
        },
        Err(failure) => {
            if !keeps_operation(&failure) {
                *place = None;
            }
            Err(failure)
        }
    }
}

/// C_EncryptUpdate, C_DecryptUpdate: one part. Touches no card.
pub(crate) fn update<T: CipherOperation>(
    module: &Module,
    session: CK_SESSION_HANDLE,
    part: Input<'_, u8>,
    len: CK_ULONG,
    output: Output<'_, u8>,
    output_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mut operations = session.operations();
    let place = T::state_in(&mut operations);
    if place.is_none() {
        return Err(ReturnCode::OPERATION_NOT_INITIALIZED.into());
    }
    update_part(
        place,
        (part, len),
        output,
        output_len,
        |_| Ok(()),
        |_| Ok(()),
    )
}

/// One part of an operation; `before` sees the input and may refuse it, `after` sees the output.
pub(crate) fn update_part<T: CipherOperation>(
    place: &mut Option<ActiveOperation<T>>,
    (part, len): (Input<'_, u8>, CK_ULONG),
    output: Output<'_, u8>,
    output_len: Output<'_, CK_ULONG>,
    before: impl FnOnce(&[u8]) -> Result<(), Failure>,
    after: impl FnOnce(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let active = place
        .as_mut()
        .ok_or(ReturnCode::OPERATION_NOT_INITIALIZED)?;
    let outcome = (|| {
        output_len.check()?;
        let data = part.bytes(len)?;
        if fit(output, output_len, active.operation.update_len(data.len()))?
            == OutputFit::LengthQuery
        {
            return Ok(());
        }
        before(data)?;
        active.multi_part = true;
        let made = active.operation.update(data)?;
        after(made.expose())?;
        if made.is_empty() {
            return Ok(());
        }
        output.put_all(made.expose())
    })();
    match outcome {
        Err(failure) if !keeps_operation(&failure) => {
            *place = None;
            Err(failure)
        }
        outcome => outcome,
    }
}

/// C_EncryptFinal, C_DecryptFinal.
pub(crate) fn finish<T: CipherOperation>(
    module: &Module,
    session: CK_SESSION_HANDLE,
    output: Output<'_, u8>,
    output_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mut operations = session.operations();
    let place = T::state_in(&mut operations);
    let active = place
        .as_mut()
        .ok_or(ReturnCode::OPERATION_NOT_INITIALIZED)?;
    let result = final_output(&session, active, output, output_len);
    match result {
        Ok(None) => Ok(()),
        Ok(Some(last)) => write_final(place, last, output, output_len),
        Err(failure) => {
            if !keeps_operation(&failure) {
                *place = None;
            }
            Err(failure)
        }
    }
}

/// What is left, or `None` when only its length was asked for.
fn final_output<T: CipherOperation>(
    session: &Session,
    active: &mut ActiveOperation<T>,
    output: Output<'_, u8>,
    output_len: Output<'_, CK_ULONG>,
) -> Result<Option<Secret>, Failure> {
    output_len.check()?;
    if let Some(last) = active.unread_output.take() {
        return Ok(Some(last));
    }
    let operation = &mut active.operation;
    if (output.is_null() || operation.is_on_card())
        && fit(output, output_len, operation.finish_len())? == OutputFit::LengthQuery
    {
        return Ok(None);
    }
    if operation.lacks_pin() {
        return Err(ReturnCode::USER_NOT_LOGGED_IN.into());
    }
    operation.finish(session).map(Some)
}
