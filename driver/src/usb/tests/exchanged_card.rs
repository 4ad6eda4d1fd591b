//! Cards that may have been exchanged without a notification: which callers are informed, and whether the card is reset.

use std::{
    thread,
    time::{Duration, Instant},
};

use claviger_apdu::{Call, Transport};

use super::{
    answered,
    fixture::{
        FakeMachine, STEP_TIMEOUT, connect, echo, holds_card, id, reader, single_reader,
        take_snapshot,
    },
    watch::{WatchThread, wait_until, watch_with_waiter, with_a_reader_that_powers, with_key},
};
use crate::{
    backend::Backend as _,
    usb::{
        backend::UsbBackend,
        host::fake::{FakeReader, reader::FakeCard},
    },
};

/// PC_to_RDR_IccPowerOn.
const POWER_ON: u8 = 0x62;

fn resets(slot: &FakeReader) -> usize {
    let messages = slot.messages();
    messages
        .iter()
        .filter(|(kind, _)| *kind == POWER_ON)
        .count()
}

/// A machine with a reader that powers its card automatically and reports insertions.
fn telling(test: &str) -> (FakeMachine, FakeReader) {
    let machine = FakeMachine::new(test);
    let mut config = reader();
    config.features |= 0x0000_0004;
    let slot = FakeReader::new(config.clone());
    slot.put_unseen(0, FakeCard::echo());
    machine.plug("3-1", &slot, &config);
    (machine, slot)
}

fn call() -> Call {
    Call::within(STEP_TIMEOUT)
}

#[test]
fn b2_queries_of_a_self_powering_reader_reset_nothing_without_threads() {
    let (machine, slot) = with_a_reader_that_powers("b2-looks");
    let program = machine.new_backend_without_threads();
    let mut watch = program.watch();
    let first = single_reader(&take_snapshot(&mut *watch)).clone();
    assert!(holds_card(&first));
    let before = resets(&slot);
    for _ in 0..3 {
        assert_eq!(
            single_reader(&take_snapshot(&mut *watch)),
            &first,
            "no other card"
        );
    }
    assert_eq!(resets(&slot), before);
}

#[test]
fn b2_uninterrupted_claim_keeps_the_card_of_a_self_powering_reader() {
    let (machine, slot) = telling("b2-claim");
    let program = machine.new_backend();
    let followed = WatchThread::new(&program);
    assert!(holds_card(single_reader(&followed.snapshot())));
    wait_until(|| slot.device().claimed());
    let mut card = connect(&program, "3-1");
    assert_eq!(echo(&mut *card, b"a").unwrap(), answered(b"a"));
    let (before, epoch) = (resets(&slot), card.epoch());
    drop(card);
    let mut card = connect(&program, "3-1");
    assert_eq!(echo(&mut *card, b"b").unwrap(), answered(b"b"));
    assert_eq!((resets(&slot), card.epoch()), (before, epoch));
    assert!(!card.may_be_another());
}

#[test]
fn b2_unwatched_card_may_be_another_for_the_next_connection() {
    let (machine, slot) = with_a_reader_that_powers("b2-unseen");
    let program = machine.new_backend_without_threads();
    let mut watch = watch_with_waiter(&program);
    assert!(holds_card(single_reader(&take_snapshot(&mut *watch))));
    drop(connect(&program, "3-1"));
    slot.put_unseen(0, FakeCard::echo_t0());
    let card = connect(&program, "3-1");
    assert!(card.may_be_another(), "it answers its reset alike");
}

#[test]
fn token_with_a_fixed_card_never_counts_as_exchanged() {
    let (machine, _token) = with_key("b2-token");
    let program = machine.new_backend();
    let mut watch = watch_with_waiter(&program);
    let _ = take_snapshot(&mut *watch);
    for _ in 0..2 {
        let mut card = connect(&program, "3-1");
        assert!(!card.may_be_another());
        card.resume(call()).unwrap();
    }
}

/// The first program finds, before its next operation, that its connection has ended, and makes another.
#[test]
fn b2_use_by_another_program_ends_a_transport_between_operations_only() {
    let (machine, _slot) = with_a_reader_that_powers("b2-turn");
    let (ours, theirs) = (machine.new_backend(), machine.new_backend());
    let _followed = (
        WatchThread::new(&ours),
        WatchThread::without_waiter(&theirs),
    );
    let mut card = connect_when_known(&ours);
    assert!(echo(&mut *card, b"ours").is_ok());
    let mut other = connect_when_known(&theirs);
    assert!(echo(&mut *other, b"theirs").is_ok());
    drop(other);
    assert!(card.resume(call()).is_err());
    assert!(card.is_closed());
    drop(card);
    let mut card = connect_when_known(&ours);
    assert!(card.may_be_another());
    card.resume(call()).unwrap();
    assert!(echo(&mut *card, b"ours again").is_ok());
}

/// A connection, as soon as the reader is known.
fn connect_when_known(program: &UsbBackend) -> Box<dyn Transport> {
    let id = id("3-1");
    let end = Instant::now() + STEP_TIMEOUT;
    loop {
        match program.connect(&id, call()) {
            Ok(card) => return card,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        thread::sleep(Duration::from_millis(2));
    }
}
