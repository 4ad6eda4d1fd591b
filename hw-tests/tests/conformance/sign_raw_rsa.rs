//! Signatures of hashes that the caller computes, signatures with data recovery, and parameters of EdDSA (PKCS #11 3.2, 6.1 and 6.3).

use claviger_hw_tests::{
    fixture::token_fixture::{TokenFixture, plain, with},
    for_each_card,
};
use cryptoki::error::RvError;
use cryptoki_sys::{CK_EDDSA_PARAMS, CKF_SIGN, CKM_ECDSA, CKM_EDDSA, CKM_RSA_PKCS};

const MESSAGE: &[u8] = b"what is signed";

for_each_card! { [piv_rsa openpgp_rsa] [
    data_that_does_not_fit_the_modulus_is_refused
    ckm_rsa_pkcs_signature_is_deterministic_and_recovers_its_data
    recovery_of_another_signature_fails
    sign_recover_signs_and_has_room_like_sign
] }

for_each_card! { [piv_ec openpgp_ec] [
    ckm_ecdsa_accepts_hashes_of_1_to_64_bytes_and_no_empty_hash
] }

for_each_card! { [openpgp] [
    eddsa_takes_no_prehash_and_no_context
] }

fn data_that_does_not_fit_the_modulus_is_refused(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = session.signer();
    for len in [246, 256, 1000] {
        assert_eq!(
            session.init(session.list.C_SignInit, plain(CKM_RSA_PKCS), key),
            Ok(())
        );
        let result = fixture.silently(|| session.run(session.list.C_Sign, &vec![7; len], 600));
        assert_eq!(result, Err(RvError::DataLenRange), "{len}");
        let over = session.run(session.list.C_Sign, MESSAGE, 600);
        assert_eq!(over, Err(RvError::OperationNotInitialized));
    }
}

fn ckm_rsa_pkcs_signature_is_deterministic_and_recovers_its_data(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = session.signer();
    let mut made = Vec::new();
    for _ in 0..2 {
        assert_eq!(
            session.init(session.list.C_SignInit, plain(CKM_RSA_PKCS), key),
            Ok(())
        );
        made.push(session.run(session.list.C_Sign, MESSAGE, 256).unwrap());
    }
    assert_eq!(made[0], made[1]);
    let recover = session.init(
        session.list.C_VerifyRecoverInit,
        plain(CKM_RSA_PKCS),
        session.public_of(key),
    );
    assert_eq!(recover, Ok(()));
    assert_eq!(
        session
            .run(session.list.C_VerifyRecover, &made[0], 256)
            .unwrap(),
        MESSAGE
    );
}

fn ckm_ecdsa_accepts_hashes_of_1_to_64_bytes_and_no_empty_hash(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = session.signer();
    for len in [1, 20, 28, 31, 32, 33, 48, 64] {
        let hash = vec![0xC7; len];
        assert_eq!(
            session.init(session.list.C_SignInit, plain(CKM_ECDSA), key),
            Ok(())
        );
        let signature = session.run(session.list.C_Sign, &hash, 64).unwrap();
        let public = session.public_of(key);
        assert_eq!(
            session.init(session.list.C_VerifyInit, plain(CKM_ECDSA), public),
            Ok(())
        );
        assert_eq!(session.check_signature(&hash, &signature), Ok(()), "{len}");
    }
    assert_eq!(
        session.init(session.list.C_SignInit, plain(CKM_ECDSA), key),
        Ok(())
    );
    let nothing = session.run(session.list.C_Sign, b"", 64);
    assert_eq!(nothing, Err(RvError::DataLenRange), "a hash of no bytes");
}

fn recovery_of_another_signature_fails(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = session.signer();
    assert_eq!(
        session.init(session.list.C_SignInit, plain(CKM_RSA_PKCS), key),
        Ok(())
    );
    let mut signature = session.run(session.list.C_Sign, MESSAGE, 256).unwrap();
    let recover = |signature: &[u8]| {
        let (list, public) = (session.list, session.public_of(key));
        let begun = session.init(list.C_VerifyRecoverInit, plain(CKM_RSA_PKCS), public);
        assert_eq!(begun, Ok(()));
        let result = session.run(list.C_VerifyRecover, signature, 256);
        let over = session.run(list.C_VerifyRecover, signature, 256);
        assert_eq!(over, Err(RvError::OperationNotInitialized));
        result
    };
    assert_eq!(recover(&signature).unwrap(), MESSAGE);
    assert_eq!(recover(&signature[1..]), Err(RvError::SignatureLenRange));
    signature[200] ^= 1;
    assert_eq!(recover(&signature), Err(RvError::SignatureInvalid));
    assert_eq!(recover(&[0; 256]), Err(RvError::SignatureInvalid));
}

fn sign_recover_signs_and_has_room_like_sign(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let (key, list) = (session.signer(), session.list);
    let none = session.run(list.C_SignRecover, MESSAGE, 256);
    assert_eq!(none, Err(RvError::OperationNotInitialized));
    assert_eq!(
        session.init(list.C_SignRecoverInit, plain(CKM_RSA_PKCS), key),
        Ok(())
    );
    let again = session.init(list.C_SignRecoverInit, plain(CKM_RSA_PKCS), key);
    assert_eq!(again, Err(RvError::OperationActive));
    fixture.silently(|| {
        assert_eq!(session.query_len(list.C_SignRecover, MESSAGE), Ok(256));
        let small = session.run(list.C_SignRecover, MESSAGE, 255);
        assert_eq!(small, Err(RvError::BufferTooSmall));
    });
    let signature = session.run(list.C_SignRecover, MESSAGE, 256).unwrap();
    let public = session.public_of(key);
    assert_eq!(
        session.init(list.C_VerifyRecoverInit, plain(CKM_RSA_PKCS), public),
        Ok(())
    );
    fixture.silently(|| {
        assert!(session.query_len(list.C_VerifyRecover, &signature).unwrap() >= MESSAGE.len());
        let small = session.run(list.C_VerifyRecover, &signature, 3);
        assert_eq!(small, Err(RvError::BufferTooSmall));
        assert_eq!(
            session.run(list.C_VerifyRecover, &signature, 256).unwrap(),
            MESSAGE
        );
    });
}

fn eddsa_takes_no_prehash_and_no_context(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = session.private(1);
    let mut context = *b"context";
    let mut parameter = CK_EDDSA_PARAMS {
        phFlag: 0,
        ulContextDataLen: 0,
        pContextData: std::ptr::null_mut(),
    };
    let pure = with(CKM_EDDSA, &mut parameter);
    assert_eq!(session.init(session.list.C_SignInit, pure, key), Ok(()));
    session.cancel(CKF_SIGN);
    parameter.phFlag = 1;
    let prehash = session.init(
        session.list.C_SignInit,
        with(CKM_EDDSA, &mut parameter),
        key,
    );
    assert_eq!(prehash, Err(RvError::MechanismParamInvalid));
    parameter.phFlag = 0;
    parameter.pContextData = context.as_mut_ptr();
    parameter.ulContextDataLen = 7;
    let bound = session.init(
        session.list.C_SignInit,
        with(CKM_EDDSA, &mut parameter),
        key,
    );
    assert_eq!(bound, Err(RvError::MechanismParamInvalid));
}
