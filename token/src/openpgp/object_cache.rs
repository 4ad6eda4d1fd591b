//! The cache of objects: what has been read, what a search still needs, and the objects themselves.

use std::sync::Arc;

use claviger_apdu::StatusWord;
use cryptoki_sys::{CKO_CERTIFICATE, CKO_PRIVATE_KEY, CKO_PUBLIC_KEY};

use crate::{
    algorithm::PublicKey,
    applet::SearchScope,
    card::AppletTransaction,
    certificate::Certificate,
    error::TokenError,
    naming::Naming,
    object::{self, Object},
    openpgp::{
        certificate::{CertificateReader, ReadState},
        data_object::ApplicationData,
        key::{self, KeyRole, PerKey},
        quirks::Quirks,
    },
};

/// The cached objects, and the keys and certificates that they are built from.
#[derive(Debug)]
pub(super) struct ObjectCache {
    naming: Arc<Naming>,
    public_keys: PerKey<ReadState<PublicKey>>,
    certificates: PerKey<ReadState<Certificate>>,
    built: Vec<Arc<Object>>,
}

impl ObjectCache {
    pub(super) fn new(naming: Arc<Naming>) -> Self {
        Self {
            naming,
            public_keys: PerKey::default(),
            certificates: PerKey::default(),
            built: Vec::new(),
        }
    }

    /// Clears the cache.
    pub(super) fn forget(&mut self) {
        *self = Self::new(Arc::clone(&self.naming));
    }

    /// Returns the objects that were built from the cache.
    pub(super) fn objects(&self) -> Vec<Arc<Object>> {
        self.built.clone()
    }

    /// Returns whether `scope` can match an object of an OpenPGP card.
    pub(super) fn can_match(&self, scope: &SearchScope) -> bool {
        KeyRole::ALL
            .into_iter()
            .any(|key| self.wants_key(scope, key) || self.wants_certificate(scope, key))
    }

    /// Returns whether [`ObjectCache::load`] has nothing to read.
    pub(super) fn is_loaded(&self, scope: &SearchScope, data: &ApplicationData) -> bool {
        !KeyRole::ALL.into_iter().any(|key| {
            self.key_is_due(scope, data, key) || self.certificate_is_due(scope, data, key)
        })
    }

    /// Drops the public key of `key` from the cache, because the key has changed.
    pub(super) fn forget_key(&mut self, key: KeyRole) {
        *self.public_keys.get_mut(key) = ReadState::Unread;
    }

    /// Drops the certificate of `key` from the cache, because the certificate is written.
    pub(super) fn forget_certificate(&mut self, key: KeyRole) {
        *self.certificates.get_mut(key) = ReadState::Unread;
    }

    /// Reads the objects that `scope` may match and that are not in the cache.
    pub(super) fn load(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        scope: &SearchScope,
        data: &ApplicationData,
    ) -> Result<(), TokenError> {
        for key in KeyRole::ALL {
            if self.key_is_due(scope, data, key) {
                *self.public_keys.get_mut(key) = read_public_key(tx, data, key)?;
            }
        }
        self.load_certificates(tx, scope, data)?;
        self.build(data);
        Ok(())
    }

    fn load_certificates(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        scope: &SearchScope,
        data: &ApplicationData,
    ) -> Result<(), TokenError> {
        let identifier = &data.identifier;
        let mut due: Vec<KeyRole> = KeyRole::ALL
            .into_iter()
            .filter(|key| self.certificate_is_due(scope, data, *key))
            .collect();
        if due.is_empty() {
            return Ok(());
        }
        due.sort_by_key(|key| key.occurrence());
        let mut reader = CertificateReader::new(
            identifier.version,
            Quirks::of(identifier.manufacturer),
            tx.was_reselected(),
        );
        for key in due {
            *self.certificates.get_mut(key) = reader.read(tx, key)?;
        }
        reader.finish(tx)
    }

    fn key_is_due(&self, scope: &SearchScope, data: &ApplicationData, key: KeyRole) -> bool {
        self.public_keys.get(key).is_unread()
            && data.keys.get(key).may_exist()
            && self.wants_key(scope, key)
    }

    /// Returns whether the certificate must be read. A search may match it, or may need its public key because the card
    /// does not give the key.
    fn certificate_is_due(
        &self,
        scope: &SearchScope,
        data: &ApplicationData,
        key: KeyRole,
    ) -> bool {
        let for_key = self.wants_key(scope, key)
            && data.keys.get(key).may_exist()
            && *self.public_keys.get(key) == ReadState::Unreadable;
        self.certificates.get(key).is_unread() && (for_key || self.wants_certificate(scope, key))
    }

    /// Rebuilds the objects from the cache and the card's present data on its keys.
    pub(super) fn build(&mut self, data: &ApplicationData) {
        self.built = KeyRole::ALL
            .into_iter()
            .flat_map(|key| self.of_key(key, data))
            .map(Arc::new)
            .collect();
    }

    fn of_key(&self, key: KeyRole, data: &ApplicationData) -> Vec<Object> {
        let identity = key.identity(&self.naming);
        let certificate = self.certificates.get(key).found();
        let subject = certificate.map_or(&[][..], |certificate| &certificate.subject);
        let public = match self.public_keys.get(key) {
            ReadState::Found(public) => Some(public),
            ReadState::Unreadable => certificate.and_then(|found| found.public_key.as_ref()),
            ReadState::Unread | ReadState::Absent => None,
        };
        let mut objects = Vec::new();
        objects.extend(certificate.map(|found| object::certificate(&identity, found)));
        if let Some(public) = public {
            let usage = key.usage(public.algorithm());
            let pin = key.pin_policy(data.password.several_signatures);
            let origin = data.keys.get(key).origin();
            objects.push(object::public_key(
                &identity, public, subject, usage, pin, origin, false,
            ));
            objects.push(object::private_key(
                &identity, public, subject, usage, pin, origin, false,
            ));
        }
        objects
    }

    fn wants_key(&self, scope: &SearchScope, key: KeyRole) -> bool {
        let identity = key.identity(&self.naming);
        scope.includes(CKO_PUBLIC_KEY, &identity.id, &identity.public_label)
            || scope.private
                && scope.includes(CKO_PRIVATE_KEY, &identity.id, &identity.private_label)
    }

    fn wants_certificate(&self, scope: &SearchScope, key: KeyRole) -> bool {
        let identity = key.identity(&self.naming);
        scope.includes(CKO_CERTIFICATE, &identity.id, &identity.certificate_label)
    }
}

fn read_public_key(
    tx: &mut AppletTransaction<'_, '_>,
    data: &ApplicationData,
    key: KeyRole,
) -> Result<ReadState<PublicKey>, TokenError> {
    let algorithm = data.keys.get(key).algorithm;
    let response = tx.read(&key.read_public(algorithm))?;
    let fault = match response.status {
        StatusWord::OK => match key::public_key(algorithm, response.data.expose()) {
            Ok(public) => return Ok(ReadState::Found(public)),
            Err(error) => error.to_string(),
        },
        StatusWord::REFERENCE_NOT_FOUND => return Ok(ReadState::Absent),
        status => status.to_string(),
    };
    tracing::warn!(
        "the public key of the {} cannot be read from the card: {fault}",
        key.name()
    );
    Ok(ReadState::Unreadable)
}
