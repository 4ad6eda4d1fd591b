//! Unresponsive readers, and the delay that they cause for other readers.

use std::time::{Duration, Instant};

use claviger_apdu::{Call, Sent, TransportErrorKind};

use super::{
    answered,
    events::{Tale, wait_for},
    fixture::{STEP_TIMEOUT, connect, echo, echo_within, holds_card, id, reader, take_snapshot},
    powered,
    watch::{WatchThread, key, wait_until, watch_with_waiter},
};
use crate::{
    backend::Backend as _,
    usb::host::fake::{
        FakeReader,
        reader::{FakeCard, ReaderConfig},
    },
};

/// How long a responsive reader may have to wait for an unresponsive one. This is less than a poll of that reader may take.
const MOMENT: Duration = Duration::from_secs(3);

#[test]
fn command_past_its_deadline_is_not_sent_and_leaves_the_card_usable() {
    for config in [ReaderConfig::extended(), ReaderConfig::tpdu()] {
        let (reader, mut device) = powered(config);
        let error = super::exchange(&mut device, b"late", Duration::ZERO).unwrap_err();
        let nothing = (TransportErrorKind::TimedOut, Sent::No);
        assert_eq!((error.kind, error.sent), nothing, "{error}");
        let error = device.status(Call::within(Duration::ZERO)).unwrap_err();
        assert_eq!((error.kind, error.sent), nothing, "{error}");
        assert_eq!(reader.device().counts(), Default::default());
        let answer = super::exchange(&mut device, b"next", STEP_TIMEOUT).unwrap();
        assert_eq!(answer, answered(b"next"));
    }
}

#[test]
fn command_after_an_abort_is_not_sent() {
    let (tale, key) = Tale::with_key("silence.stop");
    let program = tale.program();
    let _ = take_snapshot(&mut *program.watch());
    let mut watch = watch_with_waiter(&program);
    let _ = take_snapshot(&mut *watch);
    let mut card = connect(&program, "3-1");
    program.abort_calls();
    let error = echo_within(&mut *card, b"late", STEP_TIMEOUT).unwrap_err();
    assert_eq!(error.sent, Sent::No, "{error}");
    assert_eq!(key.card_commands(0), 0);
}

#[test]
fn unresponsive_reader_delays_the_events_of_others_only_briefly() {
    let tale = Tale::new("silence.events");
    let dead = FakeReader::with_card(reader(), FakeCard::echo());
    dead.device().set_silent(true);
    tale.machine.plug("3-1", &dead, &reader());
    let slot = FakeReader::new(reader());
    tale.machine.plug("3-2", &slot, &reader());
    let program = tale.program();
    let start = Instant::now();
    let followed = WatchThread::new(&program);
    wait_for(&followed, |snapshot| snapshot.readers.len() == 1);
    assert!(start.elapsed() < MOMENT, "{:?}", start.elapsed());
    wait_until(|| slot.device().counts().interrupt > 0);
    for _ in 0..3 {
        let start = Instant::now();
        slot.insert(0, FakeCard::echo());
        wait_for(&followed, |snapshot| {
            snapshot.readers.iter().any(holds_card)
        });
        slot.remove(0);
        wait_for(&followed, |snapshot| {
            !snapshot.readers.iter().any(holds_card)
        });
        assert!(start.elapsed() < MOMENT, "{:?}", start.elapsed());
    }
    let start = Instant::now();
    let (key, config) = key();
    tale.machine.plug("3-3", &key, &config);
    tale.tell("add", "3-3");
    wait_for(&followed, |snapshot| snapshot.readers.len() == 2);
    assert!(start.elapsed() < MOMENT, "{:?}", start.elapsed());
}

#[test]
fn without_threads_readers_are_watched_beside_an_unresponsive_one() {
    let tale = Tale::new("silence.alone");
    let dead = FakeReader::with_card(reader(), FakeCard::echo());
    dead.device().set_silent(true);
    tale.machine.plug("3-1", &dead, &reader());
    let slot = FakeReader::new(reader());
    tale.machine.plug("3-2", &slot, &reader());
    let followed = WatchThread::new(&tale.program_without_threads());
    wait_for(&followed, |snapshot| snapshot.readers.len() == 1);
    slot.insert(0, FakeCard::echo());
    wait_for(&followed, |snapshot| {
        snapshot.readers.iter().any(holds_card)
    });
    let (key, config) = key();
    tale.machine.plug("3-3", &key, &config);
    tale.tell("add", "3-3");
    wait_for(&followed, |snapshot| snapshot.readers.len() == 2);
    slot.remove(0);
    wait_for(&followed, |snapshot| {
        snapshot
            .readers
            .iter()
            .filter(|reader| holds_card(reader))
            .count()
            == 1
    });
}

#[test]
fn unresponsive_reader_is_reported_once_it_responds() {
    let tale = Tale::new("silence.over");
    let (key, config) = key();
    key.device().set_silent(true);
    tale.machine.plug("3-1", &key, &config);
    let program = tale.program();
    let followed = WatchThread::new(&program);
    assert!(followed.snapshot().readers.is_empty());
    key.device().set_silent(false);
    wait_for(&followed, |snapshot| {
        snapshot.readers.iter().any(holds_card)
    });
    let connected = program.connect(&id("3-1"), Call::within(STEP_TIMEOUT));
    assert_eq!(
        echo(&mut *connected.unwrap(), b"data").unwrap(),
        answered(b"data")
    );
}

#[test]
fn first_query_costs_one_status_command_and_powers_the_card() {
    let tale = Tale::new("silence.cost");
    let slot = FakeReader::with_card(reader(), FakeCard::echo());
    tale.machine.plug("3-1", &slot, &reader());
    let program = tale.program();
    let _ = take_snapshot(&mut *program.watch());
    assert_eq!(super::kinds(&slot), [0x65, 0x62]);
}
