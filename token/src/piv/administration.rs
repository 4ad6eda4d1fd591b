//! Administration: the PUK and the management key as SO PIN, keys made, objects written
//! (SP 800-73-4 part 2, 3.2 and 3.3).

use std::time::SystemTime;

use claviger_apdu::{Secret, StatusWord};

use super::{
    Piv, certificate_object,
    data_object::{self, DataObject, KEY_HISTORY},
    discovery::{Discovery, KeyHistory},
    generation::{self, GenerationAlgorithms},
    key_reference::KeyReference,
    management_key::{self, KeyCipher, ManagementKey},
    pin,
    quirks::Quirk,
    security_officer::{CHANGE_PUK, SoPin},
};
use crate::{
    administration::{Administration, SoPurpose},
    algorithm::{KeyAlgorithm, PublicKey},
    card::AppletTransaction,
    error::TokenError,
    pin::{PinStatus, PinTries},
};

impl Piv {
    fn authenticate(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        key: &ManagementKey,
    ) -> Result<KeyCipher, TokenError> {
        if self.administrator.cipher.is_none() && !self.quirks.contains(Quirk::MetadataEmpty) {
            let response = tx.exchange(&management_key::GET_METADATA)?;
            if response.status.is_ok() {
                self.administrator.cipher = management_key::cipher(response.data.expose());
            }
        }
        self.administrator.authenticate(tx, key)
    }

    /// Asks a YubiKey for its version: it makes more keys than it lists.
    fn ask_version(&mut self, tx: &mut AppletTransaction<'_, '_>) -> Result<(), TokenError> {
        let due = self.quirks.contains(Quirk::YubicoObjects) && !self.administrator.asked_version;
        if !due {
            return Ok(());
        }
        self.administrator.asked_version = true;
        let response = tx.exchange(&generation::GET_VERSION)?;
        if let (true, Ok(version)) = (response.status.is_ok(), response.data.expose().try_into()) {
            self.administrator.generable = GenerationAlgorithms::of_yubikey(version);
        }
        Ok(())
    }

    /// PUT DATA of an object's content; the object is read again when it is next wanted.
    fn put(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        object: &DataObject,
        content: &[u8],
    ) -> Result<(), TokenError> {
        // Written or not: what the card holds now, only the card knows.
        self.inventory.forget_data(object);
        let status = tx.exchange(&object.put_data(content).as_apdu())?.status;
        match status {
            StatusWord::OK => Ok(()),
            _ => Err(TokenError::not_written(
                format!("PIV PUT DATA of {}", object.name),
                status,
            )),
        }
    }

    /// Writes a certificate as it is, or compressed when the card has no room for it so.
    fn put_der(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        object: &DataObject,
        der: &[u8],
    ) -> Result<(), TokenError> {
        let packed = certificate_object::compressed(der)?;
        let plain = certificate_object::plain(der);
        if der.len() <= certificate_object::MAX_PLAIN {
            match self.put(tx, object, &plain) {
                Err(TokenError::NoSpace { .. }) if packed.len() < plain.len() => {}
                outcome => return outcome,
            }
        }
        self.put(tx, object, &packed)
    }

    /// Makes the key history count the retired key whose certificate was written, without which nobody looks for it.
    fn count_retired(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        key: KeyReference,
    ) -> Result<(), TokenError> {
        let (KeyReference::Retired(number), Some(object)) = (key, DataObject::by_tag(KEY_HISTORY))
        else {
            return Ok(());
        };
        let response = tx.exchange(&object.get_data().as_apdu())?;
        let content = object.content(&response)?.unwrap_or_default();
        let history = KeyHistory::parse(&content).unwrap_or_default();
        match history.counting(number) {
            Some(more) => self.put(tx, &object, &more.content()),
            None => Ok(()),
        }
    }
}

impl Administration for Piv {
    fn check_so_pin(&self, so: &Secret) -> Result<(), TokenError> {
        SoPin::parse(so).map(drop)
    }

    fn so_tries(&self) -> PinTries {
        self.administrator.puk
    }

    fn so_verify(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        so: &Secret,
    ) -> Result<(), TokenError> {
        match SoPin::parse(so)? {
            SoPin::Puk(puk) => self.administrator.verify_puk(tx, puk),
            SoPin::Key(key) => {
                self.authenticate(tx, &key)?;
                self.ask_version(tx)
            }
        }
    }

    fn so_status(
        &mut self,
        _talk: &mut AppletTransaction<'_, '_>,
        so: &Secret,
        work: SoPurpose,
    ) -> Result<PinStatus, TokenError> {
        let missing = |what: &str| TokenError::NotLoggedIn {
            operation: format!("PIV: this needs the security officer logged in with the {what}"),
        };
        match (SoPin::parse(so)?, work) {
            // Each command that needs the PUK brings it.
            (SoPin::Puk(_), SoPurpose::Pin) => Ok(PinStatus::Verified),
            // No card says whether the key is, and proving it again costs nothing.
            (SoPin::Key(_), SoPurpose::Contents) => Ok(PinStatus::NotVerified { tries_left: None }),
            (SoPin::Puk(_), SoPurpose::Contents) => Err(missing("management key")),
            (SoPin::Key(_), SoPurpose::Pin) => Err(missing("PUK")),
        }
    }

    fn so_unverify(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        so: &Secret,
    ) -> Result<(), TokenError> {
        match SoPin::parse(so)? {
            SoPin::Puk(_) => Ok(()),
            // There is no command for it; some cards (Nitrokey 3 with piv-authenticator 0.7) remember it even then.
            SoPin::Key(_) => pin::reselect(tx),
        }
    }

    fn change_user_pin(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        old: &Secret,
        new: &Secret,
    ) -> Result<(), TokenError> {
        self.pin.change(tx, old, new)
    }

    fn change_so_pin(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        old: &Secret,
        new: &Secret,
    ) -> Result<(), TokenError> {
        match SoPin::parse(old)? {
            SoPin::Puk(puk) => {
                pin::check_new(new)?;
                let response =
                    tx.exchange(&pin::two_pin_command(puk, new, CHANGE_PUK).as_apdu())?;
                self.administrator.puk_result(response.status, |status| {
                    Err(not_changed("PIV CHANGE REFERENCE DATA of the PUK", status))
                })
            }
            SoPin::Key(old) => {
                let new =
                    ManagementKey::from_hex(new).ok_or_else(|| TokenError::NewPinInvalid {
                        what: "a management key is 32, 48 or 64 hexadecimal digits".to_owned(),
                    })?;
                let cipher = self.authenticate(tx, &old)?;
                self.administrator.cipher = None;
                self.administrator.cipher = Some(new.set(tx, cipher)?);
                Ok(())
            }
        }
    }

    fn init_user_pin(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        so: &Secret,
        new: &Secret,
    ) -> Result<(), TokenError> {
        pin::check_new(new)?;
        let command = self.pin.reset(tx, so, new)?;
        let response = tx.exchange(&command.as_apdu())?;
        self.administrator.puk_result(response.status, |status| {
            Err(not_changed("PIV RESET RETRY COUNTER", status))
        })?;
        self.pin.was_reset();
        Ok(())
    }

    fn generatable_algorithms(&self) -> Vec<KeyAlgorithm> {
        self.administrator.generable.keys().to_vec()
    }

    fn key_reference_of(&self, id: &[u8]) -> Option<u8> {
        self.inventory.key_of(id).map(KeyReference::byte)
    }

    fn generate(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        reference: u8,
        algorithm: KeyAlgorithm,
        _created: SystemTime,
    ) -> Result<PublicKey, TokenError> {
        let key = key_of(reference)?;
        let command = generation::command(key, algorithm)
            .filter(|_| self.generatable_algorithms().contains(&algorithm))
            .ok_or(TokenError::KeyNotGenerable(algorithm))?;
        self.inventory.forget_key(key);
        let response = tx.exchange(&command.as_apdu())?;
        if !response.status.is_ok() {
            return Err(generation::refusal(key, algorithm, response.status));
        }
        let public = generation::public_key(algorithm, response.data.expose())?;
        self.inventory.generated(tx, key, &public)?;
        Ok(public)
    }

    fn put_certificate(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        reference: u8,
        der: Option<&[u8]>,
    ) -> Result<(), TokenError> {
        let key = key_of(reference)?;
        let object = DataObject::certificate_of(key)
            .ok_or_else(|| TokenError::value("this PIV key has no certificate"))?;
        match der {
            Some(der) => {
                self.put_der(tx, &object, der)?;
                self.count_retired(tx, key)
            }
            None => self.put(tx, &object, &[]),
        }
    }

    fn put_data(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        number: u32,
        content: Option<&[u8]>,
    ) -> Result<(), TokenError> {
        let object = DataObject::by_tag(number)
            .ok_or_else(|| TokenError::value(format!("PIV has no data object {number:X}")))?;
        match content {
            Some(content) => {
                check_content(&object, content)?;
                self.put(tx, &object, content)
            }
            None => self.put(tx, &object, &[]),
        }
    }

    fn writable_data_objects(&self) -> Vec<(u32, Vec<u8>)> {
        DataObject::all()
            .map(|object| (object.tag, object.oid()))
            .collect()
    }

    fn has_random(&self) -> bool {
        false
    }

    fn random(
        &mut self,
        _talk: &mut AppletTransaction<'_, '_>,
        _len: usize,
    ) -> Result<Option<Secret>, TokenError> {
        Ok(None)
    }
}

fn key_of(reference: u8) -> Result<KeyReference, TokenError> {
    KeyReference::all()
        .find(|key| key.byte() == reference)
        .ok_or_else(|| TokenError::value(format!("PIV has no key {reference:02X}")))
}

/// What a refused change of PUK or PIN means.
fn not_changed(operation: &str, status: StatusWord) -> TokenError {
    if pin::refuses_new(status) {
        TokenError::NewPinInvalid {
            what: format!("{operation}: {status}"),
        }
    } else {
        TokenError::refused(operation, status)
    }
}

/// Refuses what would make the object absent, or the card unrecognisable.
fn check_content(object: &DataObject, content: &[u8]) -> Result<(), TokenError> {
    let fits = match object.tag {
        data_object::DISCOVERY => Discovery::parse(content).is_ok(),
        _ => object.holds(content),
    };
    if fits {
        Ok(())
    } else {
        Err(TokenError::value(format!(
            "{} bytes are no content of the {}",
            content.len(),
            object.name
        )))
    }
}
