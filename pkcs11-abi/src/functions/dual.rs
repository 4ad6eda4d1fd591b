//! Two operations on one pass over the data (PKCS #11 3.1, 5.16).

use claviger_token::{DecryptOperation, EncryptOperation};
use cryptoki_sys::{CK_SESSION_HANDLE, CK_ULONG};

use super::cipher::part_of;
use crate::{
    module::Module,
    pointer::{In, Out},
    rv::{Failure, Rule},
    sessions::Operations,
};

/// C_DigestEncryptUpdate: the digest is of the plaintext.
pub(crate) fn digest_encrypt(
    module: &Module,
    session: CK_SESSION_HANDLE,
    part: In<'_, u8>,
    len: CK_ULONG,
    output: Out<'_, u8>,
    output_len: Out<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let Operations {
        digest, encrypt, ..
    } = &mut *session.operations();
    let digest = digest.as_mut().ok_or(Rule::OPERATION_NOT_INITIALIZED)?;
    part_of::<EncryptOperation>(
        encrypt,
        (part, len),
        output,
        output_len,
        |data| {
            digest.in_parts = true;
            digest.operation.update(data);
            Ok(())
        },
        |_| Ok(()),
    )
}

/// C_DecryptDigestUpdate: the digest is of the plaintext.
pub(crate) fn decrypt_digest(
    module: &Module,
    session: CK_SESSION_HANDLE,
    part: In<'_, u8>,
    len: CK_ULONG,
    output: Out<'_, u8>,
    output_len: Out<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let Operations {
        digest, decrypt, ..
    } = &mut *session.operations();
    let digest = digest.as_mut().ok_or(Rule::OPERATION_NOT_INITIALIZED)?;
    part_of::<DecryptOperation>(
        decrypt,
        (part, len),
        output,
        output_len,
        |_| Ok(()),
        |plain| {
            digest.in_parts = true;
            digest.operation.update(plain);
            Ok(())
        },
    )
}

/// C_SignEncryptUpdate: the signature is of the plaintext.
pub(crate) fn sign_encrypt(
    module: &Module,
    session: CK_SESSION_HANDLE,
    part: In<'_, u8>,
    len: CK_ULONG,
    output: Out<'_, u8>,
    output_len: Out<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let Operations { sign, encrypt, .. } = &mut *session.operations();
    let sign = sign.as_mut().ok_or(Rule::OPERATION_NOT_INITIALIZED)?;
    part_of::<EncryptOperation>(
        encrypt,
        (part, len),
        output,
        output_len,
        |data| {
            sign.in_parts = true;
            Ok(sign.operation.update(data)?)
        },
        |_| Ok(()),
    )
}

/// C_DecryptVerifyUpdate: the signature is of the plaintext.
pub(crate) fn decrypt_verify(
    module: &Module,
    session: CK_SESSION_HANDLE,
    part: In<'_, u8>,
    len: CK_ULONG,
    output: Out<'_, u8>,
    output_len: Out<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let Operations {
        verify, decrypt, ..
    } = &mut *session.operations();
    let verify = verify.as_mut().ok_or(Rule::OPERATION_NOT_INITIALIZED)?;
    part_of::<DecryptOperation>(
        decrypt,
        (part, len),
        output,
        output_len,
        |_| Ok(()),
        |plain| {
            verify.in_parts = true;
            Ok(verify.operation.update(plain)?)
        },
    )
}
