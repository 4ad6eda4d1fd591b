//! Dual-function calls (PKCS #11 3.2, 5.17): two operations over one message.

use std::mem::MaybeUninit;

use cryptoki::{
    error::RvError,
    mechanism::Mechanism,
    object::{Attribute, KeyType, ObjectClass, ObjectHandle},
};
use cryptoki_sys::{CK_TOKEN_INFO, CKF_DUAL_CRYPTO_OPERATIONS};
use sha2::{Digest as _, Sha256};

use claviger_hw_tests::{
    ck,
    fixture::token_fixture::{TestSession, TokenFixture, answered, checked},
    for_each_card,
};

for_each_card! { [piv openpgp] [
    token_flags_have_no_dual_crypto_operations
    digest_and_encrypt_in_one_call
    decrypt_and_digest_in_one_call
    sign_and_encrypt_in_one_call
    decrypt_and_verify_in_one_call
    both_operations_must_be_active
    a_small_buffer_changes_neither_operation
] }

const MECHANISM: Mechanism<'static> = Mechanism::AesCbcPad([6; 16]);

fn aes(session: &TestSession) -> ObjectHandle {
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Value(vec![0x1E; 32]),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
    ];
    answered(session.create_object(&template)).expect("C_CreateObject")
}

fn message() -> Vec<u8> {
    (0..150).collect()
}

/// A session of the user, a key, and the message under it.
fn sealed(fixture: &TokenFixture<'_>) -> (TestSession, ObjectHandle, Vec<u8>) {
    let session = fixture.user();
    let key = aes(&session);
    let sealed = session
        .encrypt(&MECHANISM, key, &message())
        .expect("C_Encrypt");
    (session, key, sealed)
}

/// The token itself does one thing at a time; the host does the other.
fn token_flags_have_no_dual_crypto_operations(fixture: &TokenFixture<'_>) {
    let mut info = MaybeUninit::<CK_TOKEN_INFO>::zeroed();
    let slot = fixture.slot_id();
    let code = ck!(fixture.raw, C_GetTokenInfo, slot, info.as_mut_ptr());
    assert_eq!(checked(code), Ok(()));
    // SAFETY: all zeroes are a value of this type, of numbers and characters.
    let flags = unsafe { info.assume_init() }.flags;
    assert_eq!(flags & CKF_DUAL_CRYPTO_OPERATIONS, 0);
}

fn digest_and_encrypt_in_one_call(fixture: &TokenFixture<'_>) {
    let (session, key, sealed) = sealed(fixture);
    session
        .digest_init(&Mechanism::Sha256)
        .expect("C_DigestInit");
    session
        .encrypt_init(&MECHANISM, key)
        .expect("C_EncryptInit");
    let mut made = Vec::new();
    for part in message().chunks(33) {
        made.extend(
            session
                .run(session.list.C_DigestEncryptUpdate, part, 200)
                .unwrap(),
        );
    }
    made.extend(
        session
            .final_part(session.list.C_EncryptFinal, 200)
            .unwrap(),
    );
    assert_eq!(made, sealed);
    let digest = session.final_part(session.list.C_DigestFinal, 32).unwrap();
    assert_eq!(digest, Sha256::digest(message()).to_vec());
}

fn decrypt_and_digest_in_one_call(fixture: &TokenFixture<'_>) {
    let (session, key, sealed) = sealed(fixture);
    session
        .digest_init(&Mechanism::Sha256)
        .expect("C_DigestInit");
    session
        .decrypt_init(&MECHANISM, key)
        .expect("C_DecryptInit");
    let mut made = Vec::new();
    for part in sealed.chunks(40) {
        made.extend(
            session
                .run(session.list.C_DecryptDigestUpdate, part, 200)
                .unwrap(),
        );
    }
    // What comes out last has not been hashed.
    let last = session
        .final_part(session.list.C_DecryptFinal, 200)
        .unwrap();
    assert_eq!(session.update(session.list.C_DigestUpdate, &last), Ok(()));
    made.extend(last);
    assert_eq!(made, message());
    let digest = session.final_part(session.list.C_DigestFinal, 32).unwrap();
    assert_eq!(digest, Sha256::digest(message()).to_vec());
}

fn sign_and_encrypt_in_one_call(fixture: &TokenFixture<'_>) {
    let (session, key, sealed) = sealed(fixture);
    let signer = session.signer();
    let signing = session.signing(signer);
    assert_eq!(
        session.init(session.list.C_SignInit, signing, signer),
        Ok(())
    );
    session
        .encrypt_init(&MECHANISM, key)
        .expect("C_EncryptInit");
    let mut made = Vec::new();
    for part in message().chunks(33) {
        made.extend(
            session
                .run(session.list.C_SignEncryptUpdate, part, 200)
                .unwrap(),
        );
    }
    made.extend(
        session
            .final_part(session.list.C_EncryptFinal, 200)
            .unwrap(),
    );
    assert_eq!(made, sealed);
    let signature = session.final_part(session.list.C_SignFinal, 600).unwrap();
    let public = session.public_of(signer);
    assert_eq!(
        session.init(session.list.C_VerifyInit, signing, public),
        Ok(())
    );
    assert_eq!(session.check_signature(&message(), &signature), Ok(()));
}

fn decrypt_and_verify_in_one_call(fixture: &TokenFixture<'_>) {
    let (session, key, sealed) = sealed(fixture);
    let signer = session.signer();
    let signing = session.signing(signer);
    assert_eq!(
        session.init(session.list.C_SignInit, signing, signer),
        Ok(())
    );
    let signature = session.run(session.list.C_Sign, &message(), 600).unwrap();
    let public = session.public_of(signer);
    assert_eq!(
        session.init(session.list.C_VerifyInit, signing, public),
        Ok(())
    );
    session
        .decrypt_init(&MECHANISM, key)
        .expect("C_DecryptInit");
    let mut made = Vec::new();
    for part in sealed.chunks(40) {
        made.extend(
            session
                .run(session.list.C_DecryptVerifyUpdate, part, 200)
                .unwrap(),
        );
    }
    let last = session
        .final_part(session.list.C_DecryptFinal, 200)
        .unwrap();
    assert_eq!(session.update(session.list.C_VerifyUpdate, &last), Ok(()));
    made.extend(last);
    assert_eq!(made, message());
    assert_eq!(
        session.update(session.list.C_VerifyFinal, &signature),
        Ok(())
    );
}

fn both_operations_must_be_active(fixture: &TokenFixture<'_>) {
    let (session, key, _) = sealed(fixture);
    let list = session.list;
    let none = Err(RvError::OperationNotInitialized);
    let functions = [
        list.C_DigestEncryptUpdate,
        list.C_DecryptDigestUpdate,
        list.C_SignEncryptUpdate,
        list.C_DecryptVerifyUpdate,
    ];
    for function in functions {
        assert_eq!(session.run(function, b"message", 200), none);
    }
    session
        .encrypt_init(&MECHANISM, key)
        .expect("C_EncryptInit");
    for function in functions {
        assert_eq!(
            session.run(function, b"message", 200),
            none,
            "one is not enough"
        );
    }
}

fn a_small_buffer_changes_neither_operation(fixture: &TokenFixture<'_>) {
    let (session, key, sealed) = sealed(fixture);
    session
        .digest_init(&Mechanism::Sha256)
        .expect("C_DigestInit");
    session
        .encrypt_init(&MECHANISM, key)
        .expect("C_EncryptInit");
    let function = session.list.C_DigestEncryptUpdate;
    assert!(session.query_len(function, &message()).unwrap() >= 144);
    let small = session.run(function, &message(), 20);
    assert_eq!(small, Err(RvError::BufferTooSmall));
    let mut made = session.run(function, &message(), 200).unwrap();
    made.extend(
        session
            .final_part(session.list.C_EncryptFinal, 200)
            .unwrap(),
    );
    assert_eq!(made, sealed);
    let digest = session.final_part(session.list.C_DigestFinal, 32).unwrap();
    assert_eq!(digest, Sha256::digest(message()).to_vec(), "hashed once");
}
