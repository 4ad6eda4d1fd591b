//! The one table of mechanisms: what each needs of a key, and how its input is prepared on the host.

use cryptoki_sys::{
    CK_FLAGS, CK_MECHANISM_TYPE, CK_ULONG, CKF_EC_F_P, CKF_EC_NAMEDCURVE, CKF_EC_UNCOMPRESS,
    CKF_HW, CKF_SIGN, CKM_ECDSA, CKM_ECDSA_SHA1, CKM_ECDSA_SHA224, CKM_ECDSA_SHA256,
    CKM_ECDSA_SHA384, CKM_ECDSA_SHA512, CKM_EDDSA, CKM_RSA_PKCS, CKM_SHA1_RSA_PKCS,
    CKM_SHA224_RSA_PKCS, CKM_SHA256_RSA_PKCS, CKM_SHA384_RSA_PKCS, CKM_SHA512_RSA_PKCS,
};

pub use crate::digest::Hash;
use crate::{algorithm::KeyAlgorithm, object::Usage};

/// How a signature is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// RSASSA-PKCS1-v1_5 (RFC 8017, 8.2): with a hash the host builds the DigestInfo, without one the caller did.
    RsaPkcs1,
    /// ECDSA over a hash, of the host or the caller.
    Ecdsa,
    /// Pure Ed25519 over the whole message.
    EdDsa,
}

/// One signing mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mechanism {
    /// Its number.
    pub kind: CK_MECHANISM_TYPE,
    /// How it signs.
    pub scheme: Scheme,
    /// What the host hashes with, if it does.
    pub hash: Option<Hash>,
}

const fn row(kind: CK_MECHANISM_TYPE, scheme: Scheme, hash: Option<Hash>) -> Mechanism {
    Mechanism { kind, scheme, hash }
}

/// PKCS #11 2.40 current mechanisms, 2.1.6, 2.3.5, 2.3.6; 3.0, 2.3.14.
const MECHANISMS: [Mechanism; 13] = [
    row(CKM_RSA_PKCS, Scheme::RsaPkcs1, None),
    row(CKM_SHA1_RSA_PKCS, Scheme::RsaPkcs1, Some(Hash::Sha1)),
    row(CKM_SHA224_RSA_PKCS, Scheme::RsaPkcs1, Some(Hash::Sha224)),
    row(CKM_SHA256_RSA_PKCS, Scheme::RsaPkcs1, Some(Hash::Sha256)),
    row(CKM_SHA384_RSA_PKCS, Scheme::RsaPkcs1, Some(Hash::Sha384)),
    row(CKM_SHA512_RSA_PKCS, Scheme::RsaPkcs1, Some(Hash::Sha512)),
    row(CKM_ECDSA, Scheme::Ecdsa, None),
    row(CKM_ECDSA_SHA1, Scheme::Ecdsa, Some(Hash::Sha1)),
    row(CKM_ECDSA_SHA224, Scheme::Ecdsa, Some(Hash::Sha224)),
    row(CKM_ECDSA_SHA256, Scheme::Ecdsa, Some(Hash::Sha256)),
    row(CKM_ECDSA_SHA384, Scheme::Ecdsa, Some(Hash::Sha384)),
    row(CKM_ECDSA_SHA512, Scheme::Ecdsa, Some(Hash::Sha512)),
    row(CKM_EDDSA, Scheme::EdDsa, None),
];

/// Key sizes a token signs with, per scheme, smallest and largest in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchemeSizes {
    /// The scheme.
    pub scheme: Scheme,
    /// Smallest key, in bits.
    pub min: CK_ULONG,
    /// Largest key, in bits.
    pub max: CK_ULONG,
}

/// What C_GetMechanismInfo says of one mechanism of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MechanismInfo {
    /// Its number.
    pub kind: CK_MECHANISM_TYPE,
    /// Smallest key in bits.
    pub min_key_size: CK_ULONG,
    /// Largest key in bits.
    pub max_key_size: CK_ULONG,
    /// CKF_HW and what it can do.
    pub flags: CK_FLAGS,
}

impl Mechanism {
    /// The signing mechanism with this number.
    #[must_use]
    pub fn signing(kind: CK_MECHANISM_TYPE) -> Option<Self> {
        MECHANISMS
            .into_iter()
            .find(|mechanism| mechanism.kind == kind)
    }
}

impl Scheme {
    /// Whether a key of this algorithm signs so.
    #[must_use]
    pub const fn fits(self, algorithm: KeyAlgorithm) -> bool {
        matches!(
            (self, algorithm),
            (Self::RsaPkcs1, KeyAlgorithm::Rsa { .. })
                | (Self::Ecdsa, KeyAlgorithm::Ec(_))
                | (Self::EdDsa, KeyAlgorithm::Ed25519)
        )
    }

    const fn flags(self) -> CK_FLAGS {
        match self {
            Self::RsaPkcs1 => CKF_HW | CKF_SIGN,
            Self::Ecdsa => CKF_HW | CKF_SIGN | CKF_EC_F_P | CKF_EC_NAMEDCURVE | CKF_EC_UNCOMPRESS,
            Self::EdDsa => CKF_HW | CKF_SIGN | CKF_EC_NAMEDCURVE,
        }
    }
}

/// The mechanisms of a token that signs with `sizes`.
#[must_use]
pub fn offered(sizes: &[SchemeSizes]) -> Vec<MechanismInfo> {
    let info = |mechanism: Mechanism| {
        let sizes = sizes
            .iter()
            .find(|sizes| sizes.scheme == mechanism.scheme)?;
        Some(MechanismInfo {
            kind: mechanism.kind,
            min_key_size: sizes.min,
            max_key_size: sizes.max,
            flags: mechanism.scheme.flags(),
        })
    };
    MECHANISMS.into_iter().filter_map(info).collect()
}

/// CKA_ALLOWED_MECHANISMS of a private key.
#[must_use]
pub fn allowed(algorithm: KeyAlgorithm, usage: Usage) -> Vec<CK_MECHANISM_TYPE> {
    let fits = |mechanism: &Mechanism| usage.sign && mechanism.scheme.fits(algorithm);
    MECHANISMS
        .iter()
        .filter(|mechanism| fits(mechanism))
        .map(|mechanism| mechanism.kind)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::Curve;

    #[test]
    fn a_key_is_offered_only_what_its_type_can_do() {
        let sign = Usage {
            sign: true,
            ..Usage::default()
        };
        assert_eq!(allowed(KeyAlgorithm::Ed25519, sign), [CKM_EDDSA]);
        assert_eq!(allowed(KeyAlgorithm::X25519, sign), []);
        assert_eq!(allowed(KeyAlgorithm::Ec(Curve::P256), Usage::default()), []);
        assert!(allowed(KeyAlgorithm::Rsa { bits: 2048 }, sign).contains(&CKM_SHA256_RSA_PKCS));
    }

    #[test]
    fn a_token_without_a_scheme_offers_none_of_its_mechanisms() {
        let offered = offered(&[SchemeSizes {
            scheme: Scheme::EdDsa,
            min: 255,
            max: 255,
        }]);
        assert_eq!(
            offered.iter().map(|info| info.kind).collect::<Vec<_>>(),
            [CKM_EDDSA]
        );
    }
}
