//! The notifications of a reader, and their effect.

use std::{sync::mpsc, thread, time::Duration};

use super::{
    SHORT, answered,
    fixture::{FakeMachine, STEP_TIMEOUT, connect, echo, holds_card, reader, single_reader},
    watch::{WatchThread, wait_until, watch_with_waiter, with_a_reader_that_powers},
};
use crate::{
    reader::Presence,
    usb::{
        backend::UsbBackend,
        host::fake::{DeviceMessage, FakeReader, Fault, reader::FakeCard},
    },
};

/// A reader with a card, followed by a program.
fn followed_slot(test: &str, card: bool) -> (FakeMachine, FakeReader, UsbBackend) {
    let machine = FakeMachine::new(test);
    let slot = FakeReader::new(reader());
    if card {
        slot.put_unseen(0, FakeCard::echo());
    }
    machine.plug("3-1", &slot, &reader());
    let program = machine.new_backend();
    (machine, slot, program)
}

#[test]
fn notification_of_missing_slots_or_without_content_changes_nothing() {
    let (_machine, slot, program) = followed_slot("slots", true);
    let followed = WatchThread::new(&program);
    let state = single_reader(&followed.snapshot()).clone();
    wait_until(|| slot.device().claimed());
    for notification in [
        vec![0x50],
        vec![0x50, 0xFD, 0xFF, 0xFF],
        [&[0x50, 0x01][..], &[0xFF; 62]].concat(),
        vec![0x00],
        vec![0xFF; 64],
        vec![0x51],
        vec![0x51, 0xFF, 0xFF, 0xFF, 0xFF],
        Vec::new(),
    ] {
        slot.device()
            .send(DeviceMessage::Notification(notification));
    }
    assert!(followed.snapshot_within(SHORT).is_none());
    slot.remove(0);
    assert_eq!(
        single_reader(&followed.snapshot()).presence,
        Presence::Empty
    );
    slot.insert(0, FakeCard::echo());
    assert_eq!(single_reader(&followed.snapshot()).presence, state.presence);
}

#[test]
fn late_card_notification_of_a_self_powering_reader_keeps_the_transport() {
    let (machine, slot) = with_a_reader_that_powers("late-word");
    let program = machine.new_backend();
    let mut watch = watch_with_waiter(&program);
    let first = single_reader(&watch.next_snapshot().unwrap()).clone();
    assert!(holds_card(&first));
    let mut card = connect(&program, "3-1");
    let epoch = card.epoch();
    echo(&mut *card, b"a").unwrap();
    // The insertion, which was not queried before.
    slot.device()
        .send(DeviceMessage::Notification(vec![0x50, 0b0000_0011]));
    thread::scope(|scope| {
        let waker = watch.stop_handle();
        let (told, is_told) = mpsc::channel();
        scope.spawn(move || {
            while watch
                .next_snapshot()
                .is_ok_and(|snapshot| told.send(snapshot).is_ok())
            {}
        });
        let early = is_told.recv_timeout(SHORT).ok();
        let answer = echo(&mut *card, b"b");
        // The next notification reports a change.
        slot.swap(0, FakeCard::echo_t0());
        let late = is_told.recv_timeout(STEP_TIMEOUT).ok();
        waker.stop();
        assert_eq!(early.map(|snapshot| snapshot.readers.len()), None);
        assert_eq!(answer.unwrap(), [0x61, 1], "of T=0");
        assert_eq!(card.epoch(), epoch);
        assert_ne!(
            single_reader(&late.unwrap()).change_count,
            first.change_count
        );
    });
}

#[test]
fn hardware_error_notification_causes_no_query() {
    let (_machine, slot, program) = followed_slot("hardware", false);
    let followed = WatchThread::new(&program);
    assert_eq!(
        single_reader(&followed.snapshot()).presence,
        Presence::Empty
    );
    wait_until(|| slot.device().counts().interrupt > 0);
    let asked = settled(&slot);
    for code in [0x01, 0x03, 0xFF] {
        slot.hardware_error(0, 0, code);
    }
    assert!(followed.snapshot_within(SHORT).is_none());
    wait_until(|| slot.device().counts().interrupt > 3);
    assert_eq!(settled(&slot), asked, "nothing is asked for it");
}

/// Returns the number of messages to the reader, once no more come.
fn settled(slot: &FakeReader) -> usize {
    loop {
        let before = slot.messages().len();
        thread::sleep(SHORT * 3);
        if slot.messages().len() == before {
            return before;
        }
    }
}

#[test]
fn interrupt_endpoint_is_read_again_after_every_removal() {
    let (_machine, slot, program) = followed_slot("again", false);
    let followed = WatchThread::new(&program);
    assert_eq!(
        single_reader(&followed.snapshot()).presence,
        Presence::Empty
    );
    wait_until(|| slot.device().claimed());
    for _ in 0..5 {
        slot.insert(0, FakeCard::echo());
        assert!(holds_card(single_reader(&followed.snapshot())));
        slot.remove(0);
        assert_eq!(
            single_reader(&followed.snapshot()).presence,
            Presence::Empty
        );
    }
}

#[test]
fn card_pulled_during_a_command_is_reported_after_the_command_ends() {
    let (_machine, slot, program) = followed_slot("during", true);
    let followed = WatchThread::new(&program);
    assert!(holds_card(single_reader(&followed.snapshot())));
    let mut card = connect(&program, "3-1");
    slot.hold();
    thread::scope(|scope| {
        let waits = scope.spawn(|| echo(&mut *card, b"data"));
        wait_until(|| slot.card_commands(0) > 0);
        slot.remove(0);
        assert!(
            followed.snapshot_within(SHORT).is_none(),
            "a command runs in it"
        );
        slot.release();
        let _ = waits.join().unwrap();
    });
    assert_eq!(
        single_reader(&followed.snapshot()).presence,
        Presence::Empty
    );
    assert!(echo(&mut *card, b"more").is_err() && card.is_closed());
}

#[test]
fn endless_notifications_delay_no_other_call() {
    let (_machine, slot, program) = followed_slot("babble", true);
    let followed = WatchThread::new(&program);
    assert!(holds_card(single_reader(&followed.snapshot())));
    wait_until(|| slot.device().claimed());
    let mut card = connect(&program, "3-1");
    for round in 0..50_u8 {
        for _ in 0..100 {
            slot.device()
                .send(DeviceMessage::Notification(vec![0x50, 0x03]));
        }
        assert_eq!(echo(&mut *card, &[round]).unwrap(), answered(&[round]));
    }
    assert!(slot.device().counts().interrupt < 6000, "one transfer each");
}

#[test]
fn interrupt_endpoint_that_fails_once_is_read_again_and_its_slot_queried() {
    for fault in [Fault::Stall, Fault::Failed(71)] {
        let (_machine, slot, program) = followed_slot("once", false);
        let followed = WatchThread::new(&program);
        assert_eq!(
            single_reader(&followed.snapshot()).presence,
            Presence::Empty
        );
        wait_until(|| slot.device().counts().interrupt > 0);
        settled(&slot);
        slot.device().inject(fault, 0);
        slot.insert(0, FakeCard::echo());
        assert!(holds_card(single_reader(&followed.snapshot())), "{fault:?}");
        slot.remove(0);
        assert_eq!(
            single_reader(&followed.snapshot()).presence,
            Presence::Empty,
            "{fault:?}"
        );
    }
}

#[test]
fn b9_interrupt_endpoint_that_always_fails_is_replaced_by_polling() {
    let (_machine, slot, program) = followed_slot("always", false);
    slot.device().break_interrupt(71);
    let followed = WatchThread::new(&program);
    assert_eq!(
        single_reader(&followed.snapshot()).presence,
        Presence::Empty
    );
    wait_until(|| slot.device().counts().interrupt > 0);
    slot.insert(0, FakeCard::echo());
    assert!(holds_card(single_reader(&followed.snapshot())));
    slot.remove(0);
    assert_eq!(
        single_reader(&followed.snapshot()).presence,
        Presence::Empty
    );
    thread::sleep(Duration::from_secs(1));
    let counts = slot.device().counts();
    assert!(counts.interrupt < 50 && counts.bulk_out < 50, "{counts:?}");
}
