//! Which readers are shown and touched while pcscd is there, and when that changes.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use claviger_apdu::{Call, ResponseBuffer, Transmit, TransportError, TransportErrorKind};

use super::{
    SHORT, answered, command,
    fixture::{
        FakeMachine, STEP_TIMEOUT, connect, echo, holds_card, id, reader, single_reader,
        take_snapshot,
    },
    watch::{WatchThread, key, wait_until, watch_with_waiter, with_key},
};
use crate::{
    backend::Backend,
    reader::ReaderSnapshot,
    stop::Stopped,
    usb::{
        backend::UsbBackend,
        discovery::precedence::PcscdPrecedence,
        host::fake::{FakeReader, reader::FakeCard},
    },
};

/// A grace that passes in a test.
const BRIEF: Duration = Duration::from_millis(400);
/// One that does not.
const LONG: Duration = Duration::from_secs(3600);

/// The snapshot of a responsive pcscd.
fn there() -> ReaderSnapshot {
    ReaderSnapshot {
        service_instance: Some(1),
        ..ReaderSnapshot::default()
    }
}

/// The snapshot of an unresponsive pcscd, with its error.
fn without(kind: TransportErrorKind) -> ReaderSnapshot {
    ReaderSnapshot {
        error: Some(TransportError::before_card(kind, "why")),
        ..ReaderSnapshot::default()
    }
}

fn absent() -> ReaderSnapshot {
    without(TransportErrorKind::NoService)
}

fn behind(machine: &FakeMachine, grace: Duration) -> (UsbBackend, Arc<PcscdPrecedence>) {
    let gate = PcscdPrecedence::new(grace);
    (
        machine.new_backend().with_precedence(Arc::clone(&gate)),
        gate,
    )
}

#[track_caller]
fn is_untouched(reader: &FakeReader) {
    assert_eq!(reader.device().counts(), Default::default());
    assert!(!reader.device().claimed() && reader.device().events().is_empty());
}

#[test]
fn readers_are_untouched_and_unreported_before_pcscd_was_queried() {
    let (machine, reader) = with_key("gate.first");
    machine.mark("3-1");
    let (program, gate) = behind(&machine, LONG);
    let followed = WatchThread::new(&program);
    assert!(followed.snapshots.recv_timeout(SHORT).is_err());
    is_untouched(&reader);
    gate.take_pcscd_snapshot(&absent());
    assert!(holds_card(single_reader(&followed.snapshot())));
}

#[test]
fn pcscd_that_responds_or_refuses_has_all_readers() {
    for answer in [there(), without(TransportErrorKind::Denied)] {
        let machine = FakeMachine::new("gate.answers");
        let (reader, config) = key();
        machine.plug("3-1", &reader, &config);
        let (program, gate) = behind(&machine, LONG);
        gate.take_pcscd_snapshot(&answer);
        let followed = WatchThread::new(&program);
        let snapshot = followed.snapshot();
        assert!(snapshot.readers.is_empty() && snapshot.error.is_none());
        machine.plug("3-2", &key().0, &config);
        assert!(
            followed.snapshots.recv_timeout(SHORT).is_err(),
            "an arrival"
        );
        is_untouched(&reader);
        let refused = program.connect(&id("3-1"), Call::within(STEP_TIMEOUT));
        let kind = refused.map(drop).map_err(|error| error.kind);
        assert_eq!(kind, Err(TransportErrorKind::NoReader));
    }
}

#[test]
fn device_with_pcsclite_ignore_is_reported_with_and_without_pcscd() {
    let machine = FakeMachine::new("gate.marked");
    let (program, gate) = behind(&machine, BRIEF);
    gate.take_pcscd_snapshot(&there());
    let followed = WatchThread::new(&program);
    assert!(followed.snapshot().readers.is_empty());
    let (reader, config) = key();
    machine.mark("3-1");
    machine.plug("3-1", &reader, &config);
    let first = single_reader(&followed.snapshot()).clone();
    assert!(holds_card(&first));
    drop(connect(&program, "3-1"));
    gate.take_pcscd_snapshot(&absent());
    assert_eq!(
        single_reader(&followed.snapshot()),
        &first,
        "it stays when pcscd loses precedence"
    );
    gate.take_pcscd_snapshot(&there());
    assert_eq!(
        single_reader(&followed.snapshot()),
        &first,
        "and when pcscd gets precedence"
    );
}

#[test]
fn readers_are_reported_after_pcscd_was_absent_for_the_grace_period() {
    let (machine, _) = with_key("gate.absent");
    let (program, gate) = behind(&machine, BRIEF);
    gate.take_pcscd_snapshot(&there());
    let followed = WatchThread::new(&program);
    assert!(followed.snapshot().readers.is_empty());
    let gone = Instant::now();
    gate.take_pcscd_snapshot(&absent());
    gate.take_pcscd_snapshot(&absent());
    assert!(holds_card(single_reader(&followed.snapshot())));
    assert!(gone.elapsed() >= BRIEF);
}

#[test]
fn pcscd_restart_leaves_usb_readers_untouched() {
    let (machine, reader) = with_key("gate.restart");
    let (program, gate) = behind(&machine, LONG);
    gate.take_pcscd_snapshot(&there());
    let followed = WatchThread::new(&program);
    assert!(followed.snapshot().readers.is_empty());
    for _ in 0..3 {
        gate.take_pcscd_snapshot(&absent());
        gate.take_pcscd_snapshot(&there());
    }
    assert!(followed.snapshots.recv_timeout(SHORT).is_err());
    is_untouched(&reader);
}

#[test]
fn hung_pcscd_counts_as_absent_after_the_grace_period() {
    let (machine, _) = with_key("gate.hangs");
    let (program, gate) = behind(&machine, BRIEF);
    let begun = Instant::now();
    let followed = WatchThread::new(&program);
    gate.take_pcscd_snapshot(&without(TransportErrorKind::TimedOut));
    assert!(holds_card(single_reader(&followed.snapshot())));
    assert!(begun.elapsed() >= BRIEF);
}

#[test]
fn readers_are_released_when_pcscd_appears_before_precedence_is_applied() {
    let machine = FakeMachine::new("gate.comes");
    let slot = FakeReader::with_card(reader(), FakeCard::echo());
    machine.plug("3-1", &slot, &reader());
    let (program, gate) = behind(&machine, LONG);
    gate.take_pcscd_snapshot(&absent());
    let followed = WatchThread::new(&program);
    assert!(holds_card(single_reader(&followed.snapshot())));
    assert!(gate.snapshot_applied(), "all are ours");
    wait_until(|| slot.device().claimed());
    assert!(gate.take_pcscd_snapshot(&there()));
    assert!(!gate.is_applied());
    assert!(followed.snapshot().readers.is_empty());
    assert!(!slot.device().claimed(), "before it is said");
    assert!(!gate.snapshot_applied() && gate.is_applied());
}

#[test]
fn transport_and_its_claim_end_when_pcscd_appears() {
    let (machine, reader) = with_key("gate.connection");
    let (program, gate) = behind(&machine, LONG);
    gate.take_pcscd_snapshot(&absent());
    let followed = WatchThread::new(&program);
    assert!(holds_card(single_reader(&followed.snapshot())));
    let mut card = connect(&program, "3-1");
    assert_eq!(echo(&mut *card, b"a").unwrap(), answered(b"a"));
    let in_between = |card: &mut dyn Transmit| {
        gate.take_pcscd_snapshot(&there());
        assert!(followed.snapshot().readers.is_empty());
        assert!(reader.device().claimed(), "a conversation is not cut short");
        let mut response = ResponseBuffer::new();
        card.transmit(&command(b"b"), &mut response, Call::within(STEP_TIMEOUT))
            .unwrap();
    };
    card.transact(Call::within(STEP_TIMEOUT), &mut |card| in_between(card))
        .unwrap();
    assert!(!reader.device().claimed());
    let error = echo(&mut *card, b"c").unwrap_err();
    assert_eq!(error.kind, TransportErrorKind::NoReader, "{error}");
    assert!(card.is_closed() && !reader.device().claimed());
}

#[test]
fn change_of_precedence_gives_a_snapshot_even_with_no_device_on_the_bus() {
    let machine = FakeMachine::new("gate.empty");
    let (program, gate) = behind(&machine, LONG);
    gate.take_pcscd_snapshot(&absent());
    let followed = WatchThread::new(&program);
    assert!(followed.snapshot().readers.is_empty());
    gate.snapshot_applied();
    gate.take_pcscd_snapshot(&there());
    assert!(followed.snapshot().readers.is_empty());
    gate.snapshot_applied();
    assert!(gate.is_applied());
}

#[test]
fn a_stop_ends_the_wait_for_pcscd() {
    let machine = FakeMachine::new("gate.stop");
    let (program, _gate) = behind(&machine, LONG);
    let mut watch = watch_with_waiter(&program);
    let waker = watch.stop_handle();
    thread::scope(|scope| {
        let waits = scope.spawn(move || watch.next_snapshot().map(drop));
        thread::sleep(SHORT);
        let stopped = Instant::now();
        waker.stop();
        assert_eq!(waits.join().unwrap(), Err(Stopped));
        assert!(
            stopped.elapsed() < Duration::from_secs(4),
            "not at its deadline"
        );
    });
}

#[test]
fn without_precedence_every_reader_is_reported() {
    let (machine, _) = with_key("gate.none");
    let snapshot = take_snapshot(&mut *machine.new_backend().watch());
    assert!(holds_card(single_reader(&snapshot)));
}
