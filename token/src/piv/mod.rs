//! PIV (NIST SP 800-73-4): the applet of government cards, YubiKeys, Nitrokeys and many others.
//!
//! Terms: a *key reference* names a place for a key; a *data object* is what GET DATA reads, certificates
//! among them; the *discovery object* says which PIN the card wants and proves that PIV is selected.
//!
//! A search reads the data objects it may match and no others, each once; what is read makes up the objects.
//! What is not here: importing keys, secure messaging.

mod administration;
mod authenticate;
mod certificate_object;
mod chuid;
mod data_object;
mod discovery;
mod generation;
#[cfg(test)]
mod hostile;
mod key_reference;
mod management_key;
mod metadata;
mod object_cache;
mod pin;
mod quirks;
mod security_officer;

use std::sync::Arc;

use claviger_apdu::{Atr, Secret};
use cryptoki_sys::{CKF_DECRYPT, CKF_DERIVE, CKF_SIGN};

use self::{
    discovery::Discovery,
    object_cache::Inventory,
    pin::Pin,
    quirks::{Quirk, Quirks},
    security_officer::Administrator,
};
use crate::{
    algorithm::{Curve, KeyAlgorithm},
    applet::{Applet, OwnedCommand, TokenInfo, Wanted},
    application::{AppletKind, Application},
    card::Conversation,
    error::TokenError,
    mechanism::{self, Ability, MechanismInfo},
    naming::Naming,
    object::{Object, PrivateKey},
    operation::KeyInput,
    pin::{PinPurpose, PinStatus},
};

/// PIV as a card knows it: its identifier without the version (SP 800-73-4 part 1, 2.2), and the discovery object.
pub(crate) static APPLICATION: Application = Application {
    kind: AppletKind::Piv,
    aid: &[0xA0, 0x00, 0x00, 0x03, 0x08, 0x00, 0x00, 0x10, 0x00],
    probe: data_object::GET_DISCOVERY,
    is_probe_answer: |answer| Discovery::parse(answer).is_ok(),
};

/// The serial number of a card that does not say one.
const NO_SERIAL: &str = "00000000";

/// What SP 800-78-4 lets a key do.
const ABILITIES: [Ability; 2] = [
    Ability {
        key: KeyAlgorithm::Rsa { bits: 2048 },
        bare: true,
        functions: CKF_SIGN | CKF_DECRYPT,
        min: 1024,
        max: 4096,
    },
    Ability {
        key: KeyAlgorithm::Ec(Curve::P256),
        bare: true,
        functions: CKF_SIGN | CKF_DERIVE,
        min: 256,
        max: 384,
    },
];

/// Rare: only a card that has such a key is known to use it.
const RARE: [Ability; 2] = [
    Ability {
        key: KeyAlgorithm::Ed25519,
        bare: true,
        functions: CKF_SIGN,
        min: 255,
        max: 255,
    },
    Ability {
        key: KeyAlgorithm::X25519,
        bare: true,
        functions: CKF_DERIVE,
        min: 255,
        max: 255,
    },
];

/// The PIV applet of one card.
pub struct Piv {
    quirks: Quirks,
    serial: String,
    pin: Pin,
    inventory: Inventory,
    administrator: Administrator,
}

impl Piv {
    /// Reads who the card is: the CHUID, and nothing else. SELECT's answer differs so much between cards
    /// that nothing depends on it but which keys the card says it makes.
    pub(crate) fn open(
        talk: &mut Conversation<'_, '_>,
        select_answer: &[u8],
        atr: &Atr,
        naming: &Arc<Naming>,
    ) -> Result<Self, TokenError> {
        let quirks = Quirks::of(atr);
        let mut inventory = Inventory::new(quirks, Arc::clone(naming));
        let chuid = inventory.identify(talk)?;
        Ok(Self {
            quirks,
            serial: chuid.map_or(NO_SERIAL.to_owned(), |chuid| chuid.serial()),
            pin: Pin::default(),
            inventory,
            administrator: Administrator::new(select_answer),
        })
    }
}

impl Applet for Piv {
    fn application(&self) -> &'static Application {
        &APPLICATION
    }

    fn info(&self) -> TokenInfo {
        let short = self.serial.len().saturating_sub(8);
        TokenInfo {
            label: format!("PIV {}", self.serial.get(short..).unwrap_or(NO_SERIAL)),
            manufacturer: "piv_II".to_owned(),
            model: "PIV".to_owned(),
            serial: self.serial.clone(),
            min_pin_len: pin::MIN_LEN,
            max_pin_len: pin::MAX_LEN,
            version: (0, 0),
            pin_tries: self.pin.tries,
        }
    }

    fn mechanisms(&self) -> Vec<MechanismInfo> {
        let rare = RARE.iter().filter(|rare| self.inventory.has_key(rare.key));
        let abilities: Vec<Ability> = ABILITIES.iter().chain(rare).copied().collect();
        mechanism::offered(&abilities)
    }

    fn extended_length(&self) -> bool {
        self.quirks.contains(Quirk::ExtendedLength)
    }

    /// Every PIV card does (SP 800-73-5, part 2, 2.4.2).
    fn chains(&self) -> bool {
        true
    }

    fn note_probe(&mut self, answer: &[u8]) -> Result<(), TokenError> {
        self.pin.discovered(Discovery::parse(answer)?);
        Ok(())
    }

    fn check_pin(&self, pin: &Secret) -> Result<(), TokenError> {
        Pin::check(pin)
    }

    fn verify(
        &mut self,
        talk: &mut Conversation<'_, '_>,
        pin: &Secret,
        _purpose: PinPurpose,
    ) -> Result<(), TokenError> {
        self.pin.verify(talk, pin)
    }

    fn pin_status(
        &mut self,
        talk: &mut Conversation<'_, '_>,
        _key: &PrivateKey,
    ) -> Result<PinStatus, TokenError> {
        self.pin.status(talk)
    }

    fn unverify(&mut self, talk: &mut Conversation<'_, '_>) -> Result<(), TokenError> {
        self.pin.forget(talk)
    }

    fn load(&mut self, talk: &mut Conversation<'_, '_>, wanted: &Wanted) -> Result<(), TokenError> {
        self.inventory.load(talk, wanted)
    }

    fn is_loaded(&self, wanted: &Wanted) -> bool {
        self.inventory.is_loaded(wanted)
    }

    fn forget_objects(&mut self) {
        self.inventory.forget();
    }

    fn objects(&self) -> Vec<Arc<Object>> {
        self.inventory.objects()
    }

    fn use_command(&self, key: &PrivateKey, input: &KeyInput) -> Result<OwnedCommand, TokenError> {
        authenticate::command(key, input)
    }

    fn output(
        &self,
        key: &PrivateKey,
        input: &KeyInput,
        answer: &Secret,
    ) -> Result<Secret, TokenError> {
        authenticate::output(key.algorithm, input, answer.expose())
    }

    fn key_name(&self, key: &PrivateKey) -> String {
        format!("PIV key {:02X}", key.reference)
    }
}

/// Parsers of card bytes, each fed with arbitrary ones; for fuzz targets.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz {
    /// The content of a certificate's data object.
    pub fn certificate_object(bytes: &[u8]) {
        super::certificate_object::fuzz(bytes);
    }

    /// The content of the CHUID.
    pub fn chuid(bytes: &[u8]) {
        super::chuid::fuzz(bytes);
    }

    /// The discovery object, and the content of the key history.
    pub fn discovery(bytes: &[u8]) {
        super::discovery::fuzz(bytes);
    }

    /// An answer to GENERAL AUTHENTICATE.
    pub fn authenticate(bytes: &[u8]) {
        super::authenticate::fuzz(bytes);
    }

    /// Answers to SELECT and to making a key.
    pub fn generation(bytes: &[u8]) {
        super::generation::fuzz(bytes);
    }

    /// Answers to authentication with the management key, and its metadata.
    pub fn management_key(bytes: &[u8]) {
        super::management_key::fuzz(bytes);
    }

    /// An answer to GET METADATA.
    pub fn metadata(bytes: &[u8]) {
        super::metadata::fuzz(bytes);
    }
}
