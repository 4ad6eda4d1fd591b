//! The PUK as SO PIN, and changes of PINs.

use claviger_token::TokenError;

use crate::{PROBE, managed, open, secret};

const PUK: &str = "3132333435363738";
const PIN: &str = "313233343536FFFF";
const NEW: &str = "363534333231FFFF";

/// Scripts a transaction that begins with the probe.
fn transaction(commands: &str) -> String {
    format!("[\n{PROBE}{commands}]\n")
}

/// Scripts the change of the PUK 12345678 to itself.
fn puk(status: &str) -> String {
    transaction(&format!("> 00 24 00 81 10 {PUK} {PUK}\n< {status}\n"))
}

fn verify(status: &str) -> String {
    format!("> 00 20 00 80 08 {PIN}\n< {status}\n")
}

fn change(status: &str) -> String {
    format!("> 00 24 00 80 10 {PIN} {NEW}\n< {status}\n")
}

const FORGET: &str = "> 00 20 FF 80\n< 9000\n";

#[test]
fn so_pin_that_is_neither_puk_nor_management_key_is_refused_unsent() {
    let (mut card, mut token) = open("");
    let keys = ["0".repeat(31), "0".repeat(49), "x".repeat(48)];
    for secret_text in ["", "12345", "123456789"]
        .map(String::from)
        .iter()
        .chain(&keys)
    {
        let refused = token.so_login(&mut card, &secret(secret_text));
        assert!(matches!(refused, Err(TokenError::SoPinForm { .. })));
    }
    assert!(!token.is_so_logged_in());
}

#[test]
fn a_puk_is_compared_by_changing_it_to_itself() {
    let (mut card, mut token) = open(&puk("9000"));
    token.so_login(&mut card, &secret("12345678")).unwrap();
    assert!(token.is_so_logged_in() && !token.is_logged_in());
}

#[test]
fn a_wrong_puk_costs_one_try_and_the_last_one_locks() {
    let session = [
        puk("63C2"),
        puk("6300"),
        puk("6A80"),
        puk("63C0"),
        puk("6983"),
    ]
    .concat();
    let (mut card, mut token) = open(&session);
    let mut tried = || token.so_login(&mut card, &secret("12345678")).unwrap_err();
    let wrong = |error: TokenError, left| matches!(error, TokenError::WrongSoPin { tries_left } if tries_left == left);
    assert!(wrong(tried(), Some(2)));
    assert!(wrong(tried(), None));
    assert!(wrong(tried(), None));
    assert!(matches!(tried(), TokenError::SoPinLocked));
    assert!(matches!(tried(), TokenError::SoPinLocked));
    assert_eq!(
        (token.so_tries().left, token.so_tries().most),
        (Some(0), Some(3))
    );
    assert!(!token.is_so_logged_in());
}

#[test]
fn so_login_accepts_a_puk_unchecked_when_the_card_forbids_changing_it() {
    for status in ["6985", "6A81", "6A86", "6A88", "6D00"] {
        let (mut card, mut token) = open(&puk(status));
        token.so_login(&mut card, &secret("12345678")).unwrap();
        assert!(token.is_so_logged_in());
    }
    let (mut card, mut token) = open(&puk("6F00"));
    let refused = token.so_login(&mut card, &secret("12345678"));
    assert!(matches!(refused, Err(TokenError::Refused { .. })));
}

#[test]
fn the_puk_gives_the_user_a_new_pin() {
    let reset = |status: &str| transaction(&format!("> 00 2C 00 80 10 {PUK} {NEW}\n< {status}\n"));
    let session = [puk("9000"), reset("6A80"), reset("9000"), reset("63C2")].concat();
    let (mut card, mut token) = open(&session);
    let new = secret("654321");
    token.so_login(&mut card, &secret("12345678")).unwrap();
    let refused = token.init_pin(&mut card, &new);
    assert!(matches!(refused, Err(TokenError::NewPinInvalid { .. })));
    token.init_pin(&mut card, &new).unwrap();
    assert!(token.is_so_logged_in());
    // Another program has changed the PUK. The cached PUK is not sent a second time.
    let wrong = token.init_pin(&mut card, &new);
    assert!(matches!(
        wrong,
        Err(TokenError::WrongSoPin {
            tries_left: Some(2)
        })
    ));
    assert!(!token.is_so_logged_in());
    let nobody = token.init_pin(&mut card, &new);
    assert!(matches!(nobody, Err(TokenError::NotLoggedIn { .. })));
}

#[test]
fn new_pin_of_impossible_length_is_refused_unsent() {
    let session = [&puk("9000"), &transaction("")[..], &transaction("")].concat();
    let (mut card, mut token) = open(&session);
    let length = |outcome| matches!(outcome, Err(TokenError::NewPinLength { .. }));
    token.so_login(&mut card, &secret("12345678")).unwrap();
    assert!(length(token.init_pin(&mut card, &secret("12345"))));
    let old = secret("12345678");
    assert!(length(token.set_pin(&mut card, &old, &secret("123456789"))));
}

#[test]
fn puk_and_management_key_allow_different_so_operations() {
    let (mut card, mut token) = open(&[puk("9000"), transaction("")].concat());
    token.so_login(&mut card, &secret("12345678")).unwrap();
    let refused = token.put_certificate(&mut card, 0x9A, None).unwrap_err();
    assert!(refused.to_string().contains("management key"), "{refused}");
    assert!(token.is_so_logged_in());
    let (mut card, mut token) = managed(&transaction(""));
    let refused = token.init_pin(&mut card, &secret("654321")).unwrap_err();
    assert!(refused.to_string().contains("PUK"), "{refused}");
    assert!(token.is_so_logged_in());
}

#[test]
fn changed_puk_replaces_the_cached_one() {
    let puk_to = |old: &str, new: &str, status: &str| {
        transaction(&format!("> 00 24 00 81 10 {old} {new}\n< {status}\n"))
    };
    let new = "383736353433FFFF";
    let session = [
        puk("9000"),
        puk_to(PUK, new, "6985"),
        puk_to(PUK, new, "9000"),
        transaction(&format!("> 00 2C 00 80 10 {new} {NEW}\n< 9000\n")),
        puk_to(PUK, new, "63C2"),
    ]
    .concat();
    let (mut card, mut token) = open(&session);
    let (old, new) = (secret("12345678"), secret("876543"));
    token.so_login(&mut card, &old).unwrap();
    let refused = token.set_pin(&mut card, &old, &new);
    assert!(matches!(refused, Err(TokenError::NewPinInvalid { .. })));
    token.set_pin(&mut card, &old, &new).unwrap();
    token.init_pin(&mut card, &secret("654321")).unwrap();
    let wrong = token.set_pin(&mut card, &old, &new);
    assert!(matches!(wrong, Err(TokenError::WrongSoPin { .. })));
    assert!(token.is_so_logged_in(), "the login state stays the same");
}

#[test]
fn pin_change_without_a_login_leaves_no_login() {
    let session = [
        transaction(&[&verify("9000"), &change("9000")[..], FORGET].concat()),
        transaction(&[&verify("9000"), &change("6A80")[..], FORGET].concat()),
        transaction(&verify("63C2")),
        transaction(&verify("6983")),
    ]
    .concat();
    let (mut card, mut token) = open(&session);
    let mut changed = || token.set_pin(&mut card, &secret("123456"), &secret("654321"));
    changed().unwrap();
    assert!(matches!(changed(), Err(TokenError::NewPinInvalid { .. })));
    assert!(matches!(
        changed(),
        Err(TokenError::WrongPin {
            tries_left: Some(2)
        })
    ));
    assert!(matches!(changed(), Err(TokenError::PinLocked)));
    assert!(!token.is_logged_in());
    assert_eq!(token.info().pin_tries.left, Some(0));
}

#[test]
fn an_old_pin_of_impossible_length_never_reaches_the_card() {
    let (mut card, mut token) = open("");
    let refused = token.set_pin(&mut card, &secret("12345"), &secret("654321"));
    assert!(matches!(refused, Err(TokenError::PinLength { .. })));
}

#[test]
fn pin_change_keeps_the_user_logged_in_with_the_new_pin() {
    let session = [
        transaction(&verify("9000")),
        transaction(&[verify("9000"), change("9000")].concat()),
    ]
    .concat();
    let (mut card, mut token) = open(&session);
    token.login(&mut card, &secret("123456")).unwrap();
    token
        .set_pin(&mut card, &secret("123456"), &secret("654321"))
        .unwrap();
    assert!(token.is_logged_in());
}

#[test]
fn card_lost_during_a_pin_change_ends_the_login() {
    let lost = format!("{}! removed\n", verify("9000"));
    let session = [transaction(&verify("9000")), transaction(&lost)].concat();
    let (mut card, mut token) = open(&session);
    token.login(&mut card, &secret("123456")).unwrap();
    let changed = token.set_pin(&mut card, &secret("123456"), &secret("654321"));
    assert!(matches!(changed, Err(TokenError::Transport(_))));
    assert!(!token.is_logged_in(), "nobody knows which PIN holds");
}

#[test]
fn user_and_security_officer_are_never_logged_in_together() {
    let (mut card, mut token) = open(&transaction(&verify("9000")));
    token.login(&mut card, &secret("123456")).unwrap();
    let refused = token.so_login(&mut card, &secret("12345678"));
    assert!(matches!(refused, Err(TokenError::AnotherLoggedIn)));
    let (mut card, mut token) = managed("");
    let refused = token.login(&mut card, &secret("123456"));
    assert!(matches!(refused, Err(TokenError::AnotherLoggedIn)));
    assert!(token.is_so_logged_in() && !token.is_logged_in());
    token.forget_login();
    assert!(!token.is_so_logged_in());
}

#[test]
fn logout_makes_the_card_forget_the_management_key_and_sends_nothing_for_a_puk() {
    let elsewhere = "> 00 A4 04 00 06 D2 76 00 01 24 01 00
        < 6A82
        > 00 A4 04 00 08 A0 00 00 01 51 00 00 00 00
        < 9000
        > 00 A4 04 00 09 A0 00 00 03 08 00 00 10 00 00
        < 9000\n";
    let (mut card, mut token) = managed(&transaction(elsewhere));
    token.logout(&mut card).unwrap();
    assert!(!token.is_so_logged_in());
    let (mut card, mut token) = open(&[puk("9000"), transaction("")].concat());
    token.so_login(&mut card, &secret("12345678")).unwrap();
    token.logout(&mut card).unwrap();
    assert!(!token.is_so_logged_in());
}
