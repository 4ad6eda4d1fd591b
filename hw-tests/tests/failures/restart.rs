//! pcscd is restarted, suspended for a while, or renumbers its readers.

use std::{
    thread,
    time::{Duration, Instant},
};

use claviger_hw_tests::{
    fixture::{
        configurations::{MOMENT, as_it_is, configurations_of},
        function_list::{FunctionList, HANG, NO_THREADS, OWN_THREAD},
        module_process::{ModuleProcess, ServiceKind, in_module_process_with},
        renumbering_proxy::{interpose, renumber, restart},
        signer::{Signer, profile},
    },
    provision::CardProfile,
};
use cryptoki_sys::{
    CK_SLOT_ID, CKF_TOKEN_PRESENT, CKR_DEVICE_ERROR, CKR_DEVICE_REMOVED, CKR_OK,
    CKR_SESSION_HANDLE_INVALID,
};

/// Time for which pcscd is suspended. Calls of the module wait longer.
const STANDSTILL: Duration = Duration::from_secs(2);

fn in_each_configuration(
    service: ServiceKind,
    profiles: &[CardProfile],
    body: fn(&ModuleProcess, FunctionList),
) {
    configurations_of(service, profiles, as_it_is, |_| (), body);
}

/// The number of PINs sent to a card.
fn pins(process: &ModuleProcess, card: usize) -> u32 {
    process
        .send_command(&format!("card {card} sent 20"))
        .parse()
        .unwrap()
}

/// Checks that the session of a removed card ends. Until pcscd has noticed the removal, it may return an empty response, and
/// the call then fails with a device error.
fn dies(signer: Signer) {
    let deadline = Instant::now() + HANG;
    loop {
        match signer.sign() {
            CKR_SESSION_HANDLE_INVALID => return,
            code => assert!([CKR_DEVICE_ERROR, CKR_DEVICE_REMOVED].contains(&code)),
        }
        assert!(
            Instant::now() < deadline,
            "the session of a removed card still exists"
        );
    }
}

/// Removes the card, and waits for an event after which the slot is empty. Earlier events may precede it. Reinserts the card.
fn removal_is_reported(process: &ModuleProcess, raw: FunctionList, slot: CK_SLOT_ID) {
    process.send_command("remove");
    let is_empty = || raw.slot_info(slot).1 & CKF_TOKEN_PRESENT == 0;
    while raw.next_event() != slot || !is_empty() {}
    process.send_command("insert");
    raw.wait_for_token(slot, true);
}

fn restart_when_idle(process: &ModuleProcess, raw: FunctionList) {
    let slots = raw.slots(false);
    let slot = raw.slots(true)[0];
    let (code, _) = raw.open(slot);
    assert_eq!(code, CKR_OK);
    process.send_command("service start");
    raw.wait_for_token(slot, true);
    assert_eq!(raw.slots(false), slots, "slots keep their ids");
    assert_eq!(Signer::log_in(raw, slot).sign(), CKR_OK);
    removal_is_reported(process, raw, slot);
}

#[test]
fn race_10_slots_survive_a_restart_of_an_idle_service() {
    for service in [ServiceKind::Socket, ServiceKind::Pcscd] {
        in_each_configuration(service, &[profile()], restart_when_idle);
    }
}

#[test]
fn race_10_a_session_survives_a_restart_of_pcscd() {
    in_each_configuration(ServiceKind::Pcscd, &[profile()], |process, raw| {
        let slot = raw.slots(true)[0];
        let signer = Signer::log_in(raw, slot);
        assert_eq!(signer.sign(), CKR_OK);
        let before = pins(process, 0);
        process.send_command("service start");
        assert_eq!(signer.info(), CKR_OK);
        assert_eq!(signer.sign(), CKR_OK);
        assert_eq!(pins(process, 0) - before, 1, "verified again, once");
        raw.pending();
    });
}

#[test]
fn race_10_a_waiter_survives_a_restart_of_the_service() {
    for service in [ServiceKind::Socket, ServiceKind::Pcscd] {
        in_each_configuration(service, &[profile()], |process, raw| {
            let slots = raw.slots(false);
            let slot = raw.slots(true)[0];
            let restart = || process.order(&["service stop", "service start"]);
            let event = raw.event_during(MOMENT, restart);
            assert!(slots.contains(&event));
            raw.wait_for_token(slot, true);
            assert_eq!(raw.slots(false), slots, "slots keep their ids");
            removal_is_reported(process, raw, slot);
        });
    }
}

#[test]
fn race_11_suspension_of_pcscd_loses_nothing() {
    in_each_configuration(ServiceKind::Pcscd, &[profile()], |process, raw| {
        let slot = raw.slots(true)[0];
        let signer = Signer::log_in(raw, slot);
        assert_eq!(signer.sign(), CKR_OK);
        let waiter = raw.waiter();
        let before = pins(process, 0);

        // The signature begins while pcscd stands still.
        process.send_command("service freeze");
        let signing = thread::spawn(move || (signer.sign(), Instant::now()));
        thread::sleep(STANDSTILL);
        let resumed = Instant::now();
        process.send_command("service thaw");
        let (code, signed) = signing.join().unwrap();
        assert_eq!(code, CKR_OK);
        assert!(signed > resumed, "nobody else could have answered");
        assert_eq!(pins(process, 0), before);

        // The card loses its memory meanwhile, and the signature comes later.
        process.send_command("service freeze");
        process.send_command("reset");
        thread::sleep(STANDSTILL);
        process.send_command("service thaw");
        assert_eq!(signer.sign(), CKR_OK);
        assert_eq!(pins(process, 0) - before, 1, "verified again, once");

        // A change while pcscd is suspended is reported after it resumes.
        assert!(waiter.try_recv().is_err(), "no event so far");
        process.send_command("service freeze");
        process.send_command("remove");
        thread::sleep(STANDSTILL);
        process.send_command("service thaw");
        let (code, event) = waiter.recv_timeout(HANG).expect("the removal");
        assert_eq!(code, CKR_OK);
        assert!([slot, slot + 1].contains(&event));
        assert_eq!(signer.info(), CKR_SESSION_HANDLE_INVALID);
        process.send_command("insert");
        raw.wait_for_token(slot, true);
    });
}

#[test]
fn race_12_card_exchanged_while_pcscd_is_suspended_gets_no_pin_and_no_session() {
    let profiles = [profile(), profile().serial(2)];
    in_each_configuration(ServiceKind::Pcscd, &profiles, |process, raw| {
        let tokens = raw.slots(true);
        let signer = Signer::log_in(raw, tokens[0]);
        assert_eq!(signer.sign(), CKR_OK);
        let before = [pins(process, 0), pins(process, 1)];
        process.send_command("service freeze");
        process.send_command("swap");
        thread::sleep(STANDSTILL);
        process.send_command("service thaw");
        dies(signer);
        assert_eq!(signer.info(), CKR_SESSION_HANDLE_INVALID);
        assert_eq!(
            [pins(process, 0), pins(process, 1)],
            before,
            "nobody asked for that"
        );
        for slot in tokens {
            raw.wait_for_token(slot, true);
            assert_eq!(Signer::log_in(raw, slot).sign(), CKR_OK);
        }
        raw.pending();
    });
}

/// Gives pcscd's reader another number, lets `show` make that known, and holds that its slots stay. The session of
/// before comes back.
fn renumbered(raw: FunctionList, show: impl FnOnce()) -> Signer {
    let slots = raw.slots(false);
    let slot = raw.slots(true)[0];
    let signer = Signer::log_in(raw, slot);
    raw.pending();
    let waiter = raw.waiter();
    assert!(waiter.recv_timeout(MOMENT).is_err());
    renumber();
    show();
    let (code, event) = waiter.recv_timeout(HANG).expect("something happened");
    assert_eq!(code, CKR_OK);
    assert!(slots.contains(&event), "no slot is new");
    raw.wait_for_token(slot, true);
    assert_eq!(raw.slots(false), slots, "slots keep their ids");
    signer
}

fn with_other_numbers(body: impl Fn(&ModuleProcess, FunctionList)) {
    let _ = in_module_process_with(ServiceKind::Pcscd, &[profile()], interpose, |process| {
        let raw = FunctionList::load();
        for flags in [OWN_THREAD, NO_THREADS] {
            assert_eq!(raw.initialize(flags), CKR_OK);
            body(process, raw);
            assert_eq!(raw.finalize(), CKR_OK);
        }
    });
}

#[test]
fn race_14_reader_renumbered_by_a_restart_keeps_slots_and_sessions() {
    with_other_numbers(|process, raw| {
        let before = pins(process, 0);
        let signer = renumbered(raw, restart);
        assert_eq!(signer.sign(), CKR_OK);
        assert!(
            pins(process, 0) - before <= 2,
            "the login, and verified again"
        );
        removal_is_reported(process, raw, raw.slots(true)[0]);
    });
}

#[test]
fn race_14_renumbered_reader_keeps_its_slots() {
    with_other_numbers(|process, raw| {
        let signer = renumbered(raw, || {
            process.send_command("remove");
            process.send_command("settle");
            process.send_command("insert");
        });
        assert_eq!(signer.info(), CKR_SESSION_HANDLE_INVALID);
        let slot = raw.slots(true)[0];
        assert_eq!(Signer::log_in(raw, slot).sign(), CKR_OK);
        removal_is_reported(process, raw, slot);
    });
}
