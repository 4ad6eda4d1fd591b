//! Curves in CKA_EC_PARAMS (PKCS #11 3.1, 6.3.3), given by object identifier or by name.

use claviger_apdu::tlv;
use cryptoki_sys::{CK_ULONG, CKK_EC, CKK_EC_EDWARDS, CKK_EC_MONTGOMERY};

use crate::{
    algorithm::{Curve, ED25519_OID, X25519_OID},
    error::TokenError,
};

/// A curve in CKA_EC_PARAMS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NamedCurve {
    /// A curve of short Weierstrass form.
    Prime(Curve),
    /// edwards25519, for signatures.
    Ed25519,
    /// curve25519, for key agreement.
    X25519,
}

/// Returns the curve that `parameters` (CKA_EC_PARAMS) give for a key of `key_type`.
///
/// # Errors
/// DOMAIN_PARAMS_INVALID if the parameters give no curve, CURVE_NOT_SUPPORTED for an unknown curve or a curve of
/// another key type.
pub(crate) fn curve_of(key_type: CK_ULONG, parameters: &[u8]) -> Result<NamedCurve, TokenError> {
    let oid = tlv::only(parameters, 0x06).ok();
    let name = tlv::only(parameters, 0x13).ok();
    let curve = match (oid, name) {
        (Some(ED25519_OID), _) | (_, Some(b"edwards25519")) => NamedCurve::Ed25519,
        (Some(X25519_OID), _) | (_, Some(b"curve25519")) => NamedCurve::X25519,
        (Some(oid), _) => {
            NamedCurve::Prime(Curve::from_oid(oid).ok_or(TokenError::CurveNotSupported)?)
        }
        (None, Some(_)) => return Err(TokenError::CurveNotSupported),
        (None, None) => return Err(TokenError::DomainParameters),
    };
    match (curve, key_type) {
        (NamedCurve::Prime(_), CKK_EC)
        | (NamedCurve::Ed25519, CKK_EC_EDWARDS)
        | (NamedCurve::X25519, CKK_EC_MONTGOMERY) => Ok(curve),
        _ => Err(TokenError::CurveNotSupported),
    }
}
