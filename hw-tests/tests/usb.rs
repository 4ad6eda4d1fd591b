//! The module over a real USB stack: nusb, libusb, and pcscd with libccid, on one virtual reader with one firmware
//! card. `make test-usb` runs these tests in a guest, as a user whose rights come only from our udev rules.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "a test fails loudly"
)]

mod usb_foreign;

use std::{
    fs,
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use claviger_apdu::{
    Call, ResponseBuffer, Sent, Transport, TransportError,
    TransportErrorKind::{self, CardReset, Protocol, TimedOut},
};
use claviger_driver::{
    Backend, Presence, ReaderSnapshot, Watch,
    pcsc::PcscBackend,
    usb::{
        backend::{UsbBackend, UsbOptions},
        host::open::UsbLibrary,
    },
};
use claviger_hw_tests::{
    fixture::{card_fixture::CardFixture, figures},
    paths,
    provision::{CardProfile, PIN},
    reader::FrameFault,
    usb::{
        UsbAccess,
        UsbFault::{
            self, Death, EmptyPacket, ShortAnswer, Silence, StaleAnswer, Stall, UncountedOut,
            WrongSequence,
        },
        obstacle,
    },
};

/// Only a hang takes longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// SELECT of the PIV applet.
const SELECT: &[u8] = b"\x00\xA4\x04\x00\x09\xA0\x00\x00\x03\x08\x00\x00\x10\x00\x00";

fn backend(library: UsbLibrary, fixture: &CardFixture) -> UsbBackend {
    assert_eq!(obstacle(), None);
    UsbBackend::new(&UsbOptions {
        library,
        has_watch_thread: true,
        lock_folders: vec![fixture.folder().join("locks")],
    })
}

fn has_card(readers: &ReaderSnapshot) -> bool {
    let cards = readers.readers.iter();
    cards
        .filter(|reader| matches!(reader.presence, Presence::Card(_)))
        .count()
        == 1
}

/// A watch that has reported the only card.
fn watch(backend: &dyn Backend) -> (Box<dyn Watch>, ReaderSnapshot) {
    let mut watch = backend.watch();
    let readers = watch.snapshot(Call::within(PATIENCE));
    assert!(has_card(&readers), "{readers:?}");
    (watch, readers)
}

fn connect(backend: &dyn Backend, readers: &ReaderSnapshot) -> Box<dyn Transport> {
    let reader = &readers.readers.first().unwrap().id;
    backend.connect(reader, Call::within(PATIENCE)).unwrap()
}

fn try_to_select(card: &mut dyn Transport, within: Duration) -> Result<(), TransportError> {
    let mut response = ResponseBuffer::new();
    card.transmit(SELECT, &mut response, Call::within(within))?;
    assert!(
        response.frame().ends_with(&[0x90, 0x00]),
        "{:02X?}",
        response.frame()
    );
    Ok(())
}

fn select(card: &mut dyn Transport) {
    try_to_select(card, PATIENCE).unwrap();
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

macro_rules! on_each_usb_library {
    ($($rule:ident)*) => {
        mod nusb { $(
            #[test]
            #[ignore = "run by make test-usb"]
            fn $rule() { super::$rule(super::UsbLibrary::Nusb, super::UsbAccess::Nusb) }
        )* }
        mod rusb { $(
            #[test]
            #[ignore = "run by make test-usb"]
            fn $rule() { super::$rule(super::UsbLibrary::Rusb, super::UsbAccess::Rusb) }
        )* }
    };
}

on_each_usb_library! {
    an_apdu_costs_two_transfers
    ordinary_user_reaches_the_reader
    a_token_pulled_in_mid_command_ends_it_at_once
    a_faulty_reader_costs_its_budget_and_is_used_again
    a_dead_device_holds_no_call_beyond_its_deadline
}

fn an_apdu_costs_two_transfers(library: UsbLibrary, access: UsbAccess) {
    let mut fixture = CardFixture::usb(CardProfile::piv4(), access);
    let backend = backend(library, &fixture);
    let (_watch, readers) = watch(&backend);
    let mut card = connect(&backend, &readers);
    select(&mut *card);
    fixture.on_usb().zero();
    for _ in 0..10 {
        select(&mut *card);
    }
    let transfers = fixture.on_usb().transfers();
    assert_eq!((transfers.bulk_out, transfers.bulk_in), (10, 10));
    assert_eq!((transfers.control, transfers.interrupt), (0, 0));
}

fn ordinary_user_reaches_the_reader(library: UsbLibrary, access: UsbAccess) {
    assert_ne!(
        rustix::process::geteuid().as_raw(),
        0,
        "run as an ordinary user"
    );
    let fixture = CardFixture::usb(CardProfile::piv4(), access);
    let backend = backend(library, &fixture);
    let (_watch, readers) = watch(&backend);
    select(&mut *connect(&backend, &readers));
    assert!(readers.error.is_none(), "{:?}", readers.error);
}

fn a_token_pulled_in_mid_command_ends_it_at_once(library: UsbLibrary, access: UsbAccess) {
    let mut fixture = CardFixture::usb(CardProfile::piv4(), access);
    let backend = backend(library, &fixture);
    let (_watch, readers) = watch(&backend);
    let mut card = connect(&backend, &readers);
    select(&mut *card);
    fixture.card().on_frame(|_| FrameFault::Silence);
    let (sent, ended) = mpsc::channel();
    let waits = thread::spawn(move || {
        let mut response = ResponseBuffer::new();
        let failed = card.transmit(SELECT, &mut response, Call::within(PATIENCE));
        sent.send((Instant::now(), failed.unwrap_err(), card.is_closed()))
            .unwrap();
    });
    let end = Instant::now() + PATIENCE;
    while !fixture.card().has_caught() {
        assert!(Instant::now() < end, "the command did not arrive");
        thread::sleep(Duration::from_millis(1));
    }
    let pulled = Instant::now();
    fixture.on_usb().unplug();
    let (at, error, is_closed) = ended.recv_timeout(PATIENCE).expect("it ends");
    waits.join().unwrap();
    println!(
        "{library:?}: ended {:.1} ms after the token was pulled: {error}",
        millis(at.saturating_duration_since(pulled))
    );
    assert!(is_closed);
    fixture.card().heal();
}

/// Faults of a reader, and the error each costs the command that meets it. What the driver may put up with costs none.
const FAULTS: [(UsbFault, Option<TransportErrorKind>); 7] = [
    (StaleAnswer, None),
    (EmptyPacket, None),
    (UncountedOut, None),
    (ShortAnswer, Some(Protocol)),
    (Stall, Some(Protocol)),
    (WrongSequence, Some(TimedOut)),
    (Silence, Some(TimedOut)),
];
/// What each of these commands may take, and how much longer it may take to give up in an emulated machine.
const BUDGET: Duration = Duration::from_secs(2);
const GRACE: Duration = Duration::from_secs(10);

fn a_faulty_reader_costs_its_budget_and_is_used_again(library: UsbLibrary, access: UsbAccess) {
    let mut fixture = CardFixture::usb(CardProfile::piv4(), access);
    let backend = backend(library, &fixture);
    let (_watch, readers) = watch(&backend);
    for (fault, cost) in FAULTS {
        let mut card = connect(&backend, &readers);
        select(&mut *card);
        let epoch = card.epoch();
        fixture.card().zero();
        fixture.on_usb().misbehave(fault);
        let budget = if cost == Some(TimedOut) {
            BUDGET
        } else {
            PATIENCE
        };
        let failed = timed(fault, || try_to_select(&mut *card, budget)).err();
        assert_eq!(failed.as_ref().map(|error| error.kind), cost, "{fault:?}");
        assert_ne!(failed.map(|error| error.sent), Some(Sent::No), "{fault:?}");
        assert_eq!(fixture.card().counts().apdus, 1, "{fault:?}: sent again");
        fixture.on_usb().heal();
        if cost.is_some() {
            let result = try_to_select(&mut *card, PATIENCE).unwrap_err();
            assert_eq!(
                (result.kind, result.sent),
                (CardReset, Sent::No),
                "{result}"
            );
            assert_eq!(fixture.card().counts().apdus, 1, "{fault:?}: sent again");
        }
        select(&mut *card);
        assert_eq!(card.epoch() > epoch, cost.is_some(), "{fault:?}: {epoch:?}");
    }
}

/// What the kernel waits for by itself, a request to the control endpoint, is within the deadline too.
fn a_dead_device_holds_no_call_beyond_its_deadline(library: UsbLibrary, access: UsbAccess) {
    let mut fixture = CardFixture::usb(CardProfile::piv4(), access);
    let backend = backend(library, &fixture);
    let (_watch, readers) = watch(&backend);
    let mut card = connect(&backend, &readers);
    select(&mut *card);
    fixture.card().zero();
    fixture.on_usb().misbehave(Death);
    let unanswered = timed(Death, || try_to_select(&mut *card, BUDGET)).unwrap_err();
    assert_eq!((unanswered.kind, unanswered.sent), (TimedOut, Sent::Maybe));
    let unsent = timed(Death, || try_to_select(&mut *card, BUDGET)).unwrap_err();
    assert_eq!(unsent.sent, Sent::No, "{unsent}");
    assert_eq!(fixture.card().counts().apdus, 1, "sent again");
    fixture.on_usb().heal();
}

/// Runs a command that meets `fault`. Prints and returns the result.
#[track_caller]
fn timed(
    fault: UsbFault,
    command: impl FnOnce() -> Result<(), TransportError>,
) -> Result<(), TransportError> {
    let begin = Instant::now();
    let result = command();
    let took = begin.elapsed();
    match &result {
        Ok(()) => println!("{fault:?}: answered after {took:.1?}"),
        Err(error) => println!("{fault:?}: {error} ({:?}) after {took:.1?}", error.sent),
    }
    assert!(took <= BUDGET + GRACE, "{fault:?}: {took:?}");
    result
}

/// What an APDU may cost, as a share of what it costs over pcscd and libccid: medians of a round.
const SHARE: f64 = 0.5;

/// Median time of a SELECT, in the best of some rounds: whatever else the machine does slows down the others.
fn pace(backend: &dyn Backend) -> Duration {
    const ROUNDS: usize = 5;
    const COMMANDS: usize = 100;
    let (_watch, readers) = watch(backend);
    let mut card = connect(backend, &readers);
    let mut round = |_| {
        let mut times = [(); COMMANDS].map(|()| {
            let begin = Instant::now();
            select(&mut *card);
            begin.elapsed()
        });
        times.sort_unstable();
        times[COMMANDS / 2]
    };
    (0..ROUNDS).map(&mut round).min().unwrap()
}

/// Names the process of the machine's pcscd.
const PCSCD: &str = "CLAVIGER_PCSCD";

/// Ends the machine's pcscd, which lets go of its readers.
fn end_pcscd() {
    let process = std::env::var(PCSCD).expect("a pcscd that runs");
    let ended = Command::new("kill").arg(process).status();
    assert!(ended.unwrap().success(), "a pcscd that runs");
    let end = Instant::now() + PATIENCE;
    while fs::exists("/run/pcscd/pcscd.comm").unwrap() {
        assert!(Instant::now() < end, "pcscd does not end");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
#[ignore = "run by make test-usb, with pcscd, which it ends"]
fn libccid_takes_longer_for_an_apdu() {
    let fixture = CardFixture::usb(CardProfile::piv4(), UsbAccess::Libccid);
    let pcscd = pace(&PcscBackend::new(true));
    println!("pcscd and libccid: {:.3} ms for an APDU", millis(pcscd));
    end_pcscd();
    for library in [UsbLibrary::Nusb, UsbLibrary::Rusb] {
        let backend = backend(library, &fixture);
        let what = format!("{library:?}: an APDU, as a share of that");
        figures::hold_in_one_of_the_rounds(&what, SHARE, || {
            let raw = pace(&backend);
            println!("{library:?}: {:.3} ms for an APDU", millis(raw));
            raw.as_secs_f64() / pcscd.as_secs_f64()
        });
    }
}

/// The output of pkcs11-tool for each token of the fixture's card: its identity, its mechanisms, and all its objects.
fn listing(fixture: &CardFixture) -> String {
    let lists: [&[&str]; 2] = [
        &["--list-objects", "--login", "--pin", PIN],
        &["--list-mechanisms"],
    ];
    let mut text = String::new();
    for token in ["PIV 00000001", "OpenPGP 00000001"] {
        for list in lists {
            let mut tool = fixture.command("pkcs11-tool");
            tool.arg("--module").arg(paths::module_path());
            tool.args(["--token-label", token]).args(list);
            let listed = fixture.run(&mut tool).expect_success().stdout;
            text += &format!("{token}, {}:\n{listed}", list[0]);
        }
    }
    text
}

#[test]
#[ignore = "run by make test-usb, with pcscd, which it ends"]
fn libccid_nusb_and_rusb_list_the_objects_that_the_socket_reader_lists() {
    let expected = listing(&CardFixture::socket(CardProfile::both()));
    for (class, count) in [("Certificate", 5), ("Public Key", 7), ("Private Key", 7)] {
        let found = expected.matches(&format!("{class} Object;")).count();
        assert_eq!(found, count, "{class}:\n{expected}");
    }
    for access in [UsbAccess::Libccid, UsbAccess::Nusb, UsbAccess::Rusb] {
        if access == UsbAccess::Nusb {
            end_pcscd();
        }
        let listed = listing(&CardFixture::usb(CardProfile::both(), access));
        assert!(
            listed == expected,
            "{access:?}:\n{listed}\nThe socket reader:\n{expected}"
        );
        println!(
            "{access:?}: {} lines as over the socket reader",
            listed.lines().count()
        );
    }
}

/// The cards of the guest's tests, which it need not make then.
#[test]
fn the_cards_of_these_tests_can_be_made() {
    for profile in [
        CardProfile::piv4(),
        CardProfile::both(),
        CardProfile::factory(),
    ] {
        let _ = CardFixture::socket(profile);
    }
}
