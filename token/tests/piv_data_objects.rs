//! The data objects of a PIV card, the certificates in them, and the errors while they are read.

mod common;

use std::{io::Write, sync::Arc};

use claviger_apdu::TransportErrorKind;
use claviger_token::{Object, Template, TokenError, Value};
use common::{
    hex,
    piv::{
        DISCOVERED, P256, RSA, YUBIKEY, certificate, certificate_object, discover, flag, labels,
        of_class, read, template,
    },
};
use cryptoki_sys::{CKA_LABEL, CKA_OBJECT_ID, CKA_PRIVATE, CKA_VALUE, CKO_CERTIFICATE, CKO_DATA};

#[test]
fn data_objects_are_listed_when_they_exist_and_private_ones_after_login() {
    let public = [
        read("5FC107", "53 02 F0 00 9000"),
        // The CHUID was read before.
        read("5FC105", &certificate(P256)),
        read("5FC10A", "6A82"),
        read("5FC10B", "53 00 9000"),
        read("5FC101", "6A88"),
        read("5FC106", "6A82"),
        read("7E", "7E 12 4F 0B A000000308000010000100 5F2F 02 4010 9000"),
        read("5FC10C", "6A82"),
        read("7F61", "6A82"),
        read("5FC122", "6A82"),
    ];
    let private = [
        read("5FC103", "6A82"),
        read("5FC109", "53 06 01 04 4A6F686E 9000"),
        read("5FC108", "6982"),
        read("5FC121", "6A82"),
        read("5FC123", "6A82"),
    ];
    let script = format!(
        "{DISCOVERED}
        [
        {}
        ]
        [
        > 00 CB 3F FF 03 5C 01 7E 00
        < 7E 12 4F 0B A000000308000010000100 5F2F 02 4010 9000
        > 00 20 00 80 08 31 32 33 34 35 36 FF FF
        < 9000
        ]
        [
        {}
        > 00 CB 3F FF 03 5C 01 7E 00        # the first response is 6A82: probe for PIV
        < 7E 12 4F 0B A000000308000010000100 5F2F 02 4010 9000
        {}
        ]",
        public.concat(),
        private[0],
        private[1..].concat()
    );
    let (mut card, mut token) = discover(&script);
    let names = |objects: &[Arc<Object>]| -> Vec<String> {
        labels(objects)
            .into_iter()
            .map(|(_, label)| label)
            .collect()
    };
    let found = token.find(&mut card, &of_class(CKO_DATA)).unwrap();
    let mut expected = vec![
        "Discovery Object",
        "Card Holder Unique Identifier",
        "X.509 Certificate for PIV Authentication",
        "Card Capability Container",
    ];
    assert_eq!(names(&found), expected);
    assert_eq!(
        found[3].get(CKA_VALUE),
        Some(&Value::Bytes(vec![0xF0, 0x00]))
    );
    // 2.16.840.1.101.3.7.1.219.0
    assert_eq!(
        found[3].get(CKA_OBJECT_ID),
        Some(&Value::Bytes(hex("06 0B 60 86 48 01 65 03 07 01 81 5B 00")))
    );
    // The same read gave the certificate.
    let wanted = template(&[(CKA_LABEL, b"Certificate for PIV Authentication")]);
    assert_eq!(token.find(&mut card, &wanted).unwrap().len(), 1);
    token
        .login(&mut card, &claviger_apdu::Secret::copy_from(b"123456"))
        .unwrap();
    let found = token.find(&mut card, &of_class(CKO_DATA)).unwrap();
    expected.push("Printed Information");
    assert_eq!(names(&found), expected);
    assert!(flag(&found[4], CKA_PRIVATE));
}

#[test]
fn full_yubikey_listing_costs_at_most_26_commands() {
    let absent = |tags: &[&str]| -> String { tags.iter().map(|tag| read(tag, "6A82")).collect() };
    let no_key = |key: &str| format!("> 00 F7 00 {key} 000000\n< 6A88\n");
    let script = format!(
        "{} [\n {}{}{}{}{}{}{}{} {} ]",
        DISCOVERED.replace("3B 85 01 80 73 00 00 40 37", YUBIKEY),
        read("5FC105", &certificate(P256)),
        no_key("9A"),
        absent(&["5FC10A"]),
        no_key("9C"),
        absent(&["5FC10B"]),
        no_key("9D"),
        absent(&["5FC101"]),
        no_key("9E"),
        absent(&[
            "5FC10C", "5FC107", "5FC106", "7E", "7F61", "5FC122", "5FFF00", "5FFF01", "5FFF10",
            "5FFF11", "5FFF12", "5FFF13", "5FFF14", "5FFF15",
        ])
    );
    assert!(script.matches('>').count() <= 26);
    let (mut card, mut token) = discover(&script);
    let found = token.find(&mut card, &Template::default()).unwrap();
    let of_card = |object: &&Arc<Object>| object.id.class != cryptoki_sys::CKO_PROFILE;
    assert_eq!(
        found.iter().filter(of_card).count(),
        4,
        "{:?}",
        labels(&found)
    );
    assert_eq!(token.find(&mut card, &Template::default()).unwrap(), found);
}

#[test]
fn a_compressed_certificate_is_shown_as_it_was() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(RSA).unwrap();
    let packed = certificate_object(&encoder.finish().unwrap(), 1);
    let script = format!("{DISCOVERED} [\n {} ]", read("5FC10B", &packed));
    let (mut card, mut token) = discover(&script);
    let wanted = template(&[(CKA_LABEL, b"Certificate for Key Management")]);
    let found = token.find(&mut card, &wanted).unwrap();
    assert_eq!(found[0].get(CKA_VALUE), Some(&Value::Bytes(RSA.to_vec())));
}

#[test]
fn malformed_object_hides_no_other() {
    let script = format!(
        "{DISCOVERED} [\n {}{}{}{}{} ]",
        read("5FC105", "53 82 FF FF 70 9000"), // truncated
        read("5FC10A", "53 05 70 03 30 01 00 9000"), // no certificate
        read("5FC10B", "6F00"),
        read("5FC101", &certificate(P256)),
        read("5FC10C", "53 06 C1 01 FF C2 01 01 9000"), // 256 retired keys
    );
    let (mut card, mut token) = discover(&script);
    let found = token.find(&mut card, &of_class(CKO_CERTIFICATE)).unwrap();
    assert_eq!(
        labels(&found),
        [(
            CKO_CERTIFICATE,
            "Certificate for Card Authentication".to_owned()
        )]
    );
}

#[test]
fn card_pulled_during_a_search_ends_it_and_keeps_what_was_read() {
    let script = format!(
        "{DISCOVERED} [\n {} ! removed \n ]",
        read("5FC105", &certificate(P256))
    );
    let (mut card, mut token) = discover(&script);
    let error = token
        .find(&mut card, &of_class(CKO_CERTIFICATE))
        .unwrap_err();
    let TokenError::Transport(error) = error else {
        panic!("{error}");
    };
    assert_eq!(error.kind, TransportErrorKind::CardRemoved);
    let wanted = template(&[(CKA_LABEL, b"Certificate for PIV Authentication")]);
    assert_eq!(token.find(&mut card, &wanted).unwrap().len(), 1);
}

#[test]
fn a_search_after_another_program_switched_the_applet_selects_piv_again() {
    let script = format!(
        "{DISCOVERED}
        [
        > 00 CB 3F FF 00 00 05 5C 03 5F C1 05 00 00     # OpenPGP is selected, and knows no such object
        < 6A88
        > 00 CB 3F FF 03 5C 01 7E 00
        < 6A88
        > 00 A4 04 00 09 A0 00 00 03 08 00 00 10 00 00
        < 9000
        {}
        ]",
        read("5FC105", &certificate(P256)),
    );
    let (mut card, mut token) = discover(&script);
    let wanted = template(&[(CKA_LABEL, b"Certificate for PIV Authentication")]);
    assert_eq!(token.find(&mut card, &wanted).unwrap().len(), 1);
}
