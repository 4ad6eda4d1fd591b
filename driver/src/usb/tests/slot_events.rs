//! Cards that come and go in a reader with several slots, and the reader itself.

use std::{
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use claviger_apdu::{Call, Sent, TransportErrorKind};

use super::{
    answered,
    fixture::{FakeMachine, STEP_TIMEOUT, connect, echo, holds_card, id, take_snapshot},
    slots::{counted, ids, of, pair, several},
    watch::{wait_until, watch_with_waiter},
};
use crate::{
    backend::{Backend, Watch},
    reader::{Presence, ReaderSnapshot},
    usb::host::fake::{DeviceMessage, FakeReader, Fault, reader::FakeCard},
};

/// Waits for a snapshot for which `is_so` returns true, and returns it.
fn watch_until(watch: &mut dyn Watch, is_so: impl Fn(&ReaderSnapshot) -> bool) -> ReaderSnapshot {
    loop {
        let snapshot = watch.next_snapshot().unwrap();
        if is_so(&snapshot) {
            return snapshot;
        }
    }
}

#[test]
fn interrupt_notification_reaches_the_slots_it_names() {
    let machine = FakeMachine::new("slots-bits");
    let config = several(5);
    let reader = FakeReader::new(config.clone());
    reader.insert(0, FakeCard::echo());
    machine.plug("3-1", &reader, &config);
    let program = machine.new_backend();
    let mut watch = watch_with_waiter(&program);
    let all = watch_until(&mut *watch, |snapshot| snapshot.readers.len() == 5);
    let first = of(&all, "3-1:0:0").clone();
    assert!(holds_card(&first));
    reader.insert(4, FakeCard::echo());
    let one = watch_until(&mut *watch, |snapshot| holds_card(of(snapshot, "3-1:0:4")));
    reader.swap(4, FakeCard::echo());
    let other = watch_until(&mut *watch, |snapshot| {
        of(snapshot, "3-1:0:4").change_count != of(&one, "3-1:0:4").change_count
    });
    assert!(
        holds_card(of(&other, "3-1:0:4")),
        "another card, though it looks the same"
    );
    reader.remove(4);
    let none = watch_until(&mut *watch, |snapshot| {
        of(snapshot, "3-1:0:4").presence == Presence::Empty
    });
    assert_eq!(
        of(&none, "3-1:0:0"),
        &first,
        "nothing happened to the first slot"
    );
    let untouched =
        |at: usize| of(&none, &format!("3-1:0:{at}")) == of(&all, &format!("3-1:0:{at}"));
    assert!((1..4).all(untouched));
}

#[test]
fn notification_of_missing_or_unchanged_slots_ends_no_wait() {
    let machine = FakeMachine::new("slots-none");
    let (reader, _) = pair(&machine);
    let program = machine.new_backend();
    let mut watch = watch_with_waiter(&program);
    watch_until(&mut *watch, |snapshot| {
        snapshot
            .readers
            .iter()
            .filter(|state| holds_card(state))
            .count()
            == 2
    });
    let waker = watch.stop_handle();
    thread::scope(|scope| {
        let waits = scope.spawn(move || watch.next_snapshot().map(drop));
        // Notifications from before the claim are read first.
        let asked = || (reader.device().claimed(), reader.device().counts());
        wait_until(|| {
            let before = asked();
            thread::sleep(Duration::from_millis(500));
            before.0 && before == asked()
        });
        reader.device().forget();
        // Two cards as before, and nonsense about six more slots.
        reader
            .device()
            .send(DeviceMessage::Notification(vec![0x50, 0b1111_0101, 0xFF]));
        while reader.device().counts().interrupt < 1 {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_millis(50));
        let counts = reader.device().counts();
        waker.stop();
        assert_eq!(
            (counts.bulk_out, counts.interrupt),
            (0, 1),
            "one transfer is queued again, no more"
        );
        waits.join().unwrap().unwrap_err();
    });
}

#[test]
fn two_programs_that_use_different_slots_take_turns() {
    let machine = FakeMachine::new("slots-turns");
    let (_reader, _) = pair(&machine);
    let programs = [machine.new_backend(), machine.new_backend()];
    let mut watches = programs.each_ref().map(Backend::watch);
    let wakers = watches.each_ref().map(|watch| watch.stop_handle());
    for watch in &mut watches {
        let _ = take_snapshot(&mut **watch);
    }
    thread::scope(|scope| {
        for mut watch in watches {
            scope.spawn(move || while watch.next_snapshot().is_ok() {});
        }
        let users: Vec<_> = programs
            .iter()
            .map(|program| {
                scope.spawn(move || {
                    let mut cards = ["3-1:0:0", "3-1:0:1"].map(|id| connect(program, id));
                    for round in 0..5_u8 {
                        for card in &mut cards {
                            let answer = echo(&mut **card, &[round]);
                            // The other program may have had the reader, and the card with it.
                            if let Err(error) = answer {
                                assert_eq!(error.sent, Sent::No, "{error}");
                            }
                        }
                    }
                })
            })
            .collect();
        let ended: Vec<bool> = users.into_iter().map(|user| user.join().is_ok()).collect();
        wakers.iter().for_each(|waker| waker.stop());
        assert_eq!(ended, [true, true]);
    });
}

#[test]
fn reader_exchanged_at_the_same_address_is_another_in_each_slot() {
    let machine = FakeMachine::new("slots-address");
    let program = machine.new_backend();
    let mut watch = watch_with_waiter(&program);
    let plug = || {
        let config = several(2);
        let reader = FakeReader::new(config.clone());
        reader.insert(1, FakeCard::echo());
        machine.plug_at("3-1", 9, &reader, &config);
        reader
    };
    let _one = plug();
    let first = take_snapshot(&mut *watch);
    let mut card = connect(&program, "3-1:0:1");
    let held = std::fs::File::open(machine.folder().join("sys/3-1")).unwrap();
    machine.unplug("3-1");
    let _other = plug();
    drop(held);
    let second = take_snapshot(&mut *watch);
    assert_eq!(ids(&first), ids(&second));
    for (before, after) in first.readers.iter().zip(&second.readers) {
        assert_eq!(before.presence, after.presence);
        assert_ne!(before.change_count, after.change_count, "{}", after.id);
    }
    let error = echo(&mut *card, b"old").unwrap_err();
    let gone = [
        TransportErrorKind::NoReader,
        TransportErrorKind::CardRemoved,
    ];
    assert!(
        gone.contains(&error.kind) && error.sent == Sent::No,
        "{error}"
    );
    assert!(card.is_closed());
}

#[test]
fn reader_unplugged_between_listing_and_opening_is_neither_reported_nor_awaited() {
    for node_is_left in [true, false] {
        let machine = FakeMachine::new("slots-listed");
        let (reader, _) = pair(&machine);
        if node_is_left {
            reader.device().leave();
        } else {
            std::fs::remove_dir_all(machine.folder().join("dev/003")).unwrap();
        }
        let program = machine.new_backend();
        let start = Instant::now();
        let mut watch = watch_with_waiter(&program);
        let snapshot = take_snapshot(&mut *watch);
        assert!(snapshot.readers.is_empty(), "{snapshot:?}");
        assert_eq!(snapshot.error.unwrap().kind, TransportErrorKind::NoReader);
        let refused = program.connect(&id("3-1:0:1"), Call::within(STEP_TIMEOUT));
        assert_eq!(
            refused.map(drop).unwrap_err().kind,
            TransportErrorKind::NoReader
        );
        assert!(start.elapsed() < STEP_TIMEOUT / 2);
    }
}

/// Everything a program does with a reader of two slots, while it leaves at the `step`-th thing that happens on the
/// bus; whether it left in time for that.
fn leaves_at(step: usize) -> bool {
    let machine = FakeMachine::new(&format!("slots-leave-{step}"));
    let (reader, _) = pair(&machine);
    let program = machine.new_backend();
    let mut watch = watch_with_waiter(&program);
    reader.device().inject(Fault::Disconnected, step);
    let start = Instant::now();
    let _ = take_snapshot(&mut *watch);
    for slot in ["3-1:0:0", "3-1:0:1"] {
        let used = program
            .connect(&id(slot), Call::within(STEP_TIMEOUT))
            .and_then(|mut card| echo(&mut *card, b"data"));
        if let Err(error) = used {
            let gone = matches!(error.kind, TransportErrorKind::NoReader);
            assert!(gone, "step {step}: {error}");
        }
    }
    assert!(start.elapsed() < STEP_TIMEOUT / 2, "step {step}");
    let left = reader.device().fault_struck();
    if left {
        machine.unplug("3-1");
        let snapshot = take_snapshot(&mut *watch);
        assert!(
            snapshot.readers.is_empty() && snapshot.error.is_none(),
            "step {step}"
        );
        let (again, _) = pair(&machine);
        assert_eq!(take_snapshot(&mut *watch).readers.len(), 2, "step {step}");
        let mut card = connect(&program, "3-1:0:1");
        assert_eq!(echo(&mut *card, b"again").unwrap(), answered(b"again"));
        drop(card);
        assert!(!again.device().claimed(), "step {step}");
    }
    assert!(
        !reader.device().claimed() && reader.device().queues() == 0,
        "step {step}"
    );
    left
}

#[test]
fn reader_unplugged_at_any_step_ends_its_calls_and_works_when_replugged() {
    let left = (0..60).take_while(|step| leaves_at(*step)).count();
    assert!((12..60).contains(&left), "{left} steps");
}

#[test]
fn queries_of_a_self_powering_reader_do_not_reset_its_cards() {
    let machine = FakeMachine::new("slots-looks");
    let mut config = several(2);
    config.features |= 0x0000_0004;
    config.layout.interrupt = None;
    let reader = FakeReader::new(config.clone());
    let resets = counted(&reader, 0);
    machine.plug("3-1", &reader, &config);
    let program = machine.new_backend();
    let mut watch = watch_with_waiter(&program);
    let first = watch_until(&mut *watch, |snapshot| snapshot.readers.len() == 2);
    let before = resets.load(Ordering::SeqCst);
    let waker = watch.stop_handle();
    thread::scope(|scope| {
        let waits = scope.spawn(move || watch.next_snapshot().map(drop));
        let asked = |reader: &FakeReader| {
            let messages = reader.messages();
            messages.iter().filter(|(kind, _)| *kind == 0x65).count()
        };
        let so_far = asked(&reader);
        while asked(&reader) < so_far + 6 {
            thread::sleep(Duration::from_millis(5));
        }
        waker.stop();
        assert!(waits.join().unwrap().is_err(), "nothing was new");
    });
    assert!(holds_card(of(&first, "3-1:0:0")));
    assert_eq!(resets.load(Ordering::SeqCst), before);
}
