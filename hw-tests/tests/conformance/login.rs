//! C_Login, C_LoginUser, C_Logout, C_SessionCancel (PKCS #11 3.2, 5.6): preconditions and effects.

use std::ptr;

use claviger_hw_tests::{
    ck,
    fixture::{
        module_process::code,
        token_fixture::{TestSession, TokenFixture, answered, checked, plain},
    },
    for_each_card,
    provision::{ADMIN_PIN, PIN},
};
use cryptoki::{
    error::RvError,
    mechanism::Mechanism,
    object::{AttributeType, ObjectClass},
    session::SessionState,
};
use cryptoki_sys::{
    CK_FLAGS, CK_USER_TYPE, CKF_DIGEST, CKF_FIND_OBJECTS, CKF_SIGN, CKR_ARGUMENTS_BAD, CKU_SO,
    CKU_USER,
};

for_each_card! { [piv openpgp] [
    an_unknown_type_of_user_is_refused
    the_user_logs_in_once
    so_login_during_user_login_is_rejected
    so_login_beside_a_read_only_session_is_rejected
    so_login_sets_the_so_state_and_excludes_other_logins
    read_only_session_cannot_open_during_so_login
    a_null_pin_is_a_bad_argument
    a_pin_of_impossible_length_is_incorrect_and_costs_no_try
    logout_needs_a_login
    login_user_without_a_name_is_login
    login_user_with_a_name_is_refused_before_the_card
    logout_ends_operations_on_private_keys_and_no_other
    logout_kills_the_handles_of_private_objects_for_ever
    logout_leaves_handles_of_public_objects_alive
    session_cancel_ends_the_operations_named_by_its_flags
    session_cancel_with_nothing_to_end_succeeds
    cancel_needs_a_session
    cancel_leaves_the_other_operations
    a_null_mechanism_cancels_its_operation
] }

fn an_unknown_type_of_user_is_refused(fixture: &TokenFixture<'_>) {
    let session = fixture.read_write();
    for user in [3, 7, CK_USER_TYPE::MAX] {
        let refused = fixture.silently(|| session.login_as(user, PIN));
        assert_eq!(refused, Err(RvError::UserTypeInvalid), "{user}");
    }
}

fn the_user_logs_in_once(fixture: &TokenFixture<'_>) {
    let (session, other) = (fixture.user(), fixture.read_only());
    for session in [&session, &other] {
        for pin in [PIN, "000000"] {
            let refused = fixture.silently(|| session.login_as(CKU_USER, pin));
            assert_eq!(refused, Err(RvError::UserAlreadyLoggedIn));
        }
    }
}

fn so_login_during_user_login_is_rejected(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let refused = fixture.silently(|| session.login_as(CKU_SO, ADMIN_PIN));
    assert_eq!(refused, Err(RvError::UserAnotherAlreadyLoggedIn));
}

fn so_login_beside_a_read_only_session_is_rejected(fixture: &TokenFixture<'_>) {
    let (reader, writer) = (fixture.read_only(), fixture.read_write());
    for session in [&reader, &writer] {
        let refused = fixture.silently(|| session.login_as(CKU_SO, ADMIN_PIN));
        assert_eq!(refused, Err(RvError::SessionReadOnlyExists));
    }
}

fn so_login_sets_the_so_state_and_excludes_other_logins(fixture: &TokenFixture<'_>) {
    let session = fixture.read_write();
    assert_eq!(session.login_as(CKU_SO, ADMIN_PIN), Ok(()));
    let other = fixture.read_write();
    for session in [&session, &other] {
        let state = session.get_session_info().unwrap().session_state();
        assert_eq!(state, SessionState::RwSecurityOfficer);
    }
    assert_eq!(
        session.login_as(CKU_SO, ADMIN_PIN),
        Err(RvError::UserAlreadyLoggedIn)
    );
    assert_eq!(
        session.login_user(),
        Err(RvError::UserAnotherAlreadyLoggedIn)
    );
    let private = [cryptoki::object::Attribute::Private(true)];
    assert_eq!(session.find_objects(&private).unwrap(), [], "not for him");
    session.logout().unwrap();
    assert_eq!(session.login_user(), Ok(()));
}

fn read_only_session_cannot_open_during_so_login(fixture: &TokenFixture<'_>) {
    let session = fixture.read_write();
    assert_eq!(session.login_as(CKU_SO, ADMIN_PIN), Ok(()));
    let refused = code(fixture.module.open_ro_session(fixture.slot));
    assert_eq!(refused, RvError::SessionReadWriteSoExists);
    session.logout().unwrap();
    fixture.read_only().end_session();
}

fn a_null_pin_is_a_bad_argument(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    let null = ptr::null_mut();
    let code = fixture.silently(|| ck!(fixture.raw, C_Login, session.id(), CKU_USER, null, 6));
    assert_eq!(checked(code), Err(RvError::ArgumentsBad));
    let code = fixture.silently(|| ck!(fixture.raw, C_Login, session.id(), CKU_USER, null, 0));
    let refused = [Err(RvError::ArgumentsBad), Err(RvError::PinIncorrect)];
    assert!(refused.contains(&checked(code)));
}

fn a_pin_of_impossible_length_is_incorrect_and_costs_no_try(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    let long = "1".repeat(4000);
    for pin in ["", "1", "12345", long.as_str()] {
        let refused = fixture.silently(|| session.login_as(CKU_USER, pin));
        assert_eq!(refused, Err(RvError::PinIncorrect), "{} bytes", pin.len());
    }
    assert_eq!(session.login_user(), Ok(()));
}

fn logout_needs_a_login(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    let refused = fixture.silently(|| code(session.logout()));
    assert_eq!(refused, RvError::UserNotLoggedIn);
    assert_eq!(session.login_user(), Ok(()));
    session.logout().unwrap();
    assert_eq!(code(session.logout()), RvError::UserNotLoggedIn);
}

/// C_LoginUser of the user.
fn login_user(session: &TestSession, pin: &str, name: Option<&str>) -> Result<(), RvError> {
    let function = session.list.C_LoginUser.expect("C_LoginUser");
    let (bytes, len) = (pin.as_ptr().cast_mut(), pin.len() as u64);
    let name_len = name.map_or(0, str::len) as u64;
    let name = name.map_or(ptr::null_mut(), |name| name.as_ptr().cast_mut());
    // SAFETY: PIN and name have these lengths, and are only read.
    checked(unsafe { function(session.id(), CKU_USER, bytes, len, name, name_len) })
}

fn login_user_without_a_name_is_login(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    assert_eq!(
        login_user(&session, "999999", None),
        Err(RvError::PinIncorrect)
    );
    assert_eq!(login_user(&session, PIN, None), Ok(()));
    let state = session.get_session_info().unwrap().session_state();
    assert_eq!(state, SessionState::RoUser);
    assert_eq!(
        login_user(&session, PIN, None),
        Err(RvError::UserAlreadyLoggedIn)
    );
    session.logout().unwrap();
    assert_eq!(login_user(&session, PIN, Some("")), Ok(()));
}

fn login_user_with_a_name_is_refused_before_the_card(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    let refused = fixture.silently(|| login_user(&session, PIN, Some("alice")));
    let codes = [Err(RvError::UserTypeInvalid), Err(RvError::ArgumentsBad)];
    assert!(codes.contains(&refused), "{refused:?}");
    let state = session.get_session_info().unwrap().session_state();
    assert_eq!(state, SessionState::RoPublic);
}

fn logout_ends_operations_on_private_keys_and_no_other(fixture: &TokenFixture<'_>) {
    let (session, other) = (fixture.user(), fixture.read_only());
    let key = session.signer();
    assert_eq!(
        session.init(session.list.C_SignInit, session.signing(key), key),
        Ok(())
    );
    assert_eq!(answered(session.digest_init(&Mechanism::Sha256)), Ok(()));
    other.logout().unwrap();
    let over = session.run(session.list.C_Sign, b"message", 600);
    assert_eq!(over, Err(RvError::OperationNotInitialized));
    assert_eq!(
        session
            .run(session.list.C_Digest, b"message", 32)
            .unwrap()
            .len(),
        32
    );
}

fn logout_kills_the_handles_of_private_objects_for_ever(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = session.signer();
    session.logout().unwrap();
    let dead = |session: &TestSession| {
        let asked = code(session.get_attributes(key, &[AttributeType::Class]));
        assert_eq!(asked, RvError::ObjectHandleInvalid);
        let mechanism = plain(cryptoki_sys::CKM_ECDSA);
        let begun = session.init(session.list.C_SignInit, mechanism, key);
        assert_eq!(begun, Err(RvError::KeyHandleInvalid));
    };
    dead(&session);
    assert_eq!(session.login_user(), Ok(()));
    dead(&session);
    assert_ne!(session.signer(), key, "a later login has new handles");
}

fn logout_leaves_handles_of_public_objects_alive(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let certificate = session.all(ObjectClass::CERTIFICATE)[0];
    session.logout().unwrap();
    let id = session.get_attributes(certificate, &[AttributeType::Id]);
    assert_eq!(id.expect("C_GetAttributeValue").len(), 1);
    assert_eq!(session.all(ObjectClass::CERTIFICATE)[0], certificate);
}

/// C_SessionCancel.
fn cancel(fixture: &TokenFixture<'_>, session: u64, flags: CK_FLAGS) -> Result<(), RvError> {
    checked(ck!(fixture.raw, C_SessionCancel, session, flags))
}

/// A session with an active signature, digest and search.
fn busy(fixture: &TokenFixture<'_>) -> TestSession {
    let session = fixture.user();
    let key = session.signer();
    assert_eq!(
        session.init(session.list.C_SignInit, session.signing(key), key),
        Ok(())
    );
    assert_eq!(answered(session.digest_init(&Mechanism::Sha256)), Ok(()));
    let code = ck!(
        fixture.raw,
        C_FindObjectsInit,
        session.id(),
        ptr::null_mut(),
        0
    );
    assert_eq!(checked(code), Ok(()));
    session
}

fn still_signs(session: &TestSession) -> bool {
    session.run(session.list.C_Sign, b"message", 600).is_ok()
}

fn still_digests(session: &TestSession) -> bool {
    session.run(session.list.C_Digest, b"message", 32).is_ok()
}

fn still_searches(fixture: &TokenFixture<'_>, session: &TestSession) -> bool {
    checked(ck!(fixture.raw, C_FindObjectsFinal, session.id())).is_ok()
}

fn session_cancel_ends_the_operations_named_by_its_flags(fixture: &TokenFixture<'_>) {
    let session = busy(fixture);
    let all = CKF_SIGN | CKF_DIGEST | CKF_FIND_OBJECTS;
    assert_eq!(
        fixture.silently(|| cancel(fixture, session.id(), all)),
        Ok(())
    );
    assert!(
        !still_signs(&session) && !still_digests(&session) && !still_searches(fixture, &session)
    );
    let over = session.run(session.list.C_Sign, b"message", 600);
    assert_eq!(over, Err(RvError::OperationNotInitialized));
}

fn session_cancel_with_nothing_to_end_succeeds(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    for flags in [0, CKF_SIGN, CKF_SIGN | CKF_DIGEST | CKF_FIND_OBJECTS] {
        assert_eq!(cancel(fixture, session.id(), flags), Ok(()));
    }
    let session = busy(fixture);
    assert_eq!(cancel(fixture, session.id(), 0), Ok(()));
    assert!(still_signs(&session) && still_digests(&session) && still_searches(fixture, &session));
}

fn cancel_needs_a_session(fixture: &TokenFixture<'_>) {
    assert_eq!(
        cancel(fixture, 0, CKF_SIGN),
        Err(RvError::SessionHandleInvalid)
    );
}

fn cancel_leaves_the_other_operations(fixture: &TokenFixture<'_>) {
    let session = busy(fixture);
    assert_eq!(cancel(fixture, session.id(), CKF_DIGEST), Ok(()));
    assert!(still_signs(&session) && !still_digests(&session) && still_searches(fixture, &session));
}

/// Since 3.0; for 2.40 it was a bad argument.
fn a_null_mechanism_cancels_its_operation(fixture: &TokenFixture<'_>) {
    let session = busy(fixture);
    let null = ptr::null_mut();
    let code = fixture.silently(|| ck!(fixture.raw, C_SignInit, session.id(), null, 0));
    assert_eq!(checked(code), Ok(()));
    let code = fixture.silently(|| ck!(fixture.raw, C_SignInit, session.id(), null, 0));
    assert_eq!(
        code, CKR_ARGUMENTS_BAD,
        "nothing is there to cancel, as in 2.40"
    );
    assert!(!still_signs(&session) && still_digests(&session) && still_searches(fixture, &session));
    session
        .digest_init(&Mechanism::Sha256)
        .expect("C_DigestInit");
    let code = ck!(fixture.raw, C_DigestInit, session.id(), null);
    assert_eq!(checked(code), Ok(()));
    assert!(!still_digests(&session));
}
