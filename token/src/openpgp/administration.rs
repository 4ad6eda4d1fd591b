//! Administration with PW3: passwords, keys, certificates, and the card's random numbers (OpenPGP card 3.4, 7.2).

use std::time::{SystemTime, UNIX_EPOCH};

use claviger_apdu::{CommandApdu, Expected, Secret, StatusWord};

use crate::{
    administration::{Administration, SoWork},
    algorithm::{KeyAlgorithm, PublicKey},
    card::Conversation,
    error::TokenError,
    openpgp::{
        OpenPgp,
        algorithm_information::{ALGORITHM_INFORMATION, Offers},
        certificate::CertificateReader,
        fingerprint::fingerprint,
        kdf::Password,
        key::{self, Key},
        quirks::Quirks,
    },
    pin::{PinStatus, PinTries},
};

/// Most random bytes asked for at once: one short answer.
const CHALLENGE: usize = 256;

impl OpenPgp {
    /// What the card can make, as far as it is known.
    fn offers(&self) -> Offers {
        match &self.offers {
            Some(offers) => offers.clone(),
            None => Offers::of(&self.data),
        }
    }

    /// Asks once what the card can make. One that does not say can make what its places are for.
    fn read_offers(&mut self, talk: &mut Conversation<'_, '_>) -> Result<(), TokenError> {
        if self.offers.is_some() || !self.data.changeable {
            return Ok(());
        }
        let answer = talk.exchange(&CommandApdu {
            expected: Expected::All,
            ..CommandApdu::header([0x00, 0xCA, 0x00, ALGORITHM_INFORMATION])
        })?;
        let told = Offers::of(&self.data);
        self.offers = Some(match answer.status {
            StatusWord::OK => told.with(answer.data.expose()),
            _ => told,
        });
        Ok(())
    }

    /// Forgets `key`: it is about to be another one.
    fn forget_key(&mut self, key: Key) {
        self.objects.forget_key(key);
        self.objects.build(&self.data);
        self.stale = true;
    }

    /// Makes the place of `key` one for `algorithm`, which removes the key in it, unless it is one.
    fn prepare_place(
        &mut self,
        talk: &mut Conversation<'_, '_>,
        key: Key,
        algorithm: KeyAlgorithm,
    ) -> Result<(), TokenError> {
        if self.data.keys.get(key).algorithm == Some(algorithm) {
            return Ok(());
        }
        let offers = self.offers();
        let attributes = offers
            .attributes(key, algorithm)
            .filter(|_| self.data.changeable)
            .ok_or(TokenError::KeyNotGenerable(algorithm))?;
        self.forget_key(key);
        let [_, _, high, tag] = key.attributes_tag().to_be_bytes();
        let status = put(talk, [high, tag], attributes)?;
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
        // What was refused afterwards would else be taken for what is there.
        let facts = self.data.keys.get_mut(key);
        facts.algorithm = Some(algorithm);
        facts.attributes = attributes.to_vec();
        Ok(())
    }

    fn make(
        &mut self,
        talk: &mut Conversation<'_, '_>,
        key: Key,
        algorithm: KeyAlgorithm,
    ) -> Result<PublicKey, TokenError> {
        self.forget_key(key);
        let answer = talk.exchange(&key.generate())?;
        match answer.status {
            StatusWord::OK => {}
            StatusWord::FUNCTION_NOT_SUPPORTED => {
                return Err(TokenError::KeyNotGenerable(algorithm));
            }
            status => {
                let operation = format!("OpenPGP GENERATE ASYMMETRIC KEY PAIR, {}", key.name());
                return Err(TokenError::not_written(operation, status));
            }
        }
        let public = key::public_key(Some(algorithm), answer.data.expose())?;
        if public.algorithm() == algorithm {
            Ok(public)
        } else {
            Err(TokenError::malformed(
                "OpenPGP generated key",
                "not of the kind that was asked for",
            ))
        }
    }

    /// Writes fingerprint and time, without which other programs do not see the key. The key is made: that the card
    /// does not take them is no reason to call it none.
    fn describe(
        talk: &mut Conversation<'_, '_>,
        key: Key,
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
            let status = put(talk, [0x00, tag], value)?;
            if !status.is_ok() {
                tracing::warn!(
                    "OpenPGP PUT DATA {tag:02X} for the {}: {status}",
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
        talk: &mut Conversation<'_, '_>,
        so: &Secret,
    ) -> Result<(), TokenError> {
        self.pin.verify_admin(talk, so)?;
        self.read_offers(talk)
    }

    fn so_status(
        &mut self,
        talk: &mut Conversation<'_, '_>,
        _so: &Secret,
        _work: SoWork,
    ) -> Result<PinStatus, TokenError> {
        self.pin.admin_status(talk)
    }

    fn so_unverify(
        &mut self,
        talk: &mut Conversation<'_, '_>,
        _so: &Secret,
    ) -> Result<(), TokenError> {
        self.pin.unverify_admin(talk)
    }

    fn change_user_pin(
        &mut self,
        talk: &mut Conversation<'_, '_>,
        old: &Secret,
        new: &Secret,
    ) -> Result<(), TokenError> {
        self.pin.change(talk, Password::User, old, new)
    }

    fn change_so_pin(
        &mut self,
        talk: &mut Conversation<'_, '_>,
        old: &Secret,
        new: &Secret,
    ) -> Result<(), TokenError> {
        self.pin.change(talk, Password::Admin, old, new)
    }

    fn init_user_pin(
        &mut self,
        talk: &mut Conversation<'_, '_>,
        _so: &Secret,
        new: &Secret,
    ) -> Result<(), TokenError> {
        self.pin.reset(talk, new)
    }

    fn generable(&self) -> Vec<KeyAlgorithm> {
        self.offers().algorithms()
    }

    fn place_of(&self, id: &[u8]) -> Option<u8> {
        Key::from_id(id).map(Key::reference)
    }

    fn generate(
        &mut self,
        talk: &mut Conversation<'_, '_>,
        reference: u8,
        algorithm: KeyAlgorithm,
        created: SystemTime,
    ) -> Result<PublicKey, TokenError> {
        let key = place(reference)?;
        // What the places are for may have been changed by others; a probe has told it.
        if talk.was_reselected() {
            self.refresh(talk)?;
        }
        self.read_offers(talk)?;
        self.prepare_place(talk, key, algorithm)?;
        let public = self.make(talk, key, algorithm)?;
        Self::describe(talk, key, &public, created)?;
        Ok(public)
    }

    fn put_certificate(
        &mut self,
        talk: &mut Conversation<'_, '_>,
        reference: u8,
        der: Option<&[u8]>,
    ) -> Result<(), TokenError> {
        let key = place(reference)?;
        let der = der.unwrap_or_default();
        if self.data.max_certificate.is_some_and(|max| der.len() > max) {
            let operation = format!("OpenPGP certificate of {} bytes", der.len());
            return Err(TokenError::NoRoom { operation });
        }
        let identifier = &self.data.identifier;
        let quirks = Quirks::of(identifier.manufacturer);
        let mut writer = CertificateReader::new(identifier.version, quirks, false);
        self.objects.forget_certificate(key);
        self.objects.build(&self.data);
        let written = writer.write(talk, key, der);
        writer.finish(talk)?;
        written
    }

    fn put_data(
        &mut self,
        _talk: &mut Conversation<'_, '_>,
        place: u32,
        _content: Option<&[u8]>,
    ) -> Result<(), TokenError> {
        let what = format!("no OpenPGP data object {place:X} is shown as an object");
        Err(TokenError::value(what))
    }

    fn data_places(&self) -> Vec<(u32, Vec<u8>)> {
        Vec::new()
    }

    fn has_random(&self) -> bool {
        self.data.max_challenge.is_some()
    }

    fn random(
        &mut self,
        talk: &mut Conversation<'_, '_>,
        len: usize,
    ) -> Result<Option<Secret>, TokenError> {
        let Some(most) = self.data.max_challenge else {
            return Ok(None);
        };
        let most = most.min(CHALLENGE);
        let mut random = Secret::new(Vec::with_capacity(len));
        while random.len() < len {
            let due = most.min(len - random.len());
            random.extend(challenge(talk, due)?.expose());
        }
        Ok(Some(random))
    }
}

/// GET CHALLENGE (7.2.15) of exactly `len` bytes.
fn challenge(talk: &mut Conversation<'_, '_>, len: usize) -> Result<Secret, TokenError> {
    let expected = Expected::UpTo(u32::try_from(len).unwrap_or(1));
    let answer = talk.read(&CommandApdu {
        expected,
        ..CommandApdu::header([0x00, 0x84, 0x00, 0x00])
    })?;
    let random = answer
        .ok()
        .map_err(|status| TokenError::refused("OpenPGP GET CHALLENGE", status))?;
    if random.len() == len {
        Ok(random)
    } else {
        let fault = format!("{} bytes; {len} were asked for", random.len());
        Err(TokenError::malformed("OpenPGP challenge", fault))
    }
}

fn place(reference: u8) -> Result<Key, TokenError> {
    Key::from_reference(reference)
        .ok_or_else(|| TokenError::value(format!("OpenPGP has no key {reference:02X}")))
}

/// PUT DATA (7.2.8).
fn put(
    talk: &mut Conversation<'_, '_>,
    [high, low]: [u8; 2],
    value: &[u8],
) -> Result<StatusWord, TokenError> {
    let command = CommandApdu {
        data: value,
        ..CommandApdu::header([0x00, 0xDA, high, low])
    };
    Ok(talk.exchange(&command)?.status)
}
