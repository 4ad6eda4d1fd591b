//! A card is removed during a call: the code of the call, the state after it, and that the next card works.

use std::{
    thread,
    time::{Duration, Instant},
};

use claviger_hw_tests::{
    fixture::{
        configurations::{as_it_is, configurations_of},
        function_list::{FunctionList, HANG},
        module_process::{ModuleProcess, ServiceKind},
        signer::{Signer, chaining_profile, find, log_in, profile, session_info},
    },
    provision::CardProfile,
};
use cryptoki_sys::{
    CK_RV, CK_SESSION_HANDLE, CK_SLOT_ID, CKO_CERTIFICATE, CKR_DEVICE_ERROR, CKR_DEVICE_REMOVED,
    CKR_OK, CKR_SESSION_HANDLE_INVALID, CKR_TOKEN_NOT_PRESENT,
};

/// What a call may say whose card is pulled under it. pcscd hands over an empty answer and looks for the card some
/// time later: until then its presence is unknown.
const fn codes(service: ServiceKind) -> &'static [CK_RV] {
    match service {
        ServiceKind::Socket => &[CKR_DEVICE_REMOVED],
        ServiceKind::Pcscd | ServiceKind::PcscdBySocket => &[CKR_DEVICE_REMOVED, CKR_DEVICE_ERROR],
    }
}

/// Both slots of the reader have an event.
fn two_events(raw: FunctionList) {
    assert_ne!(raw.next_event(), raw.next_event());
}

/// A card that has not received a command yet.
fn insert(process: &ModuleProcess, raw: FunctionList) {
    process.send_command("heal");
    process.send_command("insert");
    two_events(raw);
}

/// Does `call`, which lets `fault` befall the card, and checks its code. The sessions of that card are then dead.
fn pulled(
    service: ServiceKind,
    process: &ModuleProcess,
    raw: FunctionList,
    fault: &str,
    sessions: &[CK_SESSION_HANDLE],
    call: impl FnOnce() -> CK_RV,
) {
    process.send_command(&format!("fault {fault}"));
    let begun = Instant::now();
    let code = call();
    let took = begun.elapsed();
    println!("fault {fault}: {code:#X} after {took:?}");
    assert!(codes(service).contains(&code), "fault {fault}: {code:#X}");
    assert!(took < HANG);
    two_events(raw);
    for session in sessions {
        assert_eq!(session_info(raw, *session), CKR_SESSION_HANDLE_INVALID);
    }
}

/// The next card signs, in a new session.
fn next_card_works(process: &ModuleProcess, raw: FunctionList, slot: CK_SLOT_ID) {
    insert(process, raw);
    let signer = Signer::log_in(raw, slot);
    assert_eq!(signer.sign(), CKR_OK);
    process.send_command("remove");
    two_events(raw);
    insert(process, raw);
}

fn session(raw: FunctionList, slot: CK_SLOT_ID) -> CK_SESSION_HANDLE {
    let (code, session) = raw.open(slot);
    assert_eq!(code, CKR_OK);
    session
}

fn in_each_configuration(
    service: ServiceKind,
    profile: CardProfile,
    body: fn(&ModuleProcess, FunctionList),
) {
    configurations_of(service, &[profile], as_it_is, |_| (), body);
}

fn during_discovery(service: ServiceKind, process: &ModuleProcess, raw: FunctionList) {
    let slot = raw.slots(true)[0];
    process.send_command("remove");
    two_events(raw);
    insert(process, raw);
    // SELECT of one applet, SELECT and first object of the other.
    for nth in 1..=3 {
        let fault = format!("any {nth} pull");
        pulled(service, process, raw, &fault, &[], || raw.open(slot).0);
        next_card_works(process, raw, slot);
    }
}

#[test]
fn race_02_a_card_pulled_while_it_is_discovered_over_the_socket() {
    in_each_configuration(ServiceKind::Socket, profile(), |process, raw| {
        during_discovery(ServiceKind::Socket, process, raw);
    });
}

#[test]
fn race_02_a_card_pulled_while_it_is_discovered_over_pcscd() {
    in_each_configuration(ServiceKind::Pcscd, profile(), |process, raw| {
        during_discovery(ServiceKind::Pcscd, process, raw);
    });
}

fn during_a_command(service: ServiceKind, process: &ModuleProcess, raw: FunctionList) {
    let slot = raw.slots(true)[0];
    for fate in ["pull", "pull-after"] {
        let signer = Signer::log_in(raw, slot);
        assert_eq!(signer.sign(), CKR_OK);
        let other = session(raw, slot);
        let sessions = [signer.session, other];
        pulled(
            service,
            process,
            raw,
            &format!("87 1 {fate}"),
            &sessions,
            || signer.sign(),
        );
        assert_eq!(signer.sign(), CKR_SESSION_HANDLE_INVALID);
        next_card_works(process, raw, slot);

        let session = session(raw, slot);
        let fault = format!("20 1 {fate}");
        pulled(service, process, raw, &fault, &[session], || {
            log_in(raw, session)
        });
        next_card_works(process, raw, slot);
    }
}

#[test]
fn race_02_a_card_pulled_during_a_command_over_the_socket() {
    in_each_configuration(ServiceKind::Socket, profile(), |process, raw| {
        during_a_command(ServiceKind::Socket, process, raw);
    });
}

#[test]
fn race_02_a_card_pulled_during_a_command_over_pcscd() {
    in_each_configuration(ServiceKind::Pcscd, profile(), |process, raw| {
        during_a_command(ServiceKind::Pcscd, process, raw);
    });
}

/// Between the frames of one command, before its answer, and between the pieces of an answer.
fn during_a_chain(service: ServiceKind, process: &ModuleProcess, raw: FunctionList) {
    let slot = raw.slots(true)[0];
    for fault in [
        "87 2 pull",
        "87 1 pull-after",
        "87 2 pull-after",
        "C0 1 pull",
    ] {
        let signer = Signer::log_in(raw, slot);
        assert_eq!(signer.sign_by_rsa(), CKR_OK);
        pulled(service, process, raw, fault, &[signer.session], || {
            signer.sign_by_rsa()
        });
        insert(process, raw);
    }
    let session = session(raw, slot);
    pulled(service, process, raw, "C0 2 pull", &[session], || {
        find(raw, session, CKO_CERTIFICATE).err().unwrap_or(CKR_OK)
    });
    insert(process, raw);
    assert_eq!(Signer::log_in(raw, slot).sign_by_rsa(), CKR_OK);
}

#[test]
fn race_02_a_card_pulled_in_the_middle_of_a_chained_command() {
    in_each_configuration(ServiceKind::Socket, chaining_profile(), |process, raw| {
        during_a_chain(ServiceKind::Socket, process, raw);
    });
    in_each_configuration(ServiceKind::Pcscd, chaining_profile(), |process, raw| {
        during_a_chain(ServiceKind::Pcscd, process, raw);
    });
}

/// Removes the card while a session is opened, a little later in each round.
fn while_connecting(service: ServiceKind, process: &ModuleProcess, raw: FunctionList, rounds: u32) {
    let slot = raw.slots(true)[0];
    for round in 0..rounds {
        let begun = Instant::now();
        let (code, session) = thread::scope(|scope| {
            let opening = scope.spawn(|| raw.open(slot));
            thread::sleep(Duration::from_micros(u64::from(round) * 50));
            process.send_command("remove");
            opening.join().unwrap()
        });
        assert!(begun.elapsed() < HANG);
        let may_be = [CKR_OK, CKR_TOKEN_NOT_PRESENT];
        assert!(
            may_be.contains(&code) || codes(service).contains(&code),
            "{code:#X}"
        );
        two_events(raw);
        if code == CKR_OK {
            assert_eq!(session_info(raw, session), CKR_SESSION_HANDLE_INVALID);
        }
        insert(process, raw);
    }
    assert_eq!(Signer::log_in(raw, slot).sign(), CKR_OK);
}

#[test]
fn race_02_a_card_pulled_while_it_is_connected_to() {
    in_each_configuration(ServiceKind::Socket, profile(), |process, raw| {
        while_connecting(ServiceKind::Socket, process, raw, 40);
    });
    in_each_configuration(ServiceKind::Pcscd, profile(), |process, raw| {
        while_connecting(ServiceKind::Pcscd, process, raw, 8);
    });
}
