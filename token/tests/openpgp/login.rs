//! The user PIN: the commands of a login, the cost of a wrong PIN, and the logout.

use claviger_apdu::Secret;
use claviger_token::{PinPolicy, Token, TokenError};
use cryptoki_sys::{CKA_ALWAYS_AUTHENTICATE, CKO_PRIVATE_KEY};

use crate::session::{SELECT, Sheet, VERIFY_81, VERIFY_82, by, exchange, open, pin, read_point};

const FORGET_81: &str = "> 0020FF81 \n";
const FORGET_82: &str = "> 0020FF82 \n";

fn tries(token: &Token) -> Option<u8> {
    token.info().pin_tries.left
}

/// Logs in to a card that refuses the PIN with `response`. Returns the result and the tries left.
fn refused(response: &str) -> (Result<(), TokenError>, Option<u8>) {
    let session = format!("{}{SELECT}{VERIFY_82}{response}", Sheet::CURVES.discovery());
    let (mut card, mut token) = open(&session);
    let outcome = token.login(&mut card, &pin());
    assert!(!token.is_logged_in());
    (outcome, tries(&token))
}

#[test]
fn login_verifies_both_states_with_one_pin() {
    let session = format!(
        "{}{SELECT}{VERIFY_82} < 9000 \n {VERIFY_81} < 9000",
        Sheet::CURVES.discovery()
    );
    let (mut card, mut token) = open(&session);
    token.login(&mut card, &pin()).unwrap();
    assert!(token.is_logged_in());
    assert_eq!(tries(&token), Some(3));
}

#[test]
fn a_wrong_pin_costs_one_try_and_the_state_for_signatures_is_not_tried() {
    let (outcome, left) = refused("< 63C2");
    assert!(matches!(
        outcome,
        Err(TokenError::WrongPin {
            tries_left: Some(2)
        })
    ));
    assert_eq!(left, Some(2));
}

#[test]
fn refusal_without_a_counter_is_followed_by_a_counter_query() {
    for status in ["6982", "6300"] {
        let (outcome, left) = refused(&format!(
            "< {status} \n {}",
            exchange("00CA00C400", &[1, 0x7F, 0x7F, 0x7F, 1, 0, 3])
        ));
        assert!(matches!(
            outcome,
            Err(TokenError::WrongPin {
                tries_left: Some(1)
            })
        ));
        assert_eq!(left, Some(1));
    }
    let (outcome, left) = refused("< 6982 \n > 00CA00C400 \n < 6A88");
    assert!(matches!(
        outcome,
        Err(TokenError::WrongPin { tries_left: None })
    ));
    assert_eq!(left, None);
}

#[test]
fn a_pin_without_tries_is_locked() {
    let counter = exchange("00CA00C400", &[1, 0x7F, 0x7F, 0x7F, 0, 0, 3]);
    for response in ["< 63C0", "< 6983", &format!("< 6982 \n {counter}")] {
        let (outcome, left) = refused(response);
        assert!(matches!(outcome, Err(TokenError::PinLocked)), "{response}");
        assert_eq!(left, Some(0));
    }
}

#[test]
fn a_pin_of_impossible_length_never_reaches_the_card() {
    let sheet = Sheet {
        password_status: [1, 32, 32, 32, 3, 0, 3],
        ..Sheet::CURVES
    };
    let (mut card, mut token) = open(&sheet.discovery());
    for len in [0, 5, 33] {
        let outcome = token.login(&mut card, &Secret::new(vec![b'1'; len]));
        assert!(matches!(
            outcome,
            Err(TokenError::PinLength {
                min: 6,
                max: 32,
                ..
            })
        ));
    }
}

#[test]
fn pin_block_2_format_is_refused_before_anything_is_sent() {
    let sheet = Sheet {
        password_status: [1, 0x80 | 12, 12, 12, 3, 0, 3],
        ..Sheet::CURVES
    };
    let (mut card, mut token) = open(&format!("{}{SELECT}", sheet.discovery()));
    let outcome = token.login(&mut card, &pin());
    assert!(matches!(outcome, Err(TokenError::Malformed { .. })));
}

#[test]
fn failed_second_verification_undoes_the_first() {
    let session = format!(
        "{}{SELECT}{VERIFY_82} < 9000 \n {VERIFY_81} < 63C2 \n {FORGET_82} < 9000",
        Sheet::CURVES.discovery()
    );
    let (mut card, mut token) = open(&session);
    assert!(token.login(&mut card, &pin()).is_err());
    assert!(!token.is_logged_in());
}

#[test]
fn one_signature_policy_is_shown_by_the_key_and_login_skips_its_pin() {
    let sheet = Sheet {
        password_status: [0, 0x7F, 0x7F, 0x7F, 3, 0, 3],
        ..Sheet::CURVES
    };
    let session = format!(
        "{}{SELECT}{VERIFY_82} < 9000 \n {}",
        sheet.discovery(),
        read_point("B600", &[0xE1; 32])
    );
    let (mut card, mut token) = open(&session);
    token.login(&mut card, &pin()).unwrap();
    let found = token.find(&mut card, &by(CKO_PRIVATE_KEY, 1)).unwrap();
    assert_eq!(found[0].private_key().unwrap().pin, PinPolicy::Always);
    assert_eq!(found[0].get(CKA_ALWAYS_AUTHENTICATE), Some(&true.into()));
}

#[test]
fn changed_signature_pin_policy_applies_to_a_key_read_before() {
    let strict = Sheet {
        password_status: [0, 0x7F, 0x7F, 0x7F, 3, 0, 3],
        ..Sheet::CURVES
    };
    let session = format!(
        "{}{SELECT}{VERIFY_82} < 9000 \n {VERIFY_81} < 9000 \n {}{}{VERIFY_82} < 9000",
        Sheet::CURVES.discovery(),
        read_point("B600", &[0xE1; 32]),
        strict.probe()
    );
    let (mut card, mut token) = open(&session);
    let rule = |token: &mut Token, card: &mut _| {
        let found = token.find(card, &by(CKO_PRIVATE_KEY, 1)).unwrap();
        found[0].private_key().unwrap().pin
    };
    token.login(&mut card, &pin()).unwrap();
    assert_eq!(rule(&mut token, &mut card), PinPolicy::Once);
    token.login(&mut card, &pin()).unwrap();
    assert_eq!(rule(&mut token, &mut card), PinPolicy::Always);
}

#[test]
fn logout_makes_the_card_forget_both_states() {
    let session = format!(
        "{}{SELECT}{VERIFY_82} < 9000 \n {VERIFY_81} < 9000 \n {}{FORGET_81} < 9000 \n {FORGET_82} < 9000",
        Sheet::CURVES.discovery(),
        Sheet::CURVES.probe(),
    );
    let (mut card, mut token) = open(&session);
    token.login(&mut card, &pin()).unwrap();
    token.logout(&mut card).unwrap();
    assert!(!token.is_logged_in());
}

/// Logs out of a card that refuses the command for it and is selected again. `after` has the commands that follow.
fn logout_by_selecting(sheet: &Sheet, after: &str) -> Result<(), TokenError> {
    let session = format!(
        "{}{SELECT}{FORGET_81} < 6A86 \n {FORGET_82} < 6A86 \n {SELECT} {after}",
        sheet.discovery()
    );
    let (mut card, mut token) = open(&session);
    token.logout(&mut card)
}

#[test]
fn logout_without_reset_command_reselects_the_applet_and_checks_the_state() {
    logout_by_selecting(
        &Sheet::CURVES,
        "> 00200081 \n < 63C3 \n > 00200082 \n < 63C3",
    )
    .unwrap();
    let still = logout_by_selecting(&Sheet::CURVES, "> 00200081 \n < 9000");
    assert!(matches!(still, Err(TokenError::Refused { .. })));
    let old = Sheet {
        version: "0201",
        ..Sheet::CURVES
    };
    logout_by_selecting(&old, "").unwrap();
}
