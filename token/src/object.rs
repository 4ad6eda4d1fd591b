//! Objects and their attributes. An object is built once, with all attributes, when it is read.

use std::collections::BTreeMap;

use cryptoki_sys::{
    CK_ATTRIBUTE_TYPE, CK_FLAGS, CK_MECHANISM_TYPE, CK_OBJECT_CLASS, CK_ULONG,
    CKA_ALLOWED_MECHANISMS, CKA_ALWAYS_AUTHENTICATE, CKA_ALWAYS_SENSITIVE, CKA_APPLICATION,
    CKA_CERTIFICATE_CATEGORY, CKA_CERTIFICATE_TYPE, CKA_CHECK_VALUE, CKA_CLASS, CKA_COPYABLE,
    CKA_DECRYPT, CKA_DERIVE, CKA_DESTROYABLE, CKA_ENCRYPT, CKA_END_DATE, CKA_EXTRACTABLE,
    CKA_HASH_OF_ISSUER_PUBLIC_KEY, CKA_HASH_OF_SUBJECT_PUBLIC_KEY, CKA_ID, CKA_ISSUER,
    CKA_KEY_GEN_MECHANISM, CKA_LABEL, CKA_LOCAL, CKA_MODIFIABLE, CKA_NEVER_EXTRACTABLE,
    CKA_OBJECT_ID, CKA_PRIVATE, CKA_PUBLIC_KEY_INFO, CKA_SENSITIVE, CKA_SERIAL_NUMBER, CKA_SIGN,
    CKA_SIGN_RECOVER, CKA_START_DATE, CKA_SUBJECT, CKA_TOKEN, CKA_TRUSTED, CKA_UNIQUE_ID,
    CKA_UNWRAP, CKA_URL, CKA_VALUE, CKA_VERIFY, CKA_VERIFY_RECOVER, CKA_WRAP,
    CKA_WRAP_WITH_TRUSTED, CKC_X_509, CKF_DECRYPT, CKF_DERIVE, CKF_ENCRYPT, CKF_SIGN, CKF_VERIFY,
    CKO_CERTIFICATE, CKO_DATA, CKO_PRIVATE_KEY, CKO_PUBLIC_KEY,
};

use crate::{
    algorithm::{KeyAlgorithm, PublicKey},
    attribute::{SharedSecret, Template, Value},
    certificate::Certificate,
    mechanism::{self, KeyKind},
};

/// CK_UNAVAILABLE_INFORMATION: all ones.
const UNAVAILABLE: CK_ULONG = CK_ULONG::MAX;

/// The identity of an object on its token. An object that is read again has the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId {
    /// CKA_CLASS.
    pub class: CK_OBJECT_CLASS,
    /// The applet's number for the object: a key reference or the tag of a data object.
    pub number: u32,
}

/// When a private key needs the PIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinPolicy {
    /// Never (PIV card authentication).
    Never,
    /// At login. The verification lasts until reset or logout.
    Once,
    /// Before each use: CKA_ALWAYS_AUTHENTICATE.
    Always,
}

/// The permitted functions of a private key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct KeyPermissions {
    /// CKA_SIGN.
    pub sign: bool,
    /// CKA_DECRYPT and CKA_UNWRAP.
    pub decrypt: bool,
    /// CKA_DERIVE.
    pub derive: bool,
}

impl KeyPermissions {
    /// Returns the permissions as flags of CK_MECHANISM_INFO, for the private key.
    #[must_use]
    pub const fn of_private_key(self) -> CK_FLAGS {
        (if self.sign { CKF_SIGN } else { 0 })
            | (if self.decrypt { CKF_DECRYPT } else { 0 })
            | (if self.derive { CKF_DERIVE } else { 0 })
    }

    const fn of_public_key(self) -> CK_FLAGS {
        (if self.sign { CKF_VERIFY } else { 0 }) | (if self.decrypt { CKF_ENCRYPT } else { 0 })
    }
}

/// A private key on a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrivateKey {
    /// The applet's key reference.
    pub reference: u8,
    /// The algorithm.
    pub algorithm: KeyAlgorithm,
    /// When the key needs the PIN.
    pub pin: PinPolicy,
    /// The permitted functions.
    pub usage: KeyPermissions,
    /// Whether the card computes the raw RSA function with the key, so that the host pads. Other cards pad themselves.
    pub raw_rsa: bool,
}

/// A secret key of a session, in this process's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretKey {
    /// CKK_AES, or else CKK_GENERIC_SECRET.
    pub aes: bool,
    /// The value of the key.
    pub value: SharedSecret,
}

/// The key of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// A private key on a card.
    Private(PrivateKey),
    /// A public key.
    Public(Box<PublicKey>),
    /// A secret key of a session.
    Secret(SecretKey),
}

impl Key {
    /// Returns the kind of the key, as mechanisms distinguish it.
    #[must_use]
    pub fn kind(&self) -> KeyKind {
        match self {
            Self::Private(key) => KeyKind::Private(key.algorithm, key.raw_rsa),
            Self::Public(key) => KeyKind::Public(key.algorithm()),
            Self::Secret(SecretKey { aes: true, .. }) => KeyKind::Aes,
            Self::Secret(_) => KeyKind::Generic,
        }
    }

    /// Returns the kind that the key would have on a card that leaves the padding to the host.
    pub(crate) fn on_best_card(&self) -> KeyKind {
        match self {
            Self::Private(key) => KeyKind::Private(key.algorithm, true),
            other => other.kind(),
        }
    }
}

/// An object of a token or a session. Its attributes never change. A changed object is a new value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// The identity of the object.
    pub id: ObjectId,
    /// The key of the object, if the object is a usable key.
    pub key: Option<Key>,
    attributes: BTreeMap<CK_ATTRIBUTE_TYPE, Value>,
}

impl Object {
    /// Returns the value of `attribute`, if the object has it.
    #[must_use]
    pub fn get(&self, attribute: CK_ATTRIBUTE_TYPE) -> Option<&Value> {
        self.attributes.get(&attribute)
    }

    /// Returns all values of the object.
    pub fn values(&self) -> impl Iterator<Item = &Value> {
        self.attributes.values()
    }

    /// Returns the private key of the object, if it has one.
    #[must_use]
    pub const fn private_key(&self) -> Option<&PrivateKey> {
        match &self.key {
            Some(Key::Private(key)) => Some(key),
            _ => None,
        }
    }

    /// Returns CKA_PRIVATE: whether only a logged-in user sees the object.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.get(CKA_PRIVATE) == Some(&Value::Bool(true))
    }

    /// Returns whether the object has every attribute of `template` with the same bytes. A sensitive value equals
    /// nothing.
    #[must_use]
    pub fn matches(&self, template: &Template) -> bool {
        template.0.iter().all(|(attribute, wanted)| {
            self.get(*attribute)
                .and_then(Value::encode)
                .is_some_and(|value| *value == **wanted)
        })
    }

    /// Returns an object without attributes.
    pub(crate) const fn empty(class: CK_OBJECT_CLASS, number: u32) -> Self {
        Self {
            id: ObjectId { class, number },
            key: None,
            attributes: BTreeMap::new(),
        }
    }

    pub(crate) fn new(class: CK_OBJECT_CLASS, number: u32, label: &str, private: bool) -> Self {
        let mut object = Self::empty(class, number);
        object.set([
            (CKA_CLASS, Value::Ulong(class)),
            (CKA_TOKEN, true.into()),
            (CKA_PRIVATE, private.into()),
            (CKA_LABEL, label.into()),
            (CKA_MODIFIABLE, false.into()),
            (CKA_COPYABLE, false.into()),
            (CKA_DESTROYABLE, false.into()),
            (CKA_UNIQUE_ID, unique_id(class, number).as_str().into()),
        ]);
        object
    }

    pub(crate) fn set(&mut self, attributes: impl IntoIterator<Item = (CK_ATTRIBUTE_TYPE, Value)>) {
        self.attributes.extend(attributes);
    }
}

/// Returns the CKA_UNIQUE_ID of an object on the token.
pub(crate) fn unique_id(class: CK_OBJECT_CLASS, number: u32) -> String {
    format!("{class:x}-{number:x}")
}

/// The identifiers that certificate, public key and private key of one key reference share.
#[derive(Clone, Debug)]
pub struct KeyIdentity {
    /// The applet's key reference.
    pub reference: u8,
    /// CKA_ID.
    pub id: Vec<u8>,
    /// CKA_LABEL of the certificate.
    pub certificate_label: String,
    /// CKA_LABEL of the public key.
    pub public_label: String,
    /// CKA_LABEL of the private key.
    pub private_label: String,
}

/// Builds an X.509 certificate object.
#[must_use]
pub fn certificate(identity: &KeyIdentity, certificate: &Certificate) -> Object {
    let mut object = Object::new(
        CKO_CERTIFICATE,
        u32::from(identity.reference),
        &identity.certificate_label,
        false,
    );
    object.set([
        // The security officer can destroy it.
        (CKA_DESTROYABLE, true.into()),
        (CKA_CERTIFICATE_TYPE, Value::Ulong(CKC_X_509)),
        (CKA_ID, identity.id.clone().into()),
        (CKA_VALUE, certificate.der.clone().into()),
        (CKA_SUBJECT, certificate.subject.clone().into()),
        (CKA_ISSUER, certificate.issuer.clone().into()),
        (CKA_SERIAL_NUMBER, certificate.serial_number.clone().into()),
        (CKA_TRUSTED, false.into()),
        (CKA_CERTIFICATE_CATEGORY, Value::Ulong(0)),
        (CKA_CHECK_VALUE, certificate.check_value().to_vec().into()),
        (CKA_START_DATE, certificate.not_before.clone().into()),
        (CKA_END_DATE, certificate.not_after.clone().into()),
        (
            CKA_PUBLIC_KEY_INFO,
            certificate.public_key_info.clone().into(),
        ),
        (CKA_URL, Value::Bytes(Vec::new())),
        (CKA_HASH_OF_SUBJECT_PUBLIC_KEY, Value::Bytes(Vec::new())),
        (CKA_HASH_OF_ISSUER_PUBLIC_KEY, Value::Bytes(Vec::new())),
    ]);
    object
}

/// Builds the public key object of `identity`. `subject` comes from the certificate and is empty without one.
#[must_use]
pub fn public_key(
    identity: &KeyIdentity,
    key: &PublicKey,
    subject: &[u8],
    usage: KeyPermissions,
    pin: PinPolicy,
    origin: KeyOrigin,
    raw_rsa: bool,
) -> Object {
    let mut object = Object::new(
        CKO_PUBLIC_KEY,
        u32::from(identity.reference),
        &identity.public_label,
        false,
    );
    let rsa = matches!(key, PublicKey::Rsa { .. });
    object.set(key.attributes());
    object.set(key_attributes(identity, subject, origin));
    object.set([
        (CKA_ENCRYPT, (rsa && usage.decrypt).into()),
        (
            CKA_WRAP,
            (rsa && usage.decrypt && pin != PinPolicy::Always).into(),
        ),
        (CKA_VERIFY, usage.sign.into()),
        (CKA_VERIFY_RECOVER, (rsa && usage.sign).into()),
        (
            CKA_DERIVE,
            (usage.derive && pin != PinPolicy::Always).into(),
        ),
        (CKA_TRUSTED, false.into()),
        (CKA_PUBLIC_KEY_INFO, key.info().into()),
        (
            CKA_ALLOWED_MECHANISMS,
            Value::Mechanisms(mechanism::allowed_to_public(
                key.algorithm(),
                raw_rsa,
                usage.of_public_key(),
            )),
        ),
    ]);
    object.key = Some(Key::Public(Box::new(key.clone())));
    object
}

/// Builds the private key object of `identity`, with the public numbers that a caller needs to use the key.
#[must_use]
pub fn private_key(
    identity: &KeyIdentity,
    key: &PublicKey,
    subject: &[u8],
    usage: KeyPermissions,
    pin: PinPolicy,
    origin: KeyOrigin,
    raw_rsa: bool,
) -> Object {
    let private = pin != PinPolicy::Never;
    let algorithm = key.algorithm();
    let rsa = matches!(algorithm, KeyAlgorithm::Rsa { .. });
    let mut object = Object::new(
        CKO_PRIVATE_KEY,
        u32::from(identity.reference),
        &identity.private_label,
        private,
    );
    object.key = Some(Key::Private(PrivateKey {
        reference: identity.reference,
        algorithm,
        pin,
        usage,
        raw_rsa,
    }));
    object.set(key.attributes());
    object.set(key_attributes(identity, subject, origin));
    object.set([
        (CKA_SENSITIVE, true.into()),
        (CKA_EXTRACTABLE, false.into()),
        (
            CKA_ALWAYS_SENSITIVE,
            (origin == KeyOrigin::Generated).into(),
        ),
        (
            CKA_NEVER_EXTRACTABLE,
            (origin == KeyOrigin::Generated).into(),
        ),
        (CKA_SIGN, usage.sign.into()),
        (CKA_SIGN_RECOVER, (rsa && usage.sign).into()),
        (CKA_DECRYPT, usage.decrypt.into()),
        // Unwrapping and derivation have no operation for which a context login could give the PIN.
        (
            CKA_UNWRAP,
            (usage.decrypt && pin != PinPolicy::Always).into(),
        ),
        (
            CKA_DERIVE,
            (usage.derive && pin != PinPolicy::Always).into(),
        ),
        (CKA_WRAP_WITH_TRUSTED, false.into()),
        (CKA_ALWAYS_AUTHENTICATE, (pin == PinPolicy::Always).into()),
        (CKA_PUBLIC_KEY_INFO, key.info().into()),
        (
            CKA_ALLOWED_MECHANISMS,
            Value::Mechanisms(mechanism::allowed_mechanisms(
                KeyKind::Private(algorithm, raw_rsa),
                usage.of_private_key(),
            )),
        ),
    ]);
    object.set(
        secret_attributes(algorithm)
            .iter()
            .map(|attribute| (*attribute, Value::Sensitive)),
    );
    object
}

/// Builds a data object. `oid` has the content octets of the object identifier, and is empty without one.
#[must_use]
pub fn data(number: u32, label: &str, oid: &[u8], value: &[u8], private: bool) -> Object {
    let mut object = Object::new(CKO_DATA, number, label, private);
    let object_id = if oid.is_empty() {
        Vec::new()
    } else {
        claviger_apdu::tlv::encode(0x06, oid)
    };
    object.set([
        // The security officer can destroy it.
        (CKA_DESTROYABLE, true.into()),
        (CKA_APPLICATION, label.into()),
        (CKA_OBJECT_ID, object_id.into()),
        (CKA_VALUE, value.into()),
    ]);
    object
}

/// The origin of a private key, as far as the card reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyOrigin {
    /// Generated on the card. The key never left the card.
    Generated,
    /// Generated outside.
    Imported,
    /// The card does not report it.
    Unknown,
}

fn key_attributes(
    identity: &KeyIdentity,
    subject: &[u8],
    origin: KeyOrigin,
) -> [(CK_ATTRIBUTE_TYPE, Value); 6] {
    [
        (CKA_ID, identity.id.clone().into()),
        (CKA_SUBJECT, subject.into()),
        (CKA_START_DATE, Value::Bytes(Vec::new())),
        (CKA_END_DATE, Value::Bytes(Vec::new())),
        (CKA_LOCAL, (origin == KeyOrigin::Generated).into()),
        (
            CKA_KEY_GEN_MECHANISM,
            Value::Ulong(UNAVAILABLE as CK_MECHANISM_TYPE),
        ),
    ]
}

/// Returns the attributes of a private key that never leave the card.
const fn secret_attributes(algorithm: KeyAlgorithm) -> &'static [CK_ATTRIBUTE_TYPE] {
    use cryptoki_sys::{
        CKA_COEFFICIENT, CKA_EXPONENT_1, CKA_EXPONENT_2, CKA_PRIME_1, CKA_PRIME_2,
        CKA_PRIVATE_EXPONENT,
    };
    match algorithm {
        KeyAlgorithm::Rsa { .. } => &[
            CKA_PRIVATE_EXPONENT,
            CKA_PRIME_1,
            CKA_PRIME_2,
            CKA_EXPONENT_1,
            CKA_EXPONENT_2,
            CKA_COEFFICIENT,
        ],
        _ => &[CKA_VALUE],
    }
}
