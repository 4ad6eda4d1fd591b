//! Every fault at every step of a watch's first poll, of a connect, and of what the interrupt endpoint reports.

use std::time::{Duration, Instant};

use claviger_apdu::{Call, Sent, Transport};

use super::{
    SHORT, answered,
    events::wait_for,
    faults::each_fault,
    fixture::{FakeMachine, STEP_TIMEOUT, echo_within, holds_card, id, reader},
    watch::WatchThread,
};
use crate::{
    backend::Backend as _,
    reader::{Presence, ReaderSnapshot},
    usb::{
        backend::UsbBackend,
        host::fake::{FakeReader, Fault, reader::FakeCard},
    },
};

/// Steps that a fault strikes at.
const STEPS: usize = 10;
/// The same for a first poll, after which an unresponsive reader is not polled for seconds.
const POLL_STEPS: usize = 4;

/// A machine with a reader that reports its cards, and a card in it.
fn machine(test: &str, fault: Fault, step: usize) -> (FakeMachine, FakeReader, String) {
    let what = format!("{fault:?} at step {step}");
    let name = what.replace(|one: char| !one.is_alphanumeric(), "-");
    let machine = FakeMachine::new(&format!("{test}-{name}"));
    let slot = FakeReader::with_card(reader(), FakeCard::echo());
    machine.plug("3-1", &slot, &reader());
    (machine, slot, what)
}

fn has_card(snapshot: &ReaderSnapshot) -> bool {
    snapshot.readers.iter().any(holds_card)
}

/// Connects and exchanges a command, once the reader is well again.
fn works(program: &UsbBackend, slot: &FakeReader, what: &str) {
    let end = Instant::now() + STEP_TIMEOUT;
    loop {
        slot.device().release();
        let connected = program.connect(&id("3-1"), Call::within(Duration::from_secs(4)));
        let exchanged = connected
            .map_err(|error| error.to_string())
            .and_then(|card| {
                let mut card: Box<dyn Transport> = card;
                let answer = echo_within(&mut *card, b"well", Duration::from_secs(4));
                answer.map_err(|error| error.to_string())
            });
        match exchanged {
            Ok(answer) => return assert_eq!(answer, answered(b"well"), "{what}"),
            Err(error) => assert!(Instant::now() < end, "{what}: {error}"),
        }
    }
}

#[test]
fn any_fault_at_any_step_of_the_first_poll_ends_and_the_card_is_found() {
    let struck = each_fault(POLL_STEPS, |fault, step| {
        let (machine, slot, what) = machine("poll-faults", fault, step);
        slot.device().inject(fault, step);
        let program = machine.new_backend();
        let watch = WatchThread::new(&program);
        if fault != Fault::Disconnected {
            slot.device().release();
            wait_for(&watch, has_card);
            works(&program, &slot, &what);
        }
        slot.device().fault_struck()
    });
    assert!(struck > Fault::ALL.len(), "{struck} faults struck");
}

#[test]
fn any_fault_at_any_step_of_a_connect_ends_and_the_next_one_works() {
    let struck = each_fault(STEPS, |fault, step| {
        let (machine, slot, what) = machine("connect-faults", fault, step);
        let program = machine.new_backend();
        let watch = WatchThread::without_waiter(&program);
        wait_for(&watch, has_card);
        slot.device().inject(fault, step);
        let start = Instant::now();
        if let Err(error) = program.connect(&id("3-1"), Call::within(SHORT)) {
            assert_eq!(error.sent, Sent::No, "{what}: {error}");
        }
        assert!(start.elapsed() < STEP_TIMEOUT / 2, "{what}: it did not end");
        if fault != Fault::Disconnected {
            works(&program, &slot, &what);
        }
        slot.device().fault_struck()
    });
    assert!(struck > Fault::ALL.len() * 2, "{struck} faults struck");
}

#[test]
fn any_fault_at_any_step_of_a_removal_ends_and_the_next_card_is_found() {
    // A transfer that never ends reports nothing, and a reader that has left has no cards.
    let silent = [Fault::Drop, Fault::Delay, Fault::Disconnected];
    let struck = each_fault(STEPS, |fault, step| {
        if silent.contains(&fault) {
            return false;
        }
        let (machine, slot, what) = machine("removal-faults", fault, step);
        let program = machine.new_backend();
        let watch = WatchThread::new(&program);
        wait_for(&watch, has_card);
        slot.device().inject(fault, step);
        slot.remove(0);
        wait_for(&watch, |snapshot| {
            let states = &snapshot.readers;
            states.iter().any(|state| state.presence == Presence::Empty)
        });
        slot.insert(0, FakeCard::echo());
        wait_for(&watch, has_card);
        works(&program, &slot, &what);
        slot.device().fault_struck()
    });
    assert!(struck > Fault::ALL.len(), "{struck} faults struck");
}
