//! A signature in the making: collects the message on the host, touches no card.

use claviger_apdu::Secret;
use cryptoki_sys::CK_MECHANISM_TYPE;
use sha1::Sha1;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

use crate::{
    error::TokenError,
    mechanism::{Hash, Mechanism, Scheme},
    object::{Object, ObjectId, PinRule, PrivateKey},
};

/// Longest message that must be held whole (Ed25519, or a hash the caller made): no card takes more.
const MAX_MESSAGE: usize = 64 * 1024;

/// What an applet signs, before its own padding.
#[derive(Debug)]
pub enum SignInput {
    /// T of EMSA-PKCS1-v1_5: a DigestInfo, or whatever the caller of CKM_RSA_PKCS gave.
    Pkcs1(Secret),
    /// A hash for ECDSA, of any length.
    Hash(Secret),
    /// The message for Ed25519.
    Message(Secret),
}

impl SignInput {
    /// The bytes.
    #[must_use]
    pub const fn bytes(&self) -> &Secret {
        match self {
            Self::Pkcs1(bytes) | Self::Hash(bytes) | Self::Message(bytes) => bytes,
        }
    }
}

/// The leftmost `len` bytes of `hash`, or the hash with zeros before it: ECDSA over a field of `len` bytes
/// (FIPS 186-5, 6.4.1) for cards that take exactly that.
#[must_use]
pub fn fit_hash(hash: &[u8], len: usize) -> Vec<u8> {
    let kept = hash.get(..len).unwrap_or(hash);
    let mut fitted = vec![0; len - kept.len()];
    fitted.extend_from_slice(kept);
    fitted
}

/// A signature begun by C_SignInit.
pub struct SignOperation {
    /// The object of the key; a lookup under it finds the key even when objects were read again.
    pub object: ObjectId,
    /// The key.
    pub key: PrivateKey,
    /// The PIN given for this one signature by CKU_CONTEXT_SPECIFIC.
    pub context_pin: Option<Secret>,
    mechanism: Mechanism,
    collector: Collector,
}

impl SignOperation {
    /// Begins a signature with the private key `object`.
    ///
    /// # Errors
    /// When the mechanism is not one of signing, takes no parameter but got one, or does not go with the key.
    pub fn new(
        kind: CK_MECHANISM_TYPE,
        parameter: &[u8],
        object: &Object,
    ) -> Result<Self, TokenError> {
        let mechanism = Mechanism::signing(kind).ok_or(TokenError::MechanismInvalid(kind))?;
        if !parameter.is_empty() && !plain_eddsa(mechanism, parameter) {
            return Err(TokenError::MechanismParamInvalid(kind));
        }
        let key = object.key.ok_or(TokenError::KeyTypeInconsistent(kind))?;
        if !mechanism.scheme.fits(key.algorithm) {
            return Err(TokenError::KeyTypeInconsistent(kind));
        }
        if !key.usage.sign {
            return Err(TokenError::KeyFunctionNotPermitted);
        }
        let collector = Collector::new(mechanism.hash);
        Ok(Self {
            object: object.id,
            key,
            context_pin: None,
            mechanism,
            collector,
        })
    }

    /// Whether the key wants its PIN each time and it has not been given for this signature.
    #[must_use]
    pub fn lacks_context_login(&self) -> bool {
        self.key.pin == PinRule::Always && self.context_pin.is_none()
    }

    /// Length of the signature in bytes.
    #[must_use]
    pub fn signature_len(&self) -> usize {
        self.key.algorithm.signature_len()
    }

    /// Takes the next part of the message.
    ///
    /// # Errors
    /// [`TokenError::DataLength`] when what must be held whole grows too long.
    pub fn update(&mut self, part: &[u8]) -> Result<(), TokenError> {
        self.collector.update(part)
    }

    /// What to sign; the collected message is then used up.
    ///
    /// # Errors
    /// [`TokenError::DataLength`] when the input does not fit the key.
    pub fn finish(&mut self) -> Result<SignInput, TokenError> {
        let collected = std::mem::replace(&mut self.collector, Collector::new(None)).finish();
        match self.mechanism.scheme {
            Scheme::EdDsa => Ok(SignInput::Message(collected)),
            Scheme::Ecdsa if collected.is_empty() => Err(TokenError::DataLength {
                len: 0,
                max: MAX_MESSAGE,
            }),
            Scheme::Ecdsa => Ok(SignInput::Hash(collected)),
            Scheme::RsaPkcs1 => self.pkcs1(&collected),
        }
    }

    fn pkcs1(&self, collected: &Secret) -> Result<SignInput, TokenError> {
        let mut input = Secret::copy_from(self.mechanism.hash.map_or(&[], digest_info_prefix));
        input.extend(collected.expose());
        // RFC 8017, 9.2: eight bytes of FF at least, and three of frame.
        let max = self.signature_len().saturating_sub(11);
        if input.len() > max {
            return Err(TokenError::DataLength {
                len: input.len(),
                max,
            });
        }
        Ok(SignInput::Pkcs1(input))
    }
}

impl std::fmt::Debug for SignOperation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignOperation")
            .field("key", &self.key)
            .field("mechanism", &self.mechanism)
            .finish_non_exhaustive()
    }
}

/// CK_EDDSA_PARAMS all zero means pure Ed25519, which is what no parameter means too.
fn plain_eddsa(mechanism: Mechanism, parameter: &[u8]) -> bool {
    mechanism.scheme == Scheme::EdDsa
        && parameter.len() == size_of::<cryptoki_sys::CK_EDDSA_PARAMS>()
        && parameter.first() == Some(&0)
        && parameter
            .get(size_of::<cryptoki_sys::CK_ULONG>()..)
            .is_some_and(|rest| rest.iter().all(|byte| *byte == 0))
}

/// The DER of a DigestInfo up to the hash itself (RFC 8017, 9.2, note 1).
const fn digest_info_prefix(hash: Hash) -> &'static [u8] {
    match hash {
        Hash::Sha1 => &[
            0x30, 0x21, 0x30, 0x09, 0x06, 0x05, 0x2B, 0x0E, 0x03, 0x02, 0x1A, 0x05, 0x00, 0x04,
            0x14,
        ],
        Hash::Sha224 => const { &sha2_prefix(0x04, 0x1C) },
        Hash::Sha256 => const { &sha2_prefix(0x01, 0x20) },
        Hash::Sha384 => const { &sha2_prefix(0x02, 0x30) },
        Hash::Sha512 => const { &sha2_prefix(0x03, 0x40) },
    }
}

const fn sha2_prefix(arc: u8, len: u8) -> [u8; 19] {
    [
        0x30,
        0x11 + len,
        0x30,
        0x0D,
        0x06,
        0x09,
        0x60,
        0x86,
        0x48,
        0x01,
        0x65,
        0x03,
        0x04,
        0x02,
        arc,
        0x05,
        0x00,
        0x04,
        len,
    ]
}

enum Collector {
    Whole(Secret),
    Sha1(Sha1),
    Sha224(Sha224),
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl Collector {
    fn new(hash: Option<Hash>) -> Self {
        match hash {
            None => Self::Whole(Secret::default()),
            Some(Hash::Sha1) => Self::Sha1(Sha1::new()),
            Some(Hash::Sha224) => Self::Sha224(Sha224::new()),
            Some(Hash::Sha256) => Self::Sha256(Sha256::new()),
            Some(Hash::Sha384) => Self::Sha384(Sha384::new()),
            Some(Hash::Sha512) => Self::Sha512(Sha512::new()),
        }
    }

    fn update(&mut self, part: &[u8]) -> Result<(), TokenError> {
        match self {
            Self::Whole(message) => {
                let len = message.len().saturating_add(part.len());
                if len > MAX_MESSAGE {
                    return Err(TokenError::DataLength {
                        len,
                        max: MAX_MESSAGE,
                    });
                }
                message.extend(part);
            }
            Self::Sha1(hash) => hash.update(part),
            Self::Sha224(hash) => hash.update(part),
            Self::Sha256(hash) => hash.update(part),
            Self::Sha384(hash) => hash.update(part),
            Self::Sha512(hash) => hash.update(part),
        }
        Ok(())
    }

    fn finish(self) -> Secret {
        match self {
            Self::Whole(message) => message,
            Self::Sha1(hash) => Secret::copy_from(&hash.finalize()),
            Self::Sha224(hash) => Secret::copy_from(&hash.finalize()),
            Self::Sha256(hash) => Secret::copy_from(&hash.finalize()),
            Self::Sha384(hash) => Secret::copy_from(&hash.finalize()),
            Self::Sha512(hash) => Secret::copy_from(&hash.finalize()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_hash_is_cut_on_the_right_and_a_short_one_padded_on_the_left() {
        assert_eq!(fit_hash(&[1, 2, 3, 4], 2), [1, 2]);
        assert_eq!(fit_hash(&[1, 2], 4), [0, 0, 1, 2]);
        assert_eq!(fit_hash(&[1, 2], 2), [1, 2]);
    }

    #[test]
    fn digest_info_prefixes_state_the_length_that_follows() {
        for (hash, len) in [
            (Hash::Sha1, 20),
            (Hash::Sha224, 28),
            (Hash::Sha256, 32),
            (Hash::Sha384, 48),
            (Hash::Sha512, 64),
        ] {
            let prefix = digest_info_prefix(hash);
            let whole = [prefix, &vec![0; len][..]].concat();
            let body = claviger_apdu::tlv::only(&whole, 0x30).unwrap();
            let mut cursor = claviger_apdu::tlv::Cursor::new(body);
            cursor.expect(0x30).unwrap();
            assert_eq!(cursor.expect(0x04).unwrap().len(), len);
            cursor.finish().unwrap();
        }
    }
}
