//! Long polls, and the other readers meanwhile. A blocked opening is a poll that lasts as long as the test needs.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use super::{
    events::{Tale, wait_for},
    fixture::{BlockedOpening, STEP_TIMEOUT, connect, holds_card, id, reader, single_reader},
    watch::{WatchThread, key, wait_until, watch_with_waiter},
};
use crate::{
    reader::{ReaderId, ReaderSnapshot},
    stop::Stopped,
    usb::host::fake::{FakeReader, reader::FakeCard},
};

/// Addresses that [`FakeMachine::plug`](super::fixture::FakeMachine::plug) does not reach.
const ADDRESS: u16 = 100;

/// Plugs in a reader with a card. Its opening is blocked.
fn plug_blocked(tale: &Tale, port: &str, address: u16) -> (FakeReader, BlockedOpening) {
    let slow = FakeReader::with_card(reader(), FakeCard::echo());
    let block = tale.machine.block_opening_of(address);
    tale.machine.plug_at(port, address, &slow, &reader());
    (slow, block)
}

/// The same after the first snapshot. Returns once its first poll has begun.
fn plug_blocked_later(tale: &Tale, port: &str) -> (FakeReader, BlockedOpening) {
    let before = tale.machine.open_attempts();
    let blocked = plug_blocked(tale, port, ADDRESS);
    tale.tell("add", port);
    wait_until(|| tale.machine.open_attempts() > before);
    blocked
}

fn shows(readers: &ReaderSnapshot, reader: &ReaderId) -> bool {
    readers.readers.iter().any(|state| state.id == *reader)
}

#[test]
fn b7_readers_are_watched_during_the_poll_of_another_reader() {
    let tale = Tale::new("polls.follow");
    let slot = FakeReader::new(reader());
    tale.machine.plug("3-2", &slot, &reader());
    let program = tale.program();
    let followed = WatchThread::new(&program);
    assert!(shows(&followed.wait_for_readers(), &id("3-2")));
    wait_until(|| slot.device().claimed());
    let (_slow, block) = plug_blocked_later(&tale, "3-1");
    slot.insert(0, FakeCard::echo());
    wait_for(&followed, |snapshot| {
        snapshot.readers.iter().any(holds_card)
    });
    slot.remove(0);
    wait_for(&followed, |snapshot| {
        !snapshot.readers.iter().any(holds_card)
    });
    let (key, config) = key();
    tale.machine.plug("3-3", &key, &config);
    tale.tell("add", "3-3");
    wait_for(&followed, |snapshot| shows(snapshot, &id("3-3")));
    tale.machine.unplug("3-3");
    tale.tell("remove", "3-3");
    let snapshot = wait_for(&followed, |snapshot| !shows(snapshot, &id("3-3")));
    assert!(!shows(&snapshot, &id("3-1")), "its poll has not ended");
    drop(block);
    wait_for(&followed, |snapshot| shows(snapshot, &id("3-1")));
}

#[test]
fn b7_reader_is_yielded_during_the_poll_of_another_reader() {
    let tale = Tale::new("polls.yield");
    let slot = FakeReader::with_card(reader(), FakeCard::echo());
    tale.machine.plug("3-2", &slot, &reader());
    let (ours, theirs) = (tale.program(), tale.machine.new_backend());
    let followed = WatchThread::new(&ours);
    followed.wait_for_readers();
    wait_until(|| slot.device().claimed());
    let (_slow, _block) = plug_blocked_later(&tale, "3-1");
    tale.machine.unplug("3-1");
    let theirs_followed = WatchThread::new(&theirs);
    wait_for(&theirs_followed, |snapshot| shows(snapshot, &id("3-2")));
    drop(connect(&theirs, "3-2"));
}

#[test]
fn the_first_snapshot_waits_for_a_reader_whose_poll_lasts() {
    let tale = Tale::new("polls.first");
    let (key, config) = key();
    tale.machine.plug("3-2", &key, &config);
    let (_slow, block) = plug_blocked(&tale, "3-1", ADDRESS);
    let followed = WatchThread::following(&tale.program());
    wait_until(|| tale.machine.open_attempts() == 2);
    drop(block);
    let first = followed.snapshot();
    assert!(shows(&first, &id("3-1")) && shows(&first, &id("3-2")));
}

#[test]
fn a_refresh_does_not_wait_for_a_reader_that_did_not_respond() {
    let tale = Tale::new("polls.refresh");
    let slot = FakeReader::new(reader());
    tale.machine.plug("3-2", &slot, &reader());
    let silent = FakeReader::with_card(reader(), FakeCard::echo());
    silent.device().set_silent(true);
    tale.machine.plug_at("3-1", ADDRESS, &silent, &reader());
    let followed = WatchThread::without_waiter(&tale.program());
    let demand = followed.demand.clone().unwrap();
    followed.wait_for_readers();
    wait_until(|| !slot.device().claimed() && !silent.device().claimed());
    let _block = tale.machine.block_opening_of(ADDRESS);
    let before = tale.machine.open_attempts();
    wait_until(|| tale.machine.open_attempts() > before);
    slot.insert(0, FakeCard::echo());
    demand.refresh(Instant::now() + STEP_TIMEOUT);
    let snapshot = followed.snapshots.try_recv().expect("it was told before");
    assert!(snapshot.readers.iter().any(holds_card));
}

#[test]
fn a_reader_that_is_unplugged_during_its_poll_is_not_reported() {
    let tale = Tale::new("polls.unplug");
    let program = tale.program();
    let followed = WatchThread::new(&program);
    assert!(followed.snapshot().readers.is_empty());
    let (slow, block) = plug_blocked_later(&tale, "3-1");
    tale.machine.unplug("3-1");
    tale.tell("remove", "3-1");
    let (key, config) = key();
    tale.machine.plug("3-1", &key, &config);
    tale.tell("add", "3-1");
    // Its lock file is the lock file of the port.
    drop(block);
    let snapshot = wait_for(&followed, |snapshot| !snapshot.readers.is_empty());
    assert!(
        single_reader(&snapshot).name.contains("42b2"),
        "{snapshot:?}"
    );
    assert!(!slow.device().claimed());
    drop(connect(&program, "3-1"));
}

#[test]
fn many_readers_are_polled_sixteen_at_a_time() {
    let tale = Tale::new("polls.many");
    let ports: Vec<String> = (1..=20).map(|port| format!("3-{port}")).collect();
    let blocked: Vec<_> = (ADDRESS..)
        .zip(&ports)
        .map(|(address, port)| plug_blocked(&tale, port, address))
        .collect();
    let followed = WatchThread::following(&tale.program());
    wait_until(|| tale.machine.most_blocked() == 16);
    drop(blocked);
    wait_for(&followed, |snapshot| snapshot.readers.len() == ports.len());
    assert_eq!(tale.machine.most_blocked(), 16);
}

#[test]
fn a_stop_ends_a_poll_in_another_thread_and_its_claim() {
    let tale = Tale::new("polls.stop");
    let program = tale.program();
    let mut watch = watch_with_waiter(&program);
    assert!(watch.next_snapshot().unwrap().readers.is_empty());
    let silent = FakeReader::with_card(reader(), FakeCard::echo());
    silent.device().set_silent(true);
    tale.machine.plug("3-1", &silent, &reader());
    tale.tell("add", "3-1");
    let waker = watch.stop_handle();
    std::thread::scope(|scope| {
        let waits = scope.spawn(move || watch.next_snapshot().map(drop));
        wait_until(|| silent.device().counts().bulk_out > 0);
        waker.stop();
        assert_eq!(waits.join().unwrap(), Err(Stopped));
        assert!(!silent.device().claimed());
    });
}

#[test]
fn panic_in_a_poll_panics_the_watch_and_dropping_it_does_not() {
    let tale = Tale::new("polls.panic");
    for port in ["3-1", "3-2"] {
        tale.machine
            .plug(port, &FakeReader::new(reader()), &reader());
    }
    tale.machine.panic_when_opened();
    let mut watch = watch_with_waiter(&tale.program());
    let panicked = catch_unwind(AssertUnwindSafe(|| watch.next_snapshot().map(drop)));
    assert!(panicked.is_err());
    // The other poll has panicked, too.
    assert!(catch_unwind(AssertUnwindSafe(|| drop(watch))).is_ok());
}
