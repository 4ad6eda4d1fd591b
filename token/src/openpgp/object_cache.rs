//! Which objects have been read, which a search still needs, and the objects themselves.

use std::sync::Arc;

use claviger_apdu::StatusWord;
use cryptoki_sys::{CKO_CERTIFICATE, CKO_PRIVATE_KEY, CKO_PUBLIC_KEY};

use crate::{
    algorithm::PublicKey,
    applet::Wanted,
    card::Conversation,
    certificate::Certificate,
    error::TokenError,
    naming::Naming,
    object::{self, Object},
    openpgp::{
        certificate::{CertificateReader, Read},
        data_object::ApplicationData,
        key::{self, Key, PerKey},
        quirks::Quirks,
    },
};

/// Everything read so far.
#[derive(Debug)]
pub(super) struct Objects {
    naming: Arc<Naming>,
    public_keys: PerKey<Read<PublicKey>>,
    certificates: PerKey<Read<Certificate>>,
    built: Vec<Arc<Object>>,
}

impl Objects {
    pub(super) fn new(naming: Arc<Naming>) -> Self {
        Self {
            naming,
            public_keys: PerKey::default(),
            certificates: PerKey::default(),
            built: Vec::new(),
        }
    }

    /// Forgets everything read.
    pub(super) fn forget(&mut self) {
        *self = Self::new(Arc::clone(&self.naming));
    }

    /// The objects that can be made of what was read.
    pub(super) fn built(&self) -> Vec<Arc<Object>> {
        self.built.clone()
    }

    /// Whether `wanted` can match anything on an OpenPGP card.
    pub(super) fn concern(&self, wanted: &Wanted) -> bool {
        Key::ALL
            .into_iter()
            .any(|key| self.wants_key(wanted, key) || self.wants_certificate(wanted, key))
    }

    /// Whether [`Objects::load`] would have nothing to read.
    pub(super) fn is_loaded(&self, wanted: &Wanted, data: &ApplicationData) -> bool {
        !Key::ALL.into_iter().any(|key| {
            self.key_is_due(wanted, data, key) || self.certificate_is_due(wanted, data, key)
        })
    }

    /// Forgets what was read of `key`, which has changed.
    pub(super) fn forget_key(&mut self, key: Key) {
        *self.public_keys.get_mut(key) = Read::Unread;
    }

    /// Forgets the certificate of `key`, which is written.
    pub(super) fn forget_certificate(&mut self, key: Key) {
        *self.certificates.get_mut(key) = Read::Unread;
    }

    /// Reads what `wanted` may match and is not read yet.
    pub(super) fn load(
        &mut self,
        talk: &mut Conversation<'_, '_>,
        wanted: &Wanted,
        data: &ApplicationData,
    ) -> Result<(), TokenError> {
        for key in Key::ALL {
            if self.key_is_due(wanted, data, key) {
                *self.public_keys.get_mut(key) = read_public_key(talk, data, key)?;
            }
        }
        self.load_certificates(talk, wanted, data)?;
        self.build(data);
        Ok(())
    }

    fn load_certificates(
        &mut self,
        talk: &mut Conversation<'_, '_>,
        wanted: &Wanted,
        data: &ApplicationData,
    ) -> Result<(), TokenError> {
        let identifier = &data.identifier;
        let mut due: Vec<Key> = Key::ALL
            .into_iter()
            .filter(|key| self.certificate_is_due(wanted, data, *key))
            .collect();
        if due.is_empty() {
            return Ok(());
        }
        due.sort_by_key(|key| key.occurrence());
        let mut reader = CertificateReader::new(
            identifier.version,
            Quirks::of(identifier.manufacturer),
            talk.was_reselected(),
        );
        for key in due {
            *self.certificates.get_mut(key) = reader.read(talk, key)?;
        }
        reader.finish(talk)
    }

    fn key_is_due(&self, wanted: &Wanted, data: &ApplicationData, key: Key) -> bool {
        self.public_keys.get(key).is_unread()
            && data.keys.get(key).may_exist()
            && self.wants_key(wanted, key)
    }

    /// Certificates are wanted for themselves, and for the public key the card does not give.
    fn certificate_is_due(&self, wanted: &Wanted, data: &ApplicationData, key: Key) -> bool {
        let for_key = self.wants_key(wanted, key)
            && data.keys.get(key).may_exist()
            && *self.public_keys.get(key) == Read::Unreadable;
        self.certificates.get(key).is_unread() && (for_key || self.wants_certificate(wanted, key))
    }

    /// Makes the objects anew of what was read and what the card now says of its keys.
    pub(super) fn build(&mut self, data: &ApplicationData) {
        self.built = Key::ALL
            .into_iter()
            .flat_map(|key| self.of_key(key, data))
            .map(Arc::new)
            .collect();
    }

    fn of_key(&self, key: Key, data: &ApplicationData) -> Vec<Object> {
        let place = key.place(&self.naming);
        let certificate = self.certificates.get(key).found();
        let subject = certificate.map_or(&[][..], |certificate| &certificate.subject);
        let public = match self.public_keys.get(key) {
            Read::Found(public) => Some(public),
            Read::Unreadable => certificate.and_then(|found| found.public_key.as_ref()),
            Read::Unread | Read::Absent => None,
        };
        let mut objects = Vec::new();
        objects.extend(certificate.map(|found| object::certificate(&place, found)));
        if let Some(public) = public {
            let usage = key.usage(public.algorithm());
            let pin = key.pin_rule(data.password.several_signatures);
            let origin = data.keys.get(key).origin();
            objects.push(object::public_key(
                &place, public, subject, usage, pin, origin, false,
            ));
            objects.push(object::private_key(
                &place, public, subject, usage, pin, origin, false,
            ));
        }
        objects
    }

    fn wants_key(&self, wanted: &Wanted, key: Key) -> bool {
        let place = key.place(&self.naming);
        wanted.may_be(CKO_PUBLIC_KEY, &place.id, &place.public_label)
            || wanted.private && wanted.may_be(CKO_PRIVATE_KEY, &place.id, &place.private_label)
    }

    fn wants_certificate(&self, wanted: &Wanted, key: Key) -> bool {
        let place = key.place(&self.naming);
        wanted.may_be(CKO_CERTIFICATE, &place.id, &place.certificate_label)
    }
}

fn read_public_key(
    talk: &mut Conversation<'_, '_>,
    data: &ApplicationData,
    key: Key,
) -> Result<Read<PublicKey>, TokenError> {
    let algorithm = data.keys.get(key).algorithm;
    let answer = talk.read(&key.read_public(algorithm))?;
    let fault = match answer.status {
        StatusWord::OK => match key::public_key(algorithm, answer.data.expose()) {
            Ok(public) => return Ok(Read::Found(public)),
            Err(error) => error.to_string(),
        },
        StatusWord::REFERENCE_NOT_FOUND => return Ok(Read::Absent),
        status => status.to_string(),
    };
    tracing::warn!(
        "the public half of the {} cannot be read: {fault}",
        key.name()
    );
    Ok(Read::Unreadable)
}
