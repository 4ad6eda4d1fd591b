//! Two operations on one pass over the data (PKCS #11 3.1, 5.16). What ends the one ends the other: it has lost a part.

use claviger_token::{DecryptOperation, EncryptOperation};
use cryptoki_sys::{CK_SESSION_HANDLE, CK_ULONG};

use super::cipher::update_part;
use crate::{
    module::Module,
    operations::Operations,
    pointer::{Input, Output},
    rv::{Failure, ReturnCode},
};

/// C_DigestEncryptUpdate: the digest is of the plaintext.
pub(crate) fn digest_encrypt(
    module: &Module,
    session: CK_SESSION_HANDLE,
    part: Input<'_, u8>,
    len: CK_ULONG,
    output: Output<'_, u8>,
    output_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let Operations {
        digest, encrypt, ..
    } = &mut *session.operations();
    let twin = digest
        .as_mut()
        .ok_or(ReturnCode::OPERATION_NOT_INITIALIZED)?;
    let begun = encrypt.is_some();
    let taken = update_part::<EncryptOperation>(
        encrypt,
        (part, len),
        output,
        output_len,
        |data| {
            twin.multi_part = true;
            twin.operation.update(data);
            Ok(())
        },
        |_| Ok(()),
    );
    if begun && encrypt.is_none() {
        *digest = None;
    }
    taken
}

/// C_DecryptDigestUpdate: the digest is of the plaintext.
pub(crate) fn decrypt_digest(
    module: &Module,
    session: CK_SESSION_HANDLE,
    part: Input<'_, u8>,
    len: CK_ULONG,
    output: Output<'_, u8>,
    output_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let Operations {
        digest, decrypt, ..
    } = &mut *session.operations();
    let twin = digest
        .as_mut()
        .ok_or(ReturnCode::OPERATION_NOT_INITIALIZED)?;
    let begun = decrypt.is_some();
    let taken = update_part::<DecryptOperation>(
        decrypt,
        (part, len),
        output,
        output_len,
        |_| Ok(()),
        |plain| {
            twin.multi_part = true;
            twin.operation.update(plain);
            Ok(())
        },
    );
    if begun && decrypt.is_none() {
        *digest = None;
    }
    taken
}

/// C_SignEncryptUpdate: the signature is of the plaintext.
pub(crate) fn sign_encrypt(
    module: &Module,
    session: CK_SESSION_HANDLE,
    part: Input<'_, u8>,
    len: CK_ULONG,
    output: Output<'_, u8>,
    output_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let Operations { sign, encrypt, .. } = &mut *session.operations();
    let twin = sign.as_mut().ok_or(ReturnCode::OPERATION_NOT_INITIALIZED)?;
    let begun = encrypt.is_some();
    let taken = update_part::<EncryptOperation>(
        encrypt,
        (part, len),
        output,
        output_len,
        |data| {
            twin.multi_part = true;
            Ok(twin.operation.update(data)?)
        },
        |_| Ok(()),
    );
    if begun && encrypt.is_none() {
        *sign = None;
    }
    taken
}

/// C_DecryptVerifyUpdate: the signature is of the plaintext.
pub(crate) fn decrypt_verify(
    module: &Module,
    session: CK_SESSION_HANDLE,
    part: Input<'_, u8>,
    len: CK_ULONG,
    output: Output<'_, u8>,
    output_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let Operations {
        verify, decrypt, ..
    } = &mut *session.operations();
    let twin = verify
        .as_mut()
        .ok_or(ReturnCode::OPERATION_NOT_INITIALIZED)?;
    let begun = decrypt.is_some();
    let taken = update_part::<DecryptOperation>(
        decrypt,
        (part, len),
        output,
        output_len,
        |_| Ok(()),
        |plain| {
            twin.multi_part = true;
            Ok(twin.operation.update(plain)?)
        },
    );
    if begun && decrypt.is_none() {
        *verify = None;
    }
    taken
}
