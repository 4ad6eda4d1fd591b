//! Discovery of the application, and reading of its keys.

use claviger_apdu::tlv;
use claviger_token::{Card, PinPolicy, Token, Value};
use cryptoki_sys::{CKA_EC_POINT, CKA_LOCAL, CKO_PRIVATE_KEY, CKO_PUBLIC_KEY};

use crate::{
    common::Script,
    session::{
        ATTRIBUTES_RSA, NO_PIV, READ_FIRST, SELECT, Sheet, VERIFY_81, VERIFY_82, by, exchange,
        frames, names, open, pin, point, read_keys, read_point, select_data,
    },
};

/// Returns a point of a short curve as CKA_EC_POINT.
fn octet_string(point: &[u8]) -> Value {
    tlv::encode(0x04, point).into()
}

fn login(sheet: &Sheet) -> String {
    format!(
        "{}{VERIFY_82} < 9000 \n {VERIFY_81} < 9000 \n",
        sheet.probe()
    )
}

#[test]
fn opening_takes_select_and_one_get_data() {
    let session = Sheet::CURVES.discovery();
    assert_eq!(frames(&session), 3);
    let (_card, token) = open(&session);
    let info = token.info();
    assert_eq!(info.label, "OpenPGP 0ab00042");
    assert_eq!(info.serial, "fffe0ab00042");
    assert_eq!(info.manufacturer, "OpenPGP project");
    assert_eq!(info.model, "OpenPGP card");
    assert_eq!(info.version, (3, 4));
    assert_eq!((info.min_pin_len, info.max_pin_len), (6, 127));
    assert_eq!(info.pin_tries.left, Some(3));
}

#[test]
fn application_data_may_come_in_its_own_tag() {
    let tagged = tlv::encode(0x6E, &Sheet::CURVES.bytes());
    let session = format!("{SELECT}{}{NO_PIV}", exchange("00CA006E00", &tagged));
    let (_card, token) = open(&session);
    assert_eq!(token.info().serial, "fffe0ab00042");
}

#[test]
fn application_without_a_valid_identifier_is_left_out() {
    for response in [&b""[..], &[0x4F, 0x10, 0xD2], &[0x4F, 1, 0, 0xC4, 1, 0]] {
        let session = format!("{SELECT}{}{NO_PIV}", exchange("00CA006E00", response));
        let mut card = Card::new(Script::card(&session));
        assert!(Token::discover(&mut card).unwrap().is_empty());
    }
}

#[test]
fn card_mechanisms_are_those_of_keys_it_has_or_can_generate() {
    let (_card, token) = open(&Sheet::CURVES.discovery());
    let sizes: Vec<_> = token
        .mechanisms()
        .iter()
        .filter(|info| info.flags & cryptoki_sys::CKF_HW != 0)
        .map(|info| (info.kind, info.min_key_size, info.max_key_size))
        .collect();
    assert!(sizes.contains(&(cryptoki_sys::CKM_EDDSA, 255, 255)));
    assert!(sizes.contains(&(cryptoki_sys::CKM_ECDSA_SHA256, 256, 256)));
    assert!(sizes.contains(&(cryptoki_sys::CKM_RSA_PKCS, 2048, 2048)));
    for padded_by_host in [cryptoki_sys::CKM_RSA_PKCS_PSS, cryptoki_sys::CKM_RSA_X_509] {
        assert!(!sizes.iter().any(|(kind, ..)| *kind == padded_by_host));
    }
}

#[test]
fn a_search_for_one_private_key_reads_one_public_key() {
    let sheet = Sheet::CURVES;
    let session = [
        sheet.discovery(),
        SELECT.to_owned(),
        VERIFY_82.to_owned() + "< 9000 \n" + VERIFY_81 + "< 9000 \n",
        read_point("B600", &[0xE1; 32]),
    ]
    .concat();
    let (mut card, mut token) = open(&session);
    let wanted = by(CKO_PRIVATE_KEY, 1);
    assert!(
        token.find(&mut card, &wanted).unwrap().is_empty(),
        "not before the login"
    );
    token.login(&mut card, &pin()).unwrap();
    for _ in 0..2 {
        let found = token.find(&mut card, &wanted).unwrap();
        assert_eq!(
            names(&found),
            [format!("{CKO_PRIVATE_KEY} 01 Signature key")]
        );
        assert_eq!(found[0].get(CKA_LOCAL), Some(&Value::Bool(true)));
        assert_eq!(found[0].private_key().unwrap().pin, PinPolicy::Once);
    }
    assert!(
        token
            .find(&mut card, &by(CKO_PRIVATE_KEY, 9))
            .unwrap()
            .is_empty()
    );
}

#[test]
fn an_imported_key_is_not_local_and_x25519_only_derives() {
    let session = [
        Sheet::CURVES.discovery(),
        SELECT.to_owned(),
        VERIFY_82.to_owned() + "< 9000 \n" + VERIFY_81 + "< 9000 \n",
        read_point("B800", &[&[0x40][..], &[0xE2; 32]].concat()),
    ]
    .concat();
    let (mut card, mut token) = open(&session);
    token.login(&mut card, &pin()).unwrap();
    let found = token.find(&mut card, &by(CKO_PRIVATE_KEY, 2)).unwrap();
    assert_eq!(found[0].get(CKA_LOCAL), Some(&Value::Bool(false)));
    let usage = found[0].private_key().unwrap().usage;
    assert!(usage.derive && !usage.sign && !usage.decrypt);
    assert_eq!(
        found[0].get(CKA_EC_POINT),
        Some(&octet_string(&[0xE2; 32])),
        "the prefix 40 is not part of the point"
    );
}

#[test]
fn key_reference_without_a_key_is_not_read() {
    let sheet = Sheet {
        fingerprints: [0, 0, 0x33],
        status: Some([0, 0, 0]),
        ..Sheet::CURVES
    };
    // Only the fingerprint suggests that the last key exists. The card then has no such key.
    let session = format!(
        "{}{SELECT}> 0047810002 A400 00 \n < 6A88 \n",
        sheet.discovery()
    );
    let (mut card, mut token) = open(&session);
    for _ in 0..2 {
        assert!(
            token
                .find(&mut card, &by(CKO_PUBLIC_KEY, 0))
                .unwrap()
                .is_empty()
        );
    }
}

#[test]
fn long_responses_are_read_in_one_frame_by_a_card_with_extended_length() {
    let sheet = Sheet {
        capabilities: "73 C001C0",
        attributes: [ATTRIBUTES_RSA; 3],
        ..Sheet::CURVES
    };
    let rsa = tlv::encode(
        0x7F49,
        &[
            tlv::encode(0x81, &[0xC1; 256]),
            tlv::encode(0x82, &[1, 0, 1]),
        ]
        .concat(),
    );
    let session = [
        sheet.discovery(),
        SELECT.to_owned(),
        exchange("00478100 000002 B600 0000", &rsa),
    ]
    .concat();
    let (mut card, mut token) = open(&session);
    assert_eq!(
        token.find(&mut card, &by(CKO_PUBLIC_KEY, 1)).unwrap().len(),
        1
    );
}

#[test]
fn an_unreadable_key_hides_no_other() {
    let session = [
        Sheet::CURVES.discovery(),
        SELECT.to_owned(),
        exchange("0047810002 B600 00", &[0x7F, 0x49, 0x81]),
        read_point("B800", &[0xE2; 32]),
        // A point of another curve than the attributes announce.
        read_point("A400", &point(0xE3, 48)),
        // The certificates may have the keys, so they are read.
        exchange(READ_FIRST, b"no certificate"),
        select_data(2),
        exchange(READ_FIRST, &[]),
        select_data(0),
    ]
    .concat();
    let (mut card, mut token) = open(&session);
    for _ in 0..2 {
        let found = token.find(&mut card, &by(CKO_PUBLIC_KEY, 0)).unwrap();
        assert_eq!(
            names(&found),
            [format!("{CKO_PUBLIC_KEY} 02 Encryption key")]
        );
    }
}

#[test]
fn search_after_forget_objects_sees_the_cards_current_keys() {
    let empty = Sheet {
        fingerprints: [0; 3],
        status: Some([0; 3]),
        ..Sheet::CURVES
    };
    let session = [
        empty.discovery(),
        SELECT.to_owned(),
        Sheet::CURVES.probe(),
        read_keys(),
        empty.probe(),
    ]
    .concat();
    let (mut card, mut token) = open(&session);
    let wanted = by(CKO_PUBLIC_KEY, 0);
    assert!(token.find(&mut card, &wanted).unwrap().is_empty());
    token.forget_objects();
    assert!(
        token
            .find(&mut card, &by(CKO_PUBLIC_KEY, 7))
            .unwrap()
            .is_empty()
    );
    assert_eq!(token.find(&mut card, &wanted).unwrap().len(), 3);
    token.forget_objects();
    assert!(token.find(&mut card, &wanted).unwrap().is_empty());
}

#[test]
fn empty_application_data_response_keeps_the_last_known_keys() {
    let session = [
        Sheet::CURVES.discovery(),
        SELECT.to_owned(),
        read_point("B600", &[0xE1; 32]),
        exchange("00CA006E00", &[]),
        SELECT.to_owned(),
        exchange("00CA006E00", &[]),
        read_point("B600", &[0xE1; 32]),
    ]
    .concat();
    let (mut card, mut token) = open(&session);
    let wanted = by(CKO_PUBLIC_KEY, 1);
    assert_eq!(token.find(&mut card, &wanted).unwrap().len(), 1);
    token.forget_objects();
    for _ in 0..2 {
        assert_eq!(token.find(&mut card, &wanted).unwrap().len(), 1);
    }
}

#[test]
fn key_whose_fingerprint_has_changed_is_read_again() {
    let before = Sheet::CURVES;
    let after = Sheet {
        fingerprints: [0x44, 0x22, 0x33],
        ..Sheet::CURVES
    };
    let session = [
        before.discovery(),
        SELECT.to_owned(),
        read_point("B600", &[0xE1; 32]),
        login(&after),
        read_point("B600", &[0xE9; 32]),
    ]
    .concat();
    let (mut card, mut token) = open(&session);
    token.find(&mut card, &by(CKO_PUBLIC_KEY, 1)).unwrap();
    token.login(&mut card, &pin()).unwrap();
    let found = token.find(&mut card, &by(CKO_PUBLIC_KEY, 1)).unwrap();
    assert_eq!(found[0].get(CKA_EC_POINT), Some(&octet_string(&[0xE9; 32])));
}

#[test]
fn read_after_another_programs_applet_switch_reselects_the_applet() {
    let session = [
        &Sheet::CURVES.discovery(),
        SELECT,
        &read_point("B600", &[0xE1; 32]),
        // PIV responds.
        "> 0047810002 A400 00 \n < 6A86 \n",
        "> 00CA006E00 \n < 6D00 \n",
        SELECT,
        &read_point("A400", &point(0xE3, 32)),
    ]
    .concat();
    let (mut card, mut token) = open(&session);
    assert_eq!(
        token.find(&mut card, &by(CKO_PUBLIC_KEY, 1)).unwrap().len(),
        1
    );
    assert_eq!(
        token.find(&mut card, &by(CKO_PUBLIC_KEY, 3)).unwrap().len(),
        1
    );
}
