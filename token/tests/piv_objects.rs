//! The commands that searches for keys and certificates send to a PIV card, and the objects found.

mod common;

use claviger_token::{PinPolicy, Value};
use common::piv::{
    DISCOVERED, NITROKEY, P256, RSA, YUBIKEY, certificate, discover, flag, labels, of_class, read,
    template,
};
use cryptoki_sys::{
    CK_OBJECT_CLASS, CKA_ALWAYS_AUTHENTICATE, CKA_DERIVE, CKA_ID, CKA_LABEL, CKA_LOCAL,
    CKA_PRIVATE, CKA_SIGN, CKA_SUBJECT, CKA_VALUE, CKA_VERIFY, CKO_CERTIFICATE, CKO_PRIVATE_KEY,
    CKO_PUBLIC_KEY,
};

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
fn card_without_chuid_is_a_token_with_serial_zero() {
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
        // Without a login only the key that needs no PIN is visible.
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
fn retired_keys_are_read_when_the_key_history_or_the_search_names_them() {
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
            + "> 00 CB 3F FF 03 5C 01 7E 00     # the probe confirms PIV, so the response is valid
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
    // 9A is the only private key that needs no PIN. It was generated on the card.
    let private = token.find(&mut card, &of_class(CKO_PRIVATE_KEY)).unwrap();
    assert_eq!(private.len(), 1);
    assert_eq!(private[0].private_key().unwrap().reference, 0x9A);
    assert_eq!(private[0].private_key().unwrap().pin, PinPolicy::Never);
    assert!(flag(&private[0], CKA_LOCAL));
    assert!(!flag(&private[0], CKA_ALWAYS_AUTHENTICATE));
}

#[test]
fn a_nitrokey_is_asked_no_metadata_and_takes_extended_length() {
    // The CHUID is read before the applet has reported extended length, the certificates are read after.
    let discovered = DISCOVERED
        .replace("3B 85 01 80 73 00 00 40 37", NITROKEY)
        .replace("00 00 05 5C 03 5F C1 02 00 00", "05 5C 03 5F C1 02 00");
    let script = format!("{discovered} [\n {} ]", four_certificates());
    let (mut card, mut token) = discover(&script);
    let keys = token.find(&mut card, &of_class(CKO_PUBLIC_KEY)).unwrap();
    assert_eq!(keys.len(), 4);
}

#[test]
fn certificate_decides_key_usage_unless_an_agency_issued_the_card() {
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
        assert_eq!(flag(&key, CKA_VERIFY), signs);
        assert_eq!(flag(&key, CKA_DERIVE), !signs);
    }
}
