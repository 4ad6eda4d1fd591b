//! Commands that are longer than a reader's messages.

use std::sync::{Arc, Mutex};

use claviger_apdu::{
    Atr, Call, CommandApdu, Epoch, Expected, Limits, ResponseApdu, ResponseBuffer, StatusWord,
    Transaction, Transmit, Transport, TransportError,
};

use super::{STEP_TIMEOUT, blocks, interface_of, script::Got};
use crate::{
    ccid::quirks::{self, UsbModel},
    usb::{
        claim::pipe::open_pipe,
        host::fake::{
            DeviceMessage, FakeDevice, FakeReader, Firmware,
            reader::{FakeCard, Protocol, ReaderConfig},
        },
        reader::slot::{self, CcidSlot},
    },
    wait::StopFlag,
};

/// A token that announces extended APDUs, and accepts 1,342 bytes.
fn narrow() -> ReaderConfig {
    ReaderConfig {
        max_message: 1352,
        ..ReaderConfig::extended()
    }
}

/// Gnuk, as it was for years.
fn gnuk() -> ReaderConfig {
    ReaderConfig {
        features: 0x0000_0042,
        max_message: 64,
        product: (0x234B, 0x0000, 0x0200),
        ..ReaderConfig::extended()
    }
}

fn certificate() -> Vec<u8> {
    (0..3000_u16).map(|at| at.to_le_bytes()[0]).collect()
}

/// The commands to a card, whole or in a chain. The card responds 9000 to an APDU, and 6700 to anything else.
#[derive(Clone, Debug, Default)]
struct Card {
    frames: Arc<Mutex<Vec<Vec<u8>>>>,
    chain: Arc<Mutex<Vec<u8>>>,
}

impl Card {
    fn take(&self, frame: &[u8]) -> Vec<u8> {
        self.frames.lock().unwrap().push(frame.to_vec());
        let data = match frame {
            [_, _, _, _, 0, high, low, data @ ..] => {
                Some((data, usize::from(u16::from_be_bytes([*high, *low]))))
            }
            [_, _, _, _, length, data @ ..] => Some((data, usize::from(*length))),
            _ => None,
        };
        match data.filter(|(data, length)| data.len() == *length) {
            Some((data, _)) => self.chain.lock().unwrap().extend(data),
            None => return vec![0x67, 0x00],
        }
        vec![0x90, 0x00]
    }

    /// The number of frames to the card.
    fn count(&self) -> usize {
        self.frames.lock().unwrap().len()
    }

    fn object(&self) -> Vec<u8> {
        self.chain.lock().unwrap().clone()
    }

    fn inserted(&self) -> FakeCard {
        let card = self.clone();
        FakeCard::new(
            super::script::ATR.to_vec(),
            Protocol::T1,
            move |frame: &[u8]| card.take(frame),
        )
    }
}

/// Firmware that treats each message as a whole APDU, whatever wLevelParameter is.
struct WholeApduFirmware(Card);

impl Firmware for WholeApduFirmware {
    fn bulk_out(&mut self, transfer: &[u8]) -> Vec<DeviceMessage> {
        let got = Got::parse(transfer);
        let answer = match got.kind {
            0x6F => got.reply(0, 0, 0, &self.0.take(&got.data)),
            _ => got.good(),
        };
        vec![DeviceMessage::Bulk(answer)]
    }
}

/// A claimed slot as a transport.
#[derive(Debug)]
struct SlotTransport(CcidSlot);

impl Transmit for SlotTransport {
    fn transmit(
        &mut self,
        frame: &[u8],
        response: &mut ResponseBuffer,
        call: Call,
    ) -> Result<(), TransportError> {
        self.0.exchange(frame, response, call)
    }
}

impl Transport for SlotTransport {
    fn atr(&self) -> &Atr {
        self.0.atr().unwrap()
    }

    fn limits(&self) -> Limits {
        self.0.limits()
    }

    fn epoch(&self) -> Epoch {
        self.0.epoch()
    }

    fn is_closed(&self) -> bool {
        false
    }

    fn transact(
        &mut self,
        _call: Call,
        body: &mut dyn FnMut(&mut dyn Transmit),
    ) -> Result<(), TransportError> {
        body(self);
        Ok(())
    }
}

/// A transport to the card of `device`, which is as `config` has it.
fn connected(device: &FakeDevice, config: &ReaderConfig) -> SlotTransport {
    let described = FakeReader::new(config.clone());
    let (vendor, product, release) = config.product;
    let mut interface = interface_of(&described, config.layout);
    interface.quirks = quirks::for_model(UsbModel {
        vendor,
        product,
        release,
    });
    let claim = device.claim().unwrap();
    let opened = open_pipe(claim, &interface, &Arc::default(), 0).unwrap();
    let mut slot = slot::new_slot(opened, interface, 0, &Arc::new(StopFlag::new()));
    slot.status(Call::within(STEP_TIMEOUT)).unwrap();
    slot.power_on(Call::within(STEP_TIMEOUT)).unwrap();
    SlotTransport(slot)
}

/// PUT DATA of PIV with `data`.
fn write(transport: &mut SlotTransport, data: &[u8], limits: Limits) -> ResponseApdu {
    let command = CommandApdu {
        data,
        ..CommandApdu::header([0x00, 0xDB, 0x3F, 0xFF])
    };
    Transaction::new(transport, limits)
        .exchange(&command)
        .unwrap()
}

#[test]
fn b33_command_longer_than_the_readers_messages_is_chained_in_whole_apdus() {
    let card = Card::default();
    let device = FakeDevice::new(narrow().layout, WholeApduFirmware(card.clone()));
    let mut transport = connected(&device, &narrow());
    let limits = transport.limits();
    let answer = write(&mut transport, &certificate(), limits);
    assert_eq!(answer.status, StatusWord(0x9000));
    assert_eq!(card.count(), 12, "255 bytes each");
    assert_eq!(card.object(), certificate());
}

#[test]
fn a_command_that_fits_the_readers_messages_is_one_frame_in_one_message() {
    // Header, Lc and Le of an extended APDU take 9 bytes of 1,342.
    for (length, frames) in [(256, 1), (1333, 1), (1334, 6)] {
        let card = Card::default();
        let device = FakeDevice::new(narrow().layout, WholeApduFirmware(card.clone()));
        let mut transport = connected(&device, &narrow());
        let limits = transport.limits();
        device.forget();
        write(&mut transport, &certificate()[..length], limits);
        assert_eq!(card.count(), frames, "{length} bytes");
        assert_eq!(device.counts().bulk_out, frames, "{length} bytes");
        assert_eq!(card.object(), certificate()[..length]);
    }
}

#[test]
fn response_is_requested_at_full_length_whatever_fits_a_message() {
    let card = Card::default();
    let device = FakeDevice::new(narrow().layout, WholeApduFirmware(card.clone()));
    let mut transport = connected(&device, &narrow());
    let limits = transport.limits();
    let read = CommandApdu {
        data: &[0x5C, 3, 0x5F, 0xC1, 0x05],
        expected: Expected::All,
        ..CommandApdu::header([0x00, 0xCB, 0x3F, 0xFF])
    };
    let _ = Transaction::new(&mut transport, limits).exchange(&read);
    let frames = card.frames.lock().unwrap().clone();
    assert!(frames[0].ends_with(&[0x05, 0x00, 0x00]), "{frames:02X?}");
}

#[test]
fn reader_whose_messages_hold_no_short_apdu_gets_parts() {
    let card = Card::default();
    let reader = FakeReader::with_card(gnuk(), card.inserted());
    let mut transport = connected(reader.device(), &gnuk());
    assert_eq!(transport.limits(), Limits::EXTENDED);
    write(&mut transport, &certificate(), Limits::EXTENDED);
    assert_eq!(card.count(), 1, "the reader puts them together");
    assert_eq!(card.object(), certificate());
    let parts = blocks(&reader);
    assert_eq!(parts.len(), 3007_usize.div_ceil(54));
    assert!(parts.iter().all(|(.., data)| data.len() <= 54));
    let levels: Vec<u16> = parts.iter().map(|(_, level, _)| *level).collect();
    assert_eq!((levels[0], levels[1], levels.last()), (1, 3, Some(&2)));
}

#[test]
fn short_apdu_card_behind_small_messages_gets_a_chain_in_parts() {
    let card = Card::default();
    let reader = FakeReader::with_card(gnuk(), card.inserted());
    let mut transport = connected(reader.device(), &gnuk());
    let limits = transport.limits().short();
    assert_eq!(limits, Limits::SHORT);
    write(&mut transport, &certificate(), limits);
    assert_eq!(card.count(), 12, "255 bytes each");
    assert_eq!(card.object(), certificate());
    // 260 bytes are five parts, 200 are four.
    assert_eq!(blocks(&reader).len(), 11 * 5 + 4);
}

#[test]
fn a_newer_gnuk_that_takes_short_apdus_is_sent_nothing_else() {
    for product in [(0x234B, 0x0000, 0x0200), (0x20A0, 0x4211, 0x0200)] {
        let config = ReaderConfig {
            product,
            ..ReaderConfig::short()
        };
        let card = Card::default();
        let reader = FakeReader::with_card(config.clone(), card.inserted());
        let mut transport = connected(reader.device(), &config);
        let limits = transport.limits();
        assert_eq!(limits, Limits::SHORT);
        write(&mut transport, &certificate(), limits);
        assert_eq!((card.count(), blocks(&reader).len()), (12, 12));
        assert_eq!(card.object(), certificate());
    }
}

#[test]
fn long_command_for_a_card_without_chaining_is_split_into_ccid_parts() {
    let card = Card::default();
    let reader = FakeReader::with_card(narrow(), card.inserted());
    let mut transport = connected(reader.device(), &narrow());
    let limits = transport.limits().without_chaining();
    write(&mut transport, &certificate(), limits);
    assert_eq!(card.count(), 1);
    assert_eq!(card.object(), certificate());
    assert_eq!(blocks(&reader).len(), 3);
}

#[test]
fn a_short_message_length_makes_short_frames_shorter() {
    // The firmware of some SCM readers states 263.
    let config = ReaderConfig {
        max_message: 263,
        ..ReaderConfig::short()
    };
    let card = Card::default();
    let reader = FakeReader::with_card(config.clone(), card.inserted());
    let mut transport = connected(reader.device(), &config);
    let limits = transport.limits();
    write(&mut transport, &certificate(), limits);
    assert_eq!(card.object(), certificate());
    let blocks = blocks(&reader);
    assert!(
        blocks
            .iter()
            .all(|(_, level, data)| *level == 0 && data.len() <= 253)
    );
    assert_eq!(card.count(), blocks.len());
}
