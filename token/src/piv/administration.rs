//! Administration of PIV: the PUK and the management key as SO PIN, key generation, and writing of objects (SP 800-73-4
//! part 2, 3.2 and 3.3).

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
        if self.so.cipher.is_none() && !self.quirks.contains(Quirk::MetadataEmpty) {
            let response = tx.exchange(&management_key::GET_METADATA)?;
            if response.status.is_ok() {
                self.so.cipher = management_key::cipher(response.data.expose());
            }
        }
        self.so.authenticate(tx, key)
    }

    /// Queries the version of a YubiKey, which can generate more keys than it lists.
    fn query_version(&mut self, tx: &mut AppletTransaction<'_, '_>) -> Result<(), TokenError> {
        let due = self.quirks.contains(Quirk::YubicoObjects) && !self.so.queried_version;
        if !due {
            return Ok(());
        }
        self.so.queried_version = true;
        let response = tx.exchange(&generation::GET_VERSION)?;
        if let (true, Ok(version)) = (response.status.is_ok(), response.data.expose().try_into()) {
            self.so.generatable_algorithms = GenerationAlgorithms::of_yubikey(version);
        }
        Ok(())
    }

    /// Sends PUT DATA with an object's content. The object leaves the cache and is read again on the next search.
    fn put(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        object: &DataObject,
        content: &[u8],
    ) -> Result<(), TokenError> {
        // Even after a failed write only the card knows its content.
        self.objects.forget_data(object);
        let status = tx.exchange(&object.put_data(content).as_apdu())?.status;
        match status {
            StatusWord::OK => Ok(()),
            _ => Err(TokenError::not_written(
                format!("PIV PUT DATA of {}", object.name),
                status,
            )),
        }
    }

    /// Writes a certificate uncompressed. If the card has no space for it, writes it compressed.
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

    /// Counts the retired key in the key history after its certificate was written. Without that no program searches
    /// for it.
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
        self.so.puk
    }

    fn so_verify(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        so: &Secret,
    ) -> Result<(), TokenError> {
        match SoPin::parse(so)? {
            SoPin::Puk(puk) => self.so.verify_puk(tx, puk),
            SoPin::Key(key) => {
                self.authenticate(tx, &key)?;
                self.query_version(tx)
            }
        }
    }

    fn so_status(
        &mut self,
        _tx: &mut AppletTransaction<'_, '_>,
        so: &Secret,
        purpose: SoPurpose,
    ) -> Result<PinStatus, TokenError> {
        let missing = |what: &str| TokenError::NotLoggedIn {
            operation: format!("PIV administration that needs the {what} as SO PIN"),
        };
        match (SoPin::parse(so)?, purpose) {
            // Each command that needs the PUK contains it.
            (SoPin::Puk(_), SoPurpose::Pin) => Ok(PinStatus::Verified),
            // No card reports whether the key is verified. Sending it again costs no try.
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
            // PIV has no command for it. Some cards (Nitrokey 3 with piv-authenticator 0.7) keep the verification even
            // after this.
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
                self.so.puk_result(response.status, |status| {
                    Err(not_changed("PIV CHANGE REFERENCE DATA of the PUK", status))
                })
            }
            SoPin::Key(old) => {
                let new =
                    ManagementKey::from_hex(new).ok_or_else(|| TokenError::NewPinInvalid {
                        what: "a management key is 32, 48 or 64 hexadecimal digits".to_owned(),
                    })?;
                let cipher = self.authenticate(tx, &old)?;
                self.so.cipher = None;
                self.so.cipher = Some(new.set(tx, cipher)?);
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
        self.so.puk_result(response.status, |status| {
            Err(not_changed("PIV RESET RETRY COUNTER", status))
        })?;
        self.pin.was_reset();
        Ok(())
    }

    fn generatable_algorithms(&self) -> Vec<KeyAlgorithm> {
        self.so.generatable_algorithms.keys().to_vec()
    }

    fn key_reference_of(&self, id: &[u8]) -> Option<u8> {
        self.objects.key_of(id).map(KeyReference::byte)
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
        self.objects.forget_key(key);
        let response = tx.exchange(&command.as_apdu())?;
        if !response.status.is_ok() {
            return Err(generation::refusal(key, algorithm, response.status));
        }
        let public = generation::public_key(algorithm, response.data.expose())?;
        self.objects.generated(tx, key, &public)?;
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
            .ok_or_else(|| TokenError::value("PIV has no certificate object for this key"))?;
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
        _tx: &mut AppletTransaction<'_, '_>,
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

/// Returns the error for a refused change of PUK or PIN.
fn not_changed(operation: &str, status: StatusWord) -> TokenError {
    if pin::refuses_new(status) {
        TokenError::NewPinInvalid {
            what: format!("{operation}: {status}"),
        }
    } else {
        TokenError::refused(operation, status)
    }
}

/// Refuses content that would make the object absent or the card unrecognisable.
fn check_content(object: &DataObject, content: &[u8]) -> Result<(), TokenError> {
    let fits = match object.tag {
        data_object::DISCOVERY => Discovery::parse(content).is_ok(),
        _ => object.holds(content),
    };
    if fits {
        Ok(())
    } else {
        Err(TokenError::value(format!(
            "a value of {} bytes is not valid content of the {}",
            content.len(),
            object.name
        )))
    }
}
