//! Signature and MAC operations.

use claviger_apdu::Secret;
use cryptoki_sys::{CKA_MODULUS, CKA_SIGN, CKA_SIGN_RECOVER, CKF_SIGN, CKF_SIGN_RECOVER};

use super::{KeyInput, MAX_MESSAGE, append_message, check_use, expect_none};
use crate::{
    algorithm::KeyAlgorithm,
    attribute::Value,
    digest::Hasher,
    error::TokenError,
    host::mac::Mac,
    mechanism::{Hash, Mechanism, Parameter, Scheme},
    object::{Key, Object, ObjectId, PinPolicy, PrivateKey, SecretKey},
    padding::{self, Pss},
};

/// An operation begun by C_SignInit, C_SignRecoverInit or C_MessageSignInit.
pub struct SignOperation {
    /// The identity of the key's object. It finds the key even after the objects were read again.
    pub object: ObjectId,
    /// The PIN of the context login for this one signature.
    pub context_pin: Option<Secret>,
    mechanism: Mechanism,
    signing: Signing,
}

/// The signing key, and the message so far.
#[allow(
    clippy::large_enum_variant,
    reason = "there is one per operation: not worth an allocation"
)]
enum Signing {
    Card(PrivateKey, InputEncoding, MessageBuffer),
    Host(SecretKey, usize, Mac),
}

/// How the host encodes the input for the card.
enum InputEncoding {
    Pkcs1,
    /// The number must be below this modulus.
    Raw(Vec<u8>),
    Pss(Pss),
    Ecdsa,
    EdDsa,
}

/// A message: either kept whole or hashed part by part.
#[allow(
    clippy::large_enum_variant,
    reason = "there is one per signature: not worth an allocation"
)]
pub(super) enum MessageBuffer {
    Whole(Secret),
    Hashed(Hasher),
}

impl MessageBuffer {
    pub(super) fn new(hash: Option<Hash>) -> Self {
        hash.map_or_else(
            || Self::Whole(Secret::default()),
            |hash| Self::Hashed(Hasher::new(hash)),
        )
    }

    pub(super) fn update(&mut self, part: &[u8]) -> Result<(), TokenError> {
        match self {
            Self::Whole(message) => append_message(message, part),
            Self::Hashed(hasher) => {
                hasher.update(part);
                Ok(())
            }
        }
    }

    /// Returns the message or its hash, and begins a new message of the same kind.
    pub(super) fn take(&mut self) -> Secret {
        match self {
            Self::Whole(message) => std::mem::take(message),
            Self::Hashed(hasher) => {
                let fresh = Hasher::new(hasher.hash());
                std::mem::replace(hasher, fresh).finish()
            }
        }
    }
}

/// Returns the parameter of PSS, checked against the mechanism and the key (RFC 8017, 9.1.1).
pub(super) fn pss(
    mechanism: Mechanism,
    parameter: &Parameter,
    bits: u16,
) -> Result<Pss, TokenError> {
    let bad = || super::bad_parameter(mechanism);
    let Parameter::Pss(hash, mgf, salt_len) = parameter else {
        return Err(bad());
    };
    let hash = Hash::from_mechanism(*hash).ok_or_else(bad)?;
    let mgf = Hash::from_mgf(*mgf).ok_or_else(bad)?;
    let salt_len = usize::try_from(*salt_len).map_err(|_| bad())?;
    let most = usize::from(bits)
        .saturating_sub(1)
        .div_ceil(8)
        .checked_sub(2 + hash.len())
        .ok_or_else(bad)?;
    if mechanism.hash.is_some_and(|own| own != hash) || salt_len > most {
        return Err(bad());
    }
    Ok(Pss {
        hash,
        mgf,
        salt_len,
    })
}

/// Checks the parameter of EdDSA: there is none, or it asks for pure Ed25519.
pub(super) fn pure_eddsa(mechanism: Mechanism, parameter: &Parameter) -> Result<(), TokenError> {
    match parameter {
        Parameter::None | Parameter::EdDsa(false, false) => Ok(()),
        _ => Err(super::bad_parameter(mechanism)),
    }
}

/// Returns the length of a MAC: that of the hash, or the one in the parameter.
pub(super) fn mac_len(
    mechanism: Mechanism,
    hash: Hash,
    parameter: &Parameter,
) -> Result<usize, TokenError> {
    match (mechanism.scheme, parameter) {
        (Scheme::Hmac { truncated: false }, Parameter::None) => Ok(hash.len()),
        (Scheme::Hmac { truncated: true }, Parameter::MacLength(len)) => usize::try_from(*len)
            .ok()
            .filter(|len| (1..=hash.len()).contains(len))
            .ok_or_else(|| super::bad_parameter(mechanism)),
        _ => Err(super::bad_parameter(mechanism)),
    }
}

/// Begins a MAC with a secret key. Returns its length too.
pub(super) fn mac(
    mechanism: Mechanism,
    parameter: &Parameter,
    key: &SecretKey,
) -> Result<(usize, Mac), TokenError> {
    let hash = mechanism
        .hash
        .ok_or(TokenError::MechanismInvalid(mechanism.kind))?;
    let len = mac_len(mechanism, hash, parameter)?;
    Ok((len, Mac::new(hash, &key.value)))
}

impl SignOperation {
    /// Begins a signature with the key of `object`. `recover` is true for C_SignRecoverInit.
    ///
    /// # Errors
    /// An error if the mechanism does not sign, its parameter is invalid, or it does not fit the key.
    pub fn new(
        mechanism: Mechanism,
        parameter: &Parameter,
        object: &Object,
        recover: bool,
    ) -> Result<Self, TokenError> {
        let key = if recover {
            check_use(mechanism, object, CKF_SIGN_RECOVER, CKA_SIGN_RECOVER)?
        } else {
            check_use(mechanism, object, CKF_SIGN, CKA_SIGN)?
        };
        let signing = match key {
            Key::Private(key) => {
                let encoding = encoding_for(mechanism, parameter, key.algorithm, object)?;
                Signing::Card(*key, encoding, MessageBuffer::new(mechanism.hash))
            }
            Key::Secret(key) => {
                let (len, mac) = mac(mechanism, parameter, key)?;
                Signing::Host(key.clone(), len, mac)
            }
            Key::Public(_) => return Err(TokenError::KeyTypeInconsistent(mechanism.kind)),
        };
        Ok(Self {
            object: object.id,
            context_pin: None,
            mechanism,
            signing,
        })
    }

    /// Returns the private key on the card, if the card signs.
    #[must_use]
    pub const fn private_key(&self) -> Option<&PrivateKey> {
        match &self.signing {
            Signing::Card(key, ..) => Some(key),
            Signing::Host(..) => None,
        }
    }

    /// Returns whether the key needs a context login for each use and had none for this signature.
    #[must_use]
    pub fn lacks_context_login(&self) -> bool {
        self.wants_context_login() && self.context_pin.is_none()
    }

    /// Returns whether the key needs a context login for each use.
    #[must_use]
    pub fn wants_context_login(&self) -> bool {
        self.private_key()
            .is_some_and(|key| key.pin == PinPolicy::Always)
    }

    /// Returns the length of the signature in bytes.
    #[must_use]
    pub fn signature_len(&self) -> usize {
        match &self.signing {
            Signing::Card(key, ..) => key.algorithm.signature_len(),
            Signing::Host(_, len, _) => *len,
        }
    }

    /// Adds the next part of the message.
    ///
    /// # Errors
    /// [`TokenError::DataLength`] if a message that must be kept whole becomes too long.
    pub fn update(&mut self, part: &[u8]) -> Result<(), TokenError> {
        match &mut self.signing {
            Signing::Card(_, _, message) => message.update(part),
            Signing::Host(_, _, mac) => {
                mac.update(part);
                Ok(())
            }
        }
    }

    /// Takes the message and returns the key and the input for the card. Returns `None` if the host signs.
    ///
    /// # Errors
    /// [`TokenError::DataLength`] if the input does not fit the key.
    pub fn input(&mut self) -> Result<Option<(PrivateKey, KeyInput)>, TokenError> {
        let Signing::Card(key, encoding, message) = &mut self.signing else {
            return Ok(None);
        };
        let collected = message.take();
        let input = encoding.prepare(key, self.mechanism, collected)?;
        Ok(Some((*key, input)))
    }

    /// Returns the MAC if the host computes it, and begins the next message.
    pub fn mac(&mut self) -> Option<Secret> {
        let hash = self.mechanism.hash?;
        let Signing::Host(key, len, mac) = &mut self.signing else {
            return None;
        };
        let mut whole = std::mem::replace(mac, Mac::new(hash, &key.value)).finish();
        whole.truncate(*len);
        Some(whole)
    }
}

fn encoding_for(
    mechanism: Mechanism,
    parameter: &Parameter,
    algorithm: KeyAlgorithm,
    object: &Object,
) -> Result<InputEncoding, TokenError> {
    match (mechanism.scheme, algorithm) {
        (Scheme::RsaPss, KeyAlgorithm::Rsa { bits }) => {
            return Ok(InputEncoding::Pss(pss(mechanism, parameter, bits)?));
        }
        (Scheme::EdDsa, _) => {
            pure_eddsa(mechanism, parameter)?;
            return Ok(InputEncoding::EdDsa);
        }
        _ => expect_none(mechanism, parameter)?,
    }
    match mechanism.scheme {
        Scheme::RsaPkcs1 => Ok(InputEncoding::Pkcs1),
        Scheme::RsaRaw => Ok(InputEncoding::Raw(match object.get(CKA_MODULUS) {
            Some(Value::Bytes(modulus)) => modulus.clone(),
            _ => Vec::new(),
        })),
        Scheme::Ecdsa => Ok(InputEncoding::Ecdsa),
        _ => Err(TokenError::MechanismInvalid(mechanism.kind)),
    }
}

impl InputEncoding {
    fn prepare(
        &self,
        key: &PrivateKey,
        mechanism: Mechanism,
        collected: Secret,
    ) -> Result<KeyInput, TokenError> {
        let modulus_len = key.algorithm.signature_len();
        let too_long = |len, max| Err(TokenError::DataLength { len, max });
        match self {
            Self::EdDsa => Ok(KeyInput::Message(collected)),
            Self::Ecdsa if collected.is_empty() => too_long(0, MAX_MESSAGE),
            Self::Ecdsa => Ok(KeyInput::Hash(collected)),
            Self::Pkcs1 => {
                let info = match mechanism.hash {
                    Some(hash) => padding::digest_info(hash, collected.expose()),
                    None => collected,
                };
                // RFC 8017, 9.2: at least eight bytes of FF, and three bytes of frame.
                let max = modulus_len.saturating_sub(11);
                if info.len() > max {
                    return too_long(info.len(), max);
                }
                Ok(KeyInput::Pkcs1(info))
            }
            Self::Raw(_) if collected.len() > modulus_len => too_long(collected.len(), modulus_len),
            Self::Raw(modulus) => {
                let mut block = Secret::new(Vec::with_capacity(modulus_len));
                block.extend(&vec![0; modulus_len - collected.len()]);
                block.extend(collected.expose());
                if block.expose() >= modulus.as_slice() {
                    return Err(TokenError::DataInvalid);
                }
                Ok(KeyInput::Block(block))
            }
            Self::Pss(pss) => {
                let KeyAlgorithm::Rsa { bits } = key.algorithm else {
                    return Err(TokenError::KeyTypeInconsistent(mechanism.kind));
                };
                if collected.len() != pss.hash.len() {
                    return too_long(collected.len(), pss.hash.len());
                }
                let block = padding::pss_encode(collected.expose(), *pss, usize::from(bits))?;
                Ok(KeyInput::Block(block))
            }
        }
    }
}

impl std::fmt::Debug for SignOperation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignOperation")
            .field("key", &self.private_key())
            .field("mechanism", &self.mechanism)
            .finish_non_exhaustive()
    }
}
