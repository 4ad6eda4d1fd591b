//! C_Finalize, concurrent with events and with other calls.

use std::{
    sync::{
        Barrier,
        mpsc::{Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use claviger_hw_tests::{
    fixture::{
        configurations::MOMENT,
        function_list::{FunctionList, HANG, NO_THREADS, OWN_THREAD},
        module_process::{ModuleProcess, ServiceKind, with_card},
        pcscd_observer::pcscd_events,
    },
    provision::CardProfile,
};
use cryptoki_sys::{CK_FLAGS, CK_RV, CKR_CRYPTOKI_NOT_INITIALIZED, CKR_OK};

const ACTIONS: [&str; 2] = ["remove", "insert"];
/// Rounds over the socket reader; pcscd takes a quarter of a second to see a card.
const MANY: u32 = 150;
const FEW: u32 = 12;

/// Pulls the card or puts it in, as it may be.
fn change(process: &ModuleProcess, round: u32) {
    process.send_command(ACTIONS[(round % 2) as usize]);
}

/// C_Finalize, which must succeed within bounds.
#[track_caller]
fn finalize(raw: FunctionList) {
    let begun = Instant::now();
    assert_eq!(raw.finalize(), CKR_OK);
    assert!(begun.elapsed() < HANG, "{:?}", begun.elapsed());
}

/// The result of a waiter: an event, or the end by C_Finalize.
#[track_caller]
fn end_of(waiter: &Receiver<(CK_RV, u64)>) -> CK_RV {
    let (code, _) = waiter.recv_timeout(HANG).expect("every waiter comes back");
    assert!(
        [CKR_OK, CKR_CRYPTOKI_NOT_INITIALIZED].contains(&code),
        "{code:#X}"
    );
    code
}

/// C_Finalize and an event of the socket reader, apart by as much as a round's number makes it, to both sides.
fn meet(raw: FunctionList, process: &ModuleProcess, round: u32) {
    let (start, apart) = (
        Barrier::new(2),
        Duration::from_micros(u64::from(round / 2 * 17)),
    );
    thread::scope(|scope| {
        scope.spawn(|| {
            start.wait();
            if round % 4 < 2 {
                thread::sleep(apart);
            }
            change(process, round);
        });
        start.wait();
        if round % 4 >= 2 {
            thread::sleep(apart);
        }
        finalize(raw);
    });
}

/// Calls C_Finalize when pcscd reports an event, or a little later.
fn follow_event(raw: FunctionList, process: &ModuleProcess, round: u32, source: &Receiver<f64>) {
    change(process, round);
    source.recv_timeout(HANG).expect("pcscd's event");
    thread::sleep(Duration::from_micros(u64::from(round * 20)));
    finalize(raw);
}

/// Rounds of both, with `waiters` waiting. Prints the numbers of waiters that ended with an event and with C_Finalize.
fn rounds(service: ServiceKind, flags: CK_FLAGS, waiters: usize) {
    with_card(service, CardProfile::factory(), |process| {
        let raw = FunctionList::load();
        let source = (service == ServiceKind::Pcscd).then(pcscd_events);
        let mut ends = Vec::new();
        for round in 0..if source.is_some() { FEW } else { MANY } {
            assert_eq!(raw.initialize(flags), CKR_OK);
            assert_eq!(raw.slot_count(false).0, CKR_OK);
            let waiting: Vec<_> = (0..waiters).map(|_| raw.waiter()).collect();
            match &source {
                Some(source) => follow_event(raw, process, round, source),
                None => meet(raw, process, round),
            }
            ends.extend(waiting.iter().map(end_of));
        }
        let with_event = ends.iter().filter(|code| **code == CKR_OK).count();
        println!(
            "{service:?}: {with_event} ended with an event, {} with C_Finalize",
            ends.len() - with_event
        );
    });
}

#[test]
fn race_07_an_event_during_finalize_over_the_socket() {
    rounds(ServiceKind::Socket, OWN_THREAD, 0);
}

#[test]
fn race_07_an_event_during_finalize_over_pcscd() {
    rounds(ServiceKind::Pcscd, OWN_THREAD, 0);
}

#[test]
fn race_08_waiter_between_event_and_finalize_over_the_socket() {
    rounds(ServiceKind::Socket, OWN_THREAD, 1);
}

#[test]
fn race_08_waiter_between_event_and_finalize_over_the_socket_without_threads() {
    rounds(ServiceKind::Socket, NO_THREADS, 1);
}

#[test]
fn race_08_waiter_between_event_and_finalize_over_pcscd() {
    rounds(ServiceKind::Pcscd, OWN_THREAD, 1);
}

#[test]
fn race_08_waiter_between_event_and_finalize_over_pcscd_without_threads() {
    rounds(ServiceKind::Pcscd, NO_THREADS, 1);
}

#[test]
fn race_08_finalize_before_the_wait_and_after_its_event() {
    for service in [ServiceKind::Socket, ServiceKind::Pcscd] {
        with_card(service, CardProfile::factory(), |process| {
            let raw = FunctionList::load();
            for (round, flags) in [(0, OWN_THREAD), (1, NO_THREADS)] {
                assert_eq!(raw.initialize(flags), CKR_OK);
                assert_eq!(raw.slot_count(false).0, CKR_OK);
                let waiter = raw.waiter();
                assert_eq!(waiter.recv_timeout(MOMENT), Err(RecvTimeoutError::Timeout));
                change(process, round);
                assert_eq!(end_of(&waiter), CKR_OK);
                finalize(raw);
                assert_eq!(end_of(&raw.waiter()), CKR_CRYPTOKI_NOT_INITIALIZED);
            }
        });
    }
}

/// Repeats the call until C_Finalize ends it.
fn until_the_end(call: impl Fn() -> CK_RV) -> u32 {
    let mut calls = 0;
    loop {
        match call() {
            CKR_OK => calls += 1,
            code => {
                assert_eq!(code, CKR_CRYPTOKI_NOT_INITIALIZED);
                return calls;
            }
        }
    }
}

/// Waiters that wait again after each event and callers that never pause, while the card comes and goes and the
/// module ends `after` a while: all must be told, and the module must begin anew.
fn end_amid_traffic(raw: FunctionList, process: &ModuleProcess, flags: CK_FLAGS, after: Duration) {
    assert_eq!(raw.initialize(flags), CKR_OK);
    thread::scope(|scope| {
        let waiters = [(); 4].map(|()| scope.spawn(|| until_the_end(|| raw.wait(0).0)));
        let callers = [
            scope.spawn(|| until_the_end(|| raw.slot_count(false).0)),
            scope.spawn(|| until_the_end(|| raw.slot_count(true).0)),
            scope.spawn(|| until_the_end(|| raw.info())),
        ];
        let traffic = scope.spawn(|| {
            for round in 0..8 {
                change(process, round);
            }
        });
        thread::sleep(after);
        finalize(raw);
        traffic.join().unwrap();
        for thread in waiters.into_iter().chain(callers) {
            thread.join().unwrap();
        }
    });
}

#[test]
fn race_09_waiters_and_callers_all_return_at_finalize() {
    for (service, rounds) in [(ServiceKind::Socket, 20), (ServiceKind::Pcscd, 3)] {
        with_card(service, CardProfile::factory(), |process| {
            let raw = FunctionList::load();
            for flags in [OWN_THREAD, NO_THREADS] {
                for round in 0..rounds {
                    end_amid_traffic(raw, process, flags, Duration::from_millis(round));
                }
            }
        });
    }
}
