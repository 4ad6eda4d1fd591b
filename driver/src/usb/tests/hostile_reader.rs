//! A device that plays random bytes, and stalls, falls silent and leaves as it likes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use claviger_apdu::{Call, Sent};

use super::{
    STEP_TIMEOUT, answered, class, command, drive, exchange,
    fixture::{self, FakeMachine, connect, id, reader, token},
    powered,
    script::Got,
    watch::{WatchThread, wait_until},
};
use crate::{
    backend::Backend as _,
    usb::{
        host::{
            fake::{
                DeviceMessage, FakeDevice, FakeReader, Fault, Firmware, TransferCounts,
                reader::{FakeCard, ReaderConfig},
            },
            transfer::{SetupPacket, TransferError},
        },
        reader::slot::CcidSlot,
    },
};

/// The longest time of one call: its deadline, and the time to cancel transfers.
const LIMIT: Duration = Duration::from_secs(10);
/// The time of a call.
const SOON: Duration = Duration::from_millis(5);

/// xorshift64*: the same numbers for the same seed.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(number).unwrap() % end
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap()
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }

    fn one_of<const N: usize>(&mut self, of: [u8; N]) -> u8 {
        of[self.below(N)]
    }
}

/// How often each command for the card arrived, by its data.
type Seen = Arc<Mutex<HashMap<Vec<u8>, usize>>>;

struct Malice {
    dice: Dice,
    packet: usize,
    seen: Seen,
}

impl Malice {
    /// A nearly correct response, which passes the first check.
    fn nearly(&mut self, got: &Got) -> Vec<u8> {
        let dice = &mut self.dice;
        let mut message = got.good();
        match dice.below(12) {
            0..3 => {}
            3 => message = got.reply(dice.byte(), dice.byte(), dice.byte(), &[]),
            4 => message = got.reply(0x80, dice.byte(), 0, &[]),
            5 => message[9] = dice.one_of([0, 1, 2, 3, 0x10]),
            6 => {
                let length = dice.below(2 * self.packet);
                let data = dice.bytes(length);
                message = got.reply(0, 0, dice.one_of([0, 1, 2, 3, 0x10]), &data);
            }
            7 => message.truncate(dice.below(message.len() + 1)),
            8 => {
                let more = dice.below(100);
                message.extend(dice.bytes(more));
            }
            _ => {
                let at = dice.below(message.len());
                message[at] ^= 1 << dice.below(8);
            }
        }
        message
    }

    fn noise(&mut self) -> Vec<u8> {
        let length = self.dice.below(self.packet + 2);
        self.dice.bytes(length)
    }
}

impl Firmware for Malice {
    fn bulk_out(&mut self, transfer: &[u8]) -> Vec<DeviceMessage> {
        let got = Got::parse(transfer);
        if got.kind == 0x6F && !got.data.is_empty() {
            let mut seen = self.seen.lock().unwrap();
            *seen.entry(got.data.clone()).or_default() += 1;
        }
        let count = self.dice.one_of([0, 1, 1, 1, 1, 1, 2, 3, 30]);
        (0..count)
            .map(|_| match self.dice.below(8) {
                0 => DeviceMessage::Bulk(self.noise()),
                1 => DeviceMessage::Notification(self.noise()),
                _ => DeviceMessage::Bulk(self.nearly(&got)),
            })
            .collect()
    }

    fn control(&mut self, _setup: SetupPacket, data: &mut [u8]) -> Result<usize, TransferError> {
        match self.dice.below(3) {
            0 => Err(TransferError::Stall),
            1 => Err(TransferError::Cancelled),
            _ => Ok(data.len()),
        }
    }
}

/// A random fault at a random step, or none.
fn mishap(dice: &mut Dice, bus: &FakeDevice) {
    if dice.below(3) == 0 {
        let fault = Fault::ALL[dice.below(Fault::ALL.len())];
        bus.inject(fault, dice.below(6));
    }
    if dice.below(8) == 0 {
        bus.release();
    }
    if dice.below(6) == 0 {
        let length = dice.below(66);
        let noise = dice.bytes(length);
        bus.send(DeviceMessage::Bulk(noise));
    }
}

fn config(dice: &mut Dice) -> ReaderConfig {
    let mut config = ReaderConfig::extended();
    config.max_message = u32::from(dice.one_of([11, 64, 65, 128, 255]));
    config.layout.packet = usize::from(dice.one_of([8, 64]));
    config.layout.zlp = dice.below(2) == 0;
    config
}

/// How many calls succeeded, and how many failed.
type Tally = (usize, usize);

/// One device from its first command to its last.
fn play(seed: u64) -> (TransferCounts, Tally) {
    let mut dice = Dice::new(seed);
    let config = config(&mut dice);
    let seen = Seen::default();
    let malice = Malice {
        dice: Dice::new(!seed),
        packet: config.layout.packet,
        seen: Arc::clone(&seen),
    };
    let layout = config.layout;
    let bus = FakeDevice::new(layout, malice);
    let class = class(&FakeReader::new(config));
    let mut device = drive(bus.claim().unwrap(), class, layout, &Arc::default());
    let mut tally = (0, 0);
    for round in 0..6_u8 {
        mishap(&mut dice, &bus);
        let started = Instant::now();
        if step(&mut device, &mut dice, &seen, [round, 0x5A, 0xA5]) {
            tally.0 += 1;
        } else {
            tally.1 += 1;
        }
        assert!(started.elapsed() < LIMIT, "{:?}", started.elapsed());
    }
    for (data, times) in seen.lock().unwrap().iter() {
        // A part of a command may equal a part of another. Its round identifies a whole command.
        assert!(
            *times == 1 || data.len() < 8,
            "sent {times} times: {data:02X?}"
        );
    }
    let counts = bus.counts();
    drop(device);
    assert_eq!((bus.queues(), bus.claimed()), (0, false));
    (counts, tally)
}

/// One call, of whatever kind; whether it ended well.
fn step(device: &mut CcidSlot, dice: &mut Dice, seen: &Seen, data: [u8; 3]) -> bool {
    let call = Call::within(SOON);
    match dice.below(5) {
        0 => device.status(call).is_ok(),
        1 => device.power_on(call).is_ok(),
        _ => {
            let data = data.repeat(dice.below(12) + 1);
            let Err(error) = exchange(device, &data, SOON) else {
                return true;
            };
            assert!(!error.what.is_empty());
            let seen = seen.lock().unwrap();
            let reached = seen.contains_key(&command(&data));
            assert!(error.sent != Sent::No || !reached, "{error}");
            false
        }
    }
}

#[test]
fn random_bytes_from_a_device_end_calls_in_time_and_nothing_is_sent_twice() {
    let threads = 8;
    let tallies = Mutex::new((0, 0));
    std::thread::scope(|scope| {
        for first in 0..threads {
            let tallies = &tallies;
            scope.spawn(move || {
                for seed in (first..4000).step_by(8) {
                    let _named = Named(seed);
                    let (counts, (well, ill)) = play(seed);
                    // Six calls, none of which may move more than its budgets.
                    assert!(counts.bulk_out < 6 * 2100, "{counts:?}");
                    assert!(counts.bulk_in < 6 * 6300, "{counts:?}");
                    let mut tallies = tallies.lock().unwrap();
                    *tallies = (tallies.0 + well, tallies.1 + ill);
                }
            });
        }
    });
    let (well, ill) = *tallies.lock().unwrap();
    assert!(well > 500 && ill > 500, "both happen: {well}, {ill}");
    let (_reader, mut device) = powered(ReaderConfig::extended());
    let answer = exchange(&mut device, b"well", STEP_TIMEOUT).unwrap();
    assert_eq!(answer, answered(b"well"), "a healthy device works");
}

/// Says which seed it was.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}", self.0);
        }
    }
}

/// A reader that sends arbitrary data at any time, while a program follows it and uses its card.
fn haunt(seed: u64) {
    let mut dice = Dice::new(seed);
    let machine = FakeMachine::new(&format!("haunt.{seed}"));
    let config = if dice.below(2) == 0 {
        reader()
    } else {
        token()
    };
    let slot = FakeReader::with_card(config.clone(), FakeCard::echo());
    machine.plug("3-1", &slot, &config);
    let program = machine.new_backend();
    let followed = WatchThread::new(&program);
    let _ = followed.snapshot();
    for _ in 0..3 {
        for _ in 0..dice.below(20) {
            let length = dice.below(66);
            let noise = dice.bytes(length);
            slot.device().send(match dice.below(3) {
                0 => DeviceMessage::Bulk(noise),
                1 => DeviceMessage::Notification(noise),
                _ => DeviceMessage::Notification(vec![0x50, dice.byte()]),
            });
        }
        mishap(&mut dice, slot.device());
        let started = Instant::now();
        let call = Call::within(Duration::from_millis(30));
        if let Ok(mut card) = program.connect(&id("3-1"), call) {
            let _ = fixture::echo_within(&mut *card, b"data", Duration::from_millis(30));
        }
        assert!(started.elapsed() < LIMIT, "{:?}", started.elapsed());
    }
    slot.device().release();
    machine.unplug("3-1");
    wait_until(|| slot.device().queues() == 0 && !slot.device().claimed());
    let well = FakeReader::with_card(token(), FakeCard::echo());
    machine.plug("3-1", &well, &token());
    wait_until(|| {
        program
            .connect(&id("3-1"), Call::within(STEP_TIMEOUT))
            .is_ok()
    });
    let mut card = connect(&program, "3-1");
    assert_eq!(
        fixture::echo(&mut *card, b"well").unwrap(),
        answered(b"well")
    );
}

#[test]
fn arbitrary_reader_messages_harm_neither_the_program_nor_the_next_reader() {
    std::thread::scope(|scope| {
        for first in 0..8 {
            scope.spawn(move || {
                for seed in (first..64).step_by(8) {
                    let _named = Named(seed);
                    haunt(seed);
                }
            });
        }
    });
}
