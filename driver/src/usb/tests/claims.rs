//! Claims of readers, their order, and callers that have to wait for them.

use std::{
    sync::mpsc,
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
    slots::pair,
    watch::{WatchThread, key, wait_until, watch_with_waiter, with_key},
};
use crate::{
    backend::Backend as _,
    reader::Presence,
    usb::{
        backend::UsbBackend,
        host::fake::{FakeReader, reader::FakeCard},
    },
};

/// Two programs that follow the readers, and have seen the one card.
fn two_that_follow(machine: &FakeMachine) -> ([UsbBackend; 2], [WatchThread; 2]) {
    let programs = [machine.new_backend(), machine.new_backend()];
    let followed = programs.each_ref().map(WatchThread::new);
    for followed in &followed {
        assert!(holds_card(single_reader(&followed.wait_for_readers())));
    }
    (programs, followed)
}

#[test]
fn transport_claims_its_reader_and_releases_it() {
    let (machine, reader) = with_key("claims");
    let program = machine.new_backend();
    let mut watch = watch_with_waiter(&program);
    let _ = take_snapshot(&mut *watch);
    let mut card = connect(&program, "3-1");
    assert!(reader.device().claimed());
    let epoch = card.epoch();
    reader.device().forget();
    assert_eq!(echo(&mut *card, b"hello").unwrap(), answered(b"hello"));
    let counts = reader.device().counts();
    assert_eq!((counts.bulk_out, counts.bulk_in, counts.control), (1, 1, 0));
    drop(card);
    assert!(!reader.device().claimed());
    let mut card = connect(&program, "3-1");
    assert_eq!(card.epoch(), epoch, "nobody has used it since");
    assert_eq!(echo(&mut *card, b"again").unwrap(), answered(b"again"));
    assert!(reader.powered(0));
}

#[test]
fn new_token_is_powered_and_queried_for_nothing_else() {
    let (machine, key) = with_key("powered");
    let program = machine.new_backend();
    assert!(holds_card(single_reader(&take_snapshot(
        &mut *program.watch()
    ))));
    let kinds: Vec<u8> = key.messages().iter().map(|message| message.0).collect();
    assert_eq!(kinds, [0x62]);
    // The reader is queried, because it may be empty. Power is only for cards.
    let slot = FakeReader::with_card(reader(), FakeCard::echo());
    machine.plug("3-2", &slot, &reader());
    assert_eq!(take_snapshot(&mut *program.watch()).readers.len(), 2);
    let kinds: Vec<u8> = slot.messages().iter().map(|message| message.0).collect();
    assert_eq!(kinds, [0x65, 0x62]);
}

#[test]
fn token_without_its_card_is_reported_empty() {
    let machine = FakeMachine::new("hollow");
    machine.plug("3-1", &FakeReader::new(token()), &token());
    let program = machine.new_backend();
    let snapshot = take_snapshot(&mut *program.watch());
    assert_eq!(single_reader(&snapshot).presence, Presence::Empty);
}

#[test]
fn card_known_to_another_process_costs_no_command_and_no_reset() {
    let (machine, reader) = with_key("told");
    let (ours, theirs) = (machine.new_backend(), machine.new_backend());
    let mut one = ours.watch();
    let _ = take_snapshot(&mut *one);
    let mut first = connect(&ours, "3-1");
    reader.device().forget();
    let mut other = theirs.watch();
    let snapshot = take_snapshot(&mut *other);
    assert!(holds_card(single_reader(&snapshot)));
    assert_eq!(reader.device().counts(), Default::default());
    echo(&mut *first, b"a").unwrap();
    drop(first);
    let powers = |reader: &FakeReader| {
        let messages = reader.messages();
        messages.iter().filter(|(kind, _)| *kind == 0x62).count()
    };
    let before = powers(&reader);
    let mut second = connect(&theirs, "3-1");
    assert_eq!(echo(&mut *second, b"b").unwrap(), answered(b"b"));
    assert_eq!(powers(&reader), before, "the card was not reset");
}

#[test]
fn two_programs_alternate_and_each_notices_use_by_the_other() {
    let (machine, _) = with_key("turns");
    let (programs, _followed) = two_that_follow(&machine);
    let mut first = connect(&programs[0], "3-1");
    let epoch = first.epoch();
    echo(&mut *first, b"a").unwrap();
    // The first process is idle, and releases the reader because its watch sees the second release request.
    let mut second = connect(&programs[1], "3-1");
    echo(&mut *second, b"b").unwrap();
    assert_eq!(echo(&mut *first, b"c").unwrap(), answered(b"c"));
    assert!(
        first.epoch() > epoch,
        "the second may have changed the card's state"
    );
    assert_eq!(echo(&mut *second, b"d").unwrap(), answered(b"d"));
}

#[test]
fn release_request_is_seen_once_a_new_claim_has_woken_the_watch() {
    let (machine, _) = with_key("woken");
    let (programs, _followed) = two_that_follow(&machine);
    let mut holder = connect(&programs[0], "3-1");
    for turn in 1..200 {
        // The holder sees the release request only if its watch, which the claim has woken, knows of the claim.
        let mut next = connect(&programs[turn % 2], "3-1");
        echo(&mut *next, b"a").unwrap();
        holder = next;
    }
    drop(holder);
}

#[test]
fn b16_reader_unplugged_while_being_opened_delays_only_its_opener() {
    let (machine, reader) = with_key("opening");
    let program = machine.new_backend();
    let mut watch = watch_with_waiter(&program);
    assert!(holds_card(single_reader(&take_snapshot(&mut *watch))));
    let door = machine.block_opening();
    let (told, is_told) = mpsc::channel();
    thread::scope(|scope| {
        let program = &program;
        let opening = scope.spawn(move || {
            let call = claviger_apdu::Call::within(STEP_TIMEOUT);
            program.connect(&id("3-1"), call)
        });
        thread::sleep(Duration::from_millis(50));
        machine.unplug("3-1");
        scope.spawn(move || told.send(take_snapshot(&mut *watch)));
        let snapshot = is_told.recv_timeout(STEP_TIMEOUT);
        drop(door);
        assert!(
            snapshot
                .expect("seen while it is opened")
                .readers
                .is_empty()
        );
        let error = opening.join().unwrap().err().unwrap();
        assert_eq!(error.kind, TransportErrorKind::NoReader, "{error}");
    });
    assert!(!reader.device().claimed());
}

#[test]
fn call_waiting_for_another_slots_opening_ends_at_its_deadline_or_on_abort() {
    let machine = FakeMachine::new("opening-slot");
    let (reader, _) = pair(&machine);
    let program = machine.new_backend();
    let mut watch = watch_with_waiter(&program);
    assert_eq!(take_snapshot(&mut *watch).readers.len(), 2);
    let door = machine.block_opening();
    let open = |slot: &str, limit: Duration| {
        let connected = program.connect(&id(slot), claviger_apdu::Call::within(limit));
        connected.err().map(|error| error.kind)
    };
    thread::scope(|scope| {
        let open = &open;
        let answer = |slot: &'static str, limit| {
            let (told, is_told) = mpsc::channel();
            scope.spawn(move || told.send(open(slot, limit)));
            thread::sleep(Duration::from_millis(50));
            is_told
        };
        let first = answer("3-1:0:0", STEP_TIMEOUT);
        let second = answer("3-1:0:1", Duration::from_millis(100));
        let in_time = second.recv_timeout(STEP_TIMEOUT);
        let second = answer("3-1:0:1", STEP_TIMEOUT);
        program.abort_calls();
        let cut = second.recv_timeout(STEP_TIMEOUT);
        // Opened before anything is judged, so that a failure is one and no thread waits for ever.
        drop(door);
        assert_eq!(in_time, Ok(Some(TransportErrorKind::TimedOut)));
        assert_eq!(cut, Ok(Some(TransportErrorKind::Cancelled)));
        assert!(first.recv_timeout(STEP_TIMEOUT).is_ok());
    });
    wait_until(|| !reader.device().claimed());
}

#[test]
fn idle_reader_is_released_while_another_is_polled() {
    let machine = FakeMachine::new("kept");
    let program = machine.new_backend();
    let mut watch = watch_with_waiter(&program);
    assert!(watch.next_snapshot().unwrap().readers.is_empty());
    let waker = watch.stop_handle();
    let [(first, one), (dead, other)] = [key(), key()];
    dead.device().set_silent(true);
    machine.plug("3-1", &first, &one);
    machine.plug("3-2", &dead, &other);
    thread::scope(|scope| {
        let follows = scope.spawn(move || {
            while let Ok(snapshot) = watch.next_snapshot() {
                assert_eq!(snapshot.readers.len(), 1, "the dead one is not shown");
            }
        });
        // The first stays claimed for as long as nothing else is due, and longer if the rule is broken.
        wait_until(|| dead.device().claimed() && !first.device().claimed());
        waker.stop();
        follows.join().unwrap();
    });
    assert!(!first.device().claimed() && !dead.device().claimed());
}

#[test]
fn reader_is_released_after_each_use_without_watch_threads() {
    let (machine, reader) = with_key("unfollowed");
    let programs = [(); 2].map(|()| machine.new_backend_without_threads());
    let mut watches = programs.each_ref().map(|program| program.watch());
    for watch in &mut watches {
        assert!(holds_card(single_reader(&take_snapshot(&mut **watch))));
    }
    let [mut first, mut second] = programs.each_ref().map(|program| {
        let mut card = connect(program, "3-1");
        assert_eq!(echo(&mut *card, b"a").unwrap(), answered(b"a"));
        assert!(!reader.device().claimed());
        card
    });
    let epoch = second.epoch();
    assert_eq!(echo(&mut *second, b"b").unwrap(), answered(b"b"));
    assert_eq!(second.epoch(), epoch, "nobody else had it since");
    let epoch = first.epoch();
    assert_eq!(echo(&mut *first, b"c").unwrap(), answered(b"c"));
    assert!(
        first.epoch() > epoch,
        "the second may have changed its state"
    );
    assert!(reader.powered(0) && !first.is_closed());
}

#[test]
fn transaction_is_never_interrupted_by_a_release_request() {
    let (machine, _) = with_key("transaction");
    let (programs, _followed) = two_that_follow(&machine);
    let mut first = connect(&programs[0], "3-1");
    let (begun, is_begun) = mpsc::channel();
    thread::scope(|scope| {
        let second = &programs[1];
        let other = scope.spawn(move || {
            is_begun.recv().unwrap();
            let mut second = connect(second, "3-1");
            (echo(&mut *second, b"b").unwrap(), Instant::now())
        });
        let mut ended = None;
        first
            .transact(claviger_apdu::Call::within(STEP_TIMEOUT), &mut |card| {
                begun.send(()).unwrap();
                for _ in 0..20 {
                    let mut response = claviger_apdu::ResponseBuffer::new();
                    let call = claviger_apdu::Call::within(STEP_TIMEOUT);
                    card.transmit(&super::command(b"x"), &mut response, call)
                        .unwrap();
                    thread::sleep(Duration::from_millis(5));
                }
                ended = Some(Instant::now());
            })
            .unwrap();
        let (answer, at) = other.join().unwrap();
        assert_eq!(answer, answered(b"b"));
        assert!(at > ended.unwrap(), "after the transaction, not in it");
    });
}

#[test]
fn b16_busy_reader_is_tried_ever_less_often_and_its_owner_searched_once() {
    let (machine, key) = with_key("backoff");
    let program = machine.new_backend();
    let mut watch = watch_with_waiter(&program);
    let _ = take_snapshot(&mut *watch);
    let theirs = key.device().claim().unwrap();
    let before = machine.open_attempts();
    let call = claviger_apdu::Call::within(Duration::from_secs(1));
    let error = program.connect(&id("3-1"), call).err().unwrap();
    assert_eq!(error.kind, TransportErrorKind::Busy, "{error}");
    // Pauses of 2, 4, 8, 16, 32 ms, and then 50 ms each.
    let tries = machine.open_attempts() - before;
    assert!(tries <= 30, "{tries}");
    assert_eq!(machine.owner_searches(), 1, "for the message");
    drop(theirs);
    let _ = connect(&program, "3-1");
}

#[test]
fn b19_dropping_a_transport_waits_for_no_running_call() {
    let (machine, key) = with_key("end");
    let program = machine.new_backend();
    let mut watch = watch_with_waiter(&program);
    let _ = take_snapshot(&mut *watch);
    let [ends, mut works] = [(); 2].map(|()| connect(&program, "3-1"));
    key.hold();
    let (told, is_told) = mpsc::channel();
    thread::scope(|scope| {
        let at_it = scope.spawn(move || {
            assert_eq!(echo(&mut *works, b"slow").unwrap(), answered(b"slow"));
            works
        });
        wait_until(|| key.card_commands(0) > 0);
        scope.spawn(move || {
            drop(ends);
            told.send(()).unwrap();
        });
        let ended = is_told.recv_timeout(STEP_TIMEOUT);
        key.release();
        ended.expect("while another call is at the reader");
        let works = at_it.join().unwrap();
        // The reader was used by another program.
        wait_until(|| !key.device().claimed());
        drop(works);
    });
}

/// Returns how often this thread has waited so far.
fn waits() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

#[test]
fn call_waiting_for_the_same_reader_sleeps_until_the_other_call_ends() {
    let (machine, key) = with_key("asleep");
    let program = machine.new_backend();
    let mut watch = watch_with_waiter(&program);
    let _ = take_snapshot(&mut *watch);
    let [mut first, mut second] = [(); 2].map(|()| connect(&program, "3-1"));
    key.hold();
    thread::scope(|scope| {
        let slow = scope.spawn(move || echo(&mut *first, b"slow").unwrap());
        wait_until(|| key.card_commands(0) > 0);
        let waiting = scope.spawn(move || {
            let before = waits();
            assert_eq!(echo(&mut *second, b"then").unwrap(), answered(b"then"));
            waits() - before
        });
        thread::sleep(Duration::from_millis(500));
        key.release();
        slow.join().unwrap();
        let waits = waiting.join().unwrap();
        assert!(waits < 100, "{waits}");
    });
}
