//! Profiles: the content of provisioned cards.

use sha2::{Digest as _, Sha256};

use crate::card::{CardConfig, State};

/// An answer to reset that contains only the protocol, T=1.
const T1_ATR: [u8; 4] = [0x3B, 0x80, 0x01, 0x81];

/// A kind of key. Each applet has its own identifier for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyAlgorithm {
    /// RSA, 2048 bits.
    Rsa2048,
    /// RSA, 3072 bits.
    Rsa3072,
    /// RSA, 4096 bits.
    Rsa4096,
    /// NIST P-256.
    P256,
    /// NIST P-384.
    P384,
    /// NIST P-521; OpenPGP only.
    P521,
    /// Ed25519; OpenPGP only.
    Ed25519,
    /// X25519; OpenPGP only.
    X25519,
}

/// The form of a certificate in its PIV data object (SP 800-73-4 part 1, table 10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateForm {
    /// Uncompressed, CertInfo 00.
    Plain,
    /// Compressed with gzip, CertInfo 01.
    Gzip,
    /// No certificate object. The key exists.
    Absent,
}

/// One PIV key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PivKey {
    /// 9A, 9C, 9D, 9E or 82 to 95.
    pub reference: u8,
    /// Its kind.
    pub algorithm: KeyAlgorithm,
    /// Its certificate.
    pub certificate: CertificateForm,
}

impl PivKey {
    /// A key with a plain certificate.
    #[must_use]
    pub const fn new(reference: u8, algorithm: KeyAlgorithm) -> Self {
        Self {
            reference,
            algorithm,
            certificate: CertificateForm::Plain,
        }
    }
}

/// The content of the PIV applet besides CHUID and CCC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PivPlan {
    /// The keys. Without keys the applet stays in its factory state, without CHUID and CCC.
    pub keys: Vec<PivKey>,
}

impl PivPlan {
    /// Four keys: P-256 in 9A and 9E, RSA-2048 in 9C and 9D; the certificate of 9D is compressed.
    #[must_use]
    pub fn four_keys() -> Self {
        let compressed = PivKey {
            certificate: CertificateForm::Gzip,
            ..PivKey::new(0x9D, KeyAlgorithm::Rsa2048)
        };
        Self {
            keys: vec![
                PivKey::new(0x9A, KeyAlgorithm::P256),
                PivKey::new(0x9C, KeyAlgorithm::Rsa2048),
                compressed,
                PivKey::new(0x9E, KeyAlgorithm::P256),
            ],
        }
    }

    /// One key in 9A.
    #[must_use]
    pub fn authentication(algorithm: KeyAlgorithm) -> Self {
        Self {
            keys: vec![PivKey::new(0x9A, algorithm)],
        }
    }

    /// The factory state: no key, no object.
    #[must_use]
    pub const fn factory() -> Self {
        Self { keys: Vec::new() }
    }
}

/// The content of the OpenPGP applet: three keys with fingerprints and times, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenPgpPlan {
    /// SIG, DEC and AUT. `None` keeps the factory state. An AUT key gets a certificate unless it is Ed25519.
    pub keys: Option<[KeyAlgorithm; 3]>,
}

impl OpenPgpPlan {
    /// Ed25519, X25519 and P-256, with a certificate for the last.
    #[must_use]
    pub const fn three_keys() -> Self {
        Self {
            keys: Some([
                KeyAlgorithm::Ed25519,
                KeyAlgorithm::X25519,
                KeyAlgorithm::P256,
            ]),
        }
    }

    /// RSA-2048 for all three.
    #[must_use]
    pub const fn rsa() -> Self {
        Self {
            keys: Some([KeyAlgorithm::Rsa2048; 3]),
        }
    }

    /// The factory state: no key.
    #[must_use]
    pub const fn factory() -> Self {
        Self { keys: None }
    }
}

/// One card: its applets, their content, and the behaviour of the firmware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardProfile {
    /// See [`CardConfig::serial`].
    pub serial: u32,
    /// The PIV applet; `None` makes a card without it.
    pub piv: Option<PivPlan>,
    /// The OpenPGP applet; `None` makes a card without it.
    pub openpgp: Option<OpenPgpPlan>,
    /// See [`CardConfig::yubi`].
    pub yubi: bool,
    /// Whether the answer to reset has no historical bytes, so that clients use short APDUs.
    pub plain: bool,
}

impl CardProfile {
    /// Increased when the meaning of a profile changes, so that cards of an older build are not used.
    const VERSION: u32 = 1;

    /// A PIV card with [`PivPlan::four_keys`].
    #[must_use]
    pub fn piv4() -> Self {
        Self::piv(PivPlan::four_keys())
    }

    /// An OpenPGP card with [`OpenPgpPlan::three_keys`].
    #[must_use]
    pub const fn pgp3() -> Self {
        Self::openpgp(OpenPgpPlan::three_keys())
    }

    /// One card with the keys of [`CardProfile::piv4`] and of [`CardProfile::pgp3`].
    #[must_use]
    pub fn both() -> Self {
        Self {
            openpgp: Some(OpenPgpPlan::three_keys()),
            ..Self::piv4()
        }
    }

    /// A card with both applets in their factory state. It needs no provisioning.
    #[must_use]
    pub fn factory() -> Self {
        Self {
            openpgp: Some(OpenPgpPlan::factory()),
            ..Self::piv(PivPlan::factory())
        }
    }

    /// A PIV card.
    #[must_use]
    pub const fn piv(piv: PivPlan) -> Self {
        Self {
            serial: 1,
            piv: Some(piv),
            openpgp: None,
            yubi: false,
            plain: false,
        }
    }

    /// An OpenPGP card.
    #[must_use]
    pub const fn openpgp(openpgp: OpenPgpPlan) -> Self {
        Self {
            serial: 1,
            piv: None,
            openpgp: Some(openpgp),
            yubi: false,
            plain: false,
        }
    }

    /// The same profile with another serial number: another card, with other keys.
    #[must_use]
    pub fn serial(self, serial: u32) -> Self {
        Self { serial, ..self }
    }

    /// The same profile with a dispatcher like a YubiKey's.
    #[must_use]
    pub fn yubi(self) -> Self {
        Self { yubi: true, ..self }
    }

    /// The same profile with an answer to reset without historical bytes: clients chain long commands.
    #[must_use]
    pub fn plain(self) -> Self {
        Self {
            plain: true,
            ..self
        }
    }

    /// The configuration of the card, with its memory in `state`.
    #[must_use]
    pub fn card(&self, state: State) -> CardConfig {
        let config = CardConfig::default();
        let atr = if self.plain {
            T1_ATR.to_vec()
        } else {
            config.atr
        };
        CardConfig {
            atr,
            piv: self.piv.is_some(),
            openpgp: self.openpgp.is_some(),
            serial: self.serial,
            yubi: self.yubi,
            state,
            ..config
        }
    }

    /// Returns whether there is nothing to provision.
    #[must_use]
    pub fn is_factory(&self) -> bool {
        self.piv.as_ref().is_none_or(|piv| piv.keys.is_empty())
            && self.openpgp.is_none_or(|openpgp| openpgp.keys.is_none())
    }

    /// The folder name for a card of this profile. Profiles of equal content have equal names.
    #[must_use]
    pub fn folder_name(&self) -> String {
        let content = format!(
            "{:?}",
            (Self::VERSION, self.serial, &self.piv, &self.openpgp)
        );
        let digest = Sha256::digest(content);
        digest
            .iter()
            .take(8)
            .fold("card-".to_owned(), |name, byte| format!("{name}{byte:02x}"))
    }
}
