//! Two operations on one pass over the data (PKCS #11 3.1, 5.16). What ends the one ends the other: it has lost a part.

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
    let twin = digest.as_mut().ok_or(Rule::OPERATION_NOT_INITIALIZED)?;
    let begun = encrypt.is_some();
    let taken = part_of::<EncryptOperation>(
        encrypt,
        (part, len),
        output,
        output_len,
        |data| {
            twin.in_parts = true;
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
    part: In<'_, u8>,
    len: CK_ULONG,
    output: Out<'_, u8>,
    output_len: Out<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let Operations {
        digest, decrypt, ..
    } = &mut *session.operations();
    let twin = digest.as_mut().ok_or(Rule::OPERATION_NOT_INITIALIZED)?;
    let begun = decrypt.is_some();
    let taken = part_of::<DecryptOperation>(
        decrypt,
        (part, len),
        output,
        output_len,
        |_| Ok(()),
        |plain| {
            twin.in_parts = true;
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
    part: In<'_, u8>,
    len: CK_ULONG,
    output: Out<'_, u8>,
    output_len: Out<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let Operations { sign, encrypt, .. } = &mut *session.operations();
    let twin = sign.as_mut().ok_or(Rule::OPERATION_NOT_INITIALIZED)?;
    let begun = encrypt.is_some();
    let taken = part_of::<EncryptOperation>(
        encrypt,
        (part, len),
        output,
        output_len,
        |data| {
            twin.in_parts = true;
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
    part: In<'_, u8>,
    len: CK_ULONG,
    output: Out<'_, u8>,
    output_len: Out<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let Operations {
        verify, decrypt, ..
    } = &mut *session.operations();
    let twin = verify.as_mut().ok_or(Rule::OPERATION_NOT_INITIALIZED)?;
    let begun = decrypt.is_some();
    let taken = part_of::<DecryptOperation>(
        decrypt,
        (part, len),
        output,
        output_len,
        |_| Ok(()),
        |plain| {
            twin.in_parts = true;
            Ok(twin.operation.update(plain)?)
        },
    );
    if begun && decrypt.is_none() {
        *verify = None;
    }
    taken
}
