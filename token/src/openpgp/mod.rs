//! The OpenPGP card application (versions 2.x and 3.x) as a token.
//!
//! The three keys have key references: 01 signs, 02 decrypts, 03 authenticates. The user PIN, PW1, has two verification
//! states on the card: 81 for signatures and 82 for everything else. The card describes itself in one object, the
//! application related data 6E. Reading it is also the probe.

mod administration;
#[doc(hidden)]
pub mod algorithm_information;
mod certificate;
#[doc(hidden)]
pub mod data_object;
mod fingerprint;
#[doc(hidden)]
pub mod kdf;
#[doc(hidden)]
pub mod key;
mod object_cache;
mod pin;
mod quirks;

use std::sync::Arc;

use claviger_apdu::{Atr, CommandApdu, Expected, Secret};

use crate::{
    administration::Administration,
    algorithm::KeyAlgorithm,
    applet::{Applet, OwnedCommand, SearchScope, TokenInfo},
    application::{AppletKind, Application},
    card::AppletTransaction,
    error::TokenError,
    mechanism::{self, KeyCapability, MechanismInfo},
    naming::Naming,
    object::{KeyPermissions, Object, PrivateKey},
    openpgp::{
        algorithm_information::GenerationAlgorithms,
        data_object::ApplicationData,
        key::{KeyRole, SignLimits},
        object_cache::ObjectCache,
        pin::PinState,
        quirks::Quirks,
    },
    operation::KeyInput,
    pin::{PinPurpose, PinStatus},
};

/// OpenPGP's application identifier without the version, and its probe.
pub(crate) static APPLICATION: Application = Application {
    kind: AppletKind::OpenPgp,
    aid: data_object::AID,
    // GET DATA (7.2.6).
    probe: CommandApdu {
        expected: Expected::All,
        ..CommandApdu::header([0x00, 0xCA, 0x00, data_object::APPLICATION_DATA])
    },
    is_probe_answer: data_object::is_application_data,
};

/// The OpenPGP application of one card.
#[derive(Debug)]
pub struct OpenPgp {
    data: ApplicationData,
    /// Whether keys may have changed since `data` was read.
    stale: bool,
    extended_length: bool,
    pin: PinState,
    objects: ObjectCache,
    /// The algorithms for key generation, once they were read.
    algorithms: Option<GenerationAlgorithms>,
}

impl OpenPgp {
    /// Reads the application related data of the selected application, in one command.
    ///
    /// # Errors
    /// An error of the transport, or an error if the application related data does not parse.
    pub(crate) fn open(
        tx: &mut AppletTransaction<'_, '_>,
        _select_response: &[u8],
        atr: &Atr,
        naming: &Arc<Naming>,
    ) -> Result<Self, TokenError> {
        let data = ApplicationData::parse(read_application_data(tx)?.expose())?;
        Ok(Self {
            stale: false,
            extended_length: data
                .extended_length
                .unwrap_or_else(|| atr.announces_extended_length()),
            pin: PinState::new(&data),
            objects: ObjectCache::new(Arc::clone(naming)),
            algorithms: None,
            data,
        })
    }

    /// Takes newer application related data over. A key with a changed record leaves the cache, and the signature key
    /// gets a changed PIN policy.
    fn note(&mut self, data: ApplicationData) {
        self.stale = false;
        self.pin.note(data.password);
        if data == self.data {
            return;
        }
        for key in KeyRole::ALL {
            if data.keys.get(key) != self.data.keys.get(key) {
                self.objects.forget_key(key);
            }
        }
        self.data = data;
        self.objects.build(&self.data);
    }

    /// Reads the application related data again. This also confirms that the applet is selected.
    fn refresh(&mut self, tx: &mut AppletTransaction<'_, '_>) -> Result<(), TokenError> {
        let response = match tx.ensure_selected()? {
            Some(response) => response,
            None => read_application_data(tx)?,
        };
        self.take_probe_answer(response.expose())?;
        // If the card no longer describes itself, its last description remains valid.
        self.stale = false;
        Ok(())
    }
}

fn read_application_data(tx: &mut AppletTransaction<'_, '_>) -> Result<Secret, TokenError> {
    let response = tx.exchange(&APPLICATION.probe)?;
    response
        .ok()
        .map_err(|status| TokenError::refused("OpenPGP GET DATA 6E", status))
}

impl Applet for OpenPgp {
    fn application(&self) -> &'static Application {
        &APPLICATION
    }

    fn info(&self) -> TokenInfo {
        let identifier = &self.data.identifier;
        TokenInfo {
            label: format!("OpenPGP {:08x}", identifier.serial),
            manufacturer: quirks::manufacturer_name(identifier.manufacturer).to_owned(),
            model: "OpenPGP card".to_owned(),
            serial: identifier.serial_number(),
            min_pin_len: pin::MIN_LEN,
            max_pin_len: self.pin.max_len(),
            version: identifier.version,
            pin_tries: self.pin.tries(),
        }
    }

    fn mechanisms(&self) -> Vec<MechanismInfo> {
        let of_keys = KeyRole::ALL
            .into_iter()
            .filter_map(|key| Some((key, self.data.keys.get(key).algorithm?)));
        // A key that the card can generate is also one that it can use.
        let generatable = Administration::generatable_algorithms(self);
        let possible = generatable
            .iter()
            .flat_map(|algorithm| KeyRole::ALL.map(|key| (key, *algorithm)));
        let capabilities: Vec<KeyCapability> = of_keys
            .chain(possible)
            .filter_map(|(key, algorithm)| capability(algorithm, key.usage(algorithm)))
            .collect();
        mechanism::mechanism_infos(&capabilities)
    }

    fn extended_length(&self) -> bool {
        self.extended_length
    }

    fn chains(&self) -> bool {
        self.data.chains.unwrap_or(true)
    }

    fn take_probe_answer(&mut self, response: &[u8]) -> Result<(), TokenError> {
        if data_object::is_application_data(response) {
            self.note(ApplicationData::parse(response)?);
        }
        Ok(())
    }

    fn check_pin(&self, pin: &Secret) -> Result<(), TokenError> {
        self.pin.check(pin)
    }

    fn verify(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        pin: &Secret,
        purpose: PinPurpose,
    ) -> Result<(), TokenError> {
        self.pin.verify(tx, pin, purpose)
    }

    fn pin_status(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        key: &PrivateKey,
    ) -> Result<PinStatus, TokenError> {
        self.pin.status(tx, key.reference)
    }

    fn reset_verification(&mut self, tx: &mut AppletTransaction<'_, '_>) -> Result<(), TokenError> {
        self.pin.unverify(tx)
    }

    fn load(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        scope: &SearchScope,
    ) -> Result<(), TokenError> {
        if self.stale {
            self.refresh(tx)?;
        }
        self.objects.load(tx, scope, &self.data)
    }

    fn is_loaded(&self, scope: &SearchScope) -> bool {
        if self.stale {
            return !self.objects.can_match(scope);
        }
        self.objects.is_loaded(scope, &self.data)
    }

    fn forget_objects(&mut self) {
        self.objects.forget();
        self.stale = true;
    }

    fn objects(&self) -> Vec<Arc<Object>> {
        self.objects.objects()
    }

    fn key_command(&self, key: &PrivateKey, input: &KeyInput) -> Result<OwnedCommand, TokenError> {
        let limits = SignLimits {
            quirks: Quirks::of(self.data.identifier.manufacturer),
            max_command: self.data.max_command,
        };
        key::command(key_of(key)?, key.algorithm, input, limits)
    }

    fn key_output(
        &self,
        key: &PrivateKey,
        input: &KeyInput,
        response: &Secret,
    ) -> Result<Secret, TokenError> {
        key::output(key.algorithm, input, response)
    }

    fn key_name(&self, key: &PrivateKey) -> String {
        KeyRole::from_reference(key.reference).map_or_else(
            || format!("OpenPGP key {:02X}", key.reference),
            |key| key.name().to_owned(),
        )
    }
}

fn key_of(key: &PrivateKey) -> Result<KeyRole, TokenError> {
    KeyRole::from_reference(key.reference).ok_or(TokenError::KeyFunctionNotPermitted)
}

/// Returns the capability of a key of this algorithm, or `None` if it has no function.
fn capability(algorithm: KeyAlgorithm, usage: KeyPermissions) -> Option<KeyCapability> {
    let bits = algorithm.bits();
    let functions = usage.of_private_key();
    (functions != 0).then_some(KeyCapability {
        key: algorithm,
        raw_rsa: false,
        functions,
        min: bits,
        max: bits,
    })
}
