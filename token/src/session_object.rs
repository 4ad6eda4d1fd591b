//! Session objects: created from templates, copied and changed. They exist only in this process.

use std::sync::atomic::{AtomicU32, Ordering};

use claviger_apdu::{Secret, tlv};
use cryptoki_sys::{
    CK_ATTRIBUTE_TYPE, CK_MECHANISM_TYPE, CK_OBJECT_CLASS, CK_ULONG, CKA_ALLOWED_MECHANISMS,
    CKA_ALWAYS_SENSITIVE, CKA_APPLICATION, CKA_CERTIFICATE_CATEGORY, CKA_CERTIFICATE_TYPE,
    CKA_CHECK_VALUE, CKA_CLASS, CKA_COPYABLE, CKA_DECRYPT, CKA_DERIVE, CKA_DESTROYABLE,
    CKA_EC_PARAMS, CKA_EC_POINT, CKA_ENCRYPT, CKA_END_DATE, CKA_EXTRACTABLE,
    CKA_HASH_OF_ISSUER_PUBLIC_KEY, CKA_HASH_OF_SUBJECT_PUBLIC_KEY, CKA_ID, CKA_ISSUER,
    CKA_KEY_GEN_MECHANISM, CKA_KEY_TYPE, CKA_LABEL, CKA_LOCAL, CKA_MODIFIABLE, CKA_MODULUS,
    CKA_MODULUS_BITS, CKA_NEVER_EXTRACTABLE, CKA_OBJECT_ID, CKA_PRIVATE, CKA_PUBLIC_EXPONENT,
    CKA_PUBLIC_KEY_INFO, CKA_SENSITIVE, CKA_SERIAL_NUMBER, CKA_SIGN, CKA_START_DATE, CKA_SUBJECT,
    CKA_TOKEN, CKA_TRUSTED, CKA_UNIQUE_ID, CKA_UNWRAP, CKA_URL, CKA_VALUE, CKA_VALUE_LEN,
    CKA_VERIFY, CKA_VERIFY_RECOVER, CKA_WRAP, CKA_WRAP_WITH_TRUSTED, CKC_X_509, CKK_AES,
    CKK_GENERIC_SECRET, CKK_RSA, CKO_CERTIFICATE, CKO_DATA, CKO_PUBLIC_KEY, CKO_SECRET_KEY,
};

use crate::{
    algorithm::PublicKey,
    attribute::{SharedSecret, Template, Value},
    attribute_table::{self, PUBLIC_KEY_TYPES, SECRET_KEY_TYPES, fault},
    certificate::Certificate,
    error::{TemplateFault, TokenError},
    host::public_key::is_on_curve,
    mechanism::MAX_SECRET,
    named_curve::{NamedCurve, curve_of},
    object::{Key, Object, SecretKey},
};

type Attributes = Vec<(CK_ATTRIBUTE_TYPE, Value)>;

const UNAVAILABLE: CK_ULONG = CK_ULONG::MAX;

/// The origin of a secret key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretKeySource {
    /// C_CreateObject or C_UnwrapKey.
    FromOutside,
    /// C_DeriveKey, from a key that never left its card.
    Derived,
    /// C_GenerateKey, with this mechanism.
    Generated(CK_MECHANISM_TYPE),
}

fn next_number() -> u32 {
    static LAST: AtomicU32 = AtomicU32::new(0);
    LAST.fetch_add(1, Ordering::Relaxed)
}

fn ulong(values: &Attributes, kind: CK_ATTRIBUTE_TYPE) -> Option<CK_ULONG> {
    values.iter().find_map(|(given, value)| match value {
        Value::Ulong(number) if *given == kind => Some(*number),
        _ => None,
    })
}

fn bytes(values: &Attributes, kind: CK_ATTRIBUTE_TYPE) -> Option<&[u8]> {
    values.iter().find_map(|(given, value)| match value {
        Value::Bytes(bytes) if *given == kind => Some(bytes.as_slice()),
        _ => None,
    })
}

fn is_true(object: &Object, kind: CK_ATTRIBUTE_TYPE) -> bool {
    object.get(kind) == Some(&Value::Bool(true))
}

/// Returns an object with the defaults of its class. `private` is the default of CKA_PRIVATE.
fn begin(class: CK_OBJECT_CLASS, private: bool) -> Object {
    let number = next_number();
    let mut object = Object::empty(class, number);
    object.set([
        (CKA_CLASS, Value::Ulong(class)),
        (CKA_TOKEN, false.into()),
        (CKA_PRIVATE, private.into()),
        (CKA_LABEL, "".into()),
        (CKA_MODIFIABLE, true.into()),
        (CKA_COPYABLE, true.into()),
        (CKA_DESTROYABLE, true.into()),
        (CKA_UNIQUE_ID, format!("session-{number:x}").as_str().into()),
    ]);
    object
}

impl Template {
    /// Returns whether the template asks for an object on the token.
    #[must_use]
    pub fn wants_token_object(&self) -> bool {
        self.bytes(CKA_TOKEN) == Some(&[1])
    }

    /// Returns whether the template asks for a private object, if it has CKA_PRIVATE.
    #[must_use]
    pub fn wants_private(&self) -> Option<bool> {
        self.bytes(CKA_PRIVATE).map(|value| value != [0])
    }
}

/// Creates a session object (C_CreateObject). If the template lacks CKA_PRIVATE, a secret key is private if a user is
/// logged in.
///
/// # Errors
/// A fault of the template.
pub fn create(template: &Template, logged_in: bool) -> Result<Object, TokenError> {
    let class = template
        .bytes(CKA_CLASS)
        .ok_or_else(|| fault(TemplateFault::Incomplete, CKA_CLASS))?;
    let class = class
        .try_into()
        .map(CK_ULONG::from_ne_bytes)
        .map_err(|_| fault(TemplateFault::ValueInvalid, CKA_CLASS))?;
    if ![CKO_DATA, CKO_CERTIFICATE, CKO_PUBLIC_KEY, CKO_SECRET_KEY].contains(&class) {
        return Err(fault(TemplateFault::ValueInvalid, CKA_CLASS));
    }
    let values = attribute_table::read(template, class)?;
    if let Some(kind) = attribute_table::first_missing(&values, class) {
        return Err(fault(TemplateFault::Incomplete, kind));
    }
    match class {
        CKO_DATA => Ok(data(values)),
        CKO_CERTIFICATE => certificate(values),
        CKO_PUBLIC_KEY => public_key(values),
        _ => {
            if values.iter().any(|(kind, _)| *kind == CKA_VALUE_LEN) {
                // PKCS #11 3.1, 4.10, footnote 4: CKA_VALUE_LEN must not be given for a key with a value.
                return Err(fault(TemplateFault::Inconsistent, CKA_VALUE_LEN));
            }
            let value = values.iter().find_map(|(_, value)| match value {
                Value::Secret(secret) => Some(secret.duplicate()),
                _ => None,
            });
            let value = value.ok_or_else(|| fault(TemplateFault::Incomplete, CKA_VALUE))?;
            secret_key(values, value, SecretKeySource::FromOutside, logged_in)
        }
    }
}

fn data(values: Attributes) -> Object {
    let mut object = begin(CKO_DATA, false);
    object.set([
        (CKA_APPLICATION, "".into()),
        (CKA_OBJECT_ID, Value::Bytes(Vec::new())),
        (CKA_VALUE, Value::Bytes(Vec::new())),
    ]);
    object.set(values);
    object
}

fn certificate(values: Attributes) -> Result<Object, TokenError> {
    if ulong(&values, CKA_CERTIFICATE_TYPE) != Some(CKC_X_509) {
        return Err(fault(TemplateFault::ValueInvalid, CKA_CERTIFICATE_TYPE));
    }
    let der = bytes(&values, CKA_VALUE).unwrap_or_default();
    let parsed =
        Certificate::parse(der).map_err(|_| fault(TemplateFault::ValueInvalid, CKA_VALUE))?;
    let mut object = begin(CKO_CERTIFICATE, false);
    object.set([
        (CKA_ID, Value::Bytes(Vec::new())),
        (CKA_ISSUER, parsed.issuer.clone().into()),
        (CKA_SERIAL_NUMBER, parsed.serial_number.clone().into()),
        (CKA_TRUSTED, false.into()),
        (CKA_CERTIFICATE_CATEGORY, Value::Ulong(0)),
        (CKA_CHECK_VALUE, parsed.check_value().to_vec().into()),
        (CKA_START_DATE, Value::Bytes(Vec::new())),
        (CKA_END_DATE, Value::Bytes(Vec::new())),
        (CKA_PUBLIC_KEY_INFO, parsed.public_key_info.clone().into()),
        (CKA_URL, Value::Bytes(Vec::new())),
        (CKA_HASH_OF_SUBJECT_PUBLIC_KEY, Value::Bytes(Vec::new())),
        (CKA_HASH_OF_ISSUER_PUBLIC_KEY, Value::Bytes(Vec::new())),
    ]);
    object.set(values);
    Ok(object)
}

/// Sets the default attributes of every key.
fn key_defaults(object: &mut Object, key_type: CK_ULONG) {
    object.set([
        (CKA_KEY_TYPE, Value::Ulong(key_type)),
        (CKA_ID, Value::Bytes(Vec::new())),
        (CKA_START_DATE, Value::Bytes(Vec::new())),
        (CKA_END_DATE, Value::Bytes(Vec::new())),
        (CKA_DERIVE, false.into()),
        (CKA_LOCAL, false.into()),
        (CKA_KEY_GEN_MECHANISM, Value::Ulong(UNAVAILABLE)),
        (CKA_ALLOWED_MECHANISMS, Value::Mechanisms(Vec::new())),
        (CKA_TRUSTED, false.into()),
    ]);
}

fn public_key(values: Attributes) -> Result<Object, TokenError> {
    let key_type = ulong(&values, CKA_KEY_TYPE).unwrap_or(UNAVAILABLE);
    if !PUBLIC_KEY_TYPES.contains(&key_type) {
        return Err(fault(TemplateFault::ValueInvalid, CKA_KEY_TYPE));
    }
    let key = read_public_key(&values, key_type)?;
    let rsa = key_type == CKK_RSA;
    let signs = key.algorithm() != crate::algorithm::KeyAlgorithm::X25519;
    let mut object = begin(CKO_PUBLIC_KEY, false);
    key_defaults(&mut object, key_type);
    object.set([
        (CKA_SUBJECT, Value::Bytes(Vec::new())),
        (CKA_ENCRYPT, rsa.into()),
        (CKA_VERIFY, signs.into()),
        (CKA_VERIFY_RECOVER, rsa.into()),
        (CKA_WRAP, rsa.into()),
        (CKA_PUBLIC_KEY_INFO, key.info().into()),
    ]);
    object.set(values);
    object.set(key.attributes());
    object.key = Some(Key::Public(Box::new(key)));
    Ok(object)
}

fn read_public_key(values: &Attributes, key_type: CK_ULONG) -> Result<PublicKey, TokenError> {
    let need = |kind| bytes(values, kind).ok_or_else(|| fault(TemplateFault::Incomplete, kind));
    let is_of_other_type = |kind: &CK_ATTRIBUTE_TYPE| {
        if key_type == CKK_RSA {
            [CKA_EC_PARAMS, CKA_EC_POINT].contains(kind)
        } else {
            [CKA_MODULUS, CKA_MODULUS_BITS, CKA_PUBLIC_EXPONENT].contains(kind)
        }
    };
    if let Some((kind, _)) = values.iter().find(|(kind, _)| is_of_other_type(kind)) {
        return Err(fault(TemplateFault::TypeInvalid, *kind));
    }
    if key_type == CKK_RSA {
        let (modulus, exponent) = (need(CKA_MODULUS)?, need(CKA_PUBLIC_EXPONENT)?);
        let wrong = || fault(TemplateFault::ValueInvalid, CKA_MODULUS);
        let odd = |number: &[u8]| number.last().is_some_and(|byte| byte & 1 == 1);
        let key = PublicKey::rsa(modulus, exponent)
            .filter(|_| odd(modulus) && odd(exponent))
            .ok_or_else(wrong)?;
        let said = ulong(values, CKA_MODULUS_BITS);
        let bits = key
            .attributes()
            .iter()
            .find_map(|(kind, value)| match value {
                Value::Ulong(bits) if *kind == CKA_MODULUS_BITS => Some(*bits),
                _ => None,
            });
        if said.is_some() && said != bits {
            return Err(fault(TemplateFault::Inconsistent, CKA_MODULUS_BITS));
        }
        return Ok(key);
    }
    let (parameters, point) = (need(CKA_EC_PARAMS)?, need(CKA_EC_POINT)?);
    read_point(key_type, parameters, point)
}

/// Reads the key of a curve. The curve is given by identifier or by name (X9.62 curveName), the point raw or in an
/// OCTET STRING.
fn read_point(
    key_type: CK_ULONG,
    parameters: &[u8],
    point: &[u8],
) -> Result<PublicKey, TokenError> {
    let wrong_point = || fault(TemplateFault::ValueInvalid, CKA_EC_POINT);
    let inner = tlv::only(point, 0x04).ok();
    let curve = curve_of(key_type, parameters)?;
    let accept = |bytes: &[u8]| match curve {
        NamedCurve::Prime(curve) => {
            let key = PublicKey::ec(curve, bytes)?;
            (is_on_curve(curve, bytes) != Some(false)).then_some(key)
        }
        NamedCurve::Ed25519 => bytes.try_into().ok().map(PublicKey::Ed25519),
        NamedCurve::X25519 => bytes.try_into().ok().map(PublicKey::X25519),
    };
    inner
        .and_then(accept)
        .or_else(|| accept(point))
        .ok_or_else(wrong_point)
}

/// The template of a secret key to be made.
#[derive(Debug)]
pub struct SecretKeySpec {
    values: Attributes,
    /// CKA_VALUE_LEN, if the template has it.
    pub len: Option<usize>,
}

impl SecretKeySpec {
    /// Reads the template of C_DeriveKey, C_UnwrapKey or C_GenerateKey. `key_type` is given if the mechanism determines
    /// it.
    ///
    /// # Errors
    /// A fault of the template, or [`TokenError::KeySize`].
    pub fn new(template: &Template, key_type: Option<CK_ULONG>) -> Result<Self, TokenError> {
        let mut values = attribute_table::read(template, CKO_SECRET_KEY)?;
        match ulong(&values, CKA_CLASS) {
            None => values.push((CKA_CLASS, Value::Ulong(CKO_SECRET_KEY))),
            Some(CKO_SECRET_KEY) => {}
            Some(_) => return Err(fault(TemplateFault::Inconsistent, CKA_CLASS)),
        }
        if values.iter().any(|(kind, _)| *kind == CKA_VALUE) {
            return Err(fault(TemplateFault::Inconsistent, CKA_VALUE));
        }
        match (ulong(&values, CKA_KEY_TYPE), key_type) {
            (Some(said), Some(known)) if said != known => {
                return Err(fault(TemplateFault::Inconsistent, CKA_KEY_TYPE));
            }
            (None, Some(known)) => values.push((CKA_KEY_TYPE, Value::Ulong(known))),
            (None, None) => return Err(fault(TemplateFault::Incomplete, CKA_KEY_TYPE)),
            _ => {}
        }
        let len = match ulong(&values, CKA_VALUE_LEN) {
            None => None,
            Some(0) => return Err(fault(TemplateFault::ValueInvalid, CKA_VALUE_LEN)),
            Some(len) if len > MAX_SECRET => return Err(TokenError::KeySize),
            Some(len) => usize::try_from(len).ok(),
        };
        let spec = Self { values, len };
        let key_type = spec.key_type();
        if !SECRET_KEY_TYPES.contains(&key_type) {
            return Err(fault(TemplateFault::ValueInvalid, CKA_KEY_TYPE));
        }
        if key_type == CKK_AES && spec.len.is_some_and(|len| ![16, 24, 32].contains(&len)) {
            return Err(TokenError::KeySize);
        }
        Ok(spec)
    }

    /// CKA_KEY_TYPE.
    #[must_use]
    pub fn key_type(&self) -> CK_ULONG {
        ulong(&self.values, CKA_KEY_TYPE).unwrap_or(CKK_GENERIC_SECRET)
    }

    /// Builds the key with this value.
    ///
    /// # Errors
    /// [`TokenError::KeySize`] if its type or CKA_VALUE_LEN requires another length.
    pub fn finish(
        self,
        value: Secret,
        source: SecretKeySource,
        logged_in: bool,
    ) -> Result<Object, TokenError> {
        if self.len.is_some_and(|len| len != value.len()) {
            return Err(TokenError::KeySize);
        }
        secret_key(self.values, value, source, logged_in)
    }
}

fn secret_key(
    mut values: Attributes,
    value: Secret,
    source: SecretKeySource,
    logged_in: bool,
) -> Result<Object, TokenError> {
    let key_type = ulong(&values, CKA_KEY_TYPE).unwrap_or(UNAVAILABLE);
    if !SECRET_KEY_TYPES.contains(&key_type) {
        return Err(fault(TemplateFault::ValueInvalid, CKA_KEY_TYPE));
    }
    let aes = key_type == CKK_AES;
    let len = CK_ULONG::try_from(value.len()).unwrap_or(UNAVAILABLE);
    let fits = if aes {
        [16, 24, 32].contains(&value.len())
    } else {
        (1..=MAX_SECRET).contains(&len)
    };
    if !fits {
        return Err(match source {
            SecretKeySource::FromOutside => fault(TemplateFault::ValueInvalid, CKA_VALUE),
            SecretKeySource::Derived | SecretKeySource::Generated(_) => TokenError::KeySize,
        });
    }
    values.retain(|(kind, _)| *kind != CKA_VALUE);
    let mut object = begin(CKO_SECRET_KEY, logged_in);
    key_defaults(&mut object, key_type);
    object.set([
        (CKA_ENCRYPT, aes.into()),
        (CKA_DECRYPT, aes.into()),
        (CKA_SIGN, (!aes).into()),
        (CKA_VERIFY, (!aes).into()),
        (CKA_WRAP, aes.into()),
        (CKA_UNWRAP, aes.into()),
        // The key is in this process's memory, and callers of C_DeriveKey expect to read it (SunPKCS11, libp11).
        (CKA_SENSITIVE, false.into()),
        (CKA_EXTRACTABLE, true.into()),
        (CKA_WRAP_WITH_TRUSTED, false.into()),
        (CKA_CHECK_VALUE, Value::Bytes(Vec::new())),
        (CKA_VALUE_LEN, Value::Ulong(len)),
    ]);
    object.set(values);
    if let SecretKeySource::Generated(mechanism) = source {
        object.set([
            (CKA_LOCAL, true.into()),
            (CKA_KEY_GEN_MECHANISM, Value::Ulong(mechanism)),
        ]);
    }
    let sheltered = matches!(
        source,
        SecretKeySource::Generated(_) | SecretKeySource::Derived
    );
    let (sensitive, extractable) = (
        is_true(&object, CKA_SENSITIVE),
        is_true(&object, CKA_EXTRACTABLE),
    );
    object.set([
        (CKA_ALWAYS_SENSITIVE, (sheltered && sensitive).into()),
        (CKA_NEVER_EXTRACTABLE, (sheltered && !extractable).into()),
    ]);
    object.key = Some(Key::Secret(SecretKey {
        aes,
        value: SharedSecret::new(value),
    }));
    object.set_value();
    Ok(object)
}

impl Object {
    /// Sets CKA_VALUE of a secret key: readable or sensitive, as CKA_SENSITIVE and CKA_EXTRACTABLE determine.
    fn set_value(&mut self) {
        let Some(Key::Secret(key)) = &self.key else {
            return;
        };
        let readable = !is_true(self, CKA_SENSITIVE) && is_true(self, CKA_EXTRACTABLE);
        let value = if readable {
            Value::Secret(key.value.clone())
        } else {
            Value::Sensitive
        };
        self.set([(CKA_VALUE, value)]);
    }

    /// Returns the object with some attributes changed (C_SetAttributeValue).
    ///
    /// # Errors
    /// ACTION_PROHIBITED if the object must not be changed, ATTRIBUTE_READ_ONLY, or a fault of the template.
    pub fn with_changes(&self, template: &Template) -> Result<Self, TokenError> {
        if !is_true(self, CKA_MODIFIABLE) {
            return Err(TokenError::ActionProhibited);
        }
        let values = attribute_table::read(template, self.id.class)?;
        for (kind, value) in &values {
            attribute_table::may_change(*kind, self.id.class, self.get(*kind), value)?;
        }
        let mut changed = self.clone();
        changed.set(values);
        changed.set_value();
        Ok(changed)
    }

    /// Returns a copy with some attributes changed (C_CopyObject).
    ///
    /// # Errors
    /// As [`Object::with_changes`]; also ACTION_PROHIBITED if the object must not be copied.
    pub fn copy_with(&self, template: &Template) -> Result<Self, TokenError> {
        if !is_true(self, CKA_COPYABLE) {
            return Err(TokenError::ActionProhibited);
        }
        let values = attribute_table::read(template, self.id.class)?;
        // PKCS #11 3.1, 5.7.2: attributes that may also be set for a copy.
        let of_the_copy = [CKA_TOKEN, CKA_PRIVATE, CKA_MODIFIABLE, CKA_DESTROYABLE];
        for (kind, value) in &values {
            if !of_the_copy.contains(kind) {
                attribute_table::may_change(*kind, self.id.class, self.get(*kind), value)?;
            }
        }
        let number = next_number();
        let mut copy = self.clone();
        copy.id.number = number;
        copy.set(values);
        copy.set([(CKA_UNIQUE_ID, format!("session-{number:x}").as_str().into())]);
        copy.set_value();
        Ok(copy)
    }

    /// Returns whether C_DestroyObject may destroy the object.
    #[must_use]
    pub fn is_destroyable(&self) -> bool {
        is_true(self, CKA_DESTROYABLE)
    }

    /// Returns whether the object is on the token. Otherwise it belongs to a session.
    #[must_use]
    pub fn is_on_token(&self) -> bool {
        is_true(self, CKA_TOKEN)
    }
}
