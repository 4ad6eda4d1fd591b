//! Decryption, on the host or with a key of the card.

use claviger_apdu::Secret;
use cryptoki_sys::CKA_MODULUS;

use super::{
    KeyInput, check_use,
    cipher::{CipherOperation, CipherStream, Purpose, RsaPadding},
};
use crate::{
    attribute::Value,
    error::TokenError,
    host::cipher::{CipherError, Direction},
    mechanism::{Mechanism, Parameter},
    object::{Key, Object, ObjectId, PinPolicy, PrivateKey},
    padding::{self, ImplicitRejection},
};

/// An operation begun by C_DecryptInit.
pub struct DecryptOperation {
    /// The identity of the key's object.
    pub object: ObjectId,
    /// The PIN of the context login for this one decryption.
    pub context_pin: Option<Secret>,
    way: Decrypting,
}

enum Decrypting {
    Card {
        key: PrivateKey,
        padding: RsaPadding,
        modulus: Vec<u8>,
        cryptogram: Secret,
    },
    Secret(CipherStream),
}

impl DecryptOperation {
    /// Begins a decryption with the key of `object`.
    ///
    /// # Errors
    /// An error if the mechanism does not decrypt, its parameter is invalid, or it does not fit the key.
    pub fn new(
        mechanism: Mechanism,
        parameter: &Parameter,
        object: &Object,
        purpose: Purpose,
    ) -> Result<Self, TokenError> {
        let (function, permission) = purpose.decrypting();
        let way = match check_use(mechanism, object, function, permission)? {
            Key::Private(key) => Decrypting::Card {
                padding: RsaPadding::new(mechanism, parameter, key.algorithm.signature_len())?,
                key: *key,
                modulus: match object.get(CKA_MODULUS) {
                    Some(Value::Bytes(modulus)) => modulus.clone(),
                    _ => Vec::new(),
                },
                cryptogram: Secret::default(),
            },
            Key::Secret(key) => {
                let stream = CipherStream::new(mechanism, parameter, key, Direction::Decrypt)?;
                Decrypting::Secret(stream)
            }
            Key::Public(_) => return Err(TokenError::KeyTypeInconsistent(mechanism.kind)),
        };
        Ok(Self {
            object: object.id,
            context_pin: None,
            way,
        })
    }

    /// Returns the private key on the card, if the card decrypts.
    #[must_use]
    pub const fn private_key(&self) -> Option<&PrivateKey> {
        match &self.way {
            Decrypting::Card { key, .. } => Some(key),
            Decrypting::Secret(_) => None,
        }
    }

    /// Returns whether the key needs a context login for each use.
    #[must_use]
    pub fn wants_context_login(&self) -> bool {
        self.private_key()
            .is_some_and(|key| key.pin == PinPolicy::Always)
    }

    /// Returns whether the key needs a context login for each use and had none for this decryption.
    #[must_use]
    pub fn lacks_context_login(&self) -> bool {
        self.wants_context_login() && self.context_pin.is_none()
    }

    /// Returns the key and the input for the card. Returns `None` if the host decrypts.
    ///
    /// # Errors
    /// [`TokenError::EncryptedDataLength`] unless the input is as long as the modulus;
    /// [`TokenError::EncryptedDataInvalid`] unless it is below the modulus.
    pub fn input(&self) -> Result<Option<(PrivateKey, KeyInput)>, TokenError> {
        let Decrypting::Card {
            key,
            cryptogram,
            modulus,
            ..
        } = &self.way
        else {
            return Ok(None);
        };
        if cryptogram.len() != key.algorithm.signature_len() {
            return Err(TokenError::EncryptedDataLength {
                len: cryptogram.len(),
            });
        }
        // A number that is not below the modulus is not a ciphertext. Both are public and have the same length.
        if cryptogram.expose() >= modulus.as_slice() {
            return Err(TokenError::EncryptedDataInvalid);
        }
        Ok(Some((*key, KeyInput::Cryptogram(cryptogram.duplicate()))))
    }

    /// Returns the plaintext in the card's output. The output is the raw RSA result if the host unpads, otherwise the
    /// message.
    ///
    /// # Errors
    /// [`TokenError::EncryptedDataInvalid`], [`TokenError::Malformed`].
    pub fn plaintext(&self, output: Secret) -> Result<Secret, TokenError> {
        let Decrypting::Card {
            key,
            padding,
            modulus,
            cryptogram,
        } = &self.way
        else {
            return Ok(output);
        };
        if !key.raw_rsa {
            return Ok(output);
        }
        match padding {
            RsaPadding::None => Ok(output),
            RsaPadding::Pkcs1 => {
                let rejection = ImplicitRejection::new(modulus, cryptogram.expose())?;
                Ok(padding::pkcs1_decrypt(&output, &rejection))
            }
            RsaPadding::Oaep(oaep) => padding::oaep_decrypt(&output, &oaep.as_oaep())
                .ok_or(TokenError::EncryptedDataInvalid),
        }
    }
}

impl CipherOperation for DecryptOperation {
    fn single_len(&self, len: usize) -> usize {
        match &self.way {
            Decrypting::Card { key, padding, .. } => padding.max_len(key.algorithm.signature_len()),
            Decrypting::Secret(stream) => stream.single_len(len),
        }
    }

    fn single(&self, data: &[u8]) -> Result<Option<Secret>, TokenError> {
        match &self.way {
            Decrypting::Card { .. } => Ok(None),
            Decrypting::Secret(stream) => stream
                .single(data)
                .map(Some)
                .map_err(|fault| decrypting(fault, data.len())),
        }
    }

    fn update_len(&self, part: usize) -> usize {
        match &self.way {
            Decrypting::Card { .. } => 0,
            Decrypting::Secret(stream) => stream.update_len(part),
        }
    }

    fn update(&mut self, part: &[u8]) -> Result<Secret, TokenError> {
        match &mut self.way {
            Decrypting::Card {
                key, cryptogram, ..
            } => {
                let len = cryptogram.len().saturating_add(part.len());
                if len > key.algorithm.signature_len() {
                    return Err(TokenError::EncryptedDataLength { len });
                }
                cryptogram.extend(part);
                Ok(Secret::default())
            }
            Decrypting::Secret(stream) => stream
                .update(part)
                .map_err(|fault| decrypting(fault, part.len())),
        }
    }

    fn finish_len(&self) -> usize {
        match &self.way {
            Decrypting::Card { .. } => self.single_len(0),
            Decrypting::Secret(stream) => stream.finish_len(),
        }
    }

    fn finish(&mut self) -> Result<Option<Secret>, TokenError> {
        match &mut self.way {
            Decrypting::Card { .. } => Ok(None),
            Decrypting::Secret(stream) => stream
                .finish()
                .map(Some)
                .map_err(|fault| decrypting(fault, 0)),
        }
    }
}

const fn decrypting(fault: CipherError, len: usize) -> TokenError {
    match fault {
        CipherError::Length | CipherError::TooLong => TokenError::EncryptedDataLength { len },
        CipherError::Padding => TokenError::EncryptedDataInvalid,
        CipherError::Tag => TokenError::AuthenticationTag,
    }
}

impl std::fmt::Debug for DecryptOperation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DecryptOperation")
            .field("key", &self.private_key())
            .finish_non_exhaustive()
    }
}
