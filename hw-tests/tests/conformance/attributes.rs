//! The attributes of each class (PKCS #11 3.2, section 4): their presence and their values.

use claviger_apdu::tlv;
use cryptoki::object::{
    Attribute, AttributeType, CertificateType, KeyType, ObjectClass, ObjectHandle,
};
use sha1::{Digest as _, Sha1};

use claviger_hw_tests::{
    fixture::token_fixture::{TestSession, TokenFixture, checked},
    for_each_card,
};

/// What every object of the card has.
const STORED: [AttributeType; 8] = [
    AttributeType::Class,
    AttributeType::UniqueId,
    AttributeType::Token,
    AttributeType::Private,
    AttributeType::Label,
    AttributeType::Modifiable,
    AttributeType::Copyable,
    AttributeType::Destroyable,
];
const KEY: [AttributeType; 10] = [
    AttributeType::KeyType,
    AttributeType::Id,
    AttributeType::Subject,
    AttributeType::StartDate,
    AttributeType::EndDate,
    AttributeType::Local,
    AttributeType::Derive,
    AttributeType::KeyGenMechanism,
    AttributeType::PublicKeyInfo,
    AttributeType::AllowedMechanisms,
];
const PUBLIC: [AttributeType; 5] = [
    AttributeType::Encrypt,
    AttributeType::Verify,
    AttributeType::VerifyRecover,
    AttributeType::Wrap,
    AttributeType::Trusted,
];
const PRIVATE: [AttributeType; 10] = [
    AttributeType::Sensitive,
    AttributeType::Extractable,
    AttributeType::AlwaysSensitive,
    AttributeType::NeverExtractable,
    AttributeType::Decrypt,
    AttributeType::Sign,
    AttributeType::SignRecover,
    AttributeType::Unwrap,
    AttributeType::WrapWithTrusted,
    AttributeType::AlwaysAuthenticate,
];
const CERTIFICATE: [AttributeType; 14] = [
    AttributeType::CertificateType,
    AttributeType::Value,
    AttributeType::Subject,
    AttributeType::Issuer,
    AttributeType::SerialNumber,
    AttributeType::Id,
    AttributeType::Trusted,
    AttributeType::CheckValue,
    AttributeType::StartDate,
    AttributeType::EndDate,
    AttributeType::PublicKeyInfo,
    AttributeType::Url,
    AttributeType::HashOfSubjectPublicKey,
    AttributeType::HashOfIssuerPublicKey,
];
/// CKA_CERTIFICATE_CATEGORY, which the crate does not know, is read by the function list.
const CATEGORY: u64 = 0x87;

for_each_card! { [piv openpgp piv_rsa openpgp_rsa piv_ec openpgp_ec] [
    every_object_has_the_attributes_of_its_class
    every_object_of_the_card_is_fixed
    unique_ids_are_unique_printable_and_stable
    certificate_attributes_match_the_der_value
    public_key_attributes_match_public_key_info
    a_private_key_never_leaves_the_card
    a_private_key_has_the_public_numbers_of_its_public_key
    public_and_private_key_do_the_two_halves_of_the_same
    data_objects_have_their_attributes
] }

fn get(session: &TestSession, object: ObjectHandle, kinds: &[AttributeType]) -> Vec<Attribute> {
    session
        .get_attributes(object, kinds)
        .expect("C_GetAttributeValue")
}

/// One attribute, which must be there.
#[track_caller]
fn one(session: &TestSession, object: ObjectHandle, kind: AttributeType) -> Attribute {
    let found = get(session, object, &[kind]);
    assert_eq!(found.len(), 1, "{kind:?}");
    found[0].clone()
}

#[track_caller]
fn bytes(session: &TestSession, object: ObjectHandle, kind: AttributeType) -> Vec<u8> {
    match one(session, object, kind) {
        Attribute::Value(bytes)
        | Attribute::UniqueId(bytes)
        | Attribute::Subject(bytes)
        | Attribute::Issuer(bytes)
        | Attribute::SerialNumber(bytes)
        | Attribute::CheckValue(bytes)
        | Attribute::PublicKeyInfo(bytes)
        | Attribute::Modulus(bytes)
        | Attribute::PublicExponent(bytes)
        | Attribute::EcParams(bytes)
        | Attribute::EcPoint(bytes)
        | Attribute::Url(bytes)
        | Attribute::ObjectId(bytes)
        | Attribute::Id(bytes) => bytes,
        other => panic!("{other:?} is no bytes"),
    }
}

/// The lengths of attributes that must all be there, by the bare table.
fn has_all(session: &TestSession, object: ObjectHandle, kinds: &[u64]) {
    for kind in kinds {
        let mut entry = cryptoki_sys::CK_ATTRIBUTE {
            type_: *kind,
            pValue: std::ptr::null_mut(),
            ulValueLen: 0,
        };
        let function = session.list.C_GetAttributeValue.unwrap();
        // SAFETY: a template of one entry without a buffer.
        let code = unsafe { function(session.id(), object.handle(), &raw mut entry, 1) };
        assert_eq!(checked(code), Ok(()), "{kind:#x}");
        assert_ne!(entry.ulValueLen, u64::MAX);
    }
}

fn numbers(kinds: &[AttributeType]) -> Vec<u64> {
    kinds.iter().map(|kind| (*kind).into()).collect()
}

fn key_numbers(kind: KeyType) -> &'static [AttributeType] {
    match kind {
        KeyType::RSA => &[AttributeType::Modulus, AttributeType::PublicExponent],
        _ => &[AttributeType::EcParams, AttributeType::EcPoint],
    }
}

fn key_type(session: &TestSession, object: ObjectHandle) -> KeyType {
    match one(session, object, AttributeType::KeyType) {
        Attribute::KeyType(kind) => kind,
        other => panic!("{other:?}"),
    }
}

/// CKA_KEY_TYPE and the public numbers of a key.
pub fn numbers_of(session: &TestSession, key: ObjectHandle) -> Vec<Attribute> {
    let numbers = key_numbers(key_type(session, key));
    get(session, key, &[&[AttributeType::KeyType], numbers].concat())
}

fn every_object_has_the_attributes_of_its_class(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    for object in session.find_objects(&[Attribute::Token(true)]).unwrap() {
        let Attribute::Class(class) = one(&session, object, AttributeType::Class) else {
            panic!("no CKA_CLASS")
        };
        if class == ObjectClass::PROFILE {
            has_all(
                &session,
                object,
                &numbers(&[AttributeType::ProfileId, AttributeType::UniqueId]),
            );
            continue;
        }
        has_all(&session, object, &numbers(&STORED));
        let own: Vec<AttributeType> = match class {
            ObjectClass::CERTIFICATE => CERTIFICATE.to_vec(),
            ObjectClass::PUBLIC_KEY => {
                [&KEY[..], &PUBLIC, key_numbers(key_type(&session, object))].concat()
            }
            ObjectClass::PRIVATE_KEY => {
                [&KEY[..], &PRIVATE, key_numbers(key_type(&session, object))].concat()
            }
            ObjectClass::DATA => vec![
                AttributeType::Application,
                AttributeType::ObjectId,
                AttributeType::Value,
            ],
            other => panic!("{other:?} on a card"),
        };
        has_all(&session, object, &numbers(&own));
        if class == ObjectClass::CERTIFICATE {
            has_all(&session, object, &[CATEGORY]);
        }
    }
}

/// The SO may destroy certificates and data objects. No object may be changed or copied.
fn every_object_of_the_card_is_fixed(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let stored = [ObjectClass::CERTIFICATE, ObjectClass::DATA];
    for object in session.find_objects(&[]).unwrap() {
        let kinds = [
            AttributeType::Token,
            AttributeType::Modifiable,
            AttributeType::Copyable,
        ];
        let expected = [
            Attribute::Token(true),
            Attribute::Modifiable(false),
            Attribute::Copyable(false),
        ];
        assert_eq!(get(&session, object, &kinds), expected);
        let Attribute::Class(class) = one(&session, object, AttributeType::Class) else {
            panic!("no CKA_CLASS")
        };
        let destroyable = one(&session, object, AttributeType::Destroyable);
        let removable = stored.contains(&class);
        assert!(removable || destroyable == Attribute::Destroyable(false));
    }
}

fn unique_ids(session: &TestSession) -> Vec<String> {
    let objects = session.find_objects(&[]).unwrap();
    let id = |object: &ObjectHandle| bytes(session, *object, AttributeType::UniqueId);
    let text = |id: Vec<u8>| String::from_utf8(id).expect("printable");
    objects.iter().map(id).map(text).collect()
}

fn unique_ids_are_unique_printable_and_stable(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let ids = unique_ids(&session);
    assert!(
        ids.iter()
            .all(|id| !id.is_empty() && id.chars().all(|c| c.is_ascii_graphic()))
    );
    let mut distinct = ids.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), ids.len());
    session.end_session();
    let session = fixture.user();
    assert_eq!(
        unique_ids(&session),
        ids,
        "in another session, after another login"
    );
    for id in &ids {
        let template = [Attribute::UniqueId(id.clone().into_bytes())];
        assert_eq!(session.find_objects(&template).unwrap().len(), 1, "{id}");
    }
}

fn certificate_attributes_match_the_der_value(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    for object in session.all(ObjectClass::CERTIFICATE) {
        let part = |kind| bytes(&session, object, kind);
        let der = part(AttributeType::Value);
        let contains = |part: &[u8]| der.windows(part.len()).any(|window| window == part);
        let kind = one(&session, object, AttributeType::CertificateType);
        assert_eq!(kind, Attribute::CertificateType(CertificateType::X_509));
        assert!(
            tlv::only(&der, 0x30).is_ok(),
            "one certificate and nothing else"
        );
        for (kind, tag) in [
            (AttributeType::Subject, 0x30),
            (AttributeType::Issuer, 0x30),
            (AttributeType::SerialNumber, 0x02),
            (AttributeType::PublicKeyInfo, 0x30),
        ] {
            let part = part(kind);
            assert!(tlv::only(&part, tag).is_ok(), "{kind:?} with its tag");
            assert!(contains(&part), "{kind:?} is the certificate's");
        }
        let sha1 = Sha1::digest(&der);
        assert_eq!(part(AttributeType::CheckValue), sha1[..3]);
        assert_eq!(
            one(&session, object, AttributeType::Trusted),
            Attribute::Trusted(false)
        );
        let dates = get(
            &session,
            object,
            &[AttributeType::StartDate, AttributeType::EndDate],
        );
        assert_eq!(dates.len(), 2, "{dates:?}");
    }
}

fn public_key_attributes_match_public_key_info(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    for object in session.all(ObjectClass::PUBLIC_KEY) {
        let info = bytes(&session, object, AttributeType::PublicKeyInfo);
        let contains = |part: &[u8]| info.windows(part.len()).any(|window| window == part);
        match key_type(&session, object) {
            KeyType::RSA => {
                let modulus = bytes(&session, object, AttributeType::Modulus);
                assert_ne!(modulus[0], 0, "no leading zero");
                assert!(contains(&modulus));
                let bits = one(&session, object, AttributeType::ModulusBits);
                let expected = (modulus.len() * 8) as u64;
                assert_eq!(bits, Attribute::ModulusBits(expected.into()));
                let exponent = bytes(&session, object, AttributeType::PublicExponent);
                assert_eq!(exponent, [1, 0, 1]);
            }
            KeyType::EC => {
                let point = bytes(&session, object, AttributeType::EcPoint);
                let content = tlv::only(&point, 0x04).expect("a DER OCTET STRING");
                assert!(content[0] == 0x04 && contains(content));
                assert!(contains(&bytes(&session, object, AttributeType::EcParams)));
            }
            _ => {
                // Bare since 3.1; in an OCTET STRING where older readers want it.
                let point = bytes(&session, object, AttributeType::EcPoint);
                let point = tlv::only(&point, 0x04).unwrap_or(&point);
                assert!(point.len() == 32 && contains(point), "{point:02x?}");
                assert!(contains(&bytes(&session, object, AttributeType::EcParams)));
            }
        }
    }
}

fn a_private_key_never_leaves_the_card(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    for key in session.all(ObjectClass::PRIVATE_KEY) {
        let sensitive = one(&session, key, AttributeType::Sensitive);
        let extractable = one(&session, key, AttributeType::Extractable);
        assert_eq!(sensitive, Attribute::Sensitive(true));
        assert_eq!(extractable, Attribute::Extractable(false));
        let secrets: &[AttributeType] = match key_type(&session, key) {
            KeyType::RSA => &[
                AttributeType::PrivateExponent,
                AttributeType::Prime1,
                AttributeType::Prime2,
                AttributeType::Exponent1,
                AttributeType::Exponent2,
                AttributeType::Coefficient,
            ],
            _ => &[AttributeType::Value],
        };
        for info in session.get_attribute_info(key, secrets).unwrap() {
            assert!(
                matches!(info, cryptoki::object::AttributeInfo::Sensitive),
                "{info:?}"
            );
        }
        let local = one(&session, key, AttributeType::Local) == Attribute::Local(true);
        let never = one(&session, key, AttributeType::NeverExtractable);
        assert!(
            local || never == Attribute::NeverExtractable(false),
            "only what is known"
        );
    }
}

fn a_private_key_has_the_public_numbers_of_its_public_key(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let keys = session.all(ObjectClass::PRIVATE_KEY);
    assert!(keys.len() >= 3);
    for key in keys {
        let id = bytes(&session, key, AttributeType::Id)[0];
        let public = session.public(id);
        let kind = key_type(&session, key);
        assert_eq!(key_type(&session, public), kind);
        let shared = [
            &[AttributeType::PublicKeyInfo, AttributeType::Subject],
            key_numbers(kind),
        ];
        let shared = shared.concat();
        assert_eq!(get(&session, key, &shared), get(&session, public, &shared));
    }
}

fn public_and_private_key_do_the_two_halves_of_the_same(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    for key in session.all(ObjectClass::PRIVATE_KEY) {
        let public = session.public(bytes(&session, key, AttributeType::Id)[0]);
        let flag = |object, kind| match one(&session, object, kind) {
            Attribute::Sign(flag)
            | Attribute::Verify(flag)
            | Attribute::SignRecover(flag)
            | Attribute::VerifyRecover(flag)
            | Attribute::Decrypt(flag)
            | Attribute::Encrypt(flag)
            | Attribute::Unwrap(flag)
            | Attribute::Wrap(flag) => flag,
            other => panic!("{other:?}"),
        };
        for (private, halves) in [
            (AttributeType::Sign, AttributeType::Verify),
            (AttributeType::SignRecover, AttributeType::VerifyRecover),
            (AttributeType::Decrypt, AttributeType::Encrypt),
            (AttributeType::Unwrap, AttributeType::Wrap),
        ] {
            assert_eq!(flag(key, private), flag(public, halves), "{private:?}");
        }
    }
}

fn data_objects_have_their_attributes(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    for object in session.all(ObjectClass::DATA) {
        assert!(!bytes(&session, object, AttributeType::Value).is_empty());
        let oid = bytes(&session, object, AttributeType::ObjectId);
        assert!(
            oid.is_empty() || tlv::only(&oid, 0x06).is_ok(),
            "an OID in DER"
        );
    }
}
