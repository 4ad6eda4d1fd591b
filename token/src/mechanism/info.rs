//! The mechanisms of a token with their key sizes, and the mechanisms that each key allows.

use cryptoki_sys::{
    CK_FLAGS, CK_MECHANISM_TYPE, CK_ULONG, CKF_DECRYPT, CKF_EC_F_P, CKF_EC_NAMEDCURVE,
    CKF_EC_UNCOMPRESS, CKF_ENCRYPT, CKF_GENERATE_KEY_PAIR, CKF_HW, CKF_MESSAGE_SIGN, CKF_SIGN,
    CKF_SIGN_RECOVER, CKF_UNWRAP, CKF_VERIFY, CKF_VERIFY_RECOVER, CKF_WRAP, CKK_EC,
};

use super::{KeyKind, MECHANISMS, Mechanism, SIGNING, Scheme, VERIFYING};
use crate::algorithm::KeyAlgorithm;

/// The functions of a token's private keys of one kind. C_GetMechanismInfo combines them with those of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyCapability {
    /// A key of the kind. Its size is ignored.
    pub key: KeyAlgorithm,
    /// Whether the card computes the raw RSA function.
    pub raw_rsa: bool,
    /// CKF_SIGN, CKF_DECRYPT, CKF_DERIVE.
    pub functions: CK_FLAGS,
    /// Smallest key, in bits.
    pub min: CK_ULONG,
    /// Largest key, in bits.
    pub max: CK_ULONG,
}

/// The C_GetMechanismInfo of one mechanism of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MechanismInfo {
    /// The mechanism's number.
    pub kind: CK_MECHANISM_TYPE,
    /// Smallest key, in bits for RSA and curves, in bytes for secret keys.
    pub min_key_size: CK_ULONG,
    /// Largest key, in the same unit.
    pub max_key_size: CK_ULONG,
    /// The functions, and CKF_HW if a card takes part.
    pub flags: CK_FLAGS,
}

/// Adds the variants of each function: a key that may sign may also sign with recovery and sign messages, and so on.
const fn with_variants(functions: CK_FLAGS) -> CK_FLAGS {
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

/// Returns the mechanisms of a token whose keys have `capabilities`, and those of the host.
#[must_use]
pub fn mechanism_infos(capabilities: &[KeyCapability]) -> Vec<MechanismInfo> {
    let info = |mechanism: Mechanism| {
        let on_card = |capability: &KeyCapability| {
            let kind = KeyKind::Private(capability.key, capability.raw_rsa);
            mechanism.functions(kind) & with_variants(capability.functions)
        };
        let able = || {
            capabilities
                .iter()
                .filter(|capability| on_card(capability) & !CKF_MESSAGE_SIGN != 0)
        };
        let card = able().fold(0, |flags, capability| flags | on_card(capability));
        // Clients assume that their private key supports every listed mechanism, whatever its flags are (GnuTLS and
        // RSA-PSS).
        let host = if mechanism.is_of_key_pairs() && card == 0 {
            0
        } else {
            mechanism.host_functions()
        };
        let flags = card | host;
        let (least, most) = mechanism.host_sizes();
        (flags != 0).then(|| MechanismInfo {
            kind: mechanism.kind,
            min_key_size: able()
                .map(|capability| capability.min)
                .min()
                .unwrap_or(least),
            max_key_size: able()
                .map(|capability| capability.max)
                .max()
                .unwrap_or(most),
            flags: flags | mechanism.curve_flags() | if card == 0 { 0 } else { CKF_HW },
        })
    };
    MECHANISMS.into_iter().filter_map(info).collect()
}

impl Mechanism {
    /// Returns whether the mechanism works with key pairs.
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

/// Returns the mechanisms that generate `keys` on a card.
#[must_use]
pub fn generation_mechanisms(keys: &[KeyAlgorithm]) -> Vec<MechanismInfo> {
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

/// Returns CKA_ALLOWED_MECHANISMS of a public key on a token: only mechanisms that its private key supports too.
#[must_use]
pub fn allowed_to_public(
    algorithm: KeyAlgorithm,
    raw_rsa: bool,
    functions: CK_FLAGS,
) -> Vec<CK_MECHANISM_TYPE> {
    let mut allowed = allowed_mechanisms(KeyKind::Public(algorithm), functions);
    allowed.retain(|kind| {
        let private = KeyKind::Private(algorithm, raw_rsa);
        Mechanism::of(*kind).is_some_and(|mechanism| mechanism.functions(private) != 0)
    });
    allowed
}

/// Returns CKA_ALLOWED_MECHANISMS of a key that may be used for `functions`.
#[must_use]
pub fn allowed_mechanisms(key: KeyKind, functions: CK_FLAGS) -> Vec<CK_MECHANISM_TYPE> {
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
    use cryptoki_sys::{
        CKF_DERIVE, CKF_DIGEST, CKM_ECDH1_DERIVE, CKM_ECDSA, CKM_EDDSA, CKM_RSA_PKCS,
        CKM_RSA_PKCS_OAEP, CKM_RSA_PKCS_PSS, CKM_RSA_X_509, CKM_SHA256_RSA_PKCS,
        CKM_SHA256_RSA_PKCS_PSS, CKM_SHA512,
    };

    use super::*;
    use crate::mechanism::{ANY_EC, ANY_RSA};

    fn private(algorithm: KeyAlgorithm) -> KeyKind {
        KeyKind::Private(algorithm, true)
    }

    #[test]
    fn a_key_is_offered_only_what_its_type_can_do() {
        assert_eq!(
            allowed_mechanisms(private(KeyAlgorithm::Ed25519), CKF_SIGN),
            [CKM_EDDSA]
        );
        assert_eq!(
            allowed_mechanisms(private(KeyAlgorithm::X25519), CKF_SIGN),
            []
        );
        assert_eq!(
            allowed_mechanisms(private(KeyAlgorithm::X25519), CKF_DERIVE),
            [CKM_ECDH1_DERIVE]
        );
        assert_eq!(allowed_mechanisms(private(ANY_EC), 0), []);
        let rsa = allowed_mechanisms(private(ANY_RSA), CKF_SIGN);
        assert!(rsa.contains(&CKM_SHA256_RSA_PKCS) && rsa.contains(&CKM_SHA256_RSA_PKCS_PSS));
        assert!(!rsa.contains(&CKM_RSA_PKCS_OAEP));
    }

    #[test]
    fn card_that_pads_rsa_itself_offers_no_other_padding() {
        let padding = KeyKind::Private(ANY_RSA, false);
        assert_eq!(allowed_mechanisms(padding, CKF_DECRYPT), [CKM_RSA_PKCS]);
        let signs = allowed_mechanisms(padding, CKF_SIGN);
        assert!(!signs.contains(&CKM_RSA_X_509) && !signs.contains(&CKM_RSA_PKCS_PSS));
    }

    #[test]
    fn host_mechanisms_are_not_attributed_to_the_card() {
        let listed = mechanism_infos(&[KeyCapability {
            key: KeyAlgorithm::Ed25519,
            raw_rsa: true,
            functions: CKF_SIGN,
            min: 255,
            max: 255,
        }]);
        let info = |kind| *listed.iter().find(|info| info.kind == kind).unwrap();
        assert_eq!(
            info(CKM_EDDSA).flags & (CKF_HW | CKF_SIGN),
            CKF_HW | CKF_SIGN
        );
        for absent in [CKM_RSA_PKCS, CKM_RSA_PKCS_PSS, CKM_ECDSA, CKM_ECDH1_DERIVE] {
            assert!(listed.iter().all(|info| info.kind != absent));
        }
        assert_eq!(info(CKM_SHA512).flags, CKF_DIGEST);
    }
}
