//! A device that stops responding until it is reset, and readers that must not be taken for one.

use std::time::Duration;

use claviger_apdu::{Call, TransportErrorKind};

use super::{
    SHORT, answered, command, exchange,
    fixture::{STEP_TIMEOUT, connect, echo, echo_within, id, reader, take_snapshot},
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
    let _ = take_snapshot(&mut *program.watch());
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
fn b35_card_active_after_a_device_reset_has_lost_its_state() {
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
    let _ = take_snapshot(&mut *program.watch());
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
    // Each of the first responses comes with the next command.
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

/// A reader whose slot responds with this error to so many status queries, after a command that got no response.
fn busy(error: u8, times: usize) -> Scripted {
    let mut left = times;
    let mut reader = Scripted::powered(ReaderConfig::extended(), true, move |got| match got.kind {
        0x6F if got.data == command(b"lost") => Some(Vec::new()),
        0x65 if left > 0 => {
            left -= 1;
            Some(vec![got.reply(0x40, error, 0, &[])])
        }
        _ => None,
    });
    exchange(&mut reader.device, b"lost", SHORT).unwrap_err();
    reader.heard.forget();
    reader
}

const BUSY: u8 = 0xE0;
const ABORTED: u8 = 0xFF;

#[test]
fn b4_a_reader_that_is_busy_after_an_abort_is_not_recovered_yet() {
    for error in [BUSY, ABORTED] {
        let mut reader = busy(error, 3);
        let reset = exchange(&mut reader.device, b"next", STEP_TIMEOUT).unwrap_err();
        assert_eq!(reset.kind, TransportErrorKind::CardReset, "{reset}");
        let kinds = reader.heard.kinds();
        let powered = kinds.iter().position(|kind| *kind == 0x63).unwrap();
        let before = kinds[..powered].iter();
        assert_eq!(
            before.filter(|kind| **kind == 0x65).count(),
            4,
            "{kinds:02X?}"
        );
        let answer = exchange(&mut reader.device, b"next", STEP_TIMEOUT).unwrap();
        assert_eq!(answer, answered(b"next"));
        assert_eq!(resets(&reader.bus), 0);
    }
}

#[test]
fn b4_a_reader_that_stays_busy_is_not_synchronized_and_not_reset() {
    for error in [BUSY, ABORTED] {
        let mut reader = busy(error, usize::MAX);
        let failed = reader.device.status(Call::within(SHORT)).unwrap_err();
        assert_eq!(failed.kind, TransportErrorKind::TimedOut, "{failed}");
        assert!(!reader.device.is_synchronized());
        exchange(&mut reader.device, b"next", SHORT).unwrap_err();
        let sent = reader.heard.kinds();
        assert!(
            sent.iter().all(|kind| [0x65, 0x72].contains(kind)),
            "{sent:02X?}"
        );
    }
    let mut reader = busy(BUSY, usize::MAX);
    reader
        .device
        .status_or_reset(Call::within(CALL))
        .unwrap_err();
    assert_eq!(resets(&reader.bus), 0);
}

#[test]
fn b4_a_slot_that_is_found_busy_is_recovered_and_its_card_reset() {
    let mut is_busy = true;
    let mut reader = Scripted::powered(ReaderConfig::extended(), true, move |got| {
        let busy = got.kind == 0x65 && std::mem::take(&mut is_busy);
        busy.then(|| vec![got.reply(0x40, BUSY, 0, &[])])
    });
    let icc = reader.device.status(Call::within(STEP_TIMEOUT)).unwrap();
    assert_eq!(icc, IccStatus::Active);
    assert_eq!(reader.heard.kinds(), [0x65, 0x72, 0x65]);
    let error = exchange(&mut reader.device, b"next", STEP_TIMEOUT).unwrap_err();
    assert_eq!(error.kind, TransportErrorKind::CardReset, "{error}");
}

#[test]
fn b35_a_device_is_not_reset_in_a_call_without_time_for_it() {
    let (reader, mut device) = powered(ReaderConfig::extended());
    reader.device().hang();
    exchange(&mut device, b"lost", SHORT).unwrap_err();
    device.status_or_reset(Call::within(SHORT)).unwrap_err();
    assert_eq!(resets(reader.device()), 0);
    assert!(device.status_or_reset(Call::within(STEP_TIMEOUT)).is_ok());
}
