//! The readers on a bus: what the watch shows of them, and when it has them claimed.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use claviger_apdu::TransportErrorKind;

use super::{
    answered,
    fixture::{
        FakeMachine, STEP_TIMEOUT, connect, echo, holds_card, id, reader, single_reader,
        take_snapshot, token,
    },
};
use crate::{
    backend::{Backend, Demand},
    reader::{Presence, ReaderSnapshot},
    stop::{StopHandle, Stopped},
    usb::{
        backend::UsbBackend,
        host::fake::{
            FakeReader,
            reader::{FakeCard, ReaderConfig},
        },
    },
};

pub(super) fn key() -> (FakeReader, ReaderConfig) {
    (FakeReader::with_card(token(), FakeCard::echo()), token())
}

/// A machine with a token in port `3-1`.
pub(super) fn with_key(test: &str) -> (FakeMachine, FakeReader) {
    let machine = FakeMachine::new(test);
    let (reader, config) = key();
    machine.plug("3-1", &reader, &config);
    (machine, reader)
}

/// A machine with a reader in port `3-1` that powers its card by itself.
pub(super) fn with_a_reader_that_powers(test: &str) -> (FakeMachine, FakeReader) {
    let machine = FakeMachine::new(test);
    let config = ReaderConfig::qemu();
    let slot = FakeReader::new(config.clone());
    slot.put_unseen(0, FakeCard::echo_t0());
    machine.plug("3-1", &slot, &config);
    (machine, slot)
}

/// A thread that follows the readers, and its snapshots.
pub(super) struct WatchThread {
    pub(super) snapshots: mpsc::Receiver<ReaderSnapshot>,
    waker: Arc<dyn StopHandle>,
    pub(super) demand: Option<Arc<dyn Demand>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl WatchThread {
    /// With a waiter for events.
    pub(super) fn new(program: &UsbBackend) -> Self {
        Self::of(watch_with_waiter(program))
    }

    /// Without waiters.
    pub(super) fn without_waiter(program: &UsbBackend) -> Self {
        Self::of(program.watch())
    }

    /// With a waiter for events, counted from the first snapshot as the module does it.
    pub(super) fn following(program: &UsbBackend) -> Self {
        Self::run(watch_with_waiter(program), |_| None)
    }

    fn of(watch: Box<dyn crate::backend::Watch>) -> Self {
        Self::run(watch, |watch| Some(take_snapshot(watch)))
    }

    fn run(
        mut watch: Box<dyn crate::backend::Watch>,
        first: fn(&mut dyn crate::backend::Watch) -> Option<ReaderSnapshot>,
    ) -> Self {
        let (waker, demand) = (watch.stop_handle(), watch.demand());
        let (send, snapshots) = mpsc::channel();
        let follow = move || {
            if let Some(first) = first(&mut *watch) {
                let _ = send.send(first);
            }
            while let Ok(snapshot) = watch.next_snapshot() {
                let _ = send.send(snapshot);
            }
        };
        Self {
            snapshots,
            waker,
            demand,
            thread: Some(thread::spawn(follow)),
        }
    }

    pub(super) fn snapshot(&self) -> ReaderSnapshot {
        self.snapshot_within(STEP_TIMEOUT).expect("a picture")
    }

    /// Returns the first snapshot with readers. Until then, another program may have claimed them.
    pub(super) fn wait_for_readers(&self) -> ReaderSnapshot {
        loop {
            let snapshot = self.snapshot();
            if !snapshot.readers.is_empty() {
                return snapshot;
            }
        }
    }

    pub(super) fn snapshot_within(&self, limit: Duration) -> Option<ReaderSnapshot> {
        self.snapshots.recv_timeout(limit).ok()
    }
}

impl Drop for WatchThread {
    fn drop(&mut self) {
        self.waker.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Makes a watch with a waiter for events.
pub(super) fn watch_with_waiter(program: &UsbBackend) -> Box<dyn crate::backend::Watch> {
    let watch = program.watch();
    if let Some(demand) = watch.demand() {
        demand.add_waiter();
    }
    watch
}

/// A watch that has seen what there is.
fn watch_after_snapshot(program: &UsbBackend) -> Box<dyn crate::backend::Watch> {
    let mut watch = watch_with_waiter(program);
    let _ = take_snapshot(&mut *watch);
    watch
}

/// Waits until `is_so`.
#[track_caller]
pub(super) fn wait_until(is_so: impl Fn() -> bool) {
    let end = Instant::now() + STEP_TIMEOUT;
    while !is_so() {
        assert!(Instant::now() < end, "it never was");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn token_is_reported_with_its_card_and_left_unclaimed() {
    let machine = FakeMachine::new("shown");
    let (reader, config) = key();
    machine.plug("3-1.2", &reader, &config);
    let program = machine.new_backend();
    let snapshot = take_snapshot(&mut *program.watch());
    let state = single_reader(&snapshot);
    assert_eq!(
        (&state.id, state.name.as_str()),
        (&id("3-1.2"), "Maker Key 42b2")
    );
    assert!(holds_card(state) && snapshot.error.is_none());
    assert!(!reader.device().claimed(), "nobody uses it");
    reader.device().forget();
    let again = take_snapshot(&mut *program.watch());
    assert_eq!(again.readers.len(), 1);
    assert_eq!(
        reader.device().counts(),
        Default::default(),
        "its card cannot have left"
    );
}

#[test]
fn missing_reader_or_bus_gives_an_empty_snapshot() {
    let machine = FakeMachine::new("empty");
    let program = machine.new_backend();
    let snapshot = take_snapshot(&mut *program.watch());
    assert!(
        snapshot.readers.is_empty()
            && snapshot.error.is_none()
            && snapshot.service_instance.is_some()
    );
    std::fs::remove_dir_all(machine.folder()).unwrap();
    let snapshot = take_snapshot(&mut *program.watch());
    assert!(snapshot.readers.is_empty() && snapshot.error.is_none());
}

#[test]
fn replugged_reader_keeps_its_name_and_changes_its_count() {
    let machine = FakeMachine::new("comes");
    let program = machine.new_backend();
    let followed = WatchThread::new(&program);
    assert!(followed.snapshot().readers.is_empty());
    let (reader, config) = key();
    machine.plug("3-1", &reader, &config);
    let first = single_reader(&followed.snapshot()).clone();
    machine.unplug("3-1");
    assert!(followed.snapshot().readers.is_empty());
    let (reader, config) = key();
    machine.plug("3-1", &reader, &config);
    let second = single_reader(&followed.snapshot()).clone();
    assert_eq!(first.id, second.id);
    assert_ne!(first.change_count, second.change_count);
}

#[test]
fn reader_exchanged_between_two_queries_at_the_same_address_is_another() {
    let machine = FakeMachine::new("exchanged");
    let program = machine.new_backend();
    let mut watch = watch_with_waiter(&program);
    let (reader, config) = key();
    machine.plug_at("3-1", 9, &reader, &config);
    let first = single_reader(&take_snapshot(&mut *watch)).clone();
    // A folder kept open, as the kernel's own counter never gives a number twice.
    let held = std::fs::File::open(machine.folder().join("sys/3-1")).unwrap();
    machine.unplug("3-1");
    let (reader, config) = key();
    machine.plug_at("3-1", 9, &reader, &config);
    drop(held);
    let second = single_reader(&take_snapshot(&mut *watch)).clone();
    assert_eq!((&first.id, &first.presence), (&second.id, &second.presence));
    assert_ne!(first.change_count, second.change_count);
}

#[test]
fn reader_claimed_by_another_program_is_hidden_until_released() {
    let machine = FakeMachine::new("busy");
    let (reader, config) = key();
    let theirs = reader.device().claim().unwrap();
    machine.plug("3-1", &reader, &config);
    let program = machine.new_backend();
    let followed = WatchThread::new(&program);
    let snapshot = followed.snapshot();
    assert!(snapshot.readers.is_empty());
    let trouble = snapshot.error.expect("it is said why");
    assert_eq!(trouble.kind, TransportErrorKind::Busy);
    assert!(trouble.what.contains("Maker Key 42b2"), "{trouble}");
    drop(theirs);
    let snapshot = followed.snapshot();
    assert!(holds_card(single_reader(&snapshot)) && snapshot.error.is_none());
}

#[test]
fn new_token_is_reported_before_its_reader_is_released() {
    let machine = FakeMachine::new("told-first");
    let program = machine.new_backend();
    let mut watch = watch_with_waiter(&program);
    assert!(watch.next_snapshot().unwrap().readers.is_empty());
    let [(first, _), (second, _)] = ["3-1", "3-2"].map(|port| {
        let (reader, config) = key();
        machine.plug(port, &reader, &config);
        assert!(holds_card(
            watch.next_snapshot().unwrap().readers.last().unwrap()
        ));
        assert!(reader.device().claimed(), "told first");
        (reader, config)
    });
    assert!(
        !first.device().claimed(),
        "before anything else is waited for"
    );
    drop(watch);
    assert!(!second.device().claimed());
}

#[test]
fn snapshot_query_leaves_every_reader_released() {
    let (machine, reader) = with_key("asks");
    let program = machine.new_backend();
    let mut watch = watch_with_waiter(&program);
    assert!(holds_card(single_reader(&take_snapshot(&mut *watch))));
    assert!(!reader.device().claimed());
    let without = machine.new_backend_without_threads();
    let (other, config) = key();
    machine.plug("3-2", &other, &config);
    let snapshot = without.watch().next_snapshot().unwrap();
    assert_eq!(snapshot.readers.len(), 2);
    // The time of the next call is unknown.
    assert!(!reader.device().claimed() && !other.device().claimed());
}

#[test]
fn insertion_and_removal_are_reported_over_the_interrupt_endpoint() {
    let machine = FakeMachine::new("interrupt");
    let slot = FakeReader::new(reader());
    machine.plug("3-1", &slot, &reader());
    let program = machine.new_backend();
    let followed = WatchThread::new(&program);
    let empty = single_reader(&followed.snapshot()).clone();
    assert_eq!(empty.presence, Presence::Empty);
    wait_until(|| slot.device().claimed());
    slot.insert(0, FakeCard::echo());
    let first = single_reader(&followed.snapshot()).clone();
    assert!(holds_card(&first));
    slot.swap(0, FakeCard::echo());
    let second = single_reader(&followed.snapshot()).clone();
    assert!(holds_card(&second));
    assert_ne!(
        first.change_count, second.change_count,
        "another card, though it looks the same"
    );
    slot.remove(0);
    assert_eq!(
        single_reader(&followed.snapshot()).presence,
        Presence::Empty
    );
}

#[test]
fn card_watched_since_first_snapshot_stays_the_same_in_a_self_powering_reader() {
    let (machine, slot) = with_a_reader_that_powers("activates");
    let program = machine.new_backend();
    let mut watch = watch_with_waiter(&program);
    let first = single_reader(&watch.next_snapshot().unwrap()).clone();
    assert!(holds_card(&first) && slot.device().claimed());
    assert_eq!(single_reader(&take_snapshot(&mut *watch)), &first);
}

#[test]
fn reader_without_an_interrupt_endpoint_is_polled() {
    let machine = FakeMachine::new("polled");
    let mut config = reader();
    config.layout.interrupt = None;
    let slot = FakeReader::new(config.clone());
    machine.plug("3-1", &slot, &config);
    let program = machine.new_backend();
    let followed = WatchThread::new(&program);
    assert_eq!(
        single_reader(&followed.snapshot()).presence,
        Presence::Empty
    );
    slot.insert(0, FakeCard::echo());
    assert!(holds_card(single_reader(&followed.snapshot())));
    slot.remove(0);
    assert_eq!(
        single_reader(&followed.snapshot()).presence,
        Presence::Empty
    );
}

#[test]
fn card_stays_usable_while_its_reader_is_watched() {
    let machine = FakeMachine::new("both");
    let slot = FakeReader::with_card(reader(), FakeCard::echo());
    machine.plug("3-1", &slot, &reader());
    let program = machine.new_backend();
    let followed = WatchThread::new(&program);
    assert!(holds_card(single_reader(&followed.snapshot())));
    let mut card = connect(&program, "3-1");
    assert_eq!(echo(&mut *card, b"a").unwrap(), answered(b"a"));
    slot.remove(0);
    assert_eq!(
        single_reader(&followed.snapshot()).presence,
        Presence::Empty
    );
    let error = echo(&mut *card, b"b").unwrap_err();
    assert!(card.is_closed(), "{error}");
}

#[test]
fn watched_reader_is_yielded_to_another_process() {
    let machine = FakeMachine::new("listens");
    let slot = FakeReader::with_card(reader(), FakeCard::echo());
    machine.plug("3-1", &slot, &reader());
    let (ours, theirs) = (machine.new_backend(), machine.new_backend());
    let followed = WatchThread::new(&ours);
    assert!(holds_card(single_reader(&followed.snapshot())));
    wait_until(|| slot.device().claimed());
    let mut watch = watch_with_waiter(&theirs);
    let mut snapshot = take_snapshot(&mut *watch);
    while snapshot.readers.is_empty() {
        snapshot = watch.next_snapshot().unwrap();
    }
    assert!(holds_card(single_reader(&snapshot)));
    let mut card = connect(&theirs, "3-1");
    assert_eq!(echo(&mut *card, b"a").unwrap(), answered(b"a"));
}

#[test]
fn reader_unplugged_during_a_command_closes_its_transport() {
    let (machine, reader) = with_key("leaves");
    let program = machine.new_backend();
    let followed = WatchThread::new(&program);
    assert!(holds_card(single_reader(&followed.snapshot())));
    let mut card = connect(&program, "3-1");
    reader.hold();
    thread::scope(|scope| {
        let waits = scope.spawn(|| echo(&mut *card, b"a"));
        wait_until(|| reader.card_commands(0) > 0 || reader.device().counts().bulk_out > 2);
        machine.unplug("3-1");
        let error = waits.join().unwrap().unwrap_err();
        assert_eq!(error.kind, TransportErrorKind::NoReader, "{error}");
    });
    assert!(card.is_closed());
    assert!(followed.snapshot().readers.is_empty());
}

#[test]
fn a_stop_ends_the_watch_and_its_claims() {
    let machine = FakeMachine::new("stop");
    let slot = FakeReader::new(reader());
    machine.plug("3-1", &slot, &reader());
    let program = machine.new_backend();
    let mut watch = watch_with_waiter(&program);
    let waker = watch.stop_handle();
    thread::scope(|scope| {
        let (shown, is_shown) = mpsc::channel();
        let waits = scope.spawn(move || {
            shown.send(watch.next_snapshot().is_ok()).unwrap();
            watch.next_snapshot().map(drop)
        });
        assert!(is_shown.recv().unwrap());
        wait_until(|| slot.device().claimed());
        waker.stop();
        assert_eq!(waits.join().unwrap(), Err(Stopped));
    });
    assert!(!slot.device().claimed());
}

#[test]
fn stop_before_the_watch_begins_ends_its_first_wait() {
    let machine = FakeMachine::new("before");
    let program = machine.new_backend();
    let mut watch = watch_with_waiter(&program);
    watch.stop_handle().stop();
    assert_eq!(watch.next_snapshot().map(drop), Err(Stopped));
}

#[test]
fn b19_call_waiting_for_a_busy_slot_ends_at_its_deadline_or_on_abort() {
    let (machine, reader) = with_key("in-use");
    let program = machine.new_backend();
    let _watch = watch_after_snapshot(&program);
    let [mut first, mut second] = [(); 2].map(|()| connect(&program, "3-1"));
    reader.hold();
    thread::scope(|scope| {
        let sent = reader.device().counts().bulk_out;
        let uses = scope.spawn(|| echo(&mut *first, b"a"));
        wait_until(|| reader.device().counts().bulk_out > sent);
        let mut response = claviger_apdu::ResponseBuffer::new();
        let call = claviger_apdu::Call::within(Duration::from_millis(50));
        let error = second.transmit(&super::command(b"b"), &mut response, call);
        let error = error.unwrap_err();
        assert_eq!(
            (error.kind, error.sent),
            (TransportErrorKind::Busy, claviger_apdu::Sent::No)
        );
        let waits = scope.spawn(|| echo(&mut *second, b"c"));
        program.abort_calls();
        for call in [uses, waits] {
            let error = call.join().unwrap().unwrap_err();
            assert_eq!(error.kind, TransportErrorKind::Cancelled);
        }
    });
}

#[test]
fn aborted_backend_ends_its_calls_and_refuses_connections() {
    let (machine, reader) = with_key("cut");
    let program = machine.new_backend();
    let mut watch = watch_with_waiter(&program);
    let _ = take_snapshot(&mut *watch);
    let mut card = connect(&program, "3-1");
    reader.hold();
    thread::scope(|scope| {
        let waits = scope.spawn(|| echo(&mut *card, b"a"));
        wait_until(|| reader.device().counts().bulk_out > 2);
        program.abort_calls();
        assert!(waits.join().unwrap().is_err());
    });
    let refused = program.connect(&id("3-1"), claviger_apdu::Call::within(STEP_TIMEOUT));
    assert!(refused.is_err(), "no connection is made afterwards");
}
