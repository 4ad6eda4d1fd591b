//! Key agreement, wrapping and unwrapping.

use claviger_apdu::Secret;
use cryptoki_sys::{
    CK_ULONG, CKA_DERIVE, CKA_EXTRACTABLE, CKA_UNWRAP, CKA_WRAP, CKA_WRAP_WITH_TRUSTED, CKD_NULL,
    CKD_SHA1_KDF, CKD_SHA224_KDF, CKD_SHA256_KDF, CKD_SHA384_KDF, CKD_SHA512_KDF, CKF_DERIVE,
    CKF_UNWRAP, CKF_WRAP,
};

use super::{
    CipherOperation as _, DecryptOperation, EncryptOperation, KeyInput, bad_parameter, check_use,
    cipher::Purpose,
};
use crate::{
    algorithm::{KeyAlgorithm, PublicKey},
    attribute::Value,
    error::TokenError,
    host::{
        kdf,
        key_wrap::{self, Wrap},
        public_key::is_on_curve,
    },
    mechanism::{Hash, Mechanism, Parameter, Scheme},
    object::{Key, Object, PrivateKey, SecretKey},
};

/// A key agreement with a private key of the card (C_DeriveKey).
#[derive(Debug)]
pub struct Derivation {
    /// The private key.
    pub key: PrivateKey,
    point: Vec<u8>,
    kdf: Option<Hash>,
    shared: Vec<u8>,
}

impl Derivation {
    /// Begins an agreement with the key of `object`.
    ///
    /// # Errors
    /// An error if the mechanism does not derive keys, does not fit the key, or has an invalid parameter. A public
    /// point that is not on the key's curve is an invalid parameter.
    pub fn new(
        mechanism: Mechanism,
        parameter: &Parameter,
        object: &Object,
    ) -> Result<Self, TokenError> {
        let Key::Private(key) = check_use(mechanism, object, CKF_DERIVE, CKA_DERIVE)? else {
            return Err(TokenError::KeyTypeInconsistent(mechanism.kind));
        };
        let bad = || bad_parameter(mechanism);
        let Parameter::Ecdh(kdf, shared, public) = parameter else {
            return Err(bad());
        };
        let kdf = kdf_hash(*kdf).ok_or_else(bad)?;
        if kdf.is_none() && !shared.is_empty() {
            return Err(bad());
        }
        Ok(Self {
            key: *key,
            point: point(key.algorithm, public).ok_or_else(bad)?,
            kdf,
            shared: shared.clone(),
        })
    }

    /// Returns the input for the card: the peer's public point.
    #[must_use]
    pub fn input(&self) -> KeyInput {
        KeyInput::Point(Secret::copy_from(&self.point))
    }

    /// Returns the length of the derived key if the template does not give one.
    #[must_use]
    pub fn natural_len(&self) -> usize {
        self.kdf
            .map_or_else(|| agreed_len(self.key.algorithm), Hash::len)
    }

    /// Derives a key of `len` bytes from the shared secret `z`: its leading bytes, or the output of the key derivation
    /// function.
    ///
    /// # Errors
    /// [`TokenError::KeySize`] if that gives fewer bytes.
    pub fn derive(&self, mut z: Secret, len: usize) -> Result<Secret, TokenError> {
        match self.kdf {
            Some(hash) => kdf::x963(hash, &z, &self.shared, len).ok_or(TokenError::KeySize),
            None if len > z.len() => Err(TokenError::KeySize),
            None => {
                z.truncate(len);
                Ok(z)
            }
        }
    }
}

/// Returns the hash of a key derivation function. CKD_NULL, which has no hash, is `Some(None)`.
fn kdf_hash(kdf: CK_ULONG) -> Option<Option<Hash>> {
    match kdf {
        CKD_NULL => Some(None),
        CKD_SHA1_KDF => Some(Some(Hash::Sha1)),
        CKD_SHA224_KDF => Some(Some(Hash::Sha224)),
        CKD_SHA256_KDF => Some(Some(Hash::Sha256)),
        CKD_SHA384_KDF => Some(Some(Hash::Sha384)),
        CKD_SHA512_KDF => Some(Some(Hash::Sha512)),
        _ => None,
    }
}

/// Returns the length of the shared secret in bytes.
fn agreed_len(algorithm: KeyAlgorithm) -> usize {
    match algorithm {
        KeyAlgorithm::Ec(curve) => curve.field_len(),
        _ => 32,
    }
}

/// Returns the peer's public point if it is on the key's curve. It is given raw (PKCS #11 3.1, 6.3.17) or in a DER
/// OCTET STRING as in CKA_EC_POINT.
fn point(algorithm: KeyAlgorithm, public: &[u8]) -> Option<Vec<u8>> {
    let accept = |bytes: &[u8]| match algorithm {
        KeyAlgorithm::Ec(curve) => {
            PublicKey::ec(curve, bytes)?;
            (is_on_curve(curve, bytes) != Some(false)).then(|| bytes.to_vec())
        }
        KeyAlgorithm::X25519 => (bytes.len() == 32).then(|| bytes.to_vec()),
        _ => None,
    };
    accept(public).or_else(|| accept(claviger_apdu::tlv::only(public, 0x04).ok()?))
}

/// Wraps a secret key (C_WrapKey).
///
/// # Errors
/// An error if one of the keys does not permit this or is of the wrong kind, or if the mechanism does not fit them.
pub fn wrap_key(
    mechanism: Mechanism,
    parameter: &Parameter,
    wrapping: &Object,
    key: &Object,
) -> Result<Secret, TokenError> {
    let kek = check_use(mechanism, wrapping, CKF_WRAP, CKA_WRAP)?;
    let value = match &key.key {
        Some(Key::Secret(SecretKey { value, .. })) => value,
        Some(Key::Private(_)) => return Err(TokenError::KeyUnextractable),
        Some(Key::Public(_)) | None => return Err(TokenError::KeyNotWrappable),
    };
    if key.get(CKA_EXTRACTABLE) != Some(&Value::Bool(true)) {
        return Err(TokenError::KeyUnextractable);
    }
    // No key has CKA_TRUSTED here: only the security officer could set it.
    if key.get(CKA_WRAP_WITH_TRUSTED) == Some(&Value::Bool(true)) {
        return Err(TokenError::KeyNotWrappable);
    }
    if let (Scheme::AesKeyWrap { padded }, Key::Secret(kek)) = (mechanism.scheme, kek) {
        let wrap = key_wrap(mechanism, parameter, padded)?;
        return key_wrap::wrap(wrap, &kek.value, value).ok_or(TokenError::KeySize);
    }
    let operation = EncryptOperation::new(mechanism, parameter, wrapping, Purpose::Key)?;
    operation
        .encrypt(value.expose())
        .map_err(|error| match error {
            TokenError::DataLength { .. } => TokenError::KeySize,
            error => error,
        })
}

/// A key that is being unwrapped.
#[derive(Debug)]
pub enum Unwrapping {
    /// The host has unwrapped the key.
    Done(Secret),
    /// The card must decrypt first.
    Card(DecryptOperation),
}

/// Begins to unwrap `wrapped` with the key `unwrapping` (C_UnwrapKey).
///
/// # Errors
/// Those of [`DecryptOperation`]; [`TokenError::EncryptedDataInvalid`] if the key was not wrapped with this key.
pub fn unwrap_key(
    mechanism: Mechanism,
    parameter: &Parameter,
    unwrapping: &Object,
    wrapped: &[u8],
) -> Result<Unwrapping, TokenError> {
    let kek = check_use(mechanism, unwrapping, CKF_UNWRAP, CKA_UNWRAP)?;
    if let (Scheme::AesKeyWrap { padded }, Key::Secret(kek)) = (mechanism.scheme, kek) {
        let wrap = key_wrap(mechanism, parameter, padded)?;
        let len = wrapped.len();
        if !wrap.gives(len) {
            return Err(TokenError::EncryptedDataLength { len });
        }
        let key = key_wrap::unwrap(wrap, &kek.value, wrapped);
        return key
            .map(Unwrapping::Done)
            .ok_or(TokenError::EncryptedDataInvalid);
    }
    let mut operation = DecryptOperation::new(mechanism, parameter, unwrapping, Purpose::Key)?;
    if let Some(key) = operation.single(wrapped)? {
        return Ok(Unwrapping::Done(key));
    }
    operation.update(wrapped)?;
    Ok(Unwrapping::Card(operation))
}

/// Returns the kind of key wrap. The parameter may only be the standard's initial value (PKCS #11 3.1, 6.13.12).
fn key_wrap(mechanism: Mechanism, parameter: &Parameter, padded: bool) -> Result<Wrap, TokenError> {
    let standard: &[u8] = if padded {
        &[0xA6, 0x59, 0x59, 0xA6]
    } else {
        &[0xA6; 8]
    };
    match parameter {
        Parameter::None => {}
        Parameter::Iv(iv) if iv == standard => {}
        _ => return Err(bad_parameter(mechanism)),
    }
    Ok(if padded { Wrap::Kwp } else { Wrap::Kw })
}
