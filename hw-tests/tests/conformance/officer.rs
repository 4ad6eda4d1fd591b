//! The security officer through the module: how he logs in, what he does, and what he leaves to the user
//! (PKCS #11 3.2, 5.5.8, 5.5.9, 5.6.8, 5.7 and 5.18.2).

use claviger_hw_tests::{
    fixture::token_fixture::{Bench, Seat, answered},
    on_cards,
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

on_cards! { [piv openpgp] [
    each_secret_of_the_security_officer_logs_him_in
    a_wrong_secret_costs_one_try_and_the_flags_tell
    a_secret_that_cannot_be_costs_no_try
    a_pin_is_given_by_the_security_officer_alone
    a_user_whose_pin_is_blocked_gets_a_new_one
    a_user_changes_his_pin_whether_logged_in_or_not
    a_wrong_old_pin_costs_one_try_and_changes_nothing
    the_security_officer_changes_his_own_secret
    a_key_made_by_the_security_officer_signs_for_the_user
    a_certificate_is_written_and_removed_by_the_security_officer
    a_certificate_is_written_and_removed_by_nobody_else
    what_is_written_on_the_token_is_public
    what_the_token_has_no_place_for_is_not_written
] }

on_cards! { [piv_ec] [
    the_management_key_gives_no_pin_and_the_puk_makes_no_key
    a_data_object_is_written_and_removed_by_the_security_officer
] }

/// The factory's management key.
const MANAGEMENT_KEY: &str = "010203040506070801020304050607080102030405060708";
const P256: &[u8] = b"\x06\x08\x2A\x86\x48\xCE\x3D\x03\x01\x07";
const NEW_PIN: &str = "7654321";

/// Who may change what is on the token.
fn keeper(bench: &Bench<'_>) -> &'static str {
    if bench.is_piv() {
        MANAGEMENT_KEY
    } else {
        ADMIN_PIN
    }
}

/// A read-write session with the security officer logged in by this secret.
#[track_caller]
fn officer(bench: &Bench<'_>, secret: &str) -> Seat {
    let seat = bench.read_write();
    assert_eq!(seat.enter(CKU_SO, secret), Ok(()));
    seat
}

fn pin(text: &str) -> AuthPin {
    AuthPin::new(text.into())
}

fn init_pin(seat: &Seat, new: &str) -> Result<(), RvError> {
    answered(seat.init_pin(&pin(new)))
}

fn set_pin(seat: &Seat, old: &str, new: &str) -> Result<(), RvError> {
    answered(seat.set_pin(&pin(old), &pin(new)))
}

fn state(seat: &Seat) -> SessionState {
    seat.get_session_info().unwrap().session_state()
}

fn each_secret_of_the_security_officer_logs_him_in(bench: &Bench<'_>) {
    let upper = "0102030405060708".repeat(3);
    let secrets: &[&str] = if bench.is_piv() {
        &[ADMIN_PIN, MANAGEMENT_KEY, &upper]
    } else {
        &[ADMIN_PIN]
    };
    for secret in secrets {
        let seat = officer(bench, secret);
        assert_eq!(state(&seat), SessionState::RwSecurityOfficer);
        seat.logout().unwrap();
        assert_eq!(state(&seat), SessionState::RwPublic);
    }
}

fn a_wrong_secret_costs_one_try_and_the_flags_tell(bench: &Bench<'_>) {
    let seat = bench.read_write();
    let low = || {
        let info = bench.module.get_token_info(bench.slot).unwrap();
        (
            info.so_pin_count_low(),
            info.so_pin_final_try(),
            info.so_pin_locked(),
        )
    };
    // PIV has no command that tells the tries left for the PUK (SP 800-73-4 part 2, 3.2).
    let told = !bench.is_piv();
    assert_eq!(low(), (false, false, false));
    let wrong = Err(RvError::PinIncorrect);
    assert_eq!(seat.enter(CKU_SO, "87654321"), wrong);
    assert_eq!(low(), (told, false, false));
    assert_eq!(seat.enter(CKU_SO, "87654321"), wrong);
    assert_eq!(low(), (told, told, false));
    assert_eq!(state(&seat), SessionState::RwPublic);
    assert_eq!(seat.enter(CKU_SO, ADMIN_PIN), Ok(()));
    assert_eq!(low(), (false, false, false));
}

fn a_secret_that_cannot_be_costs_no_try(bench: &Bench<'_>) {
    let seat = bench.read_write();
    let long = "1".repeat(200);
    let mut impossible = vec!["", "1", "12345", long.as_str()];
    if bench.is_piv() {
        // Neither a PUK nor digits of a key.
        let almost = "01020304050607080102030405060708010203040506070";
        impossible.extend([
            "123456789",
            almost,
            "0102030405060708010203040506070801020304050607zz",
        ]);
    }
    for secret in impossible {
        let refused = bench.silently(|| seat.enter(CKU_SO, secret));
        assert_eq!(
            refused,
            Err(RvError::PinIncorrect),
            "{} bytes",
            secret.len()
        );
    }
    assert_eq!(seat.enter(CKU_SO, ADMIN_PIN), Ok(()));
}

fn a_pin_is_given_by_the_security_officer_alone(bench: &Bench<'_>) {
    let reader = bench.read_only();
    let refused = bench.silently(|| init_pin(&reader, NEW_PIN));
    assert_eq!(refused, Err(RvError::SessionReadOnly));
    reader.leave();
    let seat = bench.read_write();
    let nobody = Err(RvError::UserNotLoggedIn);
    assert_eq!(bench.silently(|| init_pin(&seat, NEW_PIN)), nobody);
    assert_eq!(seat.enter_user(), Ok(()));
    assert_eq!(bench.silently(|| init_pin(&seat, NEW_PIN)), nobody);
    seat.logout().unwrap();
    assert_eq!(seat.enter(CKU_SO, ADMIN_PIN), Ok(()));
    assert_eq!(init_pin(&seat, NEW_PIN), Ok(()));
    assert_eq!(state(&seat), SessionState::RwSecurityOfficer);
    seat.logout().unwrap();
    assert_eq!(seat.enter_user(), Err(RvError::PinIncorrect));
    assert_eq!(seat.enter(CKU_USER, NEW_PIN), Ok(()));
}

fn a_user_whose_pin_is_blocked_gets_a_new_one(bench: &Bench<'_>) {
    let seat = bench.read_write();
    for _ in 0..3 {
        assert!(seat.enter(CKU_USER, "999999").is_err());
    }
    assert_eq!(seat.enter_user(), Err(RvError::PinLocked));
    assert_eq!(seat.enter(CKU_SO, ADMIN_PIN), Ok(()));
    assert_eq!(init_pin(&seat, NEW_PIN), Ok(()));
    let info = bench.module.get_token_info(bench.slot).unwrap();
    assert!(!info.user_pin_locked() && !info.user_pin_count_low());
    seat.logout().unwrap();
    assert_eq!(seat.enter(CKU_USER, NEW_PIN), Ok(()));
}

fn a_user_changes_his_pin_whether_logged_in_or_not(bench: &Bench<'_>) {
    let seat = bench.read_write();
    assert_eq!(set_pin(&seat, PIN, NEW_PIN), Ok(()));
    assert_eq!(state(&seat), SessionState::RwPublic);
    assert_eq!(seat.enter_user(), Err(RvError::PinIncorrect));
    assert_eq!(seat.enter(CKU_USER, NEW_PIN), Ok(()));
    assert_eq!(set_pin(&seat, NEW_PIN, PIN), Ok(()));
    assert_eq!(state(&seat), SessionState::RwUser);
    let key = seat.signer();
    assert_eq!(
        seat.init(seat.list.C_SignInit, seat.signing(key), key),
        Ok(())
    );
    assert!(seat.run(seat.list.C_Sign, b"message", 600).is_ok());
    seat.logout().unwrap();
    assert_eq!(seat.enter_user(), Ok(()));
}

fn a_wrong_old_pin_costs_one_try_and_changes_nothing(bench: &Bench<'_>) {
    let seat = bench.read_write();
    assert_eq!(
        set_pin(&seat, "999999", NEW_PIN),
        Err(RvError::PinIncorrect)
    );
    let info = bench.module.get_token_info(bench.slot).unwrap();
    assert!(info.user_pin_count_low() && !info.user_pin_final_try());
    assert_eq!(seat.enter(CKU_USER, NEW_PIN), Err(RvError::PinIncorrect));
    assert_eq!(seat.enter_user(), Ok(()));
}

fn the_security_officer_changes_his_own_secret(bench: &Bench<'_>) {
    let other_key = "08070605040302010807060504030201".repeat(2);
    let pairs = [
        (ADMIN_PIN, "87654321"),
        (MANAGEMENT_KEY, other_key.as_str()),
    ];
    let changes = if bench.is_piv() { 2 } else { 1 };
    for (old, new) in &pairs[..changes] {
        let seat = officer(bench, old);
        assert_eq!(set_pin(&seat, old, new), Ok(()));
        assert_eq!(state(&seat), SessionState::RwSecurityOfficer);
        seat.logout().unwrap();
        assert_eq!(seat.enter(CKU_SO, old), Err(RvError::PinIncorrect));
        assert_eq!(seat.enter(CKU_SO, new), Ok(()));
        seat.logout().unwrap();
        assert_eq!(seat.enter_user(), Ok(()), "the user's is what it was");
    }
}

/// CKA_ID of a key that signs, and may be any of P-256.
fn place(bench: &Bench<'_>) -> u8 {
    if bench.is_piv() { 1 } else { 3 }
}

fn make_key(seat: &Seat, id: u8) -> Result<(ObjectHandle, ObjectHandle), RvError> {
    let public = [Attribute::EcParams(P256.to_vec()), Attribute::Id(vec![id])];
    let private = [Attribute::Id(vec![id]), Attribute::Sign(true)];
    answered(seat.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private))
}

fn a_key_made_by_the_security_officer_signs_for_the_user(bench: &Bench<'_>) {
    let (seat, id) = (officer(bench, keeper(bench)), place(bench));
    let before = seat.get_attributes(seat.public(id), &[AttributeType::EcPoint]);
    let (public, private) = make_key(&seat, id).expect("C_GenerateKeyPair");
    let point = seat.get_attributes(public, &[AttributeType::EcPoint]);
    assert_ne!(point.unwrap(), before.unwrap(), "another key");
    let hidden = answered(seat.get_attributes(private, &[AttributeType::Id]).map(drop));
    assert_eq!(hidden, Err(RvError::ObjectHandleInvalid), "not for him");
    seat.logout().unwrap();
    assert_eq!(seat.enter_user(), Ok(()));
    let key = seat.private(id);
    let old = answered(seat.get_attributes(private, &[AttributeType::Id]).map(drop));
    assert_eq!(
        old,
        Err(RvError::ObjectHandleInvalid),
        "C_Logout ended the old handle"
    );
    assert_eq!(
        seat.init(seat.list.C_SignInit, seat.signing(key), key),
        Ok(())
    );
    let signature = seat.run(seat.list.C_Sign, b"message", 64).expect("C_Sign");
    assert_eq!(
        seat.init(seat.list.C_VerifyInit, seat.signing(public), public),
        Ok(())
    );
    assert_eq!(seat.judge(b"message", &signature), Ok(()));
}

/// The certificate of this key, as an object to be written on the token.
fn certificate(seat: &Seat, id: u8) -> Vec<Attribute> {
    let known = seat.all(ObjectClass::CERTIFICATE)[0];
    let kinds = [AttributeType::Value, AttributeType::Subject];
    let fixed = [
        Attribute::Class(ObjectClass::CERTIFICATE),
        Attribute::CertificateType(CertificateType::X_509),
        Attribute::Token(true),
        Attribute::Id(vec![id]),
    ];
    [&fixed[..], &seat.get_attributes(known, &kinds).unwrap()].concat()
}

fn certificates(seat: &Seat, id: u8) -> Vec<ObjectHandle> {
    let template = [
        Attribute::Class(ObjectClass::CERTIFICATE),
        Attribute::Id(vec![id]),
    ];
    seat.find_objects(&template).unwrap()
}

fn a_certificate_is_written_and_removed_by_the_security_officer(bench: &Bench<'_>) {
    let (seat, id) = (officer(bench, keeper(bench)), place(bench));
    let template = certificate(&seat, id);
    let old = certificates(&seat, id)[0];
    assert_eq!(answered(seat.destroy_object(old)), Ok(()));
    assert_eq!(certificates(&seat, id), [], "gone");
    let gone = answered(seat.get_attributes(old, &[AttributeType::Id]).map(drop));
    assert_eq!(gone, Err(RvError::ObjectHandleInvalid));
    let made = answered(seat.create_object(&template)).expect("C_CreateObject");
    assert_eq!(certificates(&seat, id), [made]);
    let value = seat.get_attributes(made, &[AttributeType::Value]).unwrap();
    assert!(template.contains(&value[0]), "what was written is there");
    seat.leave();
    let anew = bench.read_only();
    let found = certificates(&anew, id);
    assert_eq!(
        anew.get_attributes(found[0], &[AttributeType::Value])
            .unwrap(),
        value
    );
}

fn a_certificate_is_written_and_removed_by_nobody_else(bench: &Bench<'_>) {
    let (reader, id) = (bench.read_only(), place(bench));
    let template = certificate(&reader, id);
    let old = certificates(&reader, id)[0];
    let tried = |seat: &Seat| {
        let removed = bench.silently(|| answered(seat.destroy_object(old)));
        let written = bench.silently(|| answered(seat.create_object(&template)).map(drop));
        assert_eq!(removed, written);
        written
    };
    assert_eq!(tried(&reader), Err(RvError::SessionReadOnly));
    let seat = bench.read_write();
    assert_eq!(tried(&seat), Err(RvError::UserNotLoggedIn));
    assert_eq!(seat.enter_user(), Ok(()));
    assert_eq!(tried(&seat), Err(RvError::UserNotLoggedIn));
    assert_eq!(certificates(&seat, id), [old]);
}

fn what_is_written_on_the_token_is_public(bench: &Bench<'_>) {
    let (seat, id) = (officer(bench, keeper(bench)), place(bench));
    let private = [certificate(&seat, id), vec![Attribute::Private(true)]].concat();
    let refused = bench.silently(|| answered(seat.create_object(&private)).map(drop));
    assert_eq!(refused, Err(RvError::TemplateInconsistent));
    let public = [certificate(&seat, id), vec![Attribute::Private(false)]].concat();
    let made = answered(seat.create_object(&public)).expect("C_CreateObject");
    let said = seat.get_attributes(made, &[AttributeType::Private]);
    assert_eq!(said.unwrap(), [Attribute::Private(false)]);
}

fn what_the_token_has_no_place_for_is_not_written(bench: &Bench<'_>) {
    let seat = officer(bench, keeper(bench));
    let nowhere = certificate(&seat, 0xEE);
    let refused = answered(seat.create_object(&nowhere)).map(drop);
    assert_eq!(refused, Err(RvError::AttributeValueInvalid));
    assert_eq!(
        make_key(&seat, 0xEE).map(drop),
        Err(RvError::AttributeValueInvalid)
    );
    let data = data(b"\x06\x03\x2A\x03\x04");
    let refused = answered(seat.create_object(&data)).map(drop);
    assert_eq!(refused, Err(RvError::AttributeValueInvalid));
    let key = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::Token(true),
        Attribute::Value(vec![1; 16]),
    ];
    let refused = bench.silently(|| answered(seat.create_object(&key)).map(drop));
    assert_eq!(refused, Err(RvError::TemplateInconsistent));
}

fn the_management_key_gives_no_pin_and_the_puk_makes_no_key(bench: &Bench<'_>) {
    let seat = officer(bench, MANAGEMENT_KEY);
    assert_eq!(init_pin(&seat, NEW_PIN), Err(RvError::UserNotLoggedIn));
    seat.logout().unwrap();
    assert_eq!(seat.enter(CKU_SO, ADMIN_PIN), Ok(()));
    assert_eq!(make_key(&seat, 1).map(drop), Err(RvError::UserNotLoggedIn));
    let old = certificates(&seat, 1)[0];
    let removed = answered(seat.destroy_object(old));
    assert_eq!(removed, Err(RvError::UserNotLoggedIn));
    seat.logout().unwrap();
    assert_eq!(seat.enter_user(), Ok(()), "the PIN is what it was");
}

fn data(oid: &[u8]) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::DATA),
        Attribute::Token(true),
        Attribute::ObjectId(oid.to_vec()),
        Attribute::Value(b"signed".to_vec()),
    ]
}

fn a_data_object_is_written_and_removed_by_the_security_officer(bench: &Bench<'_>) {
    let seat = officer(bench, MANAGEMENT_KEY);
    // The security object (SP 800-73-4 part 1, table 3).
    let oid = b"\x06\x0B\x60\x86\x48\x01\x65\x03\x07\x02\x81\x10\x00";
    let template = data(oid);
    let made = answered(seat.create_object(&template)).expect("C_CreateObject");
    assert_eq!(seat.find_objects(&template).unwrap(), [made]);
    assert_eq!(answered(seat.destroy_object(made)), Ok(()));
    assert_eq!(seat.find_objects(&template).unwrap(), []);
}
