//! The cache of a card's objects, and the reads that a search still needs. One function, `next_read`, decides both what
//! to load and whether anything is left to load.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use cryptoki_sys::{
    CK_OBJECT_CLASS, CKA_LABEL, CKO_CERTIFICATE, CKO_DATA, CKO_PRIVATE_KEY, CKO_PUBLIC_KEY,
};

use super::{
    authenticate, certificate_object,
    chuid::Chuid,
    data_object::{Access, CHUID, DataObject, KEY_HISTORY},
    discovery::KeyHistory,
    key_reference::KeyReference,
    metadata::{self, Metadata},
    quirks::{Quirk, Quirks},
};
use crate::{
    algorithm::{KeyAlgorithm, PublicKey},
    applet::SearchScope,
    card::AppletTransaction,
    certificate::Certificate,
    error::TokenError,
    naming::Naming,
    object::{self, KeyOrigin, Object},
};

/// The cached objects.
pub(super) struct ObjectCache {
    quirks: Quirks,
    naming: Arc<Naming>,
    /// Whether a federal agency issued the card. If not, certificates determine the use of their keys.
    federal: bool,
    /// Whether GET METADATA is sent. One response without metadata ends its use.
    metadata_useful: bool,
    /// Tags of the data objects that were read.
    asked: BTreeSet<u32>,
    history: KeyHistory,
    certificates: BTreeMap<KeyReference, Certificate>,
    metadata: BTreeMap<KeyReference, Option<Metadata>>,
    /// Keys generated through this connection. Cards without metadata do not report them again.
    made: BTreeMap<KeyReference, GeneratedKey>,
    /// Certificates come first, for clients that read only the first few objects. Keys are in the order of their
    /// CKA_ID, data objects by tag.
    objects: BTreeMap<(u8, u32), Arc<Object>>,
}

/// A key generated through this connection.
struct GeneratedKey {
    public: PublicKey,
    /// The certificate that was present when the key was generated. It belongs to the key before.
    outdated: Option<Vec<u8>>,
}

/// One command that a search still needs.
#[derive(Debug)]
enum PendingRead {
    Data(DataObject),
    Metadata(KeyReference),
}

/// Whether a key can be on the card.
enum KeyPresence {
    Maybe,
    No,
    /// The key history must be read first.
    AskHistory,
}

impl ObjectCache {
    pub(super) fn new(quirks: Quirks, naming: Arc<Naming>) -> Self {
        Self {
            quirks,
            naming,
            federal: false,
            metadata_useful: !quirks.contains(Quirk::MetadataEmpty),
            asked: BTreeSet::new(),
            history: KeyHistory::default(),
            certificates: BTreeMap::new(),
            metadata: BTreeMap::new(),
            made: BTreeMap::new(),
            objects: BTreeMap::new(),
        }
    }

    /// Reads the CHUID. The token's serial number comes from it.
    ///
    /// # Errors
    /// An error of the transaction. A card without a readable CHUID has no identity, which is no error.
    pub(super) fn identify(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
    ) -> Result<Option<Chuid>, TokenError> {
        let Some(object) = DataObject::by_tag(CHUID) else {
            return Ok(None);
        };
        let content = self.read_data(tx, &object)?;
        let chuid = content.and_then(|content| {
            Chuid::parse(&content)
                .map_err(|fault| left_out(&object.name, &fault))
                .ok()
        });
        self.federal = chuid.as_ref().is_some_and(Chuid::is_federal);
        Ok(chuid)
    }

    /// Drops everything that was read, so that it is read again.
    pub(super) fn forget(&mut self) {
        self.asked.clear();
        self.history = KeyHistory::default();
        self.certificates.clear();
        self.metadata.clear();
        self.objects.clear();
    }

    /// Drops `object` and the objects built from it from the cache. Call this before the object is written.
    pub(super) fn forget_data(&mut self, object: &DataObject) {
        self.asked.remove(&object.tag);
        self.objects.remove(&(order(CKO_DATA), object.tag));
        if object.tag == KEY_HISTORY {
            self.history = KeyHistory::default();
        }
        if let Some(key) = object.key {
            self.certificates.remove(&key);
            for class in [CKO_CERTIFICATE, CKO_PUBLIC_KEY, CKO_PRIVATE_KEY] {
                self.objects.remove(&(order(class), rank(key)));
            }
        }
    }

    /// Drops `key` and its certificate from the cache. Call this before another key is generated.
    pub(super) fn forget_key(&mut self, key: KeyReference) {
        if let Some(object) = DataObject::certificate_of(key) {
            self.forget_data(&object);
        }
        self.metadata.remove(&key);
        self.made.remove(&key);
    }

    /// Caches the generated key, and reads the certificate that is left from the key before.
    ///
    /// # Errors
    /// An error of the transaction.
    pub(super) fn generated(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        key: KeyReference,
        public: &PublicKey,
    ) -> Result<(), TokenError> {
        self.made.insert(
            key,
            GeneratedKey {
                public: public.clone(),
                outdated: None,
            },
        );
        let Some(object) = DataObject::certificate_of(key) else {
            return Ok(());
        };
        let content = self.read_data(tx, &object)?;
        let found = content.and_then(|content| certificate_object::certificate(&content).ok());
        self.made.insert(
            key,
            GeneratedKey {
                public: public.clone(),
                outdated: found.map(|certificate| certificate.der),
            },
        );
        self.build_keys(key);
        Ok(())
    }

    /// Returns the key reference whose objects have this CKA_ID.
    pub(super) fn key_of(&self, id: &[u8]) -> Option<KeyReference> {
        KeyReference::all().find(|key| id == [key.id(self.naming.ids)])
    }

    /// Returns all cached objects.
    pub(super) fn objects(&self) -> Vec<Arc<Object>> {
        self.objects.values().cloned().collect()
    }

    /// Returns whether a key of this algorithm is in the cache.
    pub(super) fn has_key(&self, algorithm: KeyAlgorithm) -> bool {
        let is = |object: &Object| {
            object
                .private_key()
                .is_some_and(|key| key.algorithm == algorithm)
        };
        self.objects.values().any(|object| is(object))
    }

    /// Returns whether [`ObjectCache::load`] has nothing to read.
    pub(super) fn is_loaded(&self, scope: &SearchScope) -> bool {
        self.next_read(scope).is_none()
    }

    /// Reads the objects that `scope` may match and that are not in the cache.
    ///
    /// # Errors
    /// An error of the transaction. An object that the card refuses or that does not parse is logged and left out.
    pub(super) fn load(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        scope: &SearchScope,
    ) -> Result<(), TokenError> {
        // After each read the cache has its result, whatever the card responds. So the loop ends.
        while let Some(reading) = self.next_read(scope) {
            match reading {
                PendingRead::Data(object) => drop(self.read_data(tx, &object)?),
                PendingRead::Metadata(key) => self.read_metadata(tx, key)?,
            }
        }
        Ok(())
    }

    /// The next GET DATA or GET METADATA that a search needs.
    fn next_read(&self, scope: &SearchScope) -> Option<PendingRead> {
        KeyReference::all()
            .find_map(|key| self.next_read_of_key(key, scope))
            .or_else(|| {
                DataObject::all()
                    .find(|object| self.wants_data(object, scope) && !self.was_asked(object))
                    .map(PendingRead::Data)
            })
    }

    fn next_read_of_key(&self, key: KeyReference, scope: &SearchScope) -> Option<PendingRead> {
        let identity = key.identity(&self.naming);
        let includes = |class, label: &str| scope.includes(class, &identity.id, label);
        let wants_key = includes(CKO_PUBLIC_KEY, &identity.public_label)
            || includes(CKO_PRIVATE_KEY, &identity.private_label);
        if !wants_key && !includes(CKO_CERTIFICATE, &identity.certificate_label) {
            return None;
        }
        match self.presence(key, scope) {
            KeyPresence::AskHistory => {
                return DataObject::by_tag(KEY_HISTORY).map(PendingRead::Data);
            }
            KeyPresence::No => return None,
            KeyPresence::Maybe => {}
        }
        DataObject::certificate_of(key)
            .filter(|object| !self.was_asked(object))
            .map(PendingRead::Data)
            .or_else(|| {
                (wants_key && !self.knows_metadata(key)).then_some(PendingRead::Metadata(key))
            })
    }

    /// Returns whether `key` can be on the card. A retired key is there if the key history counts it. A search that
    /// names a retired key looks for it in any case.
    fn presence(&self, key: KeyReference, scope: &SearchScope) -> KeyPresence {
        let KeyReference::Retired(number) = key else {
            return KeyPresence::Maybe;
        };
        let named = scope.id.is_some() || scope.label.is_some();
        if named || self.history.has(number) || self.made.contains_key(&key) {
            return KeyPresence::Maybe;
        }
        if self.asked.contains(&KEY_HISTORY) {
            KeyPresence::No
        } else {
            KeyPresence::AskHistory
        }
    }

    fn wants_data(&self, object: &DataObject, scope: &SearchScope) -> bool {
        let readable = match object.access {
            Access::Always => true,
            Access::Pin => scope.private,
            Access::Yubico => self.quirks.contains(Quirk::YubicoObjects),
        };
        // The key history comes before the retired keys in the table, so it has been read by now.
        let there = object
            .key
            .is_none_or(|key| !matches!(self.presence(key, scope), KeyPresence::No));
        readable && there && scope.includes(CKO_DATA, &[], self.naming.label(&object.name))
    }

    fn was_asked(&self, object: &DataObject) -> bool {
        self.asked.contains(&object.tag)
    }

    fn knows_metadata(&self, key: KeyReference) -> bool {
        !self.metadata_useful || self.metadata.contains_key(&key)
    }

    fn read_data(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        object: &DataObject,
    ) -> Result<Option<Vec<u8>>, TokenError> {
        let response = tx.read(&object.get_data().as_apdu())?;
        let content = object.content(&response).unwrap_or_else(|fault| {
            left_out(&object.name, &fault);
            None
        });
        self.take(object, content.as_deref());
        Ok(content)
    }

    fn read_metadata(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        key: KeyReference,
    ) -> Result<(), TokenError> {
        let response = tx.read(&metadata::command(key))?;
        let known = match metadata::parse_answer(response.status, response.data.expose()) {
            Ok(metadata::MetadataAnswer::Key(metadata)) => Some(metadata),
            Ok(metadata::MetadataAnswer::NoKey) => None,
            Ok(metadata::MetadataAnswer::Unsupported) => {
                self.metadata_useful = false;
                None
            }
            Err(fault) => {
                left_out(&format!("metadata of {:02X}", key.byte()), &fault);
                None
            }
        };
        self.metadata.insert(key, known);
        if self.metadata_useful {
            self.build_keys(key);
        } else {
            // Keys that waited for their metadata can be built now.
            KeyReference::all().for_each(|key| self.build_keys(key));
        }
        Ok(())
    }

    /// Caches the content of `object` and builds its objects.
    fn take(&mut self, object: &DataObject, content: Option<&[u8]>) {
        self.asked.insert(object.tag);
        if let Some(content) = content {
            let private = object.access == Access::Pin;
            let mut data = object::data(object.tag, &object.name, &object.oid(), content, private);
            data.set([(CKA_LABEL, self.naming.label(&object.name).into())]);
            self.add(object.tag, data);
            if object.tag == KEY_HISTORY {
                self.history = KeyHistory::parse(content).unwrap_or_else(|fault| {
                    left_out(&object.name, &fault);
                    KeyHistory::default()
                });
            }
        }
        if let Some(key) = object.key {
            self.take_certificate(key, object, content);
            self.build_keys(key);
        }
    }

    fn take_certificate(&mut self, key: KeyReference, object: &DataObject, content: Option<&[u8]>) {
        match content.map(certificate_object::certificate) {
            Some(Ok(certificate)) => {
                let identity = key.identity(&self.naming);
                self.add(rank(key), object::certificate(&identity, &certificate));
                self.certificates.insert(key, certificate);
            }
            Some(Err(fault)) => left_out(&object.name, &fault),
            None => {}
        }
    }

    /// Builds the key objects of `key` once its certificate and metadata are known. The card's own report on the key
    /// overrides the certificate, which may belong to the key before.
    fn build_keys(&mut self, key: KeyReference) {
        let asked = DataObject::certificate_of(key).is_some_and(|object| self.was_asked(&object));
        if !asked || !self.knows_metadata(key) {
            return;
        }
        let metadata = self.metadata.get(&key).and_then(Option::as_ref);
        let certificate = self.certificates.get(&key);
        let said = metadata.and_then(|metadata| metadata.public_key.as_ref());
        let made = self.made_now(key);
        let certified = certificate.and_then(|certificate| certificate.public_key.as_ref());
        let Some(public) = said.or(made).or(certified).cloned() else {
            return;
        };
        let certificate = certificate.filter(|_| certified == Some(&public));
        let algorithm = public.algorithm();
        let certified_usage = certificate
            .filter(|_| !self.federal)
            .and_then(|own| own.key_usage);
        let usage = key.usage(algorithm, certified_usage);
        let pin = metadata
            .and_then(|metadata| metadata.pin)
            .unwrap_or(key.pin_policy());
        let origin = match metadata {
            Some(metadata) if metadata.origin != KeyOrigin::Unknown => metadata.origin,
            _ if made == Some(&public) => KeyOrigin::Generated,
            _ => KeyOrigin::Unknown,
        };
        let subject = certificate.map_or(Vec::new(), |own| own.subject.clone());
        let identity = key.identity(&self.naming);
        let public_key = object::public_key(&identity, &public, &subject, usage, pin, origin, true);
        self.add(rank(key), public_key);
        if authenticate::identifier(algorithm).is_some() {
            let private =
                object::private_key(&identity, &public, &subject, usage, pin, origin, true);
            self.add(rank(key), private);
        }
    }

    /// Returns the key generated here. If a later certificate has another key, another program has generated one since,
    /// and the result is `None`.
    fn made_now(&self, key: KeyReference) -> Option<&PublicKey> {
        let made = self.made.get(&key)?;
        let replaced = self.certificates.get(&key).is_some_and(|certificate| {
            certificate.public_key.as_ref() != Some(&made.public)
                && made.outdated.as_ref() != Some(&certificate.der)
        });
        (!replaced).then_some(&made.public)
    }

    fn add(&mut self, rank: u32, object: Object) {
        self.objects
            .insert((order(object.id.class), rank), Arc::new(object));
    }
}

/// Returns the position of a class among the objects.
const fn order(class: CK_OBJECT_CLASS) -> u8 {
    match class {
        CKO_CERTIFICATE => 0,
        CKO_DATA => 1,
        CKO_PUBLIC_KEY => 2,
        _ => 3,
    }
}

/// Returns the position of `key` among the objects of a class.
fn rank(key: KeyReference) -> u32 {
    u32::from(key.number())
}

fn left_out(what: &str, fault: &TokenError) {
    tracing::warn!("PIV {what} is left out: {fault}");
}
