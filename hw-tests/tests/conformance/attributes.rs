//! The attributes of each class (PKCS #11 3.2, section 4): that they are there, and that they are true.

use claviger_apdu::tlv;
use cryptoki::object::{
    Attribute, AttributeType, CertificateType, KeyType, ObjectClass, ObjectHandle,
};
use sha1::{Digest as _, Sha1};

use claviger_hw_tests::{
    fixture::token_fixture::{Bench, Seat, checked},
    on_cards,
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
/// CKA_CERTIFICATE_CATEGORY, which the crate does not know, is looked at by the bare table.
const CATEGORY: u64 = 0x87;

on_cards! { [piv openpgp piv_rsa openpgp_rsa piv_ec openpgp_ec] [
    every_object_has_the_attributes_of_its_class
    every_object_of_the_card_is_fixed
    unique_ids_are_unique_printable_and_stable
    a_certificate_says_what_is_in_it
    a_public_key_says_what_its_info_says
    a_private_key_never_leaves_the_card
    a_private_key_has_the_public_numbers_of_its_public_key
    public_and_private_key_do_the_two_halves_of_the_same
    data_objects_have_their_attributes
] }

fn get(seat: &Seat, object: ObjectHandle, kinds: &[AttributeType]) -> Vec<Attribute> {
    seat.get_attributes(object, kinds)
        .expect("C_GetAttributeValue")
}

/// One attribute, which must be there.
#[track_caller]
fn one(seat: &Seat, object: ObjectHandle, kind: AttributeType) -> Attribute {
    let found = get(seat, object, &[kind]);
    assert_eq!(found.len(), 1, "{kind:?}");
    found[0].clone()
}

#[track_caller]
fn bytes(seat: &Seat, object: ObjectHandle, kind: AttributeType) -> Vec<u8> {
    match one(seat, object, kind) {
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
fn has_all(seat: &Seat, object: ObjectHandle, kinds: &[u64]) {
    for kind in kinds {
        let mut entry = cryptoki_sys::CK_ATTRIBUTE {
            type_: *kind,
            pValue: std::ptr::null_mut(),
            ulValueLen: 0,
        };
        let function = seat.list.C_GetAttributeValue.unwrap();
        // SAFETY: a template of one entry without a buffer.
        let code = unsafe { function(seat.id(), object.handle(), &raw mut entry, 1) };
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

fn key_type(seat: &Seat, object: ObjectHandle) -> KeyType {
    match one(seat, object, AttributeType::KeyType) {
        Attribute::KeyType(kind) => kind,
        other => panic!("{other:?}"),
    }
}

/// CKA_KEY_TYPE and the public numbers of a key.
pub fn numbers_of(seat: &Seat, key: ObjectHandle) -> Vec<Attribute> {
    let numbers = key_numbers(key_type(seat, key));
    get(seat, key, &[&[AttributeType::KeyType], numbers].concat())
}

fn every_object_has_the_attributes_of_its_class(bench: &Bench<'_>) {
    let seat = bench.user();
    for object in seat.find_objects(&[Attribute::Token(true)]).unwrap() {
        let Attribute::Class(class) = one(&seat, object, AttributeType::Class) else {
            panic!("no CKA_CLASS")
        };
        if class == ObjectClass::PROFILE {
            has_all(
                &seat,
                object,
                &numbers(&[AttributeType::ProfileId, AttributeType::UniqueId]),
            );
            continue;
        }
        has_all(&seat, object, &numbers(&STORED));
        let own: Vec<AttributeType> = match class {
            ObjectClass::CERTIFICATE => CERTIFICATE.to_vec(),
            ObjectClass::PUBLIC_KEY => {
                [&KEY[..], &PUBLIC, key_numbers(key_type(&seat, object))].concat()
            }
            ObjectClass::PRIVATE_KEY => {
                [&KEY[..], &PRIVATE, key_numbers(key_type(&seat, object))].concat()
            }
            ObjectClass::DATA => vec![
                AttributeType::Application,
                AttributeType::ObjectId,
                AttributeType::Value,
            ],
            other => panic!("{other:?} on a card"),
        };
        has_all(&seat, object, &numbers(&own));
        if class == ObjectClass::CERTIFICATE {
            has_all(&seat, object, &[CATEGORY]);
        }
    }
}

/// A certificate and a data object may be removed, by the security officer; nothing is changed or copied.
fn every_object_of_the_card_is_fixed(bench: &Bench<'_>) {
    let seat = bench.user();
    let stored = [ObjectClass::CERTIFICATE, ObjectClass::DATA];
    for object in seat.find_objects(&[]).unwrap() {
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
        assert_eq!(get(&seat, object, &kinds), expected);
        let Attribute::Class(class) = one(&seat, object, AttributeType::Class) else {
            panic!("no CKA_CLASS")
        };
        let destroyable = one(&seat, object, AttributeType::Destroyable);
        let removable = stored.contains(&class);
        assert!(removable || destroyable == Attribute::Destroyable(false));
    }
}

fn unique_ids(seat: &Seat) -> Vec<String> {
    let objects = seat.find_objects(&[]).unwrap();
    let id = |object: &ObjectHandle| bytes(seat, *object, AttributeType::UniqueId);
    let text = |id: Vec<u8>| String::from_utf8(id).expect("printable");
    objects.iter().map(id).map(text).collect()
}

fn unique_ids_are_unique_printable_and_stable(bench: &Bench<'_>) {
    let seat = bench.user();
    let ids = unique_ids(&seat);
    assert!(
        ids.iter()
            .all(|id| !id.is_empty() && id.chars().all(|c| c.is_ascii_graphic()))
    );
    let mut distinct = ids.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), ids.len());
    seat.leave();
    let seat = bench.user();
    assert_eq!(
        unique_ids(&seat),
        ids,
        "in another session, after another login"
    );
    for id in &ids {
        let template = [Attribute::UniqueId(id.clone().into_bytes())];
        assert_eq!(seat.find_objects(&template).unwrap().len(), 1, "{id}");
    }
}

fn a_certificate_says_what_is_in_it(bench: &Bench<'_>) {
    let seat = bench.read_only();
    for object in seat.all(ObjectClass::CERTIFICATE) {
        let part = |kind| bytes(&seat, object, kind);
        let der = part(AttributeType::Value);
        let contains = |part: &[u8]| der.windows(part.len()).any(|window| window == part);
        let kind = one(&seat, object, AttributeType::CertificateType);
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
            one(&seat, object, AttributeType::Trusted),
            Attribute::Trusted(false)
        );
        let dates = get(
            &seat,
            object,
            &[AttributeType::StartDate, AttributeType::EndDate],
        );
        assert_eq!(dates.len(), 2, "{dates:?}");
    }
}

fn a_public_key_says_what_its_info_says(bench: &Bench<'_>) {
    let seat = bench.read_only();
    for object in seat.all(ObjectClass::PUBLIC_KEY) {
        let info = bytes(&seat, object, AttributeType::PublicKeyInfo);
        let contains = |part: &[u8]| info.windows(part.len()).any(|window| window == part);
        match key_type(&seat, object) {
            KeyType::RSA => {
                let modulus = bytes(&seat, object, AttributeType::Modulus);
                assert_ne!(modulus[0], 0, "no leading zero");
                assert!(contains(&modulus));
                let bits = one(&seat, object, AttributeType::ModulusBits);
                let expected = (modulus.len() * 8) as u64;
                assert_eq!(bits, Attribute::ModulusBits(expected.into()));
                let exponent = bytes(&seat, object, AttributeType::PublicExponent);
                assert_eq!(exponent, [1, 0, 1]);
            }
            KeyType::EC => {
                let point = bytes(&seat, object, AttributeType::EcPoint);
                let bare = tlv::only(&point, 0x04).expect("a DER OCTET STRING");
                assert!(bare[0] == 0x04 && contains(bare));
                assert!(contains(&bytes(&seat, object, AttributeType::EcParams)));
            }
            _ => {
                // Bare since 3.1; in an OCTET STRING where older readers want it.
                let point = bytes(&seat, object, AttributeType::EcPoint);
                let point = tlv::only(&point, 0x04).unwrap_or(&point);
                assert!(point.len() == 32 && contains(point), "{point:02x?}");
                assert!(contains(&bytes(&seat, object, AttributeType::EcParams)));
            }
        }
    }
}

fn a_private_key_never_leaves_the_card(bench: &Bench<'_>) {
    let seat = bench.user();
    for key in seat.all(ObjectClass::PRIVATE_KEY) {
        let sensitive = one(&seat, key, AttributeType::Sensitive);
        let extractable = one(&seat, key, AttributeType::Extractable);
        assert_eq!(sensitive, Attribute::Sensitive(true));
        assert_eq!(extractable, Attribute::Extractable(false));
        let secrets: &[AttributeType] = match key_type(&seat, key) {
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
        for info in seat.get_attribute_info(key, secrets).unwrap() {
            assert!(
                matches!(info, cryptoki::object::AttributeInfo::Sensitive),
                "{info:?}"
            );
        }
        let local = one(&seat, key, AttributeType::Local) == Attribute::Local(true);
        let never = one(&seat, key, AttributeType::NeverExtractable);
        assert!(
            local || never == Attribute::NeverExtractable(false),
            "only what is known"
        );
    }
}

fn a_private_key_has_the_public_numbers_of_its_public_key(bench: &Bench<'_>) {
    let seat = bench.user();
    let keys = seat.all(ObjectClass::PRIVATE_KEY);
    assert!(keys.len() >= 3);
    for key in keys {
        let id = bytes(&seat, key, AttributeType::Id)[0];
        let public = seat.public(id);
        let kind = key_type(&seat, key);
        assert_eq!(key_type(&seat, public), kind);
        let shared = [
            &[AttributeType::PublicKeyInfo, AttributeType::Subject],
            key_numbers(kind),
        ];
        let shared = shared.concat();
        assert_eq!(get(&seat, key, &shared), get(&seat, public, &shared));
    }
}

fn public_and_private_key_do_the_two_halves_of_the_same(bench: &Bench<'_>) {
    let seat = bench.user();
    for key in seat.all(ObjectClass::PRIVATE_KEY) {
        let public = seat.public(bytes(&seat, key, AttributeType::Id)[0]);
        let flag = |object, kind| match one(&seat, object, kind) {
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

fn data_objects_have_their_attributes(bench: &Bench<'_>) {
    let seat = bench.user();
    for object in seat.all(ObjectClass::DATA) {
        assert!(!bytes(&seat, object, AttributeType::Value).is_empty());
        let oid = bytes(&seat, object, AttributeType::ObjectId);
        assert!(
            oid.is_empty() || tlv::only(&oid, 0x06).is_ok(),
            "an OID in DER"
        );
    }
}
