//! The module over a real USB stack: nusb, libusb, and pcscd with libccid, on one virtual reader with one firmware
//! card. `make test-usb` runs these tests in a guest, as a user who has no rights but those our udev rules give.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "a test fails loudly"
)]

use std::{
    fs,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use claviger_apdu::{Call, ResponseBuffer, Transport};
use claviger_driver::{
    Backend, Presence, Readers, Watch,
    pcsc::PcscBackend,
    usb::{
        backend::{Options, UsbBackend},
        open::Stack,
    },
};
use claviger_hw_tests::{
    provision::Plan,
    reader::Fate,
    rig::Rig,
    usb::{UsbWay, obstacle},
};

/// Only a hang takes longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// SELECT of the PIV applet.
const SELECT: &[u8] = b"\x00\xA4\x04\x00\x09\xA0\x00\x00\x03\x08\x00\x00\x10\x00\x00";

fn backend(stack: Stack, rig: &Rig) -> UsbBackend {
    assert_eq!(obstacle(), None);
    UsbBackend::new(&Options {
        stack,
        is_followed: true,
        locks: vec![rig.folder().join("locks")],
    })
}

fn has_card(readers: &Readers) -> bool {
    let cards = readers.readers.iter();
    cards
        .filter(|reader| matches!(reader.presence, Presence::Card(_)))
        .count()
        == 1
}

/// A watch that has seen the one card there is.
fn watch(backend: &dyn Backend) -> (Box<dyn Watch>, Readers) {
    let mut watch = backend.watch();
    let readers = watch.now(Call::within(PATIENCE));
    assert!(has_card(&readers), "{readers:?}");
    (watch, readers)
}

fn connect(backend: &dyn Backend, readers: &Readers) -> Box<dyn Transport> {
    let reader = &readers.readers.first().unwrap().id;
    backend.connect(reader, Call::within(PATIENCE)).unwrap()
}

fn select(card: &mut dyn Transport) {
    let mut response = ResponseBuffer::new();
    card.transmit(SELECT, &mut response, Call::within(PATIENCE))
        .unwrap();
    assert!(
        response.frame().ends_with(&[0x90, 0x00]),
        "{:02X?}",
        response.frame()
    );
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

macro_rules! on_each_stack {
    ($($rule:ident)*) => {
        mod nusb { $(
            #[test]
            #[ignore = "run by make test-usb"]
            fn $rule() { super::$rule(super::Stack::Nusb, super::UsbWay::Nusb) }
        )* }
        mod rusb { $(
            #[test]
            #[ignore = "run by make test-usb"]
            fn $rule() { super::$rule(super::Stack::Rusb, super::UsbWay::Rusb) }
        )* }
    };
}

on_each_stack! {
    an_apdu_costs_two_transfers
    a_user_without_other_rights_reaches_the_reader
    a_token_pulled_in_mid_command_ends_it_at_once
    a_token_that_comes_and_goes_is_told_and_leaves_nothing_behind
    nothing_happens_while_nothing_happens
}

fn an_apdu_costs_two_transfers(stack: Stack, way: UsbWay) {
    let mut rig = Rig::usb(Plan::piv4(), way);
    let backend = backend(stack, &rig);
    let (_watch, readers) = watch(&backend);
    let mut card = connect(&backend, &readers);
    select(&mut *card);
    rig.on_usb().zero();
    for _ in 0..10 {
        select(&mut *card);
    }
    let transfers = rig.on_usb().transfers();
    assert_eq!((transfers.bulk_out, transfers.bulk_in), (10, 10));
    assert_eq!((transfers.control, transfers.interrupt), (0, 0));
}

fn a_user_without_other_rights_reaches_the_reader(stack: Stack, way: UsbWay) {
    assert_ne!(
        rustix::process::geteuid().as_raw(),
        0,
        "run as an ordinary user"
    );
    let rig = Rig::usb(Plan::piv4(), way);
    let backend = backend(stack, &rig);
    let (_watch, readers) = watch(&backend);
    select(&mut *connect(&backend, &readers));
    assert!(readers.trouble.is_none(), "{:?}", readers.trouble);
}

fn a_token_pulled_in_mid_command_ends_it_at_once(stack: Stack, way: UsbWay) {
    let mut rig = Rig::usb(Plan::piv4(), way);
    let backend = backend(stack, &rig);
    let (_watch, readers) = watch(&backend);
    let mut card = connect(&backend, &readers);
    select(&mut *card);
    rig.card().on_frame(|_| Fate::Silence);
    let (sent, ended) = mpsc::channel();
    let waits = thread::spawn(move || {
        let mut response = ResponseBuffer::new();
        let failed = card.transmit(SELECT, &mut response, Call::within(PATIENCE));
        sent.send((Instant::now(), failed.unwrap_err(), card.is_over()))
            .unwrap();
    });
    let end = Instant::now() + PATIENCE;
    while !rig.card().has_caught() {
        assert!(Instant::now() < end, "the command did not arrive");
        thread::sleep(Duration::from_millis(1));
    }
    let pulled = Instant::now();
    rig.on_usb().unplug();
    let (at, error, is_over) = ended.recv_timeout(PATIENCE).expect("it ends");
    waits.join().unwrap();
    println!(
        "{stack:?}: ended {:.1} ms after the token was pulled: {error}",
        millis(at.saturating_duration_since(pulled))
    );
    assert!(is_over);
    rig.card().heal();
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

/// The next picture in which the card is there, or is not.
fn next(watch: &mut dyn Watch, is_there: bool) {
    let end = Instant::now() + PATIENCE;
    loop {
        let readers = watch.next().unwrap();
        if has_card(&readers) == is_there {
            return;
        }
        assert!(Instant::now() < end, "{readers:?}");
    }
}

fn a_token_that_comes_and_goes_is_told_and_leaves_nothing_behind(stack: Stack, way: UsbWay) {
    const CYCLES: usize = 200;
    let mut rig = Rig::usb(Plan::piv4(), way);
    let backend = backend(stack, &rig);
    let (mut watch, readers) = watch(&backend);
    let id = readers.readers.first().unwrap().id.clone();
    let mut before = (0, 0);
    let (mut came, mut went) = (Vec::new(), Vec::new());
    for cycle in 0..CYCLES {
        let begin = Instant::now();
        rig.on_usb().unplug();
        next(&mut *watch, false);
        went.push(begin.elapsed());
        let begin = Instant::now();
        rig.on_usb().replug().unwrap();
        next(&mut *watch, true);
        came.push(begin.elapsed());
        if cycle % 10 == 0 {
            let mut card = backend.connect(&id, Call::within(PATIENCE)).unwrap();
            select(&mut *card);
        }
        if cycle == 10 {
            before = (open_files(), threads());
        }
    }
    assert_eq!((open_files(), threads()), before, "descriptors and threads");
    for (what, times) in [("plugged in", &mut came), ("pulled", &mut went)] {
        times.sort();
        println!(
            "{stack:?}: told of a token {what} after {:.0} ms (median of {CYCLES})",
            millis(times[CYCLES / 2])
        );
    }
}

/// How often this process has been woken so far, in all its threads.
fn wake_ups() -> u64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let switches = tasks.filter_map(|task| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let line = status
            .lines()
            .find(|line| line.starts_with("voluntary_ctxt_switches"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    switches.sum()
}

fn nothing_happens_while_nothing_happens(stack: Stack, way: UsbWay) {
    const IDLE: Duration = Duration::from_secs(10);
    let mut rig = Rig::usb(Plan::piv4(), way);
    let backend = backend(stack, &rig);
    let (mut watch, _) = watch(&backend);
    let waker = watch.waker();
    let waits = thread::spawn(move || watch.next().is_err());
    thread::sleep(Duration::from_secs(2));
    rig.on_usb().zero();
    let before = wake_ups();
    thread::sleep(IDLE);
    // This thread's own sleep is one.
    let woken = wake_ups() - before - 1;
    println!("{stack:?}: {woken} wake-ups in {IDLE:?}");
    assert_eq!(rig.on_usb().transfers(), Default::default());
    waker.stop();
    assert!(waits.join().unwrap());
    assert!(woken <= 2, "{woken} wake-ups");
}

/// Median time of a SELECT.
fn pace(backend: &dyn Backend) -> Duration {
    const COMMANDS: usize = 300;
    let (_watch, readers) = watch(backend);
    let mut card = connect(backend, &readers);
    let mut times: Vec<Duration> = (0..COMMANDS)
        .map(|_| {
            let begin = Instant::now();
            select(&mut *card);
            begin.elapsed()
        })
        .collect();
    times.sort();
    times[COMMANDS / 2]
}

#[test]
#[ignore = "run by make test-usb, with pcscd"]
fn the_pace_over_libccid() {
    let mut rig = Rig::usb(Plan::piv4(), UsbWay::Libccid);
    let pcscd = pace(&PcscBackend::new(true));
    println!(
        "pcscd and libccid: {:.2} ms for an APDU (median)",
        millis(pcscd)
    );
    println!("transfers of pcscd: {:?}", rig.on_usb().transfers());
}

#[test]
#[ignore = "run by make test-usb"]
fn the_pace_over_nusb_and_rusb() {
    for (stack, way) in [(Stack::Nusb, UsbWay::Nusb), (Stack::Rusb, UsbWay::Rusb)] {
        let rig = Rig::usb(Plan::piv4(), way);
        let pace = pace(&backend(stack, &rig));
        println!("{stack:?}: {:.2} ms for an APDU (median)", millis(pace));
    }
}
