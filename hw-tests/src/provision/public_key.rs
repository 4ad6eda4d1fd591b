//! Public keys: parsed from a card's response, encoded for a certificate, and hashed to an OpenPGP fingerprint.

use claviger_apdu::tlv;
use sha1::{Digest as _, Sha1};
use x509_cert::{
    der::{
        Any, Encode as _,
        asn1::{BitString, ObjectIdentifier, UintRef},
    },
    spki::{AlgorithmIdentifier, SubjectPublicKeyInfoOwned},
};

use super::{KeyAlgorithm, ProvisionError};

const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const P521: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.35");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const X25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.110");

/// A public key. Its numbers are big-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    /// Modulus and public exponent.
    Rsa {
        /// n.
        modulus: Vec<u8>,
        /// e.
        exponent: Vec<u8>,
    },
    /// A point of a named curve: 04, X, Y; or the 32 bytes of Ed25519 and X25519.
    Point {
        /// The curve.
        curve: KeyAlgorithm,
        /// The point.
        point: Vec<u8>,
    },
}

impl PublicKey {
    /// Reads a public key template, 7F49 with 81 and 82 or 86 (SP 800-73-4 part 2, table 11; ISO 7816-8).
    ///
    /// # Errors
    /// If the template is malformed or does not fit `algorithm`.
    pub fn from_template(algorithm: KeyAlgorithm, template: &[u8]) -> Result<Self, ProvisionError> {
        let content = tlv::only(template, 0x7F49)?;
        let part =
            |tag| tlv::find(content, tag)?.ok_or(ProvisionError::Form("public key lacks a part"));
        match algorithm {
            KeyAlgorithm::Rsa2048 | KeyAlgorithm::Rsa3072 | KeyAlgorithm::Rsa4096 => {
                Ok(Self::Rsa {
                    modulus: part(0x81)?.to_vec(),
                    exponent: part(0x82)?.to_vec(),
                })
            }
            curve => Ok(Self::Point {
                curve,
                point: part(0x86)?.to_vec(),
            }),
        }
    }

    /// The key as a SubjectPublicKeyInfo (RFC 5280, RFC 5480, RFC 8410).
    ///
    /// # Errors
    /// If the card's numbers are invalid.
    pub fn spki(&self) -> Result<SubjectPublicKeyInfoOwned, ProvisionError> {
        let (algorithm, key) = match self {
            Self::Rsa { modulus, exponent } => {
                let numbers = [UintRef::new(modulus)?, UintRef::new(exponent)?];
                let parameters = Some(Any::null());
                (
                    AlgorithmIdentifier {
                        oid: RSA_ENCRYPTION,
                        parameters,
                    },
                    numbers.to_vec().to_der()?,
                )
            }
            Self::Point { curve, point } => (curve_identifier(*curve)?, point.clone()),
        };
        Ok(SubjectPublicKeyInfoOwned {
            algorithm,
            subject_public_key: BitString::from_bytes(&key)?,
        })
    }

    /// The OpenPGP version 4 fingerprint (RFC 9580, 5.5.4.2) of this key with the creation time `time`, in seconds since 1970.
    ///
    /// # Errors
    /// If OpenPGP has no such kind of key.
    pub fn openpgp_fingerprint(&self, time: u32) -> Result<[u8; 20], ProvisionError> {
        let mut body = vec![4];
        body.extend(time.to_be_bytes());
        match self {
            Self::Rsa { modulus, exponent } => {
                body.push(1);
                body.extend(mpi(modulus));
                body.extend(mpi(exponent));
            }
            Self::Point { curve, point } => {
                let (algorithm, kdf): (u8, &[u8]) = match curve {
                    KeyAlgorithm::Ed25519 => (22, &[]),
                    KeyAlgorithm::X25519 => (18, &[3, 1, 8, 7]),
                    _ => (19, &[]),
                };
                let name = openpgp_curve_oid(*curve)?;
                body.push(algorithm);
                body.push(u8::try_from(name.len()).unwrap_or(0));
                body.extend(name);
                body.extend(mpi(&prefixed(*curve, point)));
                body.extend(kdf);
            }
        }
        let len = u16::try_from(body.len())
            .map_err(|_| ProvisionError::Form("public key is too long"))?;
        Ok(Sha1::new()
            .chain_update([0x99])
            .chain_update(len.to_be_bytes())
            .chain_update(&body)
            .finalize()
            .into())
    }
}

fn curve_identifier(curve: KeyAlgorithm) -> Result<AlgorithmIdentifier<Any>, ProvisionError> {
    let named = |curve: ObjectIdentifier| AlgorithmIdentifier {
        oid: EC_PUBLIC_KEY,
        parameters: Some((&curve).into()),
    };
    let plain = |oid| AlgorithmIdentifier {
        oid,
        parameters: None,
    };
    match curve {
        KeyAlgorithm::P256 => Ok(named(P256)),
        KeyAlgorithm::P384 => Ok(named(P384)),
        KeyAlgorithm::P521 => Ok(named(P521)),
        KeyAlgorithm::Ed25519 => Ok(plain(ED25519)),
        KeyAlgorithm::X25519 => Ok(plain(X25519)),
        other => Err(ProvisionError::Algorithm(other)),
    }
}

/// The content octets of the curve's object identifier. For Ed25519 and X25519 they are those of GnuPG.
pub(super) const fn openpgp_curve_oid(
    curve: KeyAlgorithm,
) -> Result<&'static [u8], ProvisionError> {
    match curve {
        KeyAlgorithm::P256 => Ok(&[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07]),
        KeyAlgorithm::P384 => Ok(&[0x2B, 0x81, 0x04, 0x00, 0x22]),
        KeyAlgorithm::P521 => Ok(&[0x2B, 0x81, 0x04, 0x00, 0x23]),
        KeyAlgorithm::Ed25519 => Ok(&[0x2B, 0x06, 0x01, 0x04, 0x01, 0xDA, 0x47, 0x0F, 0x01]),
        KeyAlgorithm::X25519 => Ok(&[0x2B, 0x06, 0x01, 0x04, 0x01, 0x97, 0x55, 0x01, 0x05, 0x01]),
        other => Err(ProvisionError::Algorithm(other)),
    }
}

/// Native points carry the prefix 40 in OpenPGP.
fn prefixed(curve: KeyAlgorithm, point: &[u8]) -> Vec<u8> {
    let prefix: &[u8] = match curve {
        KeyAlgorithm::Ed25519 | KeyAlgorithm::X25519 => &[0x40],
        _ => &[],
    };
    [prefix, point].concat()
}

/// A multiprecision integer: the number of significant bits in two bytes, then the bytes (RFC 9580, 3.2).
fn mpi(number: &[u8]) -> Vec<u8> {
    let significant: Vec<u8> = number
        .iter()
        .copied()
        .skip_while(|byte| *byte == 0)
        .collect();
    let zeros = significant
        .first()
        .map_or(0, |first| first.leading_zeros() as usize);
    let bits = u16::try_from(significant.len() * 8 - zeros).unwrap_or(u16::MAX);
    [&bits.to_be_bytes()[..], &significant].concat()
}
