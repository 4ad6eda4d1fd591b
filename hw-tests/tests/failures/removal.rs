//! A card pulled in the middle of something: what the call says, what is left of it, and that the next card works.

use std::{
    thread,
    time::{Duration, Instant},
};

use claviger_hw_tests::{
    fixture::{
        configurations::{as_it_is, lives_by},
        function_list::{HANG, Raw},
        module_process::{Stage, Way},
        signer::{Signer, chaining_plan, find, log_in, plan, session_info},
    },
    provision::Plan,
};
use cryptoki_sys::{
    CK_RV, CK_SESSION_HANDLE, CK_SLOT_ID, CKO_CERTIFICATE, CKR_DEVICE_ERROR, CKR_DEVICE_REMOVED,
    CKR_OK, CKR_SESSION_HANDLE_INVALID, CKR_TOKEN_NOT_PRESENT,
};

/// What a call may say whose card is pulled under it. pcscd hands over an empty answer and looks for the card some
/// time later: until then its presence is unknown.
const fn codes(way: Way) -> &'static [CK_RV] {
    match way {
        Way::Socket => &[CKR_DEVICE_REMOVED],
        Way::Pcscd | Way::PcscdBySocket => &[CKR_DEVICE_REMOVED, CKR_DEVICE_ERROR],
    }
}

/// Both slots of the reader have an event.
fn two_events(raw: Raw) {
    assert_ne!(raw.next_event(), raw.next_event());
}

/// A card nobody has asked anything yet.
fn insert(stage: &Stage, raw: Raw) {
    stage.say("heal");
    stage.say("insert");
    two_events(raw);
}

/// Does `call`, which lets `fault` befall the card, and checks its code. The sessions of that card are then dead.
fn pulled(
    way: Way,
    stage: &Stage,
    raw: Raw,
    fault: &str,
    sessions: &[CK_SESSION_HANDLE],
    call: impl FnOnce() -> CK_RV,
) {
    stage.say(&format!("fault {fault}"));
    let begun = Instant::now();
    let code = call();
    let took = begun.elapsed();
    println!("fault {fault}: {code:#X} after {took:?}");
    assert!(codes(way).contains(&code), "fault {fault}: {code:#X}");
    assert!(took < HANG);
    two_events(raw);
    for session in sessions {
        assert_eq!(session_info(raw, *session), CKR_SESSION_HANDLE_INVALID);
    }
}

/// The next card signs, in a new session.
fn next_card_works(stage: &Stage, raw: Raw, slot: CK_SLOT_ID) {
    insert(stage, raw);
    let signer = Signer::log_in(raw, slot);
    assert_eq!(signer.sign(), CKR_OK);
    stage.say("remove");
    two_events(raw);
    insert(stage, raw);
}

fn session(raw: Raw, slot: CK_SLOT_ID) -> CK_SESSION_HANDLE {
    let (code, session) = raw.open(slot);
    assert_eq!(code, CKR_OK);
    session
}

fn each_life(way: Way, plan: Plan, body: fn(&Stage, Raw)) {
    lives_by(way, &[plan], as_it_is, |_| (), body);
}

fn during_discovery(way: Way, stage: &Stage, raw: Raw) {
    let slot = raw.slots(true)[0];
    stage.say("remove");
    two_events(raw);
    insert(stage, raw);
    // SELECT of one applet, SELECT and first object of the other.
    for nth in 1..=3 {
        let fault = format!("any {nth} pull");
        pulled(way, stage, raw, &fault, &[], || raw.open(slot).0);
        next_card_works(stage, raw, slot);
    }
}

#[test]
fn race_02_a_card_pulled_while_it_is_discovered_over_the_socket() {
    each_life(Way::Socket, plan(), |stage, raw| {
        during_discovery(Way::Socket, stage, raw);
    });
}

#[test]
fn race_02_a_card_pulled_while_it_is_discovered_over_pcscd() {
    each_life(Way::Pcscd, plan(), |stage, raw| {
        during_discovery(Way::Pcscd, stage, raw);
    });
}

fn during_a_command(way: Way, stage: &Stage, raw: Raw) {
    let slot = raw.slots(true)[0];
    for fate in ["pull", "pull-after"] {
        let signer = Signer::log_in(raw, slot);
        assert_eq!(signer.sign(), CKR_OK);
        let other = session(raw, slot);
        let sessions = [signer.session, other];
        pulled(way, stage, raw, &format!("87 1 {fate}"), &sessions, || {
            signer.sign()
        });
        assert_eq!(signer.sign(), CKR_SESSION_HANDLE_INVALID);
        next_card_works(stage, raw, slot);

        let session = session(raw, slot);
        let fault = format!("20 1 {fate}");
        pulled(way, stage, raw, &fault, &[session], || log_in(raw, session));
        next_card_works(stage, raw, slot);
    }
}

#[test]
fn race_02_a_card_pulled_during_a_command_over_the_socket() {
    each_life(Way::Socket, plan(), |stage, raw| {
        during_a_command(Way::Socket, stage, raw);
    });
}

#[test]
fn race_02_a_card_pulled_during_a_command_over_pcscd() {
    each_life(Way::Pcscd, plan(), |stage, raw| {
        during_a_command(Way::Pcscd, stage, raw);
    });
}

/// Between the frames of one command, before its answer, and between the pieces of an answer.
fn during_a_chain(way: Way, stage: &Stage, raw: Raw) {
    let slot = raw.slots(true)[0];
    for fault in [
        "87 2 pull",
        "87 1 pull-after",
        "87 2 pull-after",
        "C0 1 pull",
    ] {
        let signer = Signer::log_in(raw, slot);
        assert_eq!(signer.sign_by_rsa(), CKR_OK);
        pulled(way, stage, raw, fault, &[signer.session], || {
            signer.sign_by_rsa()
        });
        insert(stage, raw);
    }
    let session = session(raw, slot);
    pulled(way, stage, raw, "C0 2 pull", &[session], || {
        find(raw, session, CKO_CERTIFICATE).err().unwrap_or(CKR_OK)
    });
    insert(stage, raw);
    assert_eq!(Signer::log_in(raw, slot).sign_by_rsa(), CKR_OK);
}

#[test]
fn race_02_a_card_pulled_in_the_middle_of_a_chained_command() {
    each_life(Way::Socket, chaining_plan(), |stage, raw| {
        during_a_chain(Way::Socket, stage, raw);
    });
    each_life(Way::Pcscd, chaining_plan(), |stage, raw| {
        during_a_chain(Way::Pcscd, stage, raw);
    });
}

/// The card is pulled while a session is opened, later by a little in each round.
fn while_connecting(way: Way, stage: &Stage, raw: Raw, rounds: u32) {
    let slot = raw.slots(true)[0];
    for round in 0..rounds {
        let begun = Instant::now();
        let (code, session) = thread::scope(|scope| {
            let opening = scope.spawn(|| raw.open(slot));
            thread::sleep(Duration::from_micros(u64::from(round) * 50));
            stage.say("remove");
            opening.join().unwrap()
        });
        assert!(begun.elapsed() < HANG);
        let may_be = [CKR_OK, CKR_TOKEN_NOT_PRESENT];
        assert!(
            may_be.contains(&code) || codes(way).contains(&code),
            "{code:#X}"
        );
        two_events(raw);
        if code == CKR_OK {
            assert_eq!(session_info(raw, session), CKR_SESSION_HANDLE_INVALID);
        }
        insert(stage, raw);
    }
    assert_eq!(Signer::log_in(raw, slot).sign(), CKR_OK);
}

#[test]
fn race_02_a_card_pulled_while_it_is_connected_to() {
    each_life(Way::Socket, plan(), |stage, raw| {
        while_connecting(Way::Socket, stage, raw, 40);
    });
    each_life(Way::Pcscd, plan(), |stage, raw| {
        while_connecting(Way::Pcscd, stage, raw, 8);
    });
}
