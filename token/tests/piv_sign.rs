//! Login and signatures with a PIV card, command by command.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail a test by panicking"
)]

mod common;

use std::sync::Arc;

use claviger_apdu::{Secret, Sent, TransportErrorKind, tlv};
use claviger_token::{Card, Object, Template, Token, TokenError};
use common::{
    Script, hex,
    signing::{begin, context_login},
    text,
};
use cryptoki_sys::{
    CK_MECHANISM_TYPE, CKA_CLASS, CKA_ID, CKM_ECDSA, CKM_SHA256_RSA_PKCS, CKO_PRIVATE_KEY,
};

const P256: &[u8] = include_bytes!("data/p256.der");
const RSA: &[u8] = include_bytes!("data/rsa2048-sign.der");

/// A card that announces extended length, and its discovery.
const DISCOVERED: &str = "
    @ 3B 85 01 80 73 00 00 40 37
    [
    > 00 A4 04 00 06 D2 76 00 01 24 01 00
    < 6A82
    > 00 A4 04 00 09 A0 00 00 03 08 00 00 10 00 00
    < 9000
    > 00 CB 3F FF 00 00 05 5C 03 5F C1 02 00 00
    < 53 12 34 10 00112233445566778899AABBCCDDEEFF 9000
    ]
";

/// Login with 123456: the Discovery Object confirms PIV and names the PIN. Then follows one try.
const LOGIN: &str = "
    [
    > 00 CB 3F FF 03 5C 01 7E 00
    < 7E 12 4F 0B A000000308000010000100 5F2F 02 4010 9000
    > 00 20 00 80 08 31 32 33 34 35 36 FF FF
    < 9000
    ]
";

/// A signature of 00 01 … 1F with the P-256 key 9A. s needs a sign byte, r is one byte short.
const SIGN: &str = "
    > 00 87 11 9A 26 7C 24 82 00 81 20 000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F 00
    < 7C 48 82 46 30 44
      02 1F 11111111111111111111111111111111111111111111111111111111111111
      02 21 00 FF222222222222222222222222222222222222222222222222222222222222FF 9000
";
/// The same signature in Cryptoki's form.
const SIGNATURE: &str = "
    0011111111111111111111111111111111111111111111111111111111111111
    FF222222222222222222222222222222222222222222222222222222222222FF
";

/// Scripts the reading of the key with this CKA_ID in its own transaction, on a card without metadata.
fn key(tag: &str, reference: &str, der: &[u8]) -> String {
    let content = tlv::encode(0x53, &tlv::encode(0x70, der));
    format!(
        "[
        > 00 CB 3F FF 00 00 05 5C 03 {tag} 00 00
        < {} 9000
        > 00 F7 00 {reference} 00 00 00
        < 6D00
        ]\n",
        text(&content)
    )
}

fn key_9a() -> String {
    key("5FC105", "9A", P256)
}

fn discover(script: &str) -> (Card, Token) {
    let mut card = Card::new(Script::card(script));
    let token = Token::discover(&mut card).unwrap().remove(0);
    (card, token)
}

fn private_key(card: &mut Card, token: &mut Token, id: u8) -> Arc<Object> {
    let template = Template(vec![
        (CKA_CLASS, CKO_PRIVATE_KEY.to_ne_bytes().to_vec()),
        (CKA_ID, vec![id]),
    ]);
    token.find(card, &template).unwrap().remove(0)
}

fn pin(digits: &str) -> Secret {
    Secret::copy_from(digits.as_bytes())
}

fn sign(
    card: &mut Card,
    token: &mut Token,
    key: &Object,
    kind: CK_MECHANISM_TYPE,
) -> Result<Vec<u8>, TokenError> {
    let mut operation = begin(kind, key)?;
    operation.update(&(0..32).collect::<Vec<u8>>())?;
    token
        .sign(card, &mut operation)
        .map(|signature| signature.expose().to_vec())
}

#[test]
fn a_warm_signature_is_one_command_outside_any_transaction() {
    let (mut card, mut token) =
        discover(&format!("{DISCOVERED} {LOGIN} {} {SIGN} {SIGN}", key_9a()));
    token.login(&mut card, &pin("123456")).unwrap();
    let key = private_key(&mut card, &mut token, 1);
    for _ in 0..2 {
        let signature = sign(&mut card, &mut token, &key, CKM_ECDSA).unwrap();
        assert_eq!(text(&signature), text(&hex(SIGNATURE)));
    }
}

#[test]
fn a_pin_of_impossible_length_never_reaches_the_card() {
    let (mut card, mut token) = discover(DISCOVERED);
    for digits in ["", "12345", "123456789"] {
        let error = token.login(&mut card, &pin(digits)).unwrap_err();
        assert!(
            matches!(error, TokenError::PinLength { min: 6, max: 8, .. }),
            "{error}"
        );
    }
    assert!(!token.is_logged_in());
}

#[test]
fn a_wrong_pin_costs_one_try_and_the_last_one_locks() {
    let attempt = |status: &str| LOGIN.replace("< 9000", &format!("< {status}"));
    let script = format!(
        "{DISCOVERED} {} {} {}",
        attempt("63C2"),
        attempt("63C0"),
        attempt("6983")
    );
    let (mut card, mut token) = discover(&script);
    let error = token.login(&mut card, &pin("123456")).unwrap_err();
    assert!(
        matches!(
            error,
            TokenError::WrongPin {
                tries_left: Some(2)
            }
        ),
        "{error}"
    );
    let tries = token.info().pin_tries;
    assert_eq!((tries.left, tries.most), (Some(2), Some(3)));
    for _ in 0..2 {
        let error = token.login(&mut card, &pin("123456")).unwrap_err();
        assert!(matches!(error, TokenError::PinLocked), "{error}");
    }
    assert!(!token.is_logged_in());
}

#[test]
fn old_status_form_gives_the_tries_and_a_format_error_is_a_wrong_pin() {
    let attempt = |status: &str| LOGIN.replace("< 9000", &format!("< {status}"));
    let script = format!("{DISCOVERED} {} {}", attempt("6302"), attempt("6A80"));
    let (mut card, mut token) = discover(&script);
    for expected in [Some(2), None] {
        match token.login(&mut card, &pin("123456")) {
            Err(TokenError::WrongPin { tries_left }) => assert_eq!(tries_left, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_global_pin_is_verified_where_the_card_prefers_it() {
    let login = LOGIN
        .replace("5F2F 02 4010", "5F2F 02 6020")
        .replace("00 20 00 80", "00 20 00 00");
    let (mut card, mut token) = discover(&format!("{DISCOVERED} {login}"));
    token.login(&mut card, &pin("123456")).unwrap();
}

#[test]
fn pin_reference_is_queried_before_a_try_when_select_did_not_give_it() {
    let script = format!(
        "{DISCOVERED}
        [
        > 00 CB 3F FF 03 5C 01 7E 00        # another program left OpenPGP selected
        < 6A88
        > 00 A4 04 00 09 A0 00 00 03 08 00 00 10 00 00
        < 9000
        > 00 CB 3F FF 03 5C 01 7E 00
        < 7E 12 4F 0B A000000308000010000100 5F2F 02 6020 9000
        > 00 20 00 00 08 31 32 33 34 35 36 FF FF
        < 9000
        ]"
    );
    let (mut card, mut token) = discover(&script);
    token.login(&mut card, &pin("123456")).unwrap();
}

/// The frames of a signature after another program has selected OpenPGP, up to the PIN's status.
const SWITCHED: &str = "
    > 00 87 11 9A 26 7C 24 82 00 81 20 000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F 00
    < 6D00
    [
    > 00 CB 3F FF 03 5C 01 7E 00
    < 6A88
    > 00 A4 04 00 09 A0 00 00 03 08 00 00 10 00 00
    < 9000
    > 00 20 00 80
";

#[test]
fn a_signature_after_an_applet_switch_selects_verifies_and_repeats_once() {
    let script = format!(
        "{DISCOVERED} {LOGIN} {} {SWITCHED}
        < 63C3
        > 00 20 00 80 08 31 32 33 34 35 36 FF FF
        < 9000
        {SIGN}
        ]
        {SIGN}",
        key_9a()
    );
    let (mut card, mut token) = discover(&script);
    token.login(&mut card, &pin("123456")).unwrap();
    let key = private_key(&mut card, &mut token, 1);
    for _ in 0..2 {
        assert!(sign(&mut card, &mut token, &key, CKM_ECDSA).is_ok());
    }
}

#[test]
fn pin_still_verified_after_an_applet_switch_is_not_sent_again() {
    let script = format!(
        "{DISCOVERED} {LOGIN} {} {SWITCHED} < 9000\n {SIGN} ]",
        key_9a()
    );
    let (mut card, mut token) = discover(&script);
    token.login(&mut card, &pin("123456")).unwrap();
    let key = private_key(&mut card, &mut token, 1);
    assert!(sign(&mut card, &mut token, &key, CKM_ECDSA).is_ok());
}

#[test]
fn cached_pin_is_not_sent_when_the_counter_has_fallen() {
    let wrong = LOGIN.replace("< 9000", "< 63C2");
    let script = format!(
        "{DISCOVERED} {wrong} {LOGIN} {} {SWITCHED} < 63C2\n ]",
        key_9a()
    );
    let (mut card, mut token) = discover(&script);
    assert!(token.login(&mut card, &pin("123456")).is_err());
    token.login(&mut card, &pin("123456")).unwrap();
    assert_eq!(token.info().pin_tries.left, Some(3));
    let key = private_key(&mut card, &mut token, 1);
    let error = sign(&mut card, &mut token, &key, CKM_ECDSA).unwrap_err();
    assert!(matches!(error, TokenError::NotLoggedIn { .. }), "{error}");
    assert!(!token.is_logged_in());
}

#[test]
fn a_reset_by_another_program_is_recovered_from() {
    let script = format!(
        "{DISCOVERED} {LOGIN} {}
        ! reset
        [
        > 00 A4 04 00 09 A0 00 00 03 08 00 00 10 00 00
        < 9000
        > 00 20 00 80
        < 63C3
        > 00 20 00 80 08 31 32 33 34 35 36 FF FF
        < 9000
        {SIGN}
        ]",
        key_9a()
    );
    let (mut card, mut token) = discover(&script);
    token.login(&mut card, &pin("123456")).unwrap();
    let key = private_key(&mut card, &mut token, 1);
    assert!(sign(&mut card, &mut token, &key, CKM_ECDSA).is_ok());
}

#[test]
fn card_pulled_during_a_signature_gives_card_removed_and_maybe_sent() {
    let script = format!("{DISCOVERED} {LOGIN} {} ! removed", key_9a());
    let (mut card, mut token) = discover(&script);
    token.login(&mut card, &pin("123456")).unwrap();
    let key = private_key(&mut card, &mut token, 1);
    match sign(&mut card, &mut token, &key, CKM_ECDSA) {
        Err(TokenError::Transport(error)) => {
            assert_eq!(error.kind, TransportErrorKind::CardRemoved);
            assert_eq!(error.sent, Sent::Maybe);
        }
        other => panic!("{other:?}"),
    }
}

/// GENERAL AUTHENTICATE with RSA-2048 on 9C, one extended frame, over DigestInfo of SHA-256 of 00 01 … 1F.
fn rsa_sign() -> String {
    let hash = "630DCD2966C4336691125448BBB25B4FF412A49C732DB2C8ABC1B8581BD710DD";
    format!(
        "> 00 87 07 9C 00 01 0A 7C 82 01 06 82 00 81 82 01 00
           00 01 {} 00 3031300D060960864801650304020105000420 {hash} 00 00
         < 7C 82 01 04 82 82 01 00 {} 9000\n",
        "FF".repeat(202),
        "5A".repeat(256)
    )
}

#[test]
fn the_signature_key_gets_its_pin_immediately_before_each_use() {
    let script = format!(
        "{DISCOVERED} {LOGIN} {} {LOGIN} {}",
        key("5FC10A", "9C", RSA),
        rsa_sign()
    );
    let (mut card, mut token) = discover(&script);
    token.login(&mut card, &pin("123456")).unwrap();
    let key = private_key(&mut card, &mut token, 2);
    // The login is not enough, and no command is sent.
    let error = sign(&mut card, &mut token, &key, CKM_SHA256_RSA_PKCS).unwrap_err();
    assert!(matches!(error, TokenError::NotLoggedIn { .. }), "{error}");
    let mut operation = begin(CKM_SHA256_RSA_PKCS, &key).unwrap();
    operation.update(&(0..32).collect::<Vec<u8>>()).unwrap();
    context_login(&mut token, &mut card, &mut operation, pin("123456")).unwrap();
    let signature = token.sign(&mut card, &mut operation).unwrap();
    assert_eq!(signature.expose(), [0x5A; 256]);
}

#[test]
fn verification_used_up_by_another_program_is_repeated_before_the_signature() {
    let refused = rsa_sign().replace(
        &format!("7C 82 01 04 82 82 01 00 {} 9000", "5A".repeat(256)),
        "6982",
    );
    let script = format!(
        "{DISCOVERED} {LOGIN} {} {LOGIN} {refused}
        [
        > 00 CB 3F FF 03 5C 01 7E 00
        < 7E 12 4F 0B A000000308000010000100 5F2F 02 4010 9000
        > 00 20 00 80 08 31 32 33 34 35 36 FF FF
        < 9000
        {}
        ]",
        key("5FC10A", "9C", RSA),
        rsa_sign()
    );
    let (mut card, mut token) = discover(&script);
    token.login(&mut card, &pin("123456")).unwrap();
    let key = private_key(&mut card, &mut token, 2);
    let mut operation = begin(CKM_SHA256_RSA_PKCS, &key).unwrap();
    operation.update(&(0..32).collect::<Vec<u8>>()).unwrap();
    context_login(&mut token, &mut card, &mut operation, pin("123456")).unwrap();
    assert!(token.sign(&mut card, &mut operation).is_ok());
}

#[test]
fn a_key_without_pin_signs_without_login() {
    let script = format!(
        "{DISCOVERED} {} {}",
        key("5FC101", "9E", P256),
        SIGN.replace("00 87 11 9A", "00 87 11 9E")
    );
    let (mut card, mut token) = discover(&script);
    let key = private_key(&mut card, &mut token, 4);
    assert!(sign(&mut card, &mut token, &key, CKM_ECDSA).is_ok());
}

#[test]
fn malformed_signature_response_is_an_error() {
    let garbage = SIGN.replace("7C 48 82 46 30 44", "7C 48 82 46 30 45");
    let script = format!("{DISCOVERED} {LOGIN} {} {garbage}", key_9a());
    let (mut card, mut token) = discover(&script);
    token.login(&mut card, &pin("123456")).unwrap();
    let key = private_key(&mut card, &mut token, 1);
    let error = sign(&mut card, &mut token, &key, CKM_ECDSA).unwrap_err();
    assert!(matches!(error, TokenError::Malformed { .. }), "{error}");
}

#[test]
fn missing_touch_is_distinguished_from_a_missing_login() {
    let refused = "
        > 00 87 11 9A 26 7C 24 82 00 81 20 000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F 00
        < 6982
        [
        > 00 CB 3F FF 03 5C 01 7E 00
        < 7E 12 4F 0B A000000308000010000100 5F2F 02 4010 9000
        > 00 20 00 80
        < 9000
        > 00 87 11 9A 26 7C 24 82 00 81 20 000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F 00
        < 6982
        ]";
    let script = format!("{DISCOVERED} {LOGIN} {} {refused}", key_9a());
    let (mut card, mut token) = discover(&script);
    token.login(&mut card, &pin("123456")).unwrap();
    let key = private_key(&mut card, &mut token, 1);
    let error = sign(&mut card, &mut token, &key, CKM_ECDSA).unwrap_err();
    assert!(matches!(error, TokenError::TouchMissing { .. }), "{error}");
    assert!(token.is_logged_in());
}

/// Logout, up to the response to VERIFY with P1 = FF.
const LOGOUT: &str = "
    [
    > 00 CB 3F FF 03 5C 01 7E 00
    < 7E 12 4F 0B A000000308000010000100 5F2F 02 4010 9000
    > 00 20 FF 80
";

#[test]
fn logout_makes_the_card_forget() {
    let script = format!("{DISCOVERED} {LOGIN} {LOGOUT} < 9000\n ]");
    let (mut card, mut token) = discover(&script);
    token.login(&mut card, &pin("123456")).unwrap();
    token.logout(&mut card).unwrap();
    assert!(!token.is_logged_in());
}

#[test]
fn logout_without_reset_command_selects_another_applet_and_checks_the_pin() {
    for (status, forgotten) in [("63C3", true), ("9000", false)] {
        let script = format!(
            "{DISCOVERED} {LOGIN} {LOGOUT}
            < 6A86
            > 00 A4 04 00 06 D2 76 00 01 24 01 00       # OpenPGP, which is not there
            < 6A82
            > 00 A4 04 00 08 A0 00 00 01 51 00 00 00 00 # the issuer security domain, which is
            < 9000
            > 00 A4 04 00 09 A0 00 00 03 08 00 00 10 00 00
            < 9000
            > 00 20 00 80
            < {status}
            ]"
        );
        let (mut card, mut token) = discover(&script);
        token.login(&mut card, &pin("123456")).unwrap();
        assert_eq!(token.logout(&mut card).is_ok(), forgotten);
        assert!(!token.is_logged_in());
    }
}
