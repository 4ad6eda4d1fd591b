//! Signatures in the steps of `C_SignInit`, `C_Login` and `C_Sign`.

use claviger_apdu::Secret;
use claviger_token::{
    Card, Object, Parameter, SignOperation, Token, TokenError, operation::mechanism_for,
};
use cryptoki_sys::{CK_MECHANISM_TYPE, CKF_SIGN};

/// Begins a signature without a parameter.
pub(crate) fn begin(kind: CK_MECHANISM_TYPE, key: &Object) -> Result<SignOperation, TokenError> {
    let mechanism = mechanism_for(kind, CKF_SIGN)?;
    SignOperation::new(mechanism, &Parameter::None, key, false)
}

/// Performs the context login with `pin` for `operation`.
pub(crate) fn context_login(
    token: &mut Token,
    card: &mut Card,
    operation: &mut SignOperation,
    pin: Secret,
) -> Result<(), TokenError> {
    let key = *operation.private_key().unwrap();
    token.context_login(card, &key, &pin)?;
    operation.context_pin = Some(pin);
    Ok(())
}
