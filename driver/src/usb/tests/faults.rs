//! Every fault at every step.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use claviger_apdu::{Call, Sent, TransportErrorKind};

use super::{
    super::{
        device::Device,
        fake::{
            FakeReader, Fault,
            reader::{FakeCard, ReaderConfig, echo},
        },
    },
    PATIENCE, SHORT, answered, claimed, command, exchange,
};

/// Steps of a command and of the recovery after it that a fault strikes at.
const STEPS: usize = 12;

/// Each command's data and how often the card got it.
type Seen = Arc<Mutex<Vec<Vec<u8>>>>;

fn watched(config: ReaderConfig) -> (FakeReader, Device, Seen) {
    let seen = Seen::default();
    let noted = Arc::clone(&seen);
    let card = FakeCard::t1(move |frame| {
        noted.lock().unwrap().push(frame.to_vec());
        echo(frame)
    });
    let layout = config.layout;
    let reader = FakeReader::with_card(config, card);
    let mut device = claimed(&reader, layout, &Arc::default());
    device.power_on(Call::within(PATIENCE)).unwrap();
    reader.device().forget();
    (reader, device, seen)
}

fn times(seen: &Seen, data: &[u8]) -> usize {
    let frame = command(data);
    seen.lock()
        .unwrap()
        .iter()
        .filter(|one| **one == frame)
        .count()
}

/// Whether a command is answered, which may only be by its own answer; a card without power gets it back.
fn goes_through(device: &mut Device, data: &[u8], what: &str) -> bool {
    match exchange(device, data, Duration::from_secs(4)) {
        Ok(answer) => {
            assert_eq!(
                answer,
                answered(data),
                "{what}: the answer to something else"
            );
            true
        }
        Err(error) => {
            if error.kind == TransportErrorKind::NoCard {
                let _ = device.power_on(Call::within(PATIENCE));
            }
            false
        }
    }
}

/// One fault at one step: the command ends, says whether the card saw it, is sent once at most, and the next
/// ones on a reader that is well again work.
fn strike(config: ReaderConfig, fault: Fault, step: usize) -> bool {
    let what = format!("{fault:?} at step {step}");
    let (reader, mut device, seen) = watched(config);
    let bus = reader.device();
    bus.inject(fault, step);
    let data = vec![0x11; 70];
    match exchange(&mut device, &data, SHORT) {
        Ok(answer) => assert_eq!(answer, answered(&data), "{what}"),
        Err(error) => {
            let reached = times(&seen, &data);
            assert!(error.sent != Sent::No || reached == 0, "{what}: {error}");
            assert!(!error.what.is_empty());
        }
    }
    let struck = bus.struck();
    bus.release();
    let healthy = (0..6).any(|round: u8| goes_through(&mut device, &[0x20 + round; 70], &what));
    assert!(
        healthy || fault == Fault::Gone,
        "{what}: the reader is well, and no command goes through"
    );
    let all = seen.lock().unwrap().clone();
    for frame in &all {
        let times = all.iter().filter(|one| *one == frame).count();
        assert_eq!(times, 1, "{what}: sent twice");
    }
    struck
}

/// Runs `strike` for each fault at each step, the faults beside each other, as they mostly wait; how many struck.
fn each_fault(strike: impl Fn(Fault, usize) -> bool + Sync) -> usize {
    let steps = |fault| (0..STEPS).filter(|step| strike(fault, *step)).count();
    std::thread::scope(|scope| {
        let threads: Vec<_> = Fault::ALL
            .iter()
            .map(|fault| scope.spawn(|| steps(*fault)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    })
}

fn every_fault_at_every_step(config: &ReaderConfig) {
    let struck = each_fault(|fault, step| strike(config.clone(), fault, step));
    assert!(struck > Fault::ALL.len() * 3, "{struck} faults struck");
}

#[test]
fn any_fault_at_any_step_of_a_command_ends_and_the_next_one_works() {
    every_fault_at_every_step(&ReaderConfig::extended());
}

#[test]
fn any_fault_at_any_step_of_a_command_in_parts_ends_and_the_next_one_works() {
    every_fault_at_every_step(&ReaderConfig {
        max_message: 64,
        ..ReaderConfig::extended()
    });
}

#[test]
fn any_fault_at_any_step_of_coming_back_ends_and_the_next_command_works() {
    let struck = each_fault(|fault, step| {
        let (reader, mut device, _) = watched(ReaderConfig::extended());
        reader.hold();
        exchange(&mut device, &[0x11; 70], SHORT).unwrap_err();
        reader.release();
        reader.device().inject(fault, step);
        let healthy = (0..6).any(|round: u8| {
            reader.device().release();
            let data = vec![0x20 + round; 70];
            goes_through(&mut device, &data, &format!("{fault:?} at step {step}"))
        });
        assert!(healthy || fault == Fault::Gone, "{fault:?} at step {step}");
        reader.device().struck()
    });
    assert!(struck > Fault::ALL.len() * 3, "{struck} faults struck");
}

#[test]
fn a_reader_that_waits_for_the_other_half_of_an_abort_gets_it() {
    let (reader, mut device, _) = watched(ReaderConfig::extended());
    reader.hold();
    exchange(&mut device, b"first", SHORT).unwrap_err();
    reader.release();
    // The bulk half is lost: a request, the transfer in, the transfer out.
    reader.device().inject(Fault::Drop, 3);
    let error = exchange(&mut device, b"second", PATIENCE).unwrap_err();
    assert_eq!(error.kind, TransportErrorKind::CardReset, "{error}");
    assert!(reader.device().struck());
    assert_eq!(
        exchange(&mut device, b"third", PATIENCE).unwrap(),
        answered(b"third")
    );
}
