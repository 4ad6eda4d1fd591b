//! Verification of signatures and MACs on the host.

use claviger_apdu::Secret;
use cryptoki_sys::{CKA_VERIFY, CKA_VERIFY_RECOVER, CKF_VERIFY, CKF_VERIFY_RECOVER};
use subtle::ConstantTimeEq;

use super::{
    check_use, expect_none,
    sign::{MessageBuffer, mac, pss, pure_eddsa},
};
use crate::{
    algorithm::{KeyAlgorithm, PublicKey},
    error::TokenError,
    host::mac::Mac,
    mechanism::{Mechanism, Parameter, Scheme},
    object::{Key, Object, SecretKey},
    padding::{self, Pss},
};

/// An operation begun by C_VerifyInit, C_VerifyRecoverInit, C_MessageVerifyInit or C_VerifySignatureInit.
pub struct VerifyOperation {
    mechanism: Mechanism,
    verifying: Verifying,
}

#[allow(
    clippy::large_enum_variant,
    reason = "there is one per operation: not worth an allocation"
)]
enum Verifying {
    Public(Box<PublicKey>, Option<Pss>, MessageBuffer),
    Mac(SecretKey, usize, Mac),
}

impl VerifyOperation {
    /// Begins a verification with the key of `object`. `recover` is true for C_VerifyRecoverInit.
    ///
    /// # Errors
    /// An error if the mechanism does not verify, its parameter is invalid, or it does not fit the key.
    pub fn new(
        mechanism: Mechanism,
        parameter: &Parameter,
        object: &Object,
        recover: bool,
    ) -> Result<Self, TokenError> {
        let key = if recover {
            check_use(mechanism, object, CKF_VERIFY_RECOVER, CKA_VERIFY_RECOVER)?
        } else {
            check_use(mechanism, object, CKF_VERIFY, CKA_VERIFY)?
        };
        let verifying = match key {
            Key::Public(key) => {
                let pss = salt(mechanism, parameter, key)?;
                Verifying::Public(key.clone(), pss, MessageBuffer::new(mechanism.hash))
            }
            Key::Secret(key) => {
                let (len, mac) = mac(mechanism, parameter, key)?;
                Verifying::Mac(key.clone(), len, mac)
            }
            Key::Private(_) => return Err(TokenError::KeyTypeInconsistent(mechanism.kind)),
        };
        Ok(Self {
            mechanism,
            verifying,
        })
    }

    /// Returns the length of a signature in bytes.
    #[must_use]
    pub fn signature_len(&self) -> usize {
        match &self.verifying {
            Verifying::Public(key, ..) => key.algorithm().signature_len(),
            Verifying::Mac(_, len, _) => *len,
        }
    }

    /// Adds the next part of the message.
    ///
    /// # Errors
    /// [`TokenError::DataLength`] if a message that must be kept whole becomes too long.
    pub fn update(&mut self, part: &[u8]) -> Result<(), TokenError> {
        match &mut self.verifying {
            Verifying::Public(_, _, message) => message.update(part),
            Verifying::Mac(_, _, mac) => {
                mac.update(part);
                Ok(())
            }
        }
    }

    /// Verifies `signature` over the message so far, and begins the next message.
    ///
    /// # Errors
    /// [`TokenError::SignatureLength`], [`TokenError::SignatureInvalid`], or [`TokenError::DataLength`] if a message of
    /// this length cannot have been signed.
    pub fn verify(&mut self, signature: &[u8]) -> Result<(), TokenError> {
        let len = self.signature_len();
        let is_long = signature.len() == len;
        let is_right = match &mut self.verifying {
            Verifying::Mac(key, _, mac) => {
                let Some(hash) = self.mechanism.hash else {
                    return Err(TokenError::MechanismInvalid(self.mechanism.kind));
                };
                let whole = std::mem::replace(mac, Mac::new(hash, &key.value));
                is_long && whole.matches(signature)
            }
            Verifying::Public(key, pss, message) => {
                let message = message.take();
                check_length(self.mechanism, key, pss.as_ref(), &message)?;
                is_long && is_signature(self.mechanism, key, *pss, &message, signature)
            }
        };
        match (is_long, is_right) {
            (false, _) => Err(TokenError::SignatureLength {
                len: signature.len(),
                expected: len,
            }),
            (true, false) => Err(TokenError::SignatureInvalid),
            (true, true) => Ok(()),
        }
    }

    /// Returns the signed data, recovered from its signature.
    ///
    /// # Errors
    /// As [`VerifyOperation::verify`].
    pub fn recover(&self, signature: &[u8]) -> Result<Vec<u8>, TokenError> {
        let len = self.signature_len();
        if signature.len() != len {
            return Err(TokenError::SignatureLength {
                len: signature.len(),
                expected: len,
            });
        }
        let Verifying::Public(key, ..) = &self.verifying else {
            return Err(TokenError::SignatureInvalid);
        };
        let block = key.rsa_raw(signature).ok_or(TokenError::SignatureInvalid)?;
        match self.mechanism.scheme {
            Scheme::RsaPkcs1 => padding::pkcs1_recover(&block)
                .map(<[u8]>::to_vec)
                .ok_or(TokenError::SignatureInvalid),
            _ => Ok(block),
        }
    }
}

fn salt(
    mechanism: Mechanism,
    parameter: &Parameter,
    key: &PublicKey,
) -> Result<Option<Pss>, TokenError> {
    match (mechanism.scheme, key.algorithm()) {
        (Scheme::RsaPss, KeyAlgorithm::Rsa { bits }) => pss(mechanism, parameter, bits).map(Some),
        (Scheme::EdDsa, _) => pure_eddsa(mechanism, parameter).map(|()| None),
        _ => expect_none(mechanism, parameter).map(|()| None),
    }
}

/// Checks the length of the message: some mechanisms have a maximum, others one exact length.
fn check_length(
    mechanism: Mechanism,
    key: &PublicKey,
    pss: Option<&Pss>,
    message: &Secret,
) -> Result<(), TokenError> {
    let modulus_len = key.algorithm().signature_len();
    let len = message.len();
    let (fits, max) = match (mechanism.scheme, pss) {
        (Scheme::RsaPss, Some(pss)) => (len == pss.hash.len(), pss.hash.len()),
        (Scheme::RsaPkcs1, _) if mechanism.hash.is_none() => {
            let max = modulus_len.saturating_sub(11);
            (len <= max, max)
        }
        (Scheme::RsaRaw, _) => (len <= modulus_len, modulus_len),
        (Scheme::Ecdsa, _) => (len > 0, super::MAX_MESSAGE),
        _ => (true, 0),
    };
    if fits {
        Ok(())
    } else {
        Err(TokenError::DataLength { len, max })
    }
}

fn is_signature(
    mechanism: Mechanism,
    key: &PublicKey,
    pss: Option<Pss>,
    message: &Secret,
    signature: &[u8],
) -> bool {
    let message = message.expose();
    let algorithm = key.algorithm();
    match (mechanism.scheme, algorithm) {
        (Scheme::Ecdsa, _) => key.verify_ecdsa(message, signature),
        (Scheme::EdDsa, _) => key.verify_eddsa(message, signature),
        (scheme, KeyAlgorithm::Rsa { bits }) => {
            let Some(block) = key.rsa_raw(signature) else {
                return false;
            };
            let expected = match (scheme, mechanism.hash, pss) {
                (Scheme::RsaPss, _, Some(pss)) => {
                    return padding::pss_verify(message, &block, pss, usize::from(bits));
                }
                (Scheme::RsaPkcs1, Some(hash), _) => {
                    let info = padding::digest_info(hash, message);
                    padding::pkcs1_sign(info.expose(), block.len())
                }
                (Scheme::RsaPkcs1, None, _) => padding::pkcs1_sign(message, block.len()),
                (Scheme::RsaRaw, ..) => left_padded(message, block.len()),
                _ => None,
            };
            expected.is_some_and(|expected| bool::from(expected.expose().ct_eq(&block)))
        }
        _ => false,
    }
}

fn left_padded(message: &[u8], len: usize) -> Option<Secret> {
    let mut block = Secret::new(Vec::with_capacity(len));
    block.extend(&vec![0; len.checked_sub(message.len())?]);
    block.extend(message);
    Some(block)
}

impl std::fmt::Debug for VerifyOperation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VerifyOperation")
            .field("mechanism", &self.mechanism)
            .finish_non_exhaustive()
    }
}
