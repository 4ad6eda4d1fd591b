//! The card is exchanged while its service is down. Sessions of the old card must not use the new one.

use claviger_hw_tests::{
    fixture::{
        module_process::{ModuleProcess, code, eventually, key, log_in, pin, promptly},
        piv_session::HASH,
    },
    for_each_service,
    provision::{KeyAlgorithm, PivPlan},
};
use cryptoki::{
    context::Pkcs11,
    error::{Result, RvError},
    mechanism::Mechanism,
    object::ObjectHandle,
    session::{Session, UserType},
};

/// Return codes for a session whose card was removed.
const ENDED: [RvError; 2] = [RvError::DeviceRemoved, RvError::SessionHandleInvalid];

for_each_service! {
    [Socket over_the_socket_reader, Pcscd over_pcscd, PcscdBySocket over_pcscd_by_socket]
    {
        the_old_session_does_not_sign_at_once: CardProfile::piv(super::one_key());
        the_old_session_does_not_sign_later: CardProfile::piv(super::one_key());
        old_session_cannot_log_in_after_a_card_exchange: CardProfile::piv(super::one_key());
        old_session_cannot_search_after_a_card_exchange: CardProfile::piv(super::one_key());
    }
}

fn one_key() -> PivPlan {
    PivPlan::authentication(KeyAlgorithm::P256)
}

fn sign(session: &Session, key: ObjectHandle) -> Result<Vec<u8>> {
    session.sign(&Mechanism::Ecdsa, key, &HASH)
}

#[track_caller]
fn has_ended<T>(result: Result<T>) {
    let failed = code(result);
    assert!(ENDED.contains(&failed), "{failed:?}");
}

fn the_old_session_does_not_sign_at_once(process: &ModuleProcess) {
    sign_after(process, &["service crash", "exchange", "service begin"]);
}

fn the_old_session_does_not_sign_later(process: &ModuleProcess) {
    sign_after(
        process,
        &["service crash", "exchange", "service begin", "settle"],
    );
}

/// A user is logged in to the old card when the new one comes.
fn sign_after(process: &ModuleProcess, orders: &[&str]) {
    let module = process.module();
    let old = process.session(&module);
    log_in(&old);
    let (used, serial) = (key(&old, 1), serial(&module));
    assert_eq!(sign(&old, used).unwrap().len(), 64);
    process.order(orders);
    for _ in 0..3 {
        has_ended(promptly("C_Sign of the old session", || sign(&old, used)));
    }
    assert_eq!(code(old.get_session_info()), RvError::SessionHandleInvalid);
    assert_eq!(process.pins(), 0, "none was for the new card");
    new_card_is_public(process, &module, &serial);
}

/// The serial number of the token.
fn serial(module: &Pkcs11) -> String {
    let slot = module.get_slots_with_token().unwrap().remove(0);
    module
        .get_token_info(slot)
        .unwrap()
        .serial_number()
        .to_owned()
}

/// Checks that the new card has another serial number, that no user is logged in, and that a new session on it works.
fn new_card_is_public(process: &ModuleProcess, module: &Pkcs11, old_serial: &str) {
    eventually("the new card", || {
        module
            .get_slots_with_token()
            .is_ok_and(|slots| !slots.is_empty())
    });
    assert_ne!(serial(module), old_serial);
    let pins = process.pins();
    let session = process.session(module);
    let private = [cryptoki::object::Attribute::Private(true)];
    assert!(session.find_objects(&private).unwrap().is_empty());
    log_in(&session);
    assert_eq!(sign(&session, key(&session, 1)).unwrap().len(), 64);
    assert_eq!(process.pins(), pins + 1);
}

fn old_session_cannot_log_in_after_a_card_exchange(process: &ModuleProcess) {
    let module = process.module();
    let old = process.session(&module);
    let serial = serial(&module);
    process.order(&["service crash", "exchange", "service begin"]);
    has_ended(promptly("C_Login of the old session", || {
        old.login(UserType::User, Some(&pin()))
    }));
    assert_eq!(process.pins(), 0);
    new_card_is_public(process, &module, &serial);
}

fn old_session_cannot_search_after_a_card_exchange(process: &ModuleProcess) {
    let module = process.module();
    let old = process.session(&module);
    let serial = serial(&module);
    process.order(&["service crash", "exchange", "service begin"]);
    has_ended(promptly("C_FindObjectsInit of the old session", || {
        old.find_objects(&[])
    }));
    new_card_is_public(process, &module, &serial);
}
