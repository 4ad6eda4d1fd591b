//! A signature or MAC in the making.

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

/// A signature begun by C_SignInit, C_SignRecoverInit or C_MessageSignInit.
pub struct SignOperation {
    /// The object of the key; a lookup under it finds the key even when objects were read again.
    pub object: ObjectId,
    /// The PIN given for this one signature by CKU_CONTEXT_SPECIFIC.
    pub context_pin: Option<Secret>,
    mechanism: Mechanism,
    way: Signing,
}

/// Who signs, and what is collected until then.
#[allow(
    clippy::large_enum_variant,
    reason = "one an operation: not worth an allocation"
)]
enum Signing {
    Card(PrivateKey, InputEncoding, MessageBuffer),
    Host(SecretKey, usize, Mac),
}

/// How the host prepares what the card signs.
enum InputEncoding {
    Pkcs1,
    /// Under this modulus.
    Raw(Vec<u8>),
    Pss(Pss),
    Ecdsa,
    EdDsa,
}

/// A message, whole or hashed as it comes.
#[allow(
    clippy::large_enum_variant,
    reason = "one a signature: not worth an allocation"
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

    /// The message or its hash; a new one of the same kind begins.
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

/// The parameter of PSS, held to the mechanism and the key (RFC 8017, 9.1.1).
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

/// The parameter of EdDSA: none, or one that asks for pure Ed25519.
pub(super) fn pure_eddsa(mechanism: Mechanism, parameter: &Parameter) -> Result<(), TokenError> {
    match parameter {
        Parameter::None | Parameter::EdDsa(false, false) => Ok(()),
        _ => Err(super::bad_parameter(mechanism)),
    }
}

/// Length of a MAC: the hash's, or what the parameter says.
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

/// A MAC begun by a secret key.
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
    /// Begins a signature with the key `object`; `recover` for C_SignRecoverInit.
    ///
    /// # Errors
    /// When the mechanism is not one of signing, its parameter is wrong, or it does not go with the key.
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
        let way = match key {
            Key::Private(key) => {
                let how = encoding_for(mechanism, parameter, key.algorithm, object)?;
                Signing::Card(*key, how, MessageBuffer::new(mechanism.hash))
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
            way,
        })
    }

    /// The private key on the card that signs, if one does.
    #[must_use]
    pub const fn private_key(&self) -> Option<&PrivateKey> {
        match &self.way {
            Signing::Card(key, ..) => Some(key),
            Signing::Host(..) => None,
        }
    }

    /// Whether the key wants its PIN each time and it has not been given for this signature.
    #[must_use]
    pub fn lacks_context_login(&self) -> bool {
        self.wants_context_login() && self.context_pin.is_none()
    }

    /// Whether the key wants its PIN each time.
    #[must_use]
    pub fn wants_context_login(&self) -> bool {
        self.private_key()
            .is_some_and(|key| key.pin == PinPolicy::Always)
    }

    /// Length of the signature in bytes.
    #[must_use]
    pub fn signature_len(&self) -> usize {
        match &self.way {
            Signing::Card(key, ..) => key.algorithm.signature_len(),
            Signing::Host(_, len, _) => *len,
        }
    }

    /// Takes the next part of the message.
    ///
    /// # Errors
    /// [`TokenError::DataLength`] when what must be held whole grows too long.
    pub fn update(&mut self, part: &[u8]) -> Result<(), TokenError> {
        match &mut self.way {
            Signing::Card(_, _, message) => message.update(part),
            Signing::Host(_, _, mac) => {
                mac.update(part);
                Ok(())
            }
        }
    }

    /// What the card is to sign, with which key; `None` when the host does. The message is then used up.
    ///
    /// # Errors
    /// [`TokenError::DataLength`] when the input does not fit the key.
    pub fn input(&mut self) -> Result<Option<(PrivateKey, KeyInput)>, TokenError> {
        let Signing::Card(key, how, message) = &mut self.way else {
            return Ok(None);
        };
        let collected = message.take();
        let input = how.prepare(key, self.mechanism, collected)?;
        Ok(Some((*key, input)))
    }

    /// The MAC, when the host makes it; the next message may begin.
    pub fn mac(&mut self) -> Option<Secret> {
        let hash = self.mechanism.hash?;
        let Signing::Host(key, len, mac) = &mut self.way else {
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
                // RFC 8017, 9.2: eight bytes of FF at least, and three of frame.
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
