//! A reader that can run commands in two slots at the same time, or does not respond in either.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use claviger_apdu::{Call, Sent, TransportErrorKind};

use super::{
    SHORT, STEP_TIMEOUT, answered, class, exchange,
    fixture::{connect, echo as bench_echo, take_snapshot},
    interfaces::MultiInterfaceMachine,
    watch::wait_until,
};
use crate::{
    ccid::{budget, descriptor::ClassDescriptor, quirks::Quirks},
    stop::StopHandle as _,
    usb::{
        claim::pipe,
        discovery::reader_info::{CommandChannel, ReaderInterface},
        host::{
            fake::{
                DeviceMessage, EndpointLayout, Event, FakeDevice, FakeReader, Fault, Firmware,
                reader::{ReaderConfig, echo},
            },
            transfer::{SetupPacket, TransferError},
        },
        reader::slot::{self, CcidSlot},
    },
    wait::StopFlag,
};

/// The responses to commands in slot 0 that the reader holds back, and whether it holds them back.
#[derive(Clone, Default)]
struct Back {
    is_on: Arc<AtomicBool>,
    kept: Arc<Mutex<Vec<Vec<u8>>>>,
    /// The reader sends only malformed messages until it is reset.
    is_mad: Arc<AtomicBool>,
}

struct Reader(Back);

impl Firmware for Reader {
    fn bulk_out(&mut self, transfer: &[u8]) -> Vec<DeviceMessage> {
        let [kind, _, _, _, _, slot, sequence, ..] = *transfer else {
            return Vec::new();
        };
        if self.0.is_mad.load(Ordering::SeqCst) {
            return vec![DeviceMessage::Bulk(vec![0x99; 12])];
        }
        let data = transfer.get(10..).unwrap_or_default();
        let (kind, data) = match kind {
            0x62 => (0x80, vec![0x3B, 0x01, slot]),
            0x6F => (0x80, echo(data)),
            _ => (0x81, Vec::new()),
        };
        let mut message = vec![kind];
        message.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        message.extend([slot, sequence, 0, 0, 0]);
        message.extend(data);
        if slot == 0 && kind == 0x80 && self.0.is_on.load(Ordering::SeqCst) {
            self.0.kept.lock().unwrap().push(message);
            return Vec::new();
        }
        vec![DeviceMessage::Bulk(message)]
    }

    fn control(&mut self, _setup: SetupPacket, _data: &mut [u8]) -> Result<usize, TransferError> {
        Ok(0)
    }

    fn reset(&mut self) {
        self.0.is_mad.store(false, Ordering::SeqCst);
    }
}

impl Back {
    fn keep(&self) {
        self.is_on.store(true, Ordering::SeqCst);
    }

    /// Sends what was kept back, and keeps nothing back any more.
    fn take_held(&self, device: &FakeDevice) {
        self.is_on.store(false, Ordering::SeqCst);
        let kept = std::mem::take(&mut *self.kept.lock().unwrap());
        for message in kept {
            device.send(DeviceMessage::Bulk(message));
        }
    }

    fn has(&self) -> bool {
        !self.kept.lock().unwrap().is_empty()
    }
}

/// The class descriptor of the reader: two slots, both of which may be busy.
pub(super) fn two_busy() -> ClassDescriptor {
    let reader = FakeReader::new(ReaderConfig {
        slots: 2,
        ..ReaderConfig::extended()
    });
    assert_eq!(class(&reader).busy_slots(), 1);
    let all = reader.descriptors();
    let at = all.windows(2).position(|pair| pair == [54, 0x21]).unwrap();
    let mut class = all[at..at + 54].to_vec();
    class[53] = 2;
    ClassDescriptor::parse(&class).unwrap()
}

/// The reader, what it keeps back, and its two slots with powered cards.
fn reader(stop: &Arc<StopFlag>) -> (FakeDevice, Back, [CcidSlot; 2]) {
    reader_with(EndpointLayout::default(), stop)
}

/// The same, of a reader that leaves out empty packets.
fn reader_without_zlp() -> (FakeDevice, Back, [CcidSlot; 2]) {
    let layout = EndpointLayout {
        zlp: false,
        ..EndpointLayout::default()
    };
    reader_with(layout, &Arc::default())
}

fn reader_with(layout: EndpointLayout, stop: &Arc<StopFlag>) -> (FakeDevice, Back, [CcidSlot; 2]) {
    let back = Back::default();
    let device = FakeDevice::new(layout, Reader(back.clone()));
    let reader = ReaderInterface {
        name: "fake".to_owned(),
        number: 0,
        channel: CommandChannel::Bulk {
            bulk_in: layout.bulk_in,
            bulk_out: layout.bulk_out,
            packet: layout.packet,
        },
        class: two_busy(),
        quirks: Quirks::default(),
    };
    let pipe = pipe::open_pipe(device.claim().unwrap(), &reader, &Arc::default(), 0).unwrap();
    let slots = [0, 1].map(|slot| {
        let mut slot = slot::new_slot(Arc::clone(&pipe), reader.clone(), slot, stop);
        slot.power_on(Call::within(STEP_TIMEOUT)).unwrap();
        slot
    });
    device.forget();
    (device, back, slots)
}

#[test]
fn a_slow_command_in_one_slot_does_not_delay_the_other() {
    let (device, back, [mut slow, mut quick]) = reader(&Arc::default());
    back.keep();
    thread::scope(|scope| {
        let waits = scope.spawn(|| exchange(&mut slow, b"slow", STEP_TIMEOUT));
        while !back.has() {
            thread::sleep(Duration::from_millis(1));
        }
        for round in 0..100_u8 {
            let answer = exchange(&mut quick, &[round], STEP_TIMEOUT).unwrap();
            assert_eq!(answer, answered(&[round]));
        }
        back.take_held(&device);
        assert_eq!(waits.join().unwrap().unwrap(), answered(b"slow"));
    });
}

#[test]
fn command_of_a_concurrent_reader_costs_two_transfers_response_queued_first() {
    let (device, _, [_, mut slot]) = reader(&Arc::default());
    exchange(&mut slot, b"data", STEP_TIMEOUT).unwrap();
    let counts = device.counts();
    assert_eq!(
        (counts.bulk_in, counts.bulk_out, counts.completed),
        (1, 1, 2)
    );
    let events = device.events();
    assert!(matches!(events[0], Event::SubmitIn(..)), "{events:?}");
}

#[test]
fn no_wake_up_is_lost_between_slots() {
    let (_device, _, slots) = reader(&Arc::default());
    thread::scope(|scope| {
        for (number, mut slot) in (0_u8..).zip(slots) {
            scope.spawn(move || {
                // More often than there are sequence numbers.
                for round in 0..2000_u16 {
                    let [low, high] = round.to_le_bytes();
                    let data = [number, low, high];
                    let answer = exchange(&mut slot, &data, STEP_TIMEOUT).unwrap();
                    assert_eq!(answer, answered(&data));
                }
            });
        }
    });
}

#[test]
fn abandoned_slot_is_recovered_while_the_other_slot_works() {
    let (device, back, [mut first, mut second]) = reader(&Arc::default());
    let epoch = second.epoch();
    back.keep();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let works = scope.spawn(|| {
            let mut rounds = 0_usize;
            while !is_over.load(Ordering::SeqCst) {
                assert_eq!(
                    exchange(&mut second, b"mine", STEP_TIMEOUT).unwrap(),
                    answered(b"mine")
                );
                rounds += 1;
            }
            rounds
        });
        let error = exchange(&mut first, b"lost", Duration::from_millis(50)).unwrap_err();
        assert_eq!(
            (error.kind, error.sent),
            (TransportErrorKind::TimedOut, Sent::Maybe)
        );
        // The late response belongs to no command.
        back.take_held(&device);
        let error = exchange(&mut first, b"next", STEP_TIMEOUT).unwrap_err();
        assert_eq!(
            (error.kind, error.sent),
            (TransportErrorKind::CardReset, Sent::No),
            "{error}"
        );
        assert_eq!(
            exchange(&mut first, b"fresh", STEP_TIMEOUT).unwrap(),
            answered(b"fresh")
        );
        is_over.store(true, Ordering::SeqCst);
        assert!(works.join().unwrap() > 0);
    });
    assert_eq!(second.epoch(), epoch);
}

#[test]
fn a_stop_ends_the_waits_of_all_slots() {
    let stop = Arc::new(StopFlag::new());
    let (_device, back, [mut first, _second]) = reader(&stop);
    back.keep();
    thread::scope(|scope| {
        let waits = scope.spawn(|| exchange(&mut first, b"held", STEP_TIMEOUT));
        while !back.has() {
            thread::sleep(Duration::from_millis(1));
        }
        stop.stop();
        let error = waits.join().unwrap().unwrap_err();
        assert_eq!(error.kind, TransportErrorKind::Cancelled);
    });
}

#[test]
fn b18_silent_concurrent_reader_is_given_up_long_before_the_deadline() {
    let (device, back, slots) = reader(&Arc::default());
    back.keep();
    let (told, is_told) = mpsc::channel();
    let [slow, mut other] = slots;
    thread::spawn(move || {
        let mut slow = slow;
        told.send(exchange(&mut slow, b"slow", budget::MESSAGE))
    });
    wait_until(|| back.has());
    exchange(&mut other, b"alive", STEP_TIMEOUT).unwrap();
    device.set_silent(true);
    let error = is_told.recv_timeout(STEP_TIMEOUT).unwrap().unwrap_err();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::TimedOut, Sent::Maybe),
        "{error}"
    );
}

#[test]
fn b18_concurrent_reader_that_responds_to_requests_may_stay_silent() {
    let (device, back, [mut slow, _]) = reader(&Arc::default());
    back.keep();
    thread::scope(|scope| {
        let waits = scope.spawn(|| exchange(&mut slow, b"slow", STEP_TIMEOUT * 2));
        wait_until(|| device.counts().control > budget::SILENCES);
        back.take_held(&device);
        assert_eq!(waits.join().unwrap().unwrap(), answered(b"slow"));
    });
}

#[test]
fn b17_omitted_empty_packet_of_a_concurrent_reader_is_detected_and_remembered() {
    let (device, _, [mut first, mut second]) = reader_without_zlp();
    // The message fills its packet; the first is understood at its deadline.
    let data = [0x5A; 52];
    assert_eq!(exchange(&mut first, &data, SHORT).unwrap(), answered(&data));
    device.forget();
    for len in [52, 116, 20, 500, 1012, 52] {
        let data = vec![0xA5; len];
        for slot in [&mut first, &mut second] {
            let answer = exchange(slot, &data, STEP_TIMEOUT).unwrap();
            assert_eq!(answer, answered(&data), "{len}");
        }
    }
    let events = device.events();
    let is_cancel = |event: &Event| matches!(event, Event::Cancel(_));
    assert!(!events.iter().any(is_cancel), "{events:?}");
}

#[test]
fn b17_omitted_empty_packet_is_detected_in_a_silence_of_a_concurrent_reader() {
    let (_device, _, [mut slot, _other]) = reader_without_zlp();
    let (told, is_told) = mpsc::channel();
    let data = [0x5A; 52];
    thread::spawn(move || told.send(exchange(&mut slot, &data, budget::MESSAGE)));
    let answer = is_told.recv_timeout(STEP_TIMEOUT).unwrap();
    assert_eq!(answer.unwrap(), answered(&data));
}

#[test]
fn b17_two_responses_in_one_transfer_reach_their_slots() {
    let (device, back, [mut slow, mut quick]) = reader_without_zlp();
    back.keep();
    let data = [0x5A; 52];
    thread::scope(|scope| {
        let waits = scope.spawn(|| exchange(&mut slow, &data, STEP_TIMEOUT));
        wait_until(|| back.has());
        // Its transfer continues with the next response.
        back.take_held(&device);
        let answer = exchange(&mut quick, b"short", STEP_TIMEOUT).unwrap();
        assert_eq!(answer, answered(b"short"));
        assert_eq!(waits.join().unwrap().unwrap(), answered(&data));
    });
    let is_cancel = |event: &Event| matches!(event, Event::Cancel(_));
    assert!(!device.events().iter().any(is_cancel));
}

#[test]
fn b17_response_with_a_pause_in_its_middle_reaches_its_slot_whole() {
    let (device, back, [mut slow, _]) = reader_without_zlp();
    back.keep();
    let data = [0x5A; 100];
    thread::scope(|scope| {
        let waits = scope.spawn(|| exchange(&mut slow, &data, STEP_TIMEOUT * 2));
        wait_until(|| back.has());
        let message = back.kept.lock().unwrap().remove(0);
        let (begin, end) = message.split_at(64);
        device.send(DeviceMessage::Bulk(begin.to_vec()));
        let cancelled = Event::Cancel(EndpointLayout::default().bulk_in);
        wait_until(|| device.events().contains(&cancelled));
        device.send(DeviceMessage::Bulk(end.to_vec()));
        assert_eq!(waits.join().unwrap().unwrap(), answered(&data));
    });
}

/// One fault at one step, with commands in both slots; whether it struck.
fn survives(fault: Fault, step: usize) -> bool {
    let what = format!("{fault:?} at step {step}");
    let (device, _, mut slots) = reader(&Arc::default());
    device.inject(fault, step);
    thread::scope(|scope| {
        for (number, slot) in (0_u8..).zip(&mut slots) {
            let what = &what;
            scope.spawn(move || {
                let data = [number; 70];
                if let Ok(answer) = exchange(slot, &data, Duration::from_millis(60)) {
                    assert_eq!(answer, answered(&data), "{what}");
                }
            });
        }
    });
    let struck = device.fault_struck();
    device.release();
    if fault == Fault::Disconnected && struck {
        let error = exchange(&mut slots[0], b"gone", STEP_TIMEOUT).unwrap_err();
        assert_eq!(error.kind, TransportErrorKind::NoReader, "{what}: {error}");
        return true;
    }
    for (number, slot) in (0x20_u8..).zip(&mut slots) {
        let healthy = (0..6_u8).any(|round| {
            let data = [number, round];
            match exchange(slot, &data, Duration::from_secs(4)) {
                Ok(answer) => answer == answered(&data),
                Err(error) => {
                    if error.kind == TransportErrorKind::NoCard {
                        let _ = slot.power_on(Call::within(STEP_TIMEOUT));
                    }
                    false
                }
            }
        });
        assert!(healthy, "{what}: slot {number:02X} does not come back");
    }
    struck
}

#[test]
fn any_fault_at_any_step_ends_and_the_next_commands_work_in_both_slots() {
    let struck: usize = thread::scope(|scope| {
        let threads = Fault::ALL
            .map(|fault| scope.spawn(move || (0..8).filter(|step| survives(fault, *step)).count()));
        threads.into_iter().map(|one| one.join().unwrap()).sum()
    });
    assert!(struck > Fault::ALL.len() * 3, "{struck} faults struck");
}

#[test]
fn unused_slot_counts_as_changed_after_another_slot_had_the_device_reset() {
    let config = ReaderConfig {
        slots: 2,
        ..super::fixture::reader()
    };
    let back = Back::default();
    let device = FakeDevice::new(config.layout, Reader(back.clone()));
    let devices = MultiInterfaceMachine::new("slots-mad");
    devices.plug(
        1,
        &FakeReader::new(config).descriptors(),
        vec![device.clone()],
    );
    let program = devices.new_backend();
    let mut watch = super::watch::watch_with_waiter(&program);
    let before = take_snapshot(&mut *watch);
    let [idle, mut used] = ["3-1:0:0", "3-1:0:1"].map(|id| connect(&program, id));
    let epochs = [idle.epoch(), used.epoch()];
    drop(idle);
    assert_eq!(
        connect(&program, "3-1:0:0").epoch(),
        epochs[0],
        "nothing has happened yet"
    );
    back.is_mad.store(true, Ordering::SeqCst);
    let error = bench_echo(&mut *used, b"lost").unwrap_err();
    assert_eq!(error.kind, TransportErrorKind::Protocol, "{error}");
    let error = bench_echo(&mut *used, b"next").unwrap_err();
    assert_eq!(error.kind, TransportErrorKind::CardReset, "{error}");
    assert_eq!(
        bench_echo(&mut *used, b"fresh").unwrap(),
        answered(b"fresh")
    );
    assert!(used.epoch() > epochs[1]);
    // The reader reports both cards as active, as before.
    let mut idle = connect(&program, "3-1:0:0");
    assert!(idle.epoch() > epochs[0]);
    assert_eq!(bench_echo(&mut *idle, b"idle").unwrap(), answered(b"idle"));
    let after = take_snapshot(&mut *watch);
    assert_eq!(before.readers.len(), after.readers.len());
}
