//! What a PIV card is asked when its objects are searched, and what they are.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail a test by panicking"
)]

mod common;

use std::{io::Write, sync::Arc};

use claviger_apdu::{TransportErrorKind, tlv};
use claviger_token::{AppletKind, Card, Object, PinRule, Template, Token, TokenError, Value};
use common::{Script, hex, text};
use cryptoki_sys::{
    CK_ATTRIBUTE_TYPE, CK_OBJECT_CLASS, CKA_ALWAYS_AUTHENTICATE, CKA_CLASS, CKA_DERIVE, CKA_ID,
    CKA_LABEL, CKA_LOCAL, CKA_OBJECT_ID, CKA_PRIVATE, CKA_SIGN, CKA_SUBJECT, CKA_VALUE,
    CKO_CERTIFICATE, CKO_DATA, CKO_PRIVATE_KEY, CKO_PUBLIC_KEY,
};

// Certificates of throw-away keys, issued with openssl.
const P256: &[u8] = include_bytes!("data/p256.der");
const RSA: &[u8] = include_bytes!("data/rsa2048.der");

/// A card that announces extended length in its answer to reset, and finding it: SELECT OpenPGP, SELECT PIV
/// and the CHUID with FASC-N of agency 9999 and a GUID.
const DISCOVERED: &str = "
    @ 3B 85 01 80 73 00 00 40 37
    [
    > 00 A4 04 00 06 D2 76 00 01 24 01 00
    < 6A82
    > 00 A4 04 00 09 A0 00 00 03 08 00 00 10 00 00
    < 61 11 4F 06 00 00 10 00 01 00 79 07 4F 05 A0 00 00 03 08 9000
    > 00 CB 3F FF 00 00 05 5C 03 5F C1 02 00 00
    < 53 2D 30 19 D4E739DA739CED39CE739D836858210842108421C84210C3EB
      34 10 00112233445566778899AABBCCDDEEFF 9000
    ]
";
/// The same on a YubiKey 5.
const YUBIKEY: &str = "3BFD1300008131FE158073C021C057597562694B657940";
/// The same on a Nitrokey 3, which takes extended length and does not say so.
const NITROKEY: &str = "3B8F01805D4E6974726F6B657900000000006A";

fn discover(script: &str) -> (Card, Token) {
    let mut card = Card::new(Script::card(script));
    let mut tokens = Token::discover(&mut card).unwrap();
    assert_eq!(tokens.len(), 1);
    let token = tokens.remove(0);
    assert_eq!(token.kind(), AppletKind::Piv);
    (card, token)
}

/// The answer with a plain certificate, status word included.
fn certificate(der: &[u8]) -> String {
    certificate_object(der, 0)
}

fn certificate_object(bytes: &[u8], info: u8) -> String {
    let content = [
        tlv::encode(0x70, bytes),
        tlv::encode(0x71, &[info]),
        tlv::encode(0xFE, &[]),
    ]
    .concat();
    format!("{} 9000", text(&tlv::encode(0x53, &content)))
}

fn template(attributes: &[(CK_ATTRIBUTE_TYPE, &[u8])]) -> Template {
    Template(
        attributes
            .iter()
            .map(|(kind, value)| (*kind, value.to_vec()))
            .collect(),
    )
}

fn of_class(class: CK_OBJECT_CLASS) -> Template {
    template(&[(CKA_CLASS, &class.to_ne_bytes())])
}

/// Class and label of each object.
fn labels(objects: &[Arc<Object>]) -> Vec<(CK_OBJECT_CLASS, String)> {
    let label = |object: &Object| match object.get(CKA_LABEL) {
        Some(Value::Bytes(label)) => String::from_utf8(label.clone()).unwrap(),
        other => panic!("label {other:?}"),
    };
    objects
        .iter()
        .map(|object| (object.id.class, label(object)))
        .collect()
}

fn flag(object: &Object, attribute: CK_ATTRIBUTE_TYPE) -> bool {
    match object.get(attribute) {
        Some(Value::Bool(flag)) => *flag,
        other => panic!("flag {other:?}"),
    }
}

/// One GET DATA of the object with `tag` and the card's answer.
fn read(tag: &str, answer: &str) -> String {
    let len = tag.len() / 2;
    format!(
        "> 00 CB 3F FF 00 00 {:02X} 5C {len:02X} {tag} 00 00\n< {answer}\n",
        len + 2
    )
}

/// Certificates of 9A, 9C, 9D, 9E, and no key history.
fn four_certificates() -> String {
    [
        read("5FC105", &certificate(P256)),
        read("5FC10A", &certificate(RSA)),
        read("5FC10B", &certificate(RSA)),
        read("5FC101", &certificate(P256)),
        read("5FC10C", "6A82"),
    ]
    .concat()
}

#[test]
fn discovery_costs_two_selects_and_the_chuid() {
    let (_card, token) = discover(DISCOVERED);
    let info = token.info();
    assert_eq!(info.serial, "8899aabbccddeeff");
    assert_eq!(info.label, "PIV ccddeeff");
    assert_eq!((info.min_pin_len, info.max_pin_len), (6, 8));
}

#[test]
fn a_card_without_chuid_is_a_token_all_the_same() {
    let (_card, token) = discover(
        "
        > 00 A4 04 00 06 D2 76 00 01 24 01 00
        < 6A82
        > 00 A4 04 00 09 A0 00 00 03 08 00 00 10 00 00
        < 9000
        > 00 CB 3F FF 05 5C 03 5F C1 02 00
        < 6A82
        ",
    );
    assert_eq!(token.info().serial, "00000000");
}

#[test]
fn listing_four_keys_costs_seven_commands_and_a_second_time_none() {
    let script = format!(
        "{DISCOVERED}
        [
        {}
        ]
        [
        > 00 F7 00 9A 00 00 00      # metadata: is it the card that has none, or another applet?
        < 6D00
        > 00 CB 3F FF 03 5C 01 7E 00
        < 7E 12 4F 0B A000000308000010000100 5F2F 02 4010 9000
        ]                           # it is the card, and it is not asked again
        ",
        four_certificates()
    );
    let (mut card, mut token) = discover(&script);
    for _ in 0..2 {
        let certificates = token.find(&mut card, &of_class(CKO_CERTIFICATE)).unwrap();
        let expected = [
            "Certificate for PIV Authentication",
            "Certificate for Digital Signature",
            "Certificate for Key Management",
            "Certificate for Card Authentication",
        ];
        assert_eq!(
            labels(&certificates),
            expected.map(|label| (CKO_CERTIFICATE, label.to_owned()))
        );
        assert_eq!(
            certificates[0].get(CKA_VALUE),
            Some(&Value::Bytes(P256.to_vec()))
        );
        let keys = token.find(&mut card, &of_class(CKO_PUBLIC_KEY)).unwrap();
        let expected = [
            "PIV AUTH pubkey",
            "SIGN pubkey",
            "KEY MAN pubkey",
            "CARD AUTH pubkey",
        ];
        assert_eq!(
            labels(&keys),
            expected.map(|label| (CKO_PUBLIC_KEY, label.to_owned()))
        );
        // Without a login only the key that never wants a PIN is seen.
        let keys = token.find(&mut card, &of_class(CKO_PRIVATE_KEY)).unwrap();
        assert_eq!(
            labels(&keys),
            [(CKO_PRIVATE_KEY, "CARD AUTH key".to_owned())]
        );
        assert!(flag(&keys[0], CKA_SIGN));
        assert!(!flag(&keys[0], CKA_PRIVATE));
    }
}

#[test]
fn forgotten_objects_are_read_again() {
    let certificates = four_certificates();
    let script = format!("{DISCOVERED} \n[\n{certificates}]\n[\n{certificates}]");
    let (mut card, mut token) = discover(&script);
    let before = token.find(&mut card, &of_class(CKO_CERTIFICATE)).unwrap();
    token.forget_objects();
    let after = token.find(&mut card, &of_class(CKO_CERTIFICATE)).unwrap();
    assert_eq!(before, after);
}

#[test]
fn a_search_by_id_or_label_reads_that_key_only() {
    let script = format!(
        "{DISCOVERED}
        [
        {}
        > 00 F7 00 9D 00 00 00
        < 6D00
        ]
        [
        {}
        ]",
        read("5FC10B", &certificate(RSA)),
        read("5FC101", &certificate(P256)),
    );
    let (mut card, mut token) = discover(&script);
    let found = token.find(&mut card, &template(&[(CKA_ID, &[3])])).unwrap();
    assert_eq!(
        labels(&found),
        [
            (CKO_CERTIFICATE, "Certificate for Key Management".to_owned()),
            (CKO_PUBLIC_KEY, "KEY MAN pubkey".to_owned()),
        ]
    );
    let by_label = template(&[(CKA_LABEL, b"CARD AUTH key")]);
    assert_eq!(token.find(&mut card, &by_label).unwrap().len(), 1);
    for nothing in [
        template(&[(CKA_ID, &[0x99])]),
        template(&[(CKA_LABEL, b"no such label")]),
        of_class(CK_OBJECT_CLASS::MAX),
    ] {
        assert_eq!(token.find(&mut card, &nothing).unwrap(), []);
    }
}

#[test]
fn retired_keys_are_looked_for_when_the_history_counts_them_or_the_search_names_them() {
    let script = format!(
        "{DISCOVERED}
        [
        {}
        > 00 F7 00 87 00 00 00
        < 6D00
        ]
        [
        {}{}{}{}{}      # no certificate of a current key; the history counts one on the card, one elsewhere
        {}{}
        ]",
        read("5FC112", &certificate(RSA)),
        read("5FC105", "6A82")
            + "> 00 CB 3F FF 03 5C 01 7E 00     # is PIV selected still? it is, so the answer stands
               < 7E 12 4F 0B A000000308000010000100 5F2F 02 4010 9000\n",
        read("5FC10A", "6A82"),
        read("5FC10B", "6A82"),
        read("5FC101", "6A82"),
        read("5FC10C", "53 0B C1 01 01 C2 01 01 F3 01 78 FE 00 9000"),
        read("5FC10D", &certificate(RSA)),
        read("5FC10E", "6A82"),
    );
    let (mut card, mut token) = discover(&script);
    // Retired key 6: OpenSC reads the decimal 10 as hexadecimal.
    let sixth = token.find(&mut card, &template(&[(CKA_ID, &[0x10])]));
    assert_eq!(
        labels(&sixth.unwrap()),
        [
            (
                CKO_CERTIFICATE,
                "Retired Certificate for Key Management 6".to_owned()
            ),
            (CKO_PUBLIC_KEY, "Retired KEY MAN 6".to_owned()),
        ]
    );
    let all = token.find(&mut card, &of_class(CKO_CERTIFICATE)).unwrap();
    assert_eq!(
        labels(&all),
        [1, 6].map(|n| (
            CKO_CERTIFICATE,
            format!("Retired Certificate for Key Management {n}")
        ))
    );
}

#[test]
fn metadata_gives_keys_without_certificates_and_overrules_stale_ones() {
    let point = format!("04{}", "C5".repeat(64));
    let script = format!(
        "{}
        [
        {}
        > 00 F7 00 9A 00 00 00    # generated here since the certificate was written; PIN never
        < 01 01 11 02 02 01 01 03 01 01 04 43 86 41 {point} 9000
        {}
        > 00 F7 00 9C 00 00 00    # imported, no certificate; PIN once
        < 01 01 11 02 02 02 01 03 01 02 04 43 86 41 {point} 9000
        {}
        > 00 F7 00 9D 00 00 00    # no key
        < 6A88
        {}
        > 00 F7 00 9E 00 00 00    # PIN always
        < 01 01 11 02 02 03 01 9000
        {}
        ]",
        DISCOVERED.replace("3B 85 01 80 73 00 00 40 37", YUBIKEY),
        read("5FC105", &certificate(P256)),
        read("5FC10A", "6A82"),
        read("5FC10B", "53 00 9000"),
        read("5FC101", &certificate(P256)),
        read("5FC10C", "6A82"),
    );
    let (mut card, mut token) = discover(&script);
    let public = token.find(&mut card, &of_class(CKO_PUBLIC_KEY)).unwrap();
    assert_eq!(
        labels(&public)
            .into_iter()
            .map(|(_, label)| label)
            .collect::<Vec<_>>(),
        ["PIV AUTH pubkey", "SIGN pubkey", "CARD AUTH pubkey"]
    );
    let certificates = token.find(&mut card, &of_class(CKO_CERTIFICATE)).unwrap();
    assert_eq!(certificates.len(), 2, "a stale certificate stays visible");
    let subject = |index: usize| public[index].get(CKA_SUBJECT).cloned();
    assert_eq!(subject(0), Some(Value::Bytes(Vec::new())));
    assert_eq!(subject(2), certificates[1].get(CKA_SUBJECT).cloned());
    // 9A is the only private key that wants no PIN, and was made on the card.
    let private = token.find(&mut card, &of_class(CKO_PRIVATE_KEY)).unwrap();
    assert_eq!(private.len(), 1);
    assert_eq!(private[0].key.unwrap().reference, 0x9A);
    assert_eq!(private[0].key.unwrap().pin, PinRule::Never);
    assert!(flag(&private[0], CKA_LOCAL));
    assert!(!flag(&private[0], CKA_ALWAYS_AUTHENTICATE));
}

#[test]
fn a_nitrokey_is_asked_no_metadata_and_takes_extended_length() {
    // CHUID before the applet has said that it takes extended length, certificates after it.
    let discovered = DISCOVERED
        .replace("3B 85 01 80 73 00 00 40 37", NITROKEY)
        .replace("00 00 05 5C 03 5F C1 02 00 00", "05 5C 03 5F C1 02 00");
    let script = format!("{discovered} [\n {} ]", four_certificates());
    let (mut card, mut token) = discover(&script);
    let keys = token.find(&mut card, &of_class(CKO_PUBLIC_KEY)).unwrap();
    assert_eq!(keys.len(), 4);
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
fn an_object_of_garbage_hides_no_other() {
    let script = format!(
        "{DISCOVERED} [\n {}{}{}{}{} ]",
        read("5FC105", "53 82 FF FF 70 9000"), // cut short
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
fn the_certificate_says_what_its_key_is_for_unless_an_agency_issued_the_card() {
    // 9D holds P-256 with a certificate for signatures.
    let rest = format!(
        "[\n {} > 00 F7 00 9D 000000 \n < 6D00 \n ]",
        read("5FC10B", &certificate(P256))
    );
    let federal = DISCOVERED.replace("D4E739", "D04E10");
    for (discovered, signs) in [(DISCOVERED, true), (federal.as_str(), false)] {
        let (mut card, mut token) = discover(&format!("{discovered} {rest}"));
        let found = token.find(&mut card, &template(&[(CKA_LABEL, b"KEY MAN pubkey")]));
        let key = found.unwrap().remove(0);
        assert_eq!(flag(&key, cryptoki_sys::CKA_VERIFY), signs);
        assert_eq!(flag(&key, CKA_DERIVE), !signs);
    }
}

#[test]
fn data_objects_are_listed_when_they_exist_and_private_ones_after_login() {
    let public = [
        read("5FC107", "53 02 F0 00 9000"),
        // The CHUID was read already.
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
        > 00 CB 3F FF 03 5C 01 7E 00        # after 6A82, the first answer: is PIV selected still?
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
    // The same reading gave the certificate.
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
fn everything_on_a_full_yubikey_costs_no_more_than_26_commands() {
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
    assert_eq!(found.len(), 4, "{:?}", labels(&found));
    assert_eq!(token.find(&mut card, &Template::default()).unwrap(), found);
}

#[test]
fn a_card_pulled_in_the_middle_ends_the_search_and_keeps_what_was_read() {
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
