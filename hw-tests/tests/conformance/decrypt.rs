//! Encryption with public RSA keys and decryption on the card (PKCS #11 3.2, 5.8 to 5.11).

use claviger_hw_tests::{
    ck,
    fixture::token_fixture::{TestSession, TokenFixture, checked, plain},
    for_each_card,
};
use cryptoki::{
    error::RvError,
    mechanism::Mechanism,
    object::{Attribute, ObjectClass, ObjectHandle},
};
use cryptoki_sys::{CKF_DECRYPT, CKM_RSA_PKCS, CKM_SHA256, CKM_SHA256_RSA_PKCS};

pub const SECRET: &[u8] = b"a session key of 32 bytes, say..";

for_each_card! { [piv_rsa openpgp_rsa] [
    private_key_decrypts_a_cryptogram_of_its_public_key
    empty_and_longest_messages_decrypt_unchanged
    data_too_long_for_the_padding_are_refused
    encryption_needs_no_card_and_no_login
    encryption_is_never_twice_the_same
    decrypt_and_encrypt_before_init_return_operation_not_initialized
    one_decryption_at_a_time_in_a_session
    decryption_init_wants_a_key_that_decrypts
    encryption_init_wants_a_key_that_encrypts
    cryptogram_of_wrong_length_returns_encrypted_data_len_range
    forged_cryptogram_gives_the_same_result_each_time
    asking_for_the_length_leaves_the_decryption_active
    a_small_buffer_leaves_the_decryption_active_and_the_card_is_asked_once
    the_secret_may_lie_over_the_cryptogram
    parts_are_decrypted_as_one
    parts_are_encrypted_as_one
    a_decryption_of_a_private_key_ends_with_the_login
    a_number_that_is_not_less_than_the_modulus_is_refused
] }

/// A session of the user, the public and the private key that go together.
pub fn pair(fixture: &TokenFixture<'_>) -> (TestSession, ObjectHandle, ObjectHandle) {
    let session = fixture.user();
    let wanted = [
        Attribute::Decrypt(true),
        Attribute::AlwaysAuthenticate(false),
    ];
    let private = *session
        .private_with(&wanted)
        .last()
        .expect("a key that decrypts");
    let public = session.public_of(private);
    (session, public, private)
}

#[track_caller]
fn encrypted(session: &TestSession, public: ObjectHandle, secret: &[u8]) -> Vec<u8> {
    session
        .encrypt(&Mechanism::RsaPkcs, public, secret)
        .expect("C_Encrypt")
}

#[track_caller]
fn begin(session: &TestSession, private: ObjectHandle) {
    let begun = session.init(session.list.C_DecryptInit, plain(CKM_RSA_PKCS), private);
    assert_eq!(begun, Ok(()));
}

fn decrypt(session: &TestSession, cryptogram: &[u8]) -> Result<Vec<u8>, RvError> {
    session.run(session.list.C_Decrypt, cryptogram, 256)
}

fn private_key_decrypts_a_cryptogram_of_its_public_key(fixture: &TokenFixture<'_>) {
    let (session, public, private) = pair(fixture);
    let cryptogram = encrypted(&session, public, SECRET);
    assert_eq!(cryptogram.len(), 256);
    begin(&session, private);
    assert_eq!(decrypt(&session, &cryptogram).unwrap(), SECRET);
    assert_eq!(
        decrypt(&session, &cryptogram),
        Err(RvError::OperationNotInitialized)
    );
}

fn empty_and_longest_messages_decrypt_unchanged(fixture: &TokenFixture<'_>) {
    let (session, public, private) = pair(fixture);
    for len in [0, 1, 245] {
        let secret = vec![0xB7; len];
        let cryptogram = encrypted(&session, public, &secret);
        begin(&session, private);
        assert_eq!(
            decrypt(&session, &cryptogram).unwrap(),
            secret,
            "{len} bytes"
        );
    }
}

fn data_too_long_for_the_padding_are_refused(fixture: &TokenFixture<'_>) {
    let (session, public, _) = pair(fixture);
    for len in [246, 256, 5000] {
        let begun = session.init(session.list.C_EncryptInit, plain(CKM_RSA_PKCS), public);
        assert_eq!(begun, Ok(()));
        let result = session.run(session.list.C_Encrypt, &vec![1; len], 600);
        assert_eq!(result, Err(RvError::DataLenRange), "{len}");
        let over = session.run(session.list.C_Encrypt, b"short", 600);
        assert_eq!(over, Err(RvError::OperationNotInitialized));
    }
}

fn encryption_needs_no_card_and_no_login(fixture: &TokenFixture<'_>) {
    let (session, public, _) = pair(fixture);
    session.logout().unwrap();
    fixture.silently(|| {
        let list = session.list;
        assert_eq!(
            session.init(list.C_EncryptInit, plain(CKM_RSA_PKCS), public),
            Ok(())
        );
        assert_eq!(session.query_len(list.C_Encrypt, SECRET), Ok(256));
        let small = session.run(list.C_Encrypt, SECRET, 255);
        assert_eq!(small, Err(RvError::BufferTooSmall));
        assert!(session.run(list.C_Encrypt, SECRET, 256).is_ok());
    });
}

fn encryption_is_never_twice_the_same(fixture: &TokenFixture<'_>) {
    let (session, public, _) = pair(fixture);
    assert_ne!(
        encrypted(&session, public, SECRET),
        encrypted(&session, public, SECRET)
    );
}

fn decrypt_and_encrypt_before_init_return_operation_not_initialized(fixture: &TokenFixture<'_>) {
    let (session, ..) = pair(fixture);
    let (list, none) = (session.list, RvError::OperationNotInitialized);
    for function in [
        list.C_Decrypt,
        list.C_DecryptUpdate,
        list.C_Encrypt,
        list.C_EncryptUpdate,
    ] {
        assert_eq!(session.run(function, SECRET, 256), Err(none));
    }
    for function in [list.C_DecryptFinal, list.C_EncryptFinal] {
        assert_eq!(session.final_part(function, 256), Err(none));
    }
}

fn one_decryption_at_a_time_in_a_session(fixture: &TokenFixture<'_>) {
    let (session, public, private) = pair(fixture);
    let cryptogram = encrypted(&session, public, SECRET);
    begin(&session, private);
    let again = session.init(session.list.C_DecryptInit, plain(CKM_RSA_PKCS), private);
    assert_eq!(again, Err(RvError::OperationActive));
    assert_eq!(decrypt(&session, &cryptogram).unwrap(), SECRET);
}

const REFUSED: [Result<(), RvError>; 4] = [
    Err(RvError::KeyHandleInvalid),
    Err(RvError::KeyTypeInconsistent),
    Err(RvError::KeyFunctionNotPermitted),
    Err(RvError::MechanismInvalid),
];

fn decryption_init_wants_a_key_that_decrypts(fixture: &TokenFixture<'_>) {
    let (session, public, private) = pair(fixture);
    let certificate = session.all(ObjectClass::CERTIFICATE)[0];
    let mut others = vec![public, certificate];
    others.extend(session.private_with(&[Attribute::Decrypt(false)]));
    for other in others {
        let result = session.init(session.list.C_DecryptInit, plain(CKM_RSA_PKCS), other);
        assert!(REFUSED.contains(&result), "{result:?}");
    }
    let code = ck!(
        fixture.raw,
        C_DecryptInit,
        session.id(),
        &mut plain(CKM_RSA_PKCS),
        0
    );
    assert_eq!(checked(code), Err(RvError::KeyHandleInvalid));
    for mechanism in [CKM_SHA256, CKM_SHA256_RSA_PKCS] {
        let result = session.init(session.list.C_DecryptInit, plain(mechanism), private);
        assert_eq!(result, Err(RvError::MechanismInvalid), "{mechanism:#x}");
    }
}

fn encryption_init_wants_a_key_that_encrypts(fixture: &TokenFixture<'_>) {
    let (session, public, private) = pair(fixture);
    let class = Attribute::Class(ObjectClass::PUBLIC_KEY);
    let mut others = session
        .find_objects(&[class, Attribute::Encrypt(false)])
        .unwrap();
    others.push(private);
    for other in others {
        let result = session.init(session.list.C_EncryptInit, plain(CKM_RSA_PKCS), other);
        assert!(REFUSED.contains(&result), "{result:?}");
    }
    let result = session.init(
        session.list.C_EncryptInit,
        plain(CKM_SHA256_RSA_PKCS),
        public,
    );
    assert_eq!(result, Err(RvError::MechanismInvalid));
}

fn cryptogram_of_wrong_length_returns_encrypted_data_len_range(fixture: &TokenFixture<'_>) {
    let (session, public, private) = pair(fixture);
    let cryptogram = encrypted(&session, public, SECRET);
    let long = [&cryptogram[..], &[0]].concat();
    for other in [&cryptogram[1..], &long[..], &[]] {
        begin(&session, private);
        let result = fixture.silently(|| decrypt(&session, other));
        assert_eq!(
            result,
            Err(RvError::EncryptedDataLenRange),
            "{}",
            other.len()
        );
        assert_eq!(
            decrypt(&session, &cryptogram),
            Err(RvError::OperationNotInitialized)
        );
    }
}

/// Implicit rejection: the result of a forged cryptogram does not reveal its padding. An OpenPGP card checks the padding itself,
/// and returns the same error for every forgery.
fn forged_cryptogram_gives_the_same_result_each_time(fixture: &TokenFixture<'_>) {
    let (session, _, private) = pair(fixture);
    let answer = |forged: &[u8]| {
        begin(&session, private);
        decrypt(&session, forged)
    };
    let forged: Vec<Vec<u8>> = (1..6).map(|n| vec![n * 7; 256]).collect();
    let answers: Vec<_> = forged.iter().map(|forged| answer(forged)).collect();
    for (forged, result) in forged.iter().zip(&answers) {
        assert_eq!(answer(forged), *result, "as a right padding would");
        match result {
            Ok(secret) => assert!(secret.len() <= 245),
            Err(code) => assert_eq!(
                (*code, fixture.is_piv()),
                (RvError::EncryptedDataInvalid, false)
            ),
        }
    }
    assert!(
        !fixture.is_piv() || answers.iter().any(|result| *result != answers[0]),
        "each its own"
    );
}

fn asking_for_the_length_leaves_the_decryption_active(fixture: &TokenFixture<'_>) {
    let (session, public, private) = pair(fixture);
    let cryptogram = encrypted(&session, public, SECRET);
    begin(&session, private);
    fixture.silently(|| {
        let len = session
            .query_len(session.list.C_Decrypt, &cryptogram)
            .unwrap();
        assert!((SECRET.len()..=256).contains(&len));
    });
    assert_eq!(decrypt(&session, &cryptogram).unwrap(), SECRET);
}

fn a_small_buffer_leaves_the_decryption_active_and_the_card_is_asked_once(
    fixture: &TokenFixture<'_>,
) {
    let (session, public, private) = pair(fixture);
    let cryptogram = encrypted(&session, public, SECRET);
    begin(&session, private);
    let before = fixture.process.count("apdus");
    for room in [0, 1, SECRET.len() - 1] {
        let small = session.run(session.list.C_Decrypt, &cryptogram, room);
        assert_eq!(small, Err(RvError::BufferTooSmall), "{room}");
    }
    let result = session.run(session.list.C_Decrypt, &cryptogram, 256);
    assert_eq!(result.unwrap(), SECRET);
    let asked = fixture.process.count("apdus") - before;
    begin(&session, private);
    let (once, _) = fixture
        .process
        .apdus(|| decrypt(&session, &cryptogram).unwrap());
    assert_eq!(asked, once);
}

fn the_secret_may_lie_over_the_cryptogram(fixture: &TokenFixture<'_>) {
    let (session, public, private) = pair(fixture);
    let mut buffer = encrypted(&session, public, SECRET);
    begin(&session, private);
    let (start, mut len) = (buffer.as_mut_ptr(), 256);
    let code = ck!(
        fixture.raw,
        C_Decrypt,
        session.id(),
        start,
        256,
        start,
        &raw mut len
    );
    assert_eq!(checked(code), Ok(()));
    assert_eq!(&buffer[..len as usize], SECRET);
    let begun = session.init(session.list.C_EncryptInit, plain(CKM_RSA_PKCS), public);
    assert_eq!(begun, Ok(()));
    let (start, mut len) = (buffer.as_mut_ptr(), 256);
    let code = ck!(
        fixture.raw,
        C_Encrypt,
        session.id(),
        start,
        32,
        start,
        &raw mut len
    );
    assert_eq!((checked(code), len), (Ok(()), 256));
    begin(&session, private);
    assert_eq!(decrypt(&session, &buffer).unwrap(), SECRET);
}

fn parts_are_decrypted_as_one(fixture: &TokenFixture<'_>) {
    let (session, public, private) = pair(fixture);
    let cryptogram = encrypted(&session, public, SECRET);
    begin(&session, private);
    assert!(
        session
            .run(session.list.C_DecryptUpdate, &cryptogram[..9], 256)
            .is_ok()
    );
    let result = decrypt(&session, &cryptogram);
    let refused = [Err(RvError::OperationActive), Err(RvError::FunctionFailed)];
    assert!(refused.contains(&result), "{result:?}");
    session.cancel(CKF_DECRYPT);
    begin(&session, private);
    let mut secret = Vec::new();
    for part in cryptogram.chunks(60) {
        secret.extend(
            session
                .run(session.list.C_DecryptUpdate, part, 256)
                .unwrap(),
        );
    }
    assert!(
        session
            .query_final_len(session.list.C_DecryptFinal)
            .unwrap()
            + secret.len()
            >= SECRET.len()
    );
    secret.extend(
        session
            .final_part(session.list.C_DecryptFinal, 256)
            .unwrap(),
    );
    assert_eq!(secret, SECRET);
}

fn parts_are_encrypted_as_one(fixture: &TokenFixture<'_>) {
    let (session, public, private) = pair(fixture);
    let begun = session.init(session.list.C_EncryptInit, plain(CKM_RSA_PKCS), public);
    assert_eq!(begun, Ok(()));
    let mut cryptogram = Vec::new();
    for part in SECRET.chunks(10) {
        cryptogram.extend(
            session
                .run(session.list.C_EncryptUpdate, part, 256)
                .unwrap(),
        );
    }
    cryptogram.extend(
        session
            .final_part(session.list.C_EncryptFinal, 256)
            .unwrap(),
    );
    begin(&session, private);
    assert_eq!(decrypt(&session, &cryptogram).unwrap(), SECRET);
}

fn a_decryption_of_a_private_key_ends_with_the_login(fixture: &TokenFixture<'_>) {
    let (session, public, private) = pair(fixture);
    let cryptogram = encrypted(&session, public, SECRET);
    begin(&session, private);
    session.logout().unwrap();
    let result = fixture.silently(|| decrypt(&session, &cryptogram));
    assert_eq!(result, Err(RvError::OperationNotInitialized));
    let begun = session.init(session.list.C_DecryptInit, plain(CKM_RSA_PKCS), private);
    assert_eq!(begun, Err(RvError::KeyHandleInvalid));
}

fn a_number_that_is_not_less_than_the_modulus_is_refused(fixture: &TokenFixture<'_>) {
    let (session, _, private) = pair(fixture);
    begin(&session, private);
    let result = decrypt(&session, &[0xFF; 256]);
    assert_eq!(result, Err(RvError::EncryptedDataInvalid));
}
