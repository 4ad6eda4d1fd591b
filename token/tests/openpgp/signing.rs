//! Signatures: the one command of each, its input and output, and the recovery after the card's state was lost.

use claviger_apdu::tlv;
use claviger_token::TokenError;
use cryptoki_sys::{
    CKM_ECDSA, CKM_ECDSA_SHA1, CKM_ECDSA_SHA512, CKM_EDDSA, CKM_RSA_PKCS, CKM_SHA256_RSA_PKCS,
};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

use crate::{
    common::text,
    session::{
        ATTRIBUTES_P521, ATTRIBUTES_RSA, SELECT, Sheet, VERIFY_81, VERIFY_82, exchange, logged_in,
        point, read_point, sign,
    },
};

/// PSO: COMPUTE DIGITAL SIGNATURE.
const SIGN: &str = "002A9E9A";
/// INTERNAL AUTHENTICATE.
const AUTHENTICATE: &str = "00880000";

fn short(header: &str, data: &[u8]) -> String {
    format!("{header} {:02X} {} 00", data.len(), text(data))
}

#[test]
fn ed25519_signs_the_whole_message_in_one_command() {
    let rest = read_point("B600", &[0xE1; 32])
        + &exchange(short(SIGN, b"message"), &[0x55; 64])
        + &exchange(short(SIGN, b""), &[0x66; 64]).replace(" 00  00", " 00");
    let (mut card, mut token) = logged_in(&Sheet::CURVES, &rest);
    let signature = sign(&mut card, &mut token, 1, CKM_EDDSA, b"message", false);
    assert_eq!(signature.unwrap(), [0x55; 64]);
    let signature = sign(&mut card, &mut token, 1, CKM_EDDSA, b"", false);
    assert_eq!(signature.unwrap(), [0x66; 64]);
}

#[test]
fn message_over_the_cards_limit_is_refused_unsent() {
    let nitrokey = Sheet {
        manufacturer: "000F",
        ..Sheet::CURVES
    };
    let (mut card, mut token) = logged_in(&nitrokey, &read_point("B600", &[0xE1; 32]));
    let outcome = sign(&mut card, &mut token, 1, CKM_EDDSA, &[7; 1025], false);
    assert!(matches!(
        outcome,
        Err(TokenError::DataLength {
            len: 1025,
            max: 1024
        })
    ));
}

#[test]
fn ecdsa_signs_a_hash_as_long_as_the_field() {
    let message = b"message";
    let sha1 = [&[0; 12][..], &Sha1::digest(message)].concat();
    let sha512 = &Sha512::digest(message)[..32];
    let rest = read_point("A400", &point(0xE3, 32))
        + &exchange(short(AUTHENTICATE, sha512), &[0x77; 64])
        + &exchange(short(AUTHENTICATE, &sha1), &[0x78; 64]);
    let (mut card, mut token) = logged_in(&Sheet::CURVES, &rest);
    let signature = sign(&mut card, &mut token, 3, CKM_ECDSA_SHA512, message, false);
    assert_eq!(signature.unwrap(), [0x77; 64]);
    let signature = sign(&mut card, &mut token, 3, CKM_ECDSA_SHA1, message, false);
    assert_eq!(signature.unwrap(), [0x78; 64]);
}

#[test]
fn p521_hash_is_sent_unpadded_and_to_a_nitrokey_padded_to_64_bytes() {
    let hash = [0xAB; 48];
    let padded = [&[0; 16][..], &hash].concat();
    for (manufacturer, sent) in [("FFFE", &hash[..]), ("000F", &padded)] {
        let sheet = Sheet {
            manufacturer,
            attributes: [ATTRIBUTES_P521; 3],
            ..Sheet::CURVES
        };
        let rest =
            read_point("B600", &point(0xE1, 66)) + &exchange(short(SIGN, sent), &[0x79; 132]);
        let (mut card, mut token) = logged_in(&sheet, &rest);
        let signature = sign(&mut card, &mut token, 1, CKM_ECDSA, &hash, false);
        assert_eq!(signature.unwrap(), [0x79; 132]);
    }
}

#[test]
fn r_and_s_are_as_long_as_the_field_and_never_longer() {
    let hash = [0xAB; 32];
    let command = short(AUTHENTICATE, &hash);
    let rest = read_point("A400", &point(0xE3, 32))
        + &exchange(&command, &[0x7A; 62])
        + &exchange(&command, &[0x7A; 66])
        + &exchange(&command, &[0x7A; 63])
        + &exchange(&command, &[]);
    let (mut card, mut token) = logged_in(&Sheet::CURVES, &rest);
    let mut sign = || sign(&mut card, &mut token, 3, CKM_ECDSA, &hash, false);
    let half = [&[0][..], &[0x7A; 31]].concat();
    assert_eq!(sign().unwrap(), [&half[..], &half].concat());
    for _ in 0..3 {
        assert!(matches!(sign(), Err(TokenError::Malformed { .. })));
    }
}

#[test]
fn rsa_signs_a_digest_info_that_the_card_pads() {
    let sheet = Sheet {
        attributes: [ATTRIBUTES_RSA; 3],
        ..Sheet::CURVES
    };
    let key = [
        tlv::encode(0x81, &[0xC1; 256]),
        tlv::encode(0x82, &[1, 0, 1]),
    ]
    .concat();
    let info = [
        &[
            0x30, 0x31, 0x30, 0x0D, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02,
            0x01, 0x05, 0x00, 0x04, 0x20,
        ][..],
        &Sha256::digest(b"message"),
    ]
    .concat();
    let rest = exchange("0047810002 B600 00", &tlv::encode(0x7F49, &key))
        + &exchange(short(SIGN, &info), &[0x5A; 256])
        + &exchange(short(SIGN, &[7; 36]), &[0x5B; 255]);
    let (mut card, mut token) = logged_in(&sheet, &rest);
    let signature = sign(
        &mut card,
        &mut token,
        1,
        CKM_SHA256_RSA_PKCS,
        b"message",
        false,
    );
    assert_eq!(signature.unwrap(), [0x5A; 256]);
    let outcome = sign(&mut card, &mut token, 1, CKM_RSA_PKCS, &[7; 36], false);
    assert!(
        matches!(outcome, Err(TokenError::Malformed { .. })),
        "one byte short"
    );
    let outcome = sign(&mut card, &mut token, 1, CKM_RSA_PKCS, &[7; 246], false);
    assert!(matches!(
        outcome,
        Err(TokenError::DataLength { len: 246, max: 245 })
    ));
}

#[test]
fn one_signature_policy_verifies_the_pin_right_before_the_signature() {
    let sheet = Sheet {
        password_status: [0, 0x7F, 0x7F, 0x7F, 3, 0, 3],
        ..Sheet::CURVES
    };
    let rest = [
        read_point("B600", &[0xE1; 32]),
        sheet.probe(),
        format!("{VERIFY_81} < 9000 \n"),
        exchange(short(SIGN, b"one"), &[0x55; 64]),
    ]
    .concat();
    let (mut card, mut token) = logged_in(&sheet, &rest);
    let signature = sign(&mut card, &mut token, 1, CKM_EDDSA, b"one", true);
    assert_eq!(signature.unwrap(), [0x55; 64]);
    let outcome = sign(&mut card, &mut token, 1, CKM_EDDSA, b"two", false);
    assert!(matches!(outcome, Err(TokenError::NotLoggedIn { .. })));
}

/// Scripts the recovery after another application refused the command: probe, selection, and login.
fn restored(verify: &str) -> String {
    format!("> 00CA006E00 \n < 6D00 \n {SELECT} > 00200081 \n < 63C3 \n {verify}")
}

#[test]
fn signature_after_another_programs_applet_switch_is_repeated_once_with_login() {
    let sign_command = short(SIGN, b"message");
    let rest = [
        read_point("B600", &[0xE1; 32]),
        format!("> {sign_command}\n < 6D00 \n"),
        restored(&format!("{VERIFY_82} < 9000 \n {VERIFY_81} < 9000 \n")),
        exchange(&sign_command, &[0x55; 64]),
        format!("> {sign_command}\n < 6D00 \n"),
        restored(&format!("{VERIFY_82} < 9000 \n {VERIFY_81} < 9000 \n")),
        format!("> {sign_command}\n < 6A80 \n"),
    ]
    .concat();
    let (mut card, mut token) = logged_in(&Sheet::CURVES, &rest);
    let signature = sign(&mut card, &mut token, 1, CKM_EDDSA, b"message", false);
    assert_eq!(signature.unwrap(), [0x55; 64]);
    let outcome = sign(&mut card, &mut token, 1, CKM_EDDSA, b"message", false);
    assert!(matches!(outcome, Err(TokenError::Refused { .. })));
}

#[test]
fn a_login_is_not_restored_when_tries_have_gone_meanwhile() {
    let rest = [
        read_point("B600", &[0xE1; 32]),
        format!("> {}\n < 6D00 \n", short(SIGN, b"message")),
        restored("").replace("63C3", "63C2"),
    ]
    .concat();
    let (mut card, mut token) = logged_in(&Sheet::CURVES, &rest);
    let outcome = sign(&mut card, &mut token, 1, CKM_EDDSA, b"message", false);
    assert!(matches!(outcome, Err(TokenError::NotLoggedIn { .. })));
    assert!(!token.is_logged_in());
}

#[test]
fn refusal_with_a_verified_pin_is_a_missing_touch() {
    let rest = [
        read_point("B600", &[0xE1; 32]),
        format!("> {}\n < 6982 \n", short(SIGN, b"message")),
        Sheet::CURVES.probe(),
        "> 00200081 \n < 9000 \n".to_owned(),
        format!("> {}\n < 6982 \n", short(SIGN, b"message")),
    ]
    .concat();
    let (mut card, mut token) = logged_in(&Sheet::CURVES, &rest);
    let outcome = sign(&mut card, &mut token, 1, CKM_EDDSA, b"message", false);
    assert!(matches!(outcome, Err(TokenError::TouchMissing { .. })));
    assert!(token.is_logged_in());
}

#[test]
fn pin_is_verified_again_when_the_card_cannot_report_its_state() {
    let old = Sheet {
        version: "0201",
        ..Sheet::CURVES
    };
    let counter = exchange("00CA00C400", &[1, 0x7F, 0x7F, 0x7F, 3, 0, 3]);
    let sign_command = short(SIGN, b"message");
    let rest = [
        read_point("B600", &[0xE1; 32]),
        format!("> {sign_command}\n < 6982 \n"),
        old.probe(),
        counter,
        format!("{VERIFY_82} < 9000 \n {VERIFY_81} < 9000 \n"),
        exchange(&sign_command, &[0x55; 64]),
    ]
    .concat();
    let (mut card, mut token) = logged_in(&old, &rest);
    let signature = sign(&mut card, &mut token, 1, CKM_EDDSA, b"message", false);
    assert_eq!(signature.unwrap(), [0x55; 64]);
}
