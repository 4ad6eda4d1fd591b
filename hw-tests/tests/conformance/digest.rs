//! Digests (PKCS #11 3.2, 5.12), saved states (5.6.5), and digests of keys.

use std::ptr;

use cryptoki::{
    error::RvError,
    mechanism::Mechanism,
    object::{Attribute, KeyType, ObjectClass, ObjectHandle},
};
use cryptoki_sys::{
    CK_ULONG, CKF_DIGEST, CKM_ECDSA, CKM_SHA_1, CKM_SHA224, CKM_SHA256, CKM_SHA384, CKM_SHA512,
};
use sha1::Sha1;
use sha2::{Digest as _, Sha224, Sha256, Sha384, Sha512};

use claviger_hw_tests::{
    ck,
    fixture::token_fixture::{TestSession, TokenFixture, answered, checked, plain, with},
    for_each_card,
};

const MESSAGE: &[u8] = b"what is hashed";

for_each_card! { [piv openpgp] [
    each_hash_is_right
    a_megabyte_is_hashed_in_one_and_in_parts
    digests_need_no_card_and_no_login
    digest_before_init_returns_operation_not_initialized
    one_digest_at_a_time_in_a_session
    asking_for_the_length_leaves_the_digest_active
    a_small_buffer_leaves_the_digest_active
    one_part_after_parts_is_refused
    no_part_at_all_is_the_empty_message
    init_wants_a_hash
    a_message_that_is_not_there_is_a_bad_argument
    the_digest_may_lie_over_the_message
    a_secret_of_the_session_is_hashed_as_its_value
    a_key_of_the_card_is_indigestible
    saved_digest_state_continues_in_the_same_and_in_another_session
    a_state_needs_an_operation
    a_state_has_room_like_any_output
    a_forged_state_is_refused
    a_signature_is_no_state_to_save
] }

#[track_caller]
fn begin(session: &TestSession) {
    assert_eq!(answered(session.digest_init(&Mechanism::Sha256)), Ok(()));
}

fn digest(session: &TestSession) -> Result<Vec<u8>, RvError> {
    session.run(session.list.C_Digest, MESSAGE, 64)
}

fn each_hash_is_right(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    for message in [&b""[..], MESSAGE, &[0xA7; 1000]] {
        for (mechanism, expected) in [
            (CKM_SHA_1, Sha1::digest(message).to_vec()),
            (CKM_SHA224, Sha224::digest(message).to_vec()),
            (CKM_SHA256, Sha256::digest(message).to_vec()),
            (CKM_SHA384, Sha384::digest(message).to_vec()),
            (CKM_SHA512, Sha512::digest(message).to_vec()),
        ] {
            let code = ck!(
                fixture.raw,
                C_DigestInit,
                session.id(),
                &mut plain(mechanism)
            );
            assert_eq!(checked(code), Ok(()), "{mechanism:#x}");
            let result = session.run(session.list.C_Digest, message, expected.len());
            assert_eq!(result.unwrap(), expected, "{mechanism:#x}");
        }
    }
}

fn a_megabyte_is_hashed_in_one_and_in_parts(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    let message: Vec<u8> = (0..1_u32 << 20).map(|n| (n % 251) as u8).collect();
    let expected = Sha256::digest(&message).to_vec();
    begin(&session);
    assert_eq!(
        session.run(session.list.C_Digest, &message, 32).unwrap(),
        expected
    );
    begin(&session);
    for part in message.chunks(60_001) {
        assert_eq!(session.update(session.list.C_DigestUpdate, part), Ok(()));
    }
    assert_eq!(
        session.final_part(session.list.C_DigestFinal, 32).unwrap(),
        expected
    );
}

fn digests_need_no_card_and_no_login(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    fixture.silently(|| {
        begin(&session);
        assert!(digest(&session).is_ok());
    });
}

fn digest_before_init_returns_operation_not_initialized(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    let none = RvError::OperationNotInitialized;
    assert_eq!(digest(&session), Err(none));
    assert_eq!(
        session.update(session.list.C_DigestUpdate, MESSAGE),
        Err(none)
    );
    assert_eq!(
        session.final_part(session.list.C_DigestFinal, 64),
        Err(none)
    );
    begin(&session);
    assert!(digest(&session).is_ok());
    assert_eq!(digest(&session), Err(none), "it is over");
}

fn one_digest_at_a_time_in_a_session(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    begin(&session);
    let again = answered(session.digest_init(&Mechanism::Sha512));
    assert_eq!(again, Err(RvError::OperationActive));
    assert_eq!(digest(&session).unwrap().len(), 32, "the first one goes on");
}

fn asking_for_the_length_leaves_the_digest_active(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    begin(&session);
    assert_eq!(session.query_len(session.list.C_Digest, MESSAGE), Ok(32));
    assert_eq!(digest(&session).unwrap(), Sha256::digest(MESSAGE).to_vec());
    begin(&session);
    assert_eq!(session.update(session.list.C_DigestUpdate, MESSAGE), Ok(()));
    assert_eq!(session.query_final_len(session.list.C_DigestFinal), Ok(32));
    let result = session.final_part(session.list.C_DigestFinal, 32);
    assert_eq!(result.unwrap(), Sha256::digest(MESSAGE).to_vec());
}

fn a_small_buffer_leaves_the_digest_active(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    begin(&session);
    for room in [0, 31] {
        let small = session.run(session.list.C_Digest, MESSAGE, room);
        assert_eq!(small, Err(RvError::BufferTooSmall));
    }
    assert!(digest(&session).is_ok());
    begin(&session);
    assert_eq!(session.update(session.list.C_DigestUpdate, MESSAGE), Ok(()));
    let small = session.final_part(session.list.C_DigestFinal, 31);
    assert_eq!(small, Err(RvError::BufferTooSmall));
    assert!(session.final_part(session.list.C_DigestFinal, 32).is_ok());
}

fn one_part_after_parts_is_refused(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    begin(&session);
    assert_eq!(session.update(session.list.C_DigestUpdate, MESSAGE), Ok(()));
    let result = digest(&session);
    let refused = [Err(RvError::OperationActive), Err(RvError::FunctionFailed)];
    assert!(refused.contains(&result), "{result:?}");
}

fn no_part_at_all_is_the_empty_message(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    begin(&session);
    let result = session.final_part(session.list.C_DigestFinal, 32);
    assert_eq!(result.unwrap(), Sha256::digest(b"").to_vec());
}

fn init_wants_a_hash(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    for mechanism in [CKM_ECDSA, CK_ULONG::MAX] {
        let code = ck!(
            fixture.raw,
            C_DigestInit,
            session.id(),
            &mut plain(mechanism)
        );
        assert_eq!(checked(code), Err(RvError::MechanismInvalid));
    }
    let mut parameter = [0_u8; 4];
    let mut mechanism = with(CKM_SHA256, &mut parameter);
    let code = ck!(fixture.raw, C_DigestInit, session.id(), &raw mut mechanism);
    assert_eq!(checked(code), Err(RvError::MechanismParamInvalid));
}

fn a_message_that_is_not_there_is_a_bad_argument(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    begin(&session);
    let null = ptr::null_mut();
    let code = ck!(fixture.raw, C_DigestUpdate, session.id(), null, 5);
    assert_eq!(checked(code), Err(RvError::ArgumentsBad));
}

fn the_digest_may_lie_over_the_message(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    begin(&session);
    let mut buffer = [0x31; 40];
    let expected = Sha256::digest(buffer).to_vec();
    let (start, mut len) = (buffer.as_mut_ptr(), 40);
    let code = ck!(
        fixture.raw,
        C_Digest,
        session.id(),
        start,
        40,
        start,
        &raw mut len
    );
    assert_eq!((checked(code), len), (Ok(()), 32));
    assert_eq!(buffer[..32], expected);
}

fn secret(session: &TestSession, sensitive: bool) -> ObjectHandle {
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Value(b"secret".to_vec()),
        Attribute::Sensitive(sensitive),
    ];
    answered(session.create_object(&template)).expect("C_CreateObject")
}

fn a_secret_of_the_session_is_hashed_as_its_value(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    for sensitive in [false, true] {
        let key = secret(&session, sensitive);
        begin(&session);
        assert_eq!(
            session.update(session.list.C_DigestUpdate, b"before "),
            Ok(())
        );
        assert_eq!(answered(session.digest_key(key)), Ok(()));
        assert_eq!(
            session.update(session.list.C_DigestUpdate, b" after"),
            Ok(())
        );
        let result = session.final_part(session.list.C_DigestFinal, 32).unwrap();
        assert_eq!(result, Sha256::digest(b"before secret after").to_vec());
    }
}

fn a_key_of_the_card_is_indigestible(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = session.signer();
    begin(&session);
    let result = fixture.silently(|| answered(session.digest_key(key)));
    assert_eq!(result, Err(RvError::KeyIndigestible));
    session.cancel(CKF_DIGEST);
    begin(&session);
    let code = ck!(fixture.raw, C_DigestKey, session.id(), 0);
    assert_eq!(checked(code), Err(RvError::KeyHandleInvalid));
    let other = fixture.read_only();
    assert_eq!(
        answered(other.digest_key(key)),
        Err(RvError::OperationNotInitialized)
    );
}

/// C_SetOperationState without keys.
fn restore(session: &TestSession, state: &[u8]) -> Result<(), RvError> {
    let function = session.list.C_SetOperationState.unwrap();
    let (bytes, len) = (state.as_ptr().cast_mut(), state.len() as CK_ULONG);
    // SAFETY: the state has that length, and is only read.
    checked(unsafe { function(session.id(), bytes, len, 0, 0) })
}

fn save(session: &TestSession) -> Result<Vec<u8>, RvError> {
    session.final_part(session.list.C_GetOperationState, 4096)
}

fn saved_digest_state_continues_in_the_same_and_in_another_session(fixture: &TokenFixture<'_>) {
    let (one, two) = (fixture.read_only(), fixture.read_only());
    let (first, rest) = MESSAGE.split_at(5);
    begin(&one);
    assert_eq!(one.update(one.list.C_DigestUpdate, first), Ok(()));
    let state = save(&one).expect("C_GetOperationState");
    for session in [&one, &two, &one] {
        assert_eq!(restore(session, &state), Ok(()));
        assert_eq!(session.update(session.list.C_DigestUpdate, rest), Ok(()));
        let result = session.final_part(session.list.C_DigestFinal, 32).unwrap();
        assert_eq!(result, Sha256::digest(MESSAGE).to_vec());
    }
}

fn a_state_needs_an_operation(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    assert_eq!(save(&session), Err(RvError::OperationNotInitialized));
}

fn a_state_has_room_like_any_output(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    begin(&session);
    let len = session
        .query_final_len(session.list.C_GetOperationState)
        .unwrap();
    let small = session.final_part(session.list.C_GetOperationState, len - 1);
    assert_eq!(small, Err(RvError::BufferTooSmall));
    let state = session
        .final_part(session.list.C_GetOperationState, len)
        .unwrap();
    assert_eq!(state.len(), len);
    assert!(digest(&session).is_ok(), "the operation goes on");
}

fn a_forged_state_is_refused(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    begin(&session);
    let state = save(&session).unwrap();
    session.cancel(CKF_DIGEST);
    let long = [&state[..], &[0]].concat();
    for forged in [&b"state"[..], &state[1..], &long, &vec![0xFF; state.len()]] {
        assert_eq!(restore(&session, forged), Err(RvError::SavedStateInvalid));
    }
    let code = ck!(
        fixture.raw,
        C_SetOperationState,
        session.id(),
        ptr::null_mut(),
        9,
        0,
        0
    );
    let refused = [Err(RvError::ArgumentsBad), Err(RvError::SavedStateInvalid)];
    assert!(refused.contains(&checked(code)));
    let (bytes, len) = (state.as_ptr().cast_mut(), state.len() as CK_ULONG);
    let code = ck!(
        fixture.raw,
        C_SetOperationState,
        session.id(),
        bytes,
        len,
        5,
        0
    );
    let refused = [Err(RvError::KeyNotNeeded), Err(RvError::KeyHandleInvalid)];
    assert!(
        refused.contains(&checked(code)),
        "a digest has no key: {code:#x}"
    );
}

fn a_signature_is_no_state_to_save(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = session.signer();
    assert_eq!(
        session.init(session.list.C_SignInit, session.signing(key), key),
        Ok(())
    );
    assert_eq!(save(&session), Err(RvError::StateUnsaveable));
    assert!(
        session.run(session.list.C_Sign, MESSAGE, 600).is_ok(),
        "it goes on"
    );
}
