//! A device that stops responding until it is reset, and readers that must not be taken for one.

use std::time::Duration;

use claviger_apdu::{Call, TransportErrorKind};

use super::{
    SHORT, answered, exchange,
    fixture::{PATIENCE, connect, echo, echo_within, id, reader, snapshot},
    interfaces::MultiInterfaceMachine,
    powered,
    script::{Got, Scripted},
    watch::with_key,
};
use crate::{
    backend::Backend as _,
    ccid::message::IccStatus,
    usb::host::fake::{DeviceMessage, Event, FakeDevice, FakeReader, reader::ReaderConfig},
};

/// A call with time for a recovery, and for a reset after it.
const CALL: Duration = Duration::from_secs(7);

fn resets(device: &FakeDevice) -> usize {
    let events = device.events();
    let resets = events.iter().filter(|event| **event == Event::Reset);
    resets.count()
}

#[test]
fn b35_a_hung_device_is_reset_by_the_next_connect() {
    let (machine, key) = with_key("hung.connect");
    let program = machine.new_backend();
    let _ = snapshot(&mut *program.watch());
    let mut card = connect(&program, "3-1");
    key.device().hang();
    let error = echo_within(&mut *card, b"lost", SHORT).unwrap_err();
    assert_eq!(error.kind, TransportErrorKind::TimedOut, "{error}");
    let epoch = card.epoch();
    drop(card);
    let mut card = program.connect(&id("3-1"), Call::within(CALL)).unwrap();
    assert_eq!(resets(key.device()), 1);
    assert!(card.epoch() > epoch);
    assert_eq!(echo(&mut *card, b"next").unwrap(), answered(b"next"));
}

#[test]
fn b35_a_card_that_is_active_after_the_reset_of_its_device_has_lost_its_state() {
    let config = ReaderConfig {
        slots: 2,
        ..reader()
    };
    let device = FakeDevice::new(config.layout, |transfer: &[u8]| {
        vec![DeviceMessage::Bulk(Got::parse(transfer).good())]
    });
    let machine = MultiInterfaceMachine::new("hung.active");
    machine.plug(
        1,
        &FakeReader::new(config).descriptors(),
        vec![device.clone()],
    );
    let program = machine.new_backend();
    let _ = snapshot(&mut *program.watch());
    let [idle, mut used] = ["3-1:0:0", "3-1:0:1"].map(|id| connect(&program, id));
    let epochs = [idle.epoch(), used.epoch()];
    drop(idle);
    device.hang();
    echo_within(&mut *used, b"lost", SHORT).unwrap_err();
    drop(used);
    let used = program.connect(&id("3-1:0:1"), Call::within(CALL)).unwrap();
    assert_eq!(resets(&device), 1);
    assert!(used.epoch() > epochs[1]);
    assert!(connect(&program, "3-1:0:0").epoch() > epochs[0]);
}

#[test]
fn b35_a_poll_never_resets_a_device() {
    let (reader, mut device) = powered(ReaderConfig::extended());
    reader.device().hang();
    exchange(&mut device, b"lost", SHORT).unwrap_err();
    let error = device.status(Call::within(CALL)).unwrap_err();
    assert_eq!(error.kind, TransportErrorKind::TimedOut, "{error}");
    assert_eq!(resets(reader.device()), 0);
    let icc = device.status_or_reset(Call::within(CALL)).unwrap();
    assert_eq!((icc, resets(reader.device())), (IccStatus::Inactive, 1));
}

#[test]
fn b35_a_reader_that_answers_late_is_not_reset() {
    // Each of the first answers comes with the next command.
    let mut late = 0;
    let mut last = None::<Got>;
    let mut reader = Scripted::powered(ReaderConfig::extended(), true, move |got| match got.kind {
        0x6F => Some(Vec::new()),
        0x65 | 0x72 if late < 3 => {
            late += 1;
            let before = last.replace(got.clone());
            Some(before.iter().map(Got::good).collect())
        }
        _ => None,
    });
    exchange(&mut reader.device, b"lost", SHORT).unwrap_err();
    let icc = reader.device.status_or_reset(Call::within(CALL)).unwrap();
    assert_eq!(icc, IccStatus::Active);
    assert_eq!(resets(&reader.bus), 0);
}

#[test]
fn b35_a_device_is_not_reset_in_a_call_without_time_for_it() {
    let (reader, mut device) = powered(ReaderConfig::extended());
    reader.device().hang();
    exchange(&mut device, b"lost", SHORT).unwrap_err();
    device.status_or_reset(Call::within(SHORT)).unwrap_err();
    assert_eq!(resets(reader.device()), 0);
    assert!(device.status_or_reset(Call::within(PATIENCE)).is_ok());
}
