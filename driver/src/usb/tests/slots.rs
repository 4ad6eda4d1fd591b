//! A reader with several slots is several readers to the module, over one claim and one pair of pipes.

use std::{
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use claviger_apdu::{Call, ResponseBuffer, Sent, Transport, TransportError, TransportErrorKind};

use super::{
    answered, command, exchange,
    fixture::{FakeMachine, STEP_TIMEOUT, connect, echo, holds_card, id, reader, take_snapshot},
    interface_of,
};
use crate::{
    backend::{Backend, Watch},
    ccid::budget,
    reader::{ReaderSnapshot, ReaderState},
    usb::{
        backend::UsbBackend,
        claim::pipe,
        host::fake::{
            FakeReader, Fault, TransferCounts,
            reader::{FakeCard, ReaderConfig, echo as answer_of_echo},
        },
        pipe::SlotPipe,
        reader::slot::{self, CcidSlot},
    },
};

pub(super) fn several(slots: u8) -> ReaderConfig {
    ReaderConfig { slots, ..reader() }
}

/// A card in a slot, and how often it lost its state.
pub(super) fn counted(reader: &FakeReader, slot: u8) -> Arc<AtomicUsize> {
    let resets = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&resets);
    let card = FakeCard::echo().on_reset(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    reader.insert(slot, card);
    resets
}

/// A reader of two slots with a card in each, plugged in, and how often each card lost its state.
pub(super) fn pair(machine: &FakeMachine) -> (FakeReader, [Arc<AtomicUsize>; 2]) {
    let config = several(2);
    let reader = FakeReader::new(config.clone());
    let resets = [0, 1].map(|slot| counted(&reader, slot));
    machine.plug("3-1", &reader, &config);
    (reader, resets)
}

/// A program, its watch, and connections to both slots.
fn both(machine: &FakeMachine) -> (UsbBackend, Box<dyn Watch>, [Box<dyn Transport>; 2]) {
    let program = machine.new_backend();
    let mut watch = super::watch::watch_with_waiter(&program);
    let _ = take_snapshot(&mut *watch);
    let cards = ["3-1:0:0", "3-1:0:1"].map(|id| connect(&program, id));
    (program, watch, cards)
}

pub(super) fn ids(snapshot: &ReaderSnapshot) -> Vec<String> {
    let ids = snapshot.readers.iter().map(|state| state.id.to_string());
    ids.collect()
}

pub(super) fn of<'a>(snapshot: &'a ReaderSnapshot, reader: &str) -> &'a ReaderState {
    let state = snapshot.readers.iter().find(|state| state.id == id(reader));
    state.unwrap_or_else(|| panic!("no {reader} in {snapshot:?}"))
}

fn send(
    card: &mut dyn Transport,
    data: &[u8],
    within: Duration,
) -> Result<Vec<u8>, TransportError> {
    let mut response = ResponseBuffer::new();
    card.transmit(&command(data), &mut response, Call::within(within))?;
    Ok(response.frame().to_vec())
}

#[test]
fn each_slot_is_a_reader_with_a_stable_name_and_id() {
    let machine = FakeMachine::new("slots-named");
    let config = several(3);
    let plugged = || {
        let reader = FakeReader::new(config.clone());
        reader.insert(2, FakeCard::echo());
        machine.plug("3-1", &reader, &config);
        reader
    };
    let reader = plugged();
    let program = machine.new_backend();
    let mut watch = super::watch::watch_with_waiter(&program);
    let snapshot = take_snapshot(&mut *watch);
    let names: Vec<&str> = snapshot
        .readers
        .iter()
        .map(|state| state.name.as_str())
        .collect();
    let called = ["[slot 1]", "[slot 2]", "[slot 3]"].map(|slot| format!("Maker Key c1a5 {slot}"));
    assert_eq!(names, called);
    let holds: Vec<bool> = snapshot.readers.iter().map(holds_card).collect();
    assert_eq!(holds, [false, false, true]);
    let before = ids(&snapshot);
    assert_eq!(snapshot.readers[1].id, id("3-1:0:1"));
    drop(reader);
    machine.unplug("3-1");
    assert!(take_snapshot(&mut *watch).readers.is_empty());
    let _again = plugged();
    assert_eq!(ids(&take_snapshot(&mut *watch)), before);
    assert_eq!(
        ids(&take_snapshot(&mut *machine.new_backend().watch())),
        before
    );
}

#[test]
fn excessive_slot_count_of_a_descriptor_is_capped() {
    let machine = FakeMachine::new("slots-many");
    let config = several(255);
    let reader = FakeReader::new(config.clone());
    machine.plug("3-1", &reader, &config);
    let snapshot = take_snapshot(&mut *machine.new_backend().watch());
    assert_eq!(snapshot.readers.len(), usize::from(budget::SLOTS));
}

#[test]
fn the_claim_lasts_as_long_as_any_slot_is_used() {
    let machine = FakeMachine::new("slots-claim");
    let (reader, _) = pair(&machine);
    let (_program, _watch, [first, second]) = both(&machine);
    assert!(reader.device().claimed());
    drop(first);
    assert!(reader.device().claimed());
    drop(second);
    assert!(!reader.device().claimed());
    assert!(
        reader.powered(0) && reader.powered(1),
        "the cards are left as they are"
    );
}

#[test]
fn a_command_in_any_slot_costs_two_transfers() {
    let machine = FakeMachine::new("slots-two");
    let (reader, resets) = pair(&machine);
    let (_program, _watch, [mut first, mut second]) = both(&machine);
    let epochs = [first.epoch(), second.epoch()];
    let powered = resets.each_ref().map(|count| count.load(Ordering::SeqCst));
    reader.device().forget();
    for round in 0..3_u8 {
        assert_eq!(
            echo(&mut *first, &[round, 1]).unwrap(),
            answered(&[round, 1])
        );
        assert_eq!(
            echo(&mut *second, &[round, 2]).unwrap(),
            answered(&[round, 2])
        );
    }
    let six = TransferCounts {
        bulk_in: 6,
        bulk_out: 6,
        completed: 12,
        ..TransferCounts::default()
    };
    assert_eq!(reader.device().counts(), six);
    assert_eq!([first.epoch(), second.epoch()], epochs);
    assert_eq!(resets.map(|count| count.load(Ordering::SeqCst)), powered);
    assert_eq!([0, 1].map(|slot| reader.card_commands(slot)), [3, 3]);
}

#[test]
fn concurrent_commands_of_two_slots_get_their_own_responses() {
    let machine = FakeMachine::new("slots-both");
    let (reader, _) = pair(&machine);
    let (_program, _watch, cards) = both(&machine);
    let begin = Barrier::new(2);
    thread::scope(|scope| {
        for (slot, mut card) in (0_u8..).zip(cards) {
            let begin = &begin;
            scope.spawn(move || {
                begin.wait();
                for round in 0..200_u8 {
                    let data = [slot, round, 7];
                    assert_eq!(echo(&mut *card, &data).unwrap(), answered(&data));
                }
            });
        }
    });
    assert_eq!([0, 1].map(|slot| reader.card_commands(slot)), [200, 200]);
}

#[test]
fn slot_waiting_for_the_other_slot_times_out_unsent() {
    let machine = FakeMachine::new("slots-wait");
    let (reader, _) = pair(&machine);
    let (_program, mut watch, [mut first, mut second]) = both(&machine);
    reader.hold();
    thread::scope(|scope| {
        let slow = scope.spawn(move || echo(&mut *first, b"slow"));
        while reader.card_commands(0) == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        let error = send(&mut *second, b"other", Duration::from_millis(50)).unwrap_err();
        assert_eq!(
            (error.kind, error.sent),
            (TransportErrorKind::Busy, Sent::No),
            "{error}"
        );
        assert!(error.what.contains("another slot"), "{error}");
        assert_eq!(reader.card_commands(1), 0);
        // It is not polled meanwhile either.
        let start = Instant::now();
        let snapshot = take_snapshot(&mut *watch);
        assert!(start.elapsed() < STEP_TIMEOUT / 2 && snapshot.error.is_none());
        reader.release();
        assert_eq!(slow.join().unwrap().unwrap(), answered(b"slow"));
    });
    let epoch = second.epoch();
    assert_eq!(echo(&mut *second, b"then").unwrap(), answered(b"then"));
    assert_eq!(second.epoch(), epoch, "it was never out of step");
}

#[test]
fn recovery_of_one_slot_leaves_the_card_of_the_other_unchanged() {
    for honours_abort in [true, false] {
        let machine = FakeMachine::new("slots-back");
        let (reader, resets) = pair(&machine);
        reader.honour_abort(honours_abort);
        let (_program, _watch, [mut first, mut second]) = both(&machine);
        let epochs = [first.epoch(), second.epoch()];
        let before = resets.each_ref().map(|count| count.load(Ordering::SeqCst));
        reader.hold();
        let error = send(&mut *second, b"lost", Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind, TransportErrorKind::TimedOut);
        reader.release();
        // The pipe is put right for the slot that had nothing to do with it.
        assert_eq!(echo(&mut *first, b"mine").unwrap(), answered(b"mine"));
        let error = echo(&mut *second, b"again").unwrap_err();
        assert_eq!(
            (error.kind, error.sent),
            (TransportErrorKind::CardReset, Sent::No),
            "{error}"
        );
        assert_eq!(echo(&mut *second, b"fresh").unwrap(), answered(b"fresh"));
        assert_eq!(echo(&mut *first, b"still").unwrap(), answered(b"still"));
        assert_eq!(first.epoch(), epochs[0]);
        assert!(second.epoch() > epochs[1]);
        let after = resets.each_ref().map(|count| count.load(Ordering::SeqCst));
        assert_eq!(after[0], before[0], "the first card kept its state");
        assert!(after[1] > before[1]);
    }
}

#[test]
fn stalled_command_of_one_slot_does_not_affect_the_other_slot() {
    let machine = FakeMachine::new("slots-stall");
    let (reader, resets) = pair(&machine);
    let (_program, _watch, [mut first, mut second]) = both(&machine);
    let before = resets[0].load(Ordering::SeqCst);
    reader.device().inject(Fault::Stall, 1);
    let error = echo(&mut *second, b"stalled").unwrap_err();
    assert!(reader.device().fault_struck(), "{error}");
    assert_eq!(echo(&mut *first, b"mine").unwrap(), answered(b"mine"));
    assert_eq!(resets[0].load(Ordering::SeqCst), before);
}

#[test]
fn fault_in_one_slot_at_any_step_leaves_the_other_slot_usable() {
    let seen: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    for fault in [
        Fault::Stall,
        Fault::WrongSlot,
        Fault::WrongSequence,
        Fault::Short,
        Fault::Duplicate,
        Fault::StaleFirst,
    ] {
        for step in 0..3 {
            let machine = FakeMachine::new("slots-faults");
            let (reader, _) = pair(&machine);
            let noted = Arc::clone(&seen);
            reader.insert(
                1,
                FakeCard::t1(move |frame| {
                    noted.lock().unwrap().push(frame.to_vec());
                    answer_of_echo(frame)
                }),
            );
            let (_program, _watch, [mut first, mut second]) = both(&machine);
            let epoch = first.epoch();
            seen.lock().unwrap().clear();
            reader.device().inject(fault, step);
            let data = [0x11; 70];
            match send(&mut *second, &data, Duration::from_millis(60)) {
                Ok(answer) => assert_eq!(answer, answered(&data)),
                Err(error) => {
                    let reached = !seen.lock().unwrap().is_empty();
                    assert!(
                        error.sent != Sent::No || !reached,
                        "{fault:?} at {step}: {error}"
                    );
                }
            }
            reader.device().release();
            let what = format!("{fault:?} at {step}");
            assert_eq!(
                echo(&mut *first, b"mine").expect(&what),
                answered(b"mine"),
                "{what}"
            );
            assert_eq!(first.epoch(), epoch, "{what}");
            assert!(seen.lock().unwrap().len() <= 1, "{what}: sent twice");
        }
    }
}

#[test]
fn device_reset_is_noticed_by_each_slot_and_each_reader() {
    let config = several(2);
    let common = Arc::default();
    let layout = config.layout;
    let readers = [FakeReader::new(config.clone()), FakeReader::new(config)];
    let interface = |reader: &FakeReader| interface_of(reader, layout);
    let stop = Arc::default();
    let mut devices = Vec::new();
    let mut pipes = Vec::new();
    for reader in &readers {
        let claim = reader.device().claim().unwrap();
        let pipe = pipe::open_pipe(claim, &interface(reader), &common, 0).unwrap();
        for slot in [0, 1] {
            reader.insert(slot, FakeCard::echo());
            let mut device = slot::new_slot(Arc::clone(&pipe), interface(reader), slot, &stop);
            device.power_on(Call::within(STEP_TIMEOUT)).unwrap();
            devices.push(device);
        }
        pipes.push(pipe);
    }
    let epochs: Vec<_> = devices.iter().map(CcidSlot::epoch).collect();
    SlotPipe::new(Arc::clone(&pipes[0])).reset_device();
    for (device, epoch) in devices.iter_mut().zip(epochs) {
        assert!(!device.is_synchronized());
        let error = exchange(device, b"lost", STEP_TIMEOUT).unwrap_err();
        assert_eq!(
            (error.kind, error.sent),
            (TransportErrorKind::CardReset, Sent::No),
            "{error}"
        );
        assert!(device.epoch() > epoch);
        assert_eq!(
            exchange(device, b"fresh", STEP_TIMEOUT).unwrap(),
            answered(b"fresh")
        );
    }
    assert_eq!(common.resets(), 1, "nobody resets it again");
}

#[test]
fn b3_command_past_its_deadline_after_another_slots_recovery_is_not_sent() {
    let machine = FakeMachine::new("slots-late");
    let (reader, _) = pair(&machine);
    let (_program, _watch, [mut first, mut second]) = both(&machine);
    reader.device().set_silent(true);
    assert!(send(&mut *first, b"lost", Duration::from_millis(100)).is_err());
    let before = reader.messages().len();
    let error = send(&mut *second, b"late", Duration::from_millis(100)).unwrap_err();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::TimedOut, Sent::No)
    );
    let blocks = reader.messages().split_off(before);
    assert!(!blocks.contains(&(0x6F, 1)), "{blocks:?}");
    reader.device().set_silent(false);
    assert_eq!(
        send(&mut *second, b"now", STEP_TIMEOUT).unwrap(),
        answered(b"now")
    );
}
