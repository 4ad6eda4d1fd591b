//! The number of APDUs that the card receives for each action of an application.

use std::process::Command;

use claviger_hw_tests::{
    fixture::{
        card_fixture::CardFixture,
        figures,
        module_process::{ModuleProcess, ServiceKind, in_module_process, key, log_in, with_card},
    },
    provision::CardProfile,
};
use cryptoki::{
    context::Pkcs11,
    mechanism::Mechanism,
    object::{Attribute, AttributeType, ObjectClass, ObjectHandle},
    session::Session,
};

const HASH: [u8; 32] = [0xA5; 32];

/// Slot list, slot info and token info, as `pkcs11-tool -L` asks for them.
fn list_slots(module: &Pkcs11) {
    for slot in module.get_all_slots().unwrap() {
        let info = module.get_slot_info(slot).unwrap();
        if info.token_present() {
            module.get_token_info(slot).unwrap();
        }
    }
    assert!(!module.get_slots_with_token().unwrap().is_empty());
}

/// Certificates and keys with label and id, as `pkcs11-tool -O` asks for them.
fn list_keys(session: &Session) -> usize {
    let classes = [
        ObjectClass::CERTIFICATE,
        ObjectClass::PUBLIC_KEY,
        ObjectClass::PRIVATE_KEY,
    ];
    let of_class = |class| session.find_objects(&[Attribute::Class(class)]).unwrap();
    let objects: Vec<ObjectHandle> = classes.into_iter().flat_map(of_class).collect();
    for object in &objects {
        let got = session
            .get_attributes(*object, &[AttributeType::Label, AttributeType::Id])
            .unwrap();
        assert_eq!(got.len(), 2);
    }
    objects.len()
}

fn sign(session: &Session, key: ObjectHandle) {
    assert_eq!(
        session.sign(&Mechanism::Ecdsa, key, &HASH).unwrap().len(),
        64
    );
}

#[track_caller]
fn within(what: &str, budget: u64, (apdus, ()): (u64, ())) -> u64 {
    println!("{what}: {apdus} APDUs (budget {budget})");
    assert!(
        apdus <= budget,
        "{what} took {apdus} APDUs, {budget} are allowed"
    );
    apdus
}

fn piv_listing(process: &ModuleProcess) {
    let module = process.load();
    within("C_Initialize", 0, process.apdus(|| initialize(&module)));
    let slots = within(
        "slots with slot and token infos",
        3,
        process.apdus(|| list_slots(&module)),
    );
    let mut sessions = Vec::new();
    let keys = within(
        "open session, certificates and keys",
        9,
        process.apdus(|| {
            let session = process.session(&module);
            // Private keys show after login; the card authentication key needs none.
            assert_eq!(list_keys(&session), 9);
            sessions.push(session);
        }),
    );
    assert!(slots + keys <= 12, "all together took {}", slots + keys);
    let session = sessions.pop().unwrap();
    within("login", 2, process.apdus(|| log_in(&session)));
    within(
        "the same list again, logged in",
        0,
        process.apdus(|| assert_eq!(list_keys(&session), 12)),
    );
    within(
        "infos when nothing changed",
        0,
        process.apdus(|| {
            list_slots(&module);
            session.get_session_info().unwrap();
            assert!(module.get_slot_event().unwrap().is_none());
        }),
    );
}

fn initialize(module: &Pkcs11) {
    use cryptoki::context::{CInitializeArgs, CInitializeFlags};
    module
        .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
        .unwrap();
}

fn piv_cold_start_and_warm_signature(process: &ModuleProcess) {
    let module = process.load();
    let mut kept = None;
    within(
        "cold start to first P-256 signature",
        8,
        process.apdus(|| {
            initialize(&module);
            let session = process.session(&module);
            log_in(&session);
            let key = key(&session, 1);
            sign(&session, key);
            kept = Some((session, key));
        }),
    );
    let (session, key) = kept.unwrap();
    for _ in 0..5 {
        let (apdus, ()) = process.apdus(|| sign(&session, key));
        assert_eq!(apdus, 1, "a warm P-256 signature is one APDU");
    }
}

fn everything(process: &ModuleProcess) {
    let module = process.load();
    within(
        "all objects with an empty template, from cold",
        26,
        process.apdus(|| {
            initialize(&module);
            list_slots(&module);
            let session = process.session(&module);
            assert!(session.find_objects(&[]).unwrap().len() > 9);
        }),
    );
}

fn openpgp(process: &ModuleProcess) {
    let module = process.load();
    within(
        "OpenPGP: slots and objects",
        14,
        process.apdus(|| {
            initialize(&module);
            list_slots(&module);
            let session = process.session(&module);
            assert_eq!(
                list_keys(&session),
                4,
                "three public keys and a certificate"
            );
        }),
    );
}

/// [`with_card`], with no other test of this program beside it.
fn alone_with_card(service: ServiceKind, profile: CardProfile, body: impl FnOnce(&ModuleProcess)) {
    let _turn = figures::one_at_a_time();
    with_card(service, profile, body);
}

#[test]
fn piv_listing_keeps_its_budgets_over_the_socket() {
    alone_with_card(ServiceKind::Socket, CardProfile::piv4(), piv_listing);
}

#[test]
fn piv_listing_keeps_its_budgets_over_pcscd() {
    alone_with_card(ServiceKind::Pcscd, CardProfile::piv4(), piv_listing);
}

#[test]
fn piv_listing_keeps_its_budgets_over_pcscd_beside_the_usb() {
    let _turn = figures::one_at_a_time();
    let both = |_: &CardFixture, client: &mut Command| {
        client.env("CLAVIGER_TRANSPORTS", "pcsc,usb");
    };
    let _ = in_module_process(ServiceKind::Pcscd, CardProfile::piv4(), both, piv_listing);
}

#[test]
fn piv_signatures_keep_their_budgets_over_the_socket() {
    alone_with_card(
        ServiceKind::Socket,
        CardProfile::piv4(),
        piv_cold_start_and_warm_signature,
    );
}

#[test]
fn piv_signatures_keep_their_budgets_over_pcscd() {
    alone_with_card(
        ServiceKind::Pcscd,
        CardProfile::piv4(),
        piv_cold_start_and_warm_signature,
    );
}

#[test]
fn the_whole_piv_card_keeps_its_budget() {
    alone_with_card(ServiceKind::Socket, CardProfile::piv4(), everything);
}

#[test]
fn openpgp_listing_keeps_its_budget_over_the_socket() {
    alone_with_card(ServiceKind::Socket, CardProfile::pgp3(), openpgp);
}

#[test]
fn openpgp_listing_keeps_its_budget_over_pcscd() {
    alone_with_card(ServiceKind::Pcscd, CardProfile::pgp3(), openpgp);
}
