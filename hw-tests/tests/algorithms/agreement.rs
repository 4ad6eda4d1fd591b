//! Key agreement: the card and OpenSSL derive the same shared secrets.

use cryptoki::{
    mechanism::{
        Mechanism,
        elliptic_curve::{EcKdf, Ecdh1DeriveParams},
    },
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
};
use p256::{elliptic_curve::Generate as _, pkcs8::EncodePrivateKey as _};

use claviger_hw_tests::{
    fixture::token_fixture::{TestSession, TokenFixture},
    for_each_card,
};

use crate::openssl::{OpenSsl, point_of};

for_each_card! { [piv_p256 piv_p384 openpgp_p256 openpgp_p384 openpgp_p521 openpgp_25519] [
    card_and_openssl_share_a_secret
    shared_secret_keeps_its_leading_zero
] }

/// A session, the key that agrees, and its public half for OpenSSL.
fn agreement(
    fixture: &TokenFixture<'_>,
) -> (OpenSsl, TestSession, ObjectHandle, std::path::PathBuf) {
    let (openssl, session) = (OpenSsl::new(fixture.process), fixture.user());
    let key = session.private_with(&[Attribute::Derive(true)])[0];
    let public = openssl.public(&session, key);
    (openssl, session, key, public)
}

fn shared(session: &TestSession, key: ObjectHandle, peer: &[u8]) -> Vec<u8> {
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ];
    let mechanism = Mechanism::Ecdh1Derive(Ecdh1DeriveParams::new(EcKdf::null(), peer));
    let secret = session
        .derive_key(&mechanism, key, &template)
        .expect("C_DeriveKey");
    let result = session.get_attributes(secret, &[AttributeType::Value]);
    session.destroy_object(secret).expect("C_DestroyObject");
    match result.expect("C_GetAttributeValue").as_slice() {
        [Attribute::Value(value)] => value.clone(),
        other => panic!("{other:?}"),
    }
}

/// The curve's name at OpenSSL.
fn curve(session: &TestSession, key: ObjectHandle) -> &'static str {
    let result = session
        .get_attributes(key, &[AttributeType::EcParams])
        .unwrap();
    match result.as_slice() {
        [Attribute::EcParams(oid)] => match oid.as_slice() {
            [.., 0x03, 0x01, 0x07] => "P-256",
            [.., 0x22] => "P-384",
            [.., 0x23] => "P-521",
            [.., 0x6E] | [.., 0x05, 0x01] => "X25519",
            other => panic!("{other:02x?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn card_and_openssl_share_a_secret(fixture: &TokenFixture<'_>) {
    let (openssl, session, key, public) = agreement(fixture);
    for _ in 0..8 {
        let private = openssl.private(curve(&session, key));
        let expected = openssl.derive(&private, &public);
        assert_eq!(
            shared(&session, key, &point_of(&openssl.info_of(&private))),
            expected
        );
    }
}

/// One in 256; looked for on P-256, where this process makes keys fast, and by chance elsewhere.
fn shared_secret_keeps_its_leading_zero(fixture: &TokenFixture<'_>) {
    const TRIES: u32 = 5000;
    let (openssl, session, key, public) = agreement(fixture);
    if curve(&session, key) != "P-256" {
        let private = openssl.private(curve(&session, key));
        let expected = openssl.derive(&private, &public);
        let secret = shared(&session, key, &point_of(&openssl.info_of(&private)));
        assert_eq!((secret.len(), secret), (expected.len(), expected));
        return;
    }
    for tries in 1..=TRIES {
        let private = p256::SecretKey::generate();
        let point = private.public_key().to_sec1_bytes();
        let secret = shared(&session, key, &point);
        if secret[0] == 0 {
            println!("after {tries} secrets");
            let pem = private.to_pkcs8_pem(p256::pkcs8::LineEnding::LF).unwrap();
            let private = openssl.file(pem.as_bytes());
            assert_eq!(secret, openssl.derive(&private, &public));
            return;
        }
    }
    panic!("none of {TRIES} secrets has a leading zero");
}
