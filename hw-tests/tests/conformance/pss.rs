//! RSASSA-PSS and raw RSA (PKCS #11 3.2, 6.1.10 and 6.1.8), on cards that compute raw RSA and leave the padding to the host.

use claviger_hw_tests::{
    fixture::token_fixture::{TestSession, TokenFixture, plain, with},
    for_each_card,
};
use cryptoki::{
    error::RvError,
    mechanism::{
        Mechanism, MechanismType,
        rsa::{PkcsMgfType, PkcsPssParams},
    },
    object::ObjectHandle,
};
use cryptoki_sys::{
    CK_MECHANISM, CK_RSA_PKCS_PSS_PARAMS, CKG_MGF1_SHA1, CKG_MGF1_SHA256, CKM_RSA_PKCS,
    CKM_RSA_PKCS_PSS, CKM_RSA_X_509, CKM_SHA_1, CKM_SHA256, CKM_SHA256_RSA_PKCS_PSS,
};

const MESSAGE: &[u8] = b"what is signed";

for_each_card! { [piv_rsa] [
    pss_rejects_missing_and_truncated_parameters
    pss_rejects_wrong_hash_and_mgf_and_accepts_mgf1_with_another_hash
    pss_takes_salts_that_fit_and_no_others
    ckm_rsa_pkcs_pss_accepts_only_data_of_the_hash_length
    raw_rsa_pads_short_data_with_zeros_on_the_left
    raw_rsa_rejects_a_block_not_below_the_modulus
] }

fn pss(hash: u64, mgf: u64, salt: u64) -> CK_RSA_PKCS_PSS_PARAMS {
    CK_RSA_PKCS_PSS_PARAMS {
        hashAlg: hash,
        mgf,
        sLen: salt,
    }
}

/// C_SignInit with PSS.
fn begin_pss(
    session: &TestSession,
    key: ObjectHandle,
    kind: u64,
    mut parameter: CK_RSA_PKCS_PSS_PARAMS,
) -> Result<(), RvError> {
    session.init(session.list.C_SignInit, with(kind, &mut parameter), key)
}

fn pss_rejects_missing_and_truncated_parameters(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = session.signer();
    let mut whole = pss(CKM_SHA256, CKG_MGF1_SHA256, 32);
    let whole = with(CKM_SHA256_RSA_PKCS_PSS, &mut whole);
    let cut = |len| CK_MECHANISM {
        ulParameterLen: len,
        ..whole
    };
    for mechanism in [plain(CKM_SHA256_RSA_PKCS_PSS), cut(0), cut(23)] {
        let result = session.init(session.list.C_SignInit, mechanism, key);
        assert_eq!(result, Err(RvError::MechanismParamInvalid));
    }
}

fn pss_rejects_wrong_hash_and_mgf_and_accepts_mgf1_with_another_hash(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = session.signer();
    for parameter in [
        pss(CKM_SHA_1, CKG_MGF1_SHA1, 20),
        pss(CKM_RSA_PKCS, CKG_MGF1_SHA256, 32),
        pss(CKM_SHA256, 0, 32),
        pss(CKM_SHA256, 0x77, 32),
    ] {
        let result = begin_pss(&session, key, CKM_SHA256_RSA_PKCS_PSS, parameter);
        assert_eq!(result, Err(RvError::MechanismParamInvalid), "{parameter:?}");
    }
    let foreign = pss(CKM_SHA256, CKG_MGF1_SHA1, 32);
    assert_eq!(
        begin_pss(&session, key, CKM_SHA256_RSA_PKCS_PSS, foreign),
        Ok(())
    );
    let signature = session
        .run(session.list.C_Sign, MESSAGE, 256)
        .expect("MGF1 with another hash");
    let mut foreign = foreign;
    let mechanism = with(CKM_SHA256_RSA_PKCS_PSS, &mut foreign);
    assert_eq!(
        session.init(session.list.C_VerifyInit, mechanism, session.public_of(key)),
        Ok(())
    );
    assert_eq!(session.check_signature(MESSAGE, &signature), Ok(()));
}

fn pss_takes_salts_that_fit_and_no_others(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = session.signer();
    let most = 256 - 2 - 32;
    for salt in [0, 20, 32, most] {
        let params = PkcsPssParams {
            hash_alg: MechanismType::SHA256,
            mgf: PkcsMgfType::MGF1_SHA256,
            s_len: salt.into(),
        };
        let mechanism = Mechanism::Sha256RsaPkcsPss(params);
        let signature = session.sign(&mechanism, key, MESSAGE).expect("C_Sign");
        let public = session.public_of(key);
        session
            .verify(&mechanism, public, MESSAGE, &signature)
            .expect("C_Verify");
    }
    for salt in [most + 1, 256, u64::MAX] {
        let result = begin_pss(
            &session,
            key,
            CKM_SHA256_RSA_PKCS_PSS,
            pss(CKM_SHA256, CKG_MGF1_SHA256, salt),
        );
        assert_eq!(result, Err(RvError::MechanismParamInvalid), "{salt}");
    }
}

fn ckm_rsa_pkcs_pss_accepts_only_data_of_the_hash_length(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = session.signer();
    for (len, right) in [
        (32, true),
        (0, false),
        (31, false),
        (33, false),
        (64, false),
    ] {
        let begun = begin_pss(
            &session,
            key,
            CKM_RSA_PKCS_PSS,
            pss(CKM_SHA256, CKG_MGF1_SHA256, 32),
        );
        assert_eq!(begun, Ok(()));
        let result = session
            .run(session.list.C_Sign, &vec![9; len], 256)
            .map(|made| made.len());
        let expected = if right {
            Ok(256)
        } else {
            Err(RvError::DataLenRange)
        };
        assert_eq!(result, expected, "{len} bytes");
    }
}

fn raw_rsa_pads_short_data_with_zeros_on_the_left(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let (key, list) = (session.signer(), session.list);
    let sign = |block: &[u8]| {
        assert_eq!(
            session.init(list.C_SignInit, plain(CKM_RSA_X_509), key),
            Ok(())
        );
        session.run(list.C_Sign, block, 256).expect("C_Sign")
    };
    let padded = [&[0; 256 - MESSAGE.len()], MESSAGE].concat();
    let signature = sign(MESSAGE);
    assert_eq!(signature, sign(&padded));
    let public = session.public_of(key);
    assert_eq!(
        session.init(list.C_VerifyRecoverInit, plain(CKM_RSA_X_509), public),
        Ok(())
    );
    assert_eq!(
        session.run(list.C_VerifyRecover, &signature, 256).unwrap(),
        padded
    );
    assert_eq!(
        session.init(list.C_VerifyInit, plain(CKM_RSA_X_509), public),
        Ok(())
    );
    assert_eq!(session.check_signature(MESSAGE, &signature), Ok(()));
}

fn raw_rsa_rejects_a_block_not_below_the_modulus(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let (key, list) = (session.signer(), session.list);
    for (block, code) in [
        (vec![0xFF; 256], RvError::DataInvalid),
        (vec![1; 257], RvError::DataLenRange),
    ] {
        assert_eq!(
            session.init(list.C_SignInit, plain(CKM_RSA_X_509), key),
            Ok(())
        );
        let result = fixture.silently(|| session.run(list.C_Sign, &block, 256));
        assert_eq!(result, Err(code));
    }
}
