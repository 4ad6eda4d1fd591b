//! Encryption on the host, and the parts that decryption shares.

use claviger_apdu::Secret;
use cryptoki_sys::{
    CK_ATTRIBUTE_TYPE, CK_FLAGS, CKA_DECRYPT, CKA_ENCRYPT, CKA_UNWRAP, CKA_WRAP, CKF_DECRYPT,
    CKF_ENCRYPT, CKF_UNWRAP, CKF_WRAP,
};

use super::{append_message, bad_parameter, check_use, expect_none};
use crate::{
    algorithm::PublicKey,
    error::TokenError,
    host::cipher::{Cipher, CipherError, Direction, Mode},
    mechanism::{Hash, Mechanism, Parameter, Scheme},
    object::{Key, Object, SecretKey},
    padding::{self, Oaep},
};

/// A cipher with a secret key, for encryption or decryption.
pub(super) struct CipherStream {
    mode: Mode,
    key: SecretKey,
    direction: Direction,
    cipher: Option<Box<Cipher>>,
}

impl CipherStream {
    pub(super) fn new(
        mechanism: Mechanism,
        parameter: &Parameter,
        key: &SecretKey,
        direction: Direction,
    ) -> Result<Self, TokenError> {
        let mode = mode(mechanism, parameter)?;
        let cipher = Cipher::new(&mode, &key.value, direction);
        Ok(Self {
            cipher: Some(Box::new(cipher.ok_or_else(|| bad_parameter(mechanism))?)),
            mode,
            key: key.clone(),
            direction,
        })
    }

    /// Returns an upper bound for the output of `len` bytes of input.
    pub(super) fn single_len(&self, len: usize) -> usize {
        match (&self.mode, self.direction) {
            (Mode::CbcPad { .. }, Direction::Encrypt) => {
                (len / 16).saturating_add(1).saturating_mul(16)
            }
            (Mode::Gcm { tag_bits, .. }, Direction::Encrypt) => len.saturating_add(tag_bits / 8),
            (Mode::Gcm { tag_bits, .. }, Direction::Decrypt) => len.saturating_sub(tag_bits / 8),
            _ => len,
        }
    }

    /// Processes `data` at once. A message in parts that is in progress is not affected.
    pub(super) fn single(&self, data: &[u8]) -> Result<Secret, CipherError> {
        let mut cipher =
            Cipher::new(&self.mode, &self.key.value, self.direction).ok_or(CipherError::Length)?;
        let mut output = cipher.update(data)?;
        output.extend(cipher.finish()?.expose());
        Ok(output)
    }

    pub(super) fn update_len(&self, part: usize) -> usize {
        self.cipher
            .as_ref()
            .map_or(0, |cipher| cipher.update_len(part))
    }

    pub(super) fn update(&mut self, part: &[u8]) -> Result<Secret, CipherError> {
        self.cipher
            .as_mut()
            .map_or(Ok(Secret::default()), |cipher| cipher.update(part))
    }

    pub(super) fn finish_len(&self) -> usize {
        self.cipher.as_ref().map_or(0, |cipher| cipher.finish_len())
    }

    pub(super) fn finish(&mut self) -> Result<Secret, CipherError> {
        self.cipher
            .take()
            .map_or(Ok(Secret::default()), |cipher| cipher.finish())
    }
}

fn mode(mechanism: Mechanism, parameter: &Parameter) -> Result<Mode, TokenError> {
    let bad = || bad_parameter(mechanism);
    match (mechanism.scheme, parameter) {
        (Scheme::AesEcb, Parameter::None) => Ok(Mode::Ecb),
        (Scheme::AesCbc { padded }, Parameter::Iv(iv)) => {
            let iv = iv.as_slice().try_into().map_err(|_| bad())?;
            Ok(if padded {
                Mode::CbcPad { iv }
            } else {
                Mode::Cbc { iv }
            })
        }
        (Scheme::AesCtr, Parameter::Counter(bits, block)) => Ok(Mode::Ctr {
            bits: usize::try_from(*bits).map_err(|_| bad())?,
            block: *block,
        }),
        (Scheme::AesGcm, Parameter::Gcm(iv, aad, tag_bits)) => Ok(Mode::Gcm {
            iv: iv.clone(),
            aad: aad.clone(),
            tag_bits: usize::try_from(*tag_bits).map_err(|_| bad())?,
        }),
        _ => Err(bad()),
    }
}

/// The parameter of OAEP.
pub(super) struct OaepParameter {
    hash: Hash,
    mgf: Hash,
    label: Vec<u8>,
}

impl OaepParameter {
    fn new(
        mechanism: Mechanism,
        parameter: &Parameter,
        key_len: usize,
    ) -> Result<Self, TokenError> {
        let bad = || bad_parameter(mechanism);
        let Parameter::Oaep(hash, mgf, label) = parameter else {
            return Err(bad());
        };
        let hash = Hash::from_mechanism(*hash).ok_or_else(bad)?;
        if key_len < 2 * hash.len() + 2 {
            return Err(bad());
        }
        Ok(Self {
            hash,
            mgf: Hash::from_mgf(*mgf).ok_or_else(bad)?,
            label: label.clone(),
        })
    }

    pub(super) fn as_oaep(&self) -> Oaep<'_> {
        Oaep {
            hash: self.hash,
            mgf: self.mgf,
            label: &self.label,
        }
    }
}

/// A padding of RSA encryption.
pub(super) enum RsaPadding {
    Pkcs1,
    Oaep(OaepParameter),
    None,
}

impl RsaPadding {
    pub(super) fn new(
        mechanism: Mechanism,
        parameter: &Parameter,
        key_len: usize,
    ) -> Result<Self, TokenError> {
        match mechanism.scheme {
            Scheme::RsaOaep => OaepParameter::new(mechanism, parameter, key_len).map(Self::Oaep),
            Scheme::RsaPkcs1 => expect_none(mechanism, parameter).map(|()| Self::Pkcs1),
            Scheme::RsaRaw => expect_none(mechanism, parameter).map(|()| Self::None),
            _ => Err(TokenError::MechanismInvalid(mechanism.kind)),
        }
    }

    /// Returns the length of the longest plaintext under a modulus of `key_len` bytes.
    pub(super) fn max_len(&self, key_len: usize) -> usize {
        match self {
            Self::Pkcs1 => key_len.saturating_sub(11),
            Self::Oaep(oaep) => key_len.saturating_sub(2 * oaep.hash.len() + 2),
            Self::None => key_len,
        }
    }
}

/// Whether a key encrypts data or another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// C_Encrypt, C_Decrypt.
    Data,
    /// C_WrapKey, C_UnwrapKey.
    Key,
}

impl Purpose {
    const fn encrypting(self) -> (CK_FLAGS, CK_ATTRIBUTE_TYPE) {
        match self {
            Self::Data => (CKF_ENCRYPT, CKA_ENCRYPT),
            Self::Key => (CKF_WRAP, CKA_WRAP),
        }
    }

    pub(super) const fn decrypting(self) -> (CK_FLAGS, CK_ATTRIBUTE_TYPE) {
        match self {
            Self::Data => (CKF_DECRYPT, CKA_DECRYPT),
            Self::Key => (CKF_UNWRAP, CKA_UNWRAP),
        }
    }
}

/// Encryption or decryption, in one part or in several.
pub trait CipherOperation {
    /// Returns an upper bound for the output of `len` bytes of input.
    #[must_use]
    fn single_len(&self, len: usize) -> usize;

    /// Does the whole operation on `data` at once. Returns `None` if the card must do it.
    ///
    /// # Errors
    /// An encryption gives [`TokenError::DataLength`] or [`TokenError::DataInvalid`]. A decryption gives
    /// [`TokenError::EncryptedDataLength`], [`TokenError::EncryptedDataInvalid`] or [`TokenError::AuthenticationTag`].
    fn single(&self, data: &[u8]) -> Result<Option<Secret>, TokenError>;

    /// Returns the length of [`CipherOperation::update`]'s output for `part` bytes.
    #[must_use]
    fn update_len(&self, part: usize) -> usize;

    /// Adds the next part of the input. Returns the output that is available so far.
    ///
    /// # Errors
    /// [`TokenError::DataLength`], or [`TokenError::EncryptedDataLength`].
    fn update(&mut self, part: &[u8]) -> Result<Secret, TokenError>;

    /// Returns an upper bound for the rest of the output.
    #[must_use]
    fn finish_len(&self) -> usize;

    /// Ends the input and returns the rest of the output. Returns `None` if the card must do the operation.
    ///
    /// # Errors
    /// As [`CipherOperation::single`].
    fn finish(&mut self) -> Result<Option<Secret>, TokenError>;
}

/// An encryption begun by C_EncryptInit.
pub struct EncryptOperation(Encrypting);

enum Encrypting {
    Rsa(Box<PublicKey>, RsaPadding, Secret),
    Secret(CipherStream),
}

impl EncryptOperation {
    /// Begins an encryption with the key of `object`.
    ///
    /// # Errors
    /// An error if the mechanism does not encrypt, its parameter is invalid, or it does not fit the key.
    pub fn new(
        mechanism: Mechanism,
        parameter: &Parameter,
        object: &Object,
        purpose: Purpose,
    ) -> Result<Self, TokenError> {
        let (function, permission) = purpose.encrypting();
        match check_use(mechanism, object, function, permission)? {
            Key::Public(key) => {
                let len = key.algorithm().signature_len();
                let padding = RsaPadding::new(mechanism, parameter, len)?;
                Ok(Self(Encrypting::Rsa(
                    key.clone(),
                    padding,
                    Secret::default(),
                )))
            }
            Key::Secret(key) => {
                let stream = CipherStream::new(mechanism, parameter, key, Direction::Encrypt)?;
                Ok(Self(Encrypting::Secret(stream)))
            }
            Key::Private(_) => Err(TokenError::KeyTypeInconsistent(mechanism.kind)),
        }
    }

    /// Encrypts `data` at once.
    ///
    /// # Errors
    /// [`TokenError::DataLength`], [`TokenError::DataInvalid`].
    pub(super) fn encrypt(&self, data: &[u8]) -> Result<Secret, TokenError> {
        match &self.0 {
            Encrypting::Rsa(key, padding, _) => encrypt_rsa(key, padding, data),
            Encrypting::Secret(stream) => stream
                .single(data)
                .map_err(|fault| encrypting(fault, data.len())),
        }
    }
}

impl CipherOperation for EncryptOperation {
    fn single_len(&self, len: usize) -> usize {
        match &self.0 {
            Encrypting::Rsa(key, ..) => key.algorithm().signature_len(),
            Encrypting::Secret(stream) => stream.single_len(len),
        }
    }

    fn single(&self, data: &[u8]) -> Result<Option<Secret>, TokenError> {
        self.encrypt(data).map(Some)
    }

    fn update_len(&self, part: usize) -> usize {
        match &self.0 {
            Encrypting::Rsa(..) => 0,
            Encrypting::Secret(stream) => stream.update_len(part),
        }
    }

    fn update(&mut self, part: &[u8]) -> Result<Secret, TokenError> {
        match &mut self.0 {
            Encrypting::Rsa(_, _, message) => {
                append_message(message, part).map(|()| Secret::default())
            }
            Encrypting::Secret(stream) => stream
                .update(part)
                .map_err(|fault| encrypting(fault, part.len())),
        }
    }

    fn finish_len(&self) -> usize {
        match &self.0 {
            Encrypting::Rsa(key, ..) => key.algorithm().signature_len(),
            Encrypting::Secret(stream) => stream.finish_len(),
        }
    }

    fn finish(&mut self) -> Result<Option<Secret>, TokenError> {
        let last = match &mut self.0 {
            Encrypting::Rsa(key, padding, message) => encrypt_rsa(key, padding, message.expose()),
            Encrypting::Secret(stream) => stream.finish().map_err(|fault| encrypting(fault, 0)),
        };
        last.map(Some)
    }
}

fn encrypt_rsa(key: &PublicKey, padding: &RsaPadding, data: &[u8]) -> Result<Secret, TokenError> {
    let len = key.algorithm().signature_len();
    let max = padding.max_len(len);
    if data.len() > max {
        return Err(TokenError::DataLength {
            len: data.len(),
            max,
        });
    }
    let block = match padding {
        RsaPadding::Pkcs1 => padding::pkcs1_encrypt(data, len)?,
        RsaPadding::Oaep(oaep) => padding::oaep_encrypt(data, &oaep.as_oaep(), len)?,
        RsaPadding::None => {
            let mut block = Secret::new(Vec::with_capacity(len));
            block.extend(&vec![0; len - data.len()]);
            block.extend(data);
            block
        }
    };
    let encrypted = key.rsa_raw(block.expose()).ok_or(TokenError::DataInvalid)?;
    Ok(Secret::new(encrypted))
}

const fn encrypting(fault: CipherError, len: usize) -> TokenError {
    match fault {
        CipherError::Length | CipherError::TooLong => TokenError::DataLength {
            len,
            max: len / 16 * 16,
        },
        CipherError::Padding | CipherError::Tag => TokenError::DataInvalid,
    }
}

impl std::fmt::Debug for EncryptOperation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EncryptOperation").finish_non_exhaustive()
    }
}
