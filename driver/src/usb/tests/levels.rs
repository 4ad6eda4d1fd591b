//! Readers of blocks and characters on a bus, as a program uses them.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use claviger_apdu::{Call, Limits, ResponseBuffer, Transport, TransportErrorKind};

use super::{
    SHORT, answered, blocks, exchange,
    fixture::{
        FakeMachine, STEP_TIMEOUT, connect, echo, holds_card, reader, single_reader, take_snapshot,
        token,
    },
    powered,
};
use crate::{
    backend::{Backend, Watch},
    stop::StopHandle,
    usb::{
        backend::UsbBackend,
        host::fake::{
            FakeReader,
            reader::{FakeCard, Level, ReaderConfig},
        },
    },
};

/// A token that takes blocks.
fn block_token() -> ReaderConfig {
    ReaderConfig {
        product: token().product,
        ..ReaderConfig::tpdu()
    }
}

fn powers(reader: &FakeReader) -> usize {
    let messages = reader.messages();
    messages.iter().filter(|(kind, _)| *kind == 0x62).count()
}

/// A reader in a machine of its own, and a connection to its card.
struct Plugged {
    card: Box<dyn Transport>,
    _watch: Box<dyn Watch>,
    _program: UsbBackend,
    reader: FakeReader,
    _machine: FakeMachine,
}

fn plugged(test: &str, config: &ReaderConfig, card: FakeCard) -> Plugged {
    let machine = FakeMachine::new(test);
    let reader = FakeReader::with_card(config.clone(), card);
    machine.plug("3-1", &reader, config);
    let program = machine.new_backend();
    let mut watch = super::watch::watch_with_waiter(&program);
    assert!(holds_card(single_reader(&take_snapshot(&mut *watch))));
    Plugged {
        card: connect(&program, "3-1"),
        _watch: watch,
        _program: program,
        reader,
        _machine: machine,
    }
}

/// Ends a watch, also when the test fails.
struct Stopping(Arc<dyn StopHandle>);

impl Drop for Stopping {
    fn drop(&mut self) {
        self.0.stop();
    }
}

#[test]
fn tpdu_and_character_readers_are_found_and_their_cards_used() {
    for (number, config) in [ReaderConfig::tpdu(), ReaderConfig::character()]
        .iter()
        .enumerate()
    {
        let test = format!("levels.{number}");
        let mut plugged = plugged(&test, config, FakeCard::echo());
        let card = &mut plugged.card;
        assert_eq!(card.limits(), Limits::EXTENDED);
        assert_eq!(echo(&mut **card, &[7; 600]).unwrap(), answered(&[7; 600]));
    }
}

#[test]
fn the_reader_of_qemu_is_found_and_its_card_used() {
    let mut plugged = plugged("qemu", &ReaderConfig::qemu(), FakeCard::echo_t0());
    let card = &mut plugged.card;
    assert_eq!(card.limits(), Limits::SHORT);
    let mut response = ResponseBuffer::new();
    let select = [0, 0xA4, 4, 0, 3, 1, 2, 3, 0];
    card.transmit(&select, &mut response, Call::within(STEP_TIMEOUT))
        .unwrap();
    assert_eq!(response.frame(), [0x61, 3]);
    card.transmit(
        &[0, 0xC0, 0, 0, 3],
        &mut response,
        Call::within(STEP_TIMEOUT),
    )
    .unwrap();
    assert_eq!(response.frame(), [1, 2, 3, 0x90, 0x00]);
    let messages = plugged.reader.messages();
    let types = messages.iter().map(|(kind, _)| *kind);
    let spoken: Vec<u8> = types.filter(|kind| !matches!(kind, 0x62 | 0x65)).collect();
    assert_eq!(spoken, [0x6F, 0x6F], "nothing is agreed on");
}

#[test]
fn negotiated_parameters_are_forgotten_with_the_claim() {
    for (config, resets) in [(block_token(), 1), (token(), 0)] {
        let machine = FakeMachine::new(&format!("agreed.{resets}"));
        let reader = FakeReader::with_card(config.clone(), FakeCard::echo());
        machine.plug("3-1", &reader, &config);
        let (ours, theirs) = (machine.new_backend(), machine.new_backend());
        let mut watches = [ours.watch(), theirs.watch()];
        for watch in &mut watches {
            take_snapshot(&mut **watch);
        }
        let mut first = connect(&ours, "3-1");
        echo(&mut *first, b"a").unwrap();
        drop(first);
        let before = powers(&reader);
        let mut second = connect(&theirs, "3-1");
        assert_eq!(echo(&mut *second, b"b").unwrap(), answered(b"b"));
        assert_eq!(powers(&reader) - before, resets);
    }
}

#[test]
fn card_is_powered_once_per_claim_however_often_it_is_polled() {
    let mut config = ReaderConfig {
        features: 0x0000_0030,
        ..ReaderConfig::tpdu()
    };
    config.layout.interrupt = None;
    let machine = FakeMachine::new("once");
    let slot = FakeReader::with_card(config.clone(), FakeCard::echo());
    machine.plug("3-1", &slot, &config);
    let program = machine.new_backend();
    let mut watch = super::watch::watch_with_waiter(&program);
    let waker = watch.stop_handle();
    let first = take_snapshot(&mut *watch);
    let snapshots = thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let next = || watch.next_snapshot().ok();
            std::iter::from_fn(next).count()
        });
        let stopping = Stopping(waker);
        let looks = || slot.messages().len();
        let (begun, end) = (looks(), Instant::now() + STEP_TIMEOUT);
        while looks() < begun + 5 {
            assert!(Instant::now() < end, "it is looked at");
            thread::sleep(Duration::from_millis(5));
        }
        // A query resets no card. The first connect does.
        drop(connect(&program, "3-1"));
        let before = powers(&slot);
        let mut card = connect(&program, "3-1");
        assert_eq!(echo(&mut *card, b"a").unwrap(), answered(b"a"));
        drop(card);
        assert_eq!(powers(&slot), before, "the card is as it was");
        drop(stopping);
        waiting.join().unwrap()
    });
    // The first query had its own claim, after which another program may have used the card.
    assert!(snapshots <= 1, "{snapshots} changes");
    assert!(powers(&slot) <= 2);
    assert!(holds_card(single_reader(&first)));
}

#[test]
fn quirks_of_the_reader_table_are_applied() {
    let as_model = |product: (u16, u16), config: ReaderConfig| ReaderConfig {
        product: (product.0, product.1, 0x0100),
        ..config
    };
    let told_ifsd = |test, config: ReaderConfig| {
        let mut plugged = plugged(test, &config, FakeCard::echo());
        echo(&mut *plugged.card, b"a").unwrap();
        blocks(&plugged.reader)
            .iter()
            .any(|(.., block)| block[1] == 0xC1)
    };
    assert!(told_ifsd("ifsd", ReaderConfig::tpdu()));
    let etoken = as_model((0x0529, 0x0620), ReaderConfig::tpdu());
    assert!(!told_ifsd("no-ifsd", etoken));
    let limits =
        |test, config: ReaderConfig| plugged(test, &config, FakeCard::echo()).card.limits();
    let tribank = as_model((0x0D46, 0x3010), reader());
    assert_eq!(limits("short", tribank), Limits::SHORT);
    let omnikey = as_model((0x076B, 0x3031), ReaderConfig::short());
    assert_eq!(limits("chains", omnikey), Limits::EXTENDED);
    let slow = as_model((0x058F, 0x9540), ReaderConfig::tpdu());
    let fast = FakeCard::echo().with_atr(&[0x3B, 0x90, 0x96, 0x81, 0x31, 0xFE, 0x45]);
    let plugged = plugged("max-bps", &slow, fast);
    let asked = blocks(&plugged.reader)[0].2.clone();
    assert_eq!(asked, [0xFF, 0x11, 0x15, 0xFB], "172 kbit/s");
}

#[test]
fn b4_interrupted_card_is_reset_before_next_command_even_after_a_status_query() {
    for config in [ReaderConfig::extended(), ReaderConfig::tpdu()] {
        assert!(matches!(config.level, Level::ExtendedApdu | Level::Tpdu));
        let (reader, mut device) = powered(config);
        reader.hold();
        exchange(&mut device, b"first", SHORT).unwrap_err();
        reader.release();
        device.status(Call::within(STEP_TIMEOUT)).unwrap();
        assert!(!device.is_synchronized());
        let error = exchange(&mut device, b"second", STEP_TIMEOUT).unwrap_err();
        assert_eq!(error.kind, TransportErrorKind::CardReset, "{error}");
        let third = exchange(&mut device, b"third", STEP_TIMEOUT).unwrap();
        assert_eq!(third, answered(b"third"));
    }
}
