//! The table of mechanisms: how each works, with which keys, and which parameter it takes.

mod info;

use cryptoki_sys::{
    CK_FLAGS, CK_KEY_TYPE, CK_MECHANISM_TYPE, CK_ULONG, CKF_DECRYPT, CKF_DERIVE, CKF_DIGEST,
    CKF_ENCRYPT, CKF_GENERATE, CKF_GENERATE_KEY_PAIR, CKF_MESSAGE_SIGN, CKF_MESSAGE_VERIFY,
    CKF_SIGN, CKF_SIGN_RECOVER, CKF_UNWRAP, CKF_VERIFY, CKF_VERIFY_RECOVER, CKF_WRAP, CKK_EC,
    CKK_EC_EDWARDS, CKK_EC_MONTGOMERY, CKK_RSA, CKM_AES_CBC, CKM_AES_CBC_PAD, CKM_AES_CTR,
    CKM_AES_ECB, CKM_AES_GCM, CKM_AES_KEY_GEN, CKM_AES_KEY_WRAP, CKM_AES_KEY_WRAP_KWP,
    CKM_EC_EDWARDS_KEY_PAIR_GEN, CKM_EC_KEY_PAIR_GEN, CKM_EC_MONTGOMERY_KEY_PAIR_GEN,
    CKM_ECDH1_COFACTOR_DERIVE, CKM_ECDH1_DERIVE, CKM_ECDSA, CKM_ECDSA_SHA1, CKM_ECDSA_SHA224,
    CKM_ECDSA_SHA256, CKM_ECDSA_SHA384, CKM_ECDSA_SHA512, CKM_EDDSA, CKM_GENERIC_SECRET_KEY_GEN,
    CKM_RSA_PKCS, CKM_RSA_PKCS_KEY_PAIR_GEN, CKM_RSA_PKCS_OAEP, CKM_RSA_PKCS_PSS, CKM_RSA_X_509,
    CKM_SHA_1, CKM_SHA_1_HMAC, CKM_SHA_1_HMAC_GENERAL, CKM_SHA1_RSA_PKCS, CKM_SHA1_RSA_PKCS_PSS,
    CKM_SHA224, CKM_SHA224_HMAC, CKM_SHA224_HMAC_GENERAL, CKM_SHA224_RSA_PKCS,
    CKM_SHA224_RSA_PKCS_PSS, CKM_SHA256, CKM_SHA256_HMAC, CKM_SHA256_HMAC_GENERAL,
    CKM_SHA256_RSA_PKCS, CKM_SHA256_RSA_PKCS_PSS, CKM_SHA384, CKM_SHA384_HMAC,
    CKM_SHA384_HMAC_GENERAL, CKM_SHA384_RSA_PKCS, CKM_SHA384_RSA_PKCS_PSS, CKM_SHA512,
    CKM_SHA512_HMAC, CKM_SHA512_HMAC_GENERAL, CKM_SHA512_RSA_PKCS, CKM_SHA512_RSA_PKCS_PSS,
};

pub use self::info::{
    KeyCapability, MechanismInfo, allowed_mechanisms, allowed_to_public, generation_mechanisms,
    mechanism_infos,
};
pub use crate::digest::Hash;
use crate::{
    algorithm::{Curve, KeyAlgorithm},
    host::public_key::verifiable,
};

/// How a mechanism works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// RSASSA-PKCS1-v1_5 and RSAES-PKCS1-v1_5 (RFC 8017, 8.2 and 7.2). For a signature with a hash, the host builds the
    /// DigestInfo. Without a hash, the caller has built it.
    RsaPkcs1,
    /// The raw RSA function.
    RsaRaw,
    /// RSASSA-PSS (RFC 8017, 8.1).
    RsaPss,
    /// RSAES-OAEP (RFC 8017, 7.1).
    RsaOaep,
    /// ECDSA over a hash from the host or from the caller.
    Ecdsa,
    /// Pure Ed25519 over the whole message.
    EdDsa,
    /// Diffie-Hellman on a curve (SP 800-56A). All supported curves of short Weierstrass form have cofactor 1.
    Ecdh,
    /// A plain hash.
    Digest,
    /// HMAC (FIPS 198-1), whole or truncated to the length in the parameter.
    Hmac {
        /// Whether the mechanism takes that parameter.
        truncated: bool,
    },
    /// AES-ECB.
    AesEcb,
    /// AES-CBC.
    AesCbc {
        /// With PKCS #7 padding.
        padded: bool,
    },
    /// AES in counter mode.
    AesCtr,
    /// AES-GCM.
    AesGcm,
    /// AES key wrap (RFC 3394).
    AesKeyWrap {
        /// With padding (RFC 5649).
        padded: bool,
    },
    /// Generation of a random AES key.
    AesKeyGeneration,
    /// Generation of a random generic secret.
    SecretGeneration,
    /// Generation of a key pair of this key type, on a card.
    KeyPairGeneration(CK_KEY_TYPE),
}

/// One mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mechanism {
    /// The mechanism's number.
    pub kind: CK_MECHANISM_TYPE,
    /// How it works.
    pub scheme: Scheme,
    /// The hash that the host computes, if any.
    pub hash: Option<Hash>,
}

const fn row(kind: CK_MECHANISM_TYPE, scheme: Scheme, hash: Option<Hash>) -> Mechanism {
    Mechanism { kind, scheme, hash }
}

use Hash::{Sha1, Sha224, Sha256, Sha384, Sha512};

/// PKCS #11 3.1, 6.1, 6.3, 6.10, 6.13 to 6.16, 6.20 and 6.21, in the order of C_GetMechanismList.
const MECHANISMS: [Mechanism; 51] = [
    row(
        CKM_RSA_PKCS_KEY_PAIR_GEN,
        Scheme::KeyPairGeneration(CKK_RSA),
        None,
    ),
    row(CKM_EC_KEY_PAIR_GEN, Scheme::KeyPairGeneration(CKK_EC), None),
    row(
        CKM_EC_EDWARDS_KEY_PAIR_GEN,
        Scheme::KeyPairGeneration(CKK_EC_EDWARDS),
        None,
    ),
    row(
        CKM_EC_MONTGOMERY_KEY_PAIR_GEN,
        Scheme::KeyPairGeneration(CKK_EC_MONTGOMERY),
        None,
    ),
    row(CKM_RSA_PKCS, Scheme::RsaPkcs1, None),
    row(CKM_RSA_X_509, Scheme::RsaRaw, None),
    row(CKM_SHA1_RSA_PKCS, Scheme::RsaPkcs1, Some(Sha1)),
    row(CKM_SHA224_RSA_PKCS, Scheme::RsaPkcs1, Some(Sha224)),
    row(CKM_SHA256_RSA_PKCS, Scheme::RsaPkcs1, Some(Sha256)),
    row(CKM_SHA384_RSA_PKCS, Scheme::RsaPkcs1, Some(Sha384)),
    row(CKM_SHA512_RSA_PKCS, Scheme::RsaPkcs1, Some(Sha512)),
    row(CKM_RSA_PKCS_OAEP, Scheme::RsaOaep, None),
    row(CKM_RSA_PKCS_PSS, Scheme::RsaPss, None),
    row(CKM_SHA1_RSA_PKCS_PSS, Scheme::RsaPss, Some(Sha1)),
    row(CKM_SHA224_RSA_PKCS_PSS, Scheme::RsaPss, Some(Sha224)),
    row(CKM_SHA256_RSA_PKCS_PSS, Scheme::RsaPss, Some(Sha256)),
    row(CKM_SHA384_RSA_PKCS_PSS, Scheme::RsaPss, Some(Sha384)),
    row(CKM_SHA512_RSA_PKCS_PSS, Scheme::RsaPss, Some(Sha512)),
    row(CKM_ECDSA, Scheme::Ecdsa, None),
    row(CKM_ECDSA_SHA1, Scheme::Ecdsa, Some(Sha1)),
    row(CKM_ECDSA_SHA224, Scheme::Ecdsa, Some(Sha224)),
    row(CKM_ECDSA_SHA256, Scheme::Ecdsa, Some(Sha256)),
    row(CKM_ECDSA_SHA384, Scheme::Ecdsa, Some(Sha384)),
    row(CKM_ECDSA_SHA512, Scheme::Ecdsa, Some(Sha512)),
    row(CKM_EDDSA, Scheme::EdDsa, None),
    row(CKM_ECDH1_DERIVE, Scheme::Ecdh, None),
    row(CKM_ECDH1_COFACTOR_DERIVE, Scheme::Ecdh, None),
    row(CKM_SHA_1, Scheme::Digest, Some(Sha1)),
    row(CKM_SHA224, Scheme::Digest, Some(Sha224)),
    row(CKM_SHA256, Scheme::Digest, Some(Sha256)),
    row(CKM_SHA384, Scheme::Digest, Some(Sha384)),
    row(CKM_SHA512, Scheme::Digest, Some(Sha512)),
    row(CKM_SHA_1_HMAC, HMAC, Some(Sha1)),
    row(CKM_SHA224_HMAC, HMAC, Some(Sha224)),
    row(CKM_SHA256_HMAC, HMAC, Some(Sha256)),
    row(CKM_SHA384_HMAC, HMAC, Some(Sha384)),
    row(CKM_SHA512_HMAC, HMAC, Some(Sha512)),
    row(CKM_SHA_1_HMAC_GENERAL, TRUNCATED_HMAC, Some(Sha1)),
    row(CKM_SHA224_HMAC_GENERAL, TRUNCATED_HMAC, Some(Sha224)),
    row(CKM_SHA256_HMAC_GENERAL, TRUNCATED_HMAC, Some(Sha256)),
    row(CKM_SHA384_HMAC_GENERAL, TRUNCATED_HMAC, Some(Sha384)),
    row(CKM_SHA512_HMAC_GENERAL, TRUNCATED_HMAC, Some(Sha512)),
    row(CKM_AES_ECB, Scheme::AesEcb, None),
    row(CKM_AES_CBC, Scheme::AesCbc { padded: false }, None),
    row(CKM_AES_CBC_PAD, Scheme::AesCbc { padded: true }, None),
    row(CKM_AES_CTR, Scheme::AesCtr, None),
    row(CKM_AES_GCM, Scheme::AesGcm, None),
    row(CKM_AES_KEY_WRAP, Scheme::AesKeyWrap { padded: false }, None),
    row(
        CKM_AES_KEY_WRAP_KWP,
        Scheme::AesKeyWrap { padded: true },
        None,
    ),
    row(CKM_AES_KEY_GEN, Scheme::AesKeyGeneration, None),
    row(CKM_GENERIC_SECRET_KEY_GEN, Scheme::SecretGeneration, None),
];

const HMAC: Scheme = Scheme::Hmac { truncated: false };
const TRUNCATED_HMAC: Scheme = Scheme::Hmac { truncated: true };

/// The C structure of a mechanism's parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterType {
    /// No parameter.
    None,
    /// CK_RSA_PKCS_PSS_PARAMS.
    Pss,
    /// CK_RSA_PKCS_OAEP_PARAMS.
    Oaep,
    /// CK_EDDSA_PARAMS, or no parameter.
    EdDsa,
    /// CK_ECDH1_DERIVE_PARAMS.
    Ecdh,
    /// CK_MAC_GENERAL_PARAMS, a CK_ULONG.
    MacLength,
    /// 16 bytes.
    Iv,
    /// CK_AES_CTR_PARAMS.
    Counter,
    /// CK_GCM_PARAMS.
    Gcm,
    /// Eight bytes, or four for the padded kind. Without a parameter the standard's own value applies.
    WrapIv,
}

/// A mechanism's parameter, parsed. The numbers of mechanisms and functions in it are not validated yet.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Parameter {
    /// No parameter.
    #[default]
    None,
    /// hashAlg, mgf, sLen.
    Pss(CK_MECHANISM_TYPE, CK_ULONG, CK_ULONG),
    /// hashAlg, mgf and the label.
    Oaep(CK_MECHANISM_TYPE, CK_ULONG, Vec<u8>),
    /// phFlag, and whether there is a context.
    EdDsa(bool, bool),
    /// kdf, shared data, the peer's public point.
    Ecdh(CK_ULONG, Vec<u8>, Vec<u8>),
    /// Length of the MAC in bytes.
    MacLength(CK_ULONG),
    /// An initialisation vector.
    Iv(Vec<u8>),
    /// Bits of the counter and the first block.
    Counter(CK_ULONG, [u8; 16]),
    /// Initialisation vector, additional data, bits of the tag.
    Gcm(Vec<u8>, Vec<u8>, CK_ULONG),
}

/// The kind of a key, as mechanisms distinguish it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// A private key on a card. The flag is true if the card computes the raw RSA function, so that the host can apply
    /// any padding.
    Private(KeyAlgorithm, bool),
    /// A public key.
    Public(KeyAlgorithm),
    /// A generic secret.
    Generic,
    /// An AES key.
    Aes,
}

const SIGNING: CK_FLAGS = CKF_SIGN | CKF_MESSAGE_SIGN;
const VERIFYING: CK_FLAGS = CKF_VERIFY | CKF_MESSAGE_VERIFY;

impl Mechanism {
    /// Returns the mechanism with this number.
    #[must_use]
    pub fn of(kind: CK_MECHANISM_TYPE) -> Option<Self> {
        MECHANISMS
            .into_iter()
            .find(|mechanism| mechanism.kind == kind)
    }

    /// Returns the functions of the mechanism with a key, as flags of CK_MECHANISM_INFO.
    #[must_use]
    pub fn functions(self, key: KeyKind) -> CK_FLAGS {
        let with_hash = self.hash.is_some();
        match (self.scheme, key) {
            (Scheme::RsaPkcs1, KeyKind::Private(KeyAlgorithm::Rsa { .. }, _)) if with_hash => {
                SIGNING
            }
            (Scheme::RsaPkcs1, KeyKind::Public(KeyAlgorithm::Rsa { .. })) if with_hash => VERIFYING,
            (Scheme::RsaPkcs1, KeyKind::Private(KeyAlgorithm::Rsa { .. }, _)) => {
                SIGNING | CKF_SIGN_RECOVER | CKF_DECRYPT | CKF_UNWRAP
            }
            (Scheme::RsaPkcs1, KeyKind::Public(KeyAlgorithm::Rsa { .. })) => {
                VERIFYING | CKF_VERIFY_RECOVER | CKF_ENCRYPT | CKF_WRAP
            }
            (Scheme::RsaRaw, KeyKind::Private(KeyAlgorithm::Rsa { .. }, true)) => {
                SIGNING | CKF_SIGN_RECOVER | CKF_DECRYPT
            }
            (Scheme::RsaRaw, KeyKind::Public(KeyAlgorithm::Rsa { .. })) => {
                VERIFYING | CKF_VERIFY_RECOVER | CKF_ENCRYPT
            }
            (Scheme::RsaPss, KeyKind::Private(KeyAlgorithm::Rsa { .. }, true)) => SIGNING,
            (Scheme::RsaPss, KeyKind::Public(KeyAlgorithm::Rsa { .. })) => VERIFYING,
            (Scheme::RsaOaep, KeyKind::Private(KeyAlgorithm::Rsa { .. }, true)) => {
                CKF_DECRYPT | CKF_UNWRAP
            }
            (Scheme::RsaOaep, KeyKind::Public(KeyAlgorithm::Rsa { .. })) => CKF_ENCRYPT | CKF_WRAP,
            (Scheme::Ecdsa, KeyKind::Private(KeyAlgorithm::Ec(_), _))
            | (Scheme::EdDsa, KeyKind::Private(KeyAlgorithm::Ed25519, _)) => SIGNING,
            (Scheme::Ecdsa, KeyKind::Public(algorithm @ KeyAlgorithm::Ec(_)))
            | (Scheme::EdDsa, KeyKind::Public(algorithm @ KeyAlgorithm::Ed25519))
                if verifiable(algorithm) =>
            {
                VERIFYING
            }
            (Scheme::Ecdh, KeyKind::Private(KeyAlgorithm::Ec(_), _)) => CKF_DERIVE,
            // PKCS #11 3.1, 6.3.18: a Montgomery curve has no cofactor variant.
            (Scheme::Ecdh, KeyKind::Private(KeyAlgorithm::X25519, _))
                if self.kind == CKM_ECDH1_DERIVE =>
            {
                CKF_DERIVE
            }
            (Scheme::Hmac { .. }, KeyKind::Generic) => SIGNING | VERIFYING,
            (Scheme::AesCbc { .. } | Scheme::AesGcm, KeyKind::Aes) => {
                CKF_ENCRYPT | CKF_DECRYPT | CKF_WRAP | CKF_UNWRAP
            }
            (Scheme::AesEcb | Scheme::AesCtr, KeyKind::Aes) => CKF_ENCRYPT | CKF_DECRYPT,
            (Scheme::AesKeyWrap { .. }, KeyKind::Aes) => CKF_WRAP | CKF_UNWRAP,
            _ => 0,
        }
    }

    /// Returns the functions of the mechanism that need no key.
    const fn keyless(self) -> CK_FLAGS {
        match self.scheme {
            Scheme::Digest => CKF_DIGEST,
            Scheme::AesKeyGeneration | Scheme::SecretGeneration => CKF_GENERATE,
            Scheme::KeyPairGeneration(_) => CKF_GENERATE_KEY_PAIR,
            _ => 0,
        }
    }

    /// Returns all functions of the mechanism with any key on the most capable card.
    #[must_use]
    pub fn all_functions(self) -> CK_FLAGS {
        KINDS
            .iter()
            .fold(self.keyless(), |flags, kind| flags | self.functions(*kind))
    }

    /// Returns the type of the mechanism's parameter.
    #[must_use]
    pub const fn parameter_type(self) -> ParameterType {
        match self.scheme {
            Scheme::RsaPss => ParameterType::Pss,
            Scheme::RsaOaep => ParameterType::Oaep,
            Scheme::EdDsa => ParameterType::EdDsa,
            Scheme::Ecdh => ParameterType::Ecdh,
            Scheme::Hmac { truncated: true } => ParameterType::MacLength,
            Scheme::AesCbc { .. } => ParameterType::Iv,
            Scheme::AesCtr => ParameterType::Counter,
            Scheme::AesGcm => ParameterType::Gcm,
            Scheme::AesKeyWrap { .. } => ParameterType::WrapIv,
            _ => ParameterType::None,
        }
    }

    /// Returns the functions on the host: with public keys, with secret keys, and without a key.
    fn host_functions(self) -> CK_FLAGS {
        let kinds = KINDS
            .iter()
            .filter(|kind| !matches!(kind, KeyKind::Private(..)));
        kinds.fold(self.keyless(), |flags, kind| flags | self.functions(*kind))
    }

    /// Returns the key sizes of the functions on the host: bits for RSA and curves, bytes for secret keys, 0 without a
    /// key (PKCS #11 3.1, 6.1 and following, "key size").
    const fn host_sizes(self) -> (CK_ULONG, CK_ULONG) {
        match self.scheme {
            Scheme::RsaPkcs1 | Scheme::RsaRaw | Scheme::RsaPss | Scheme::RsaOaep => (1024, 8192),
            Scheme::Ecdsa | Scheme::Ecdh => (256, 521),
            Scheme::EdDsa => (255, 255),
            Scheme::Digest => (0, 0),
            Scheme::Hmac { .. } | Scheme::SecretGeneration => (1, MAX_SECRET),
            _ => (16, 32),
        }
    }
}

/// Longest generic secret, in bytes.
pub const MAX_SECRET: CK_ULONG = 4096;

const ANY_RSA: KeyAlgorithm = KeyAlgorithm::Rsa { bits: 2048 };
const ANY_EC: KeyAlgorithm = KeyAlgorithm::Ec(Curve::P256);

/// One key of each kind.
const KINDS: [KeyKind; 9] = [
    KeyKind::Private(ANY_RSA, true),
    KeyKind::Private(ANY_EC, true),
    KeyKind::Private(KeyAlgorithm::Ed25519, true),
    KeyKind::Private(KeyAlgorithm::X25519, true),
    KeyKind::Public(ANY_RSA),
    KeyKind::Public(ANY_EC),
    KeyKind::Public(KeyAlgorithm::Ed25519),
    KeyKind::Generic,
    KeyKind::Aes,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mechanism_is_listed_once_and_has_a_function() {
        for (index, mechanism) in MECHANISMS.iter().enumerate() {
            assert!(mechanism.all_functions() != 0, "{mechanism:?}");
            assert_eq!(
                MECHANISMS
                    .iter()
                    .position(|other| other.kind == mechanism.kind),
                Some(index)
            );
        }
    }
}
