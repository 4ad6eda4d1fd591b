//! Several readers in one device.

use std::{thread, time::Duration};

use claviger_apdu::{Call, ResponseBuffer, Sent, TransportErrorKind};

use super::{
    answered, command,
    fixture::{connect, echo, holds_card, id, reader, take_snapshot},
    interfaces::MultiInterfaceMachine,
};
use crate::{
    backend::Backend as _,
    usb::host::{
        fake::{
            EndpointLayout, FakeReader,
            reader::{FakeCard, ReaderConfig},
        },
        transfer::EndpointAddress,
    },
};

/// A model in the table, which dead-locks.
const OMNIKEY_5422: (u16, u16, u16) = (0x076B, 0x5422, 0x0100);

/// The readers that are interfaces 0 and 1 of a device, each with a card.
fn device(product: (u16, u16, u16)) -> ([FakeReader; 2], Vec<u8>) {
    let second = EndpointLayout {
        bulk_out: EndpointAddress(0x04),
        bulk_in: EndpointAddress(0x84),
        interrupt: Some(EndpointAddress(0x85)),
        ..EndpointLayout::default()
    };
    let readers = [EndpointLayout::default(), second].map(|layout| {
        let config = ReaderConfig {
            product,
            layout,
            ..reader()
        };
        FakeReader::with_card(config, FakeCard::echo())
    });
    let [one, other] = readers.each_ref().map(FakeReader::descriptors);
    let mut bytes = [&one[..], &other[27..]].concat();
    let total = u16::try_from(bytes.len() - 18).unwrap().to_le_bytes();
    bytes[20..22].copy_from_slice(&total);
    bytes[22] = 2;
    // bInterfaceNumber of the second.
    bytes[one.len() + 2] = 1;
    (readers, bytes)
}

pub(super) fn plugged(
    test: &str,
    product: (u16, u16, u16),
) -> (MultiInterfaceMachine, [FakeReader; 2]) {
    let devices = MultiInterfaceMachine::new(test);
    let (readers, descriptors) = device(product);
    let interfaces = readers.each_ref().map(|reader| reader.device().clone());
    devices.plug(1, &descriptors, interfaces.to_vec());
    (devices, readers)
}

#[test]
fn each_interface_is_a_reader_of_its_own() {
    let (devices, readers) = plugged("composite", reader().product);
    let program = devices.new_backend();
    let mut watch = super::watch::watch_with_waiter(&program);
    let snapshot = take_snapshot(&mut *watch);
    let ids: Vec<_> = snapshot
        .readers
        .iter()
        .map(|state| state.id.clone())
        .collect();
    assert_eq!(ids, [id("3-1:0"), id("3-1:1")]);
    assert!(snapshot.readers.iter().all(holds_card));
    let names: Vec<&str> = snapshot
        .readers
        .iter()
        .map(|state| state.name.as_str())
        .collect();
    assert_eq!(names, ["Device [0]", "Device [1]"]);
    let mut card = connect(&program, "3-1:1");
    assert_eq!(echo(&mut *card, b"data").unwrap(), answered(b"data"));
    let claimed = readers.each_ref().map(|reader| reader.device().claimed());
    assert_eq!(claimed, [false, true]);
    assert_eq!(readers[0].card_commands(0), 0);
    devices.unplug(1);
    assert!(take_snapshot(&mut *watch).readers.is_empty());
}

/// Sends to the second reader while the first is at a command, and what came of it.
fn second_while_first_works(
    test: &str,
    product: (u16, u16, u16),
) -> Result<Vec<u8>, (TransportErrorKind, Sent)> {
    let (devices, readers) = plugged(test, product);
    let program = devices.new_backend();
    let mut watch = super::watch::watch_with_waiter(&program);
    let _ = take_snapshot(&mut *watch);
    let [mut first, mut second] = ["3-1:0", "3-1:1"].map(|id| connect(&program, id));
    readers[0].hold();
    thread::scope(|scope| {
        let slow = scope.spawn(move || echo(&mut *first, b"slow"));
        while readers[0].card_commands(0) == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        let mut response = ResponseBuffer::new();
        let call = Call::within(Duration::from_millis(200));
        let other = second.transmit(&command(b"other"), &mut response, call);
        let reached = readers[1].card_commands(0);
        readers[0].release();
        assert_eq!(slow.join().unwrap().unwrap(), answered(b"slow"));
        assert_eq!(echo(&mut *second, b"then").unwrap(), answered(b"then"));
        assert_eq!(reached, usize::from(other.is_ok()));
        other
            .map(|()| response.frame().to_vec())
            .map_err(|error| (error.kind, error.sent))
    })
}

#[test]
fn two_readers_of_a_device_work_at_the_same_time() {
    let answer = second_while_first_works("composite-both", reader().product);
    assert_eq!(answer, Ok(answered(b"other")));
}

#[test]
fn deadlocking_model_refuses_a_second_command_as_busy() {
    let refused = second_while_first_works("composite-one", OMNIKEY_5422);
    assert_eq!(refused, Err((TransportErrorKind::Busy, Sent::No)));
}

#[test]
fn both_readers_of_a_deadlocking_model_take_turns() {
    let (devices, readers) = plugged("composite-turns", OMNIKEY_5422);
    let program = devices.new_backend();
    let _ = take_snapshot(&mut *program.watch());
    let mut watch = super::watch::watch_with_waiter(&program);
    let _ = take_snapshot(&mut *watch);
    let cards = ["3-1:0", "3-1:1"].map(|id| connect(&program, id));
    thread::scope(|scope| {
        for (number, mut card) in (0_u8..).zip(cards) {
            scope.spawn(move || {
                for round in 0..50 {
                    let data = [number, round];
                    assert_eq!(echo(&mut *card, &data).unwrap(), answered(&data));
                }
            });
        }
    });
    assert_eq!(readers.map(|reader| reader.card_commands(0)), [50, 50]);
}
