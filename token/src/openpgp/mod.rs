//! The OpenPGP card application (versions 2.x and 3.x) as a token.
//!
//! Its three keys are known by reference: 01 signs, 02 decrypts, 03 authenticates. One user PIN, PW1, has two
//! states on the card: 81 for signatures and 82 for all else. The card describes itself in one object, the
//! application related data 6E, which is also what proves that the application is selected.

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
    applet::{Applet, OwnedCommand, TokenInfo, Wanted},
    application::{AppletKind, Application},
    card::Conversation,
    error::TokenError,
    mechanism::{self, Ability, MechanismInfo},
    naming::Naming,
    object::{Object, PrivateKey, Usage},
    openpgp::{
        algorithm_information::Offers,
        data_object::ApplicationData,
        key::{Key, SignLimits},
        object_cache::Objects,
        pin::Pin,
        quirks::Quirks,
    },
    operation::KeyInput,
    pin::{PinPurpose, PinStatus},
};

/// OpenPGP as a card knows it: its identifier without the version, and the application related data.
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
    /// Whether keys may have come and gone since `data` was read.
    stale: bool,
    extended_length: bool,
    pin: Pin,
    objects: Objects,
    /// What the card makes, once it was asked.
    offers: Option<Offers>,
}

impl OpenPgp {
    /// Reads what there is to know of the application just selected, in one command.
    ///
    /// # Errors
    /// Of the transport, or when the card does not say who it is.
    pub(crate) fn open(
        talk: &mut Conversation<'_, '_>,
        _select_answer: &[u8],
        atr: &Atr,
        naming: &Arc<Naming>,
    ) -> Result<Self, TokenError> {
        let data = ApplicationData::parse(read_application_data(talk)?.expose())?;
        Ok(Self {
            stale: false,
            extended_length: data
                .extended_length
                .unwrap_or_else(|| atr.announces_extended_length()),
            pin: Pin::new(&data),
            objects: Objects::new(Arc::clone(naming)),
            offers: None,
            data,
        })
    }

    /// Takes newer application related data for true: a key it says something else of is read again, and the
    /// rule for signatures reaches their key.
    fn note(&mut self, data: ApplicationData) {
        self.stale = false;
        self.pin.note(data.password);
        if data == self.data {
            return;
        }
        for key in Key::ALL {
            if data.keys.get(key) != self.data.keys.get(key) {
                self.objects.forget_key(key);
            }
        }
        self.data = data;
        self.objects.build(&self.data);
    }

    /// Reads the application related data again, which also proves that the application is selected.
    fn refresh(&mut self, talk: &mut Conversation<'_, '_>) -> Result<(), TokenError> {
        let answer = match talk.prove()? {
            Some(answer) => answer,
            None => read_application_data(talk)?,
        };
        self.note_probe(answer.expose())?;
        // A card that no longer describes itself is taken as it last did.
        self.stale = false;
        Ok(())
    }
}

fn read_application_data(talk: &mut Conversation<'_, '_>) -> Result<Secret, TokenError> {
    let answer = talk.exchange(&APPLICATION.probe)?;
    answer
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
        let of_keys = Key::ALL
            .into_iter()
            .filter_map(|key| Some((key, self.data.keys.get(key).algorithm?)));
        // A key that the card can make is one it can use.
        let generable = Administration::generable(self);
        let possible = generable
            .iter()
            .flat_map(|algorithm| Key::ALL.map(|key| (key, *algorithm)));
        let abilities: Vec<Ability> = of_keys
            .chain(possible)
            .filter_map(|(key, algorithm)| ability(algorithm, key.usage(algorithm)))
            .collect();
        mechanism::offered(&abilities)
    }

    fn extended_length(&self) -> bool {
        self.extended_length
    }

    fn chains(&self) -> bool {
        self.data.chains.unwrap_or(true)
    }

    fn note_probe(&mut self, answer: &[u8]) -> Result<(), TokenError> {
        if data_object::is_application_data(answer) {
            self.note(ApplicationData::parse(answer)?);
        }
        Ok(())
    }

    fn check_pin(&self, pin: &Secret) -> Result<(), TokenError> {
        self.pin.check(pin)
    }

    fn verify(
        &mut self,
        talk: &mut Conversation<'_, '_>,
        pin: &Secret,
        purpose: PinPurpose,
    ) -> Result<(), TokenError> {
        self.pin.verify(talk, pin, purpose)
    }

    fn pin_status(
        &mut self,
        talk: &mut Conversation<'_, '_>,
        key: &PrivateKey,
    ) -> Result<PinStatus, TokenError> {
        self.pin.status(talk, key.reference)
    }

    fn unverify(&mut self, talk: &mut Conversation<'_, '_>) -> Result<(), TokenError> {
        self.pin.unverify(talk)
    }

    fn load(&mut self, talk: &mut Conversation<'_, '_>, wanted: &Wanted) -> Result<(), TokenError> {
        if self.stale {
            self.refresh(talk)?;
        }
        self.objects.load(talk, wanted, &self.data)
    }

    fn is_loaded(&self, wanted: &Wanted) -> bool {
        if self.stale {
            return !self.objects.concern(wanted);
        }
        self.objects.is_loaded(wanted, &self.data)
    }

    fn forget_objects(&mut self) {
        self.objects.forget();
        self.stale = true;
    }

    fn objects(&self) -> Vec<Arc<Object>> {
        self.objects.built()
    }

    fn use_command(&self, key: &PrivateKey, input: &KeyInput) -> Result<OwnedCommand, TokenError> {
        let limits = SignLimits {
            quirks: Quirks::of(self.data.identifier.manufacturer),
            max_command: self.data.max_command,
        };
        key::command(key_of(key)?, key.algorithm, input, limits)
    }

    fn output(
        &self,
        key: &PrivateKey,
        input: &KeyInput,
        answer: &Secret,
    ) -> Result<Secret, TokenError> {
        key::output(key.algorithm, input, answer)
    }

    fn key_name(&self, key: &PrivateKey) -> String {
        Key::from_reference(key.reference).map_or_else(
            || format!("OpenPGP key {:02X}", key.reference),
            |key| key.name().to_owned(),
        )
    }
}

fn key_of(key: &PrivateKey) -> Result<Key, TokenError> {
    Key::from_reference(key.reference).ok_or(TokenError::KeyFunctionNotPermitted)
}

/// What a key of this algorithm does, and with how many bits.
fn ability(algorithm: KeyAlgorithm, usage: Usage) -> Option<Ability> {
    let bits = algorithm.bits();
    let functions = usage.of_private_key();
    (functions != 0).then_some(Ability {
        key: algorithm,
        bare: false,
        functions,
        min: bits,
        max: bits,
    })
}
