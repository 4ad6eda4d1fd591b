//! Null, oversized and impossible PINs: C_Login, C_LoginUser, C_SetPIN and C_InitPIN send none of them to a card
//! (PKCS #11 3.2, 5.5 and 5.6).

use claviger_hw_tests::{
    fixture::{
        raw_call::{Arg, HUGE, NULL, RawCall},
        token_fixture::TokenFixture,
    },
    for_each_card,
    provision::{ADMIN_PIN, PIN},
};
use cryptoki_sys::*;

use crate::templates::session_arg;

for_each_card! { [piv openpgp] [
    login_with_null_or_oversized_pin_fails_without_a_command
    login_user_with_a_name_or_a_null_name_is_rejected
    login_with_unknown_user_type_is_rejected_before_the_pin_is_read
    set_pin_with_null_or_oversized_pin_sends_no_command_and_changes_nothing
    a_pin_is_not_changed_to_one_of_impossible_length
    a_user_is_not_given_a_pin_of_impossible_length
    a_pin_at_an_odd_address_is_read
] }

/// Where a PIN is and how long it is said to be; the code, which of C_Login is that of a wrong one for a length.
const NOWHERE: [(&str, Arg<'static>, usize); 3] = [
    ("nowhere", NULL, 6),
    ("nowhere, one byte", NULL, 1),
    ("nowhere, endless", NULL, HUGE),
];
const ENDLESS: [(&str, Arg<'static>, usize); 4] = [
    ("endless", Arg::In(b"123456"), HUGE),
    ("half the address space", Arg::In(b"123456"), HUGE / 2 + 1),
    ("a terabyte", Arg::In(b"123456"), 1 << 40),
    ("a page", Arg::In(&[b'1'; 4096]), 4096),
];

fn login_with_null_or_oversized_pin_fails_without_a_command(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.read_write());
    let s = session_arg(&session);
    let pins = NOWHERE.map(|pin| (pin, CKR_ARGUMENTS_BAD)).into_iter();
    let pins = pins.chain(ENDLESS.map(|pin| (pin, CKR_PIN_INCORRECT)));
    for ((what, pointer, len), code) in pins {
        for user in [CKU_USER, CKU_SO] {
            let login = [s, Arg::Word(user as usize), pointer, Arg::Word(len)];
            fixture.silently(|| calls.expect(code, "C_Login", what, &login));
            let named = [&login[..], &[NULL, Arg::Word(0)]].concat();
            fixture.silently(|| calls.expect(code, "C_LoginUser", what, &named));
        }
    }
    let once = [
        s,
        Arg::Word(CKU_CONTEXT_SPECIFIC as usize),
        NULL,
        Arg::Word(HUGE),
    ];
    let nothing = CKR_OPERATION_NOT_INITIALIZED;
    calls.expect(nothing, "C_Login", "nothing to log in for", &once);
    assert_eq!(session.login_user(), Ok(()), "no try was spent");
}

fn login_user_with_a_name_or_a_null_name_is_rejected(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.read_write());
    let login = [
        session_arg(&session),
        Arg::Word(CKU_USER as usize),
        Arg::Bytes(PIN.as_bytes()),
    ];
    for (pointer, len) in [
        (NULL, 1),
        (NULL, HUGE),
        (Arg::In(b"name"), 4),
        (Arg::In(b"name"), HUGE),
    ] {
        let arguments = [&login[..], &[pointer, Arg::Word(len)]].concat();
        let result = fixture.silently(|| calls.call("C_LoginUser", &arguments).code);
        let refused = [CKR_ARGUMENTS_BAD, CKR_USER_TYPE_INVALID];
        assert!(refused.contains(&result), "{len:#X} bytes: {result:#X}");
    }
    let without_name = [&login[..], &[Arg::Word(HUGE), Arg::Word(0)]].concat();
    calls.expect_ok("C_LoginUser", &without_name);
}

fn login_with_unknown_user_type_is_rejected_before_the_pin_is_read(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.read_write());
    for user in [3, 4, 0x8000_0000, HUGE] {
        for (what, pointer, len) in NOWHERE {
            let login = [
                session_arg(&session),
                Arg::Word(user),
                pointer,
                Arg::Word(len),
            ];
            fixture.silently(|| calls.expect(CKR_USER_TYPE_INVALID, "C_Login", what, &login));
        }
    }
}

fn set_pin_with_null_or_oversized_pin_sends_no_command_and_changes_nothing(
    fixture: &TokenFixture<'_>,
) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.read_write());
    let s = session_arg(&session);
    let right = Arg::Bytes(PIN.as_bytes());
    for (what, pointer, len) in NOWHERE {
        let wrong = [pointer, Arg::Word(len)];
        for arguments in [
            [&[s, right][..], &wrong].concat(),
            [&[s], &wrong[..], &[right]].concat(),
        ] {
            fixture.silently(|| calls.expect(CKR_ARGUMENTS_BAD, "C_SetPIN", what, &arguments));
        }
    }
    for (what, pointer, len) in ENDLESS {
        let wrong = [pointer, Arg::Word(len)];
        let from = [&[s], &wrong[..], &[right]].concat();
        fixture.silently(|| calls.expect(CKR_PIN_INCORRECT, "C_SetPIN", what, &from));
    }
    assert_eq!(session.login_user(), Ok(()), "neither changed nor spent");
}

fn a_pin_is_not_changed_to_one_of_impossible_length(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let right = Arg::Bytes(PIN.as_bytes());
    let short = [
        ("nothing", Arg::In(b""), 0),
        ("five bytes", Arg::In(b"12345"), 5),
    ];
    for (what, pointer, len) in short.into_iter().chain(ENDLESS) {
        let arguments = [session_arg(&session), right, pointer, Arg::Word(len)];
        let pins = fixture.process.pins();
        calls.expect(CKR_PIN_LEN_RANGE, "C_SetPIN", what, &arguments);
        assert_eq!(fixture.process.pins(), pins, "{what}: a PIN was sent");
    }
    assert!(
        session
            .find_objects(&[cryptoki::object::Attribute::Private(true)])
            .is_ok()
    );
    session.logout().unwrap();
    assert_eq!(session.login_user(), Ok(()), "the PIN is what it was");
}

fn a_user_is_not_given_a_pin_of_impossible_length(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.read_write());
    let s = session_arg(&session);
    assert_eq!(session.login_as(CKU_SO, ADMIN_PIN), Ok(()));
    for (what, pointer, len) in NOWHERE {
        let arguments = [s, pointer, Arg::Word(len)];
        fixture.silently(|| calls.expect(CKR_ARGUMENTS_BAD, "C_InitPIN", what, &arguments));
    }
    let short = [
        ("nothing", Arg::In(b""), 0),
        ("five bytes", Arg::In(b"12345"), 5),
    ];
    for (what, pointer, len) in short.into_iter().chain(ENDLESS) {
        let arguments = [s, pointer, Arg::Word(len)];
        let pins = fixture.process.pins();
        calls.expect(CKR_PIN_LEN_RANGE, "C_InitPIN", what, &arguments);
        assert_eq!(fixture.process.pins(), pins, "{what}: a PIN was sent");
    }
    session.logout().unwrap();
    assert_eq!(session.login_user(), Ok(()), "the PIN is what it was");
}

fn a_pin_at_an_odd_address_is_read(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.read_write());
    let (s, pin, len) = (
        session_arg(&session),
        Arg::Odd(PIN.as_bytes()),
        Arg::Word(PIN.len()),
    );
    calls.expect_ok("C_SetPIN", &[s, pin, len, pin, len]);
    calls.expect_ok("C_Login", &[s, Arg::Word(CKU_USER as usize), pin, len]);
}
