//! The driver of one reader, with a fake reader: the messages that it sends, and its handling of responses.

mod busy_slots;
mod chaining;
mod character;
mod claims;
mod composite;
mod concurrent_polls;
mod control;
mod demand;
mod events;
mod exchanged_card;
mod faults;
mod fixture;
mod foreign_use;
mod hostile_reader;
mod hung_device;
mod interfaces;
mod interrupt;
mod levels;
mod listing;
mod negotiation;
mod permissions;
mod power;
mod precedence;
mod recovery;
mod script;
mod sharing;
mod short;
mod slot_events;
mod slots;
mod suspend;
mod tpdu;
mod transport;
mod unresponsive_reader;
mod watch;
mod watch_faults;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use claviger_apdu::{Call, ResponseBuffer, Sent, TransportError, TransportErrorKind};

use super::{
    discovery::reader_info::{CommandChannel, ReaderInterface},
    host::{
        fake::{
            Event, FakeReader, TransferCounts,
            reader::{FakeCard, ReaderConfig, echo},
        },
        transfer::UsbInterface,
    },
    pipe::bulk::{BulkEndpoints, BulkPipe},
    reader::slot::{Capabilities, CcidSlot},
};
use crate::{
    ccid::{descriptor::ClassDescriptor, message::IccStatus, quirks::Quirks},
    stop::StopHandle,
    wait::StopFlag,
};

/// The timeout of an action that succeeds.
const STEP_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a test waits for an event that never comes.
const SHORT: Duration = Duration::from_millis(60);

/// The class descriptor within a reader's descriptors.
fn class(reader: &FakeReader) -> ClassDescriptor {
    let all = reader.descriptors();
    let at = all.windows(2).position(|pair| pair == [54, 0x21]).unwrap();
    ClassDescriptor::parse(&all[at..]).unwrap()
}

/// The quirks of a reader that is not in the table.
pub(super) fn interface_of(
    reader: &FakeReader,
    layout: super::host::fake::EndpointLayout,
) -> ReaderInterface {
    ReaderInterface {
        name: "fake".to_owned(),
        number: 0,
        channel: CommandChannel::Bulk {
            bulk_in: layout.bulk_in,
            bulk_out: layout.bulk_out,
            packet: layout.packet,
        },
        class: class(reader),
        quirks: Quirks::default(),
    }
}

fn claimed(
    reader: &FakeReader,
    layout: super::host::fake::EndpointLayout,
    stop: &Arc<StopFlag>,
) -> CcidSlot {
    claimed_as(reader, layout, Quirks::default(), stop)
}

/// Makes the driver of a reader that has `quirks`.
fn claimed_as(
    reader: &FakeReader,
    layout: super::host::fake::EndpointLayout,
    quirks: Quirks,
    stop: &Arc<StopFlag>,
) -> CcidSlot {
    let interface = reader.device().claim().unwrap();
    drive_as(interface, (class(reader), quirks), layout, stop)
}

/// The driver of an interface that is claimed already.
fn drive(
    interface: Arc<dyn UsbInterface>,
    class: ClassDescriptor,
    layout: super::host::fake::EndpointLayout,
    stop: &Arc<StopFlag>,
) -> CcidSlot {
    drive_as(interface, (class, Quirks::default()), layout, stop)
}

fn drive_as(
    interface: Arc<dyn UsbInterface>,
    (class, quirks): (ClassDescriptor, Quirks),
    layout: super::host::fake::EndpointLayout,
    stop: &Arc<StopFlag>,
) -> CcidSlot {
    let endpoints = BulkEndpoints {
        bulk_in: layout.bulk_in,
        bulk_out: layout.bulk_out,
        packet: layout.packet,
    };
    let bulk = BulkPipe::new(interface, 0, endpoints, class.max_message_length()).unwrap();
    let reader = Capabilities::new(class, quirks);
    CcidSlot::new("fake".to_owned(), bulk, 0, reader, Arc::clone(stop))
}

/// A reader with a powered card, which responds with the data of each command.
fn powered(config: ReaderConfig) -> (FakeReader, CcidSlot) {
    let layout = config.layout;
    let reader = FakeReader::with_card(config, FakeCard::echo());
    let mut device = claimed(&reader, layout, &Arc::default());
    device.power_on(Call::within(STEP_TIMEOUT)).unwrap();
    reader.device().forget();
    (reader, device)
}

/// A reader with `card`, and its driver, which has not powered the card.
fn with_card(config: ReaderConfig, quirks: Quirks, card: FakeCard) -> (FakeReader, CcidSlot) {
    let layout = config.layout;
    let reader = FakeReader::with_card(config, card);
    let device = claimed_as(&reader, layout, quirks, &Arc::default());
    (reader, device)
}

/// The same with power.
fn powered_card(config: ReaderConfig, card: FakeCard) -> (FakeReader, CcidSlot) {
    let (reader, mut device) = with_card(config, Quirks::default(), card);
    device.power_on(Call::within(STEP_TIMEOUT)).unwrap();
    (reader, device)
}

/// The types of the messages the reader was sent.
fn kinds(reader: &FakeReader) -> Vec<u8> {
    reader.messages().iter().map(|(kind, _)| *kind).collect()
}

/// bBWI, wLevelParameter and data of each XfrBlock the reader was sent.
fn blocks(reader: &FakeReader) -> Vec<(u8, u16, Vec<u8>)> {
    let heard = reader.heard();
    let blocks = heard.into_iter().filter(|(kind, ..)| *kind == 0x6F);
    blocks
        .map(|(_, [bwi, low, high], data)| (bwi, u16::from_le_bytes([low, high]), data))
        .collect()
}

/// A frame as it is, whatever it is.
fn raw(device: &mut CcidSlot, frame: &[u8]) -> Result<Vec<u8>, TransportError> {
    let mut response = ResponseBuffer::new();
    device.exchange(frame, &mut response, Call::within(STEP_TIMEOUT))?;
    Ok(response.frame().to_vec())
}

/// A command with `data`, in the short form where it fits.
fn command(data: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x00, 0xEC, 0x00, 0x00];
    match u8::try_from(data.len()) {
        Ok(length) => frame.push(length),
        Err(_) => {
            frame.push(0);
            frame.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        }
    }
    frame.extend(data);
    frame
}

fn exchange(
    device: &mut CcidSlot,
    data: &[u8],
    within: Duration,
) -> Result<Vec<u8>, TransportError> {
    let mut response = ResponseBuffer::new();
    device.exchange(&command(data), &mut response, Call::within(within))?;
    Ok(response.frame().to_vec())
}

fn answered(data: &[u8]) -> Vec<u8> {
    [data, &[0x90, 0x00]].concat()
}

#[test]
fn command_costs_two_transfers_and_queues_the_response_first() {
    let (reader, mut device) = powered(ReaderConfig::extended());
    assert_eq!(
        exchange(&mut device, b"data", STEP_TIMEOUT).unwrap(),
        answered(b"data")
    );
    let two = TransferCounts {
        bulk_in: 1,
        bulk_out: 1,
        completed: 2,
        ..TransferCounts::default()
    };
    assert_eq!(reader.device().counts(), two);
    let events = reader.device().events();
    assert!(
        matches!(events[..2], [Event::SubmitIn(..), Event::SubmitOut(..)]),
        "{events:?}"
    );
}

#[test]
fn read_length_is_a_multiple_of_the_packet_size_with_one_packet_to_spare() {
    let (reader, mut device) = powered(ReaderConfig::extended());
    exchange(&mut device, b"data", STEP_TIMEOUT).unwrap();
    let events = reader.device().events();
    assert!(
        events
            .iter()
            .any(|event| matches!(event, Event::SubmitIn(_, 3136))),
        "{events:?}"
    );
}

#[test]
fn commands_and_responses_longer_than_a_message_are_sent_in_parts() {
    let config = ReaderConfig {
        max_message: 64,
        ..ReaderConfig::extended()
    };
    let (_reader, mut device) = powered(config);
    for len in [1, 48, 49, 50, 54, 108, 255, 256, 1000, 2000] {
        let data: Vec<u8> = (0..len).map(|at: usize| at.to_le_bytes()[0]).collect();
        assert_eq!(
            exchange(&mut device, &data, STEP_TIMEOUT).unwrap(),
            answered(&data),
            "{len}"
        );
    }
}

#[test]
fn messages_that_fill_their_packets_are_received() {
    let (_reader, mut device) = powered(ReaderConfig::extended());
    // 10 bytes of header, 2 of status: with 52 and 116 bytes the message fills its packets.
    for len in [51, 52, 53, 116, 180, 3060] {
        let data = vec![0x5A; len];
        assert_eq!(
            exchange(&mut device, &data, STEP_TIMEOUT).unwrap(),
            answered(&data),
            "{len}"
        );
    }
}

#[test]
fn omitted_empty_packet_is_detected_and_remembered() {
    let mut config = ReaderConfig::extended();
    config.layout.zlp = false;
    let (reader, mut device) = powered(config);
    let data = vec![0x5A; 52];
    // The first is understood at its deadline, when the transfer is taken back.
    assert_eq!(
        exchange(&mut device, &data, SHORT).unwrap(),
        answered(&data)
    );
    reader.device().forget();
    for len in [52, 116, 20, 500, 1012, 52] {
        let data = vec![0xA5; len];
        assert_eq!(
            exchange(&mut device, &data, STEP_TIMEOUT).unwrap(),
            answered(&data),
            "{len}"
        );
    }
    assert_eq!(reader.card_commands(0), 7, "nothing was sent twice");
    let events = reader.device().events();
    let is_cancel = |event: &Event| matches!(event, Event::Cancel(_));
    assert!(!events.iter().any(is_cancel), "{events:?}");
}

#[test]
fn slot_status_costs_two_transfers_and_powers_nothing() {
    let config = ReaderConfig::extended();
    let layout = config.layout;
    let reader = FakeReader::new(config);
    let mut device = claimed(&reader, layout, &Arc::default());
    let mut status = || device.status(Call::within(STEP_TIMEOUT)).unwrap();
    assert_eq!(status(), IccStatus::Absent);
    reader.insert(0, FakeCard::echo());
    assert_eq!(status(), IccStatus::Inactive);
    assert!(!reader.powered(0));
    assert_eq!(reader.device().counts().bulk_out, 2);
}

#[test]
fn an_empty_slot_has_no_card_to_power() {
    let config = ReaderConfig::extended();
    let layout = config.layout;
    let reader = FakeReader::new(config);
    let mut device = claimed(&reader, layout, &Arc::default());
    let error = device.power_on(Call::within(STEP_TIMEOUT)).unwrap_err();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::NoCard, Sent::No)
    );
    assert!(device.atr().is_none());
}

#[test]
fn card_with_an_invalid_atr_is_mute() {
    let config = ReaderConfig::extended();
    let layout = config.layout;
    let card = FakeCard::new(
        vec![0x00, 0x01],
        super::host::fake::reader::Protocol::T1,
        echo,
    );
    let reader = FakeReader::with_card(config, card);
    let mut device = claimed(&reader, layout, &Arc::default());
    let error = device.power_on(Call::within(STEP_TIMEOUT)).unwrap_err();
    assert_eq!(error.kind, TransportErrorKind::NoCard);
    assert!(
        error.what.contains("answer to reset is malformed"),
        "{error}"
    );
}

#[test]
fn command_after_removal_fails_with_card_removed_and_a_new_epoch() {
    let (reader, mut device) = powered(ReaderConfig::extended());
    let epoch = device.epoch();
    reader.remove(0);
    let error = exchange(&mut device, b"data", STEP_TIMEOUT).unwrap_err();
    assert_eq!(error.kind, TransportErrorKind::CardRemoved);
    assert!(device.epoch() > epoch);
    let error = exchange(&mut device, b"data", STEP_TIMEOUT).unwrap_err();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::NoCard, Sent::No)
    );
}

#[test]
fn a_card_that_asks_for_time_gets_it() {
    let (reader, mut device) = powered(ReaderConfig::extended());
    reader.extend_time(100);
    assert_eq!(
        exchange(&mut device, b"slow", STEP_TIMEOUT).unwrap(),
        answered(b"slow")
    );
    assert_eq!(reader.card_commands(0), 1);
}

#[test]
fn card_may_request_time_ten_times_a_second_for_a_quarter_of_an_hour() {
    let (reader, mut device) = powered(ReaderConfig::extended());
    reader.extend_time(10 * 60 * 15);
    assert_eq!(
        exchange(&mut device, b"slow", STEP_TIMEOUT).unwrap(),
        answered(b"slow")
    );
    assert_eq!(reader.card_commands(0), 1);
}

#[test]
fn late_response_is_never_taken_for_that_of_a_later_command() {
    for honours_abort in [true, false] {
        let (reader, mut device) = powered(ReaderConfig::extended());
        reader.honour_abort(honours_abort);
        reader.hold();
        let error = exchange(&mut device, b"first", SHORT).unwrap_err();
        assert_eq!(
            (error.kind, error.sent),
            (TransportErrorKind::TimedOut, Sent::Maybe)
        );
        reader.release();
        // The slot is recovered before anything else is sent, and the caller gets an error.
        let epoch = device.epoch();
        let error = exchange(&mut device, b"second", STEP_TIMEOUT).unwrap_err();
        assert_eq!(
            (error.kind, error.sent),
            (TransportErrorKind::CardReset, Sent::No)
        );
        assert!(device.epoch() > epoch);
        assert_eq!(
            exchange(&mut device, b"third", STEP_TIMEOUT).unwrap(),
            answered(b"third")
        );
        assert_eq!(reader.card_commands(0), 2, "the second was not sent");
    }
}

#[test]
fn an_abort_is_asked_for_by_control_and_bulk_with_one_sequence_number() {
    let (reader, mut device) = powered(ReaderConfig::extended());
    reader.hold();
    exchange(&mut device, b"first", SHORT).unwrap_err();
    reader.release();
    reader.device().forget();
    exchange(&mut device, b"second", STEP_TIMEOUT).unwrap_err();
    let events = reader.device().events();
    let control = events.iter().find_map(|event| match event {
        Event::Control(setup) if (setup.request_type, setup.request) == (0x21, 1) => {
            Some(setup.value)
        }
        _ => None,
    });
    let aborts: Vec<u8> = reader
        .messages()
        .iter()
        .filter(|(kind, _)| *kind == 0x72)
        .map(|(_, sequence)| *sequence)
        .collect();
    assert_eq!(aborts.len(), 1, "one abort, whatever its number");
    assert_eq!(control, Some(u16::from(aborts[0]) << 8));
}

#[test]
fn a_stop_ends_a_command_that_waits() {
    let config = ReaderConfig::extended();
    let layout = config.layout;
    let reader = FakeReader::with_card(config, FakeCard::echo());
    let stop = Arc::new(StopFlag::new());
    let mut device = claimed(&reader, layout, &stop);
    device.power_on(Call::within(STEP_TIMEOUT)).unwrap();
    reader.hold();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| exchange(&mut device, b"data", STEP_TIMEOUT).unwrap_err());
        watch::wait_until(|| reader.card_commands(0) > 0);
        let start = Instant::now();
        stop.stop();
        let error = waiter.join().unwrap();
        assert_eq!(
            (error.kind, error.sent),
            (TransportErrorKind::Cancelled, Sent::Maybe)
        );
        assert!(start.elapsed() < STEP_TIMEOUT / 2, "{:?}", start.elapsed());
    });
}

#[test]
fn the_claim_ends_with_the_device() {
    let (reader, device) = powered(ReaderConfig::extended());
    assert!(reader.device().claimed());
    drop(device);
    assert!(!reader.device().claimed());
    assert!(reader.powered(0), "the card is left as it is");
}
