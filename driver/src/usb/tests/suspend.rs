//! The machine sleeps, with and without power for its readers.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use claviger_apdu::{Call, Transport, TransportErrorKind};

use super::{
    answered,
    events::Tale,
    fixture::{
        STEP_TIMEOUT, connect, echo, holds_card, reader, single_reader, take_snapshot, token,
    },
    kinds,
    watch::{key, wait_until, watch_with_waiter},
};
use crate::{
    backend::{Backend as _, Watch},
    reader::Presence,
    usb::{
        backend::UsbBackend,
        host::fake::{
            FakeReader, Fault,
            reader::{FakeCard, ReaderConfig},
        },
    },
};

/// An hour passes.
fn sleep(tale: &Tale) {
    tale.told.suspended.fetch_add(3_600_000, Ordering::SeqCst);
}

/// A reader that is watched, and a connection to its card.
fn used(
    tale: &Tale,
    reader: &FakeReader,
    config: &ReaderConfig,
) -> (UsbBackend, Box<dyn Watch>, Box<dyn Transport>) {
    tale.machine.plug("3-1", reader, config);
    let program = tale.program();
    let mut watch = watch_with_waiter(&program);
    let _ = take_snapshot(&mut *watch);
    let card = connect(&program, "3-1");
    (program, watch, card)
}

#[test]
fn suspend_that_cut_a_tokens_power_counts_as_a_reset() {
    let tale = Tale::new("sleep.token");
    let (reader, config) = key();
    let (_program, _watch, mut card) = used(&tale, &reader, &config);
    let epoch = card.epoch();
    echo(&mut *card, b"before").unwrap();
    reader.lose_power();
    sleep(&tale);
    let commands = reader.card_commands(0);
    assert_eq!(echo(&mut *card, b"after").unwrap(), answered(b"after"));
    assert!(card.epoch() > epoch, "what the card knew is gone");
    assert_eq!(reader.card_commands(0), commands + 1, "sent once");
    assert!(!card.is_closed());
}

/// B21: with power/persist, another token of the same model may be in the port, without an event.
#[test]
fn b21_token_is_identified_again_after_a_suspend_before_it_is_used() {
    let tale = Tale::new("sleep.identity");
    let (reader, config) = key();
    let (program, _watch, mut card) = used(&tale, &reader, &config);
    let call = || Call::within(STEP_TIMEOUT);
    card.resume(call()).unwrap();
    assert!(!card.may_be_another());
    sleep(&tale);
    let commands = reader.card_commands(0);
    assert!(card.resume(call()).is_err() && card.is_closed());
    drop(card);
    let mut card = connect(&program, "3-1");
    assert!(card.may_be_another());
    card.resume(call()).unwrap();
    assert_eq!(reader.card_commands(0), commands, "no command went out");
    drop(card);
    assert!(!connect(&program, "3-1").may_be_another(), "once");
}

/// B21: also where there is no connection at the time.
#[test]
fn b21_token_unused_during_a_suspend_is_identified_again() {
    let tale = Tale::new("sleep.unused");
    let (reader, config) = key();
    let (program, _watch, card) = used(&tale, &reader, &config);
    drop(card);
    sleep(&tale);
    assert!(connect(&program, "3-1").may_be_another());
}

#[test]
fn self_powering_token_may_have_lost_its_state_in_a_suspend() {
    let tale = Tale::new("sleep.active");
    let (reader, config) = key();
    let (_program, _watch, mut card) = used(&tale, &reader, &config);
    let epoch = card.epoch();
    sleep(&tale);
    assert_eq!(echo(&mut *card, b"after").unwrap(), answered(b"after"));
    assert!(
        card.epoch() > epoch,
        "it is unknown whether it kept its power"
    );
}

#[test]
fn suspend_that_kept_the_cards_power_costs_one_status_query() {
    let tale = Tale::new("sleep.kept");
    let slot = FakeReader::with_card(reader(), FakeCard::echo());
    let (_program, _watch, mut card) = used(&tale, &slot, &reader());
    let epoch = card.epoch();
    let before = kinds(&slot).len();
    sleep(&tale);
    assert_eq!(echo(&mut *card, b"after").unwrap(), answered(b"after"));
    assert_eq!(kinds(&slot)[before..], [0x65, 0x6F]);
    assert_eq!(card.epoch(), epoch);
    assert_eq!(echo(&mut *card, b"again").unwrap(), answered(b"again"));
    assert_eq!(kinds(&slot)[before..], [0x65, 0x6F, 0x6F], "asked once");
}

#[test]
fn card_exchanged_during_suspend_closes_its_transport() {
    let tale = Tale::new("sleep.swap");
    let slot = FakeReader::with_card(reader(), FakeCard::echo());
    tale.machine.plug("3-1", &slot, &reader());
    let program = tale.program();
    let mut watch = watch_with_waiter(&program);
    let first = single_reader(&take_snapshot(&mut *watch)).clone();
    let mut card = connect(&program, "3-1");
    // The hub was off: nothing came over the interrupt pipe.
    slot.lose_power();
    sleep(&tale);
    let error = echo(&mut *card, b"after").unwrap_err();
    assert_eq!(error.kind, TransportErrorKind::CardRemoved, "{error}");
    assert!(card.is_closed());
    assert_eq!(slot.card_commands(0), 0);
    drop(card);
    let second = single_reader(&take_snapshot(&mut *watch)).clone();
    assert!(holds_card(&second));
    assert_ne!(first.change_count, second.change_count);
}

#[test]
fn reader_replugged_during_a_suspend_is_another() {
    let (tale, _) = Tale::with_key("sleep.left");
    let program = tale.program();
    let mut watch = watch_with_waiter(&program);
    let first = single_reader(&take_snapshot(&mut *watch)).clone();
    let mut card = connect(&program, "3-1");
    tale.machine.unplug("3-1");
    let (reader, config) = key();
    tale.machine.plug("3-1", &reader, &config);
    // No message comes of it.
    sleep(&tale);
    let second = single_reader(&take_snapshot(&mut *watch)).clone();
    assert_ne!(first.change_count, second.change_count);
    assert!(echo(&mut *card, b"old").is_err() && card.is_closed());
    assert!(reader.card_commands(0) == 0);
}

#[test]
fn empty_slot_is_queried_after_a_suspend() {
    let tale = Tale::new("sleep.empty");
    let config = ReaderConfig { ..reader() };
    let slot = FakeReader::new(config.clone());
    tale.machine.plug("3-1", &slot, &config);
    let program = tale.program();
    let mut watch = watch_with_waiter(&program);
    assert_eq!(
        single_reader(&watch.next_snapshot().unwrap()).presence,
        Presence::Empty
    );
    slot.put_unseen(0, FakeCard::echo());
    sleep(&tale);
    assert!(holds_card(single_reader(&take_snapshot(&mut *watch))));
}

#[test]
fn without_a_suspend_no_status_query_is_sent() {
    let tale = Tale::new("sleep.not");
    let slot = FakeReader::with_card(token(), FakeCard::echo());
    let (_program, _watch, mut card) = used(&tale, &slot, &token());
    let before = kinds(&slot).len();
    tale.told.suspended.fetch_add(400, Ordering::SeqCst);
    echo(&mut *card, b"data").unwrap();
    assert_eq!(kinds(&slot)[before..], [0x6F]);
}

#[test]
fn stopped_watch_keeps_transports_to_readers_it_has_queried() {
    let tale = Tale::new("sleep.stop");
    let slot = FakeReader::with_card(reader(), FakeCard::echo());
    let (_program, mut watch, mut card) = used(&tale, &slot, &reader());
    sleep(&tale);
    let _ = take_snapshot(&mut *watch);
    watch.stop_handle().stop();
    assert_eq!(echo(&mut *card, b"last").unwrap(), answered(b"last"));
}

#[test]
fn aborted_backend_ends_a_call_although_the_watch_has_opened_the_reader() {
    let tale = Tale::new("sleep.cut");
    let slot = FakeReader::with_card(reader(), FakeCard::echo());
    let (program, mut watch, mut card) = used(&tale, &slot, &reader());
    sleep(&tale);
    let _ = take_snapshot(&mut *watch);
    slot.hold();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| echo(&mut *card, b"slow").unwrap_err());
        wait_until(|| slot.card_commands(0) == 1);
        let start = Instant::now();
        program.abort_calls();
        assert_eq!(waits.join().unwrap().kind, TransportErrorKind::Cancelled);
        assert!(start.elapsed() < STEP_TIMEOUT / 2);
    });
}

#[test]
fn query_of_a_reader_in_use_ends_when_its_watch_stops() {
    let tale = Tale::new("sleep.look");
    let slot = FakeReader::with_card(reader(), FakeCard::echo());
    let (_program, mut watch, _card) = used(&tale, &slot, &reader());
    // The query never gets a response.
    slot.device().inject(Fault::Drop, 1);
    let waker = watch.stop_handle();
    std::thread::scope(|scope| {
        let looks = scope.spawn(|| take_snapshot(&mut *watch));
        wait_until(|| slot.device().fault_struck());
        let start = Instant::now();
        waker.stop();
        let _ = looks.join();
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "{:?}",
            start.elapsed()
        );
    });
}

#[test]
fn negotiated_parameters_of_a_self_powering_reader_are_lost_in_a_suspend() {
    let tale = Tale::new("sleep.agreed");
    let config = ReaderConfig {
        product: token().product,
        features: 0x0000_0034,
        ..ReaderConfig::tpdu()
    };
    let slot = FakeReader::with_card(config.clone(), FakeCard::echo());
    let (_program, _watch, mut card) = used(&tale, &slot, &config);
    echo(&mut *card, b"before").unwrap();
    let (before, epoch) = (kinds(&slot).len(), card.epoch());
    sleep(&tale);
    assert_eq!(echo(&mut *card, b"after").unwrap(), answered(b"after"));
    assert!(card.epoch() > epoch);
    assert!(kinds(&slot)[before..].contains(&0x62), "it is powered anew");
}
