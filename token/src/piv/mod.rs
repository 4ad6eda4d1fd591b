//! PIV (NIST SP 800-73-4), the applet of government cards, YubiKeys, Nitrokeys and many others.
//!
//! Terms: a *key reference* is the number of a key. A *data object* is an object that GET DATA reads; certificates are
//! data objects. The *Discovery Object* names the PIN that the card requires, and serves as the probe for PIV.
//!
//! A search reads only the data objects that it may match, each once. The objects are built from them. Import of keys
//! and secure messaging are not supported.

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

/// PIV's application identifier without the version (SP 800-73-4 part 1, 2.2), and its probe.
pub(crate) static APPLICATION: Application = Application {
    kind: AppletKind::Piv,
    aid: &[0xA0, 0x00, 0x00, 0x03, 0x08, 0x00, 0x00, 0x10, 0x00],
    probe: data_object::GET_DISCOVERY,
    is_probe_answer: |response| Discovery::parse(response).is_ok(),
};

/// The serial number of a card that has none.
const NO_SERIAL: &str = "00000000";

/// The functions that SP 800-78-4 permits for keys.
const CAPABILITIES: [KeyCapability; 2] = [
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

/// Rare algorithms, which are listed only if the card has such a key.
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
    objects: ObjectCache,
    so: SoState,
}

impl Piv {
    /// Reads the identity of the card, the CHUID, and nothing else. The responses to SELECT differ much between cards.
    /// Only the algorithms for key generation are taken from them.
    pub(crate) fn open(
        tx: &mut AppletTransaction<'_, '_>,
        select_response: &[u8],
        atr: &Atr,
        naming: &Arc<Naming>,
    ) -> Result<Self, TokenError> {
        let quirks = Quirks::of(atr);
        let mut objects = ObjectCache::new(quirks, Arc::clone(naming));
        let chuid = objects.identify(tx)?;
        Ok(Self {
            quirks,
            serial: chuid.map_or(NO_SERIAL.to_owned(), |chuid| chuid.serial()),
            pin: PinState::default(),
            objects,
            so: SoState::new(select_response),
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
        let rare = RARE.iter().filter(|rare| self.objects.has_key(rare.key));
        let capabilities: Vec<KeyCapability> = CAPABILITIES.iter().chain(rare).copied().collect();
        mechanism::mechanism_infos(&capabilities)
    }

    fn extended_length(&self) -> bool {
        self.quirks.contains(Quirk::ExtendedLength)
    }

    /// Every PIV card supports chaining (SP 800-73-5, part 2, 2.4.2).
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
        self.objects.load(tx, scope)
    }

    fn is_loaded(&self, scope: &SearchScope) -> bool {
        self.objects.is_loaded(scope)
    }

    fn forget_objects(&mut self) {
        self.objects.forget();
    }

    fn objects(&self) -> Vec<Arc<Object>> {
        self.objects.objects()
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

/// Fuzz targets, one for each parser of card data.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz {
    /// Parses the content of a certificate's data object.
    pub fn certificate_object(bytes: &[u8]) {
        super::certificate_object::fuzz(bytes);
    }

    /// Parses the content of the CHUID.
    pub fn chuid(bytes: &[u8]) {
        super::chuid::fuzz(bytes);
    }

    /// Parses the Discovery Object, and the content of the key history.
    pub fn discovery(bytes: &[u8]) {
        super::discovery::fuzz(bytes);
    }

    /// Parses a response to GENERAL AUTHENTICATE.
    pub fn authenticate(bytes: &[u8]) {
        super::authenticate::fuzz(bytes);
    }

    /// Parses responses to SELECT and to key generation.
    pub fn generation(bytes: &[u8]) {
        super::generation::fuzz(bytes);
    }

    /// Parses responses to the authentication with the management key, and its metadata.
    pub fn management_key(bytes: &[u8]) {
        super::management_key::fuzz(bytes);
    }

    /// Parses a response to GET METADATA.
    pub fn metadata(bytes: &[u8]) {
        super::metadata::fuzz(bytes);
    }
}
