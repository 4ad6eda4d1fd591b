//! Key algorithms and public keys, independent of the applets' numbers for them.

use claviger_apdu::tlv;
use cryptoki_sys::{
    CK_KEY_TYPE, CK_ULONG, CKA_EC_PARAMS, CKA_EC_POINT, CKA_KEY_TYPE, CKA_MODULUS,
    CKA_MODULUS_BITS, CKA_PUBLIC_EXPONENT, CKK_EC, CKK_EC_EDWARDS, CKK_EC_MONTGOMERY, CKK_RSA,
};

use crate::attribute::Value;

/// A curve over a prime field in short Weierstrass form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Curve {
    /// NIST P-256, secp256r1.
    P256,
    /// NIST P-384, secp384r1.
    P384,
    /// NIST P-521, secp521r1.
    P521,
    /// secp256k1.
    Secp256k1,
    /// brainpoolP256r1.
    BrainpoolP256,
    /// brainpoolP384r1.
    BrainpoolP384,
    /// brainpoolP512r1.
    BrainpoolP512,
}

/// One row per curve: content octets of the object identifier, and the size of the field in bits.
const CURVES: [(Curve, &[u8], u16); 7] = [
    (
        Curve::P256,
        &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07],
        256,
    ),
    (Curve::P384, &[0x2B, 0x81, 0x04, 0x00, 0x22], 384),
    (Curve::P521, &[0x2B, 0x81, 0x04, 0x00, 0x23], 521),
    (Curve::Secp256k1, &[0x2B, 0x81, 0x04, 0x00, 0x0A], 256),
    (
        Curve::BrainpoolP256,
        &[0x2B, 0x24, 0x03, 0x03, 0x02, 0x08, 0x01, 0x01, 0x07],
        256,
    ),
    (
        Curve::BrainpoolP384,
        &[0x2B, 0x24, 0x03, 0x03, 0x02, 0x08, 0x01, 0x01, 0x0B],
        384,
    ),
    (
        Curve::BrainpoolP512,
        &[0x2B, 0x24, 0x03, 0x03, 0x02, 0x08, 0x01, 0x01, 0x0D],
        512,
    ),
];

/// Content octets of id-Ed25519 (RFC 8410).
pub const ED25519_OID: &[u8] = &[0x2B, 0x65, 0x70];
/// Content octets of id-X25519 (RFC 8410).
pub const X25519_OID: &[u8] = &[0x2B, 0x65, 0x6E];
/// Content octets of id-ecPublicKey.
pub const EC_PUBLIC_KEY_OID: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x02, 0x01];
/// Content octets of rsaEncryption.
pub const RSA_ENCRYPTION_OID: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x01];

impl Curve {
    fn row(self) -> (&'static [u8], u16) {
        // Every variant has a row. A test checks that.
        CURVES
            .iter()
            .find(|(curve, ..)| *curve == self)
            .map_or((&[], 0), |(_, oid, bits)| (oid, *bits))
    }

    /// Returns the curve with these content octets of an object identifier.
    #[must_use]
    pub fn from_oid(oid: &[u8]) -> Option<Self> {
        CURVES
            .iter()
            .find(|(_, candidate, _)| *candidate == oid)
            .map(|(curve, ..)| *curve)
    }

    /// Returns the content octets of the curve's object identifier.
    #[must_use]
    pub fn oid(self) -> &'static [u8] {
        self.row().0
    }

    /// Returns the size of the field in bits.
    #[must_use]
    pub fn bits(self) -> u16 {
        self.row().1
    }

    /// Returns the size of a coordinate, and of r and s, in bytes.
    #[must_use]
    pub fn field_len(self) -> usize {
        usize::from(self.bits()).div_ceil(8)
    }
}

/// The algorithm of a private key, with its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyAlgorithm {
    /// RSA with a modulus of `bits` bits.
    Rsa {
        /// Bits of the modulus.
        bits: u16,
    },
    /// ECDSA or ECDH on a curve.
    Ec(Curve),
    /// Ed25519.
    Ed25519,
    /// X25519.
    X25519,
}

impl KeyAlgorithm {
    /// Returns the CKA_KEY_TYPE.
    #[must_use]
    pub const fn key_type(self) -> CK_KEY_TYPE {
        match self {
            Self::Rsa { .. } => CKK_RSA,
            Self::Ec(_) => CKK_EC,
            Self::Ed25519 => CKK_EC_EDWARDS,
            Self::X25519 => CKK_EC_MONTGOMERY,
        }
    }

    /// Returns the size in bits of the modulus or of the field.
    #[must_use]
    pub fn bits(self) -> CK_ULONG {
        CK_ULONG::from(match self {
            Self::Rsa { bits } => bits,
            Self::Ec(curve) => curve.bits(),
            Self::Ed25519 | Self::X25519 => 255,
        })
    }

    /// Returns the length of a signature in bytes: that of the modulus, of r and s, or 64. X25519 has 0.
    #[must_use]
    pub fn signature_len(self) -> usize {
        match self {
            Self::Rsa { bits } => usize::from(bits).div_ceil(8),
            Self::Ec(curve) => 2 * curve.field_len(),
            Self::Ed25519 => 64,
            Self::X25519 => 0,
        }
    }
}

/// A public key in the form that all applets and certificates are converted to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    /// Both numbers big endian without leading zeros.
    Rsa {
        /// n
        modulus: Vec<u8>,
        /// e
        exponent: Vec<u8>,
    },
    /// An uncompressed point 04 X Y of the right length.
    Ec {
        /// The curve of the point.
        curve: Curve,
        /// 04 X Y
        point: Vec<u8>,
    },
    /// Little endian, RFC 8032.
    Ed25519([u8; 32]),
    /// Little endian, RFC 7748.
    X25519([u8; 32]),
}

impl PublicKey {
    /// Returns an RSA key from big-endian numbers, without leading zeros. Returns `None` for a modulus under 512 or
    /// over 16 384 bits, and for an exponent of no or more than 8 bytes.
    #[must_use]
    pub fn rsa(modulus: &[u8], exponent: &[u8]) -> Option<Self> {
        let strip = |n: &[u8]| {
            n.iter()
                .copied()
                .skip_while(|byte| *byte == 0)
                .collect::<Vec<u8>>()
        };
        let (modulus, exponent) = (strip(modulus), strip(exponent));
        ((64..=2048).contains(&modulus.len()) && (1..=8).contains(&exponent.len()))
            .then_some(Self::Rsa { modulus, exponent })
    }

    /// Returns the key for a point 04 X Y, or `None` if the length does not fit `curve`.
    #[must_use]
    pub fn ec(curve: Curve, point: &[u8]) -> Option<Self> {
        let fits = point.first() == Some(&0x04) && point.len() == 1 + 2 * curve.field_len();
        fits.then(|| Self::Ec {
            curve,
            point: point.to_vec(),
        })
    }

    /// Returns the algorithm of the matching private key.
    #[must_use]
    pub fn algorithm(&self) -> KeyAlgorithm {
        match self {
            Self::Rsa { modulus, .. } => KeyAlgorithm::Rsa {
                bits: bit_len(modulus),
            },
            Self::Ec { curve, .. } => KeyAlgorithm::Ec(*curve),
            Self::Ed25519(_) => KeyAlgorithm::Ed25519,
            Self::X25519(_) => KeyAlgorithm::X25519,
        }
    }

    /// Returns CKA_KEY_TYPE and the attributes with the key's numbers, for public and private objects alike.
    #[must_use]
    pub fn attributes(&self) -> Vec<(cryptoki_sys::CK_ATTRIBUTE_TYPE, Value)> {
        let mut attributes = vec![(CKA_KEY_TYPE, Value::Ulong(self.algorithm().key_type()))];
        match self {
            Self::Rsa { modulus, exponent } => attributes.extend([
                (CKA_MODULUS, modulus.clone().into()),
                (
                    CKA_MODULUS_BITS,
                    Value::Ulong(CK_ULONG::from(bit_len(modulus))),
                ),
                (CKA_PUBLIC_EXPONENT, exponent.clone().into()),
            ]),
            Self::Ec { curve, point } => attributes.extend([
                (CKA_EC_PARAMS, tlv::encode(0x06, curve.oid()).into()),
                // DER OCTET STRING around 04 X Y (PKCS #11 2.40, 2.3.3)
                (CKA_EC_POINT, tlv::encode(0x04, point).into()),
            ]),
            Self::Ed25519(point) => attributes.extend(short_curve(ED25519_OID, point)),
            Self::X25519(point) => attributes.extend(short_curve(X25519_OID, point)),
        }
        attributes
    }

    /// Returns CKA_PUBLIC_KEY_INFO: the SubjectPublicKeyInfo (RFC 5280, 4.1.2.7) in DER.
    #[must_use]
    pub fn info(&self) -> Vec<u8> {
        let (algorithm, key) = match self {
            Self::Rsa { modulus, exponent } => {
                let numbers = [unsigned(modulus), unsigned(exponent)].concat();
                (
                    [
                        tlv::encode(0x06, RSA_ENCRYPTION_OID),
                        tlv::encode(0x05, &[]),
                    ]
                    .concat(),
                    tlv::encode(0x30, &numbers),
                )
            }
            Self::Ec { curve, point } => (
                [
                    tlv::encode(0x06, EC_PUBLIC_KEY_OID),
                    tlv::encode(0x06, curve.oid()),
                ]
                .concat(),
                point.clone(),
            ),
            Self::Ed25519(point) => (tlv::encode(0x06, ED25519_OID), point.to_vec()),
            Self::X25519(point) => (tlv::encode(0x06, X25519_OID), point.to_vec()),
        };
        let bits = [&[0][..], &key].concat();
        tlv::encode(
            0x30,
            &[tlv::encode(0x30, &algorithm), tlv::encode(0x03, &bits)].concat(),
        )
    }
}

/// Encodes the little-endian point in a DER OCTET STRING, as OpenSC does. GnuTLS 3.7 and pkcs11-tool 0.23 refuse the
/// raw point of PKCS #11 3.1 (6.3.5), and later readers take both. The RFC 8410 identifier names the curve.
fn short_curve(oid: &[u8], point: &[u8; 32]) -> [(cryptoki_sys::CK_ATTRIBUTE_TYPE, Value); 2] {
    [
        (CKA_EC_PARAMS, tlv::encode(0x06, oid).into()),
        (CKA_EC_POINT, tlv::encode(0x04, point).into()),
    ]
}

/// Encodes a big-endian number without leading zeros as a DER INTEGER.
fn unsigned(number: &[u8]) -> Vec<u8> {
    let sign: &[u8] = if number.first().is_none_or(|byte| byte & 0x80 != 0) {
        &[0]
    } else {
        &[]
    };
    tlv::encode(0x02, &[sign, number].concat())
}

fn bit_len(number: &[u8]) -> u16 {
    let zeros = number.first().map_or(0, |byte| byte.leading_zeros());
    u16::try_from(number.len() * 8)
        .unwrap_or(u16::MAX)
        .saturating_sub(u16::try_from(zeros).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_curve_is_found_by_its_oid() {
        for (curve, oid, bits) in CURVES {
            assert_eq!(Curve::from_oid(oid), Some(curve));
            assert_eq!(curve.bits(), bits);
            assert!(curve.field_len() >= 32);
        }
        assert_eq!(Curve::P521.field_len(), 66);
    }

    #[test]
    fn public_key_info_parses_as_a_subject_public_key_info() {
        use x509_cert::{der::Decode, spki::SubjectPublicKeyInfoOwned};
        let point = [&[4][..], &[0x55; 64]].concat();
        let keys = [
            PublicKey::rsa(&[0xC1; 256], &[1, 0, 1]).unwrap(),
            PublicKey::ec(Curve::P256, &point).unwrap(),
            PublicKey::Ed25519([7; 32]),
        ];
        for key in keys {
            let info = key.info();
            let parsed = SubjectPublicKeyInfoOwned::from_der(&info).unwrap();
            assert!(parsed.subject_public_key.raw_bytes().len() >= 32);
        }
    }

    #[test]
    fn points_and_moduli_of_impossible_length_are_refused() {
        assert_eq!(PublicKey::ec(Curve::P256, &[4; 64]), None);
        assert_eq!(PublicKey::ec(Curve::P256, &[2; 65]), None);
        assert_eq!(PublicKey::rsa(&[0; 300], &[1, 0, 1]), None);
        assert_eq!(PublicKey::rsa(&[0, 0xFF], &[1, 0, 1]), None);
    }
}
