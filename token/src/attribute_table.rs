//! The table of attributes: the classes that have each attribute, the form of its value, and when an application may
//! set it.

use cryptoki_sys::{
    CK_ATTRIBUTE_TYPE, CK_OBJECT_CLASS, CK_ULONG, CKA_ALLOWED_MECHANISMS, CKA_ALWAYS_AUTHENTICATE,
    CKA_ALWAYS_SENSITIVE, CKA_APPLICATION, CKA_CERTIFICATE_CATEGORY, CKA_CERTIFICATE_TYPE,
    CKA_CHECK_VALUE, CKA_CLASS, CKA_COPYABLE, CKA_DECRYPT, CKA_DERIVE, CKA_DESTROYABLE,
    CKA_EC_PARAMS, CKA_EC_POINT, CKA_ENCRYPT, CKA_END_DATE, CKA_EXTRACTABLE,
    CKA_HASH_OF_ISSUER_PUBLIC_KEY, CKA_HASH_OF_SUBJECT_PUBLIC_KEY, CKA_ID, CKA_ISSUER,
    CKA_JAVA_MIDP_SECURITY_DOMAIN, CKA_KEY_GEN_MECHANISM, CKA_KEY_TYPE, CKA_LABEL, CKA_LOCAL,
    CKA_MODIFIABLE, CKA_MODULUS, CKA_MODULUS_BITS, CKA_NAME_HASH_ALGORITHM, CKA_NEVER_EXTRACTABLE,
    CKA_OBJECT_ID, CKA_PRIVATE, CKA_PUBLIC_EXPONENT, CKA_PUBLIC_KEY_INFO, CKA_SENSITIVE,
    CKA_SERIAL_NUMBER, CKA_SIGN, CKA_SIGN_RECOVER, CKA_START_DATE, CKA_SUBJECT, CKA_TOKEN,
    CKA_TRUSTED, CKA_UNIQUE_ID, CKA_UNWRAP, CKA_URL, CKA_VALUE, CKA_VALUE_LEN, CKA_VERIFY,
    CKA_VERIFY_RECOVER, CKA_WRAP, CKA_WRAP_WITH_TRUSTED, CKK_AES, CKK_EC, CKK_EC_EDWARDS,
    CKK_EC_MONTGOMERY, CKK_GENERIC_SECRET, CKK_RSA, CKO_CERTIFICATE, CKO_DATA, CKO_PRIVATE_KEY,
    CKO_PUBLIC_KEY, CKO_SECRET_KEY,
};

use crate::{
    attribute::{SharedSecret, Template, Value},
    error::{TemplateFault, TokenError},
};

/// The form of a value in C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ValueForm {
    Bool,
    Ulong,
    Bytes,
    /// CK_DATE, or empty.
    Date,
    Mechanisms,
    /// Bytes of a secret key.
    Secret,
}

/// When an application may set an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SetRule {
    /// At creation, and it is required.
    Must,
    /// At creation only.
    Once,
    /// At creation and later.
    Always,
    /// At creation. Later only from false to true.
    Rises,
    /// At creation. Later only from true to false.
    Falls,
    /// Never. The module sets it.
    Never,
}

/// Classes of objects that an application can create.
const DATA: u8 = 1;
const CERTIFICATE: u8 = 2;
const PUBLIC: u8 = 4;
const SECRET: u8 = 8;
/// From key generation only.
const PRIVATE: u8 = 16;
const KEYS: u8 = PUBLIC | SECRET | PRIVATE;
const ALL: u8 = DATA | CERTIFICATE | KEYS;

struct Row {
    kind: CK_ATTRIBUTE_TYPE,
    form: ValueForm,
    classes: u8,
    setting: SetRule,
}

const fn row(kind: CK_ATTRIBUTE_TYPE, form: ValueForm, classes: u8, setting: SetRule) -> Row {
    Row {
        kind,
        form,
        classes,
        setting,
    }
}

/// PKCS #11 3.1, 4.4 to 4.11, and the key types of section 6. An attribute that differs between classes has several
/// rows.
const ATTRIBUTES: &[Row] = &[
    row(CKA_CLASS, ValueForm::Ulong, ALL, SetRule::Must),
    row(CKA_TOKEN, ValueForm::Bool, ALL, SetRule::Once),
    row(CKA_PRIVATE, ValueForm::Bool, ALL, SetRule::Once),
    row(CKA_LABEL, ValueForm::Bytes, ALL, SetRule::Always),
    row(CKA_MODIFIABLE, ValueForm::Bool, ALL, SetRule::Once),
    row(CKA_COPYABLE, ValueForm::Bool, ALL, SetRule::Falls),
    row(CKA_DESTROYABLE, ValueForm::Bool, ALL, SetRule::Once),
    row(CKA_UNIQUE_ID, ValueForm::Bytes, ALL, SetRule::Never),
    row(CKA_APPLICATION, ValueForm::Bytes, DATA, SetRule::Always),
    row(CKA_OBJECT_ID, ValueForm::Bytes, DATA, SetRule::Always),
    row(CKA_VALUE, ValueForm::Bytes, DATA, SetRule::Always),
    row(
        CKA_CERTIFICATE_TYPE,
        ValueForm::Ulong,
        CERTIFICATE,
        SetRule::Must,
    ),
    row(CKA_VALUE, ValueForm::Bytes, CERTIFICATE, SetRule::Must),
    row(CKA_SUBJECT, ValueForm::Bytes, CERTIFICATE, SetRule::Must),
    row(CKA_ID, ValueForm::Bytes, CERTIFICATE, SetRule::Always),
    row(CKA_ISSUER, ValueForm::Bytes, CERTIFICATE, SetRule::Always),
    row(
        CKA_SERIAL_NUMBER,
        ValueForm::Bytes,
        CERTIFICATE,
        SetRule::Always,
    ),
    row(
        CKA_CERTIFICATE_CATEGORY,
        ValueForm::Ulong,
        CERTIFICATE,
        SetRule::Once,
    ),
    row(
        CKA_JAVA_MIDP_SECURITY_DOMAIN,
        ValueForm::Ulong,
        CERTIFICATE,
        SetRule::Once,
    ),
    row(
        CKA_NAME_HASH_ALGORITHM,
        ValueForm::Ulong,
        CERTIFICATE,
        SetRule::Once,
    ),
    row(CKA_URL, ValueForm::Bytes, CERTIFICATE, SetRule::Once),
    row(
        CKA_HASH_OF_SUBJECT_PUBLIC_KEY,
        ValueForm::Bytes,
        CERTIFICATE,
        SetRule::Once,
    ),
    row(
        CKA_HASH_OF_ISSUER_PUBLIC_KEY,
        ValueForm::Bytes,
        CERTIFICATE,
        SetRule::Once,
    ),
    row(
        CKA_CHECK_VALUE,
        ValueForm::Bytes,
        CERTIFICATE | SECRET,
        SetRule::Once,
    ),
    row(
        CKA_TRUSTED,
        ValueForm::Bool,
        CERTIFICATE | PUBLIC | SECRET,
        SetRule::Never,
    ),
    row(
        CKA_PUBLIC_KEY_INFO,
        ValueForm::Bytes,
        CERTIFICATE | PUBLIC | PRIVATE,
        SetRule::Once,
    ),
    row(CKA_START_DATE, ValueForm::Date, CERTIFICATE, SetRule::Once),
    row(CKA_END_DATE, ValueForm::Date, CERTIFICATE, SetRule::Once),
    row(CKA_KEY_TYPE, ValueForm::Ulong, KEYS, SetRule::Must),
    row(CKA_ID, ValueForm::Bytes, KEYS, SetRule::Always),
    row(CKA_START_DATE, ValueForm::Date, KEYS, SetRule::Always),
    row(CKA_END_DATE, ValueForm::Date, KEYS, SetRule::Always),
    row(CKA_DERIVE, ValueForm::Bool, KEYS, SetRule::Always),
    row(CKA_LOCAL, ValueForm::Bool, KEYS, SetRule::Never),
    row(
        CKA_KEY_GEN_MECHANISM,
        ValueForm::Ulong,
        KEYS,
        SetRule::Never,
    ),
    row(
        CKA_ALLOWED_MECHANISMS,
        ValueForm::Mechanisms,
        KEYS,
        SetRule::Once,
    ),
    row(
        CKA_SUBJECT,
        ValueForm::Bytes,
        PUBLIC | PRIVATE,
        SetRule::Always,
    ),
    row(
        CKA_ENCRYPT,
        ValueForm::Bool,
        PUBLIC | SECRET,
        SetRule::Always,
    ),
    row(
        CKA_VERIFY,
        ValueForm::Bool,
        PUBLIC | SECRET,
        SetRule::Always,
    ),
    row(CKA_VERIFY_RECOVER, ValueForm::Bool, PUBLIC, SetRule::Always),
    row(CKA_WRAP, ValueForm::Bool, PUBLIC | SECRET, SetRule::Always),
    row(
        CKA_DECRYPT,
        ValueForm::Bool,
        SECRET | PRIVATE,
        SetRule::Always,
    ),
    row(CKA_SIGN, ValueForm::Bool, SECRET | PRIVATE, SetRule::Always),
    row(CKA_SIGN_RECOVER, ValueForm::Bool, PRIVATE, SetRule::Always),
    row(
        CKA_UNWRAP,
        ValueForm::Bool,
        SECRET | PRIVATE,
        SetRule::Always,
    ),
    row(
        CKA_SENSITIVE,
        ValueForm::Bool,
        SECRET | PRIVATE,
        SetRule::Rises,
    ),
    row(
        CKA_EXTRACTABLE,
        ValueForm::Bool,
        SECRET | PRIVATE,
        SetRule::Falls,
    ),
    row(
        CKA_WRAP_WITH_TRUSTED,
        ValueForm::Bool,
        SECRET | PRIVATE,
        SetRule::Rises,
    ),
    row(
        CKA_ALWAYS_SENSITIVE,
        ValueForm::Bool,
        SECRET | PRIVATE,
        SetRule::Never,
    ),
    row(
        CKA_NEVER_EXTRACTABLE,
        ValueForm::Bool,
        SECRET | PRIVATE,
        SetRule::Never,
    ),
    row(
        CKA_ALWAYS_AUTHENTICATE,
        ValueForm::Bool,
        PRIVATE,
        SetRule::Once,
    ),
    row(CKA_VALUE, ValueForm::Secret, SECRET, SetRule::Once),
    row(CKA_VALUE_LEN, ValueForm::Ulong, SECRET, SetRule::Once),
    row(CKA_MODULUS, ValueForm::Bytes, PUBLIC, SetRule::Once),
    row(CKA_MODULUS_BITS, ValueForm::Ulong, PUBLIC, SetRule::Once),
    row(CKA_PUBLIC_EXPONENT, ValueForm::Bytes, PUBLIC, SetRule::Once),
    row(CKA_EC_PARAMS, ValueForm::Bytes, PUBLIC, SetRule::Once),
    row(CKA_EC_POINT, ValueForm::Bytes, PUBLIC, SetRule::Once),
];

/// Types of public keys that can be session objects.
pub(crate) const PUBLIC_KEY_TYPES: [CK_ULONG; 4] =
    [CKK_RSA, CKK_EC, CKK_EC_EDWARDS, CKK_EC_MONTGOMERY];
/// Types of secret keys that can be session objects.
pub(crate) const SECRET_KEY_TYPES: [CK_ULONG; 2] = [CKK_GENERIC_SECRET, CKK_AES];

pub(crate) fn fault(fault: TemplateFault, attribute: CK_ATTRIBUTE_TYPE) -> TokenError {
    TokenError::Template { fault, attribute }
}

const fn mask(class: CK_OBJECT_CLASS) -> u8 {
    match class {
        CKO_DATA => DATA,
        CKO_CERTIFICATE => CERTIFICATE,
        CKO_PUBLIC_KEY => PUBLIC,
        CKO_SECRET_KEY => SECRET,
        CKO_PRIVATE_KEY => PRIVATE,
        _ => 0,
    }
}

fn row_of(kind: CK_ATTRIBUTE_TYPE, class: CK_OBJECT_CLASS) -> Result<&'static Row, TokenError> {
    let mask = mask(class);
    let fits = |row: &&Row| row.kind == kind && row.classes & mask != 0;
    ATTRIBUTES
        .iter()
        .find(fits)
        .ok_or_else(|| fault(TemplateFault::TypeInvalid, kind))
}

/// Returns the attributes that a template gives an object of `class`, each in its form.
///
/// # Errors
/// ATTRIBUTE_TYPE_INVALID for an attribute that the class does not have, ATTRIBUTE_VALUE_INVALID for a value of the
/// wrong form, ATTRIBUTE_READ_ONLY for an attribute that only the module sets, TEMPLATE_INCONSISTENT for one attribute
/// with two values.
pub(crate) fn read(
    template: &Template,
    class: CK_OBJECT_CLASS,
) -> Result<Vec<(CK_ATTRIBUTE_TYPE, Value)>, TokenError> {
    let mut values: Vec<(CK_ATTRIBUTE_TYPE, Value)> = Vec::with_capacity(template.0.len());
    for (kind, bytes) in &template.0 {
        let row = row_of(*kind, class)?;
        let value = row.form.read(*kind, bytes)?;
        // FALSE is allowed for an attribute that is never true: NSS sets CKA_TRUSTED so.
        let harmless = *kind == CKA_TRUSTED && value == Value::Bool(false);
        if row.setting == SetRule::Never && !harmless {
            return Err(fault(TemplateFault::ReadOnly, *kind));
        }
        match values.iter().find(|(other, _)| other == kind) {
            Some((_, other)) if *other == value => {}
            Some(_) => return Err(fault(TemplateFault::Inconsistent, *kind)),
            None => values.push((*kind, value)),
        }
    }
    Ok(values)
}

/// Returns the first required attribute of `class` that `values` lacks.
pub(crate) fn first_missing(
    values: &[(CK_ATTRIBUTE_TYPE, Value)],
    class: CK_OBJECT_CLASS,
) -> Option<CK_ATTRIBUTE_TYPE> {
    let mask = mask(class);
    ATTRIBUTES
        .iter()
        .filter(|row| row.setting == SetRule::Must && row.classes & mask != 0)
        .map(|row| row.kind)
        .find(|kind| !values.iter().any(|(given, _)| given == kind))
}

/// Checks that an attribute of an existing object may become `new`.
///
/// # Errors
/// ATTRIBUTE_READ_ONLY, or ATTRIBUTE_TYPE_INVALID for an attribute that `class` does not have.
pub(crate) fn may_change(
    kind: CK_ATTRIBUTE_TYPE,
    class: CK_OBJECT_CLASS,
    old: Option<&Value>,
    new: &Value,
) -> Result<(), TokenError> {
    let allowed = match row_of(kind, class)?.setting {
        SetRule::Always => true,
        SetRule::Rises => *new == Value::Bool(true) || old == Some(new),
        SetRule::Falls => *new == Value::Bool(false) || old == Some(new),
        SetRule::Must | SetRule::Once | SetRule::Never => false,
    };
    if allowed {
        Ok(())
    } else {
        Err(fault(TemplateFault::ReadOnly, kind))
    }
}

impl ValueForm {
    fn read(self, kind: CK_ATTRIBUTE_TYPE, bytes: &[u8]) -> Result<Value, TokenError> {
        let wrong = || fault(TemplateFault::ValueInvalid, kind);
        let word = |bytes: &[u8]| bytes.try_into().map(CK_ULONG::from_ne_bytes).ok();
        match self {
            Self::Bool => match bytes {
                [0] => Ok(Value::Bool(false)),
                [1] => Ok(Value::Bool(true)),
                _ => Err(wrong()),
            },
            Self::Ulong => word(bytes).map(Value::Ulong).ok_or_else(wrong),
            Self::Bytes => Ok(bytes.into()),
            Self::Date => {
                let digits = bytes.iter().all(u8::is_ascii_digit);
                if digits && matches!(bytes.len(), 0 | 8) {
                    Ok(bytes.into())
                } else {
                    Err(wrong())
                }
            }
            Self::Mechanisms => {
                let (words, rest) = bytes.as_chunks::<{ size_of::<CK_ULONG>() }>();
                let list = words.iter().filter_map(|chunk| word(chunk)).collect();
                if rest.is_empty() {
                    Ok(Value::Mechanisms(list))
                } else {
                    Err(wrong())
                }
            }
            Self::Secret => Ok(Value::Secret(SharedSecret::new(
                claviger_apdu::Secret::copy_from(bytes),
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(kind: CK_ATTRIBUTE_TYPE, value: &[u8]) -> Template {
        Template(vec![(kind, value.to_vec())])
    }

    fn faulty(template: &Template, class: CK_OBJECT_CLASS) -> TemplateFault {
        match read(template, class) {
            Err(TokenError::Template { fault, .. }) => fault,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_value_of_the_wrong_form_is_refused() {
        use TemplateFault::{Inconsistent, ReadOnly, TypeInvalid, ValueInvalid};
        assert_eq!(faulty(&one(CKA_TOKEN, &[2]), CKO_DATA), ValueInvalid);
        assert_eq!(faulty(&one(CKA_TOKEN, &[]), CKO_DATA), ValueInvalid);
        assert_eq!(
            faulty(&one(CKA_KEY_TYPE, &[0; 4]), CKO_SECRET_KEY),
            ValueInvalid
        );
        assert_eq!(
            faulty(&one(CKA_START_DATE, b"2026"), CKO_SECRET_KEY),
            ValueInvalid
        );
        assert_eq!(
            faulty(&one(CKA_ALLOWED_MECHANISMS, &[0; 9]), CKO_SECRET_KEY),
            ValueInvalid
        );
        assert_eq!(faulty(&one(CKA_MODULUS, &[1]), CKO_DATA), TypeInvalid);
        assert_eq!(faulty(&one(0x8000_0001, &[1]), CKO_DATA), TypeInvalid);
        assert_eq!(faulty(&one(CKA_LOCAL, &[1]), CKO_SECRET_KEY), ReadOnly);
        let twice = Template(vec![(CKA_ID, vec![1]), (CKA_ID, vec![2])]);
        assert_eq!(faulty(&twice, CKO_SECRET_KEY), Inconsistent);
        let same = Template(vec![(CKA_ID, vec![1]), (CKA_ID, vec![1])]);
        assert_eq!(read(&same, CKO_SECRET_KEY).unwrap().len(), 1);
    }

    #[test]
    fn protecting_attributes_of_a_key_cannot_be_weakened() {
        let may = |kind, old, new: bool| {
            may_change(kind, CKO_SECRET_KEY, Some(&Value::Bool(old)), &new.into()).is_ok()
        };
        assert!(may(CKA_SENSITIVE, false, true) && !may(CKA_SENSITIVE, true, false));
        assert!(may(CKA_EXTRACTABLE, true, false) && !may(CKA_EXTRACTABLE, false, true));
        assert!(may(CKA_SIGN, true, false) && !may(CKA_PRIVATE, true, false));
    }
}
