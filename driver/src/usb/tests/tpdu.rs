//! Readers that take blocks of T=1 and commands of T=0.

use std::sync::{Arc, Mutex};

use claviger_apdu::{
    Call, CommandApdu, CommandBudget, Expected, Limits, Sent, Transaction, Transport,
    TransportErrorKind,
};

use super::{
    STEP_TIMEOUT, answered, blocks, command, exchange,
    fixture::{FakeMachine, connect, take_snapshot},
    kinds, powered_card, raw, with_card,
};
use crate::{
    backend::Backend,
    ccid::quirks::Quirks,
    usb::{
        host::fake::{
            FakeReader,
            reader::{Disturbance, FakeCard, Protocol, ReaderConfig, echo},
        },
        reader::slot::CcidSlot,
    },
};

/// T=1 with CRC.
fn crc() -> FakeCard {
    FakeCard::echo()
        .with_atr(&[0x3B, 0x80, 0x81, 0x71, 0xFE, 0x45, 0x01])
        .with_crc()
}

/// T=1 with information fields of `ifsc` bytes.
fn small(ifsc: u8) -> FakeCard {
    FakeCard::echo()
        .with_atr(&[0x3B, 0x80, 0x81, 0x31, ifsc, 0x45])
        .with_ifsc(ifsc.into())
}

/// A card that records its commands.
fn noting(
    card: impl FnOnce(Box<dyn FnMut(&[u8]) -> Vec<u8> + Send>) -> FakeCard,
) -> (FakeCard, Seen) {
    let seen = Seen::default();
    let noted = Arc::clone(&seen);
    let apdu = move |frame: &[u8]| {
        noted.lock().unwrap().push(frame.to_vec());
        echo(frame)
    };
    (card(Box::new(apdu)), seen)
}

type Seen = Arc<Mutex<Vec<Vec<u8>>>>;

fn tpdu(max_message: u32) -> ReaderConfig {
    ReaderConfig {
        max_message,
        ..ReaderConfig::tpdu()
    }
}

#[track_caller]
fn carries(device: &mut CcidSlot, len: usize) {
    let data: Vec<u8> = (0..len).map(|at| at.to_le_bytes()[0]).collect();
    assert_eq!(
        exchange(device, &data, STEP_TIMEOUT).unwrap(),
        answered(&data),
        "{len} bytes"
    );
}

#[test]
fn commands_of_any_length_go_in_blocks_of_t1() {
    type Card = fn() -> FakeCard;
    let cards: [Card; 4] = [FakeCard::echo, crc, || small(1), || small(32)];
    for (number, card) in cards.iter().enumerate() {
        for max_message in [271, 64, 16] {
            let (_reader, mut device) = powered_card(tpdu(max_message), card());
            for len in [1, 26, 27, 28, 249, 250, 255, 256, 600] {
                carries(&mut device, len);
            }
            if number < 2 {
                carries(&mut device, 3000);
            }
        }
    }
}

/// The IFSD that the card received.
fn ifsd(config: ReaderConfig, quirks: Quirks, card: FakeCard) -> Option<u8> {
    let (reader, mut device) = with_card(config, quirks, card);
    device.power_on(Call::within(STEP_TIMEOUT)).unwrap();
    carries(&mut device, 100);
    carries(&mut device, 100);
    let blocks = blocks(&reader);
    let told = blocks.iter().filter(|(.., block)| block[1] == 0xC1);
    let told: Vec<u8> = told.map(|(.., block)| block[3]).collect();
    assert!(told.len() <= 1, "once");
    told.first().copied()
}

#[test]
fn ifsd_request_names_largest_size_that_fits_unless_reader_or_quirk_forbids() {
    let plain = Quirks::default();
    let to_48 = Quirks {
        ifsd: Some(48),
        ..plain
    };
    let never = Quirks {
        no_ifsd: true,
        ..plain
    };
    let at_most = |max_ifsd| ReaderConfig {
        max_ifsd,
        ..ReaderConfig::tpdu()
    };
    let by_itself = ReaderConfig {
        features: 0x0000_0430,
        ..ReaderConfig::tpdu()
    };
    let echo = FakeCard::echo;
    assert_eq!(ifsd(tpdu(271), plain, echo()), Some(254));
    assert_eq!(ifsd(tpdu(271), to_48, echo()), Some(48));
    assert_eq!(ifsd(at_most(100), plain, echo()), Some(100));
    assert_eq!(ifsd(at_most(40), to_48, echo()), Some(40));
    assert_eq!(ifsd(tpdu(64), plain, echo()), Some(50));
    assert_eq!(ifsd(tpdu(64), plain, crc()), Some(49));
    assert_eq!(ifsd(tpdu(64), to_48, echo()), Some(48));
    assert_eq!(ifsd(at_most(32), plain, echo()), None, "it takes 32 anyway");
    assert_eq!(ifsd(tpdu(271), never, echo()), None);
    assert_eq!(ifsd(by_itself, plain, echo()), None);
}

#[test]
fn no_message_is_longer_than_the_reader_takes() {
    let (reader, mut device) = powered_card(tpdu(64), FakeCard::echo());
    carries(&mut device, 1000);
    let longest = blocks(&reader).iter().map(|(.., block)| block.len()).max();
    assert_eq!(longest, Some(54));
}

#[test]
fn time_requested_by_the_card_is_granted_by_the_reader_for_that_block() {
    let card = FakeCard::echo().disturbed(1, Disturbance::Wtx(7));
    let (reader, mut device) = powered_card(ReaderConfig::tpdu(), card);
    carries(&mut device, 10);
    let blocks = blocks(&reader);
    let granted: Vec<_> = blocks
        .iter()
        .map(|(bwi, _, block)| (*bwi, block[1]))
        .collect();
    assert_eq!(granted, [(0, 0xC1), (0, 0x00), (7, 0xE3)]);
}

#[test]
fn a_card_may_ask_for_smaller_information_fields() {
    let card = FakeCard::echo().disturbed(1, Disturbance::Ifs(20));
    let (reader, mut device) = powered_card(ReaderConfig::tpdu(), card);
    carries(&mut device, 10);
    let before = blocks(&reader).len();
    carries(&mut device, 100);
    let blocks = blocks(&reader);
    assert!(blocks[before..].iter().all(|(.., block)| block.len() <= 24));
}

#[test]
fn lost_or_damaged_block_is_repeated_and_the_command_reaches_the_card_once() {
    use Disturbance::{Corrupt, Lose, Parity, Swallow};
    for disturbance in [Lose, Swallow, Parity, Corrupt] {
        // S(IFS), four I-blocks to the card, and the response in two.
        for step in 0..7 {
            let (card, seen) = noting(|apdu| FakeCard::t1(apdu));
            let card = card.disturbed(step, disturbance);
            let card = card
                .with_atr(&[0x3B, 0x80, 0x81, 0x31, 0x20, 0x45])
                .with_ifsc(32);
            let config = ReaderConfig {
                max_ifsd: 64,
                ..ReaderConfig::tpdu()
            };
            let (_reader, mut device) = powered_card(config, card);
            carries(&mut device, 100);
            carries(&mut device, 101);
            assert_eq!(seen.lock().unwrap().len(), 2, "{disturbance:?} of {step}");
        }
    }
}

#[test]
fn corrupted_t1_responses_lead_to_resynchronisation_without_resending() {
    let (card, seen) = noting(|apdu| FakeCard::t1(apdu));
    // The response, and three repetitions of it.
    let card = (0..3).fold(card.disturbed(1, Disturbance::Corrupt), |card, _| {
        card.disturbed(0, Disturbance::Corrupt)
    });
    let (reader, mut device) = powered_card(ReaderConfig::tpdu(), card);
    let epoch = device.epoch();
    let error = exchange(&mut device, b"once", STEP_TIMEOUT).unwrap_err();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::Protocol, Sent::Maybe)
    );
    assert!(error.what.contains("it is unknown"), "{error}");
    assert_eq!(*seen.lock().unwrap(), [command(b"once")]);
    carries(&mut device, 10);
    assert_eq!(device.epoch(), epoch, "its state is as it was");
    assert_eq!(
        kinds(&reader).iter().filter(|kind| **kind == 0x62).count(),
        1
    );
}

#[test]
fn unresponsive_t1_card_is_reset_before_the_next_command() {
    let (card, seen) = noting(|apdu| FakeCard::t1(apdu));
    let (reader, mut device) =
        powered_card(ReaderConfig::tpdu(), card.disturbed(2, Disturbance::Deaf));
    carries(&mut device, 10);
    let error = exchange(&mut device, b"lost", STEP_TIMEOUT).unwrap_err();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::Protocol, Sent::Maybe)
    );
    assert!(!device.is_synchronized());
    let error = exchange(&mut device, b"next", STEP_TIMEOUT).unwrap_err();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::CardReset, Sent::No)
    );
    reader.swap(0, FakeCard::echo());
    device.power_on(Call::within(STEP_TIMEOUT)).unwrap();
    carries(&mut device, 10);
    assert_eq!(seen.lock().unwrap().len(), 1);
}

#[test]
fn an_exchange_the_card_aborts_fails_and_the_next_one_works() {
    let card = FakeCard::echo().disturbed(1, Disturbance::Abort);
    let (_reader, mut device) = powered_card(ReaderConfig::tpdu(), card);
    let error = exchange(&mut device, b"data", STEP_TIMEOUT).unwrap_err();
    assert_eq!(error.kind, TransportErrorKind::Protocol);
    assert_ne!(error.sent, Sent::No);
    carries(&mut device, 10);
}

#[test]
fn a_card_pulled_between_two_blocks_is_removed() {
    for card in [FakeCard::echo(), FakeCard::echo_t0()] {
        let (reader, mut device) = powered_card(ReaderConfig::tpdu(), card);
        let epoch = device.epoch();
        reader.remove(0);
        let error = raw(&mut device, &[0, 0xB0, 0, 0, 2]).unwrap_err();
        assert_eq!(error.kind, TransportErrorKind::CardRemoved, "{error}");
        assert!(device.epoch() > epoch && device.atr().is_none());
    }
}

#[test]
fn commands_of_t0_go_as_tpdus() {
    let (card, seen) = noting(|apdu| FakeCard::t0(apdu));
    let (reader, mut device) = powered_card(ReaderConfig::tpdu(), card);
    raw(&mut device, &[0, 0x20, 0, 1]).unwrap();
    assert_eq!(blocks(&reader), [(0, 0, vec![0, 0x20, 0, 1, 0])], "case 1");
    let read = raw(&mut device, &[0, 0xB0, 0, 0, 3]).unwrap();
    assert_eq!(read, [0, 0, 0, 0x90, 0x00], "case 2");
    let sent = raw(&mut device, &[0, 0xDB, 0, 0, 2, 8, 9]).unwrap();
    assert_eq!(sent, [0x61, 2], "case 3");
    let both = raw(&mut device, &[0, 0xA4, 0, 0, 2, 8, 9, 0]).unwrap();
    assert_eq!(both, [0x61, 2], "case 4");
    assert_eq!(
        raw(&mut device, &[0, 0xC0, 0, 0, 2]).unwrap(),
        [8, 9, 0x90, 0x00]
    );
    let last = seen.lock().unwrap().last().cloned();
    assert_eq!(last, Some(vec![0, 0xA4, 0, 0, 2, 8, 9]), "without its Le");
}

#[test]
fn frame_t0_cannot_carry_is_refused_unsent() {
    let (reader, mut device) = powered_card(ReaderConfig::tpdu(), FakeCard::echo_t0());
    let before = kinds(&reader).len();
    for frame in [&[0, 0xB0, 0, 0, 0, 1, 0][..], &[0, 0x60, 0, 0], &[0]] {
        let error = raw(&mut device, frame).unwrap_err();
        assert_eq!(
            (error.kind, error.sent),
            (TransportErrorKind::Protocol, Sent::No)
        );
    }
    assert_eq!(kinds(&reader).len(), before);
    assert!(device.is_synchronized());
}

#[test]
fn tpdu_longer_than_the_readers_messages_is_refused_unsent() {
    let (reader, mut device) = powered_card(tpdu(64), FakeCard::echo_t0());
    let before = kinds(&reader).len();
    let error = raw(&mut device, &command(&[7; 100])).unwrap_err();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::Protocol, Sent::No)
    );
    assert!(error.what.contains("longer"), "{error}");
    assert_eq!(kinds(&reader).len(), before);
    assert_eq!(raw(&mut device, &command(&[7; 40])).unwrap(), [0x61, 40]);
}

/// Checks two commands to a T=0 card that does not respond to the first: it fails, and the second finds the card reset.
pub(super) fn is_silent_and_then_reset(config: ReaderConfig) {
    let mut calls = 0;
    let card = FakeCard::t0(move |frame| {
        calls += 1;
        if calls == 1 { Vec::new() } else { echo(frame) }
    });
    let (_reader, mut device) = powered_card(config, card);
    let read = [0, 0xCA, 0, 0, 1];
    for expected in [
        (TransportErrorKind::Protocol, Sent::Maybe),
        (TransportErrorKind::CardReset, Sent::No),
    ] {
        let error = raw(&mut device, &read).unwrap_err();
        assert_eq!((error.kind, error.sent), expected);
    }
    assert_eq!(raw(&mut device, &read).unwrap(), [0, 0x90, 0x00]);
}

#[test]
fn a_mute_card_of_t0_is_reset_before_the_next_command() {
    is_silent_and_then_reset(ReaderConfig::tpdu());
}

fn limits(config: ReaderConfig, quirks: Quirks, card: FakeCard) -> Limits {
    let (_reader, mut device) = with_card(config, quirks, card);
    assert_eq!(
        device.limits(),
        Limits::SHORT,
        "as long as there is no card"
    );
    device.power_on(Call::within(STEP_TIMEOUT)).unwrap();
    device.limits()
}

#[test]
fn frame_limits_follow_the_cards_protocol_and_the_reader() {
    let plain = Quirks::default();
    let short = Quirks {
        short: true,
        ..plain
    };
    let (t0, t1) = (FakeCard::echo_t0, FakeCard::echo);
    for (config, quirks, card, expected) in [
        (
            ReaderConfig::extended(),
            plain,
            t1(),
            Limits::extended_known_to(3062),
        ),
        (ReaderConfig::extended(), plain, t0(), Limits::SHORT),
        (ReaderConfig::extended(), short, t1(), Limits::SHORT),
        (ReaderConfig::short(), plain, t1(), Limits::SHORT),
        (ReaderConfig::tpdu(), plain, t1(), Limits::EXTENDED),
        (ReaderConfig::tpdu(), short, t1(), Limits::SHORT),
        (ReaderConfig::tpdu(), plain, t0(), Limits::SHORT),
        (ReaderConfig::character(), plain, t1(), Limits::EXTENDED),
        (ReaderConfig::character(), plain, t0(), Limits::SHORT),
        (ReaderConfig::qemu(), plain, t0(), Limits::SHORT),
    ] {
        let what = format!("{:?} {card:?}", config.level);
        assert_eq!(limits(config, quirks, card), expected, "{what}");
    }
}

#[test]
fn reader_with_the_chaining_quirk_gets_apdus_at_any_announced_level() {
    let chains = Quirks {
        chains: true,
        ..Quirks::default()
    };
    let (reader, mut device) = with_card(ReaderConfig::short(), chains, FakeCard::echo());
    device.power_on(Call::within(STEP_TIMEOUT)).unwrap();
    assert_eq!(device.limits(), Limits::EXTENDED);
    carries(&mut device, 1000);
    let parts: Vec<u16> = blocks(&reader).iter().map(|(_, level, _)| *level).collect();
    assert_eq!(parts, [1, 3, 3, 2, 0x10, 0x10, 0x10]);
    // A reader that announces TPDUs gets no T=1 either.
    let (reader, mut device) = with_card(ReaderConfig::tpdu(), chains, FakeCard::echo_t0());
    device.power_on(Call::within(STEP_TIMEOUT)).unwrap();
    raw(&mut device, &[0, 0xB0, 0, 0, 1]).unwrap();
    assert_eq!(blocks(&reader), [(0, 0, vec![0, 0xB0, 0, 0, 1])]);
}

#[test]
fn only_an_apdu_reader_may_resume_a_powered_card() {
    for (config, adopted) in [
        (ReaderConfig::extended(), true),
        (ReaderConfig::tpdu(), false),
    ] {
        let (_reader, mut device) = powered_card(config.clone(), FakeCard::echo());
        let atr = device.atr().unwrap().clone();
        let (_reader, mut other) = with_card(config, Quirks::default(), FakeCard::echo());
        other.assume_powered(atr);
        assert_eq!(other.atr().is_some(), adopted);
        let limits = if adopted {
            device.limits()
        } else {
            Limits::SHORT
        };
        assert_eq!(other.limits(), limits);
        carries(&mut device, 10);
    }
}

/// A connection of its own.
fn connected(config: &ReaderConfig, card: FakeCard) -> (FakeMachine, Box<dyn Transport>) {
    let reader = FakeReader::with_card(config.clone(), card);
    let machine = FakeMachine::new("tpdu-transport");
    machine.plug("3-1", &reader, config);
    let program = machine.new_backend();
    let mut watch = program.watch();
    take_snapshot(&mut *watch);
    let transport = connect(&program, "3-1");
    (machine, transport)
}

#[test]
fn long_responses_pass_a_transport_in_each_protocol() {
    let t0 = || FakeCard::new(vec![0x3B, 0x00], Protocol::T0, echo);
    for (config, card) in [
        (ReaderConfig::tpdu(), FakeCard::echo()),
        (ReaderConfig::tpdu(), t0()),
        (ReaderConfig::qemu(), t0()),
        (ReaderConfig::character(), FakeCard::echo()),
        (ReaderConfig::character(), t0()),
    ] {
        let what = format!("{:?} {card:?}", config.level);
        let (_machine, mut transport) = connected(&config, card);
        let limits = transport.limits();
        let data = vec![0x5A; 200];
        let command = CommandApdu {
            header: [0, 0xEC, 0, 0],
            data: &data,
            expected: Expected::All,
            budget: CommandBudget::Fast,
        };
        let mut transaction = Transaction::new(&mut *transport, limits);
        let response = transaction.exchange(&command).unwrap();
        assert_eq!(response.ok().unwrap().expose(), data, "{what}");
    }
}
