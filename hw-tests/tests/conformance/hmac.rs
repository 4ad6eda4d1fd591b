//! HMAC with secret session keys (PKCS #11 3.2, 6.20), computed on the host.

use claviger_hw_tests::{
    fixture::token_fixture::{TokenFixture, hex, plain},
    for_each_card,
};
use cryptoki::{error::RvError, object::KeyType};
use cryptoki_sys::{
    CK_ULONG, CKM_SHA_1_HMAC, CKM_SHA224_HMAC, CKM_SHA256_HMAC, CKM_SHA384_HMAC, CKM_SHA512_HMAC,
};

use crate::secret_keys::key;

for_each_card! { [piv openpgp] [
    hmac_is_that_of_the_standard
    hmac_in_parts_is_hmac_in_one
    hmac_verification_distinguishes_wrong_value_and_wrong_length
] }

/// RFC 4231, test case 2, and RFC 2202 for SHA-1.
const HMACS: [(CK_ULONG, &str); 5] = [
    (CKM_SHA_1_HMAC, "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"),
    (
        CKM_SHA224_HMAC,
        "a30e01098bc6dbbf45690f3a7e9e6d0f8bbea2a39e6148008fd05e44",
    ),
    (
        CKM_SHA256_HMAC,
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
    ),
    (
        CKM_SHA384_HMAC,
        "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649",
    ),
    (
        CKM_SHA512_HMAC,
        "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737",
    ),
];
const QUESTION: &[u8] = b"what do ya want for nothing?";

fn hmac_is_that_of_the_standard(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = key(&session, KeyType::GENERIC_SECRET, b"Jefe");
    for (mechanism, expected) in HMACS {
        assert_eq!(
            session.init(session.list.C_SignInit, plain(mechanism), key),
            Ok(())
        );
        let made = session.run(session.list.C_Sign, QUESTION, 64).unwrap();
        assert_eq!(made, hex(expected), "{mechanism:#x}");
        assert_eq!(
            session.init(session.list.C_VerifyInit, plain(mechanism), key),
            Ok(())
        );
        assert_eq!(session.check_signature(QUESTION, &made), Ok(()));
    }
}

fn hmac_in_parts_is_hmac_in_one(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = key(&session, KeyType::GENERIC_SECRET, b"Jefe");
    for (mechanism, expected) in HMACS {
        assert_eq!(
            session.init(session.list.C_SignInit, plain(mechanism), key),
            Ok(())
        );
        assert_eq!(
            session.init(session.list.C_VerifyInit, plain(mechanism), key),
            Ok(())
        );
        for part in QUESTION.chunks(5) {
            assert_eq!(session.update(session.list.C_SignUpdate, part), Ok(()));
            assert_eq!(session.update(session.list.C_VerifyUpdate, part), Ok(()));
        }
        let made = session.final_part(session.list.C_SignFinal, 64).unwrap();
        assert_eq!(made, hex(expected));
        assert_eq!(session.update(session.list.C_VerifyFinal, &made), Ok(()));
    }
}

fn hmac_verification_distinguishes_wrong_value_and_wrong_length(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = key(&session, KeyType::GENERIC_SECRET, b"Jefe");
    for (tag, code) in [
        (vec![0; 32], RvError::SignatureInvalid),
        (vec![0; 31], RvError::SignatureLenRange),
        (vec![0; 33], RvError::SignatureLenRange),
    ] {
        let begun = session.init(session.list.C_VerifyInit, plain(CKM_SHA256_HMAC), key);
        assert_eq!(begun, Ok(()));
        assert_eq!(session.check_signature(QUESTION, &tag), Err(code));
    }
}
