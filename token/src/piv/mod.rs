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
    object_cache::ObjectCache,
    pin::PinState,
    quirks::{Quirk, Quirks},
    security_officer::SoState,
};
use crate::{
    algorithm::{Curve, KeyAlgorithm},
    applet::{Applet, OwnedCommand, SearchScope, TokenInfo},
    application::{AppletKind, Application},
    card::AppletTransaction,
    error::TokenError,
    mechanism::{self, KeyCapability, MechanismInfo},
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
    is_probe_answer: |response| Discovery::parse(response).is_ok(),
};

/// The serial number of a card that does not say one.
const NO_SERIAL: &str = "00000000";

/// What SP 800-78-4 lets a key do.
const ABILITIES: [KeyCapability; 2] = [
    KeyCapability {
        key: KeyAlgorithm::Rsa { bits: 2048 },
        raw_rsa: true,
        functions: CKF_SIGN | CKF_DECRYPT,
        min: 1024,
        max: 4096,
    },
    KeyCapability {
        key: KeyAlgorithm::Ec(Curve::P256),
        raw_rsa: true,
        functions: CKF_SIGN | CKF_DERIVE,
        min: 256,
        max: 384,
    },
];

/// Rare: only a card that has such a key is known to use it.
const RARE: [KeyCapability; 2] = [
    KeyCapability {
        key: KeyAlgorithm::Ed25519,
        raw_rsa: true,
        functions: CKF_SIGN,
        min: 255,
        max: 255,
    },
    KeyCapability {
        key: KeyAlgorithm::X25519,
        raw_rsa: true,
        functions: CKF_DERIVE,
        min: 255,
        max: 255,
    },
];

/// The PIV applet of one card.
pub struct Piv {
    quirks: Quirks,
    serial: String,
    pin: PinState,
    inventory: ObjectCache,
    administrator: SoState,
}

impl Piv {
    /// Reads who the card is: the CHUID, and nothing else. SELECT's answer differs so much between cards
    /// that nothing depends on it but which keys the card says it makes.
    pub(crate) fn open(
        tx: &mut AppletTransaction<'_, '_>,
        select_answer: &[u8],
        atr: &Atr,
        naming: &Arc<Naming>,
    ) -> Result<Self, TokenError> {
        let quirks = Quirks::of(atr);
        let mut inventory = ObjectCache::new(quirks, Arc::clone(naming));
        let chuid = inventory.identify(tx)?;
        Ok(Self {
            quirks,
            serial: chuid.map_or(NO_SERIAL.to_owned(), |chuid| chuid.serial()),
            pin: PinState::default(),
            inventory,
            administrator: SoState::new(select_answer),
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
        let abilities: Vec<KeyCapability> = ABILITIES.iter().chain(rare).copied().collect();
        mechanism::mechanism_infos(&abilities)
    }

    fn extended_length(&self) -> bool {
        self.quirks.contains(Quirk::ExtendedLength)
    }

    /// Every PIV card does (SP 800-73-5, part 2, 2.4.2).
    fn chains(&self) -> bool {
        true
    }

    fn take_probe_answer(&mut self, response: &[u8]) -> Result<(), TokenError> {
        self.pin.discovered(Discovery::parse(response)?);
        Ok(())
    }

    fn check_pin(&self, pin: &Secret) -> Result<(), TokenError> {
        PinState::check(pin)
    }

    fn verify(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        pin: &Secret,
        _purpose: PinPurpose,
    ) -> Result<(), TokenError> {
        self.pin.verify(tx, pin)
    }

    fn pin_status(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        _key: &PrivateKey,
    ) -> Result<PinStatus, TokenError> {
        self.pin.status(tx)
    }

    fn reset_verification(&mut self, tx: &mut AppletTransaction<'_, '_>) -> Result<(), TokenError> {
        self.pin.reset_verification(tx)
    }

    fn load(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        scope: &SearchScope,
    ) -> Result<(), TokenError> {
        self.inventory.load(tx, scope)
    }

    fn is_loaded(&self, scope: &SearchScope) -> bool {
        self.inventory.is_loaded(scope)
    }

    fn forget_objects(&mut self) {
        self.inventory.forget();
    }

    fn objects(&self) -> Vec<Arc<Object>> {
        self.inventory.objects()
    }

    fn key_command(&self, key: &PrivateKey, input: &KeyInput) -> Result<OwnedCommand, TokenError> {
        authenticate::command(key, input)
    }

    fn key_output(
        &self,
        key: &PrivateKey,
        input: &KeyInput,
        response: &Secret,
    ) -> Result<Secret, TokenError> {
        authenticate::output(key.algorithm, input, response.expose())
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
