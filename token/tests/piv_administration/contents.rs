//! Generation of keys, writing of certificates and data objects, and the searches afterwards.

use std::{io::Write, time::SystemTime};

use claviger_apdu::tlv;
use claviger_token::{
    Card, Token, TokenError, Value,
    algorithm::{Curve, KeyAlgorithm, PublicKey},
};
use cryptoki_sys::{
    CKA_CLASS, CKA_EC_POINT, CKA_ID, CKA_LABEL, CKO_CERTIFICATE, CKO_DATA, CKO_PUBLIC_KEY,
};
use flate2::{Compression, write::GzEncoder};

use crate::{
    PROBE,
    common::{
        hex,
        piv::{P256, certificate, read, template},
        text,
    },
    managed, task,
};

const EC: KeyAlgorithm = KeyAlgorithm::Ec(Curve::P256);
/// GENERATE ASYMMETRIC KEY PAIR of a P-256 key in 9A.
const GENERATE: &str = "> 00 47 00 9A 00 00 05 AC 03 80 01 11 00 00\n";
const CERTIFICATE_9A: &str = "5FC105";

fn generate(card: &mut Card, token: &mut Token) -> Result<PublicKey, TokenError> {
    token.generate_key(card, 0x9A, EC, SystemTime::UNIX_EPOCH)
}

/// Returns 7F49 with the point whose coordinates consist of `byte`.
fn point(byte: u8) -> String {
    let point = tlv::encode(0x86, &[&[4][..], &[byte; 64]].concat());
    text(&tlv::encode(0x7F49, &point))
}

/// Scripts the generation of key 9A, after which `certificate` is read from its object.
fn made(byte: u8, certificate: &str) -> String {
    let key = point(byte);
    task(&format!(
        "{GENERATE}< {key} 9000\n{}",
        read(CERTIFICATE_9A, certificate)
    ))
}

/// GET METADATA of 9A on a card without metadata.
const NO_METADATA: &str = "> 00 F7 00 9A 00 00 00\n< 6D00\n";

/// Scripts a search in its own transaction, for an object that the card does not have. So the token sends the probe.
fn absent(read: &str) -> String {
    format!("[\n{read}{PROBE}]\n")
}

/// Returns X of the public key in 9A, as the token shows it.
fn shown(card: &mut Card, token: &mut Token) -> Option<u8> {
    let wanted = template(&[(CKA_CLASS, &CKO_PUBLIC_KEY.to_ne_bytes()), (CKA_ID, &[1])]);
    let found = token.find(card, &wanted).unwrap();
    match found.first()?.get(CKA_EC_POINT) {
        // 04 41 04 X Y
        Some(Value::Bytes(point)) => point.get(3).copied(),
        other => panic!("{other:?}"),
    }
}

/// Returns the content of a certificate's object.
fn content(bytes: &[u8], info: u8) -> Vec<u8> {
    [
        tlv::encode(0x70, bytes),
        tlv::encode(0x71, &[info]),
        tlv::encode(0xFE, &[]),
    ]
    .concat()
}

fn put(tag: &str, content: &[u8], status: &str) -> String {
    let object = [hex(tag), tlv::encode(0x53, content)].concat();
    let len = match object.len() {
        short @ ..256 => format!("{short:02X}"),
        long => format!("00 {long:04X}"),
    };
    format!("> 00 DB 3F FF {len} {}\n< {status}\n", text(&object))
}

#[test]
fn generated_key_is_found_on_a_card_without_metadata() {
    let session = [made(0xE1, "6A82"), absent(NO_METADATA)].concat();
    let (mut card, mut token) = managed(&session);
    let public = generate(&mut card, &mut token).unwrap();
    assert_eq!(public.algorithm(), EC);
    assert_eq!(shown(&mut card, &mut token), Some(0xE1));
}

#[test]
fn certificate_of_the_previous_key_does_not_hide_the_generated_one() {
    let search = format!("[\n{}]\n", read(CERTIFICATE_9A, &certificate(P256)));
    let session = [made(0xE1, &certificate(P256)), absent(NO_METADATA), search].concat();
    let (mut card, mut token) = managed(&session);
    generate(&mut card, &mut token).unwrap();
    assert_eq!(shown(&mut card, &mut token), Some(0xE1));
    token.forget_objects();
    assert_eq!(shown(&mut card, &mut token), Some(0xE1));
}

#[test]
fn certificate_written_later_replaces_the_public_key_from_generation() {
    let search = format!("[\n{}]\n", read(CERTIFICATE_9A, &certificate(P256)));
    let session = [made(0xE1, "6A82"), absent(NO_METADATA), search].concat();
    let (mut card, mut token) = managed(&session);
    generate(&mut card, &mut token).unwrap();
    assert_eq!(shown(&mut card, &mut token), Some(0xE1));
    token.forget_objects();
    let certified = shown(&mut card, &mut token).unwrap();
    assert_ne!(certified, 0xE1);
}

#[test]
fn metadata_overrules_the_public_key_from_generation() {
    let metadata = format!("01 01 11 02 02 02 01 03 01 01 04 43 {}", &point(0xE2)[6..]);
    let search = format!("[\n> 00 F7 00 9A 00 00 00\n< {metadata} 9000\n]\n");
    let (mut card, mut token) = managed(&[made(0xE1, "6A82"), search].concat());
    generate(&mut card, &mut token).unwrap();
    assert_eq!(shown(&mut card, &mut token), Some(0xE2));
}

#[test]
fn generated_key_of_another_type_is_refused() {
    let rsa = tlv::encode(
        0x7F49,
        &[
            tlv::encode(0x81, &[0xC1; 256]),
            tlv::encode(0x82, &[1, 0, 1]),
        ]
        .concat(),
    );
    for response in [
        text(&rsa),
        "7F49 00".to_owned(),
        String::new(),
        point(0xE1) + "00",
    ] {
        let (mut card, mut token) = managed(&task(&format!("{GENERATE}< {response} 9000\n")));
        let refused = generate(&mut card, &mut token);
        assert!(
            matches!(refused, Err(TokenError::Malformed { .. })),
            "{response}"
        );
    }
}

#[test]
fn failed_key_generation_is_reported_by_its_reason() {
    let refused = |status: &str| {
        let (mut card, mut token) = managed(&task(&format!("{GENERATE}< {status}\n")));
        generate(&mut card, &mut token).unwrap_err()
    };
    assert!(matches!(refused("6A80"), TokenError::KeyNotGenerable(EC)));
    assert!(matches!(refused("6A84"), TokenError::NoSpace { .. }));
    assert!(matches!(refused("6982"), TokenError::Refused { .. }));
}

#[test]
fn generation_of_an_unsupported_key_or_unknown_key_reference_sends_nothing() {
    let (mut card, mut token) = managed(&[task(""), task(""), task("")].concat());
    let mut make = |reference, algorithm| {
        let made = token.generate_key(&mut card, reference, algorithm, SystemTime::UNIX_EPOCH);
        made.unwrap_err()
    };
    let x25519 = make(0x9D, KeyAlgorithm::X25519);
    assert!(matches!(x25519, TokenError::KeyNotGenerable(_)));
    let brainpool = make(0x9A, KeyAlgorithm::Ec(Curve::BrainpoolP256));
    assert!(matches!(brainpool, TokenError::KeyNotGenerable(_)));
    assert!(matches!(make(0x9B, EC), TokenError::ValueInvalid { .. }));
    assert_eq!(token.key_reference_of(&[0x24]), Some(0x95));
    assert_eq!(token.key_reference_of(&[0x25]), None);
    assert_eq!(token.key_reference_of(&[]), None);
}

#[test]
fn written_certificate_is_found_by_the_next_search_and_gone_after_removal() {
    let content = content(P256, 0);
    let search = |response: &str| format!("[\n{}]\n", read(CERTIFICATE_9A, response));
    let session = [
        absent(&read(CERTIFICATE_9A, "6A82")),
        task(&put("5C035FC105", &content, "9000")),
        search(&certificate(P256)),
        task(&put("5C035FC105", &[], "9000")),
        search("5300 9000"),
    ]
    .concat();
    let (mut card, mut token) = managed(&session);
    let count = |card: &mut Card, token: &mut Token| {
        let wanted = template(&[(CKA_CLASS, &CKO_CERTIFICATE.to_ne_bytes()), (CKA_ID, &[1])]);
        token.find(card, &wanted).unwrap().len()
    };
    assert_eq!(count(&mut card, &mut token), 0);
    token.put_certificate(&mut card, 0x9A, Some(P256)).unwrap();
    assert_eq!(count(&mut card, &mut token), 1);
    token.put_certificate(&mut card, 0x9A, None).unwrap();
    assert_eq!(count(&mut card, &mut token), 0);
}

#[test]
fn the_key_history_counts_a_retired_key_that_gets_a_certificate() {
    let content = content(P256, 0);
    let written = put("5C035FC10F", &content, "9000");
    let history = "C10103 C20100 FE00";
    let session = [
        task(&format!(
            "{written}{}{}",
            read("5FC10C", "6A82"),
            put("5C035FC10C", &hex(history), "9000")
        )),
        task(&format!(
            "{written}{}",
            read("5FC10C", &format!("5308{history} 9000"))
        )),
    ]
    .concat();
    let (mut card, mut token) = managed(&session);
    for _ in 0..2 {
        token.put_certificate(&mut card, 0x84, Some(P256)).unwrap();
    }
}

#[test]
fn data_objects_are_written_unchanged_and_the_discovery_object_only_as_one() {
    let printed = put("5C035FC109", b"printed", "9000");
    let discovery = "7E 12 4F 0B A000000308000010000100 5F2F 02 4000";
    let session = [
        task(&printed),
        task(&put("5C035FC109", b"printed", "6A84")),
        task(&put("5C035FC109", &[], "9000")),
        task(&format!("> 00 DB 3F FF 14 {discovery}\n< 9000\n")),
        task("> 00 DB 3F FF 03 7F61 00\n< 9000\n"),
        task(""),
        task(""),
        task(""),
    ]
    .concat();
    let (mut card, mut token) = managed(&session);
    let mut put = |tag, content: Option<&[u8]>| token.put_data(&mut card, tag, content);
    put(0x5F_C109, Some(b"printed")).unwrap();
    let full = put(0x5F_C109, Some(b"printed"));
    assert!(matches!(full, Err(TokenError::NoSpace { .. })));
    put(0x5F_C109, None).unwrap();
    let discovery = hex(discovery);
    put(0x7E, Some(&discovery)).unwrap();
    put(0x7F61, None).unwrap();
    for (tag, content) in [
        (0x7E, &discovery[2..]),
        (0x5F_C109, &[]),
        (0x5F_C1FF, b"nowhere"),
    ] {
        let refused = put(tag, Some(content));
        assert!(
            matches!(refused, Err(TokenError::ValueInvalid { .. })),
            "{tag:X}"
        );
    }
    let objects = token.writable_data_objects();
    assert!(
        objects
            .iter()
            .any(|(tag, oid)| *tag == 0x5F_C109 && oid.len() == 10)
    );
}

#[test]
fn a_data_object_written_is_read_again() {
    let search = format!("[\n{}]\n", read("5FC106", "53 06 7369676E6564 9000"));
    let wanted = template(&[
        (CKA_CLASS, &CKO_DATA.to_ne_bytes()),
        (CKA_LABEL, b"Security Object"),
    ]);
    let session = [
        absent(&read("5FC106", "6A82")),
        task(&put("5C035FC106", b"signed", "9000")),
        search,
    ]
    .concat();
    let (mut card, mut token) = managed(&session);
    assert_eq!(token.find(&mut card, &wanted).unwrap().len(), 0);
    token
        .put_data(&mut card, 0x5F_C106, Some(b"signed"))
        .unwrap();
    assert_eq!(token.find(&mut card, &wanted).unwrap().len(), 1);
}

#[test]
fn certificate_too_large_for_the_card_is_compressed_if_that_suffices() {
    let der = P256.repeat(4);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&der).unwrap();
    let packed = encoder.finish().unwrap();
    let session = [
        task(
            &[
                put("5C035FC105", &content(&der, 0), "6A84"),
                put("5C035FC105", &content(&packed, 1), "9000"),
            ]
            .concat(),
        ),
        task(&put("5C035FC105", &content(P256, 0), "6A84")),
    ]
    .concat();
    let (mut card, mut token) = managed(&session);
    token.put_certificate(&mut card, 0x9A, Some(&der)).unwrap();
    let full = token.put_certificate(&mut card, 0x9A, Some(P256));
    assert!(matches!(full, Err(TokenError::NoSpace { .. })));
}

#[test]
fn piv_has_no_random_numbers_and_is_not_asked_for_any() {
    let (mut card, mut token) = managed("");
    assert!(!token.has_random());
    assert!(token.random(&mut card, 8).unwrap().is_none());
}
