//! Encryption and decryption (PKCS #11 3.1, 5.8 and 5.9). Both use the same functions.

use claviger_token::{CipherOperation, DecryptOperation, EncryptOperation, operation::Purpose};
use cryptoki_sys::{
    CK_MECHANISM, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_ULONG, CKF_DECRYPT, CKF_ENCRYPT,
};

use super::operation::{resolve_init, write_output};
use crate::{
    module::Module,
    operations::{OperationState, Operations},
    pointer::{Input, Output, OutputFit, fit},
    rv::{Failure, ReturnCode},
};

/// A cipher operation of a session.
pub(crate) trait SessionCipher: CipherOperation + Sized {
    fn state_in(operations: &mut Operations) -> &mut OperationState<Self>;
    /// Selects the plaintext from a part's input and output.
    fn plaintext<'a>(part: &'a [u8], made: &'a [u8]) -> &'a [u8];
    /// Returns the decryption if a key on the card does the work.
    fn on_card(&mut self) -> Option<&mut DecryptOperation>;
}

impl SessionCipher for EncryptOperation {
    fn state_in(operations: &mut Operations) -> &mut OperationState<Self> {
        &mut operations.encrypt
    }

    fn plaintext<'a>(part: &'a [u8], _: &'a [u8]) -> &'a [u8] {
        part
    }

    fn on_card(&mut self) -> Option<&mut DecryptOperation> {
        None
    }
}

impl SessionCipher for DecryptOperation {
    fn state_in(operations: &mut Operations) -> &mut OperationState<Self> {
        &mut operations.decrypt
    }

    fn plaintext<'a>(_: &'a [u8], made: &'a [u8]) -> &'a [u8] {
        made
    }

    fn on_card(&mut self) -> Option<&mut DecryptOperation> {
        self.private_key().is_some().then_some(self)
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
    let state = &mut session.operations().encrypt;
    state.init(mechanism, |mechanism| {
        let from = resolve_init(
            &session,
            mechanism,
            key,
            CKF_ENCRYPT,
            ReturnCode::KEY_HANDLE_INVALID,
        )?;
        let operation =
            EncryptOperation::new(from.mechanism, &from.parameter, &from.key, Purpose::Data)?;
        Ok(from.active(operation))
    })
}

/// C_DecryptInit. Touches no card.
pub(crate) fn decrypt_init(
    module: &Module,
    session: CK_SESSION_HANDLE,
    mechanism: Input<'_, CK_MECHANISM>,
    key: CK_OBJECT_HANDLE,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let state = &mut session.operations().decrypt;
    state.init(mechanism, |mechanism| {
        let from = resolve_init(
            &session,
            mechanism,
            key,
            CKF_DECRYPT,
            ReturnCode::KEY_HANDLE_INVALID,
        )?;
        let operation =
            DecryptOperation::new(from.mechanism, &from.parameter, &from.key, Purpose::Data)?;
        Ok(from.active(operation))
    })
}

/// C_Encrypt and C_Decrypt.
pub(crate) fn single<T: SessionCipher>(
    module: &Module,
    session: CK_SESSION_HANDLE,
    data: Input<'_, u8>,
    len: CK_ULONG,
    output: Output<'_, u8>,
    output_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mut operations = session.operations();
    T::state_in(&mut operations).single_part(|active| {
        output_len.check()?;
        let operation = &mut active.operation;
        let most = operation.single_len(usize::try_from(len).unwrap_or(usize::MAX));
        if prepare(operation, most, output, output_len)? == OutputFit::LengthQuery {
            return Ok(OutputFit::LengthQuery);
        }
        // The output buffer may overlap the input. The whole input is read before the output is written.
        let data = data.bytes(len)?;
        let all = match operation.on_card() {
            None => operation.single(data)?.unwrap_or_default(),
            Some(decryption) => {
                decryption.update(data)?;
                session
                    .token
                    .with_token(|card, token| token.decrypt(card, decryption))?
            }
        };
        write_output(all.expose(), output, output_len)
    })
}

/// Returns `Fits` if the work may begin. For work on the card, the buffer must have room for `most`, the longest possible
/// output. For work on the host, the buffer is checked later, because only the result has the exact length.
///
/// # Errors
/// BUFFER_TOO_SMALL. USER_NOT_LOGGED_IN if a context login is missing.
fn prepare<T: SessionCipher>(
    operation: &mut T,
    most: usize,
    output: Output<'_, u8>,
    output_len: Output<'_, CK_ULONG>,
) -> Result<OutputFit, Failure> {
    let on_card = operation.on_card();
    if (output.is_null() || on_card.is_some())
        && fit(output, output_len, most)? == OutputFit::LengthQuery
    {
        return Ok(OutputFit::LengthQuery);
    }
    if on_card.is_some_and(|decryption| decryption.lacks_context_login()) {
        return Err(ReturnCode::USER_NOT_LOGGED_IN.into());
    }
    Ok(OutputFit::Fits)
}

/// C_EncryptUpdate and C_DecryptUpdate. Touches no card.
pub(crate) fn update<T: SessionCipher>(
    module: &Module,
    session: CK_SESSION_HANDLE,
    part: Input<'_, u8>,
    len: CK_ULONG,
    output: Output<'_, u8>,
    output_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mut operations = session.operations();
    let state = T::state_in(&mut operations);
    update_part(state, (part, len), output, output_len, |_, _| Ok(()))
}

/// Does one part of an operation. `tap` gets the input and the output of the part. An error of `tap` fails the part.
pub(super) fn update_part<T: SessionCipher>(
    state: &mut OperationState<T>,
    (part, len): (Input<'_, u8>, CK_ULONG),
    output: Output<'_, u8>,
    output_len: Output<'_, CK_ULONG>,
    tap: impl FnOnce(&[u8], &[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    state.update(|active| {
        output_len.check()?;
        let part = part.bytes(len)?;
        let needed = active.operation.update_len(part.len());
        if fit(output, output_len, needed)? == OutputFit::LengthQuery {
            return Ok(OutputFit::LengthQuery);
        }
        let made = active.operation.update(part)?;
        tap(part, made.expose())?;
        if !made.is_empty() {
            output.put_all(made.expose())?;
        }
        Ok(OutputFit::Fits)
    })
}

/// C_EncryptFinal and C_DecryptFinal.
pub(crate) fn finish<T: SessionCipher>(
    module: &Module,
    session: CK_SESSION_HANDLE,
    output: Output<'_, u8>,
    output_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mut operations = session.operations();
    T::state_in(&mut operations).final_part(|active| {
        output_len.check()?;
        let operation = &mut active.operation;
        let last = match active.unread_output.take() {
            Some(last) => last,
            None => {
                let most = operation.finish_len();
                if prepare(operation, most, output, output_len)? == OutputFit::LengthQuery {
                    return Ok(OutputFit::LengthQuery);
                }
                match operation.on_card() {
                    None => operation.finish()?.unwrap_or_default(),
                    Some(decryption) => session
                        .token
                        .with_token(|card, token| token.decrypt(card, decryption))?,
                }
            }
        };
        let written = write_output(last.expose(), output, output_len);
        if !matches!(written, Ok(OutputFit::Fits)) {
            active.unread_output = Some(last);
        }
        written
    })
}
