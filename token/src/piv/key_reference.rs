//! PIV keys by their key references (SP 800-73-4 part 1, table 4b): names, identifiers and rules.

use crate::{
    algorithm::KeyAlgorithm,
    certificate::KeyUsage,
    naming::{IdScheme, Naming},
    object::{KeyIdentity, KeyPermissions, PinPolicy},
};

/// A key reference: it holds an asymmetric key and has a certificate object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum KeyReference {
    /// 9A.
    Authentication,
    /// 9C.
    Signature,
    /// 9D.
    Management,
    /// 9E.
    CardAuthentication,
    /// 82 to 95, numbered from 1.
    Retired(RetiredNumber),
}

/// The number of a retired key, 1 to 20.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RetiredNumber(u8);

impl RetiredNumber {
    /// Most retired keys of a card.
    pub(super) const MAX: u8 = 20;

    pub(super) fn new(number: u8) -> Option<Self> {
        (1..=Self::MAX).contains(&number).then_some(Self(number))
    }

    pub(super) const fn get(self) -> u8 {
        self.0
    }
}

impl KeyReference {
    const PRIMARY: [Self; 4] = [
        Self::Authentication,
        Self::Signature,
        Self::Management,
        Self::CardAuthentication,
    ];

    /// Returns every key reference, in the order of listings.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let retired = (1..=RetiredNumber::MAX).filter_map(RetiredNumber::new);
        Self::PRIMARY.into_iter().chain(retired.map(Self::Retired))
    }

    /// Returns P2 of GENERAL AUTHENTICATE.
    pub(super) const fn byte(self) -> u8 {
        match self {
            Self::Authentication => 0x9A,
            Self::Signature => 0x9C,
            Self::Management => 0x9D,
            Self::CardAuthentication => 0x9E,
            Self::Retired(RetiredNumber(number)) => 0x82 + number - 1,
        }
    }

    /// Returns 1 to 24, in the order of listings.
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Authentication => 1,
            Self::Signature => 2,
            Self::Management => 3,
            Self::CardAuthentication => 4,
            Self::Retired(RetiredNumber(number)) => 4 + number,
        }
    }

    /// Returns the CKA_ID. OpenSC reads the decimal digits of the number as hexadecimal, so retired key 6 is 10 there
    /// and 0A with ykcs11.
    pub(super) const fn id(self, scheme: IdScheme) -> u8 {
        let number = self.number();
        match scheme {
            IdScheme::OpenSc => number / 10 * 0x10 + number % 10,
            IdScheme::Ykcs11 => number,
        }
    }

    /// Returns the identifiers and labels of the objects.
    pub(super) fn identity(self, naming: &Naming) -> KeyIdentity {
        naming.apply(match naming.ids {
            IdScheme::OpenSc => self.opensc_identity(),
            IdScheme::Ykcs11 => self.ykcs11_identity(),
        })
    }

    fn ykcs11_identity(self) -> KeyIdentity {
        let name = match self {
            Self::Authentication => "PIV Authentication".to_owned(),
            Self::Signature => "Digital Signature".to_owned(),
            Self::Management => "Key Management".to_owned(),
            Self::CardAuthentication => "Card Authentication".to_owned(),
            Self::Retired(RetiredNumber(number)) => format!("Retired Key {number}"),
        };
        KeyIdentity {
            reference: self.byte(),
            id: vec![self.id(IdScheme::Ykcs11)],
            certificate_label: format!("X.509 Certificate for {name}"),
            public_label: format!("Public key for {name}"),
            private_label: format!("Private key for {name}"),
        }
    }

    fn opensc_identity(self) -> KeyIdentity {
        let id = vec![self.id(IdScheme::OpenSc)];
        let named = |certificate: &str, key: &str| KeyIdentity {
            reference: self.byte(),
            id: id.clone(),
            certificate_label: format!("Certificate for {certificate}"),
            public_label: format!("{key} pubkey"),
            private_label: format!("{key} key"),
        };
        match self {
            Self::Authentication => named("PIV Authentication", "PIV AUTH"),
            Self::Signature => named("Digital Signature", "SIGN"),
            Self::Management => named("Key Management", "KEY MAN"),
            Self::CardAuthentication => named("Card Authentication", "CARD AUTH"),
            Self::Retired(RetiredNumber(number)) => KeyIdentity {
                reference: self.byte(),
                id,
                certificate_label: format!("Retired Certificate for Key Management {number}"),
                public_label: format!("Retired KEY MAN {number}"),
                private_label: format!("Retired KEY MAN {number}"),
            },
        }
    }

    /// Returns when the key needs the PIN, if the card does not report it (SP 800-73-4 part 1, table 4b).
    pub(super) const fn pin_policy(self) -> PinPolicy {
        match self {
            Self::Signature => PinPolicy::Always,
            Self::CardAuthentication => PinPolicy::Never,
            Self::Authentication | Self::Management | Self::Retired(_) => PinPolicy::Once,
        }
    }

    /// Returns the permitted functions of the key. `certificate` determines them if it is given, otherwise the key
    /// reference does.
    pub(super) fn usage(
        self,
        algorithm: KeyAlgorithm,
        certificate: Option<KeyUsage>,
    ) -> KeyPermissions {
        let (signs, manages) = match (self, certificate) {
            (_, Some(usage)) => return usage_by_certificate(algorithm, usage),
            (Self::Authentication | Self::Signature, None) => (true, true),
            (Self::CardAuthentication, None) => (true, false),
            (Self::Management | Self::Retired(_), None) => (false, true),
        };
        match algorithm {
            KeyAlgorithm::Rsa { .. } => KeyPermissions {
                sign: signs,
                decrypt: manages,
                derive: false,
            },
            KeyAlgorithm::Ec(_) => KeyPermissions {
                sign: signs,
                decrypt: false,
                derive: !signs,
            },
            // These algorithms have one function, in every key reference.
            KeyAlgorithm::Ed25519 => KeyPermissions {
                sign: true,
                ..KeyPermissions::default()
            },
            KeyAlgorithm::X25519 => KeyPermissions {
                derive: true,
                ..KeyPermissions::default()
            },
        }
    }
}

/// Converts keyUsage as OpenSC does: an RSA key that signs also decrypts.
const fn usage_by_certificate(algorithm: KeyAlgorithm, usage: KeyUsage) -> KeyPermissions {
    let signs = KeyUsage::DIGITAL_SIGNATURE
        | KeyUsage::NON_REPUDIATION
        | KeyUsage::KEY_CERT_SIGN
        | KeyUsage::CRL_SIGN;
    let decrypts = KeyUsage::DIGITAL_SIGNATURE
        | KeyUsage::NON_REPUDIATION
        | KeyUsage::KEY_ENCIPHERMENT
        | KeyUsage::DATA_ENCIPHERMENT
        | KeyUsage::ENCIPHER_ONLY;
    let rsa = matches!(algorithm, KeyAlgorithm::Rsa { .. });
    KeyPermissions {
        sign: !matches!(algorithm, KeyAlgorithm::X25519) && usage.any(signs),
        decrypt: rsa && usage.any(decrypts),
        derive: !matches!(algorithm, KeyAlgorithm::Ed25519) && usage.any(KeyUsage::KEY_AGREEMENT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::Curve;

    fn retired(number: u8) -> KeyReference {
        KeyReference::Retired(RetiredNumber::new(number).unwrap())
    }

    #[test]
    fn retired_keys_are_82_to_95() {
        assert_eq!(retired(1).byte(), 0x82);
        assert_eq!(retired(20).byte(), 0x95);
        assert_eq!(RetiredNumber::new(0), None);
        assert_eq!(RetiredNumber::new(21), None);
        assert_eq!(KeyReference::all().count(), 24);
    }

    #[test]
    fn ids_follow_the_configured_scheme() {
        for (key, opensc, ykcs11) in [
            (KeyReference::Authentication, 0x01, 1),
            (KeyReference::Signature, 0x02, 2),
            (KeyReference::Management, 0x03, 3),
            (KeyReference::CardAuthentication, 0x04, 4),
            (retired(1), 0x05, 5),
            (retired(5), 0x09, 9),
            (retired(6), 0x10, 10),
            (retired(15), 0x19, 19),
            (retired(16), 0x20, 20),
            (retired(20), 0x24, 24),
        ] {
            assert_eq!(key.id(IdScheme::OpenSc), opensc, "{key:?}");
            assert_eq!(key.id(IdScheme::Ykcs11), ykcs11, "{key:?}");
        }
    }

    #[test]
    fn labels_follow_the_configured_scheme() {
        let labels = |key: KeyReference, ids| {
            let identity = key.identity(&Naming {
                ids,
                ..Naming::default()
            });
            [
                identity.certificate_label,
                identity.public_label,
                identity.private_label,
            ]
        };
        assert_eq!(
            labels(KeyReference::Signature, IdScheme::OpenSc),
            [
                "Certificate for Digital Signature",
                "SIGN pubkey",
                "SIGN key"
            ]
        );
        assert_eq!(
            labels(KeyReference::Signature, IdScheme::Ykcs11),
            [
                "X.509 Certificate for Digital Signature",
                "Public key for Digital Signature",
                "Private key for Digital Signature"
            ]
        );
        assert_eq!(
            labels(retired(12), IdScheme::Ykcs11),
            [
                "X.509 Certificate for Retired Key 12",
                "Public key for Retired Key 12",
                "Private key for Retired Key 12"
            ]
        );
    }

    #[test]
    fn key_reference_decides_key_usage_without_a_certificate() {
        let rsa = KeyAlgorithm::Rsa { bits: 2048 };
        let p256 = KeyAlgorithm::Ec(Curve::P256);
        let usage = |key: KeyReference, algorithm| {
            let usage = key.usage(algorithm, None);
            (usage.sign, usage.decrypt, usage.derive)
        };
        assert_eq!(
            usage(KeyReference::Authentication, rsa),
            (true, true, false)
        );
        assert_eq!(
            usage(KeyReference::Authentication, p256),
            (true, false, false)
        );
        assert_eq!(usage(KeyReference::Management, rsa), (false, true, false));
        assert_eq!(usage(retired(3), p256), (false, false, true));
        assert_eq!(
            usage(KeyReference::CardAuthentication, rsa),
            (true, false, false)
        );
    }

    #[test]
    fn key_agreement_certificate_limits_its_key_to_derivation() {
        let agreement = Some(KeyUsage(KeyUsage::KEY_AGREEMENT));
        let usage = KeyReference::Authentication.usage(KeyAlgorithm::Ec(Curve::P384), agreement);
        assert_eq!((usage.sign, usage.derive), (false, true));
        let signature = Some(KeyUsage(KeyUsage::DIGITAL_SIGNATURE));
        let usage = KeyReference::Management.usage(KeyAlgorithm::Rsa { bits: 2048 }, signature);
        assert_eq!((usage.sign, usage.decrypt), (true, true));
    }
}
