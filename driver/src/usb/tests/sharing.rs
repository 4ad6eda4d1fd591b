//! The state that a program leaves behind if it does not release a reader properly.

use std::{fs, time::Duration};

use claviger_apdu::{Sent, TransportErrorKind};

use super::{
    answered,
    fixture::{FakeMachine, connect, echo, echo_within, take_snapshot},
    kinds,
    watch::{key, watch_with_waiter, with_key},
};
use crate::usb::{backend::UsbBackend, host::fake::FakeReader};

/// A key that a program has used; another has not touched it yet.
fn used(test: &str) -> (FakeMachine, FakeReader) {
    let machine = FakeMachine::new(test);
    let (reader, config) = key();
    machine.plug("3-1", &reader, &config);
    let program = machine.new_backend();
    let mut watch = watch_with_waiter(&program);
    let _ = take_snapshot(&mut *watch);
    echo(&mut *connect(&program, "3-1"), b"data").unwrap();
    (machine, reader)
}

/// The types of the messages with which another program uses the key for the first time.
fn taken_up(machine: &FakeMachine, reader: &FakeReader) -> Vec<u8> {
    let before = kinds(reader).len();
    let program = machine.new_backend();
    let mut watch = watch_with_waiter(&program);
    let _ = take_snapshot(&mut *watch);
    let mut card = connect(&program, "3-1");
    assert_eq!(echo(&mut *card, b"next").unwrap(), answered(b"next"));
    kinds(reader).split_off(before)
}

#[test]
fn cleanly_released_card_is_resumed_without_a_reset() {
    let (machine, reader) = used("shares.order");
    assert_eq!(taken_up(&machine, &reader), [0x65, 0x6F]);
}

#[test]
fn b5_a_card_whose_user_was_killed_is_reset_after_an_abort() {
    let (machine, reader) = used("shares.killed");
    let record = machine.folder().join("locks/3-1.0");
    let text = fs::read_to_string(&record).unwrap();
    assert!(text.ends_with("\nleft\n"), "{text}");
    fs::write(record, text.replace("\nleft\n", "\nheld\n")).unwrap();
    assert_eq!(taken_up(&machine, &reader), [0x72, 0x65, 0x62, 0x6F]);
}

#[test]
fn b5_card_interrupted_by_one_program_is_reset_by_the_next() {
    let (machine, reader) = used("shares.middle");
    {
        let program = machine.new_backend();
        let mut watch = watch_with_waiter(&program);
        let _ = take_snapshot(&mut *watch);
        let mut card = connect(&program, "3-1");
        reader.hold();
        let error = echo_within(&mut *card, b"slow", Duration::from_millis(60)).unwrap_err();
        assert_eq!(error.kind, TransportErrorKind::TimedOut);
    }
    reader.release();
    assert_eq!(taken_up(&machine, &reader), [0x72, 0x65, 0x62, 0x6F]);
}

/// Claims the key for so many commands.
fn use_again(program: &UsbBackend, commands: usize) {
    let mut card = connect(program, "3-1");
    for _ in 0..commands {
        echo(&mut *card, b"data").unwrap();
    }
}

/// The same as another program.
fn use_by_another(machine: &FakeMachine, commands: usize) {
    let program = machine.new_backend();
    let mut watch = watch_with_waiter(&program);
    let _ = take_snapshot(&mut *watch);
    use_again(&program, commands);
}

fn numbers(reader: &FakeReader) -> Vec<u8> {
    reader
        .messages()
        .iter()
        .map(|(_, number)| *number)
        .collect()
}

fn go_on(numbers: &[u8]) -> bool {
    let mut pairs = numbers.windows(2);
    pairs.all(|pair| pair[1] == pair[0].wrapping_add(1))
}

#[test]
fn b5_sequence_numbers_continue_over_the_claims_of_all_programs() {
    let (machine, reader) = used("shares.go-on");
    use_by_another(&machine, 150);
    use_by_another(&machine, 1);
    let all = numbers(&reader);
    assert!(go_on(&all), "{all:?}");
}

#[test]
fn b5_sequence_numbers_continue_over_the_claims_of_a_program_without_locks() {
    let (machine, reader) = with_key("shares.go-on-alone");
    let program = machine.new_backend_without_locks(machine.bus());
    let mut watch = watch_with_waiter(&program);
    let _ = take_snapshot(&mut *watch);
    use_again(&program, 2);
    use_again(&program, 150);
    use_again(&program, 1);
    let all = numbers(&reader);
    assert!(go_on(&all), "{all:?}");
}

#[test]
fn b5_sequence_numbers_after_a_killed_user_begin_far_from_its_own() {
    let (machine, reader) = used("shares.far");
    let record = machine.folder().join("locks/3-1.0");
    let text = fs::read_to_string(&record).unwrap();
    fs::write(record, text.replace("\nleft\n", "\nheld\n")).unwrap();
    let before = numbers(&reader);
    taken_up(&machine, &reader);
    let next = numbers(&reader)[before.len()];
    let distance = next.wrapping_sub(*before.last().unwrap());
    assert!((100..200).contains(&distance), "{distance}");
}

#[test]
fn claim_uses_other_sequence_numbers_than_the_claim_before() {
    let (machine, reader) = used("shares.numbers");
    let before = reader.messages();
    taken_up(&machine, &reader);
    let (first, second) = (before.as_slice(), &reader.messages()[before.len()..]);
    let last = &first[first.len() - 2..];
    assert!(
        second
            .iter()
            .all(|(_, number)| last.iter().all(|(_, other)| number != other)),
        "{first:?} {second:?}"
    );
}

#[test]
fn b35_connect_after_an_unanswered_command_resets_the_card_in_a_new_epoch() {
    let (machine, reader) = with_key("shares.unanswered");
    let program = machine.new_backend();
    let mut watch = watch_with_waiter(&program);
    let _ = take_snapshot(&mut *watch);
    let mut card = connect(&program, "3-1");
    let epoch = card.epoch();
    reader.hold();
    let error = echo_within(&mut *card, b"slow", Duration::from_millis(60)).unwrap_err();
    assert_eq!(error.kind, TransportErrorKind::TimedOut);
    drop(card);
    reader.release();
    let before = kinds(&reader).len();
    let mut card = connect(&program, "3-1");
    let error = echo(&mut *card, b"next").unwrap_err();
    let not_sent = (TransportErrorKind::CardReset, Sent::No);
    assert_eq!((error.kind, error.sent), not_sent, "{error}");
    assert!(card.epoch() > epoch);
    let since = kinds(&reader).split_off(before);
    assert!(since.ends_with(&[0x63, 0x62]), "{since:02X?}");
    assert_eq!(echo(&mut *card, b"again").unwrap(), answered(b"again"));
}
