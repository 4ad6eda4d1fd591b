//! Sessions and their states (PKCS #11 3.2, 5.6).

use std::ptr;

use claviger_hw_tests::{
    ck,
    fixture::{
        module_process::{code, key, log_in},
        null_calls::Table as _,
        token_fixture::{TestSession, TokenFixture, answered, checked},
    },
    for_each_card,
};
use cryptoki::{
    error::RvError,
    object::ObjectClass,
    session::{Session, SessionState},
};
use cryptoki_sys::{
    CK_FLAGS, CK_RV, CK_SESSION_HANDLE, CK_SESSION_INFO, CKF_ASYNC_SESSION, CKF_RW_SESSION,
    CKF_SERIAL_SESSION, CKS_RO_PUBLIC_SESSION, CKS_RO_USER_FUNCTIONS, CKS_RW_PUBLIC_SESSION,
    CKS_RW_USER_FUNCTIONS,
};

const NOWHERE: u64 = 0x7FFF_FFF0;

for_each_card! { [piv openpgp] [
    a_session_is_serial
    an_asynchronous_session_is_refused
    open_session_with_null_handle_pointer_is_rejected
    open_session_needs_a_slot
    session_info_reports_slot_state_and_flags
    session_info_costs_no_command_and_needs_room
    each_state_follows_login_and_logout
    a_new_session_inherits_the_login
    a_closed_session_is_closed_once
    handles_of_sessions_are_not_used_again
    closing_the_last_session_logs_out
    close_all_sessions_closes_all_and_logs_out
    close_all_sessions_with_none_open_succeeds
    three_hundred_sessions_live_at_once
    no_function_takes_a_session_that_is_none
    operation_of_one_session_is_not_active_in_another
    closing_a_session_ends_its_search_alone
] }

for_each_card! { [both] [
    the_tokens_of_one_card_have_logins_of_their_own
    close_all_sessions_leaves_the_other_token_alone
] }

fn open(fixture: &TokenFixture<'_>, slot: u64, flags: CK_FLAGS) -> (CK_RV, CK_SESSION_HANDLE) {
    let mut handle = 0;
    let null = ptr::null_mut();
    let code = ck!(
        fixture.raw,
        C_OpenSession,
        slot,
        flags,
        null,
        None,
        &raw mut handle
    );
    (code, handle)
}

fn a_session_is_serial(fixture: &TokenFixture<'_>) {
    for flags in [0, CKF_RW_SESSION] {
        let (code, _) = open(fixture, fixture.slot_id(), flags);
        assert_eq!(checked(code), Err(RvError::SessionParallelNotSupported));
    }
}

fn an_asynchronous_session_is_refused(fixture: &TokenFixture<'_>) {
    const ASYNC_NOT_SUPPORTED: u64 = 0x205;
    let flags = CKF_SERIAL_SESSION | CKF_ASYNC_SESSION;
    let (code, _) = open(fixture, fixture.slot_id(), flags);
    assert_eq!(code, ASYNC_NOT_SUPPORTED);
}

fn open_session_with_null_handle_pointer_is_rejected(fixture: &TokenFixture<'_>) {
    let (slot, null) = (fixture.slot_id(), ptr::null_mut());
    let flags = CKF_SERIAL_SESSION;
    let code = ck!(
        fixture.raw,
        C_OpenSession,
        slot,
        flags,
        null,
        None,
        ptr::null_mut()
    );
    assert_eq!(checked(code), Err(RvError::ArgumentsBad));
}

fn open_session_needs_a_slot(fixture: &TokenFixture<'_>) {
    let (code, _) = open(fixture, NOWHERE, CKF_SERIAL_SESSION);
    assert_eq!(checked(code), Err(RvError::SlotIdInvalid));
}

fn info(fixture: &TokenFixture<'_>, session: &TestSession) -> CK_SESSION_INFO {
    let mut info = CK_SESSION_INFO::default();
    let code = ck!(fixture.raw, C_GetSessionInfo, session.id(), &raw mut info);
    assert_eq!(checked(code), Ok(()));
    info
}

fn session_info_reports_slot_state_and_flags(fixture: &TokenFixture<'_>) {
    let (one, two) = (fixture.read_only(), fixture.read_write());
    let result = info(fixture, &one);
    assert_eq!(
        (result.slotID, result.ulDeviceError),
        (fixture.slot_id(), 0)
    );
    assert_eq!(result.flags, CKF_SERIAL_SESSION);
    assert_eq!(result.state, CKS_RO_PUBLIC_SESSION);
    let result = info(fixture, &two);
    assert_eq!(result.flags, CKF_SERIAL_SESSION | CKF_RW_SESSION);
    assert_eq!(result.state, CKS_RW_PUBLIC_SESSION);
}

fn session_info_costs_no_command_and_needs_room(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    fixture.silently(|| info(fixture, &session));
    let code = ck!(fixture.raw, C_GetSessionInfo, session.id(), ptr::null_mut());
    assert_eq!(checked(code), Err(RvError::ArgumentsBad));
}

fn each_state_follows_login_and_logout(fixture: &TokenFixture<'_>) {
    let (one, two) = (fixture.read_only(), fixture.read_write());
    let states = || (info(fixture, &one).state, info(fixture, &two).state);
    let public = (CKS_RO_PUBLIC_SESSION, CKS_RW_PUBLIC_SESSION);
    assert_eq!(states(), public);
    assert_eq!(one.login_user(), Ok(()));
    assert_eq!(states(), (CKS_RO_USER_FUNCTIONS, CKS_RW_USER_FUNCTIONS));
    two.logout().unwrap();
    assert_eq!(states(), public);
}

fn a_new_session_inherits_the_login(fixture: &TokenFixture<'_>) {
    let first = fixture.user();
    let second = fixture.read_only();
    let state = second.get_session_info().unwrap().session_state();
    assert_eq!(state, SessionState::RoUser);
    first.end_session();
    let state = second.get_session_info().unwrap().session_state();
    assert_eq!(state, SessionState::RoUser, "the login is the token's");
}

fn a_closed_session_is_closed_once(fixture: &TokenFixture<'_>) {
    let (_other, session) = (fixture.read_only(), fixture.read_only());
    let handle = session.id();
    session.end_session();
    for _ in 0..2 {
        let code = fixture.raw.close(handle);
        assert_eq!(checked(code), Err(RvError::SessionHandleInvalid));
    }
}

fn handles_of_sessions_are_not_used_again(fixture: &TokenFixture<'_>) {
    let mut seen = Vec::new();
    for _ in 0..50 {
        let session = fixture.read_only();
        assert!(
            session.id() != 0 && !seen.contains(&session.id()),
            "{}",
            session.id()
        );
        seen.push(session.id());
    }
}

fn closing_the_last_session_logs_out(fixture: &TokenFixture<'_>) {
    let (first, second) = (fixture.user(), fixture.read_only());
    first.end_session();
    assert_eq!(second.login_user(), Err(RvError::UserAlreadyLoggedIn));
    second.end_session();
    let third = fixture.read_only();
    let state = third.get_session_info().unwrap().session_state();
    assert_eq!(state, SessionState::RoPublic);
    assert_eq!(third.login_user(), Ok(()));
}

fn close_all(fixture: &TokenFixture<'_>, slot: u64) -> Result<(), RvError> {
    checked(ck!(fixture.raw, C_CloseAllSessions, slot))
}

fn close_all_sessions_closes_all_and_logs_out(fixture: &TokenFixture<'_>) {
    let sessions: Vec<TestSession> = (0..20).map(|_| fixture.read_only()).collect();
    assert_eq!(sessions[7].login_user(), Ok(()));
    assert_eq!(close_all(fixture, fixture.slot_id()), Ok(()));
    for session in &sessions {
        let gone = code(session.get_session_info());
        assert_eq!(gone, RvError::SessionHandleInvalid);
    }
    let session = fixture.read_only();
    let state = session.get_session_info().unwrap().session_state();
    assert_eq!(state, SessionState::RoPublic);
}

fn close_all_sessions_with_none_open_succeeds(fixture: &TokenFixture<'_>) {
    assert_eq!(close_all(fixture, fixture.slot_id()), Ok(()));
    fixture.read_only().end_session();
    assert_eq!(close_all(fixture, fixture.slot_id()), Ok(()));
    assert_eq!(close_all(fixture, NOWHERE), Err(RvError::SlotIdInvalid));
}

fn three_hundred_sessions_live_at_once(fixture: &TokenFixture<'_>) {
    let sessions: Vec<TestSession> = (0..300).map(|_| fixture.read_write()).collect();
    assert_eq!(sessions[0].login_user(), Ok(()));
    for session in &sessions {
        let state = session.get_session_info().unwrap().session_state();
        assert_eq!(state, SessionState::RwUser);
    }
    assert!(!sessions[299].all(ObjectClass::PRIVATE_KEY).is_empty());
    assert_eq!(close_all(fixture, fixture.slot_id()), Ok(()));
}

/// Calls with a session of 0 and null pointers. The invalid session is reported before the null pointers.
fn no_function_takes_a_session_that_is_none(fixture: &TokenFixture<'_>) {
    let sessionless = [
        "C_GetInfo",
        "C_GetSlotList",
        "C_GetSlotInfo",
        "C_GetTokenInfo",
        "C_GetMechanismList",
        "C_GetMechanismInfo",
        "C_InitToken",
        "C_OpenSession",
        "C_CloseAllSessions",
        "C_WaitForSlotEvent",
    ];
    let answers = fixture.raw.list().call_each();
    for (name, code) in answers
        .iter()
        .filter(|(name, _)| !sessionless.contains(name))
    {
        let result = checked(*code);
        let right = [
            Err(RvError::SessionHandleInvalid),
            Err(RvError::FunctionNotSupported),
        ];
        assert!(right.contains(&result), "{name}: {result:?}");
    }
}

fn operation_of_one_session_is_not_active_in_another(fixture: &TokenFixture<'_>) {
    let (one, two) = (fixture.user(), fixture.read_only());
    let key = one.signer();
    assert_eq!(one.init(one.list.C_SignInit, one.signing(key), key), Ok(()));
    let nothing = two.run(two.list.C_Sign, b"message", 600);
    assert_eq!(nothing, Err(RvError::OperationNotInitialized));
    assert!(one.run(one.list.C_Sign, b"message", 600).is_ok());
}

fn closing_a_session_ends_its_search_alone(fixture: &TokenFixture<'_>) {
    let (one, two) = (fixture.read_only(), fixture.read_only());
    let null = ptr::null_mut();
    for session in [&one, &two] {
        let code = ck!(fixture.raw, C_FindObjectsInit, session.id(), null, 0);
        assert_eq!(checked(code), Ok(()));
    }
    one.end_session();
    let code = ck!(fixture.raw, C_FindObjectsFinal, two.id());
    assert_eq!(checked(code), Ok(()));
}

/// A session on each token of a card with both applets.
fn on_each_token(fixture: &TokenFixture<'_>) -> [Session; 2] {
    let slots = fixture.module.get_slots_with_token().unwrap();
    let open = |n: usize| fixture.module.open_ro_session(slots[n]).unwrap();
    [open(0), open(1)]
}

fn the_tokens_of_one_card_have_logins_of_their_own(fixture: &TokenFixture<'_>) {
    let [piv, openpgp] = on_each_token(fixture);
    let state = |session: &Session| session.get_session_info().unwrap().session_state();
    log_in(&piv);
    assert_eq!(state(&piv), SessionState::RoUser);
    assert_eq!(state(&openpgp), SessionState::RoPublic);
    log_in(&openpgp);
    piv.logout().unwrap();
    assert_eq!(state(&piv), SessionState::RoPublic);
    assert_eq!(state(&openpgp), SessionState::RoUser);
    let key = key(&openpgp, 3);
    let mechanism = cryptoki::mechanism::Mechanism::Ecdsa;
    assert_eq!(
        answered(openpgp.sign(&mechanism, key, &[7; 32]))
            .unwrap()
            .len(),
        64
    );
}

fn close_all_sessions_leaves_the_other_token_alone(fixture: &TokenFixture<'_>) {
    let [piv, openpgp] = on_each_token(fixture);
    log_in(&openpgp);
    assert_eq!(close_all(fixture, fixture.slot_id()), Ok(()));
    assert_eq!(code(piv.get_session_info()), RvError::SessionHandleInvalid);
    let state = openpgp.get_session_info().unwrap().session_state();
    assert_eq!(state, SessionState::RoUser);
}
