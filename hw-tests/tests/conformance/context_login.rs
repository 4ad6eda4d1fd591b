//! CKU_CONTEXT_SPECIFIC and CKA_ALWAYS_AUTHENTICATE (PKCS #11 3.2, 5.6.8): a PIN for one use of a key.

use claviger_hw_tests::{
    fixture::token_fixture::{TestSession, TokenFixture, plain},
    for_each_card,
    provision::PIN,
};
use cryptoki::{
    error::RvError,
    mechanism::Mechanism,
    object::{Attribute, AttributeType, ObjectHandle},
    session::SessionState,
};
use cryptoki_sys::{CKF_SIGN, CKM_RSA_PKCS, CKU_CONTEXT_SPECIFIC};

for_each_card! { [piv openpgp piv_ec openpgp_ec] [
    signature_without_context_login_is_rejected_and_continues_after_it
    it_is_good_for_one_signature
    it_needs_an_operation
    context_login_for_a_key_without_it_is_rejected_and_keeps_the_operation
    wrong_context_pin_keeps_the_operation_and_the_user_login
    a_blocked_pin_logs_the_user_out
    length_query_keeps_the_context_login_and_sends_no_command
    small_buffer_keeps_the_context_login_and_the_operation
    it_reaches_over_all_parts_of_a_message
    it_may_come_between_two_parts
    a_cancelled_operation_takes_it_along
    context_login_applies_to_its_own_session_only
] }

for_each_card! { [piv_rsa openpgp_rsa] [
    key_with_context_login_offers_no_unwrap_and_no_derive
    decryption_without_context_login_is_rejected_and_continues_after_it
] }

const MESSAGE: &[u8] = b"one message, one PIN";

/// A session that is logged in, and the key that wants the PIN each time.
fn user(fixture: &TokenFixture<'_>) -> (TestSession, ObjectHandle) {
    let session = fixture.user();
    let keys = session.private_with(&[Attribute::AlwaysAuthenticate(true), Attribute::Sign(true)]);
    assert_eq!(keys.len(), 1, "one key wants the PIN each time");
    let key = keys[0];
    (session, key)
}

/// The same, with a signature begun.
fn begun(fixture: &TokenFixture<'_>) -> (TestSession, ObjectHandle) {
    let (session, key) = user(fixture);
    begin(&session, key);
    (session, key)
}

#[track_caller]
fn begin(session: &TestSession, key: ObjectHandle) {
    assert_eq!(
        session.init(session.list.C_SignInit, session.signing(key), key),
        Ok(())
    );
}

fn sign(session: &TestSession) -> Result<Vec<u8>, RvError> {
    session.run(session.list.C_Sign, MESSAGE, 600)
}

fn signature_without_context_login_is_rejected_and_continues_after_it(fixture: &TokenFixture<'_>) {
    let (session, _) = begun(fixture);
    let before = fixture.process.pins();
    let refused = fixture.silently(|| sign(&session));
    assert_eq!(refused, Err(RvError::UserNotLoggedIn));
    assert_eq!(session.context_login(), Ok(()));
    assert!(sign(&session).is_ok());
    assert_eq!(
        fixture.process.pins(),
        before + 1,
        "the one the user entered"
    );
}

fn it_is_good_for_one_signature(fixture: &TokenFixture<'_>) {
    let (session, key) = begun(fixture);
    assert_eq!(session.context_login(), Ok(()));
    assert!(sign(&session).is_ok());
    begin(&session, key);
    assert_eq!(sign(&session), Err(RvError::UserNotLoggedIn));
}

fn it_needs_an_operation(fixture: &TokenFixture<'_>) {
    let (session, _) = user(fixture);
    let refused = fixture.silently(|| session.context_login());
    assert_eq!(refused, Err(RvError::OperationNotInitialized));
    session.logout().unwrap();
    let refused = fixture.silently(|| session.context_login());
    assert_eq!(refused, Err(RvError::OperationNotInitialized));
}

fn context_login_for_a_key_without_it_is_rejected_and_keeps_the_operation(
    fixture: &TokenFixture<'_>,
) {
    let session = fixture.user();
    let key = session.signer();
    begin(&session, key);
    let refused = fixture.silently(|| session.context_login());
    assert_eq!(refused, Err(RvError::OperationNotInitialized));
    assert!(sign(&session).is_ok(), "unaffected");
}

fn wrong_context_pin_keeps_the_operation_and_the_user_login(fixture: &TokenFixture<'_>) {
    let (session, _) = begun(fixture);
    let refused = session.login_as(CKU_CONTEXT_SPECIFIC, "999999");
    assert_eq!(refused, Err(RvError::PinIncorrect));
    let refused = fixture.silently(|| sign(&session));
    assert_eq!(refused, Err(RvError::UserNotLoggedIn));
    let state = session.get_session_info().unwrap().session_state();
    assert_eq!(state, SessionState::RwUser, "the user stays logged in");
    assert_eq!(session.context_login(), Ok(()));
    assert!(sign(&session).is_ok());
}

fn a_blocked_pin_logs_the_user_out(fixture: &TokenFixture<'_>) {
    let (session, _) = begun(fixture);
    for _ in 0..3 {
        let refused = session.login_as(CKU_CONTEXT_SPECIFIC, "999999");
        let codes = [Err(RvError::PinIncorrect), Err(RvError::PinLocked)];
        assert!(codes.contains(&refused), "{refused:?}");
    }
    let refused = session.login_as(CKU_CONTEXT_SPECIFIC, PIN);
    let codes = [
        Err(RvError::PinLocked),
        Err(RvError::OperationNotInitialized),
    ];
    assert!(codes.contains(&refused), "{refused:?}");
    let state = session.get_session_info().unwrap().session_state();
    assert_eq!(state, SessionState::RwPublic);
    let refused = sign(&session);
    let codes = [
        Err(RvError::UserNotLoggedIn),
        Err(RvError::OperationNotInitialized),
    ];
    assert!(codes.contains(&refused), "{refused:?}");
    assert_eq!(session.login_user(), Err(RvError::PinLocked));
}

fn length_query_keeps_the_context_login_and_sends_no_command(fixture: &TokenFixture<'_>) {
    let (session, _) = begun(fixture);
    let len = fixture.silently(|| session.query_len(session.list.C_Sign, MESSAGE).unwrap());
    assert_eq!(session.context_login(), Ok(()));
    let again = fixture.silently(|| session.query_len(session.list.C_Sign, MESSAGE).unwrap());
    assert_eq!(again, len);
    assert_eq!(
        session
            .run(session.list.C_Sign, MESSAGE, len)
            .unwrap()
            .len(),
        len
    );
}

fn small_buffer_keeps_the_context_login_and_the_operation(fixture: &TokenFixture<'_>) {
    let (session, _) = begun(fixture);
    let len = session.query_len(session.list.C_Sign, MESSAGE).unwrap();
    assert_eq!(session.context_login(), Ok(()));
    let small = fixture.silently(|| session.run(session.list.C_Sign, MESSAGE, len - 1));
    assert_eq!(small, Err(RvError::BufferTooSmall));
    assert!(session.run(session.list.C_Sign, MESSAGE, len).is_ok());
}

fn it_reaches_over_all_parts_of_a_message(fixture: &TokenFixture<'_>) {
    let (session, _) = begun(fixture);
    assert_eq!(session.context_login(), Ok(()));
    for part in MESSAGE.chunks(3) {
        assert_eq!(session.update(session.list.C_SignUpdate, part), Ok(()));
    }
    assert!(session.final_part(session.list.C_SignFinal, 600).is_ok());
}

fn it_may_come_between_two_parts(fixture: &TokenFixture<'_>) {
    let (session, _) = begun(fixture);
    assert_eq!(session.update(session.list.C_SignUpdate, b"one"), Ok(()));
    assert_eq!(session.context_login(), Ok(()));
    assert_eq!(session.update(session.list.C_SignUpdate, b"two"), Ok(()));
    assert!(session.final_part(session.list.C_SignFinal, 600).is_ok());
}

fn a_cancelled_operation_takes_it_along(fixture: &TokenFixture<'_>) {
    let (session, key) = begun(fixture);
    assert_eq!(session.context_login(), Ok(()));
    session.cancel(CKF_SIGN);
    begin(&session, key);
    assert_eq!(sign(&session), Err(RvError::UserNotLoggedIn));
}

fn context_login_applies_to_its_own_session_only(fixture: &TokenFixture<'_>) {
    let (one, key) = begun(fixture);
    let two = fixture.read_only();
    begin(&two, key);
    assert_eq!(one.context_login(), Ok(()));
    assert_eq!(sign(&two), Err(RvError::UserNotLoggedIn));
    assert!(sign(&one).is_ok());
}

/// To unwrap and to derive is one call: there is no moment for a PIN between begin and end.
fn key_with_context_login_offers_no_unwrap_and_no_derive(fixture: &TokenFixture<'_>) {
    let (session, key) = user(fixture);
    let kinds = [AttributeType::Unwrap, AttributeType::Derive];
    let expected = [Attribute::Unwrap(false), Attribute::Derive(false)];
    assert_eq!(session.get_attributes(key, &kinds).unwrap(), expected);
}

/// Where such a key decrypts at all.
fn decryption_without_context_login_is_rejected_and_continues_after_it(fixture: &TokenFixture<'_>) {
    let (session, key) = user(fixture);
    let decrypts = session.private_with(&[
        Attribute::AlwaysAuthenticate(true),
        Attribute::Decrypt(true),
    ]);
    let begun = session.init(session.list.C_DecryptInit, plain(CKM_RSA_PKCS), key);
    if decrypts.is_empty() {
        assert_eq!(begun, Err(RvError::KeyFunctionNotPermitted));
        return;
    }
    assert_eq!(begun, Ok(()));
    let public = session.public_of(key);
    let sealed = session
        .encrypt(&Mechanism::RsaPkcs, public, MESSAGE)
        .expect("C_Encrypt");
    let refused = fixture.silently(|| session.run(session.list.C_Decrypt, &sealed, 256));
    assert_eq!(refused, Err(RvError::UserNotLoggedIn));
    assert_eq!(session.context_login(), Ok(()));
    assert_eq!(
        session.run(session.list.C_Decrypt, &sealed, 256).unwrap(),
        MESSAGE
    );
}
