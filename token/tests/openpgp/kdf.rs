//! PINs with a key derivation function: the data sent to the card, and the cases in which no PIN is sent.

use claviger_apdu::{Secret, tlv};
use claviger_token::TokenError;
use sha2::{Digest, Sha256, Sha512};

use crate::{
    common::text,
    session::{SELECT, Sheet, VERIFY_81, VERIFY_82, exchange, open, pin},
};

const READ: &str = "00CA00F900";
const CARD: Sheet = Sheet {
    features: 0x3F,
    ..Sheet::CURVES
};

/// Returns a key derivation object. PW1 has another salt than the resetting code and PW3.
fn object(hash: u8, count: u32) -> Vec<u8> {
    [
        tlv::encode(0x81, &[3]),
        tlv::encode(0x82, &[hash]),
        tlv::encode(0x83, &count.to_be_bytes()),
        tlv::encode(0x84, b"salt-PW1"),
        tlv::encode(0x85, b"salt--RC"),
        tlv::encode(0x86, b"salt-PW3"),
    ]
    .concat()
}

/// Returns 100 octets of salt and PIN, repeated.
fn octets(pin: &str) -> Vec<u8> {
    format!("salt-PW1{pin}")
        .into_bytes()
        .into_iter()
        .cycle()
        .take(100)
        .collect()
}

fn verify(reference: u8, derived: &[u8]) -> String {
    format!(
        "> 002000{reference:02X} {:02X} {}\n",
        derived.len(),
        text(derived)
    )
}

#[test]
fn derived_pin_uses_the_salt_of_pw1() {
    let derivations = [
        (8, Sha256::digest(octets("123456")).to_vec()),
        (10, Sha512::digest(octets("123456")).to_vec()),
    ];
    for (hash, derived) in derivations {
        for response in [object(hash, 100), tlv::encode(0xF9, &object(hash, 100))] {
            let session = [
                CARD.discovery(),
                SELECT.to_owned(),
                exchange(READ, &response),
                verify(0x82, &derived) + "< 9000 \n",
                verify(0x81, &derived) + "< 9000 \n",
            ]
            .concat();
            let (mut card, mut token) = open(&session);
            token.login(&mut card, &pin()).unwrap();
        }
    }
}

#[test]
fn admin_pin_has_its_own_salt_and_a_change_derives_both_pins() {
    let of = |salt: &str, pin: &str| {
        let octets: Vec<u8> = format!("{salt}{pin}").into_bytes();
        Sha256::digest(octets.into_iter().cycle().take(100).collect::<Vec<u8>>())
    };
    let admin = of("salt-PW3", "12345678");
    let new = of("salt-PW3", "87654321");
    let user = of("salt-PW1", "654321");
    let session = [
        CARD.discovery(),
        SELECT.to_owned(),
        exchange(READ, &object(8, 100)),
        verify(0x83, &admin) + "< 9000 \n> 00CA00FA00 \n < 6A88 \n",
        CARD.probe(),
        "> 00200083 \n < 9000 \n".to_owned(),
        format!("> 002C0281 20 {} \n < 9000 \n", text(&user)),
        CARD.probe(),
        verify(0x83, &admin) + "< 9000 \n",
        format!("> 00240083 40 {} {} \n < 9000 \n", text(&admin), text(&new)),
    ]
    .concat();
    let (mut card, mut token) = open(&session);
    let [old, new] = ["12345678", "87654321"].map(|pin| Secret::copy_from(pin.as_bytes()));
    token.so_login(&mut card, &old).unwrap();
    token
        .init_pin(&mut card, &Secret::copy_from(b"654321"))
        .unwrap();
    token.set_pin(&mut card, &old, &new).unwrap();
}

#[test]
fn kdf_object_is_read_once_and_again_after_a_refused_pin() {
    let plain = [VERIFY_82, "< 9000 \n", VERIFY_81, "< 9000 \n"].concat();
    let derived = Sha256::digest(octets("123456"));
    let session = [
        CARD.discovery(),
        SELECT.to_owned(),
        exchange(READ, &[]),
        plain,
        CARD.probe(),
        VERIFY_82.to_owned() + "< 63C2 \n",
        // Another program has written the object meanwhile.
        CARD.probe(),
        exchange(READ, &object(8, 100)),
        verify(0x82, &derived) + "< 9000 \n",
        verify(0x81, &derived) + "< 9000 \n",
        CARD.probe(),
        verify(0x82, &derived) + "< 9000 \n",
        verify(0x81, &derived) + "< 9000 \n",
    ]
    .concat();
    let (mut card, mut token) = open(&session);
    token.login(&mut card, &pin()).unwrap();
    assert!(token.login(&mut card, &pin()).is_err());
    token.login(&mut card, &pin()).unwrap();
    token.login(&mut card, &pin()).unwrap();
}

#[test]
fn pin_is_sent_unhashed_without_a_kdf_object() {
    for response in ["< 6A88", "< 9000", "< 810100 9000"] {
        let session = format!(
            "{}{SELECT}> {READ}\n {response}\n {VERIFY_82} < 9000 \n {VERIFY_81} < 9000",
            CARD.discovery()
        );
        let (mut card, mut token) = open(&session);
        token.login(&mut card, &pin()).unwrap();
    }
}

#[test]
fn unknown_kdf_keeps_the_pin_from_the_card() {
    let unknown_hash = exchange(READ, &object(9, 100));
    let endless = exchange(READ, &object(8, u32::MAX));
    let unknown = exchange(READ, &[0x81, 1, 7]);
    let refused = format!("> {READ}\n < 6982");
    for read in [unknown_hash, endless, unknown, refused] {
        let session = format!("{}{SELECT}{read}", CARD.discovery());
        let (mut card, mut token) = open(&session);
        let outcome = token.login(&mut card, &pin());
        assert!(matches!(
            outcome,
            Err(TokenError::Malformed { .. } | TokenError::Refused { .. })
        ));
        assert_eq!(token.info().pin_tries.left, Some(3));
    }
}

#[test]
fn pin_length_limit_applies_to_the_pin_the_user_types() {
    let sheet = Sheet {
        password_status: [0, 16, 16, 16, 3, 0, 3],
        ..CARD
    };
    let long = "a passphrase of 33 bytes in words";
    let derived = Sha256::digest(octets(long));
    let with = [
        sheet.discovery(),
        SELECT.to_owned(),
        exchange(READ, &object(8, 100)),
        verify(0x82, &derived) + "< 9000 \n",
    ]
    .concat();
    let (mut card, mut token) = open(&with);
    token
        .login(&mut card, &Secret::copy_from(long.as_bytes()))
        .unwrap();
    assert_eq!(token.info().max_pin_len, 127);

    let without = format!("{}{SELECT}> {READ}\n < 6A88", sheet.discovery());
    let (mut card, mut token) = open(&without);
    let outcome = token.login(&mut card, &Secret::copy_from(long.as_bytes()));
    assert!(matches!(
        outcome,
        Err(TokenError::PinLength { max: 16, .. })
    ));
}
