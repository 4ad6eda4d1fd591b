//! Encryption with public RSA keys and decryption on the card (PKCS #11 3.2, 5.8 to 5.11).

use std::ptr;

use claviger_hw_tests::{
    ck,
    fixture::token_fixture::{Bench, Seat, answered, checked, plain, with},
    on_cards,
};
use cryptoki::{
    error::RvError,
    mechanism::{
        Mechanism, MechanismType,
        rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource},
    },
    object::{Attribute, ObjectClass, ObjectHandle},
};
use cryptoki_sys::{
    CK_RSA_PKCS_OAEP_PARAMS, CKF_DECRYPT, CKG_MGF1_SHA256, CKM_RSA_PKCS, CKM_RSA_PKCS_OAEP,
    CKM_RSA_X_509, CKM_SHA256, CKM_SHA256_RSA_PKCS, CKZ_DATA_SPECIFIED,
};

const SECRET: &[u8] = b"a session key of 32 bytes, say..";

on_cards! { [piv_rsa openpgp_rsa] [
    what_a_public_key_encrypts_its_private_key_decrypts
    an_empty_secret_and_the_longest_come_back
    data_too_long_for_the_padding_are_refused
    encryption_needs_no_card_and_no_login
    encryption_is_never_twice_the_same
    nothing_is_decrypted_before_init
    one_decryption_at_a_time_in_a_session
    decryption_init_wants_a_key_that_decrypts
    encryption_init_wants_a_key_that_encrypts
    a_cryptogram_of_another_length_is_told_apart
    a_wrong_padding_is_no_error_and_gives_the_same_answer_each_time
    asking_for_the_length_leaves_the_decryption_active
    a_small_buffer_leaves_the_decryption_active_and_the_card_is_asked_once
    the_secret_may_lie_over_the_cryptogram
    parts_are_decrypted_as_one
    parts_are_encrypted_as_one
    a_decryption_of_a_private_key_ends_with_the_login
    a_number_that_is_not_less_than_the_modulus_is_refused
] }

on_cards! { [piv] [
    oaep_takes_each_hash_and_label
    oaep_of_another_label_is_invalid
    oaep_wants_its_parameter_whole
    the_bare_function_gives_the_whole_block
] }

/// A session of the user, the public and the private key that go together.
fn pair(bench: &Bench<'_>) -> (Seat, ObjectHandle, ObjectHandle) {
    let seat = bench.user();
    let wanted = [
        Attribute::Decrypt(true),
        Attribute::AlwaysAuthenticate(false),
    ];
    let private = *seat
        .private_with(&wanted)
        .last()
        .expect("a key that decrypts");
    let public = seat.public_of(private);
    (seat, public, private)
}

#[track_caller]
fn encrypted(seat: &Seat, public: ObjectHandle, secret: &[u8]) -> Vec<u8> {
    seat.encrypt(&Mechanism::RsaPkcs, public, secret)
        .expect("C_Encrypt")
}

#[track_caller]
fn begin(seat: &Seat, private: ObjectHandle) {
    let begun = seat.init(seat.list.C_DecryptInit, plain(CKM_RSA_PKCS), private);
    assert_eq!(begun, Ok(()));
}

fn decrypt(seat: &Seat, cryptogram: &[u8]) -> Result<Vec<u8>, RvError> {
    seat.run(seat.list.C_Decrypt, cryptogram, 256)
}

fn what_a_public_key_encrypts_its_private_key_decrypts(bench: &Bench<'_>) {
    let (seat, public, private) = pair(bench);
    let cryptogram = encrypted(&seat, public, SECRET);
    assert_eq!(cryptogram.len(), 256);
    begin(&seat, private);
    assert_eq!(decrypt(&seat, &cryptogram).unwrap(), SECRET);
    assert_eq!(
        decrypt(&seat, &cryptogram),
        Err(RvError::OperationNotInitialized)
    );
}

fn an_empty_secret_and_the_longest_come_back(bench: &Bench<'_>) {
    let (seat, public, private) = pair(bench);
    for len in [0, 1, 245] {
        let secret = vec![0xB7; len];
        let cryptogram = encrypted(&seat, public, &secret);
        begin(&seat, private);
        assert_eq!(decrypt(&seat, &cryptogram).unwrap(), secret, "{len} bytes");
    }
}

fn data_too_long_for_the_padding_are_refused(bench: &Bench<'_>) {
    let (seat, public, _) = pair(bench);
    for len in [246, 256, 5000] {
        let begun = seat.init(seat.list.C_EncryptInit, plain(CKM_RSA_PKCS), public);
        assert_eq!(begun, Ok(()));
        let told = seat.run(seat.list.C_Encrypt, &vec![1; len], 600);
        assert_eq!(told, Err(RvError::DataLenRange), "{len}");
        let over = seat.run(seat.list.C_Encrypt, b"short", 600);
        assert_eq!(over, Err(RvError::OperationNotInitialized));
    }
}

fn encryption_needs_no_card_and_no_login(bench: &Bench<'_>) {
    let (seat, public, _) = pair(bench);
    seat.logout().unwrap();
    bench.silently(|| {
        let list = seat.list;
        assert_eq!(
            seat.init(list.C_EncryptInit, plain(CKM_RSA_PKCS), public),
            Ok(())
        );
        assert_eq!(seat.ask(list.C_Encrypt, SECRET), Ok(256));
        let small = seat.run(list.C_Encrypt, SECRET, 255);
        assert_eq!(small, Err(RvError::BufferTooSmall));
        assert!(seat.run(list.C_Encrypt, SECRET, 256).is_ok());
    });
}

fn encryption_is_never_twice_the_same(bench: &Bench<'_>) {
    let (seat, public, _) = pair(bench);
    assert_ne!(
        encrypted(&seat, public, SECRET),
        encrypted(&seat, public, SECRET)
    );
}

fn nothing_is_decrypted_before_init(bench: &Bench<'_>) {
    let (seat, ..) = pair(bench);
    let (list, none) = (seat.list, RvError::OperationNotInitialized);
    for function in [
        list.C_Decrypt,
        list.C_DecryptUpdate,
        list.C_Encrypt,
        list.C_EncryptUpdate,
    ] {
        assert_eq!(seat.run(function, SECRET, 256), Err(none));
    }
    for function in [list.C_DecryptFinal, list.C_EncryptFinal] {
        assert_eq!(seat.last(function, 256), Err(none));
    }
}

fn one_decryption_at_a_time_in_a_session(bench: &Bench<'_>) {
    let (seat, public, private) = pair(bench);
    let cryptogram = encrypted(&seat, public, SECRET);
    begin(&seat, private);
    let again = seat.init(seat.list.C_DecryptInit, plain(CKM_RSA_PKCS), private);
    assert_eq!(again, Err(RvError::OperationActive));
    assert_eq!(decrypt(&seat, &cryptogram).unwrap(), SECRET);
}

const REFUSED: [Result<(), RvError>; 4] = [
    Err(RvError::KeyHandleInvalid),
    Err(RvError::KeyTypeInconsistent),
    Err(RvError::KeyFunctionNotPermitted),
    Err(RvError::MechanismInvalid),
];

fn decryption_init_wants_a_key_that_decrypts(bench: &Bench<'_>) {
    let (seat, public, private) = pair(bench);
    let certificate = seat.all(ObjectClass::CERTIFICATE)[0];
    let mut others = vec![public, certificate];
    others.extend(seat.private_with(&[Attribute::Decrypt(false)]));
    for other in others {
        let told = seat.init(seat.list.C_DecryptInit, plain(CKM_RSA_PKCS), other);
        assert!(REFUSED.contains(&told), "{told:?}");
    }
    let code = ck!(
        bench.raw,
        C_DecryptInit,
        seat.id(),
        &mut plain(CKM_RSA_PKCS),
        0
    );
    assert_eq!(checked(code), Err(RvError::KeyHandleInvalid));
    for mechanism in [CKM_SHA256, CKM_SHA256_RSA_PKCS] {
        let told = seat.init(seat.list.C_DecryptInit, plain(mechanism), private);
        assert_eq!(told, Err(RvError::MechanismInvalid), "{mechanism:#x}");
    }
}

fn encryption_init_wants_a_key_that_encrypts(bench: &Bench<'_>) {
    let (seat, public, private) = pair(bench);
    let class = Attribute::Class(ObjectClass::PUBLIC_KEY);
    let mut others = seat
        .find_objects(&[class, Attribute::Encrypt(false)])
        .unwrap();
    others.push(private);
    for other in others {
        let told = seat.init(seat.list.C_EncryptInit, plain(CKM_RSA_PKCS), other);
        assert!(REFUSED.contains(&told), "{told:?}");
    }
    let told = seat.init(seat.list.C_EncryptInit, plain(CKM_SHA256_RSA_PKCS), public);
    assert_eq!(told, Err(RvError::MechanismInvalid));
}

fn a_cryptogram_of_another_length_is_told_apart(bench: &Bench<'_>) {
    let (seat, public, private) = pair(bench);
    let cryptogram = encrypted(&seat, public, SECRET);
    let long = [&cryptogram[..], &[0]].concat();
    for other in [&cryptogram[1..], &long[..], &[]] {
        begin(&seat, private);
        let told = bench.silently(|| decrypt(&seat, other));
        assert_eq!(told, Err(RvError::EncryptedDataLenRange), "{}", other.len());
        assert_eq!(
            decrypt(&seat, &cryptogram),
            Err(RvError::OperationNotInitialized)
        );
    }
}

/// Implicit rejection: who sends forged cryptograms learns nothing from the answer. An OpenPGP card looks at the padding
/// itself and says what it saw; it says the same of every forgery.
fn a_wrong_padding_is_no_error_and_gives_the_same_answer_each_time(bench: &Bench<'_>) {
    let (seat, _, private) = pair(bench);
    let answer = |forged: &[u8]| {
        begin(&seat, private);
        decrypt(&seat, forged)
    };
    let forged: Vec<Vec<u8>> = (1..6).map(|n| vec![n * 7; 256]).collect();
    let answers: Vec<_> = forged.iter().map(|forged| answer(forged)).collect();
    for (forged, told) in forged.iter().zip(&answers) {
        assert_eq!(answer(forged), *told, "as a right padding would");
        match told {
            Ok(secret) => assert!(secret.len() <= 245),
            Err(code) => assert_eq!(
                (*code, bench.is_piv()),
                (RvError::EncryptedDataInvalid, false)
            ),
        }
    }
    assert!(
        !bench.is_piv() || answers.iter().any(|told| *told != answers[0]),
        "each its own"
    );
}

fn asking_for_the_length_leaves_the_decryption_active(bench: &Bench<'_>) {
    let (seat, public, private) = pair(bench);
    let cryptogram = encrypted(&seat, public, SECRET);
    begin(&seat, private);
    bench.silently(|| {
        let len = seat.ask(seat.list.C_Decrypt, &cryptogram).unwrap();
        assert!((SECRET.len()..=256).contains(&len));
    });
    assert_eq!(decrypt(&seat, &cryptogram).unwrap(), SECRET);
}

fn a_small_buffer_leaves_the_decryption_active_and_the_card_is_asked_once(bench: &Bench<'_>) {
    let (seat, public, private) = pair(bench);
    let cryptogram = encrypted(&seat, public, SECRET);
    begin(&seat, private);
    let before = bench.stage.count("apdus");
    for room in [0, 1, SECRET.len() - 1] {
        let small = seat.run(seat.list.C_Decrypt, &cryptogram, room);
        assert_eq!(small, Err(RvError::BufferTooSmall), "{room}");
    }
    let told = seat.run(seat.list.C_Decrypt, &cryptogram, 256);
    assert_eq!(told.unwrap(), SECRET);
    let asked = bench.stage.count("apdus") - before;
    begin(&seat, private);
    let (once, _) = bench.stage.apdus(|| decrypt(&seat, &cryptogram).unwrap());
    assert_eq!(asked, once);
}

fn the_secret_may_lie_over_the_cryptogram(bench: &Bench<'_>) {
    let (seat, public, private) = pair(bench);
    let mut buffer = encrypted(&seat, public, SECRET);
    begin(&seat, private);
    let (start, mut len) = (buffer.as_mut_ptr(), 256);
    let code = ck!(
        bench.raw,
        C_Decrypt,
        seat.id(),
        start,
        256,
        start,
        &raw mut len
    );
    assert_eq!(checked(code), Ok(()));
    assert_eq!(&buffer[..len as usize], SECRET);
    let begun = seat.init(seat.list.C_EncryptInit, plain(CKM_RSA_PKCS), public);
    assert_eq!(begun, Ok(()));
    let (start, mut len) = (buffer.as_mut_ptr(), 256);
    let code = ck!(
        bench.raw,
        C_Encrypt,
        seat.id(),
        start,
        32,
        start,
        &raw mut len
    );
    assert_eq!((checked(code), len), (Ok(()), 256));
    begin(&seat, private);
    assert_eq!(decrypt(&seat, &buffer).unwrap(), SECRET);
}

fn parts_are_decrypted_as_one(bench: &Bench<'_>) {
    let (seat, public, private) = pair(bench);
    let cryptogram = encrypted(&seat, public, SECRET);
    begin(&seat, private);
    assert!(
        seat.run(seat.list.C_DecryptUpdate, &cryptogram[..9], 256)
            .is_ok()
    );
    let told = decrypt(&seat, &cryptogram);
    let refused = [Err(RvError::OperationActive), Err(RvError::FunctionFailed)];
    assert!(refused.contains(&told), "{told:?}");
    seat.give_up(CKF_DECRYPT);
    begin(&seat, private);
    let mut secret = Vec::new();
    for part in cryptogram.chunks(60) {
        secret.extend(seat.run(seat.list.C_DecryptUpdate, part, 256).unwrap());
    }
    assert!(seat.ask_last(seat.list.C_DecryptFinal).unwrap() + secret.len() >= SECRET.len());
    secret.extend(seat.last(seat.list.C_DecryptFinal, 256).unwrap());
    assert_eq!(secret, SECRET);
}

fn parts_are_encrypted_as_one(bench: &Bench<'_>) {
    let (seat, public, private) = pair(bench);
    let begun = seat.init(seat.list.C_EncryptInit, plain(CKM_RSA_PKCS), public);
    assert_eq!(begun, Ok(()));
    let mut cryptogram = Vec::new();
    for part in SECRET.chunks(10) {
        cryptogram.extend(seat.run(seat.list.C_EncryptUpdate, part, 256).unwrap());
    }
    cryptogram.extend(seat.last(seat.list.C_EncryptFinal, 256).unwrap());
    begin(&seat, private);
    assert_eq!(decrypt(&seat, &cryptogram).unwrap(), SECRET);
}

fn a_decryption_of_a_private_key_ends_with_the_login(bench: &Bench<'_>) {
    let (seat, public, private) = pair(bench);
    let cryptogram = encrypted(&seat, public, SECRET);
    begin(&seat, private);
    seat.logout().unwrap();
    let told = bench.silently(|| decrypt(&seat, &cryptogram));
    assert_eq!(told, Err(RvError::OperationNotInitialized));
    let begun = seat.init(seat.list.C_DecryptInit, plain(CKM_RSA_PKCS), private);
    assert_eq!(begun, Err(RvError::KeyHandleInvalid));
}

fn a_number_that_is_not_less_than_the_modulus_is_refused(bench: &Bench<'_>) {
    let (seat, _, private) = pair(bench);
    begin(&seat, private);
    let told = decrypt(&seat, &[0xFF; 256]);
    assert_eq!(told, Err(RvError::EncryptedDataInvalid));
}

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

fn oaep_takes_each_hash_and_label(bench: &Bench<'_>) {
    let (seat, public, private) = pair(bench);
    for (hash, mgf, len) in HASHES {
        for label in [&b""[..], b"label", &[0; 300]] {
            for secret in [vec![], SECRET.to_vec(), vec![3; 256 - 2 - 2 * len]] {
                let mechanism = oaep(hash, mgf, label);
                let cryptogram = seat
                    .encrypt(&mechanism, public, &secret)
                    .expect("C_Encrypt");
                let told = seat.decrypt(&mechanism, private, &cryptogram);
                assert_eq!(answered(told).unwrap(), secret, "{hash:?}");
            }
        }
        let long = vec![3; 256 - 1 - 2 * len];
        let told = answered(seat.encrypt(&oaep(hash, mgf, b""), public, &long));
        assert_eq!(told, Err(RvError::DataLenRange), "{hash:?}");
    }
    let mixed = oaep(MechanismType::SHA256, PkcsMgfType::MGF1_SHA1, b"");
    let cryptogram = seat.encrypt(&mixed, public, SECRET).expect("C_Encrypt");
    assert_eq!(seat.decrypt(&mixed, private, &cryptogram).unwrap(), SECRET);
}

fn oaep_of_another_label_is_invalid(bench: &Bench<'_>) {
    let (seat, public, private) = pair(bench);
    let (hash, mgf) = (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256);
    let cryptogram = seat
        .encrypt(&oaep(hash, mgf, b"mine"), public, SECRET)
        .unwrap();
    for other in [
        oaep(hash, mgf, b""),
        oaep(hash, mgf, b"yours"),
        oaep(MechanismType::SHA1, PkcsMgfType::MGF1_SHA1, b"mine"),
    ] {
        let told = answered(seat.decrypt(&other, private, &cryptogram));
        assert_eq!(told, Err(RvError::EncryptedDataInvalid));
    }
}

fn oaep_wants_its_parameter_whole(bench: &Bench<'_>) {
    let (seat, public, private) = pair(bench);
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
        (seat.list.C_DecryptInit, private),
        (seat.list.C_EncryptInit, public),
    ] {
        for parameter in &mut bad {
            let told = seat.init(function, with(CKM_RSA_PKCS_OAEP, parameter), key);
            assert_eq!(told, Err(RvError::MechanismParamInvalid), "{parameter:?}");
        }
        let told = seat.init(function, plain(CKM_RSA_PKCS_OAEP), key);
        assert_eq!(told, Err(RvError::MechanismParamInvalid));
        let told = seat.init(function, with(CKM_RSA_PKCS_OAEP, &mut [0_u8; 8]), key);
        assert_eq!(told, Err(RvError::MechanismParamInvalid));
    }
}

fn the_bare_function_gives_the_whole_block(bench: &Bench<'_>) {
    let (seat, public, private) = pair(bench);
    let block = [&[0; 256 - SECRET.len()], SECRET].concat();
    let mechanism = Mechanism::RsaX509;
    for data in [SECRET, &block[..]] {
        let cryptogram = seat.encrypt(&mechanism, public, data).expect("C_Encrypt");
        let told = seat.decrypt(&mechanism, private, &cryptogram);
        assert_eq!(answered(told).unwrap(), block);
    }
    let begun = seat.init(seat.list.C_EncryptInit, plain(CKM_RSA_X_509), public);
    assert_eq!(begun, Ok(()));
    let told = seat.run(seat.list.C_Encrypt, &[0xFF; 256], 256);
    assert_eq!(told, Err(RvError::DataInvalid));
}
