//! Digests (PKCS #11 3.2, 5.12), their saved states (5.6.5) and keys in them.

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
    fixture::token_fixture::{Bench, Seat, answered, checked, plain, with},
    on_cards,
};

const MESSAGE: &[u8] = b"what is hashed";

on_cards! { [piv openpgp] [
    each_hash_is_right
    a_megabyte_is_hashed_in_one_and_in_parts
    digests_need_no_card_and_no_login
    nothing_is_hashed_before_init
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
    a_saved_state_goes_on_in_the_same_and_in_another_session
    a_state_needs_an_operation
    a_state_has_room_like_any_output
    a_forged_state_is_refused
    a_signature_is_no_state_to_save
] }

#[track_caller]
fn begin(seat: &Seat) {
    assert_eq!(answered(seat.digest_init(&Mechanism::Sha256)), Ok(()));
}

fn digest(seat: &Seat) -> Result<Vec<u8>, RvError> {
    seat.run(seat.list.C_Digest, MESSAGE, 64)
}

fn each_hash_is_right(bench: &Bench<'_>) {
    let seat = bench.read_only();
    for message in [&b""[..], MESSAGE, &[0xA7; 1000]] {
        for (mechanism, expected) in [
            (CKM_SHA_1, Sha1::digest(message).to_vec()),
            (CKM_SHA224, Sha224::digest(message).to_vec()),
            (CKM_SHA256, Sha256::digest(message).to_vec()),
            (CKM_SHA384, Sha384::digest(message).to_vec()),
            (CKM_SHA512, Sha512::digest(message).to_vec()),
        ] {
            let code = ck!(bench.raw, C_DigestInit, seat.id(), &mut plain(mechanism));
            assert_eq!(checked(code), Ok(()), "{mechanism:#x}");
            let told = seat.run(seat.list.C_Digest, message, expected.len());
            assert_eq!(told.unwrap(), expected, "{mechanism:#x}");
        }
    }
}

fn a_megabyte_is_hashed_in_one_and_in_parts(bench: &Bench<'_>) {
    let seat = bench.read_only();
    let message: Vec<u8> = (0..1_u32 << 20).map(|n| (n % 251) as u8).collect();
    let expected = Sha256::digest(&message).to_vec();
    begin(&seat);
    assert_eq!(
        seat.run(seat.list.C_Digest, &message, 32).unwrap(),
        expected
    );
    begin(&seat);
    for part in message.chunks(60_001) {
        assert_eq!(seat.part(seat.list.C_DigestUpdate, part), Ok(()));
    }
    assert_eq!(seat.last(seat.list.C_DigestFinal, 32).unwrap(), expected);
}

fn digests_need_no_card_and_no_login(bench: &Bench<'_>) {
    let seat = bench.read_only();
    bench.silently(|| {
        begin(&seat);
        assert!(digest(&seat).is_ok());
    });
}

fn nothing_is_hashed_before_init(bench: &Bench<'_>) {
    let seat = bench.read_only();
    let none = RvError::OperationNotInitialized;
    assert_eq!(digest(&seat), Err(none));
    assert_eq!(seat.part(seat.list.C_DigestUpdate, MESSAGE), Err(none));
    assert_eq!(seat.last(seat.list.C_DigestFinal, 64), Err(none));
    begin(&seat);
    assert!(digest(&seat).is_ok());
    assert_eq!(digest(&seat), Err(none), "it is over");
}

fn one_digest_at_a_time_in_a_session(bench: &Bench<'_>) {
    let seat = bench.read_only();
    begin(&seat);
    let again = answered(seat.digest_init(&Mechanism::Sha512));
    assert_eq!(again, Err(RvError::OperationActive));
    assert_eq!(digest(&seat).unwrap().len(), 32, "the first one goes on");
}

fn asking_for_the_length_leaves_the_digest_active(bench: &Bench<'_>) {
    let seat = bench.read_only();
    begin(&seat);
    assert_eq!(seat.ask(seat.list.C_Digest, MESSAGE), Ok(32));
    assert_eq!(digest(&seat).unwrap(), Sha256::digest(MESSAGE).to_vec());
    begin(&seat);
    assert_eq!(seat.part(seat.list.C_DigestUpdate, MESSAGE), Ok(()));
    assert_eq!(seat.ask_last(seat.list.C_DigestFinal), Ok(32));
    let told = seat.last(seat.list.C_DigestFinal, 32);
    assert_eq!(told.unwrap(), Sha256::digest(MESSAGE).to_vec());
}

fn a_small_buffer_leaves_the_digest_active(bench: &Bench<'_>) {
    let seat = bench.read_only();
    begin(&seat);
    for room in [0, 31] {
        let small = seat.run(seat.list.C_Digest, MESSAGE, room);
        assert_eq!(small, Err(RvError::BufferTooSmall));
    }
    assert!(digest(&seat).is_ok());
    begin(&seat);
    assert_eq!(seat.part(seat.list.C_DigestUpdate, MESSAGE), Ok(()));
    let small = seat.last(seat.list.C_DigestFinal, 31);
    assert_eq!(small, Err(RvError::BufferTooSmall));
    assert!(seat.last(seat.list.C_DigestFinal, 32).is_ok());
}

fn one_part_after_parts_is_refused(bench: &Bench<'_>) {
    let seat = bench.read_only();
    begin(&seat);
    assert_eq!(seat.part(seat.list.C_DigestUpdate, MESSAGE), Ok(()));
    let told = digest(&seat);
    let refused = [Err(RvError::OperationActive), Err(RvError::FunctionFailed)];
    assert!(refused.contains(&told), "{told:?}");
}

fn no_part_at_all_is_the_empty_message(bench: &Bench<'_>) {
    let seat = bench.read_only();
    begin(&seat);
    let told = seat.last(seat.list.C_DigestFinal, 32);
    assert_eq!(told.unwrap(), Sha256::digest(b"").to_vec());
}

fn init_wants_a_hash(bench: &Bench<'_>) {
    let seat = bench.read_only();
    for mechanism in [CKM_ECDSA, CK_ULONG::MAX] {
        let code = ck!(bench.raw, C_DigestInit, seat.id(), &mut plain(mechanism));
        assert_eq!(checked(code), Err(RvError::MechanismInvalid));
    }
    let mut parameter = [0_u8; 4];
    let mut mechanism = with(CKM_SHA256, &mut parameter);
    let code = ck!(bench.raw, C_DigestInit, seat.id(), &raw mut mechanism);
    assert_eq!(checked(code), Err(RvError::MechanismParamInvalid));
}

fn a_message_that_is_not_there_is_a_bad_argument(bench: &Bench<'_>) {
    let seat = bench.read_only();
    begin(&seat);
    let null = ptr::null_mut();
    let code = ck!(bench.raw, C_DigestUpdate, seat.id(), null, 5);
    assert_eq!(checked(code), Err(RvError::ArgumentsBad));
}

fn the_digest_may_lie_over_the_message(bench: &Bench<'_>) {
    let seat = bench.read_only();
    begin(&seat);
    let mut buffer = [0x31; 40];
    let expected = Sha256::digest(buffer).to_vec();
    let (start, mut len) = (buffer.as_mut_ptr(), 40);
    let code = ck!(
        bench.raw,
        C_Digest,
        seat.id(),
        start,
        40,
        start,
        &raw mut len
    );
    assert_eq!((checked(code), len), (Ok(()), 32));
    assert_eq!(buffer[..32], expected);
}

fn secret(seat: &Seat, sensitive: bool) -> ObjectHandle {
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Value(b"secret".to_vec()),
        Attribute::Sensitive(sensitive),
    ];
    answered(seat.create_object(&template)).expect("C_CreateObject")
}

fn a_secret_of_the_session_is_hashed_as_its_value(bench: &Bench<'_>) {
    let seat = bench.user();
    for sensitive in [false, true] {
        let key = secret(&seat, sensitive);
        begin(&seat);
        assert_eq!(seat.part(seat.list.C_DigestUpdate, b"before "), Ok(()));
        assert_eq!(answered(seat.digest_key(key)), Ok(()));
        assert_eq!(seat.part(seat.list.C_DigestUpdate, b" after"), Ok(()));
        let told = seat.last(seat.list.C_DigestFinal, 32).unwrap();
        assert_eq!(told, Sha256::digest(b"before secret after").to_vec());
    }
}

fn a_key_of_the_card_is_indigestible(bench: &Bench<'_>) {
    let seat = bench.user();
    let key = seat.signer();
    begin(&seat);
    let told = bench.silently(|| answered(seat.digest_key(key)));
    assert_eq!(told, Err(RvError::KeyIndigestible));
    seat.give_up(CKF_DIGEST);
    begin(&seat);
    let code = ck!(bench.raw, C_DigestKey, seat.id(), 0);
    assert_eq!(checked(code), Err(RvError::KeyHandleInvalid));
    let other = bench.read_only();
    assert_eq!(
        answered(other.digest_key(key)),
        Err(RvError::OperationNotInitialized)
    );
}

/// C_SetOperationState without keys.
fn restore(seat: &Seat, state: &[u8]) -> Result<(), RvError> {
    let function = seat.list.C_SetOperationState.unwrap();
    let (bytes, len) = (state.as_ptr().cast_mut(), state.len() as CK_ULONG);
    // SAFETY: the state has that length, and is only read.
    checked(unsafe { function(seat.id(), bytes, len, 0, 0) })
}

fn save(seat: &Seat) -> Result<Vec<u8>, RvError> {
    seat.last(seat.list.C_GetOperationState, 4096)
}

fn a_saved_state_goes_on_in_the_same_and_in_another_session(bench: &Bench<'_>) {
    let (one, two) = (bench.read_only(), bench.read_only());
    let (first, rest) = MESSAGE.split_at(5);
    begin(&one);
    assert_eq!(one.part(one.list.C_DigestUpdate, first), Ok(()));
    let state = save(&one).expect("C_GetOperationState");
    for seat in [&one, &two, &one] {
        assert_eq!(restore(seat, &state), Ok(()));
        assert_eq!(seat.part(seat.list.C_DigestUpdate, rest), Ok(()));
        let told = seat.last(seat.list.C_DigestFinal, 32).unwrap();
        assert_eq!(told, Sha256::digest(MESSAGE).to_vec());
    }
}

fn a_state_needs_an_operation(bench: &Bench<'_>) {
    let seat = bench.read_only();
    assert_eq!(save(&seat), Err(RvError::OperationNotInitialized));
}

fn a_state_has_room_like_any_output(bench: &Bench<'_>) {
    let seat = bench.read_only();
    begin(&seat);
    let len = seat.ask_last(seat.list.C_GetOperationState).unwrap();
    let small = seat.last(seat.list.C_GetOperationState, len - 1);
    assert_eq!(small, Err(RvError::BufferTooSmall));
    let state = seat.last(seat.list.C_GetOperationState, len).unwrap();
    assert_eq!(state.len(), len);
    assert!(digest(&seat).is_ok(), "the operation goes on");
}

fn a_forged_state_is_refused(bench: &Bench<'_>) {
    let seat = bench.read_only();
    begin(&seat);
    let state = save(&seat).unwrap();
    seat.give_up(CKF_DIGEST);
    let long = [&state[..], &[0]].concat();
    for forged in [&b"state"[..], &state[1..], &long, &vec![0xFF; state.len()]] {
        assert_eq!(restore(&seat, forged), Err(RvError::SavedStateInvalid));
    }
    let code = ck!(
        bench.raw,
        C_SetOperationState,
        seat.id(),
        ptr::null_mut(),
        9,
        0,
        0
    );
    let refused = [Err(RvError::ArgumentsBad), Err(RvError::SavedStateInvalid)];
    assert!(refused.contains(&checked(code)));
    let (bytes, len) = (state.as_ptr().cast_mut(), state.len() as CK_ULONG);
    let code = ck!(bench.raw, C_SetOperationState, seat.id(), bytes, len, 5, 0);
    let refused = [Err(RvError::KeyNotNeeded), Err(RvError::KeyHandleInvalid)];
    assert!(
        refused.contains(&checked(code)),
        "a digest has no key: {code:#x}"
    );
}

fn a_signature_is_no_state_to_save(bench: &Bench<'_>) {
    let seat = bench.user();
    let key = seat.signer();
    assert_eq!(
        seat.init(seat.list.C_SignInit, seat.signing(key), key),
        Ok(())
    );
    assert_eq!(save(&seat), Err(RvError::StateUnsaveable));
    assert!(
        seat.run(seat.list.C_Sign, MESSAGE, 600).is_ok(),
        "it goes on"
    );
}
