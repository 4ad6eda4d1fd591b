//! Administration with PW3: passwords, keys, certificates, and the card's random numbers (OpenPGP card 3.4, 7.2).

use std::time::{SystemTime, UNIX_EPOCH};

use claviger_apdu::{CommandApdu, Expected, Secret, StatusWord};

use crate::{
    administration::{Administration, SoPurpose},
    algorithm::{KeyAlgorithm, PublicKey},
    card::AppletTransaction,
    error::TokenError,
    openpgp::{
        OpenPgp,
        algorithm_information::{ALGORITHM_INFORMATION, GenerationAlgorithms},
        certificate::CertificateReader,
        fingerprint::fingerprint,
        kdf::Password,
        key::{self, KeyRole},
        quirks::Quirks,
    },
    pin::{PinStatus, PinTries},
};

/// Most random bytes requested at once: one short response.
const CHALLENGE: usize = 256;

impl OpenPgp {
    /// Returns the algorithms for which the card can generate keys, as far as known.
    fn generation_algorithms(&self) -> GenerationAlgorithms {
        match &self.algorithms {
            Some(algorithms) => algorithms.clone(),
            None => GenerationAlgorithms::of(&self.data),
        }
    }

    /// Reads once the algorithms that the card supports. If the card does not report them, the present algorithm
    /// attributes are the list.
    fn read_algorithms(&mut self, tx: &mut AppletTransaction<'_, '_>) -> Result<(), TokenError> {
        if self.algorithms.is_some() || !self.data.changeable {
            return Ok(());
        }
        let response = tx.exchange(&CommandApdu {
            expected: Expected::All,
            ..CommandApdu::header([0x00, 0xCA, 0x00, ALGORITHM_INFORMATION])
        })?;
        let told = GenerationAlgorithms::of(&self.data);
        self.algorithms = Some(match response.status {
            StatusWord::OK => told.with(response.data.expose()),
            _ => told,
        });
        Ok(())
    }

    /// Drops `key` from the cache, because another key is about to be generated.
    fn forget_key(&mut self, key: KeyRole) {
        self.objects.forget_key(key);
        self.objects.build(&self.data);
        self.stale = true;
    }

    /// Sets the algorithm attributes of `key`. The card then removes the key, unless the attributes are already those
    /// of `algorithm`.
    fn set_algorithm(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        key: KeyRole,
        algorithm: KeyAlgorithm,
    ) -> Result<(), TokenError> {
        if self.data.keys.get(key).algorithm == Some(algorithm) {
            return Ok(());
        }
        let algorithms = self.generation_algorithms();
        let attributes = algorithms
            .attributes(key, algorithm)
            .filter(|_| self.data.changeable)
            .ok_or(TokenError::KeyNotGenerable(algorithm))?;
        self.forget_key(key);
        let [_, _, high, tag] = key.attributes_tag().to_be_bytes();
        let status = put(tx, [high, tag], attributes)?;
        match status {
            StatusWord::OK => {}
            StatusWord::INCORRECT_DATA | StatusWord::FUNCTION_NOT_SUPPORTED => {
                return Err(TokenError::KeyNotGenerable(algorithm));
            }
            _ => {
                let operation = format!("OpenPGP PUT DATA {tag:02X} for the {}", key.name());
                return Err(TokenError::not_written(operation, status));
            }
        }
        // If a later command fails, these attributes are what the card has now.
        let record = self.data.keys.get_mut(key);
        record.algorithm = Some(algorithm);
        record.attributes = attributes.to_vec();
        Ok(())
    }

    fn make(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        key: KeyRole,
        algorithm: KeyAlgorithm,
    ) -> Result<PublicKey, TokenError> {
        self.forget_key(key);
        let response = tx.exchange(&key.generate())?;
        match response.status {
            StatusWord::OK => {}
            StatusWord::FUNCTION_NOT_SUPPORTED => {
                return Err(TokenError::KeyNotGenerable(algorithm));
            }
            status => {
                let operation = format!("OpenPGP GENERATE ASYMMETRIC KEY PAIR, {}", key.name());
                return Err(TokenError::not_written(operation, status));
            }
        }
        let public = key::public_key(Some(algorithm), response.data.expose())?;
        if public.algorithm() == algorithm {
            Ok(public)
        } else {
            Err(TokenError::malformed(
                "OpenPGP generated key",
                "it does not have the requested algorithm",
            ))
        }
    }

    /// Writes fingerprint and time of generation, without which other programs do not see the key. If the card refuses
    /// them, logs a warning and returns success, because the key exists.
    fn write_fingerprint(
        tx: &mut AppletTransaction<'_, '_>,
        key: KeyRole,
        public: &PublicKey,
        created: SystemTime,
    ) -> Result<(), TokenError> {
        let seconds = created.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = u32::try_from(seconds.as_secs()).unwrap_or(u32::MAX);
        let Some(fingerprint) = fingerprint(key, public, seconds) else {
            return Ok(());
        };
        let [fingerprint_tag, created_tag] = key.tags();
        for (tag, value) in [
            (fingerprint_tag, &fingerprint[..]),
            (created_tag, &seconds.to_be_bytes()),
        ] {
            let status = put(tx, [0x00, tag], value)?;
            if !status.is_ok() {
                tracing::warn!(
                    "OpenPGP PUT DATA {tag:02X} for the {}: {status}; some programs do not see the key",
                    key.name()
                );
            }
        }
        Ok(())
    }
}

impl Administration for OpenPgp {
    fn check_so_pin(&self, so: &Secret) -> Result<(), TokenError> {
        self.pin.check_admin(so)
    }

    fn so_tries(&self) -> PinTries {
        self.pin.admin_tries()
    }

    fn so_verify(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        so: &Secret,
    ) -> Result<(), TokenError> {
        self.pin.verify_admin(tx, so)?;
        self.read_algorithms(tx)
    }

    fn so_status(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        _so: &Secret,
        _purpose: SoPurpose,
    ) -> Result<PinStatus, TokenError> {
        self.pin.admin_status(tx)
    }

    fn so_unverify(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        _so: &Secret,
    ) -> Result<(), TokenError> {
        self.pin.unverify_admin(tx)
    }

    fn change_user_pin(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        old: &Secret,
        new: &Secret,
    ) -> Result<(), TokenError> {
        self.pin.change(tx, Password::User, old, new)
    }

    fn change_so_pin(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        old: &Secret,
        new: &Secret,
    ) -> Result<(), TokenError> {
        self.pin.change(tx, Password::Admin, old, new)
    }

    fn init_user_pin(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        _so: &Secret,
        new: &Secret,
    ) -> Result<(), TokenError> {
        self.pin.reset(tx, new)
    }

    fn generatable_algorithms(&self) -> Vec<KeyAlgorithm> {
        self.generation_algorithms().algorithms()
    }

    fn key_reference_of(&self, id: &[u8]) -> Option<u8> {
        KeyRole::from_id(id).map(KeyRole::reference)
    }

    fn generate(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        reference: u8,
        algorithm: KeyAlgorithm,
        created: SystemTime,
    ) -> Result<PublicKey, TokenError> {
        let key = key_of(reference)?;
        // Another program may have changed the algorithm attributes. A probe has read them; after a SELECT they are
        // read here.
        if tx.was_reselected() {
            self.refresh(tx)?;
        }
        self.read_algorithms(tx)?;
        self.set_algorithm(tx, key, algorithm)?;
        let public = self.make(tx, key, algorithm)?;
        Self::write_fingerprint(tx, key, &public, created)?;
        Ok(public)
    }

    fn put_certificate(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        reference: u8,
        der: Option<&[u8]>,
    ) -> Result<(), TokenError> {
        let key = key_of(reference)?;
        let der = der.unwrap_or_default();
        if self.data.max_certificate.is_some_and(|max| der.len() > max) {
            let operation = format!("OpenPGP certificate of {} bytes", der.len());
            return Err(TokenError::NoSpace { operation });
        }
        let identifier = &self.data.identifier;
        let quirks = Quirks::of(identifier.manufacturer);
        let mut writer = CertificateReader::new(identifier.version, quirks, false);
        self.objects.forget_certificate(key);
        self.objects.build(&self.data);
        let written = writer.write(tx, key, der);
        writer.finish(tx)?;
        written
    }

    fn put_data(
        &mut self,
        _tx: &mut AppletTransaction<'_, '_>,
        number: u32,
        _content: Option<&[u8]>,
    ) -> Result<(), TokenError> {
        let what = format!("the OpenPGP data object {number:X} is not an object of the token");
        Err(TokenError::value(what))
    }

    fn writable_data_objects(&self) -> Vec<(u32, Vec<u8>)> {
        Vec::new()
    }

    fn has_random(&self) -> bool {
        self.data.max_challenge.is_some()
    }

    fn random(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        len: usize,
    ) -> Result<Option<Secret>, TokenError> {
        let Some(most) = self.data.max_challenge else {
            return Ok(None);
        };
        let most = most.min(CHALLENGE);
        let mut random = Secret::new(Vec::with_capacity(len));
        while random.len() < len {
            let due = most.min(len - random.len());
            random.extend(challenge(tx, due)?.expose());
        }
        Ok(Some(random))
    }
}

/// Sends GET CHALLENGE (7.2.15) for exactly `len` bytes.
fn challenge(tx: &mut AppletTransaction<'_, '_>, len: usize) -> Result<Secret, TokenError> {
    let expected = Expected::UpTo(u32::try_from(len).unwrap_or(1));
    let response = tx.read(&CommandApdu {
        expected,
        ..CommandApdu::header([0x00, 0x84, 0x00, 0x00])
    })?;
    let random = response
        .ok()
        .map_err(|status| TokenError::refused("OpenPGP GET CHALLENGE", status))?;
    if random.len() == len {
        Ok(random)
    } else {
        let fault = format!("{} bytes; {len} were requested", random.len());
        Err(TokenError::malformed("OpenPGP challenge", fault))
    }
}

fn key_of(reference: u8) -> Result<KeyRole, TokenError> {
    KeyRole::from_reference(reference)
        .ok_or_else(|| TokenError::value(format!("OpenPGP has no key {reference:02X}")))
}

/// Sends PUT DATA (7.2.8).
fn put(
    tx: &mut AppletTransaction<'_, '_>,
    [high, low]: [u8; 2],
    value: &[u8],
) -> Result<StatusWord, TokenError> {
    let command = CommandApdu {
        data: value,
        ..CommandApdu::header([0x00, 0xDA, high, low])
    };
    Ok(tx.exchange(&command)?.status)
}
