//! Programs that use a reader by another driver, and take no lock.

use std::time::Duration;

use claviger_apdu::{Call, TransportErrorKind};

use super::{
    answered,
    composite::plugged,
    fixture::{STEP_TIMEOUT, connect, echo, id, reader, take_snapshot, token},
    kinds,
    watch::{watch_with_waiter, with_key},
};
use crate::{
    backend::{Backend as _, Watch},
    ccid::message::Command,
    usb::{
        backend::UsbBackend,
        host::fake::{EndpointLayout, FakeReader},
        pipe::bulk::{BulkEndpoints, BulkPipe},
    },
    wait::StopFlag,
};

/// Another driver queries the status of the slot, and releases the reader.
fn use_by_other_driver(reader: &FakeReader, layout: EndpointLayout) {
    let interface = reader.device().claim().unwrap();
    let endpoints = BulkEndpoints {
        bulk_in: layout.bulk_in,
        bulk_out: layout.bulk_out,
        packet: layout.packet,
    };
    let mut bulk = BulkPipe::new(interface, 0, endpoints, 3072).unwrap();
    let deadline = Call::within(STEP_TIMEOUT).deadline;
    bulk.command(&Command::GetSlotStatus, 0, deadline, &StopFlag::new())
        .unwrap();
}

/// Returns whether the next transport has another epoch than the previous one. Each transport claims the reader anew.
fn is_new_epoch(program: &UsbBackend, reader: &str, between: impl FnOnce()) -> bool {
    let before = {
        let mut card = connect(program, reader);
        assert_eq!(echo(&mut *card, b"one").unwrap(), answered(b"one"));
        card.epoch()
    };
    between();
    let mut card = connect(program, reader);
    assert_eq!(echo(&mut *card, b"two").unwrap(), answered(b"two"));
    card.epoch() != before
}

/// A program with its readers, which are known until the watch is dropped.
fn with_watch(program: UsbBackend) -> (UsbBackend, Box<dyn Watch>) {
    let mut watch = watch_with_waiter(&program);
    let _ = take_snapshot(&mut *watch);
    (program, watch)
}

#[test]
fn b13_use_by_another_driver_between_two_claims_begins_a_new_epoch() {
    let (machine, key) = with_key("foreign");
    for program in [
        machine.new_backend(),
        machine.new_backend_without_locks(machine.bus()),
    ] {
        let (program, _watch) = with_watch(program);
        assert!(
            !is_new_epoch(&program, "3-1", || {}),
            "no other program used it"
        );
        let other = || use_by_other_driver(&key, token().layout);
        assert!(is_new_epoch(&program, "3-1", other));
        assert!(!is_new_epoch(&program, "3-1", || {}), "it was there once");
    }
}

#[test]
fn b13_use_by_another_driver_keeps_the_recorded_card_from_being_resumed() {
    let (machine, key) = with_key("foreign-record");
    let (first, _watch) = with_watch(machine.new_backend());
    echo(&mut *connect(&first, "3-1"), b"one").unwrap();
    let taken_up = || {
        let (program, _watch) = with_watch(machine.new_backend());
        let before = kinds(&key).len();
        echo(&mut *connect(&program, "3-1"), b"two").unwrap();
        kinds(&key).split_off(before)
    };
    assert_eq!(taken_up(), [0x65, 0x6F], "no other program used it");
    use_by_other_driver(&key, token().layout);
    assert_eq!(taken_up(), [0x65, 0x62, 0x6F]);
    assert_eq!(taken_up(), [0x65, 0x6F], "it was there once");
}

#[test]
fn b13_claim_refused_because_of_another_driver_begins_a_new_epoch() {
    let (machine, key) = with_key("foreign-busy");
    let (program, _watch) = with_watch(machine.new_backend());
    let refused = || {
        let theirs = key.device().claim().unwrap();
        let call = Call::within(Duration::from_millis(20));
        let error = program.connect(&id("3-1"), call).err().unwrap();
        assert_eq!(error.kind, TransportErrorKind::Busy, "{error}");
        drop(theirs);
    };
    assert!(is_new_epoch(&program, "3-1", refused));
}

#[test]
fn readers_of_one_device_are_no_foreign_use_to_each_other() {
    let (devices, readers) = plugged("foreign-composite", reader().product);
    let (program, _watch) = with_watch(devices.new_backend());
    let other = || {
        let mut other = connect(&program, "3-1:1");
        assert_eq!(echo(&mut *other, b"other").unwrap(), answered(b"other"));
    };
    assert!(!is_new_epoch(&program, "3-1:0", other));
    let mut lasting = connect(&program, "3-1:1");
    let other = || assert_eq!(echo(&mut *lasting, b"other").unwrap(), answered(b"other"));
    assert!(!is_new_epoch(&program, "3-1:0", other));
    drop(lasting);
    assert!(!is_new_epoch(&program, "3-1:0", || {}));
    let stranger = || use_by_other_driver(&readers[0], EndpointLayout::default());
    assert!(is_new_epoch(&program, "3-1:0", stranger));
}
