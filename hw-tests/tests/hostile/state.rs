//! C_GetOperationState, C_SetOperationState, C_SessionCancel, C_GenerateRandom, C_SeedRandom with hostile arguments
//! (PKCS #11 3.2, 5.6 and 5.20).

use claviger_hw_tests::{
    fixture::{
        raw_call::{Arg, HUGE, NULL, RawCall},
        token_fixture::{TestSession, TokenFixture},
    },
    for_each_card,
};
use cryptoki_sys::*;

use crate::{operations::operation_kinds, templates::session_arg};

for_each_card! { [piv openpgp] [
    get_operation_state_keeps_the_digest_with_null_length_or_small_buffer
    invalid_operation_state_keeps_the_active_digest
    altered_operation_state_is_rejected_or_restores_a_usable_digest
    a_key_for_a_state_that_needs_none_is_refused
    a_cancel_of_everything_ends_everything
    session_cancel_with_zero_or_unknown_flags_ends_no_operation
    generate_random_with_null_or_endless_buffer_returns_arguments_bad
    seed_random_with_null_or_endless_seed_returns_arguments_bad
] }

const SHA256: Arg<'static> = Arg::Mechanism(CKM_SHA256, &[]);

/// Begins a digest of "one", which stays active. Returns its state.
fn begun(calls: &mut RawCall<'_>, s: Arg<'_>) -> Vec<u8> {
    calls.expect_ok("C_DigestInit", &[s, SHA256]);
    calls.expect_ok("C_DigestUpdate", &[s, Arg::Bytes(b"one")]);
    let asked = calls.expect_ok("C_GetOperationState", &[s, Arg::Asked]).len;
    calls
        .expect_ok("C_GetOperationState", &[s, Arg::Out(asked)])
        .output
}

/// The result of the active digest after "two".
fn ended(calls: &mut RawCall<'_>, s: Arg<'_>) -> Vec<u8> {
    calls.expect_ok("C_DigestUpdate", &[s, Arg::Bytes(b"two")]);
    calls.expect_ok("C_DigestFinal", &[s, Arg::Out(32)]).output
}

fn expected(calls: &mut RawCall<'_>, s: Arg<'_>) -> Vec<u8> {
    calls.expect_ok("C_DigestInit", &[s, SHA256]);
    calls
        .expect_ok("C_Digest", &[s, Arg::Bytes(b"onetwo"), Arg::Out(32)])
        .output
}

fn get_operation_state_keeps_the_digest_with_null_length_or_small_buffer(
    fixture: &TokenFixture<'_>,
) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.read_only());
    let s = session_arg(&session);
    let right = expected(&mut calls, s);
    let none = CKR_OPERATION_NOT_INITIALIZED;
    calls.expect(none, "C_GetOperationState", "nothing", &[s, Arg::Asked]);
    let state = begun(&mut calls, s);
    for room in [0, 1, state.len() - 1] {
        let result = calls.call("C_GetOperationState", &[s, Arg::Out(room)]);
        assert_eq!(
            (result.code, result.len),
            (CKR_BUFFER_TOO_SMALL, state.len())
        );
    }
    let nowhere = [s, Arg::In(&state), NULL];
    calls.expect(
        CKR_ARGUMENTS_BAD,
        "C_GetOperationState",
        "no length",
        &nowhere,
    );
    assert_eq!(ended(&mut calls, s), right);
    calls.expect_ok("C_SetOperationState", &[s, Arg::Bytes(&state), NULL, NULL]);
    assert_eq!(ended(&mut calls, s), right);
}

fn invalid_operation_state_keeps_the_active_digest(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.read_only());
    let s = session_arg(&session);
    let right = expected(&mut calls, s);
    let state = begun(&mut calls, s);
    let longer = [&state[..], &[0]].concat();
    let (there, invalid) = (Arg::In(&state), CKR_SAVED_STATE_INVALID);
    let len = state.len();
    let garbage = vec![0xA5; 4096];
    for (code, pointer, len) in [
        (CKR_ARGUMENTS_BAD, NULL, 0),
        (CKR_ARGUMENTS_BAD, NULL, len),
        (CKR_ARGUMENTS_BAD, NULL, HUGE),
        (invalid, there, 0),
        (invalid, there, 1),
        (invalid, there, len - 1),
        (invalid, Arg::In(&longer), len + 1),
        (invalid, there, 4097),
        (invalid, there, HUGE),
        (invalid, Arg::In(&garbage), 4096),
    ] {
        let arguments = [s, pointer, Arg::Word(len), NULL, NULL];
        calls.expect(
            code,
            "C_SetOperationState",
            &format!("{len:#X} bytes"),
            &arguments,
        );
    }
    assert_eq!(ended(&mut calls, s), right, "it went on");
}

/// C_SetOperationState's arguments.
const fn saved<'a>(s: Arg<'a>, state: &'a [u8]) -> [Arg<'a>; 4] {
    [s, Arg::Bytes(state), NULL, NULL]
}

fn altered_operation_state_is_rejected_or_restores_a_usable_digest(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.read_only());
    let s = session_arg(&session);
    let right = expected(&mut calls, s);
    let state = begun(&mut calls, s);
    for at in 0..state.len() {
        for bit in [1, 0x80] {
            let mut changed = state.clone();
            changed[at] ^= bit;
            match calls.call("C_SetOperationState", &saved(s, &changed)).code {
                // Of a digest of something else: it ends as digests do.
                CKR_OK => {
                    calls.expect_ok("C_DigestUpdate", &[s, Arg::Bytes(b"two")]);
                    calls.expect_ok("C_DigestFinal", &[s, Arg::Out(64)]);
                    calls.expect_ok("C_SetOperationState", &saved(s, &state));
                }
                code => assert_eq!(code, CKR_SAVED_STATE_INVALID, "byte {at}"),
            }
        }
    }
    assert_eq!(ended(&mut calls, s), right);
}

fn a_key_for_a_state_that_needs_none_is_refused(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let s = session_arg(&session);
    let (key, state) = (calls.aes(s), begun(&mut calls, s));
    let unneeded = CKR_KEY_NOT_NEEDED;
    for (one, other) in [
        (key, NULL),
        (NULL, key),
        (Arg::Word(HUGE), NULL),
        (key, key),
    ] {
        let arguments = [s, Arg::Bytes(&state), one, other];
        calls.expect(unneeded, "C_SetOperationState", "a key", &arguments);
    }
    calls.expect_ok("C_EncryptInit", &[s, Arg::Mechanism(CKM_AES_ECB, &[]), key]);
    let unsaveable = CKR_STATE_UNSAVEABLE;
    calls.expect(
        unsaveable,
        "C_GetOperationState",
        "with a key",
        &[s, Arg::Out(4096)],
    );
    assert_eq!(ended(&mut calls, s).len(), 32);
}

/// Begins every operation that a session can have at the same time.
fn begin_all_operations(
    calls: &mut RawCall<'_>,
    session: &TestSession,
) -> Vec<(&'static str, Vec<Arg<'static>>)> {
    let mut begun: Vec<(&'static str, Vec<Arg<'static>>)> = Vec::new();
    for operation in operation_kinds(calls, session) {
        if begun.iter().all(|(name, _)| *name != operation.init.0) {
            operation.begin(calls);
            begun.push(operation.init.clone());
        }
    }
    let search = (
        "C_FindObjectsInit",
        vec![session_arg(session), NULL, Arg::Word(0)],
    );
    calls.expect_ok(search.0, &search.1);
    begun.push(search);
    begun
}

fn a_cancel_of_everything_ends_everything(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let begun = begin_all_operations(&mut calls, &session);
    calls.expect_ok("C_SessionCancel", &[session_arg(&session), Arg::Word(HUGE)]);
    for (name, arguments) in &begun {
        calls.expect_ok(name, arguments);
    }
}

fn session_cancel_with_zero_or_unknown_flags_ends_no_operation(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let begun = begin_all_operations(&mut calls, &session);
    let known = CKF_FIND_OBJECTS | CKF_DIGEST | CKF_ENCRYPT | CKF_DECRYPT | CKF_SIGN;
    let unknown = !(known as usize);
    for flags in [0, unknown, 1 << 31, 1 << 63] {
        calls.expect_ok(
            "C_SessionCancel",
            &[session_arg(&session), Arg::Word(flags)],
        );
    }
    for (name, arguments) in &begun {
        calls.expect(CKR_OPERATION_ACTIVE, name, "it goes on", arguments);
    }
}

fn generate_random_with_null_or_endless_buffer_returns_arguments_bad(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.read_only());
    let s = session_arg(&session);
    for (pointer, len) in [
        (NULL, 1),
        (NULL, HUGE),
        (Arg::In(&[0; 8]), HUGE),
        (Arg::In(&[0; 8]), HUGE / 2 + 1),
    ] {
        let arguments = [s, pointer, Arg::Word(len)];
        fixture.silently(|| calls.expect(CKR_ARGUMENTS_BAD, "C_GenerateRandom", "bad", &arguments));
    }
    for pointer in [NULL, Arg::Word(1), Arg::Word(HUGE)] {
        calls.expect_ok("C_GenerateRandom", &[s, pointer, Arg::Word(0)]);
    }
}

fn seed_random_with_null_or_endless_seed_returns_arguments_bad(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.read_only());
    let s = session_arg(&session);
    for (pointer, len) in [(NULL, 1), (NULL, HUGE), (Arg::In(b"seed"), HUGE)] {
        let arguments = [s, pointer, Arg::Word(len)];
        fixture.silently(|| calls.expect(CKR_ARGUMENTS_BAD, "C_SeedRandom", "bad", &arguments));
    }
    let refused = CKR_RANDOM_SEED_NOT_SUPPORTED;
    calls.expect(refused, "C_SeedRandom", "a seed", &[s, Arg::Bytes(b"seed")]);
}
