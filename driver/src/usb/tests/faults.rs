//! Every fault at every step.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use claviger_apdu::{Call, ResponseBuffer, Sent, TransportError, TransportErrorKind};

use super::{SHORT, STEP_TIMEOUT, answered, claimed, command, exchange};
use crate::usb::{
    host::fake::{
        FakeReader, Fault,
        reader::{FakeCard, ReaderConfig, echo},
    },
    reader::slot::CcidSlot,
};

/// Steps of a command and of the recovery after it that a fault strikes at.
const STEPS: usize = 12;
/// The same where a command takes several messages.
const MANY_STEPS: usize = 16;

/// Each command's data and how often the card got it.
type Seen = Arc<Mutex<Vec<Vec<u8>>>>;

/// A reader and its card, with commands that the card can distinguish.
struct Setup {
    config: ReaderConfig,
    card: fn(Seen) -> FakeCard,
    /// Returns the command for a byte, and its response.
    command: fn(u8) -> Vec<u8>,
    answer: fn(u8) -> Vec<u8>,
    steps: usize,
}

impl Setup {
    /// Data there and back, 70 bytes of it.
    fn t1(config: ReaderConfig) -> Self {
        Self {
            config,
            card: t1,
            command: |byte| command(&[byte; 70]),
            answer: |byte| answered(&[byte; 70]),
            steps: STEPS,
        }
    }

    /// The same in blocks of 32 bytes.
    fn t1_in_blocks(config: ReaderConfig) -> Self {
        Self {
            card: |seen| {
                let card = t1(seen).with_atr(&[0x3B, 0x80, 0x81, 0x31, 0x20, 0x45]);
                card.with_ifsc(32)
            },
            steps: MANY_STEPS,
            ..Self::t1(config)
        }
    }

    /// P1 and P2 come back.
    fn t0(config: ReaderConfig) -> Self {
        Self {
            config,
            card: t0,
            command: |byte| vec![0, 0xCA, byte, !byte, 2],
            answer: |byte| vec![byte, !byte, 0x90, 0x00],
            steps: STEPS,
        }
    }

    fn exchange(
        &self,
        device: &mut CcidSlot,
        byte: u8,
        within: Duration,
    ) -> Result<Vec<u8>, TransportError> {
        let mut response = ResponseBuffer::new();
        device.exchange(&(self.command)(byte), &mut response, Call::within(within))?;
        Ok(response.frame().to_vec())
    }

    /// Returns whether a command gets a response, which may only be its own. A card without power is powered first.
    fn goes_through(&self, device: &mut CcidSlot, byte: u8, what: &str) -> bool {
        match self.exchange(device, byte, Duration::from_secs(4)) {
            Ok(answer) => {
                let right = (self.answer)(byte);
                assert_eq!(answer, right, "{what}: the answer to something else");
                true
            }
            Err(error) => {
                if error.kind == TransportErrorKind::NoCard {
                    let _ = device.power_on(Call::within(STEP_TIMEOUT));
                }
                false
            }
        }
    }

    /// Returns whether a reader without further faults recovers within a few commands.
    fn heals(&self, reader: &FakeReader, device: &mut CcidSlot, what: &str) -> bool {
        (0..6).any(|round: u8| {
            reader.device().release();
            self.goes_through(device, 0x20 + round, what)
        })
    }

    /// The reader with the card in it, which has no power yet.
    fn unpowered(&self) -> (FakeReader, CcidSlot, Seen) {
        let seen = Seen::default();
        let card = (self.card)(Arc::clone(&seen));
        let layout = self.config.layout;
        let reader = FakeReader::with_card(self.config.clone(), card);
        let device = claimed(&reader, layout, &Arc::default());
        (reader, device, seen)
    }

    fn powered(&self) -> (FakeReader, CcidSlot, Seen) {
        let (reader, mut device, seen) = self.unpowered();
        device.power_on(Call::within(STEP_TIMEOUT)).unwrap();
        reader.device().forget();
        (reader, device, seen)
    }
}

fn t1(seen: Seen) -> FakeCard {
    FakeCard::t1(move |frame| {
        seen.lock().unwrap().push(frame.to_vec());
        echo(frame)
    })
}

fn t0(seen: Seen) -> FakeCard {
    FakeCard::t0(move |frame| {
        seen.lock().unwrap().push(frame.to_vec());
        [frame.get(2..4).unwrap_or_default(), &[0x90, 0x00]].concat()
    })
}

fn times(seen: &Seen, frame: &[u8]) -> usize {
    let seen = seen.lock().unwrap();
    seen.iter().filter(|one| *one == frame).count()
}

/// Runs one fault at one step. The command ends, reports whether the card received it, and is sent at most once. The next
/// commands work.
fn strike(setup: &Setup, fault: Fault, step: usize) -> bool {
    let what = format!("{fault:?} at step {step}");
    let (reader, mut device, seen) = setup.powered();
    reader.device().inject(fault, step);
    let start = Instant::now();
    let exchanged = setup.exchange(&mut device, 0x11, SHORT);
    assert!(start.elapsed() < STEP_TIMEOUT / 2, "{what}: it did not end");
    match exchanged {
        Ok(answer) => assert_eq!(answer, (setup.answer)(0x11), "{what}"),
        Err(error) => {
            let reached = times(&seen, &(setup.command)(0x11));
            assert!(error.sent != Sent::No || reached == 0, "{what}: {error}");
            assert!(!error.what.is_empty());
        }
    }
    let struck = reader.device().fault_struck();
    assert!(
        setup.heals(&reader, &mut device, &what) || fault == Fault::Disconnected,
        "{what}: the reader is well, and no command goes through"
    );
    let all = seen.lock().unwrap().clone();
    for frame in &all {
        assert_eq!(times(&seen, frame), 1, "{what}: sent twice");
    }
    struck
}

/// Runs `strike` for each fault at each step, the faults beside each other, as they mostly wait; how many struck.
pub(super) fn each_fault(steps: usize, strike: impl Fn(Fault, usize) -> bool + Sync) -> usize {
    let at_each = |fault| (0..steps).filter(|step| strike(fault, *step)).count();
    std::thread::scope(|scope| {
        let threads: Vec<_> = Fault::ALL
            .iter()
            .map(|fault| scope.spawn(|| at_each(*fault)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    })
}

fn every_fault_at_every_step(setup: &Setup) {
    let struck = each_fault(setup.steps, |fault, step| strike(setup, fault, step));
    assert!(struck > Fault::ALL.len() * 3, "{struck} faults struck");
}

/// The same while the card is powered and agreed with.
fn every_fault_at_every_step_of_power(setup: &Setup) {
    let struck = each_fault(setup.steps, |fault, step| {
        let what = format!("{fault:?} at step {step}");
        let (reader, mut device, seen) = setup.unpowered();
        reader.device().inject(fault, step);
        if let Err(error) = device.power_on(Call::within(SHORT)) {
            assert_eq!(error.sent, Sent::No, "{what}: {error}");
        }
        assert!(seen.lock().unwrap().is_empty(), "{what}: nobody sent it");
        let struck = reader.device().fault_struck();
        assert!(
            setup.heals(&reader, &mut device, &what) || fault == Fault::Disconnected,
            "{what}: the reader is well, and no command goes through"
        );
        struck
    });
    assert!(struck > Fault::ALL.len() * 3, "{struck} faults struck");
}

#[test]
fn any_fault_at_any_step_of_a_command_ends_and_the_next_one_works() {
    every_fault_at_every_step(&Setup::t1(ReaderConfig::extended()));
}

#[test]
fn any_fault_at_any_step_of_a_command_in_parts_ends_and_the_next_one_works() {
    every_fault_at_every_step(&Setup::t1(ReaderConfig {
        max_message: 64,
        ..ReaderConfig::extended()
    }));
}

#[test]
fn any_fault_at_any_step_of_blocks_of_t1_ends_and_the_next_command_works() {
    every_fault_at_every_step(&Setup::t1_in_blocks(ReaderConfig::tpdu()));
}

#[test]
fn any_fault_at_any_step_of_a_command_of_t0_ends_and_the_next_one_works() {
    every_fault_at_every_step(&Setup::t0(ReaderConfig::tpdu()));
}

#[test]
fn any_fault_at_any_step_of_t1_in_characters_ends_and_the_next_command_works() {
    every_fault_at_every_step(&Setup {
        steps: MANY_STEPS,
        ..Setup::t1(ReaderConfig::character())
    });
}

#[test]
fn any_fault_at_any_step_of_t0_in_characters_ends_and_the_next_command_works() {
    every_fault_at_every_step(&Setup::t0(ReaderConfig::character()));
}

#[test]
fn any_fault_at_any_step_of_power_on_ends_and_the_next_command_works() {
    every_fault_at_every_step_of_power(&Setup {
        card: |seen| t1(seen).with_atr(&[0x3B, 0x90, 0x96, 0x81, 0x31, 0xFE, 0x45]),
        ..Setup::t1(ReaderConfig::tpdu())
    });
}

#[test]
fn any_fault_at_any_step_of_recovery_ends_and_the_next_command_works() {
    let setup = Setup::t1(ReaderConfig::extended());
    let struck = each_fault(setup.steps, |fault, step| {
        let what = format!("{fault:?} at step {step}");
        let (reader, mut device, _) = setup.powered();
        reader.hold();
        setup.exchange(&mut device, 0x11, SHORT).unwrap_err();
        reader.release();
        reader.device().inject(fault, step);
        let healthy = setup.heals(&reader, &mut device, &what);
        assert!(healthy || fault == Fault::Disconnected, "{what}");
        reader.device().fault_struck()
    });
    assert!(struck > Fault::ALL.len() * 3, "{struck} faults struck");
}

#[test]
fn reader_waiting_for_the_other_half_of_an_abort_gets_it() {
    let (reader, mut device, _) = Setup::t1(ReaderConfig::extended()).powered();
    reader.hold();
    exchange(&mut device, b"first", SHORT).unwrap_err();
    reader.release();
    // The bulk half is lost: a request, the transfer in, the transfer out.
    reader.device().inject(Fault::Drop, 3);
    let error = exchange(&mut device, b"second", STEP_TIMEOUT).unwrap_err();
    assert_eq!(error.kind, TransportErrorKind::CardReset, "{error}");
    assert!(reader.device().fault_struck());
    assert_eq!(
        exchange(&mut device, b"third", STEP_TIMEOUT).unwrap(),
        answered(b"third")
    );
}
