//! Message-based signing and verification (PKCS #11 3.2, 5.14 and 5.16): one init, many messages.

use std::ptr;

use claviger_hw_tests::{
    fixture::token_fixture::{TestSession, TokenFixture, checked, plain},
    for_each_card,
};
use cryptoki::{
    error::RvError,
    object::{Attribute, ObjectHandle},
};
use cryptoki_sys::{CK_MECHANISM, CK_ULONG, CKM_SHA256};

const MESSAGES: [&[u8]; 3] = [b"one", b"two, longer", b""];

for_each_card! { [piv openpgp piv_rsa openpgp_rsa piv_ec openpgp_ec] [
    one_init_signs_many_messages
    a_message_in_parts_is_the_same_message
    sign_message_length_query_sends_no_command
    a_small_buffer_keeps_the_message
    message_signing_is_rejected_before_init_and_after_final
    parts_come_in_their_order
    one_init_verifies_many_messages
    forged_signature_keeps_the_message_verification_operation
    a_message_is_verified_in_parts
    message_verification_after_final_returns_operation_not_initialized
    init_is_refused_like_that_of_other_signatures
    a_key_that_wants_the_pin_each_time_wants_it_for_each_message
] }

const NONE: Result<(), RvError> = Err(RvError::OperationNotInitialized);

fn init(session: &TestSession, mechanism: CK_MECHANISM, key: ObjectHandle) -> Result<(), RvError> {
    session.init(session.list.C_MessageSignInit, mechanism, key)
}

fn end(session: &TestSession) -> Result<(), RvError> {
    // SAFETY: no pointer is given.
    checked(unsafe { session.list.C_MessageSignFinal.unwrap()(session.id()) })
}

/// C_SignMessage with room for `room` bytes.
fn sign(session: &TestSession, message: &[u8], room: usize) -> Result<Vec<u8>, RvError> {
    let function = session.list.C_SignMessage.unwrap();
    let (data, len) = (message.as_ptr().cast_mut(), message.len() as CK_ULONG);
    let (mut made, mut made_len, null) = (vec![0; room], room as CK_ULONG, ptr::null_mut());
    let out = made.as_mut_ptr();
    // SAFETY: no parameter, and buffers of the lengths that are passed.
    checked(unsafe { function(session.id(), null, 0, data, len, out, &raw mut made_len) })?;
    made.truncate(made_len as usize);
    Ok(made)
}

/// The length that C_SignMessage returns without a buffer.
fn ask(session: &TestSession, message: &[u8]) -> Result<usize, RvError> {
    let function = session.list.C_SignMessage.unwrap();
    let (data, len) = (message.as_ptr().cast_mut(), message.len() as CK_ULONG);
    let (mut result, null) = (0, ptr::null_mut());
    // SAFETY: no parameter and no buffer.
    let code = unsafe {
        function(
            session.id(),
            null,
            0,
            data,
            len,
            null.cast(),
            &raw mut result,
        )
    };
    checked(code).map(|()| result as usize)
}

fn begin_message(session: &TestSession) -> Result<(), RvError> {
    let function = session.list.C_SignMessageBegin.unwrap();
    // SAFETY: no parameter.
    checked(unsafe { function(session.id(), ptr::null_mut(), 0) })
}

/// C_SignMessageNext with more to come.
fn more(session: &TestSession, part: &[u8]) -> Result<(), RvError> {
    let function = session.list.C_SignMessageNext.unwrap();
    let (data, len, null) = (
        part.as_ptr().cast_mut(),
        part.len() as CK_ULONG,
        ptr::null_mut(),
    );
    // SAFETY: a part with its length. A null length pointer means that more parts follow.
    let code = unsafe {
        function(
            session.id(),
            null,
            0,
            data,
            len,
            null.cast(),
            ptr::null_mut(),
        )
    };
    checked(code)
}

/// C_SignMessageNext with the last part.
fn last(session: &TestSession, part: &[u8]) -> Result<Vec<u8>, RvError> {
    let function = session.list.C_SignMessageNext.unwrap();
    let (data, len, null) = (
        part.as_ptr().cast_mut(),
        part.len() as CK_ULONG,
        ptr::null_mut(),
    );
    let (mut made, mut made_len) = (vec![0; 600], 600);
    let out = made.as_mut_ptr();
    // SAFETY: no parameter, and buffers of the lengths that are passed.
    checked(unsafe { function(session.id(), null, 0, data, len, out, &raw mut made_len) })?;
    made.truncate(made_len as usize);
    Ok(made)
}

/// A session of the user that may sign messages.
fn signing(fixture: &TokenFixture<'_>) -> (TestSession, ObjectHandle) {
    let session = fixture.user();
    let key = session.signer();
    assert_eq!(init(&session, session.signing(key), key), Ok(()));
    (session, key)
}

#[track_caller]
fn is_genuine(session: &TestSession, key: ObjectHandle, message: &[u8], signature: &[u8]) {
    let public = session.public_of(key);
    assert_eq!(
        session.init(session.list.C_VerifyInit, session.signing(key), public),
        Ok(())
    );
    assert_eq!(session.check_signature(message, signature), Ok(()));
}

fn one_init_signs_many_messages(fixture: &TokenFixture<'_>) {
    let (session, key) = signing(fixture);
    for message in MESSAGES {
        let signature = sign(&session, message, 600).expect("C_SignMessage");
        is_genuine(&session, key, message, &signature);
    }
    assert_eq!(end(&session), Ok(()));
}

fn a_message_in_parts_is_the_same_message(fixture: &TokenFixture<'_>) {
    let (session, key) = signing(fixture);
    for message in MESSAGES {
        assert_eq!(begin_message(&session), Ok(()));
        let (first, rest) = message.split_at(message.len() / 2);
        assert_eq!(more(&session, first), Ok(()));
        let signature = last(&session, rest).expect("C_SignMessageNext");
        is_genuine(&session, key, message, &signature);
    }
    let signature = sign(&session, b"whole", 600).expect("C_SignMessage");
    is_genuine(&session, key, b"whole", &signature);
    assert_eq!(end(&session), Ok(()));
}

fn sign_message_length_query_sends_no_command(fixture: &TokenFixture<'_>) {
    let (session, key) = signing(fixture);
    let len = fixture.silently(|| ask(&session, b"message").expect("C_SignMessage"));
    let signature = sign(&session, b"message", len).expect("C_SignMessage");
    assert_eq!(signature.len(), len);
    is_genuine(&session, key, b"message", &signature);
}

fn a_small_buffer_keeps_the_message(fixture: &TokenFixture<'_>) {
    let (session, key) = signing(fixture);
    let small = fixture.silently(|| sign(&session, b"message", 63));
    assert_eq!(small, Err(RvError::BufferTooSmall));
    let signature = sign(&session, b"message", 600).expect("C_SignMessage");
    is_genuine(&session, key, b"message", &signature);
}

fn message_signing_is_rejected_before_init_and_after_final(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let nothing = |session: &TestSession| {
        assert_eq!(sign(session, b"message", 600).map(drop), NONE);
        assert_eq!(begin_message(session), NONE);
        assert_eq!(more(session, b"part"), NONE);
        assert_eq!(end(session), NONE);
    };
    nothing(&session);
    let key = session.signer();
    assert_eq!(init(&session, session.signing(key), key), Ok(()));
    let again = init(&session, session.signing(key), key);
    assert_eq!(again, Err(RvError::OperationActive));
    assert_eq!(end(&session), Ok(()));
    nothing(&session);
}

fn parts_come_in_their_order(fixture: &TokenFixture<'_>) {
    let (session, key) = signing(fixture);
    assert_eq!(more(&session, b"part"), NONE, "no message has begun");
    assert_eq!(begin_message(&session), Ok(()));
    let refused = [Err(RvError::OperationActive), Err(RvError::FunctionFailed)];
    let result = begin_message(&session);
    assert!(refused.contains(&result), "{result:?}");
    if more(&session, b"a message") == Ok(()) {
        let signature = last(&session, b" goes on").expect("C_SignMessageNext");
        is_genuine(&session, key, b"a message goes on", &signature);
    }
}

/// C_VerifyMessage.
fn verify(session: &TestSession, message: &[u8], signature: &[u8]) -> Result<(), RvError> {
    let function = session.list.C_VerifyMessage.unwrap();
    let (data, len) = (message.as_ptr().cast_mut(), message.len() as CK_ULONG);
    let signature_len = signature.len() as CK_ULONG;
    let (signature, null) = (signature.as_ptr().cast_mut(), ptr::null_mut());
    // SAFETY: no parameter, and inputs of the lengths that are passed.
    checked(unsafe { function(session.id(), null, 0, data, len, signature, signature_len) })
}

/// C_VerifyMessageNext; with a signature, the part is the last.
fn verify_next(
    session: &TestSession,
    part: &[u8],
    signature: Option<&[u8]>,
) -> Result<(), RvError> {
    let function = session.list.C_VerifyMessageNext.unwrap();
    let (data, len) = (part.as_ptr().cast_mut(), part.len() as CK_ULONG);
    let signature_len = signature.map_or(0, <[u8]>::len) as CK_ULONG;
    let signature = signature.map_or(ptr::null_mut(), |bytes| bytes.as_ptr().cast_mut());
    // SAFETY: no parameter, and inputs of the lengths that are passed.
    let code = unsafe {
        function(
            session.id(),
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

fn begin_verification(session: &TestSession) -> Result<(), RvError> {
    let function = session.list.C_VerifyMessageBegin.unwrap();
    // SAFETY: no parameter.
    checked(unsafe { function(session.id(), ptr::null_mut(), 0) })
}

fn end_verification(session: &TestSession) -> Result<(), RvError> {
    // SAFETY: no pointer is given.
    checked(unsafe { session.list.C_MessageVerifyFinal.unwrap()(session.id()) })
}

/// A session that may verify messages, and the signatures over [`MESSAGES`].
fn verifying(fixture: &TokenFixture<'_>) -> (TestSession, Vec<Vec<u8>>) {
    let (session, key) = signing(fixture);
    let signatures = MESSAGES.map(|message| sign(&session, message, 600).expect("C_SignMessage"));
    assert_eq!(end(&session), Ok(()));
    let begun = session.init(
        session.list.C_MessageVerifyInit,
        session.signing(key),
        session.public_of(key),
    );
    assert_eq!(begun, Ok(()));
    (session, signatures.to_vec())
}

fn one_init_verifies_many_messages(fixture: &TokenFixture<'_>) {
    let (session, signatures) = verifying(fixture);
    fixture.silently(|| {
        for (message, signature) in MESSAGES.iter().zip(&signatures) {
            assert_eq!(verify(&session, message, signature), Ok(()));
        }
    });
    assert_eq!(end_verification(&session), Ok(()));
}

fn forged_signature_keeps_the_message_verification_operation(fixture: &TokenFixture<'_>) {
    let (session, signatures) = verifying(fixture);
    let result = verify(&session, b"another", &signatures[0]);
    assert_eq!(result, Err(RvError::SignatureInvalid));
    let result = verify(&session, MESSAGES[0], &signatures[0][1..]);
    assert_eq!(result, Err(RvError::SignatureLenRange));
    assert_eq!(verify(&session, MESSAGES[0], &signatures[0]), Ok(()));
}

fn a_message_is_verified_in_parts(fixture: &TokenFixture<'_>) {
    let (session, signatures) = verifying(fixture);
    assert_eq!(
        verify_next(&session, b"part", None),
        NONE,
        "no message has begun"
    );
    for (message, signature) in MESSAGES.iter().zip(&signatures) {
        let (first, rest) = message.split_at(message.len() / 2);
        assert_eq!(begin_verification(&session), Ok(()));
        assert_eq!(verify_next(&session, first, None), Ok(()));
        assert_eq!(verify_next(&session, rest, Some(signature)), Ok(()));
        assert_eq!(begin_verification(&session), Ok(()));
        let result = verify_next(&session, b"forged", Some(signature));
        assert_eq!(result, Err(RvError::SignatureInvalid));
    }
    assert_eq!(end_verification(&session), Ok(()));
}

fn message_verification_after_final_returns_operation_not_initialized(fixture: &TokenFixture<'_>) {
    let (session, signatures) = verifying(fixture);
    assert_eq!(end_verification(&session), Ok(()));
    assert_eq!(verify(&session, MESSAGES[0], &signatures[0]), NONE);
    assert_eq!(begin_verification(&session), NONE);
    assert_eq!(end_verification(&session), NONE);
}

fn init_is_refused_like_that_of_other_signatures(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = session.signer();
    let result = init(&session, plain(CKM_SHA256), key);
    assert_eq!(result, Err(RvError::MechanismInvalid));
    let result = init(&session, session.signing(key), session.public_of(key));
    let refused = [
        Err(RvError::KeyTypeInconsistent),
        Err(RvError::KeyFunctionNotPermitted),
        Err(RvError::MechanismInvalid),
        Err(RvError::KeyHandleInvalid),
    ];
    assert!(refused.contains(&result), "{result:?}");
    assert_eq!(end(&session), NONE, "nothing has begun");
}

fn a_key_that_wants_the_pin_each_time_wants_it_for_each_message(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let always = [Attribute::AlwaysAuthenticate(true), Attribute::Sign(true)];
    let key = session.private_with(&always)[0];
    if init(&session, session.signing(key), key).is_err() {
        // A key for which the PIN cannot be given in between may be left out.
        return;
    }
    for _ in 0..2 {
        let before = fixture.process.pins();
        let refused = fixture.silently(|| sign(&session, b"message", 600));
        assert_eq!(refused, Err(RvError::UserNotLoggedIn));
        assert_eq!(session.context_login(), Ok(()));
        let signature = sign(&session, b"message", 600).expect("C_SignMessage");
        is_genuine(&session, key, b"message", &signature);
        assert_eq!(fixture.process.pins(), before + 1);
    }
}
