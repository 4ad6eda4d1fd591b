//! The one table of mechanisms: how each works, with which keys, and what parameter it takes.

use cryptoki_sys::{
    CK_FLAGS, CK_KEY_TYPE, CK_MECHANISM_TYPE, CK_ULONG, CKF_DECRYPT, CKF_DERIVE, CKF_DIGEST,
    CKF_EC_F_P, CKF_EC_NAMEDCURVE, CKF_EC_UNCOMPRESS, CKF_ENCRYPT, CKF_GENERATE,
    CKF_GENERATE_KEY_PAIR, CKF_HW, CKF_MESSAGE_SIGN, CKF_MESSAGE_VERIFY, CKF_SIGN,
    CKF_SIGN_RECOVER, CKF_UNWRAP, CKF_VERIFY, CKF_VERIFY_RECOVER, CKF_WRAP, CKK_EC, CKK_EC_EDWARDS,
    CKK_EC_MONTGOMERY, CKK_RSA, CKM_AES_CBC, CKM_AES_CBC_PAD, CKM_AES_CTR, CKM_AES_ECB,
    CKM_AES_GCM, CKM_AES_KEY_GEN, CKM_AES_KEY_WRAP, CKM_AES_KEY_WRAP_KWP,
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

pub use crate::digest::Hash;
use crate::{
    algorithm::{Curve, KeyAlgorithm},
    host::public_key::verifiable,
};

/// How a mechanism works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// RSASSA-PKCS1-v1_5 and RSAES-PKCS1-v1_5 (RFC 8017, 8.2 and 7.2): for signatures with a hash the host builds
    /// the DigestInfo, without one the caller did.
    RsaPkcs1,
    /// The bare RSA function.
    RsaRaw,
    /// RSASSA-PSS (RFC 8017, 8.1).
    RsaPss,
    /// RSAES-OAEP (RFC 8017, 7.1).
    RsaOaep,
    /// ECDSA over a hash, of the host or the caller.
    Ecdsa,
    /// Pure Ed25519 over the whole message.
    EdDsa,
    /// Diffie-Hellman on a curve (SP 800-56A); all our curves of short Weierstrass form have cofactor 1.
    Ecdh,
    /// A hash by itself.
    Digest,
    /// HMAC (FIPS 198-1), whole or cut to the length the parameter says.
    Hmac {
        /// Whether there is such a parameter.
        cut: bool,
    },
    /// AES by single blocks.
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
    /// A random AES key.
    AesKeyGeneration,
    /// A random generic secret.
    SecretGeneration,
    /// A key pair of this key type, on a card.
    KeyPairGeneration(CK_KEY_TYPE),
}

/// One mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mechanism {
    /// Its number.
    pub kind: CK_MECHANISM_TYPE,
    /// How it works.
    pub scheme: Scheme,
    /// What the host hashes with, if it does.
    pub hash: Option<Hash>,
}

const fn row(kind: CK_MECHANISM_TYPE, scheme: Scheme, hash: Option<Hash>) -> Mechanism {
    Mechanism { kind, scheme, hash }
}

use Hash::{Sha1, Sha224, Sha256, Sha384, Sha512};

/// PKCS #11 3.1, 6.1, 6.3, 6.10, 6.13 to 6.16, 6.20 and 6.21, in the order C_GetMechanismList gives them.
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
    row(CKM_SHA_1_HMAC_GENERAL, CUT_HMAC, Some(Sha1)),
    row(CKM_SHA224_HMAC_GENERAL, CUT_HMAC, Some(Sha224)),
    row(CKM_SHA256_HMAC_GENERAL, CUT_HMAC, Some(Sha256)),
    row(CKM_SHA384_HMAC_GENERAL, CUT_HMAC, Some(Sha384)),
    row(CKM_SHA512_HMAC_GENERAL, CUT_HMAC, Some(Sha512)),
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

const HMAC: Scheme = Scheme::Hmac { cut: false };
const CUT_HMAC: Scheme = Scheme::Hmac { cut: true };

/// The C structure a mechanism's parameter is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// No parameter.
    None,
    /// CK_RSA_PKCS_PSS_PARAMS.
    Pss,
    /// CK_RSA_PKCS_OAEP_PARAMS.
    Oaep,
    /// CK_EDDSA_PARAMS, or none.
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
    /// Eight bytes, four for the padded kind, or none for the standard's own value.
    WrapIv,
}

/// A mechanism's parameter, parsed; numbers of mechanisms and functions in it are still the caller's.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Parameter {
    /// There is none.
    #[default]
    None,
    /// hashAlg, mgf, sLen.
    Pss(CK_MECHANISM_TYPE, CK_ULONG, CK_ULONG),
    /// hashAlg, mgf and the label.
    Oaep(CK_MECHANISM_TYPE, CK_ULONG, Vec<u8>),
    /// phFlag, and whether there is a context.
    EdDsa(bool, bool),
    /// kdf, shared data, the other's public point.
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

/// What a key is to a mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// A private key on a card; `bare` where the card computes the bare RSA function, so that any padding can be
    /// the host's.
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
    /// The mechanism with this number.
    #[must_use]
    pub fn of(kind: CK_MECHANISM_TYPE) -> Option<Self> {
        MECHANISMS
            .into_iter()
            .find(|mechanism| mechanism.kind == kind)
    }

    /// What can be done by it with a key, as flags of CK_MECHANISM_INFO.
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

    /// What it does with no key.
    const fn keyless(self) -> CK_FLAGS {
        match self.scheme {
            Scheme::Digest => CKF_DIGEST,
            Scheme::AesKeyGeneration | Scheme::SecretGeneration => CKF_GENERATE,
            Scheme::KeyPairGeneration(_) => CKF_GENERATE_KEY_PAIR,
            _ => 0,
        }
    }

    /// Everything it can do by any key, on the best of cards.
    #[must_use]
    pub fn all_functions(self) -> CK_FLAGS {
        KINDS
            .iter()
            .fold(self.keyless(), |flags, kind| flags | self.functions(*kind))
    }

    /// The parameter it takes.
    #[must_use]
    pub const fn shape(self) -> Shape {
        match self.scheme {
            Scheme::RsaPss => Shape::Pss,
            Scheme::RsaOaep => Shape::Oaep,
            Scheme::EdDsa => Shape::EdDsa,
            Scheme::Ecdh => Shape::Ecdh,
            Scheme::Hmac { cut: true } => Shape::MacLength,
            Scheme::AesCbc { .. } => Shape::Iv,
            Scheme::AesCtr => Shape::Counter,
            Scheme::AesGcm => Shape::Gcm,
            Scheme::AesKeyWrap { .. } => Shape::WrapIv,
            _ => Shape::None,
        }
    }

    /// What the host does by itself, with public keys, secret keys and none.
    fn on_host(self) -> CK_FLAGS {
        let kinds = KINDS
            .iter()
            .filter(|kind| !matches!(kind, KeyKind::Private(..)));
        kinds.fold(self.keyless(), |flags, kind| flags | self.functions(*kind))
    }

    /// Key sizes of what the host does: bits for RSA and curves, bytes for secret keys, 0 without a key
    /// (PKCS #11 3.1, 6.1 and following, "key size").
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

/// What a token's private keys of one kind do: a part of what C_GetMechanismInfo says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ability {
    /// A key of the kind; its size does not count.
    pub key: KeyAlgorithm,
    /// Whether the card computes the bare RSA function.
    pub bare: bool,
    /// CKF_SIGN, CKF_DECRYPT, CKF_DERIVE.
    pub functions: CK_FLAGS,
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
    /// Smallest key, in bits for RSA and curves, in bytes for secret keys.
    pub min_key_size: CK_ULONG,
    /// Largest key.
    pub max_key_size: CK_ULONG,
    /// CKF_HW where a card takes part, and what it can do.
    pub flags: CK_FLAGS,
}

/// With a permission to sign come the other ways to sign, and so on.
#[must_use]
pub const fn with_variants(functions: CK_FLAGS) -> CK_FLAGS {
    let mut all = functions;
    if functions & CKF_SIGN != 0 {
        all |= SIGNING | CKF_SIGN_RECOVER;
    }
    if functions & CKF_VERIFY != 0 {
        all |= VERIFYING | CKF_VERIFY_RECOVER;
    }
    if functions & CKF_DECRYPT != 0 {
        all |= CKF_UNWRAP;
    }
    if functions & CKF_ENCRYPT != 0 {
        all |= CKF_WRAP;
    }
    all
}

/// The mechanisms of a token whose keys have `abilities`, and of the host beside it.
#[must_use]
pub fn offered(abilities: &[Ability]) -> Vec<MechanismInfo> {
    let info = |mechanism: Mechanism| {
        let on_card = |ability: &Ability| {
            let kind = KeyKind::Private(ability.key, ability.bare);
            mechanism.functions(kind) & with_variants(ability.functions)
        };
        let able = || {
            abilities
                .iter()
                .filter(|ability| on_card(ability) & !CKF_MESSAGE_SIGN != 0)
        };
        let card = able().fold(0, |flags, ability| flags | on_card(ability));
        // Clients take a listed mechanism for one their private key can do, whatever its flags say (GnuTLS and RSA-PSS).
        let host = if mechanism.is_of_key_pairs() && card == 0 {
            0
        } else {
            mechanism.on_host()
        };
        let flags = card | host;
        let (least, most) = mechanism.host_sizes();
        (flags != 0).then(|| MechanismInfo {
            kind: mechanism.kind,
            min_key_size: able().map(|ability| ability.min).min().unwrap_or(least),
            max_key_size: able().map(|ability| ability.max).max().unwrap_or(most),
            flags: flags | mechanism.curve_flags() | if card == 0 { 0 } else { CKF_HW },
        })
    };
    MECHANISMS.into_iter().filter_map(info).collect()
}

impl Mechanism {
    /// Whether it works with key pairs.
    const fn is_of_key_pairs(self) -> bool {
        matches!(
            self.scheme,
            Scheme::RsaPkcs1
                | Scheme::RsaRaw
                | Scheme::RsaPss
                | Scheme::RsaOaep
                | Scheme::Ecdsa
                | Scheme::EdDsa
                | Scheme::Ecdh
                | Scheme::KeyPairGeneration(_)
        )
    }

    const fn curve_flags(self) -> CK_FLAGS {
        match self.scheme {
            Scheme::Ecdsa | Scheme::Ecdh => CKF_EC_F_P | CKF_EC_NAMEDCURVE | CKF_EC_UNCOMPRESS,
            Scheme::EdDsa => CKF_EC_NAMEDCURVE,
            _ => 0,
        }
    }
}

/// The mechanisms that make the keys a card can make.
#[must_use]
pub fn generating(keys: &[KeyAlgorithm]) -> Vec<MechanismInfo> {
    let info = |mechanism: &Mechanism| {
        let Scheme::KeyPairGeneration(key_type) = mechanism.scheme else {
            return None;
        };
        let sizes = || {
            keys.iter()
                .filter(|key| key.key_type() == key_type)
                .map(|key| key.bits())
        };
        let curves = if key_type == CKK_EC {
            CKF_EC_F_P | CKF_EC_NAMEDCURVE | CKF_EC_UNCOMPRESS
        } else {
            0
        };
        Some(MechanismInfo {
            kind: mechanism.kind,
            min_key_size: sizes().min()?,
            max_key_size: sizes().max()?,
            flags: CKF_HW | CKF_GENERATE_KEY_PAIR | curves,
        })
    };
    MECHANISMS.iter().filter_map(info).collect()
}

/// CKA_ALLOWED_MECHANISMS of a public key on a token: of what its private half can do, the other half.
#[must_use]
pub fn allowed_to_public(
    algorithm: KeyAlgorithm,
    bare: bool,
    functions: CK_FLAGS,
) -> Vec<CK_MECHANISM_TYPE> {
    let mut allowed = allowed(KeyKind::Public(algorithm), functions);
    allowed.retain(|kind| {
        let private = KeyKind::Private(algorithm, bare);
        Mechanism::of(*kind).is_some_and(|mechanism| mechanism.functions(private) != 0)
    });
    allowed
}

/// CKA_ALLOWED_MECHANISMS of a key that may be used for `functions`.
#[must_use]
pub fn allowed(key: KeyKind, functions: CK_FLAGS) -> Vec<CK_MECHANISM_TYPE> {
    let functions = with_variants(functions);
    let fits = |mechanism: &&Mechanism| mechanism.functions(key) & functions != 0;
    MECHANISMS
        .iter()
        .filter(fits)
        .map(|mechanism| mechanism.kind)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn private(algorithm: KeyAlgorithm) -> KeyKind {
        KeyKind::Private(algorithm, true)
    }

    #[test]
    fn a_key_is_offered_only_what_its_type_can_do() {
        assert_eq!(
            allowed(private(KeyAlgorithm::Ed25519), CKF_SIGN),
            [CKM_EDDSA]
        );
        assert_eq!(allowed(private(KeyAlgorithm::X25519), CKF_SIGN), []);
        assert_eq!(
            allowed(private(KeyAlgorithm::X25519), CKF_DERIVE),
            [CKM_ECDH1_DERIVE]
        );
        assert_eq!(allowed(private(ANY_EC), 0), []);
        let rsa = allowed(private(ANY_RSA), CKF_SIGN);
        assert!(rsa.contains(&CKM_SHA256_RSA_PKCS) && rsa.contains(&CKM_SHA256_RSA_PKCS_PSS));
        assert!(!rsa.contains(&CKM_RSA_PKCS_OAEP));
    }

    #[test]
    fn a_card_that_pads_itself_is_offered_no_other_padding() {
        let padding = KeyKind::Private(ANY_RSA, false);
        assert_eq!(allowed(padding, CKF_DECRYPT), [CKM_RSA_PKCS]);
        let signs = allowed(padding, CKF_SIGN);
        assert!(!signs.contains(&CKM_RSA_X_509) && !signs.contains(&CKM_RSA_PKCS_PSS));
    }

    #[test]
    fn what_the_host_does_by_itself_is_not_said_of_the_card() {
        let offered = offered(&[Ability {
            key: KeyAlgorithm::Ed25519,
            bare: true,
            functions: CKF_SIGN,
            min: 255,
            max: 255,
        }]);
        let info = |kind| *offered.iter().find(|info| info.kind == kind).unwrap();
        assert_eq!(
            info(CKM_EDDSA).flags & (CKF_HW | CKF_SIGN),
            CKF_HW | CKF_SIGN
        );
        for absent in [CKM_RSA_PKCS, CKM_RSA_PKCS_PSS, CKM_ECDSA, CKM_ECDH1_DERIVE] {
            assert!(offered.iter().all(|info| info.kind != absent));
        }
        assert_eq!(info(CKM_SHA512).flags, CKF_DIGEST);
    }

    #[test]
    fn every_mechanism_stands_once_in_the_table_and_does_something() {
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
