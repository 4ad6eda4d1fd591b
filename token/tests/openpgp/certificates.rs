//! Reading of the three certificates, which share one tag.

use claviger_apdu::tlv;
use claviger_token::{Template, Value};
use cryptoki_sys::{CKA_MODULUS, CKA_SUBJECT, CKO_CERTIFICATE, CKO_PUBLIC_KEY};

use crate::session::{
    ATTRIBUTES_RSA, ED25519, P256, READ_FIRST, READ_NEXT, RSA, SELECT, Sheet, by, exchange, frames,
    names, open, read_keys, select_data,
};

#[test]
fn three_keys_and_certificates_cost_at_most_fourteen_commands_and_then_none() {
    let session = [
        Sheet::CURVES.discovery(),
        SELECT.to_owned(),
        read_keys(),
        exchange(READ_FIRST, P256),
        exchange(READ_NEXT, RSA),
        exchange(READ_NEXT, ED25519),
        select_data(0),
    ]
    .concat();
    assert!(frames(&session) <= 14, "{} commands", frames(&session));
    let (mut card, mut token) = open(&session);
    let expected = [
        (CKO_CERTIFICATE, "01 SIG certificate"),
        (CKO_PUBLIC_KEY, "01 Signature key"),
        (CKO_CERTIFICATE, "02 DEC certificate"),
        (CKO_PUBLIC_KEY, "02 Encryption key"),
        (CKO_CERTIFICATE, "03 AUT certificate"),
        (CKO_PUBLIC_KEY, "03 Authentication key"),
    ]
    .map(|(class, name)| format!("{class} {name}"));
    let found = token.find(&mut card, &Template::default()).unwrap();
    assert_eq!(names(&found), expected);
    let again = token.find(&mut card, &Template::default()).unwrap();
    assert_eq!(names(&again), expected);
    let value = |id: u8| {
        let found = token.find(&mut card, &by(CKO_CERTIFICATE, id)).unwrap();
        found[0].get(cryptoki_sys::CKA_VALUE).cloned()
    };
    assert_eq!(
        [1, 2, 3].map(value),
        [ED25519, RSA, P256].map(|der| Some(Value::from(der))),
        "occurrence 0 is of AUT, 1 of DEC, 2 of SIG"
    );
}

#[test]
fn a_card_before_version_3_has_one_certificate_and_is_asked_for_its_keys() {
    let sheet = Sheet {
        version: "0201",
        attributes: [ATTRIBUTES_RSA; 3],
        fingerprints: [0, 0, 0],
        status: None,
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
        "> 0047810002 B600 00 \n < 6A88 \n".to_owned(),
        "> 0047810002 B800 00 \n < 6A88 \n".to_owned(),
        exchange("0047810002 A400 00", &rsa),
        exchange(READ_FIRST, P256),
    ]
    .concat();
    let (mut card, mut token) = open(&session);
    let found = token.find(&mut card, &Template::default()).unwrap();
    assert_eq!(
        names(&found),
        [
            format!("{CKO_CERTIFICATE} 03 AUT certificate"),
            format!("{CKO_PUBLIC_KEY} 03 Authentication key"),
        ]
    );
    assert_eq!(
        found[1].get(CKA_MODULUS),
        Some(&Value::from(&[0xC1; 256][..]))
    );
    assert!(found[1].get(CKA_SUBJECT).is_some());
}

#[test]
fn certificate_of_another_key_is_selected_and_the_first_one_reselected() {
    let session = [
        Sheet::CURVES.discovery(),
        SELECT.to_owned(),
        select_data(2),
        exchange(READ_FIRST, ED25519),
        select_data(0),
        // Nothing was selected since, so another program may have moved the position.
        select_data(0),
        exchange(READ_FIRST, P256),
        // The certificate is absent: the response has no data.
        exchange(READ_NEXT, &[]),
        select_data(0),
    ]
    .concat();
    let (mut card, mut token) = open(&session);
    let mut count = |id| {
        token
            .find(&mut card, &by(CKO_CERTIFICATE, id))
            .unwrap()
            .len()
    };
    assert_eq!(count(1), 1);
    assert_eq!(count(0), 2);
    assert_eq!(count(0), 2);
}

#[test]
fn a_card_without_get_next_data_is_asked_by_select_data() {
    for refusal in ["< 6D00 \n", &exchange("", P256).replace('>', "")] {
        let session = [
            Sheet::CURVES.discovery(),
            SELECT.to_owned(),
            select_data(0),
            exchange(READ_FIRST, P256),
            format!("> {READ_NEXT} \n {refusal}"),
            select_data(1),
            exchange(READ_FIRST, RSA),
            format!("> {READ_NEXT} \n {}", "< 6985 \n"),
            select_data(2),
            "> 00CA7F2100 \n < 6A88 \n".to_owned(),
            select_data(0),
        ]
        .concat();
        let (mut card, mut token) = open(&session);
        let found = token.find(&mut card, &by(CKO_CERTIFICATE, 0)).unwrap();
        assert_eq!(found.len(), 2);
    }
}

#[test]
fn a_card_without_select_data_has_one_certificate() {
    let session = [
        &Sheet::CURVES.discovery(),
        SELECT,
        "> 00A5000406 60045C027F21 \n < 6D00 \n",
        &exchange(READ_FIRST, P256),
    ]
    .concat();
    let (mut card, mut token) = open(&session);
    for _ in 0..2 {
        let found = token.find(&mut card, &by(CKO_CERTIFICATE, 0)).unwrap();
        assert_eq!(
            names(&found),
            [format!("{CKO_CERTIFICATE} 03 AUT certificate")]
        );
    }
}

#[test]
fn old_yubikey_gets_the_length_of_select_data_twice() {
    let sheet = Sheet {
        manufacturer: "0006",
        ..Sheet::CURVES
    };
    let session = [
        &sheet.discovery(),
        SELECT,
        "> 00A5010406 60045C027F21 \n < 6A80 \n",
        "> 00A5010407 0660045C027F21 \n < 9000 \n",
        &exchange(READ_FIRST, RSA),
        "> 00A5000406 60045C027F21 \n < 6A80 \n",
        "> 00A5000407 0660045C027F21 \n < 9000 \n",
    ]
    .concat();
    let (mut card, mut token) = open(&session);
    assert_eq!(
        token
            .find(&mut card, &by(CKO_CERTIFICATE, 2))
            .unwrap()
            .len(),
        1
    );
    assert_eq!(token.info().manufacturer, "Yubico");
}

#[test]
fn unreadable_public_key_is_taken_from_its_certificate() {
    let session = [
        &Sheet::CURVES.discovery(),
        SELECT,
        "> 0047810002 A400 00 \n < 6581 \n",
        &exchange(READ_FIRST, P256),
    ]
    .concat();
    let (mut card, mut token) = open(&session);
    for _ in 0..2 {
        let found = token.find(&mut card, &by(CKO_PUBLIC_KEY, 3)).unwrap();
        assert_eq!(
            names(&found),
            [format!("{CKO_PUBLIC_KEY} 03 Authentication key")]
        );
    }
}
