//! Administration of an OpenPGP card by its security officer, and changes of the user PIN.

#![allow(
    clippy::unwrap_used,
    reason = "the tests' own helpers: a failure here is a failure of the test"
)]

use std::time::{Duration, SystemTime};

use claviger_apdu::{Secret, tlv};
use claviger_token::{
    Card, Token, TokenError,
    algorithm::{Curve, KeyAlgorithm},
};
use cryptoki_sys::{CKO_CERTIFICATE, CKO_PUBLIC_KEY};

use crate::{
    common::{hex, text},
    session::{
        P256, READ_FIRST, SELECT, Sheet, VERIFY_81, VERIFY_82, by, exchange, open, pin, read_point,
        select_data,
    },
};

const VERIFY_83: &str = "> 0020008308 3132333435363738 \n";
const STATUS_83: &str = "> 00200083 \n";
const READ_INFORMATION: &str = "00CA00FA00";
const FORGET_81: &str = "> 0020FF81 \n < 9000 \n";
const FORGET_82: &str = "> 0020FF82 \n < 9000 \n";
const P384: KeyAlgorithm = KeyAlgorithm::Ec(Curve::P384);

fn admin() -> Secret {
    Secret::copy_from(b"12345678")
}

/// The security officer's login to a card that does not list its algorithms.
fn so_login(sheet: &Sheet) -> String {
    let information = match sheet.features & 0x04 {
        0 => String::new(),
        _ => format!("> {READ_INFORMATION} \n < 6A88 \n"),
    };
    format!("{SELECT}{VERIFY_83} < 9000 \n {information}")
}

/// A transaction of the logged-in security officer, whom the card still reports as verified.
fn task(sheet: &Sheet, commands: &str) -> String {
    format!("{}{STATUS_83} < 9000 \n {commands}", sheet.probe())
}

fn managed_by(sheet: &Sheet, session: &str) -> (Card, Token) {
    let session = format!("{}{}{session}", sheet.discovery(), so_login(sheet));
    let (mut card, mut token) = open(&session);
    token.so_login(&mut card, &admin()).unwrap();
    (card, token)
}

fn managed(session: &str) -> (Card, Token) {
    managed_by(&Sheet::CURVES, session)
}

fn c4(tries: u8, admin: u8) -> String {
    exchange("00CA00C400", &[1, 0x7F, 0x7F, 0x7F, tries, 0, admin])
}

#[test]
fn the_security_officer_is_verified_with_the_admin_pin() {
    let (_, token) = managed("");
    assert!(token.is_so_logged_in() && !token.is_logged_in());
    assert_eq!(token.so_tries().left, Some(3));
}

#[test]
fn a_wrong_admin_pin_costs_one_try_and_the_last_one_locks() {
    let login = |response: &str| {
        let session = format!("{}{SELECT}{VERIFY_83}{response}", Sheet::CURVES.discovery());
        let (mut card, mut token) = open(&session);
        let error = token.so_login(&mut card, &admin()).unwrap_err();
        assert!(!token.is_so_logged_in());
        assert_eq!(
            token.info().pin_tries.left,
            Some(3),
            "the user's tries are separate"
        );
        (error, token.so_tries().left)
    };
    for response in ["< 63C2", &format!("< 6982 \n {}", c4(3, 2))] {
        let (error, left) = login(response);
        assert!(matches!(
            error,
            TokenError::WrongSoPin {
                tries_left: Some(2)
            }
        ));
        assert_eq!(left, Some(2));
    }
    for response in ["< 63C0", "< 6983", &format!("< 6982 \n {}", c4(3, 0))] {
        let (error, left) = login(response);
        assert!(matches!(error, TokenError::SoPinLocked), "{response}");
        assert_eq!(left, Some(0));
    }
    let (error, left) = login("< 6982 \n > 00CA00C400 \n < 6A88");
    assert!(matches!(error, TokenError::WrongSoPin { tries_left: None }));
    assert_eq!(left, None);
}

#[test]
fn an_admin_pin_of_impossible_length_never_reaches_the_card() {
    let sheet = Sheet {
        password_status: [1, 32, 32, 16, 3, 0, 3],
        ..Sheet::CURVES
    };
    let (mut card, mut token) = open(&sheet.discovery());
    for len in [0, 6, 7, 17] {
        let refused = token.so_login(&mut card, &Secret::new(vec![b'1'; len]));
        assert!(
            matches!(refused, Err(TokenError::SoPinForm { .. })),
            "{len}"
        );
    }
}

#[test]
fn old_pin_is_verified_alone_before_a_pin_change() {
    let change = "> 002400810C 313233343536 363534333231 \n";
    let session = [
        Sheet::CURVES.discovery(),
        format!("{SELECT}{VERIFY_82} < 9000 \n {change} < 9000 \n {FORGET_81}{FORGET_82}"),
        Sheet::CURVES.probe(),
        format!("{VERIFY_82} < 9000 \n {change} < 6A80 \n {FORGET_81}{FORGET_82}"),
        Sheet::CURVES.probe(),
        // The beginning of 1234567 is the PIN.
        "> 0020008207 31323334353637 \n < 63C2 \n".to_owned(),
    ]
    .concat();
    let (mut card, mut token) = open(&session);
    let new = Secret::copy_from(b"654321");
    token.set_pin(&mut card, &pin(), &new).unwrap();
    let refused = token.set_pin(&mut card, &pin(), &new);
    assert!(matches!(refused, Err(TokenError::NewPinInvalid { .. })));
    let wrong = token.set_pin(&mut card, &Secret::copy_from(b"1234567"), &new);
    assert!(matches!(
        wrong,
        Err(TokenError::WrongPin {
            tries_left: Some(2)
        })
    ));
}

#[test]
fn wrong_old_pin_in_a_change_keeps_the_user_logged_in() {
    let session = [
        Sheet::CURVES.discovery(),
        format!("{SELECT}{VERIFY_82} < 9000 \n {VERIFY_81} < 9000 \n"),
        Sheet::CURVES.probe(),
        "> 0020008207 31323334353637 \n < 63C2 \n".to_owned(),
        read_point("A400", &crate::session::point(0xE3, 32)),
        // The card has lost the verification of the PIN. The failed try was the module's own.
        "> 0088000020 5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A 00 \n < 6982 \n"
            .to_owned(),
        Sheet::CURVES.probe(),
        format!("> 00200082 \n < 63C2 \n {VERIFY_82} < 9000 \n {VERIFY_81} < 9000 \n"),
        exchange(
            "0088000020 5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A5A 00",
            &[0x11; 64],
        ),
    ]
    .concat();
    let (mut card, mut token) = open(&session);
    token.login(&mut card, &pin()).unwrap();
    let new = Secret::copy_from(b"654321");
    let wrong = token.set_pin(&mut card, &Secret::copy_from(b"1234567"), &new);
    assert!(matches!(wrong, Err(TokenError::WrongPin { .. })));
    assert!(token.is_logged_in());
    let mechanism = cryptoki_sys::CKM_ECDSA;
    crate::session::sign(&mut card, &mut token, 3, mechanism, &[0x5A; 32], false).unwrap();
}

#[test]
fn the_admin_pin_gives_the_user_a_new_pin() {
    let reset = |status: &str| {
        let command = format!("> 002C028106 363534333231 \n < {status} \n");
        task(&Sheet::CURVES, &command)
    };
    let session = [reset("9000"), reset("6A80"), reset("6982")].concat();
    let (mut card, mut token) = managed(&session);
    let mut init = |new: &[u8]| token.init_pin(&mut card, &Secret::copy_from(new));
    init(b"654321").unwrap();
    assert!(matches!(
        init(b"654321"),
        Err(TokenError::NewPinInvalid { .. })
    ));
    assert!(matches!(init(b"654321"), Err(TokenError::Refused { .. })));
    assert!(token.is_so_logged_in());
}

#[test]
fn changed_admin_pin_replaces_the_cached_one() {
    let session = [
        Sheet::CURVES.probe(),
        format!(
            "{VERIFY_83} < 9000 \n > 0024008310 3132333435363738 3837363534333231 \n < 9000 \n"
        ),
        Sheet::CURVES.probe(),
        format!("{STATUS_83} < 63C3 \n > 0020008308 3837363534333231 \n < 9000 \n"),
        "> 002C028106 363534333231 \n < 9000 \n".to_owned(),
    ]
    .concat();
    let (mut card, mut token) = managed(&session);
    let new = Secret::copy_from(b"87654321");
    token.set_pin(&mut card, &admin(), &new).unwrap();
    token
        .init_pin(&mut card, &Secret::copy_from(b"654321"))
        .unwrap();
}

#[test]
fn lost_so_login_is_restored_unless_a_try_was_spent_since() {
    let lost = |response: &str| format!("{}{STATUS_83}{response}", Sheet::CURVES.probe());
    let certificate = |sheet: &str| format!("{sheet}> 00DA7F21 \n < 9000 \n");
    let restored = format!("< 63C3 \n {VERIFY_83} < 9000 \n");
    let write = certificate(&select_data(0)) + &select_data(0);
    let (mut card, mut token) = managed(&(lost(&restored) + &write));
    token.put_certificate(&mut card, 3, None).unwrap();

    let (mut card, mut token) = managed(&lost("< 63C2 \n"));
    let refused = token.put_certificate(&mut card, 3, None);
    assert!(matches!(refused, Err(TokenError::NotLoggedIn { .. })));
    assert!(!token.is_so_logged_in());

    let (mut card, mut token) = managed(&lost("< 63C0 \n"));
    let refused = token.put_certificate(&mut card, 3, None);
    assert!(matches!(refused, Err(TokenError::SoPinLocked)));
    assert!(!token.is_so_logged_in());

    let (mut card, mut token) = managed(&lost(&format!("< 63C3 \n {VERIFY_83} < 63C2 \n")));
    let refused = token.put_certificate(&mut card, 3, None);
    assert!(matches!(refused, Err(TokenError::WrongSoPin { .. })));
    assert!(!token.is_so_logged_in(), "one try ends the login");
}

#[test]
fn generated_key_gets_its_rfc_9580_fingerprint() {
    // The key and the fingerprint of RFC 9580, A.1.
    let key = hex("3F098994BDD916ED4053197934E4A87C80733A1280D62F8010992E43EE3B2406");
    let response = tlv::encode(0x7F49, &tlv::encode(0x86, &key));
    let commands = [
        exchange("0047800002 B600 00", &response),
        exchange("00DA00C714 C959BDBAFA32A2F89A153B678CFDE12197965A9A", &[]),
        exchange("00DA00CE04 53F35F0B", &[]),
    ]
    .concat();
    let session = [
        task(&Sheet::CURVES, &commands),
        // The next search reads the present state of the card.
        Sheet::CURVES.probe(),
        read_point("B600", &key),
    ]
    .concat();
    let (mut card, mut token) = managed(&session);
    let created = SystemTime::UNIX_EPOCH + Duration::from_secs(0x53F3_5F0B);
    let public = token
        .generate_key(&mut card, 1, KeyAlgorithm::Ed25519, created)
        .unwrap();
    assert_eq!(public.algorithm(), KeyAlgorithm::Ed25519);
    let found = token.find(&mut card, &by(CKO_PUBLIC_KEY, 1)).unwrap();
    assert_eq!(found.len(), 1);
}

fn make(card: &mut Card, token: &mut Token, reference: u8) -> Result<(), TokenError> {
    token
        .generate_key(card, reference, P384, SystemTime::UNIX_EPOCH)
        .map(drop)
}

/// The security officer's login to a card that lists P-384 for its first and third key.
fn listing_p384() -> String {
    let attributes = tlv::encode(0xC1, &hex("13 2B81040022"));
    let others = tlv::encode(0xC3, &hex("13 2B81040022 FF"));
    let list = tlv::encode(0xFA, &[attributes, others].concat());
    format!(
        "{}{SELECT}{VERIFY_83} < 9000 \n {}",
        Sheet::CURVES.discovery(),
        exchange(READ_INFORMATION, &list)
    )
}

#[test]
fn key_reference_gets_the_listed_attributes_before_generation() {
    let point = crate::session::point(0xE1, 48);
    let response = tlv::encode(0x7F49, &tlv::encode(0x86, &point));
    let commands = [
        exchange("00DA00C307 13 2B81040022 FF", &[]),
        exchange("0047800002 A400 00", &response),
        // The card refuses fingerprint and time, but the key was generated.
        "> 00DA00C914 214E7B954D6204DF9EC264AABDCAC2C3A21E3D08 \n < 6985 \n".to_owned(),
        "> 00DA00D004 00000000 \n < 6985 \n".to_owned(),
    ]
    .concat();
    let session = listing_p384() + &task(&Sheet::CURVES, &commands);
    let (mut card, mut token) = open(&session);
    token.so_login(&mut card, &admin()).unwrap();
    assert!(token.generatable_algorithms().contains(&P384));
    make(&mut card, &mut token, 3).unwrap();
}

#[test]
fn ungeneratable_key_is_refused_without_changing_the_key_reference() {
    let unchangeable = Sheet {
        features: 0x3A,
        ..Sheet::CURVES
    };
    let (mut card, mut token) = managed_by(&unchangeable, &task(&unchangeable, ""));
    let refused = make(&mut card, &mut token, 1);
    assert!(matches!(refused, Err(TokenError::KeyNotGenerable(_))));
    let session = [
        listing_p384(),
        task(&Sheet::CURVES, ""),
        task(&Sheet::CURVES, ""),
    ]
    .concat();
    let (mut card, mut token) = open(&session);
    token.so_login(&mut card, &admin()).unwrap();
    let not_listed = make(&mut card, &mut token, 2);
    assert!(matches!(not_listed, Err(TokenError::KeyNotGenerable(_))));
    let nowhere = make(&mut card, &mut token, 4);
    assert!(matches!(nowhere, Err(TokenError::ValueInvalid { .. })));
    assert_eq!(
        (token.key_reference_of(&[3]), token.key_reference_of(&[4])),
        (Some(3), None)
    );
}

#[test]
fn failed_key_generation_is_reported_by_its_reason() {
    let attributes = "> 00DA00C106 13 2B81040022 \n";
    let generate = "> 0047800002 B600 00 \n";
    let fails = |commands: &str| {
        let (mut card, mut token) = open(&(listing_p384() + &task(&Sheet::CURVES, commands)));
        token.so_login(&mut card, &admin()).unwrap();
        make(&mut card, &mut token, 1).unwrap_err()
    };
    let refused = fails(&format!("{attributes} < 6A80 \n"));
    assert!(matches!(refused, TokenError::KeyNotGenerable(P384)));
    let refused = fails(&format!("{attributes} < 6982 \n"));
    assert!(matches!(refused, TokenError::Refused { .. }));
    let refused = fails(&format!("{attributes} < 9000 \n {generate} < 6A81 \n"));
    assert!(matches!(refused, TokenError::KeyNotGenerable(P384)));
    let refused = fails(&format!("{attributes} < 9000 \n {generate} < 6581 \n"));
    assert!(matches!(refused, TokenError::NoSpace { .. }));
    let rsa = [tlv::encode(0x81, &[0xC1; 128]), tlv::encode(0x82, &[3])].concat();
    let rsa = text(&tlv::encode(0x7F49, &rsa));
    for data in [rsa.as_str(), "7F4900", "", "7F49028604"] {
        let refused = fails(&format!(
            "{attributes} < 9000 \n {generate} < {data} 9000 \n"
        ));
        assert!(matches!(refused, TokenError::Malformed { .. }), "{data}");
    }
}

#[test]
fn certificate_is_written_for_its_key_and_the_first_one_reselected() {
    let len = P256.len();
    let (first, rest) = P256.split_at(255);
    let put = format!(
        "> 10DA7F21FF {} \n < 9000 \n > 00DA7F21{:02X} {} \n < 9000 \n",
        text(first),
        len - 255,
        text(rest)
    );
    let session = [
        task(&Sheet::CURVES, &(select_data(2) + &put + &select_data(0))),
        select_data(2),
        exchange(READ_FIRST, P256),
        select_data(0),
    ]
    .concat();
    let (mut card, mut token) = managed(&session);
    token.put_certificate(&mut card, 1, Some(P256)).unwrap();
    let found = token.find(&mut card, &by(CKO_CERTIFICATE, 1)).unwrap();
    assert_eq!(found.len(), 1);
}

/// Writes a certificate of 383 bytes. The transport is known to carry frames of 300 bytes. The card takes extended
/// length and has these capabilities.
fn write_with_frame_limit(capabilities: &'static str, put: &str) {
    let sheet = Sheet {
        capabilities,
        ..Sheet::CURVES
    };
    let extended = |text: String| {
        text.replace("00CA006E00\n", "00CA006E000000\n")
            .replace("00CA00FA00 \n", "00CA00FA000000 \n")
    };
    let session = [
        "~ 300\n".to_owned(),
        sheet.discovery(),
        extended(so_login(&sheet)),
        extended(task(&sheet, &(select_data(2) + put + &select_data(0)))),
    ]
    .concat();
    let (mut card, mut token) = open(&session);
    token.so_login(&mut card, &admin()).unwrap();
    token.put_certificate(&mut card, 1, Some(P256)).unwrap();
}

#[test]
fn command_over_the_cards_length_limit_is_chained() {
    let (first, rest) = P256.split_at(255);
    let put = format!(
        "> 10DA7F21FF {} \n < 9000 \n > 00DA7F2180 {} \n < 9000 \n",
        text(first),
        text(rest)
    );
    write_with_frame_limit("73 C001C0", &put);
}

#[test]
fn card_with_extended_length_but_no_chaining_gets_one_frame() {
    let put = format!("> 00DA7F2100017F {} \n < 9000 \n", text(P256));
    write_with_frame_limit("73 C00140", &put);
}

#[test]
fn certificate_that_does_not_fit_is_refused_for_lack_of_space() {
    let full = select_data(0) + "> 00DA7F2101 30 \n < 6A84 \n" + &select_data(0);
    let session = [task(&Sheet::CURVES, ""), task(&Sheet::CURVES, &full)].concat();
    let (mut card, mut token) = managed(&session);
    let too_long = token.put_certificate(&mut card, 3, Some(&[0x30; 0x401]));
    assert!(matches!(too_long, Err(TokenError::NoSpace { .. })));
    let full = token.put_certificate(&mut card, 3, Some(&[0x30]));
    assert!(matches!(full, Err(TokenError::NoSpace { .. })));
}

#[test]
fn card_with_a_single_certificate_refuses_one_for_other_keys() {
    let old = Sheet {
        version: "0201",
        features: 0x3A,
        ..Sheet::CURVES
    };
    // Such a card does not report whether the admin PIN is verified.
    let lost = format!("{}{}{VERIFY_83} < 9000 \n", old.probe(), c4(3, 3));
    let session = [&lost, "> 00DA7F21 \n < 9000 \n", &lost].concat();
    let (mut card, mut token) = managed_by(&old, &session);
    token.put_certificate(&mut card, 3, None).unwrap();
    let refused = token.put_certificate(&mut card, 1, None);
    assert!(matches!(refused, Err(TokenError::ValueInvalid { .. })));
}

#[test]
fn openpgp_token_has_no_writable_data_objects() {
    let (mut card, mut token) = managed(&task(&Sheet::CURVES, ""));
    let refused = token.put_data(&mut card, 0x0101, Some(b"mine"));
    assert!(matches!(refused, Err(TokenError::ValueInvalid { .. })));
    assert_eq!(token.writable_data_objects(), []);
}

#[test]
fn random_numbers_are_requested_in_the_sizes_the_card_gives() {
    let sheet = Sheet {
        features: 0x7E,
        challenge: 16,
        ..Sheet::CURVES
    };
    let session = [
        sheet.discovery(),
        SELECT.to_owned(),
        exchange("0084000010", &[1; 16]),
        exchange("0084000004", &[2; 4]),
        exchange("0084000004", &[3; 5]),
    ]
    .concat();
    let (mut card, mut token) = open(&session);
    assert!(token.has_random());
    let random = token.random(&mut card, 20).unwrap().unwrap();
    assert_eq!(random.expose(), [[1; 16].as_slice(), &[2; 4]].concat());
    let other = token.random(&mut card, 4);
    assert!(matches!(other, Err(TokenError::Malformed { .. })));
    let (mut card, mut token) = open(&Sheet::CURVES.discovery());
    assert!(!token.has_random());
    assert!(token.random(&mut card, 4).unwrap().is_none());
}

#[test]
fn logout_makes_the_card_forget_the_admin_pin() {
    let forget = format!("{}> 0020FF83 \n < 9000 \n", Sheet::CURVES.probe());
    let (mut card, mut token) = managed(&forget);
    token.logout(&mut card).unwrap();
    assert!(!token.is_so_logged_in());
    let selected = format!(
        "{}> 0020FF83 \n < 6A86 \n {SELECT}{STATUS_83}",
        Sheet::CURVES.probe()
    );
    let (mut card, mut token) = managed(&format!("{selected} < 63C3 \n"));
    token.logout(&mut card).unwrap();
    let (mut card, mut token) = managed(&format!("{selected} < 9000 \n"));
    let still = token.logout(&mut card);
    assert!(matches!(still, Err(TokenError::Refused { .. })));
    assert!(!token.is_so_logged_in());
}
