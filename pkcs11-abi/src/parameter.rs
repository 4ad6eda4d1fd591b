//! Converts the parameters of mechanisms from C structures to values (PKCS #11 3.1, 6).

use claviger_token::{
    Mechanism, Parameter, TokenError,
    mechanism::{ParameterType, Scheme},
};
use cryptoki_sys::{
    CK_AES_CTR_PARAMS, CK_ECDH1_DERIVE_PARAMS, CK_EDDSA_PARAMS, CK_GCM_PARAMS, CK_MECHANISM,
    CK_RSA_PKCS_OAEP_PARAMS, CK_RSA_PKCS_PSS_PARAMS, CK_ULONG, CKD_NULL, CKZ_DATA_SPECIFIED,
};

use crate::{
    pointer::{mechanism_parameter, nested_bytes, parameter_struct},
    rv::Failure,
};

/// The limit for a parameter and for each buffer of a parameter. Valid ones are much shorter.
const MAX: CK_ULONG = 64 * 1024;

/// Reads the parameter of `mechanism`, in the form that `known` needs.
///
/// # Errors
/// MECHANISM_PARAM_INVALID for a structure of the wrong size, a null pointer with a length, or an impossible length.
pub(crate) fn read(mechanism: &CK_MECHANISM, known: Mechanism) -> Result<Parameter, Failure> {
    parse(mechanism, known.parameter_type())
        .filter(|parameter| fits(known, parameter))
        .ok_or_else(|| TokenError::MechanismParamInvalid(mechanism.mechanism).into())
}

fn is_absent(mechanism: &CK_MECHANISM) -> bool {
    mechanism.ulParameterLen == 0
}

fn bytes(pointer: *mut u8, len: CK_ULONG) -> Option<Vec<u8>> {
    (len <= MAX).then(|| nested_bytes(pointer, len)).flatten()
}

fn parse(mechanism: &CK_MECHANISM, shape: ParameterType) -> Option<Parameter> {
    match shape {
        ParameterType::None => is_absent(mechanism).then_some(Parameter::None),
        ParameterType::EdDsa if is_absent(mechanism) => Some(Parameter::None),
        ParameterType::WrapIv if is_absent(mechanism) => Some(Parameter::None),
        ParameterType::Iv | ParameterType::WrapIv => {
            let iv = (mechanism.ulParameterLen <= MAX).then(|| mechanism_parameter(mechanism))?;
            iv.ok().map(Parameter::Iv)
        }
        ParameterType::MacLength => {
            parameter_struct::<CK_ULONG>(mechanism).map(Parameter::MacLength)
        }
        ParameterType::Pss => {
            let pss = parameter_struct::<CK_RSA_PKCS_PSS_PARAMS>(mechanism)?;
            Some(Parameter::Pss(pss.hashAlg, pss.mgf, pss.sLen))
        }
        ParameterType::Oaep => oaep(&parameter_struct(mechanism)?),
        ParameterType::EdDsa => {
            let eddsa = parameter_struct::<CK_EDDSA_PARAMS>(mechanism)?;
            Some(Parameter::EdDsa(
                eddsa.phFlag != 0,
                eddsa.ulContextDataLen != 0,
            ))
        }
        ParameterType::Ecdh => ecdh(&parameter_struct(mechanism)?),
        ParameterType::Counter => {
            let counter = parameter_struct::<CK_AES_CTR_PARAMS>(mechanism)?;
            Some(Parameter::Counter(counter.ulCounterBits, counter.cb))
        }
        ParameterType::Gcm => gcm(&parameter_struct(mechanism)?),
    }
}

fn oaep(oaep: &CK_RSA_PKCS_OAEP_PARAMS) -> Option<Parameter> {
    // Source 0 means an empty label (PKCS #11 3.1, 6.1.7).
    let label = match oaep.source {
        CKZ_DATA_SPECIFIED => bytes(oaep.pSourceData.cast(), oaep.ulSourceDataLen)?,
        0 if oaep.ulSourceDataLen == 0 => Vec::new(),
        _ => return None,
    };
    Some(Parameter::Oaep(oaep.hashAlg, oaep.mgf, label))
}

fn ecdh(ecdh: &CK_ECDH1_DERIVE_PARAMS) -> Option<Parameter> {
    let shared = bytes(ecdh.pSharedData, ecdh.ulSharedDataLen)?;
    if ecdh.kdf == CKD_NULL && !shared.is_empty() {
        return None;
    }
    let public = bytes(ecdh.pPublicData, ecdh.ulPublicDataLen)?;
    Some(Parameter::Ecdh(ecdh.kdf, shared, public))
}

fn gcm(gcm: &CK_GCM_PARAMS) -> Option<Parameter> {
    let iv = bytes(gcm.pIv, gcm.ulIvLen)?;
    let aad = bytes(gcm.pAAD, gcm.ulAADLen)?;
    Some(Parameter::Gcm(iv, aad, gcm.ulTagBits))
}

/// Returns whether the lengths in the parameter are allowed by the mechanism.
fn fits(known: Mechanism, parameter: &Parameter) -> bool {
    match (known.scheme, parameter) {
        (Scheme::AesCbc { .. }, Parameter::Iv(iv)) => iv.len() == 16,
        _ => true,
    }
}
