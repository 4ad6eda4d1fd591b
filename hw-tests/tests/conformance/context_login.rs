//! CKU_CONTEXT_SPECIFIC and CKA_ALWAYS_AUTHENTICATE (PKCS #11 3.2, 5.6.8): a PIN for one use of a key.

use claviger_hw_tests::{
    fixture::token_fixture::{Bench, Seat, plain},
    on_cards,
    provision::PIN,
};
use cryptoki::{
    error::RvError,
    mechanism::Mechanism,
    object::{Attribute, AttributeType, ObjectHandle},
    session::SessionState,
};
use cryptoki_sys::{CKF_SIGN, CKM_RSA_PKCS, CKU_CONTEXT_SPECIFIC};

on_cards! { [piv openpgp piv_ec openpgp_ec] [
    a_signature_without_it_is_refused_and_goes_on_after_it
    it_is_good_for_one_signature
    it_needs_an_operation
    it_needs_a_key_that_wants_it_and_leaves_other_operations_alone
    a_wrong_pin_leaves_the_operation_waiting
    a_blocked_pin_logs_the_user_out
    asking_for_the_length_consumes_nothing
    a_small_buffer_consumes_nothing
    it_reaches_over_all_parts_of_a_message
    it_may_come_between_two_parts
    a_cancelled_operation_takes_it_along
    it_is_of_its_session_alone
] }

on_cards! { [piv_rsa openpgp_rsa] [
    what_it_cannot_be_given_for_is_not_offered
    a_decryption_without_it_is_refused_and_goes_on_after_it
] }

const MESSAGE: &[u8] = b"one message, one PIN";

/// A session that is logged in, and the key that wants the PIN each time.
fn user(bench: &Bench<'_>) -> (Seat, ObjectHandle) {
    let seat = bench.user();
    let keys = seat.private_with(&[Attribute::AlwaysAuthenticate(true), Attribute::Sign(true)]);
    assert_eq!(keys.len(), 1, "one key wants the PIN each time");
    let key = keys[0];
    (seat, key)
}

/// The same, with a signature begun.
fn begun(bench: &Bench<'_>) -> (Seat, ObjectHandle) {
    let (seat, key) = user(bench);
    begin(&seat, key);
    (seat, key)
}

#[track_caller]
fn begin(seat: &Seat, key: ObjectHandle) {
    assert_eq!(
        seat.init(seat.list.C_SignInit, seat.signing(key), key),
        Ok(())
    );
}

fn sign(seat: &Seat) -> Result<Vec<u8>, RvError> {
    seat.run(seat.list.C_Sign, MESSAGE, 600)
}

fn a_signature_without_it_is_refused_and_goes_on_after_it(bench: &Bench<'_>) {
    let (seat, _) = begun(bench);
    let before = bench.stage.pins();
    let refused = bench.silently(|| sign(&seat));
    assert_eq!(refused, Err(RvError::UserNotLoggedIn));
    assert_eq!(seat.enter_once(), Ok(()));
    assert!(sign(&seat).is_ok());
    assert_eq!(bench.stage.pins(), before + 1, "the one the user entered");
}

fn it_is_good_for_one_signature(bench: &Bench<'_>) {
    let (seat, key) = begun(bench);
    assert_eq!(seat.enter_once(), Ok(()));
    assert!(sign(&seat).is_ok());
    begin(&seat, key);
    assert_eq!(sign(&seat), Err(RvError::UserNotLoggedIn));
}

fn it_needs_an_operation(bench: &Bench<'_>) {
    let (seat, _) = user(bench);
    let refused = bench.silently(|| seat.enter_once());
    assert_eq!(refused, Err(RvError::OperationNotInitialized));
    seat.logout().unwrap();
    let refused = bench.silently(|| seat.enter_once());
    assert_eq!(refused, Err(RvError::OperationNotInitialized));
}

fn it_needs_a_key_that_wants_it_and_leaves_other_operations_alone(bench: &Bench<'_>) {
    let seat = bench.user();
    let key = seat.signer();
    begin(&seat, key);
    let refused = bench.silently(|| seat.enter_once());
    assert_eq!(refused, Err(RvError::OperationNotInitialized));
    assert!(sign(&seat).is_ok(), "unaffected");
}

fn a_wrong_pin_leaves_the_operation_waiting(bench: &Bench<'_>) {
    let (seat, _) = begun(bench);
    let refused = seat.enter(CKU_CONTEXT_SPECIFIC, "999999");
    assert_eq!(refused, Err(RvError::PinIncorrect));
    let refused = bench.silently(|| sign(&seat));
    assert_eq!(refused, Err(RvError::UserNotLoggedIn));
    let state = seat.get_session_info().unwrap().session_state();
    assert_eq!(state, SessionState::RwUser, "the user stays logged in");
    assert_eq!(seat.enter_once(), Ok(()));
    assert!(sign(&seat).is_ok());
}

fn a_blocked_pin_logs_the_user_out(bench: &Bench<'_>) {
    let (seat, _) = begun(bench);
    for _ in 0..3 {
        let refused = seat.enter(CKU_CONTEXT_SPECIFIC, "999999");
        let codes = [Err(RvError::PinIncorrect), Err(RvError::PinLocked)];
        assert!(codes.contains(&refused), "{refused:?}");
    }
    let refused = seat.enter(CKU_CONTEXT_SPECIFIC, PIN);
    let codes = [
        Err(RvError::PinLocked),
        Err(RvError::OperationNotInitialized),
    ];
    assert!(codes.contains(&refused), "{refused:?}");
    let state = seat.get_session_info().unwrap().session_state();
    assert_eq!(state, SessionState::RwPublic);
    let refused = sign(&seat);
    let codes = [
        Err(RvError::UserNotLoggedIn),
        Err(RvError::OperationNotInitialized),
    ];
    assert!(codes.contains(&refused), "{refused:?}");
    assert_eq!(seat.enter_user(), Err(RvError::PinLocked));
}

fn asking_for_the_length_consumes_nothing(bench: &Bench<'_>) {
    let (seat, _) = begun(bench);
    let len = bench.silently(|| seat.ask(seat.list.C_Sign, MESSAGE).unwrap());
    assert_eq!(seat.enter_once(), Ok(()));
    let again = bench.silently(|| seat.ask(seat.list.C_Sign, MESSAGE).unwrap());
    assert_eq!(again, len);
    assert_eq!(seat.run(seat.list.C_Sign, MESSAGE, len).unwrap().len(), len);
}

fn a_small_buffer_consumes_nothing(bench: &Bench<'_>) {
    let (seat, _) = begun(bench);
    let len = seat.ask(seat.list.C_Sign, MESSAGE).unwrap();
    assert_eq!(seat.enter_once(), Ok(()));
    let small = bench.silently(|| seat.run(seat.list.C_Sign, MESSAGE, len - 1));
    assert_eq!(small, Err(RvError::BufferTooSmall));
    assert!(seat.run(seat.list.C_Sign, MESSAGE, len).is_ok());
}

fn it_reaches_over_all_parts_of_a_message(bench: &Bench<'_>) {
    let (seat, _) = begun(bench);
    assert_eq!(seat.enter_once(), Ok(()));
    for part in MESSAGE.chunks(3) {
        assert_eq!(seat.part(seat.list.C_SignUpdate, part), Ok(()));
    }
    assert!(seat.last(seat.list.C_SignFinal, 600).is_ok());
}

fn it_may_come_between_two_parts(bench: &Bench<'_>) {
    let (seat, _) = begun(bench);
    assert_eq!(seat.part(seat.list.C_SignUpdate, b"one"), Ok(()));
    assert_eq!(seat.enter_once(), Ok(()));
    assert_eq!(seat.part(seat.list.C_SignUpdate, b"two"), Ok(()));
    assert!(seat.last(seat.list.C_SignFinal, 600).is_ok());
}

fn a_cancelled_operation_takes_it_along(bench: &Bench<'_>) {
    let (seat, key) = begun(bench);
    assert_eq!(seat.enter_once(), Ok(()));
    seat.give_up(CKF_SIGN);
    begin(&seat, key);
    assert_eq!(sign(&seat), Err(RvError::UserNotLoggedIn));
}

fn it_is_of_its_session_alone(bench: &Bench<'_>) {
    let (one, key) = begun(bench);
    let two = bench.read_only();
    begin(&two, key);
    assert_eq!(one.enter_once(), Ok(()));
    assert_eq!(sign(&two), Err(RvError::UserNotLoggedIn));
    assert!(sign(&one).is_ok());
}

/// To unwrap and to derive is one call: there is no moment for a PIN between begin and end.
fn what_it_cannot_be_given_for_is_not_offered(bench: &Bench<'_>) {
    let (seat, key) = user(bench);
    let kinds = [AttributeType::Unwrap, AttributeType::Derive];
    let expected = [Attribute::Unwrap(false), Attribute::Derive(false)];
    assert_eq!(seat.get_attributes(key, &kinds).unwrap(), expected);
}

/// Where such a key decrypts at all.
fn a_decryption_without_it_is_refused_and_goes_on_after_it(bench: &Bench<'_>) {
    let (seat, key) = user(bench);
    let decrypts = seat.private_with(&[
        Attribute::AlwaysAuthenticate(true),
        Attribute::Decrypt(true),
    ]);
    let begun = seat.init(seat.list.C_DecryptInit, plain(CKM_RSA_PKCS), key);
    if decrypts.is_empty() {
        assert_eq!(begun, Err(RvError::KeyFunctionNotPermitted));
        return;
    }
    assert_eq!(begun, Ok(()));
    let public = seat.public_of(key);
    let sealed = seat
        .encrypt(&Mechanism::RsaPkcs, public, MESSAGE)
        .expect("C_Encrypt");
    let refused = bench.silently(|| seat.run(seat.list.C_Decrypt, &sealed, 256));
    assert_eq!(refused, Err(RvError::UserNotLoggedIn));
    assert_eq!(seat.enter_once(), Ok(()));
    assert_eq!(
        seat.run(seat.list.C_Decrypt, &sealed, 256).unwrap(),
        MESSAGE
    );
}
