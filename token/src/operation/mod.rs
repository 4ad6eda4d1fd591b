//! Operations in progress. Each collects its input on the host and uses no card until it ends.
//!
//! ```text
//! begin(mechanism, parameter, object) ──► update(part) … ──► finish ──► on the host: the result
//!                                                                  └──► on the card: a KeyInput for Token::use_private_key
//! ```

mod cipher;
mod decrypt;
mod derive;
mod sign;
mod verify;

use claviger_apdu::Secret;
use cryptoki_sys::{CK_ATTRIBUTE_TYPE, CK_FLAGS, CKA_ALLOWED_MECHANISMS};

pub use self::{
    cipher::{CipherOperation, EncryptOperation, Purpose},
    decrypt::DecryptOperation,
    derive::{Derivation, Unwrapping, unwrap_key, wrap_key},
    sign::SignOperation,
    verify::VerifyOperation,
};
use crate::{
    attribute::Value,
    error::TokenError,
    mechanism::{Mechanism, Parameter},
    object::{Key, Object},
};

/// Longest message that must be kept whole (for Ed25519, or a hash computed by the caller). No card takes more.
const MAX_MESSAGE: usize = 64 * 1024;

/// The input of a private key on a card, before the applet encodes it.
#[derive(Debug)]
pub enum KeyInput {
    /// T of EMSA-PKCS1-v1_5: a DigestInfo, or the data that the caller of CKM_RSA_PKCS passed.
    Pkcs1(Secret),
    /// A block as long as the modulus, for the raw RSA function.
    Block(Secret),
    /// A hash for ECDSA, of any length.
    Hash(Secret),
    /// The message for Ed25519.
    Message(Secret),
    /// An RSA ciphertext as long as the modulus.
    Cryptogram(Secret),
    /// The peer's public point: 04 X Y, or 32 bytes for X25519.
    Point(Secret),
}

/// Returns the leftmost `len` bytes of `hash`, or a shorter hash with zeros before it. ECDSA over a field of `len`
/// bytes uses this (FIPS 186-5, 6.4.1) for cards that take exactly that length.
#[must_use]
pub fn fit_hash(hash: &[u8], len: usize) -> Vec<u8> {
    let kept = hash.get(..len).unwrap_or(hash);
    let mut fitted = vec![0; len - kept.len()];
    fitted.extend_from_slice(kept);
    fitted
}

/// Returns the key of `object` if it may be used for `function` (CKF_SIGN …). The attribute `permission` must be true.
///
/// # Errors
/// KEY_TYPE_INCONSISTENT if the object is not a usable key, or if no key of its type supports `function` with the
/// mechanism. MECHANISM_INVALID if the card does not support it or CKA_ALLOWED_MECHANISMS excludes it.
/// KEY_FUNCTION_NOT_PERMITTED if `permission` is not true.
fn check_use(
    mechanism: Mechanism,
    object: &Object,
    function: CK_FLAGS,
    permission: CK_ATTRIBUTE_TYPE,
) -> Result<&Key, TokenError> {
    let kind = mechanism.kind;
    let key = object
        .key
        .as_ref()
        .ok_or(TokenError::KeyTypeInconsistent(kind))?;
    if mechanism.functions(key.kind()) & function == 0 {
        return Err(if mechanism.functions(key.on_best_card()) & function == 0 {
            TokenError::KeyTypeInconsistent(kind)
        } else {
            TokenError::MechanismInvalid(kind)
        });
    }
    if object.get(permission) != Some(&Value::Bool(true)) {
        return Err(TokenError::KeyFunctionNotPermitted);
    }
    match object.get(CKA_ALLOWED_MECHANISMS) {
        Some(Value::Mechanisms(allowed)) if !allowed.is_empty() && !allowed.contains(&kind) => {
            Err(TokenError::MechanismInvalid(kind))
        }
        _ => Ok(key),
    }
}

/// Returns the mechanism with this number, if it supports `function` with any key.
///
/// # Errors
/// MECHANISM_INVALID.
pub fn mechanism_for(
    kind: cryptoki_sys::CK_MECHANISM_TYPE,
    function: CK_FLAGS,
) -> Result<Mechanism, TokenError> {
    Mechanism::of(kind)
        .filter(|mechanism| mechanism.all_functions() & function != 0)
        .ok_or(TokenError::MechanismInvalid(kind))
}

/// Adds `part` to a message that must be kept whole.
fn append_message(message: &mut Secret, part: &[u8]) -> Result<(), TokenError> {
    let len = message.len().saturating_add(part.len());
    if len > MAX_MESSAGE {
        return Err(TokenError::DataLength {
            len,
            max: MAX_MESSAGE,
        });
    }
    message.extend(part);
    Ok(())
}

/// Returns the error for an invalid parameter of the mechanism.
const fn bad_parameter(mechanism: Mechanism) -> TokenError {
    TokenError::MechanismParamInvalid(mechanism.kind)
}

/// Checks that a mechanism without a parameter got none.
fn expect_none(mechanism: Mechanism, parameter: &Parameter) -> Result<(), TokenError> {
    match parameter {
        Parameter::None => Ok(()),
        _ => Err(bad_parameter(mechanism)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_hash_is_truncated_on_the_right_and_a_short_one_padded_on_the_left() {
        assert_eq!(fit_hash(&[1, 2, 3, 4], 2), [1, 2]);
        assert_eq!(fit_hash(&[1, 2], 4), [0, 0, 1, 2]);
        assert_eq!(fit_hash(&[1, 2], 2), [1, 2]);
    }
}
