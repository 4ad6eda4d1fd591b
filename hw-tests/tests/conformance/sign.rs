//! Signatures in one part and in many (PKCS #11 3.2, 5.13): order, room, arguments.

use std::ptr;

use claviger_hw_tests::{
    ck,
    fixture::token_fixture::{Bench, Seat, checked, plain, with},
    on_cards,
};
use cryptoki::{
    error::RvError,
    object::{Attribute, ObjectClass, ObjectHandle},
};
use cryptoki_sys::{
    CK_ULONG, CKF_SIGN, CKM_AES_CBC, CKM_ECDSA_SHA256, CKM_EDDSA, CKM_SHA256, CKM_SHA256_RSA_PKCS,
    CKM_VENDOR_DEFINED,
};

const MESSAGE: &[u8] = b"what is signed";

on_cards! { [piv openpgp piv_rsa openpgp_rsa piv_ec openpgp_ec] [
    nothing_is_signed_before_init
    one_signature_at_a_time_in_a_session
    init_wants_a_private_key
    init_wants_a_mechanism_that_signs
    init_wants_a_mechanism_of_the_key
    init_wants_a_key_that_may_sign
    init_touches_no_card
    a_parameter_where_there_is_none_is_refused
    asking_for_the_length_leaves_the_operation_active
    a_small_buffer_leaves_the_operation_active
    a_signature_ends_the_operation
    a_signature_is_as_long_as_it_was_said
    a_null_length_is_a_bad_argument
    a_message_that_is_not_there_is_a_bad_argument
    a_message_of_impossible_length_is_refused
    parts_make_the_same_message
    an_empty_part_adds_nothing
    no_part_at_all_is_the_empty_message
    one_part_after_parts_is_refused
    the_last_part_has_room_like_the_only_one
    parts_cost_the_card_nothing
    the_signature_may_lie_over_the_message
    two_sessions_sign_at_the_same_time
    a_failed_init_leaves_nothing_behind
    a_key_signs_again_and_again
] }

/// A session with a signature begun.
fn begun(bench: &Bench<'_>) -> (Seat, ObjectHandle) {
    let seat = bench.user();
    let key = seat.signer();
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

/// The signature over the message is one of this key.
#[track_caller]
fn is_genuine(seat: &Seat, key: ObjectHandle, message: &[u8], signature: &[u8]) {
    let public = seat.public_of(key);
    assert_eq!(
        seat.init(seat.list.C_VerifyInit, seat.signing(key), public),
        Ok(())
    );
    assert_eq!(seat.judge(message, signature), Ok(()));
}

fn nothing_is_signed_before_init(bench: &Bench<'_>) {
    let seat = bench.user();
    let none = RvError::OperationNotInitialized;
    assert_eq!(sign(&seat), Err(none));
    assert_eq!(seat.ask(seat.list.C_Sign, MESSAGE), Err(none));
    assert_eq!(seat.part(seat.list.C_SignUpdate, MESSAGE), Err(none));
    assert_eq!(seat.last(seat.list.C_SignFinal, 600), Err(none));
}

fn one_signature_at_a_time_in_a_session(bench: &Bench<'_>) {
    let (seat, key) = begun(bench);
    let again = seat.init(seat.list.C_SignInit, seat.signing(key), key);
    assert_eq!(again, Err(RvError::OperationActive));
    is_genuine(
        &seat,
        key,
        MESSAGE,
        &sign(&seat).expect("the first one goes on"),
    );
}

fn init_wants_a_private_key(bench: &Bench<'_>) {
    let seat = bench.user();
    let key = seat.signer();
    let mechanism = || seat.signing(key);
    for handle in [0, 0x00DE_AD00, CK_ULONG::MAX] {
        let code = ck!(bench.raw, C_SignInit, seat.id(), &mut mechanism(), handle);
        assert_eq!(checked(code), Err(RvError::KeyHandleInvalid));
    }
    let refused = [
        Err(RvError::KeyHandleInvalid),
        Err(RvError::KeyTypeInconsistent),
        Err(RvError::KeyFunctionNotPermitted),
    ];
    for object in [seat.public_of(key), seat.all(ObjectClass::CERTIFICATE)[0]] {
        let told = seat.init(seat.list.C_SignInit, mechanism(), object);
        assert!(refused.contains(&told), "{told:?}");
    }
}

fn init_wants_a_mechanism_that_signs(bench: &Bench<'_>) {
    let seat = bench.user();
    let key = seat.signer();
    for mechanism in [
        CKM_SHA256,
        CKM_AES_CBC,
        CKM_VENDOR_DEFINED | 7,
        CK_ULONG::MAX,
    ] {
        let told = seat.init(seat.list.C_SignInit, plain(mechanism), key);
        assert_eq!(told, Err(RvError::MechanismInvalid), "{mechanism:#x}");
    }
}

fn init_wants_a_mechanism_of_the_key(bench: &Bench<'_>) {
    let seat = bench.user();
    let key = seat.signer();
    let own = seat.signing(key).mechanism;
    for other in [CKM_SHA256_RSA_PKCS, CKM_ECDSA_SHA256, CKM_EDDSA] {
        if other != own {
            let told = seat.init(seat.list.C_SignInit, plain(other), key);
            let refused = [
                Err(RvError::KeyTypeInconsistent),
                Err(RvError::MechanismInvalid),
            ];
            assert!(refused.contains(&told), "{other:#x}: {told:?}");
        }
    }
}

fn init_wants_a_key_that_may_sign(bench: &Bench<'_>) {
    let seat = bench.user();
    let others = seat.private_with(&[Attribute::Sign(false)]);
    assert!(!others.is_empty(), "a key to decrypt or to agree");
    for key in others {
        for mechanism in [CKM_SHA256_RSA_PKCS, CKM_ECDSA_SHA256, CKM_EDDSA] {
            let told = seat.init(seat.list.C_SignInit, plain(mechanism), key);
            let refused = [
                Err(RvError::KeyFunctionNotPermitted),
                Err(RvError::KeyTypeInconsistent),
                Err(RvError::MechanismInvalid),
            ];
            assert!(refused.contains(&told), "{mechanism:#x}: {told:?}");
        }
    }
}

fn init_touches_no_card(bench: &Bench<'_>) {
    let seat = bench.user();
    let key = seat.signer();
    let mechanism = seat.signing(key);
    assert_eq!(
        bench.silently(|| seat.init(seat.list.C_SignInit, mechanism, key)),
        Ok(())
    );
}

fn a_parameter_where_there_is_none_is_refused(bench: &Bench<'_>) {
    let seat = bench.user();
    let key = seat.signer();
    let kind = seat.signing(key).mechanism;
    let mut parameter = [0_u8; 3];
    let told = seat.init(seat.list.C_SignInit, with(kind, &mut parameter), key);
    assert_eq!(told, Err(RvError::MechanismParamInvalid));
}

fn asking_for_the_length_leaves_the_operation_active(bench: &Bench<'_>) {
    let (seat, key) = begun(bench);
    let len = bench.silently(|| {
        let asked = || seat.ask(seat.list.C_Sign, MESSAGE).unwrap();
        let len = asked();
        assert_eq!([asked(), asked()], [len, len]);
        len
    });
    let signature = seat.run(seat.list.C_Sign, MESSAGE, len).unwrap();
    is_genuine(&seat, key, MESSAGE, &signature);
}

fn a_small_buffer_leaves_the_operation_active(bench: &Bench<'_>) {
    let (seat, key) = begun(bench);
    let len = seat.ask(seat.list.C_Sign, MESSAGE).unwrap();
    bench.silently(|| {
        for room in [0, 1, len / 2, len - 1] {
            let small = seat.run(seat.list.C_Sign, MESSAGE, room);
            assert_eq!(small, Err(RvError::BufferTooSmall), "{room}");
        }
    });
    is_genuine(&seat, key, MESSAGE, &sign(&seat).unwrap());
}

fn a_signature_ends_the_operation(bench: &Bench<'_>) {
    let (seat, _) = begun(bench);
    assert!(sign(&seat).is_ok());
    assert_eq!(sign(&seat), Err(RvError::OperationNotInitialized));
}

fn a_signature_is_as_long_as_it_was_said(bench: &Bench<'_>) {
    let (seat, _) = begun(bench);
    let len = seat.ask(seat.list.C_Sign, MESSAGE).unwrap();
    assert_eq!(sign(&seat).unwrap().len(), len);
    assert!([64, 256].contains(&len));
}

fn a_null_length_is_a_bad_argument(bench: &Bench<'_>) {
    let (seat, _) = begun(bench);
    let (mut data, mut signature) = ([1_u8; 8], [0_u8; 600]);
    let (data, signature) = (data.as_mut_ptr(), signature.as_mut_ptr());
    let code = bench.silently(|| {
        ck!(
            bench.raw,
            C_Sign,
            seat.id(),
            data,
            8,
            signature,
            ptr::null_mut()
        )
    });
    assert_eq!(checked(code), Err(RvError::ArgumentsBad));
}

fn a_message_that_is_not_there_is_a_bad_argument(bench: &Bench<'_>) {
    let (seat, key) = begun(bench);
    let (mut signature, mut len) = ([0_u8; 600], 600);
    let (null, signature) = (ptr::null_mut(), signature.as_mut_ptr());
    let code = bench.silently(|| {
        ck!(
            bench.raw,
            C_Sign,
            seat.id(),
            null,
            8,
            signature,
            &raw mut len
        )
    });
    assert_eq!(checked(code), Err(RvError::ArgumentsBad));
    seat.give_up(CKF_SIGN);
    begin(&seat, key);
    let code = ck!(bench.raw, C_SignUpdate, seat.id(), ptr::null_mut(), 8);
    assert_eq!(checked(code), Err(RvError::ArgumentsBad));
}

fn a_message_of_impossible_length_is_refused(bench: &Bench<'_>) {
    let (seat, key) = begun(bench);
    let (mut data, mut signature, mut len) = ([1_u8; 8], [0_u8; 600], 600);
    let (data, signature) = (data.as_mut_ptr(), signature.as_mut_ptr());
    let (session, huge) = (seat.id(), CK_ULONG::MAX);
    let code = ck!(
        bench.raw,
        C_Sign,
        session,
        data,
        huge,
        signature,
        &raw mut len
    );
    let refused = [
        Err(RvError::ArgumentsBad),
        Err(RvError::DataLenRange),
        Err(RvError::HostMemory),
    ];
    assert!(refused.contains(&checked(code)), "{code:#x}");
    seat.give_up(CKF_SIGN);
    begin(&seat, key);
    assert!(sign(&seat).is_ok());
}

fn parts_make_the_same_message(bench: &Bench<'_>) {
    let (seat, key) = begun(bench);
    for part in MESSAGE.chunks(5) {
        assert_eq!(seat.part(seat.list.C_SignUpdate, part), Ok(()));
    }
    let signature = seat.last(seat.list.C_SignFinal, 600).unwrap();
    is_genuine(&seat, key, MESSAGE, &signature);
    let over = seat.last(seat.list.C_SignFinal, 600);
    assert_eq!(over, Err(RvError::OperationNotInitialized));
}

fn an_empty_part_adds_nothing(bench: &Bench<'_>) {
    let (seat, key) = begun(bench);
    let nothing = || checked(ck!(bench.raw, C_SignUpdate, seat.id(), ptr::null_mut(), 0));
    assert_eq!(nothing(), Ok(()));
    assert_eq!(seat.part(seat.list.C_SignUpdate, MESSAGE), Ok(()));
    assert_eq!(nothing(), Ok(()));
    let signature = seat.last(seat.list.C_SignFinal, 600).unwrap();
    is_genuine(&seat, key, MESSAGE, &signature);
}

fn no_part_at_all_is_the_empty_message(bench: &Bench<'_>) {
    let (seat, key) = begun(bench);
    let signature = seat.last(seat.list.C_SignFinal, 600).unwrap();
    is_genuine(&seat, key, b"", &signature);
    begin(&seat, key);
    let signature = seat.run(seat.list.C_Sign, b"", 600).unwrap();
    is_genuine(&seat, key, b"", &signature);
}

fn one_part_after_parts_is_refused(bench: &Bench<'_>) {
    let (seat, _) = begun(bench);
    assert_eq!(seat.part(seat.list.C_SignUpdate, MESSAGE), Ok(()));
    let told = bench.silently(|| sign(&seat));
    let refused = [
        Err(RvError::OperationActive),
        Err(RvError::FunctionFailed),
        Err(RvError::OperationNotInitialized),
    ];
    assert!(refused.contains(&told), "{told:?}");
}

fn the_last_part_has_room_like_the_only_one(bench: &Bench<'_>) {
    let (seat, key) = begun(bench);
    assert_eq!(seat.part(seat.list.C_SignUpdate, MESSAGE), Ok(()));
    let len = bench.silently(|| {
        let len = seat.ask_last(seat.list.C_SignFinal).unwrap();
        let small = seat.last(seat.list.C_SignFinal, len - 1);
        assert_eq!(small, Err(RvError::BufferTooSmall));
        assert_eq!(seat.ask_last(seat.list.C_SignFinal), Ok(len));
        len
    });
    let signature = seat.last(seat.list.C_SignFinal, len).unwrap();
    is_genuine(&seat, key, MESSAGE, &signature);
}

fn parts_cost_the_card_nothing(bench: &Bench<'_>) {
    let (seat, _) = begun(bench);
    bench.silently(|| {
        for _ in 0..10 {
            assert_eq!(seat.part(seat.list.C_SignUpdate, MESSAGE), Ok(()));
        }
    });
    let (apdus, signature) = bench.stage.apdus(|| seat.last(seat.list.C_SignFinal, 600));
    assert!(signature.is_ok());
    assert_eq!(apdus, 1, "the signature is one command");
}

fn the_signature_may_lie_over_the_message(bench: &Bench<'_>) {
    let (seat, key) = begun(bench);
    let mut buffer = [0_u8; 600];
    buffer[..MESSAGE.len()].copy_from_slice(MESSAGE);
    let (start, mut len) = (buffer.as_mut_ptr(), 600);
    let data_len = MESSAGE.len() as CK_ULONG;
    let code = ck!(
        bench.raw,
        C_Sign,
        seat.id(),
        start,
        data_len,
        start,
        &raw mut len
    );
    assert_eq!(checked(code), Ok(()));
    is_genuine(&seat, key, MESSAGE, &buffer[..len as usize]);
}

fn two_sessions_sign_at_the_same_time(bench: &Bench<'_>) {
    let (one, key) = begun(bench);
    let two = bench.read_only();
    begin(&two, key);
    assert_eq!(one.part(one.list.C_SignUpdate, b"one"), Ok(()));
    assert_eq!(two.part(two.list.C_SignUpdate, b"two"), Ok(()));
    let second = two.last(two.list.C_SignFinal, 600).unwrap();
    let first = one.last(one.list.C_SignFinal, 600).unwrap();
    is_genuine(&one, key, b"one", &first);
    is_genuine(&one, key, b"two", &second);
}

fn a_failed_init_leaves_nothing_behind(bench: &Bench<'_>) {
    let seat = bench.user();
    let key = seat.signer();
    let told = seat.init(seat.list.C_SignInit, plain(CKM_SHA256), key);
    assert!(told.is_err());
    assert_eq!(sign(&seat), Err(RvError::OperationNotInitialized));
    begin(&seat, key);
    assert!(sign(&seat).is_ok());
}

fn a_key_signs_again_and_again(bench: &Bench<'_>) {
    let (seat, key) = begun(bench);
    assert!(sign(&seat).is_ok());
    for _ in 0..5 {
        begin(&seat, key);
        let (apdus, signature) = bench.stage.apdus(|| sign(&seat).unwrap());
        assert_eq!(apdus, 1, "a warm signature is one command");
        is_genuine(&seat, key, MESSAGE, &signature);
    }
}
