//! Message-based signing and verification (PKCS #11 3.2, 5.14 and 5.16): one init, many messages.

use std::ptr;

use claviger_hw_tests::{
    fixture::token_fixture::{Bench, Seat, checked, plain},
    on_cards,
};
use cryptoki::{
    error::RvError,
    object::{Attribute, ObjectHandle},
};
use cryptoki_sys::{CK_MECHANISM, CK_ULONG, CKM_SHA256};

const MESSAGES: [&[u8]; 3] = [b"one", b"two, longer", b""];

on_cards! { [piv openpgp piv_rsa openpgp_rsa piv_ec openpgp_ec] [
    one_init_signs_many_messages
    a_message_in_parts_is_the_same_message
    asking_for_the_length_costs_nothing
    a_small_buffer_keeps_the_message
    nothing_is_signed_before_init_and_after_final
    parts_come_in_their_order
    one_init_verifies_many_messages
    a_forged_signature_does_not_end_it
    a_message_is_verified_in_parts
    nothing_is_verified_before_init_and_after_final
    init_is_refused_like_that_of_other_signatures
    a_key_that_wants_the_pin_each_time_wants_it_for_each_message
] }

const NONE: Result<(), RvError> = Err(RvError::OperationNotInitialized);

fn init(seat: &Seat, mechanism: CK_MECHANISM, key: ObjectHandle) -> Result<(), RvError> {
    seat.init(seat.list.C_MessageSignInit, mechanism, key)
}

fn end(seat: &Seat) -> Result<(), RvError> {
    // SAFETY: no pointer is given.
    checked(unsafe { seat.list.C_MessageSignFinal.unwrap()(seat.id()) })
}

/// C_SignMessage with room for `room` bytes.
fn sign(seat: &Seat, message: &[u8], room: usize) -> Result<Vec<u8>, RvError> {
    let function = seat.list.C_SignMessage.unwrap();
    let (data, len) = (message.as_ptr().cast_mut(), message.len() as CK_ULONG);
    let (mut made, mut made_len, null) = (vec![0; room], room as CK_ULONG, ptr::null_mut());
    let out = made.as_mut_ptr();
    // SAFETY: no parameter, and buffers of the lengths that are said.
    checked(unsafe { function(seat.id(), null, 0, data, len, out, &raw mut made_len) })?;
    made.truncate(made_len as usize);
    Ok(made)
}

/// The length that C_SignMessage tells without a buffer.
fn ask(seat: &Seat, message: &[u8]) -> Result<usize, RvError> {
    let function = seat.list.C_SignMessage.unwrap();
    let (data, len) = (message.as_ptr().cast_mut(), message.len() as CK_ULONG);
    let (mut told, null) = (0, ptr::null_mut());
    // SAFETY: no parameter and no buffer.
    let code = unsafe { function(seat.id(), null, 0, data, len, null.cast(), &raw mut told) };
    checked(code).map(|()| told as usize)
}

fn begin_message(seat: &Seat) -> Result<(), RvError> {
    let function = seat.list.C_SignMessageBegin.unwrap();
    // SAFETY: no parameter.
    checked(unsafe { function(seat.id(), ptr::null_mut(), 0) })
}

/// C_SignMessageNext with more to come.
fn more(seat: &Seat, part: &[u8]) -> Result<(), RvError> {
    let function = seat.list.C_SignMessageNext.unwrap();
    let (data, len, null) = (
        part.as_ptr().cast_mut(),
        part.len() as CK_ULONG,
        ptr::null_mut(),
    );
    // SAFETY: a part with its length; no place for a length says that more is to come.
    let code = unsafe { function(seat.id(), null, 0, data, len, null.cast(), ptr::null_mut()) };
    checked(code)
}

/// C_SignMessageNext with the last part.
fn last(seat: &Seat, part: &[u8]) -> Result<Vec<u8>, RvError> {
    let function = seat.list.C_SignMessageNext.unwrap();
    let (data, len, null) = (
        part.as_ptr().cast_mut(),
        part.len() as CK_ULONG,
        ptr::null_mut(),
    );
    let (mut made, mut made_len) = (vec![0; 600], 600);
    let out = made.as_mut_ptr();
    // SAFETY: no parameter, and buffers of the lengths that are said.
    checked(unsafe { function(seat.id(), null, 0, data, len, out, &raw mut made_len) })?;
    made.truncate(made_len as usize);
    Ok(made)
}

/// A session of the user that may sign messages.
fn signing(bench: &Bench<'_>) -> (Seat, ObjectHandle) {
    let seat = bench.user();
    let key = seat.signer();
    assert_eq!(init(&seat, seat.signing(key), key), Ok(()));
    (seat, key)
}

#[track_caller]
fn is_genuine(seat: &Seat, key: ObjectHandle, message: &[u8], signature: &[u8]) {
    let public = seat.public_of(key);
    assert_eq!(
        seat.init(seat.list.C_VerifyInit, seat.signing(key), public),
        Ok(())
    );
    assert_eq!(seat.judge(message, signature), Ok(()));
}

fn one_init_signs_many_messages(bench: &Bench<'_>) {
    let (seat, key) = signing(bench);
    for message in MESSAGES {
        let signature = sign(&seat, message, 600).expect("C_SignMessage");
        is_genuine(&seat, key, message, &signature);
    }
    assert_eq!(end(&seat), Ok(()));
}

fn a_message_in_parts_is_the_same_message(bench: &Bench<'_>) {
    let (seat, key) = signing(bench);
    for message in MESSAGES {
        assert_eq!(begin_message(&seat), Ok(()));
        let (first, rest) = message.split_at(message.len() / 2);
        assert_eq!(more(&seat, first), Ok(()));
        let signature = last(&seat, rest).expect("C_SignMessageNext");
        is_genuine(&seat, key, message, &signature);
    }
    let signature = sign(&seat, b"whole", 600).expect("C_SignMessage");
    is_genuine(&seat, key, b"whole", &signature);
    assert_eq!(end(&seat), Ok(()));
}

fn asking_for_the_length_costs_nothing(bench: &Bench<'_>) {
    let (seat, key) = signing(bench);
    let len = bench.silently(|| ask(&seat, b"message").expect("C_SignMessage"));
    let signature = sign(&seat, b"message", len).expect("C_SignMessage");
    assert_eq!(signature.len(), len);
    is_genuine(&seat, key, b"message", &signature);
}

fn a_small_buffer_keeps_the_message(bench: &Bench<'_>) {
    let (seat, key) = signing(bench);
    let small = bench.silently(|| sign(&seat, b"message", 63));
    assert_eq!(small, Err(RvError::BufferTooSmall));
    let signature = sign(&seat, b"message", 600).expect("C_SignMessage");
    is_genuine(&seat, key, b"message", &signature);
}

fn nothing_is_signed_before_init_and_after_final(bench: &Bench<'_>) {
    let seat = bench.user();
    let nothing = |seat: &Seat| {
        assert_eq!(sign(seat, b"message", 600).map(drop), NONE);
        assert_eq!(begin_message(seat), NONE);
        assert_eq!(more(seat, b"part"), NONE);
        assert_eq!(end(seat), NONE);
    };
    nothing(&seat);
    let key = seat.signer();
    assert_eq!(init(&seat, seat.signing(key), key), Ok(()));
    let again = init(&seat, seat.signing(key), key);
    assert_eq!(again, Err(RvError::OperationActive));
    assert_eq!(end(&seat), Ok(()));
    nothing(&seat);
}

fn parts_come_in_their_order(bench: &Bench<'_>) {
    let (seat, key) = signing(bench);
    assert_eq!(more(&seat, b"part"), NONE, "no message has begun");
    assert_eq!(begin_message(&seat), Ok(()));
    let refused = [Err(RvError::OperationActive), Err(RvError::FunctionFailed)];
    let told = begin_message(&seat);
    assert!(refused.contains(&told), "{told:?}");
    if more(&seat, b"a message") == Ok(()) {
        let signature = last(&seat, b" goes on").expect("C_SignMessageNext");
        is_genuine(&seat, key, b"a message goes on", &signature);
    }
}

/// C_VerifyMessage.
fn verify(seat: &Seat, message: &[u8], signature: &[u8]) -> Result<(), RvError> {
    let function = seat.list.C_VerifyMessage.unwrap();
    let (data, len) = (message.as_ptr().cast_mut(), message.len() as CK_ULONG);
    let signature_len = signature.len() as CK_ULONG;
    let (signature, null) = (signature.as_ptr().cast_mut(), ptr::null_mut());
    // SAFETY: no parameter, and inputs of the lengths that are said.
    checked(unsafe { function(seat.id(), null, 0, data, len, signature, signature_len) })
}

/// C_VerifyMessageNext; with a signature, the part is the last.
fn verify_next(seat: &Seat, part: &[u8], signature: Option<&[u8]>) -> Result<(), RvError> {
    let function = seat.list.C_VerifyMessageNext.unwrap();
    let (data, len) = (part.as_ptr().cast_mut(), part.len() as CK_ULONG);
    let signature_len = signature.map_or(0, <[u8]>::len) as CK_ULONG;
    let signature = signature.map_or(ptr::null_mut(), |bytes| bytes.as_ptr().cast_mut());
    // SAFETY: no parameter, and inputs of the lengths that are said.
    let code = unsafe {
        function(
            seat.id(),
            ptr::null_mut(),
            0,
            data,
            len,
            signature,
            signature_len,
        )
    };
    checked(code)
}

fn begin_verification(seat: &Seat) -> Result<(), RvError> {
    let function = seat.list.C_VerifyMessageBegin.unwrap();
    // SAFETY: no parameter.
    checked(unsafe { function(seat.id(), ptr::null_mut(), 0) })
}

fn end_verification(seat: &Seat) -> Result<(), RvError> {
    // SAFETY: no pointer is given.
    checked(unsafe { seat.list.C_MessageVerifyFinal.unwrap()(seat.id()) })
}

/// A session that may verify messages, and the signatures over [`MESSAGES`].
fn verifying(bench: &Bench<'_>) -> (Seat, Vec<Vec<u8>>) {
    let (seat, key) = signing(bench);
    let signatures = MESSAGES.map(|message| sign(&seat, message, 600).expect("C_SignMessage"));
    assert_eq!(end(&seat), Ok(()));
    let begun = seat.init(
        seat.list.C_MessageVerifyInit,
        seat.signing(key),
        seat.public_of(key),
    );
    assert_eq!(begun, Ok(()));
    (seat, signatures.to_vec())
}

fn one_init_verifies_many_messages(bench: &Bench<'_>) {
    let (seat, signatures) = verifying(bench);
    bench.silently(|| {
        for (message, signature) in MESSAGES.iter().zip(&signatures) {
            assert_eq!(verify(&seat, message, signature), Ok(()));
        }
    });
    assert_eq!(end_verification(&seat), Ok(()));
}

fn a_forged_signature_does_not_end_it(bench: &Bench<'_>) {
    let (seat, signatures) = verifying(bench);
    let told = verify(&seat, b"another", &signatures[0]);
    assert_eq!(told, Err(RvError::SignatureInvalid));
    let told = verify(&seat, MESSAGES[0], &signatures[0][1..]);
    assert_eq!(told, Err(RvError::SignatureLenRange));
    assert_eq!(verify(&seat, MESSAGES[0], &signatures[0]), Ok(()));
}

fn a_message_is_verified_in_parts(bench: &Bench<'_>) {
    let (seat, signatures) = verifying(bench);
    assert_eq!(
        verify_next(&seat, b"part", None),
        NONE,
        "no message has begun"
    );
    for (message, signature) in MESSAGES.iter().zip(&signatures) {
        let (first, rest) = message.split_at(message.len() / 2);
        assert_eq!(begin_verification(&seat), Ok(()));
        assert_eq!(verify_next(&seat, first, None), Ok(()));
        assert_eq!(verify_next(&seat, rest, Some(signature)), Ok(()));
        assert_eq!(begin_verification(&seat), Ok(()));
        let told = verify_next(&seat, b"forged", Some(signature));
        assert_eq!(told, Err(RvError::SignatureInvalid));
    }
    assert_eq!(end_verification(&seat), Ok(()));
}

fn nothing_is_verified_before_init_and_after_final(bench: &Bench<'_>) {
    let (seat, signatures) = verifying(bench);
    assert_eq!(end_verification(&seat), Ok(()));
    assert_eq!(verify(&seat, MESSAGES[0], &signatures[0]), NONE);
    assert_eq!(begin_verification(&seat), NONE);
    assert_eq!(end_verification(&seat), NONE);
}

fn init_is_refused_like_that_of_other_signatures(bench: &Bench<'_>) {
    let seat = bench.user();
    let key = seat.signer();
    let told = init(&seat, plain(CKM_SHA256), key);
    assert_eq!(told, Err(RvError::MechanismInvalid));
    let told = init(&seat, seat.signing(key), seat.public_of(key));
    let refused = [
        Err(RvError::KeyTypeInconsistent),
        Err(RvError::KeyFunctionNotPermitted),
        Err(RvError::MechanismInvalid),
        Err(RvError::KeyHandleInvalid),
    ];
    assert!(refused.contains(&told), "{told:?}");
    assert_eq!(end(&seat), NONE, "nothing has begun");
}

fn a_key_that_wants_the_pin_each_time_wants_it_for_each_message(bench: &Bench<'_>) {
    let seat = bench.user();
    let always = [Attribute::AlwaysAuthenticate(true), Attribute::Sign(true)];
    let key = seat.private_with(&always)[0];
    if init(&seat, seat.signing(key), key).is_err() {
        // A key for which the PIN cannot be given in between may be left out.
        return;
    }
    for _ in 0..2 {
        let before = bench.stage.pins();
        let refused = bench.silently(|| sign(&seat, b"message", 600));
        assert_eq!(refused, Err(RvError::UserNotLoggedIn));
        assert_eq!(seat.enter_once(), Ok(()));
        let signature = sign(&seat, b"message", 600).expect("C_SignMessage");
        is_genuine(&seat, key, b"message", &signature);
        assert_eq!(bench.stage.pins(), before + 1);
    }
}
