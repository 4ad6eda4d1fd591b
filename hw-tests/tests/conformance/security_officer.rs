//! The security officer (SO): logins, PINs, and objects and keys that only the SO may write (PKCS #11 3.2, 5.5.8, 5.5.9,
//! 5.6.8, 5.7 and 5.18.2).

use claviger_hw_tests::{
    fixture::token_fixture::{TestSession, TokenFixture, answered},
    for_each_card,
    provision::{ADMIN_PIN, PIN},
};
use cryptoki::{
    error::RvError,
    mechanism::Mechanism,
    object::{Attribute, AttributeType, CertificateType, ObjectClass, ObjectHandle},
    session::SessionState,
    types::AuthPin,
};
use cryptoki_sys::{CKU_SO, CKU_USER};

for_each_card! { [piv openpgp] [
    so_login_accepts_every_so_credential_of_the_applet
    wrong_so_pin_sets_the_token_flags_where_the_card_reports_its_tries
    so_login_with_an_impossible_pin_sends_no_command
    init_pin_succeeds_for_the_so_only
    a_user_whose_pin_is_blocked_gets_a_new_one
    user_pin_changes_with_and_without_login
    set_pin_with_wrong_old_pin_costs_one_try_and_keeps_the_pin
    set_pin_changes_each_so_credential_and_keeps_the_user_pin
    key_generated_by_the_so_signs_for_the_user
    so_replaces_a_certificate_on_the_token
    certificate_cannot_be_written_or_removed_without_so_login
    token_certificate_is_public_and_a_private_one_is_rejected
    token_object_that_the_applet_cannot_store_is_rejected
] }

for_each_card! { [piv_ec] [
    the_management_key_gives_no_pin_and_the_puk_makes_no_key
    so_creates_and_destroys_a_data_object_on_the_token
] }

/// The factory's management key.
const MANAGEMENT_KEY: &str = "010203040506070801020304050607080102030405060708";
const P256: &[u8] = b"\x06\x08\x2A\x86\x48\xCE\x3D\x03\x01\x07";
const NEW_PIN: &str = "7654321";

/// Who may change what is on the token.
fn so_credential(fixture: &TokenFixture<'_>) -> &'static str {
    if fixture.is_piv() {
        MANAGEMENT_KEY
    } else {
        ADMIN_PIN
    }
}

/// A read-write session with the security officer logged in by this secret.
#[track_caller]
fn so_session(fixture: &TokenFixture<'_>, secret: &str) -> TestSession {
    let session = fixture.read_write();
    assert_eq!(session.login_as(CKU_SO, secret), Ok(()));
    session
}

fn pin(text: &str) -> AuthPin {
    AuthPin::new(text.into())
}

fn init_pin(session: &TestSession, new: &str) -> Result<(), RvError> {
    answered(session.init_pin(&pin(new)))
}

fn set_pin(session: &TestSession, old: &str, new: &str) -> Result<(), RvError> {
    answered(session.set_pin(&pin(old), &pin(new)))
}

fn state(session: &TestSession) -> SessionState {
    session.get_session_info().unwrap().session_state()
}

fn so_login_accepts_every_so_credential_of_the_applet(fixture: &TokenFixture<'_>) {
    let upper = "0102030405060708".repeat(3);
    let secrets: &[&str] = if fixture.is_piv() {
        &[ADMIN_PIN, MANAGEMENT_KEY, &upper]
    } else {
        &[ADMIN_PIN]
    };
    for secret in secrets {
        let session = so_session(fixture, secret);
        assert_eq!(state(&session), SessionState::RwSecurityOfficer);
        session.logout().unwrap();
        assert_eq!(state(&session), SessionState::RwPublic);
    }
}

fn wrong_so_pin_sets_the_token_flags_where_the_card_reports_its_tries(fixture: &TokenFixture<'_>) {
    let session = fixture.read_write();
    let low = || {
        let info = fixture.module.get_token_info(fixture.slot).unwrap();
        (
            info.so_pin_count_low(),
            info.so_pin_final_try(),
            info.so_pin_locked(),
        )
    };
    // PIV has no command that reports the remaining tries of the PUK (SP 800-73-4 part 2, 3.2).
    let result = !fixture.is_piv();
    assert_eq!(low(), (false, false, false));
    let wrong = Err(RvError::PinIncorrect);
    assert_eq!(session.login_as(CKU_SO, "87654321"), wrong);
    assert_eq!(low(), (result, false, false));
    assert_eq!(session.login_as(CKU_SO, "87654321"), wrong);
    assert_eq!(low(), (result, result, false));
    assert_eq!(state(&session), SessionState::RwPublic);
    assert_eq!(session.login_as(CKU_SO, ADMIN_PIN), Ok(()));
    assert_eq!(low(), (false, false, false));
}

fn so_login_with_an_impossible_pin_sends_no_command(fixture: &TokenFixture<'_>) {
    let session = fixture.read_write();
    let long = "1".repeat(200);
    let mut impossible = vec!["", "1", "12345", long.as_str()];
    if fixture.is_piv() {
        // Neither a PUK nor digits of a key.
        let almost = "01020304050607080102030405060708010203040506070";
        impossible.extend([
            "123456789",
            almost,
            "0102030405060708010203040506070801020304050607zz",
        ]);
    }
    for secret in impossible {
        let refused = fixture.silently(|| session.login_as(CKU_SO, secret));
        assert_eq!(
            refused,
            Err(RvError::PinIncorrect),
            "{} bytes",
            secret.len()
        );
    }
    assert_eq!(session.login_as(CKU_SO, ADMIN_PIN), Ok(()));
}

fn init_pin_succeeds_for_the_so_only(fixture: &TokenFixture<'_>) {
    let reader = fixture.read_only();
    let refused = fixture.silently(|| init_pin(&reader, NEW_PIN));
    assert_eq!(refused, Err(RvError::SessionReadOnly));
    reader.end_session();
    let session = fixture.read_write();
    let not_logged_in = Err(RvError::UserNotLoggedIn);
    assert_eq!(
        fixture.silently(|| init_pin(&session, NEW_PIN)),
        not_logged_in
    );
    assert_eq!(session.login_user(), Ok(()));
    assert_eq!(
        fixture.silently(|| init_pin(&session, NEW_PIN)),
        not_logged_in
    );
    session.logout().unwrap();
    assert_eq!(session.login_as(CKU_SO, ADMIN_PIN), Ok(()));
    assert_eq!(init_pin(&session, NEW_PIN), Ok(()));
    assert_eq!(state(&session), SessionState::RwSecurityOfficer);
    session.logout().unwrap();
    assert_eq!(session.login_user(), Err(RvError::PinIncorrect));
    assert_eq!(session.login_as(CKU_USER, NEW_PIN), Ok(()));
}

fn a_user_whose_pin_is_blocked_gets_a_new_one(fixture: &TokenFixture<'_>) {
    let session = fixture.read_write();
    for _ in 0..3 {
        assert!(session.login_as(CKU_USER, "999999").is_err());
    }
    assert_eq!(session.login_user(), Err(RvError::PinLocked));
    assert_eq!(session.login_as(CKU_SO, ADMIN_PIN), Ok(()));
    assert_eq!(init_pin(&session, NEW_PIN), Ok(()));
    let info = fixture.module.get_token_info(fixture.slot).unwrap();
    assert!(!info.user_pin_locked() && !info.user_pin_count_low());
    session.logout().unwrap();
    assert_eq!(session.login_as(CKU_USER, NEW_PIN), Ok(()));
}

fn user_pin_changes_with_and_without_login(fixture: &TokenFixture<'_>) {
    let session = fixture.read_write();
    assert_eq!(set_pin(&session, PIN, NEW_PIN), Ok(()));
    assert_eq!(state(&session), SessionState::RwPublic);
    assert_eq!(session.login_user(), Err(RvError::PinIncorrect));
    assert_eq!(session.login_as(CKU_USER, NEW_PIN), Ok(()));
    assert_eq!(set_pin(&session, NEW_PIN, PIN), Ok(()));
    assert_eq!(state(&session), SessionState::RwUser);
    let key = session.signer();
    assert_eq!(
        session.init(session.list.C_SignInit, session.signing(key), key),
        Ok(())
    );
    assert!(session.run(session.list.C_Sign, b"message", 600).is_ok());
    session.logout().unwrap();
    assert_eq!(session.login_user(), Ok(()));
}

fn set_pin_with_wrong_old_pin_costs_one_try_and_keeps_the_pin(fixture: &TokenFixture<'_>) {
    let session = fixture.read_write();
    assert_eq!(
        set_pin(&session, "999999", NEW_PIN),
        Err(RvError::PinIncorrect)
    );
    let info = fixture.module.get_token_info(fixture.slot).unwrap();
    assert!(info.user_pin_count_low() && !info.user_pin_final_try());
    assert_eq!(
        session.login_as(CKU_USER, NEW_PIN),
        Err(RvError::PinIncorrect)
    );
    assert_eq!(session.login_user(), Ok(()));
}

fn set_pin_changes_each_so_credential_and_keeps_the_user_pin(fixture: &TokenFixture<'_>) {
    let other_key = "08070605040302010807060504030201".repeat(2);
    let pairs = [
        (ADMIN_PIN, "87654321"),
        (MANAGEMENT_KEY, other_key.as_str()),
    ];
    let changes = if fixture.is_piv() { 2 } else { 1 };
    for (old, new) in &pairs[..changes] {
        let session = so_session(fixture, old);
        assert_eq!(set_pin(&session, old, new), Ok(()));
        assert_eq!(state(&session), SessionState::RwSecurityOfficer);
        session.logout().unwrap();
        assert_eq!(session.login_as(CKU_SO, old), Err(RvError::PinIncorrect));
        assert_eq!(session.login_as(CKU_SO, new), Ok(()));
        session.logout().unwrap();
        assert_eq!(session.login_user(), Ok(()), "the user's is what it was");
    }
}

/// CKA_ID of a key that signs, and may be any of P-256.
fn place(fixture: &TokenFixture<'_>) -> u8 {
    if fixture.is_piv() { 1 } else { 3 }
}

fn make_key(session: &TestSession, id: u8) -> Result<(ObjectHandle, ObjectHandle), RvError> {
    let public = [Attribute::EcParams(P256.to_vec()), Attribute::Id(vec![id])];
    let private = [Attribute::Id(vec![id]), Attribute::Sign(true)];
    answered(session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private))
}

fn key_generated_by_the_so_signs_for_the_user(fixture: &TokenFixture<'_>) {
    let (session, id) = (so_session(fixture, so_credential(fixture)), place(fixture));
    let before = session.get_attributes(session.public(id), &[AttributeType::EcPoint]);
    let (public, private) = make_key(&session, id).expect("C_GenerateKeyPair");
    let point = session.get_attributes(public, &[AttributeType::EcPoint]);
    assert_ne!(point.unwrap(), before.unwrap(), "another key");
    let hidden = answered(
        session
            .get_attributes(private, &[AttributeType::Id])
            .map(drop),
    );
    assert_eq!(hidden, Err(RvError::ObjectHandleInvalid), "not for him");
    session.logout().unwrap();
    assert_eq!(session.login_user(), Ok(()));
    let key = session.private(id);
    let old = answered(
        session
            .get_attributes(private, &[AttributeType::Id])
            .map(drop),
    );
    assert_eq!(
        old,
        Err(RvError::ObjectHandleInvalid),
        "C_Logout ended the old handle"
    );
    assert_eq!(
        session.init(session.list.C_SignInit, session.signing(key), key),
        Ok(())
    );
    let signature = session
        .run(session.list.C_Sign, b"message", 64)
        .expect("C_Sign");
    assert_eq!(
        session.init(session.list.C_VerifyInit, session.signing(public), public),
        Ok(())
    );
    assert_eq!(session.check_signature(b"message", &signature), Ok(()));
}

/// The certificate of this key, as an object to be written on the token.
fn certificate(session: &TestSession, id: u8) -> Vec<Attribute> {
    let known = session.all(ObjectClass::CERTIFICATE)[0];
    let kinds = [AttributeType::Value, AttributeType::Subject];
    let fixed = [
        Attribute::Class(ObjectClass::CERTIFICATE),
        Attribute::CertificateType(CertificateType::X_509),
        Attribute::Token(true),
        Attribute::Id(vec![id]),
    ];
    [&fixed[..], &session.get_attributes(known, &kinds).unwrap()].concat()
}

fn certificates(session: &TestSession, id: u8) -> Vec<ObjectHandle> {
    let template = [
        Attribute::Class(ObjectClass::CERTIFICATE),
        Attribute::Id(vec![id]),
    ];
    session.find_objects(&template).unwrap()
}

fn so_replaces_a_certificate_on_the_token(fixture: &TokenFixture<'_>) {
    let (session, id) = (so_session(fixture, so_credential(fixture)), place(fixture));
    let template = certificate(&session, id);
    let old = certificates(&session, id)[0];
    assert_eq!(answered(session.destroy_object(old)), Ok(()));
    assert_eq!(certificates(&session, id), [], "gone");
    let gone = answered(session.get_attributes(old, &[AttributeType::Id]).map(drop));
    assert_eq!(gone, Err(RvError::ObjectHandleInvalid));
    let made = answered(session.create_object(&template)).expect("C_CreateObject");
    assert_eq!(certificates(&session, id), [made]);
    let value = session
        .get_attributes(made, &[AttributeType::Value])
        .unwrap();
    assert!(template.contains(&value[0]), "what was written is there");
    session.end_session();
    let anew = fixture.read_only();
    let found = certificates(&anew, id);
    assert_eq!(
        anew.get_attributes(found[0], &[AttributeType::Value])
            .unwrap(),
        value
    );
}

fn certificate_cannot_be_written_or_removed_without_so_login(fixture: &TokenFixture<'_>) {
    let (reader, id) = (fixture.read_only(), place(fixture));
    let template = certificate(&reader, id);
    let old = certificates(&reader, id)[0];
    let tried = |session: &TestSession| {
        let removed = fixture.silently(|| answered(session.destroy_object(old)));
        let written = fixture.silently(|| answered(session.create_object(&template)).map(drop));
        assert_eq!(removed, written);
        written
    };
    assert_eq!(tried(&reader), Err(RvError::SessionReadOnly));
    let session = fixture.read_write();
    assert_eq!(tried(&session), Err(RvError::UserNotLoggedIn));
    assert_eq!(session.login_user(), Ok(()));
    assert_eq!(tried(&session), Err(RvError::UserNotLoggedIn));
    assert_eq!(certificates(&session, id), [old]);
}

fn token_certificate_is_public_and_a_private_one_is_rejected(fixture: &TokenFixture<'_>) {
    let (session, id) = (so_session(fixture, so_credential(fixture)), place(fixture));
    let private = [certificate(&session, id), vec![Attribute::Private(true)]].concat();
    let refused = fixture.silently(|| answered(session.create_object(&private)).map(drop));
    assert_eq!(refused, Err(RvError::TemplateInconsistent));
    let public = [certificate(&session, id), vec![Attribute::Private(false)]].concat();
    let made = answered(session.create_object(&public)).expect("C_CreateObject");
    let private = session.get_attributes(made, &[AttributeType::Private]);
    assert_eq!(private.unwrap(), [Attribute::Private(false)]);
}

fn token_object_that_the_applet_cannot_store_is_rejected(fixture: &TokenFixture<'_>) {
    let session = so_session(fixture, so_credential(fixture));
    let nowhere = certificate(&session, 0xEE);
    let refused = answered(session.create_object(&nowhere)).map(drop);
    assert_eq!(refused, Err(RvError::AttributeValueInvalid));
    assert_eq!(
        make_key(&session, 0xEE).map(drop),
        Err(RvError::AttributeValueInvalid)
    );
    let data = data(b"\x06\x03\x2A\x03\x04");
    let refused = answered(session.create_object(&data)).map(drop);
    assert_eq!(refused, Err(RvError::AttributeValueInvalid));
    let key = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::Token(true),
        Attribute::Value(vec![1; 16]),
    ];
    let refused = fixture.silently(|| answered(session.create_object(&key)).map(drop));
    assert_eq!(refused, Err(RvError::TemplateInconsistent));
}

fn the_management_key_gives_no_pin_and_the_puk_makes_no_key(fixture: &TokenFixture<'_>) {
    let session = so_session(fixture, MANAGEMENT_KEY);
    assert_eq!(init_pin(&session, NEW_PIN), Err(RvError::UserNotLoggedIn));
    session.logout().unwrap();
    assert_eq!(session.login_as(CKU_SO, ADMIN_PIN), Ok(()));
    assert_eq!(
        make_key(&session, 1).map(drop),
        Err(RvError::UserNotLoggedIn)
    );
    let old = certificates(&session, 1)[0];
    let removed = answered(session.destroy_object(old));
    assert_eq!(removed, Err(RvError::UserNotLoggedIn));
    session.logout().unwrap();
    assert_eq!(session.login_user(), Ok(()), "the PIN is what it was");
}

fn data(oid: &[u8]) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::DATA),
        Attribute::Token(true),
        Attribute::ObjectId(oid.to_vec()),
        Attribute::Value(b"signed".to_vec()),
    ]
}

fn so_creates_and_destroys_a_data_object_on_the_token(fixture: &TokenFixture<'_>) {
    let session = so_session(fixture, MANAGEMENT_KEY);
    // The security object (SP 800-73-4 part 1, table 3).
    let oid = b"\x06\x0B\x60\x86\x48\x01\x65\x03\x07\x02\x81\x10\x00";
    let template = data(oid);
    let made = answered(session.create_object(&template)).expect("C_CreateObject");
    assert_eq!(session.find_objects(&template).unwrap(), [made]);
    assert_eq!(answered(session.destroy_object(made)), Ok(()));
    assert_eq!(session.find_objects(&template).unwrap(), []);
}
