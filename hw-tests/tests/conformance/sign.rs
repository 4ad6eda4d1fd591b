//! Signatures in one part and in several (PKCS #11 3.2, 5.13): call order, buffers, arguments.

use std::ptr;

use claviger_hw_tests::{
    ck,
    fixture::token_fixture::{TestSession, TokenFixture, checked, plain, with},
    for_each_card,
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

for_each_card! { [piv openpgp piv_rsa openpgp_rsa piv_ec openpgp_ec] [
    sign_before_init_returns_operation_not_initialized
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
    signature_has_the_length_of_its_length_query
    a_null_length_is_a_bad_argument
    a_message_that_is_not_there_is_a_bad_argument
    a_message_of_impossible_length_is_refused
    parts_make_the_same_message
    empty_sign_update_adds_no_data
    no_part_at_all_is_the_empty_message
    one_part_after_parts_is_refused
    the_last_part_has_room_like_the_only_one
    sign_update_sends_no_command_and_sign_final_sends_one
    the_signature_may_lie_over_the_message
    two_sessions_sign_at_the_same_time
    failed_sign_init_leaves_no_active_operation
    a_key_signs_again_and_again
] }

/// A session with a signature begun.
fn begun(fixture: &TokenFixture<'_>) -> (TestSession, ObjectHandle) {
    let session = fixture.user();
    let key = session.signer();
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

/// The signature over the message is one of this key.
#[track_caller]
fn is_genuine(session: &TestSession, key: ObjectHandle, message: &[u8], signature: &[u8]) {
    let public = session.public_of(key);
    assert_eq!(
        session.init(session.list.C_VerifyInit, session.signing(key), public),
        Ok(())
    );
    assert_eq!(session.check_signature(message, signature), Ok(()));
}

fn sign_before_init_returns_operation_not_initialized(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let none = RvError::OperationNotInitialized;
    assert_eq!(sign(&session), Err(none));
    assert_eq!(session.query_len(session.list.C_Sign, MESSAGE), Err(none));
    assert_eq!(
        session.update(session.list.C_SignUpdate, MESSAGE),
        Err(none)
    );
    assert_eq!(session.final_part(session.list.C_SignFinal, 600), Err(none));
}

fn one_signature_at_a_time_in_a_session(fixture: &TokenFixture<'_>) {
    let (session, key) = begun(fixture);
    let again = session.init(session.list.C_SignInit, session.signing(key), key);
    assert_eq!(again, Err(RvError::OperationActive));
    is_genuine(
        &session,
        key,
        MESSAGE,
        &sign(&session).expect("the first one goes on"),
    );
}

fn init_wants_a_private_key(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = session.signer();
    let mechanism = || session.signing(key);
    for handle in [0, 0x00DE_AD00, CK_ULONG::MAX] {
        let code = ck!(
            fixture.raw,
            C_SignInit,
            session.id(),
            &mut mechanism(),
            handle
        );
        assert_eq!(checked(code), Err(RvError::KeyHandleInvalid));
    }
    let refused = [
        Err(RvError::KeyHandleInvalid),
        Err(RvError::KeyTypeInconsistent),
        Err(RvError::KeyFunctionNotPermitted),
    ];
    for object in [
        session.public_of(key),
        session.all(ObjectClass::CERTIFICATE)[0],
    ] {
        let result = session.init(session.list.C_SignInit, mechanism(), object);
        assert!(refused.contains(&result), "{result:?}");
    }
}

fn init_wants_a_mechanism_that_signs(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = session.signer();
    for mechanism in [
        CKM_SHA256,
        CKM_AES_CBC,
        CKM_VENDOR_DEFINED | 7,
        CK_ULONG::MAX,
    ] {
        let result = session.init(session.list.C_SignInit, plain(mechanism), key);
        assert_eq!(result, Err(RvError::MechanismInvalid), "{mechanism:#x}");
    }
}

fn init_wants_a_mechanism_of_the_key(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = session.signer();
    let own = session.signing(key).mechanism;
    for other in [CKM_SHA256_RSA_PKCS, CKM_ECDSA_SHA256, CKM_EDDSA] {
        if other != own {
            let result = session.init(session.list.C_SignInit, plain(other), key);
            let refused = [
                Err(RvError::KeyTypeInconsistent),
                Err(RvError::MechanismInvalid),
            ];
            assert!(refused.contains(&result), "{other:#x}: {result:?}");
        }
    }
}

fn init_wants_a_key_that_may_sign(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let others = session.private_with(&[Attribute::Sign(false)]);
    assert!(!others.is_empty(), "a key to decrypt or to agree");
    for key in others {
        for mechanism in [CKM_SHA256_RSA_PKCS, CKM_ECDSA_SHA256, CKM_EDDSA] {
            let result = session.init(session.list.C_SignInit, plain(mechanism), key);
            let refused = [
                Err(RvError::KeyFunctionNotPermitted),
                Err(RvError::KeyTypeInconsistent),
                Err(RvError::MechanismInvalid),
            ];
            assert!(refused.contains(&result), "{mechanism:#x}: {result:?}");
        }
    }
}

fn init_touches_no_card(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = session.signer();
    let mechanism = session.signing(key);
    assert_eq!(
        fixture.silently(|| session.init(session.list.C_SignInit, mechanism, key)),
        Ok(())
    );
}

fn a_parameter_where_there_is_none_is_refused(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = session.signer();
    let kind = session.signing(key).mechanism;
    let mut parameter = [0_u8; 3];
    let result = session.init(session.list.C_SignInit, with(kind, &mut parameter), key);
    assert_eq!(result, Err(RvError::MechanismParamInvalid));
}

fn asking_for_the_length_leaves_the_operation_active(fixture: &TokenFixture<'_>) {
    let (session, key) = begun(fixture);
    let len = fixture.silently(|| {
        let asked = || session.query_len(session.list.C_Sign, MESSAGE).unwrap();
        let len = asked();
        assert_eq!([asked(), asked()], [len, len]);
        len
    });
    let signature = session.run(session.list.C_Sign, MESSAGE, len).unwrap();
    is_genuine(&session, key, MESSAGE, &signature);
}

fn a_small_buffer_leaves_the_operation_active(fixture: &TokenFixture<'_>) {
    let (session, key) = begun(fixture);
    let len = session.query_len(session.list.C_Sign, MESSAGE).unwrap();
    fixture.silently(|| {
        for room in [0, 1, len / 2, len - 1] {
            let small = session.run(session.list.C_Sign, MESSAGE, room);
            assert_eq!(small, Err(RvError::BufferTooSmall), "{room}");
        }
    });
    is_genuine(&session, key, MESSAGE, &sign(&session).unwrap());
}

fn a_signature_ends_the_operation(fixture: &TokenFixture<'_>) {
    let (session, _) = begun(fixture);
    assert!(sign(&session).is_ok());
    assert_eq!(sign(&session), Err(RvError::OperationNotInitialized));
}

fn signature_has_the_length_of_its_length_query(fixture: &TokenFixture<'_>) {
    let (session, _) = begun(fixture);
    let len = session.query_len(session.list.C_Sign, MESSAGE).unwrap();
    assert_eq!(sign(&session).unwrap().len(), len);
    assert!([64, 256].contains(&len));
}

fn a_null_length_is_a_bad_argument(fixture: &TokenFixture<'_>) {
    let (session, _) = begun(fixture);
    let (mut data, mut signature) = ([1_u8; 8], [0_u8; 600]);
    let (data, signature) = (data.as_mut_ptr(), signature.as_mut_ptr());
    let code = fixture.silently(|| {
        ck!(
            fixture.raw,
            C_Sign,
            session.id(),
            data,
            8,
            signature,
            ptr::null_mut()
        )
    });
    assert_eq!(checked(code), Err(RvError::ArgumentsBad));
}

fn a_message_that_is_not_there_is_a_bad_argument(fixture: &TokenFixture<'_>) {
    let (session, key) = begun(fixture);
    let (mut signature, mut len) = ([0_u8; 600], 600);
    let (null, signature) = (ptr::null_mut(), signature.as_mut_ptr());
    let code = fixture.silently(|| {
        ck!(
            fixture.raw,
            C_Sign,
            session.id(),
            null,
            8,
            signature,
            &raw mut len
        )
    });
    assert_eq!(checked(code), Err(RvError::ArgumentsBad));
    session.cancel(CKF_SIGN);
    begin(&session, key);
    let code = ck!(fixture.raw, C_SignUpdate, session.id(), ptr::null_mut(), 8);
    assert_eq!(checked(code), Err(RvError::ArgumentsBad));
}

fn a_message_of_impossible_length_is_refused(fixture: &TokenFixture<'_>) {
    let (session, key) = begun(fixture);
    let (mut data, mut signature, mut len) = ([1_u8; 8], [0_u8; 600], 600);
    let (data, signature) = (data.as_mut_ptr(), signature.as_mut_ptr());
    let huge = CK_ULONG::MAX;
    let code = ck!(
        fixture.raw,
        C_Sign,
        session.id(),
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
    session.cancel(CKF_SIGN);
    begin(&session, key);
    assert!(sign(&session).is_ok());
}

fn parts_make_the_same_message(fixture: &TokenFixture<'_>) {
    let (session, key) = begun(fixture);
    for part in MESSAGE.chunks(5) {
        assert_eq!(session.update(session.list.C_SignUpdate, part), Ok(()));
    }
    let signature = session.final_part(session.list.C_SignFinal, 600).unwrap();
    is_genuine(&session, key, MESSAGE, &signature);
    let over = session.final_part(session.list.C_SignFinal, 600);
    assert_eq!(over, Err(RvError::OperationNotInitialized));
}

fn empty_sign_update_adds_no_data(fixture: &TokenFixture<'_>) {
    let (session, key) = begun(fixture);
    let nothing = || {
        checked(ck!(
            fixture.raw,
            C_SignUpdate,
            session.id(),
            ptr::null_mut(),
            0
        ))
    };
    assert_eq!(nothing(), Ok(()));
    assert_eq!(session.update(session.list.C_SignUpdate, MESSAGE), Ok(()));
    assert_eq!(nothing(), Ok(()));
    let signature = session.final_part(session.list.C_SignFinal, 600).unwrap();
    is_genuine(&session, key, MESSAGE, &signature);
}

fn no_part_at_all_is_the_empty_message(fixture: &TokenFixture<'_>) {
    let (session, key) = begun(fixture);
    let signature = session.final_part(session.list.C_SignFinal, 600).unwrap();
    is_genuine(&session, key, b"", &signature);
    begin(&session, key);
    let signature = session.run(session.list.C_Sign, b"", 600).unwrap();
    is_genuine(&session, key, b"", &signature);
}

fn one_part_after_parts_is_refused(fixture: &TokenFixture<'_>) {
    let (session, _) = begun(fixture);
    assert_eq!(session.update(session.list.C_SignUpdate, MESSAGE), Ok(()));
    let result = fixture.silently(|| sign(&session));
    let refused = [
        Err(RvError::OperationActive),
        Err(RvError::FunctionFailed),
        Err(RvError::OperationNotInitialized),
    ];
    assert!(refused.contains(&result), "{result:?}");
}

fn the_last_part_has_room_like_the_only_one(fixture: &TokenFixture<'_>) {
    let (session, key) = begun(fixture);
    assert_eq!(session.update(session.list.C_SignUpdate, MESSAGE), Ok(()));
    let len = fixture.silently(|| {
        let len = session.query_final_len(session.list.C_SignFinal).unwrap();
        let small = session.final_part(session.list.C_SignFinal, len - 1);
        assert_eq!(small, Err(RvError::BufferTooSmall));
        assert_eq!(session.query_final_len(session.list.C_SignFinal), Ok(len));
        len
    });
    let signature = session.final_part(session.list.C_SignFinal, len).unwrap();
    is_genuine(&session, key, MESSAGE, &signature);
}

fn sign_update_sends_no_command_and_sign_final_sends_one(fixture: &TokenFixture<'_>) {
    let (session, _) = begun(fixture);
    fixture.silently(|| {
        for _ in 0..10 {
            assert_eq!(session.update(session.list.C_SignUpdate, MESSAGE), Ok(()));
        }
    });
    let (apdus, signature) = fixture
        .process
        .apdus(|| session.final_part(session.list.C_SignFinal, 600));
    assert!(signature.is_ok());
    assert_eq!(apdus, 1, "the signature is one command");
}

fn the_signature_may_lie_over_the_message(fixture: &TokenFixture<'_>) {
    let (session, key) = begun(fixture);
    let mut buffer = [0_u8; 600];
    buffer[..MESSAGE.len()].copy_from_slice(MESSAGE);
    let (start, mut len) = (buffer.as_mut_ptr(), 600);
    let data_len = MESSAGE.len() as CK_ULONG;
    let code = ck!(
        fixture.raw,
        C_Sign,
        session.id(),
        start,
        data_len,
        start,
        &raw mut len
    );
    assert_eq!(checked(code), Ok(()));
    is_genuine(&session, key, MESSAGE, &buffer[..len as usize]);
}

fn two_sessions_sign_at_the_same_time(fixture: &TokenFixture<'_>) {
    let (one, key) = begun(fixture);
    let two = fixture.read_only();
    begin(&two, key);
    assert_eq!(one.update(one.list.C_SignUpdate, b"one"), Ok(()));
    assert_eq!(two.update(two.list.C_SignUpdate, b"two"), Ok(()));
    let second = two.final_part(two.list.C_SignFinal, 600).unwrap();
    let first = one.final_part(one.list.C_SignFinal, 600).unwrap();
    is_genuine(&one, key, b"one", &first);
    is_genuine(&one, key, b"two", &second);
}

fn failed_sign_init_leaves_no_active_operation(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = session.signer();
    let result = session.init(session.list.C_SignInit, plain(CKM_SHA256), key);
    assert!(result.is_err());
    assert_eq!(sign(&session), Err(RvError::OperationNotInitialized));
    begin(&session, key);
    assert!(sign(&session).is_ok());
}

fn a_key_signs_again_and_again(fixture: &TokenFixture<'_>) {
    let (session, key) = begun(fixture);
    assert!(sign(&session).is_ok());
    for _ in 0..5 {
        begin(&session, key);
        let (apdus, signature) = fixture.process.apdus(|| sign(&session).unwrap());
        assert_eq!(apdus, 1, "a warm signature is one command");
        is_genuine(&session, key, MESSAGE, &signature);
    }
}
