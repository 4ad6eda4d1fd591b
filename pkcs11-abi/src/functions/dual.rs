//! Dual-function operations (PKCS #11 3.1, 5.16). An error in one ends both, because the other has missed a part.

use cryptoki_sys::{CK_SESSION_HANDLE, CK_ULONG};

use super::cipher::{SessionCipher, update_part};
use crate::{
    module::Module,
    operations::OperationState,
    pointer::{Input, Output},
    rv::Failure,
};

/// C_DigestEncryptUpdate. Hashes the plaintext.
pub(crate) fn digest_encrypt(
    module: &Module,
    session: CK_SESSION_HANDLE,
    part: Input<'_, u8>,
    len: CK_ULONG,
    output: Output<'_, u8>,
    output_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let operations = &mut *session.operations();
    let twin = &mut operations.digest;
    let cipher = &mut operations.encrypt;
    update_both(
        cipher,
        twin,
        (part, len),
        output,
        output_len,
        |hasher, plain| {
            hasher.update(plain);
            Ok(())
        },
    )
}

/// C_DecryptDigestUpdate. Hashes the plaintext.
pub(crate) fn decrypt_digest(
    module: &Module,
    session: CK_SESSION_HANDLE,
    part: Input<'_, u8>,
    len: CK_ULONG,
    output: Output<'_, u8>,
    output_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let operations = &mut *session.operations();
    let twin = &mut operations.digest;
    let cipher = &mut operations.decrypt;
    update_both(
        cipher,
        twin,
        (part, len),
        output,
        output_len,
        |hasher, plain| {
            hasher.update(plain);
            Ok(())
        },
    )
}

/// C_SignEncryptUpdate. Signs the plaintext.
pub(crate) fn sign_encrypt(
    module: &Module,
    session: CK_SESSION_HANDLE,
    part: Input<'_, u8>,
    len: CK_ULONG,
    output: Output<'_, u8>,
    output_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let operations = &mut *session.operations();
    let twin = &mut operations.sign;
    let cipher = &mut operations.encrypt;
    update_both(
        cipher,
        twin,
        (part, len),
        output,
        output_len,
        |signature, plain| Ok(signature.update(plain)?),
    )
}

/// C_DecryptVerifyUpdate. Verifies the signature of the plaintext.
pub(crate) fn decrypt_verify(
    module: &Module,
    session: CK_SESSION_HANDLE,
    part: Input<'_, u8>,
    len: CK_ULONG,
    output: Output<'_, u8>,
    output_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let operations = &mut *session.operations();
    let twin = &mut operations.verify;
    let cipher = &mut operations.decrypt;
    update_both(
        cipher,
        twin,
        (part, len),
        output,
        output_len,
        |verification, plain| Ok(verification.update(plain)?),
    )
}

/// Does one part of a cipher operation, and gives the plaintext to `twin` with `take`.
fn update_both<C: SessionCipher, T>(
    cipher: &mut OperationState<C>,
    twin: &mut OperationState<T>,
    part: (Input<'_, u8>, CK_ULONG),
    output: Output<'_, u8>,
    output_len: Output<'_, CK_ULONG>,
    take: impl FnOnce(&mut T, &[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    twin.active()?;
    cipher.active()?;
    let updated = update_part(cipher, part, output, output_len, |input, made| {
        let plain = C::plaintext(input, made);
        twin.update(|active| take(&mut active.operation, plain))
    });
    if !cipher.is_active() {
        twin.end();
    }
    updated
}
