//! C_Login, C_LoginUser, C_Logout, C_SessionCancel (PKCS #11 3.2, 5.6): who may when, and what a login ends.

use std::ptr;

use claviger_hw_tests::{
    ck,
    fixture::{
        module_process::code,
        token_fixture::{Bench, Seat, answered, checked, plain},
    },
    on_cards,
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

on_cards! { [piv openpgp] [
    an_unknown_type_of_user_is_refused
    the_user_logs_in_once
    the_security_officer_waits_for_the_user_to_leave
    the_security_officer_wants_no_read_only_session
    the_security_officer_has_a_state_of_his_own
    no_read_only_session_beside_the_security_officer
    a_null_pin_is_a_bad_argument
    a_pin_of_impossible_length_is_incorrect_and_costs_no_try
    logout_needs_a_login
    login_user_without_a_name_is_login
    login_user_with_a_name_is_refused_before_the_card
    logout_ends_operations_on_private_keys_and_no_other
    logout_kills_the_handles_of_private_objects_for_ever
    logout_leaves_handles_of_public_objects_alive
    cancel_ends_what_its_flags_name
    cancel_of_nothing_succeeds
    cancel_needs_a_session
    cancel_leaves_the_other_operations
    a_null_mechanism_cancels_its_operation
] }

fn an_unknown_type_of_user_is_refused(bench: &Bench<'_>) {
    let seat = bench.read_write();
    for user in [3, 7, CK_USER_TYPE::MAX] {
        let refused = bench.silently(|| seat.enter(user, PIN));
        assert_eq!(refused, Err(RvError::UserTypeInvalid), "{user}");
    }
}

fn the_user_logs_in_once(bench: &Bench<'_>) {
    let (seat, other) = (bench.user(), bench.read_only());
    for seat in [&seat, &other] {
        for pin in [PIN, "000000"] {
            let refused = bench.silently(|| seat.enter(CKU_USER, pin));
            assert_eq!(refused, Err(RvError::UserAlreadyLoggedIn));
        }
    }
}

fn the_security_officer_waits_for_the_user_to_leave(bench: &Bench<'_>) {
    let seat = bench.user();
    let refused = bench.silently(|| seat.enter(CKU_SO, ADMIN_PIN));
    assert_eq!(refused, Err(RvError::UserAnotherAlreadyLoggedIn));
}

fn the_security_officer_wants_no_read_only_session(bench: &Bench<'_>) {
    let (reader, writer) = (bench.read_only(), bench.read_write());
    for seat in [&reader, &writer] {
        let refused = bench.silently(|| seat.enter(CKU_SO, ADMIN_PIN));
        assert_eq!(refused, Err(RvError::SessionReadOnlyExists));
    }
}

fn the_security_officer_has_a_state_of_his_own(bench: &Bench<'_>) {
    let seat = bench.read_write();
    assert_eq!(seat.enter(CKU_SO, ADMIN_PIN), Ok(()));
    let other = bench.read_write();
    for seat in [&seat, &other] {
        let state = seat.get_session_info().unwrap().session_state();
        assert_eq!(state, SessionState::RwSecurityOfficer);
    }
    assert_eq!(
        seat.enter(CKU_SO, ADMIN_PIN),
        Err(RvError::UserAlreadyLoggedIn)
    );
    assert_eq!(seat.enter_user(), Err(RvError::UserAnotherAlreadyLoggedIn));
    let private = [cryptoki::object::Attribute::Private(true)];
    assert_eq!(seat.find_objects(&private).unwrap(), [], "not for him");
    seat.logout().unwrap();
    assert_eq!(seat.enter_user(), Ok(()));
}

fn no_read_only_session_beside_the_security_officer(bench: &Bench<'_>) {
    let seat = bench.read_write();
    assert_eq!(seat.enter(CKU_SO, ADMIN_PIN), Ok(()));
    let refused = code(bench.module.open_ro_session(bench.slot));
    assert_eq!(refused, RvError::SessionReadWriteSoExists);
    seat.logout().unwrap();
    bench.read_only().leave();
}

fn a_null_pin_is_a_bad_argument(bench: &Bench<'_>) {
    let seat = bench.read_only();
    let null = ptr::null_mut();
    let code = bench.silently(|| ck!(bench.raw, C_Login, seat.id(), CKU_USER, null, 6));
    assert_eq!(checked(code), Err(RvError::ArgumentsBad));
    let code = bench.silently(|| ck!(bench.raw, C_Login, seat.id(), CKU_USER, null, 0));
    let refused = [Err(RvError::ArgumentsBad), Err(RvError::PinIncorrect)];
    assert!(refused.contains(&checked(code)));
}

fn a_pin_of_impossible_length_is_incorrect_and_costs_no_try(bench: &Bench<'_>) {
    let seat = bench.read_only();
    let long = "1".repeat(4000);
    for pin in ["", "1", "12345", long.as_str()] {
        let refused = bench.silently(|| seat.enter(CKU_USER, pin));
        assert_eq!(refused, Err(RvError::PinIncorrect), "{} bytes", pin.len());
    }
    assert_eq!(seat.enter_user(), Ok(()));
}

fn logout_needs_a_login(bench: &Bench<'_>) {
    let seat = bench.read_only();
    let refused = bench.silently(|| code(seat.logout()));
    assert_eq!(refused, RvError::UserNotLoggedIn);
    assert_eq!(seat.enter_user(), Ok(()));
    seat.logout().unwrap();
    assert_eq!(code(seat.logout()), RvError::UserNotLoggedIn);
}

/// C_LoginUser of the user.
fn login_user(seat: &Seat, pin: &str, name: Option<&str>) -> Result<(), RvError> {
    let function = seat.list.C_LoginUser.expect("C_LoginUser");
    let (bytes, len) = (pin.as_ptr().cast_mut(), pin.len() as u64);
    let name_len = name.map_or(0, str::len) as u64;
    let name = name.map_or(ptr::null_mut(), |name| name.as_ptr().cast_mut());
    // SAFETY: PIN and name have these lengths, and are only read.
    checked(unsafe { function(seat.id(), CKU_USER, bytes, len, name, name_len) })
}

fn login_user_without_a_name_is_login(bench: &Bench<'_>) {
    let seat = bench.read_only();
    assert_eq!(
        login_user(&seat, "999999", None),
        Err(RvError::PinIncorrect)
    );
    assert_eq!(login_user(&seat, PIN, None), Ok(()));
    let state = seat.get_session_info().unwrap().session_state();
    assert_eq!(state, SessionState::RoUser);
    assert_eq!(
        login_user(&seat, PIN, None),
        Err(RvError::UserAlreadyLoggedIn)
    );
    seat.logout().unwrap();
    assert_eq!(login_user(&seat, PIN, Some("")), Ok(()));
}

fn login_user_with_a_name_is_refused_before_the_card(bench: &Bench<'_>) {
    let seat = bench.read_only();
    let refused = bench.silently(|| login_user(&seat, PIN, Some("alice")));
    let codes = [Err(RvError::UserTypeInvalid), Err(RvError::ArgumentsBad)];
    assert!(codes.contains(&refused), "{refused:?}");
    let state = seat.get_session_info().unwrap().session_state();
    assert_eq!(state, SessionState::RoPublic);
}

fn logout_ends_operations_on_private_keys_and_no_other(bench: &Bench<'_>) {
    let (seat, other) = (bench.user(), bench.read_only());
    let key = seat.signer();
    assert_eq!(
        seat.init(seat.list.C_SignInit, seat.signing(key), key),
        Ok(())
    );
    assert_eq!(answered(seat.digest_init(&Mechanism::Sha256)), Ok(()));
    other.logout().unwrap();
    let over = seat.run(seat.list.C_Sign, b"message", 600);
    assert_eq!(over, Err(RvError::OperationNotInitialized));
    assert_eq!(
        seat.run(seat.list.C_Digest, b"message", 32).unwrap().len(),
        32
    );
}

fn logout_kills_the_handles_of_private_objects_for_ever(bench: &Bench<'_>) {
    let seat = bench.user();
    let key = seat.signer();
    seat.logout().unwrap();
    let dead = |seat: &Seat| {
        let asked = code(seat.get_attributes(key, &[AttributeType::Class]));
        assert_eq!(asked, RvError::ObjectHandleInvalid);
        let mechanism = plain(cryptoki_sys::CKM_ECDSA);
        let begun = seat.init(seat.list.C_SignInit, mechanism, key);
        assert_eq!(begun, Err(RvError::KeyHandleInvalid));
    };
    dead(&seat);
    assert_eq!(seat.enter_user(), Ok(()));
    dead(&seat);
    assert_ne!(seat.signer(), key, "a later login has new handles");
}

fn logout_leaves_handles_of_public_objects_alive(bench: &Bench<'_>) {
    let seat = bench.user();
    let certificate = seat.all(ObjectClass::CERTIFICATE)[0];
    seat.logout().unwrap();
    let id = seat.get_attributes(certificate, &[AttributeType::Id]);
    assert_eq!(id.expect("C_GetAttributeValue").len(), 1);
    assert_eq!(seat.all(ObjectClass::CERTIFICATE)[0], certificate);
}

/// C_SessionCancel.
fn cancel(bench: &Bench<'_>, session: u64, flags: CK_FLAGS) -> Result<(), RvError> {
    checked(ck!(bench.raw, C_SessionCancel, session, flags))
}

/// A signature, a digest and a search are under way.
fn busy(bench: &Bench<'_>) -> Seat {
    let seat = bench.user();
    let key = seat.signer();
    assert_eq!(
        seat.init(seat.list.C_SignInit, seat.signing(key), key),
        Ok(())
    );
    assert_eq!(answered(seat.digest_init(&Mechanism::Sha256)), Ok(()));
    let code = ck!(bench.raw, C_FindObjectsInit, seat.id(), ptr::null_mut(), 0);
    assert_eq!(checked(code), Ok(()));
    seat
}

fn still_signs(seat: &Seat) -> bool {
    seat.run(seat.list.C_Sign, b"message", 600).is_ok()
}

fn still_digests(seat: &Seat) -> bool {
    seat.run(seat.list.C_Digest, b"message", 32).is_ok()
}

fn still_searches(bench: &Bench<'_>, seat: &Seat) -> bool {
    checked(ck!(bench.raw, C_FindObjectsFinal, seat.id())).is_ok()
}

fn cancel_ends_what_its_flags_name(bench: &Bench<'_>) {
    let seat = busy(bench);
    let all = CKF_SIGN | CKF_DIGEST | CKF_FIND_OBJECTS;
    assert_eq!(bench.silently(|| cancel(bench, seat.id(), all)), Ok(()));
    assert!(!still_signs(&seat) && !still_digests(&seat) && !still_searches(bench, &seat));
    let over = seat.run(seat.list.C_Sign, b"message", 600);
    assert_eq!(over, Err(RvError::OperationNotInitialized));
}

fn cancel_of_nothing_succeeds(bench: &Bench<'_>) {
    let seat = bench.read_only();
    for flags in [0, CKF_SIGN, CKF_SIGN | CKF_DIGEST | CKF_FIND_OBJECTS] {
        assert_eq!(cancel(bench, seat.id(), flags), Ok(()));
    }
    let seat = busy(bench);
    assert_eq!(cancel(bench, seat.id(), 0), Ok(()));
    assert!(still_signs(&seat) && still_digests(&seat) && still_searches(bench, &seat));
}

fn cancel_needs_a_session(bench: &Bench<'_>) {
    assert_eq!(
        cancel(bench, 0, CKF_SIGN),
        Err(RvError::SessionHandleInvalid)
    );
}

fn cancel_leaves_the_other_operations(bench: &Bench<'_>) {
    let seat = busy(bench);
    assert_eq!(cancel(bench, seat.id(), CKF_DIGEST), Ok(()));
    assert!(still_signs(&seat) && !still_digests(&seat) && still_searches(bench, &seat));
}

/// Since 3.0; for 2.40 it was a bad argument.
fn a_null_mechanism_cancels_its_operation(bench: &Bench<'_>) {
    let seat = busy(bench);
    let null = ptr::null_mut();
    let code = bench.silently(|| ck!(bench.raw, C_SignInit, seat.id(), null, 0));
    assert_eq!(checked(code), Ok(()));
    let code = bench.silently(|| ck!(bench.raw, C_SignInit, seat.id(), null, 0));
    assert_eq!(
        code, CKR_ARGUMENTS_BAD,
        "nothing is there to cancel, as in 2.40"
    );
    assert!(!still_signs(&seat) && still_digests(&seat) && still_searches(bench, &seat));
    seat.digest_init(&Mechanism::Sha256).expect("C_DigestInit");
    let code = ck!(bench.raw, C_DigestInit, seat.id(), null);
    assert_eq!(checked(code), Ok(()));
    assert!(!still_digests(&seat));
}
