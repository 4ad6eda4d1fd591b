//! OAEP and raw RSA with keys on the card (PKCS #11 3.2, 6.1.8 and 6.1.11).

use std::ptr;

use claviger_hw_tests::{
    fixture::token_fixture::{TokenFixture, answered, plain, with},
    for_each_card,
};
use cryptoki::{
    error::RvError,
    mechanism::{
        Mechanism, MechanismType,
        rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource},
    },
};
use cryptoki_sys::{
    CK_RSA_PKCS_OAEP_PARAMS, CKG_MGF1_SHA256, CKM_RSA_PKCS, CKM_RSA_PKCS_OAEP, CKM_RSA_X_509,
    CKM_SHA256, CKZ_DATA_SPECIFIED,
};

use crate::decrypt::{SECRET, pair};

for_each_card! { [piv] [
    oaep_takes_each_hash_and_label
    oaep_of_another_label_is_invalid
    oaep_rejects_incomplete_and_invalid_parameters
    raw_rsa_decryption_returns_the_whole_block
] }

const HASHES: [(MechanismType, PkcsMgfType, usize); 5] = [
    (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1, 20),
    (MechanismType::SHA224, PkcsMgfType::MGF1_SHA224, 28),
    (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256, 32),
    (MechanismType::SHA384, PkcsMgfType::MGF1_SHA384, 48),
    (MechanismType::SHA512, PkcsMgfType::MGF1_SHA512, 64),
];

fn oaep<'a>(hash: MechanismType, mgf: PkcsMgfType, label: &'a [u8]) -> Mechanism<'a> {
    let source = if label.is_empty() {
        PkcsOaepSource::empty()
    } else {
        PkcsOaepSource::data_specified(label)
    };
    Mechanism::RsaPkcsOaep(PkcsOaepParams::new(hash, mgf, source))
}

fn oaep_takes_each_hash_and_label(fixture: &TokenFixture<'_>) {
    let (session, public, private) = pair(fixture);
    for (hash, mgf, len) in HASHES {
        for label in [&b""[..], b"label", &[0; 300]] {
            for secret in [vec![], SECRET.to_vec(), vec![3; 256 - 2 - 2 * len]] {
                let mechanism = oaep(hash, mgf, label);
                let cryptogram = session
                    .encrypt(&mechanism, public, &secret)
                    .expect("C_Encrypt");
                let result = session.decrypt(&mechanism, private, &cryptogram);
                assert_eq!(answered(result).unwrap(), secret, "{hash:?}");
            }
        }
        let long = vec![3; 256 - 1 - 2 * len];
        let result = answered(session.encrypt(&oaep(hash, mgf, b""), public, &long));
        assert_eq!(result, Err(RvError::DataLenRange), "{hash:?}");
    }
    let mixed = oaep(MechanismType::SHA256, PkcsMgfType::MGF1_SHA1, b"");
    let cryptogram = session.encrypt(&mixed, public, SECRET).expect("C_Encrypt");
    assert_eq!(
        session.decrypt(&mixed, private, &cryptogram).unwrap(),
        SECRET
    );
}

fn oaep_of_another_label_is_invalid(fixture: &TokenFixture<'_>) {
    let (session, public, private) = pair(fixture);
    let (hash, mgf) = (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256);
    let cryptogram = session
        .encrypt(&oaep(hash, mgf, b"mine"), public, SECRET)
        .unwrap();
    for other in [
        oaep(hash, mgf, b""),
        oaep(hash, mgf, b"yours"),
        oaep(MechanismType::SHA1, PkcsMgfType::MGF1_SHA1, b"mine"),
    ] {
        let result = answered(session.decrypt(&other, private, &cryptogram));
        assert_eq!(result, Err(RvError::EncryptedDataInvalid));
    }
}

fn oaep_rejects_incomplete_and_invalid_parameters(fixture: &TokenFixture<'_>) {
    let (session, public, private) = pair(fixture);
    let good = CK_RSA_PKCS_OAEP_PARAMS {
        hashAlg: CKM_SHA256,
        mgf: CKG_MGF1_SHA256,
        source: CKZ_DATA_SPECIFIED,
        pSourceData: ptr::null_mut(),
        ulSourceDataLen: 0,
    };
    let mut bad = vec![
        CK_RSA_PKCS_OAEP_PARAMS {
            hashAlg: CKM_RSA_PKCS,
            ..good
        },
        CK_RSA_PKCS_OAEP_PARAMS { mgf: 0, ..good },
        CK_RSA_PKCS_OAEP_PARAMS { mgf: 0x99, ..good },
        CK_RSA_PKCS_OAEP_PARAMS { source: 7, ..good },
        CK_RSA_PKCS_OAEP_PARAMS {
            ulSourceDataLen: 5,
            ..good
        },
    ];
    for (function, key) in [
        (session.list.C_DecryptInit, private),
        (session.list.C_EncryptInit, public),
    ] {
        for parameter in &mut bad {
            let result = session.init(function, with(CKM_RSA_PKCS_OAEP, parameter), key);
            assert_eq!(result, Err(RvError::MechanismParamInvalid), "{parameter:?}");
        }
        let result = session.init(function, plain(CKM_RSA_PKCS_OAEP), key);
        assert_eq!(result, Err(RvError::MechanismParamInvalid));
        let result = session.init(function, with(CKM_RSA_PKCS_OAEP, &mut [0_u8; 8]), key);
        assert_eq!(result, Err(RvError::MechanismParamInvalid));
    }
}

fn raw_rsa_decryption_returns_the_whole_block(fixture: &TokenFixture<'_>) {
    let (session, public, private) = pair(fixture);
    let block = [&[0; 256 - SECRET.len()], SECRET].concat();
    let mechanism = Mechanism::RsaX509;
    for data in [SECRET, &block[..]] {
        let cryptogram = session
            .encrypt(&mechanism, public, data)
            .expect("C_Encrypt");
        let result = session.decrypt(&mechanism, private, &cryptogram);
        assert_eq!(answered(result).unwrap(), block);
    }
    let begun = session.init(session.list.C_EncryptInit, plain(CKM_RSA_X_509), public);
    assert_eq!(begun, Ok(()));
    let result = session.run(session.list.C_Encrypt, &[0xFF; 256], 256);
    assert_eq!(result, Err(RvError::DataInvalid));
}
