//! The driver's own socket backend against this server and real firmware.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "helpers of a test fail loudly"
)]

use std::time::Duration;

use claviger_apdu::{
    Call, CommandApdu, Expected, Limits, ResponseBuffer, StatusWord, Transaction, Transmit,
    Transport, TransportErrorKind,
};
use claviger_driver::{Backend, Presence, ReaderState, Readers, socket::SocketBackend};
use claviger_hw_tests::{fixture::card_fixture::Rig, provision::Plan, reader::Fate};

const PIV: [u8; 9] = [0xA0, 0, 0, 0x03, 0x08, 0, 0, 0x10, 0x00];
const VERIFY_STATUS: [u8; 4] = [0x00, 0x20, 0x00, 0x80];

fn call() -> Call {
    Call::within(Duration::from_secs(10))
}

fn backend(rig: &Rig) -> SocketBackend {
    SocketBackend::new(vec![rig.socket_path()])
}

fn connect(rig: &Rig) -> Box<dyn Transport> {
    let backend = backend(rig);
    let readers = backend.watch().now(call());
    let id = only(&readers).id.clone();
    backend.connect(&id, call()).expect("the card is there")
}

fn only(readers: &Readers) -> &ReaderState {
    assert_eq!(readers.readers.len(), 1, "{readers:?}");
    &readers.readers[0]
}

fn transmit(transport: &mut dyn Transport, frame: &[u8]) -> Result<Vec<u8>, TransportErrorKind> {
    let mut buffer = ResponseBuffer::new();
    transport
        .transmit(frame, &mut buffer, call())
        .map_err(|error| error.kind)?;
    Ok(buffer.frame().to_vec())
}

#[test]
fn a_transaction_reads_a_certificate_and_leaves_the_card_as_it_is() {
    let rig = Rig::socket(Plan::piv4());
    let mut card = connect(&rig);
    let limits = card.limits();
    let mut object = Vec::new();
    let read = &mut |link: &mut dyn Transmit| {
        let mut transaction = Transaction::new(link, limits);
        let select = CommandApdu {
            data: &PIV,
            expected: Expected::All,
            ..CommandApdu::header([0, 0xA4, 4, 0])
        };
        transaction
            .exchange(&select)
            .expect("an answer")
            .ok()
            .expect("PIV is there");
        let data = [0x5C, 3, 0x5F, 0xC1, 0x05];
        let get = CommandApdu {
            data: &data,
            expected: Expected::All,
            ..CommandApdu::header([0, 0xCB, 0x3F, 0xFF])
        };
        object = transaction
            .exchange(&get)
            .expect("an answer")
            .ok()
            .expect("the object")
            .expose()
            .to_vec();
    };
    card.transact(call(), read).expect("the card is free");
    let certificate = rig.certificate("piv-9A");
    assert!(
        object
            .windows(certificate.len())
            .any(|window| window == certificate)
    );
    let counts = rig.card().counts();
    assert_eq!((counts.begins, counts.ends, counts.resets), (1, 1, 0));
    assert_eq!(
        transmit(&mut *connect(&rig), &VERIFY_STATUS),
        Ok(vec![0x63, 0xC3]),
        "PIV is still selected"
    );
}

#[test]
fn extended_length_reaches_the_firmware_in_one_frame() {
    let rig = Rig::socket(Plan::factory());
    let mut card = connect(&rig);
    assert!(card.limits().extended);
    let data = [0x42; 1000];
    let command = CommandApdu {
        data: &data,
        expected: Expected::All,
        ..CommandApdu::header([0, 0xFF, 0, 0])
    };
    rig.card().zero();
    let mut status = None;
    let send = &mut |link: &mut dyn Transmit| {
        status = Transaction::new(link, Limits::EXTENDED)
            .exchange(&command)
            .ok()
            .map(|answer| answer.status);
    };
    card.transact(call(), send).expect("the card is free");
    assert_eq!(status, Some(StatusWord(0x6A82)), "nothing is selected");
    assert_eq!(rig.card().counts().command_bytes, 4 + 3 + 1000 + 2);
}

#[test]
fn a_watch_sees_the_card_go_and_come_and_the_server_too() {
    let mut rig = Rig::socket(Plan::factory());
    let mut watch = backend(&rig).watch();
    let present = |readers: &Readers| matches!(only(readers).presence, Presence::Card(_));
    assert!(present(&watch.now(call())));
    rig.remove();
    assert!(!present(&watch.next().expect("a change")));
    rig.insert();
    assert!(present(&watch.next().expect("a change")));
    rig.stop_service();
    assert!(watch.next().expect("a change").readers.is_empty());
    rig.restart_service();
    assert!(present(&watch.next().expect("a change")));
}

#[test]
fn removal_in_the_middle_of_a_command_is_told_as_such() {
    let rig = Rig::socket(Plan::factory());
    let mut card = connect(&rig);
    rig.card().on_frame(|_| Fate::PullAfter);
    assert_eq!(
        transmit(&mut *card, &VERIFY_STATUS),
        Err(TransportErrorKind::CardRemoved)
    );
    rig.card().heal();
    rig.insert();
    assert_eq!(
        transmit(&mut *card, &VERIFY_STATUS),
        Err(TransportErrorKind::CardRemoved)
    );
    assert_eq!(
        transmit(&mut *connect(&rig), &VERIFY_STATUS),
        Ok(vec![0x6A, 0x82])
    );
}

#[test]
fn a_reset_by_others_advances_the_epoch_and_the_card_stays_usable() {
    let rig = Rig::socket(Plan::factory());
    let mut card = connect(&rig);
    let before = card.epoch();
    rig.reset();
    assert_eq!(
        transmit(&mut *card, &VERIFY_STATUS),
        Err(TransportErrorKind::CardReset)
    );
    assert!(card.epoch() > before);
    assert_eq!(transmit(&mut *card, &VERIFY_STATUS), Ok(vec![0x6A, 0x82]));
}

#[test]
fn a_silent_card_costs_its_deadline_and_no_more() {
    let rig = Rig::socket(Plan::factory());
    let mut card = connect(&rig);
    rig.card().on_frame(|_| Fate::Silence);
    let start = std::time::Instant::now();
    let mut buffer = ResponseBuffer::new();
    let brief = Call::within(Duration::from_millis(200));
    let error = card
        .transmit(&VERIFY_STATUS, &mut buffer, brief)
        .unwrap_err();
    assert_eq!(error.kind, TransportErrorKind::TimedOut);
    assert!(start.elapsed() < Duration::from_secs(30));
}
