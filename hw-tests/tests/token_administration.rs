//! The token crate administers real firmware: PINs, keys, certificates and data, as the card itself has it.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "helpers of a test fail loudly"
)]

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use claviger_apdu::{Call, Secret};
use claviger_driver::{Backend, socket::SocketBackend};
use claviger_hw_tests::{fixture::card_fixture::Rig, provision::Plan};
use claviger_token::{
    AppletKind, Card, Object, Parameter, SignOperation, Template, Token, TokenError, Value,
    algorithm::{Curve, KeyAlgorithm, PublicKey},
    operation::mechanism_for,
};
use cryptoki_sys::{
    CK_OBJECT_CLASS, CKA_CLASS, CKA_ID, CKA_LABEL, CKA_VALUE, CKF_SIGN, CKM_ECDSA, CKO_CERTIFICATE,
    CKO_DATA, CKO_PRIVATE_KEY, CKO_PUBLIC_KEY,
};
use p256::ecdsa::{Signature, VerifyingKey, signature::hazmat::PrehashVerifier as _};

/// The factory's management key, 3DES.
const FACTORY_KEY: &str = "010203040506070801020304050607080102030405060708";
const P256: KeyAlgorithm = KeyAlgorithm::Ec(Curve::P256);
const P384: KeyAlgorithm = KeyAlgorithm::Ec(Curve::P384);
const DIGEST: [u8; 32] = [0x5A; 32];

/// A token on its card, through the socket.
struct Desk {
    rig: Rig,
    card: Card,
    token: Token,
}

impl Desk {
    fn of(plan: Plan, kind: AppletKind) -> Self {
        let rig = Rig::socket(plan);
        let (card, token) = connect(&rig, kind);
        Self { rig, card, token }
    }

    /// Another program's view of the same card.
    fn elsewhere(&self) -> (Card, Token) {
        connect(&self.rig, self.token.kind())
    }

    fn generate(
        &mut self,
        reference: u8,
        algorithm: KeyAlgorithm,
    ) -> Result<PublicKey, TokenError> {
        let created = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        self.token
            .generate_key(&mut self.card, reference, algorithm, created)
    }

    fn find(&mut self, class: CK_OBJECT_CLASS, id: u8) -> Vec<Arc<Object>> {
        find(&mut self.card, &mut self.token, class, id)
    }
}

fn connect(rig: &Rig, kind: AppletKind) -> (Card, Token) {
    let call = || Call::within(Duration::from_secs(10));
    let backend = SocketBackend::new(vec![rig.socket_path()]);
    let readers = backend.watch().now(call());
    let transport = backend
        .connect(&readers.readers[0].id, call())
        .expect("the card is there");
    let mut card = Card::new(transport);
    let tokens = Token::discover(&mut card).expect("the card answers");
    let token = tokens
        .into_iter()
        .find(|token| token.kind() == kind)
        .expect("the card has the applet");
    (card, token)
}

fn find(card: &mut Card, token: &mut Token, class: CK_OBJECT_CLASS, id: u8) -> Vec<Arc<Object>> {
    let template = Template(vec![
        (CKA_CLASS, class.to_ne_bytes().to_vec()),
        (CKA_ID, vec![id]),
    ]);
    token.find(card, &template).expect("the card answers")
}

fn secret(text: &str) -> Secret {
    Secret::copy_from(text.as_bytes())
}

/// What the private key found by `id` makes of the digest.
fn sign(desk: &mut Desk, id: u8) -> Signature {
    let found = desk.find(CKO_PRIVATE_KEY, id);
    let mechanism = mechanism_for(CKM_ECDSA, CKF_SIGN).expect("known");
    let mut operation =
        SignOperation::new(mechanism, &Parameter::None, &found[0], false).expect("an ECDSA key");
    operation.update(&DIGEST).expect("a digest");
    let signature = desk
        .token
        .sign(&mut desk.card, &mut operation)
        .expect("the card signs");
    Signature::from_slice(signature.expose()).expect("r and s")
}

/// That the private key found by `id` signs for `public`.
fn assert_signs(desk: &mut Desk, id: u8, public: &PublicKey) {
    let PublicKey::Ec { point, .. } = public else {
        unreachable!("{public:?}");
    };
    let key = VerifyingKey::from_sec1_bytes(point).expect("a point");
    key.verify_prehash(&DIGEST, &sign(desk, id))
        .expect("the key that was made made the signature");
}

fn value(object: &Object) -> &[u8] {
    match object.get(CKA_VALUE) {
        Some(Value::Bytes(value)) => value,
        other => unreachable!("{other:?}"),
    }
}

fn piv() -> Desk {
    Desk::of(Plan::piv4(), AppletKind::Piv)
}

fn openpgp() -> Desk {
    Desk::of(Plan::pgp3(), AppletKind::OpenPgp)
}

#[test]
fn the_management_key_makes_keys_that_sign() {
    let mut desk = piv();
    let wrong = secret(&FACTORY_KEY.replace("08", "18"));
    let refused = desk.token.so_login(&mut desk.card, &wrong);
    assert!(matches!(refused, Err(TokenError::WrongSoPin { .. })));
    let nobody = desk.generate(0x9A, P256);
    assert!(matches!(nobody, Err(TokenError::NotLoggedIn { .. })));
    desk.token
        .so_login(&mut desk.card, &secret(FACTORY_KEY))
        .unwrap();
    let rsa = KeyAlgorithm::Rsa { bits: 4096 };
    assert!(desk.token.generable().contains(&rsa), "the card lists it");
    desk.generate(0x9C, P384).unwrap();
    let public = desk.generate(0x9A, P256).unwrap();
    desk.token.logout(&mut desk.card).unwrap();
    desk.token.login(&mut desk.card, &secret("123456")).unwrap();
    // The certificate in 9A is of the key before; the card itself tells nothing of its keys.
    assert_signs(&mut desk, 1, &public);
}

#[test]
fn certificates_and_data_of_a_piv_card_are_written_read_and_removed() {
    let mut desk = piv();
    let der = desk.rig.certificate("piv-9A").to_vec();
    desk.token
        .so_login(&mut desk.card, &secret(FACTORY_KEY))
        .unwrap();
    desk.token
        .put_certificate(&mut desk.card, 0x9A, None)
        .unwrap();
    assert!(desk.find(CKO_CERTIFICATE, 1).is_empty());
    for (reference, id) in [(0x9A, 1), (0x83, 6)] {
        desk.token
            .put_certificate(&mut desk.card, reference, Some(&der))
            .unwrap();
        assert_eq!(value(&desk.find(CKO_CERTIFICATE, id)[0]), der);
        let (mut card, mut token) = desk.elsewhere();
        let found = find(&mut card, &mut token, CKO_CERTIFICATE, id);
        assert_eq!(value(&found[0]), der, "another program sees it");
    }
    let security_object = Template(vec![
        (CKA_CLASS, CKO_DATA.to_ne_bytes().to_vec()),
        (CKA_LABEL, b"Security Object".to_vec()),
    ]);
    desk.token
        .put_data(&mut desk.card, 0x5F_C106, Some(b"signed"))
        .unwrap();
    let found = desk.token.find(&mut desk.card, &security_object).unwrap();
    assert_eq!(value(&found[0]), b"signed");
    desk.token
        .put_data(&mut desk.card, 0x5F_C106, None)
        .unwrap();
    let found = desk.token.find(&mut desk.card, &security_object).unwrap();
    assert!(found.is_empty());
}

#[test]
fn the_puk_gives_a_new_pin_and_is_changed_itself() {
    let mut desk = piv();
    let Desk { card, token, .. } = &mut desk;
    let (puk, other_puk) = (secret("12345678"), secret("87654321"));
    let wrong = token.so_login(card, &other_puk);
    assert!(matches!(wrong, Err(TokenError::WrongSoPin { .. })));
    token.so_login(card, &puk).unwrap();
    token.init_pin(card, &secret("654321")).unwrap();
    token.set_pin(card, &puk, &other_puk).unwrap();
    token.init_pin(card, &secret("765432")).unwrap();
    token.logout(card).unwrap();
    let old = token.login(card, &secret("123456"));
    assert!(matches!(
        old,
        Err(TokenError::WrongPin {
            tries_left: Some(2)
        })
    ));
    token.login(card, &secret("765432")).unwrap();
}

#[test]
fn a_piv_pin_is_changed_by_who_knows_it() {
    let mut desk = piv();
    let (old, new) = (secret("123456"), secret("6543210"));
    let Desk { card, token, .. } = &mut desk;
    let wrong = token.set_pin(card, &new, &old);
    assert!(matches!(
        wrong,
        Err(TokenError::WrongPin {
            tries_left: Some(2)
        })
    ));
    let letters = token.set_pin(card, &old, &secret("letters"));
    assert!(matches!(letters, Err(TokenError::NewPinInvalid { .. })));
    token.login(card, &old).unwrap();
    token.set_pin(card, &old, &new).unwrap();
    assert!(token.is_logged_in());
    // The card is reset: the login is restored with the PIN that holds now.
    desk.rig.reset();
    sign(&mut desk, 1);
}

#[test]
fn the_management_key_is_changed_for_one_of_another_cipher() {
    let mut desk = piv();
    let Desk { card, token, .. } = &mut desk;
    let aes = secret(&"c0ffee42".repeat(8));
    token.so_login(card, &secret(FACTORY_KEY)).unwrap();
    token.set_pin(card, &secret(FACTORY_KEY), &aes).unwrap();
    token.put_certificate(card, 0x9D, None).unwrap();
    token.logout(card).unwrap();
    let old = token.so_login(card, &secret(FACTORY_KEY));
    assert!(matches!(old, Err(TokenError::WrongSoPin { .. })));
    token.so_login(card, &aes).unwrap();
}

#[test]
fn the_admin_pin_makes_keys_that_sign() {
    let mut desk = openpgp();
    let wrong = desk.token.so_login(&mut desk.card, &secret("87654321"));
    assert!(matches!(
        wrong,
        Err(TokenError::WrongSoPin {
            tries_left: Some(2)
        })
    ));
    desk.token
        .so_login(&mut desk.card, &secret("12345678"))
        .unwrap();
    assert!(desk.token.generable().contains(&P384), "the card lists it");
    for (reference, algorithm) in [
        (1, P384),
        (1, KeyAlgorithm::Ed25519),
        (2, P256),
        (2, KeyAlgorithm::X25519),
        (3, P384),
    ] {
        let public = desk.generate(reference, algorithm).unwrap();
        assert_eq!(public.algorithm(), algorithm);
        assert_eq!(desk.find(CKO_PUBLIC_KEY, reference).len(), 1);
    }
    let not_there = desk.generate(1, KeyAlgorithm::X25519);
    assert!(matches!(not_there, Err(TokenError::KeyNotGenerable(_))));
    let public = desk.generate(3, P256).unwrap();
    desk.token.logout(&mut desk.card).unwrap();
    desk.token.login(&mut desk.card, &secret("123456")).unwrap();
    assert_signs(&mut desk, 3, &public);
}

#[test]
fn certificates_of_all_three_keys_of_an_openpgp_card_are_written_read_and_removed() {
    let mut desk = openpgp();
    let der = desk.rig.certificate("openpgp-03").to_vec();
    desk.token
        .so_login(&mut desk.card, &secret("12345678"))
        .unwrap();
    for reference in [1, 2, 3] {
        desk.token
            .put_certificate(&mut desk.card, reference, Some(&der))
            .unwrap();
        assert_eq!(value(&desk.find(CKO_CERTIFICATE, reference)[0]), der);
    }
    desk.token.put_certificate(&mut desk.card, 2, None).unwrap();
    let (mut card, mut token) = desk.elsewhere();
    let counts = [1, 2, 3].map(|id| find(&mut card, &mut token, CKO_CERTIFICATE, id).len());
    assert_eq!(counts, [1, 0, 1]);
}

#[test]
fn the_passwords_of_an_openpgp_card_are_changed() {
    let mut desk = openpgp();
    let Desk { card, token, .. } = &mut desk;
    let (user, admin) = (secret("123456"), secret("12345678"));
    let longer = token.set_pin(card, &secret("1234567"), &secret("654321"));
    assert!(
        matches!(longer, Err(TokenError::WrongPin { .. })),
        "1234567 begins with the PIN and is not it"
    );
    token.set_pin(card, &user, &secret("654321")).unwrap();
    token.login(card, &secret("654321")).unwrap();
    token.logout(card).unwrap();
    token.so_login(card, &admin).unwrap();
    token.set_pin(card, &admin, &secret("87654321")).unwrap();
    token.init_pin(card, &secret("765432")).unwrap();
    token.logout(card).unwrap();
    let old = token.so_login(card, &admin);
    assert!(matches!(old, Err(TokenError::WrongSoPin { .. })));
    token.login(card, &secret("765432")).unwrap();
}

#[test]
fn an_openpgp_card_that_announces_no_random_numbers_is_not_asked_for_any() {
    let mut desk = openpgp();
    desk.rig.card().zero();
    assert!(!desk.token.has_random());
    assert!(desk.token.random(&mut desk.card, 8).unwrap().is_none());
    assert_eq!(desk.rig.card().counts().apdus, 0);
}
