//! The reader's own program: which message does what.

use std::sync::{Arc, Mutex, PoisonError};

use super::{
    FakeCard, ReaderConfig,
    message::{Collector, Command, Outcome, UNSUPPORTED, reply, response_type},
    slot::Slot,
};
use crate::usb::host::{
    fake::{DeviceMessage, Firmware, fault::time_extension},
    transfer::{SetupPacket, TransferError},
};

const ABORTED: u8 = 0xFF;
const BUSY: u8 = 0xE0;
const BAD_SLOT: u8 = 5;

/// How many messages the log holds.
const MAX_LOG: usize = 4096;

#[derive(Debug)]
pub(super) struct ReaderModel {
    pub(super) slots: Vec<Slot>,
    /// Slots whose card has changed since the last notification.
    pub(super) changed: Vec<u8>,
    pub(super) honours_abort: bool,
    pub(super) holding: bool,
    pub(super) time_extensions: usize,
    pub(super) messages: Vec<(u8, u8)>,
    pub(super) heard: Vec<(u8, [u8; 3], Vec<u8>)>,
    collector: Collector,
}

impl ReaderModel {
    pub(super) fn new(config: &ReaderConfig) -> Self {
        Self {
            slots: (0..config.slots).map(|_| Slot::new(config)).collect(),
            changed: Vec::new(),
            honours_abort: true,
            holding: false,
            time_extensions: 0,
            messages: Vec::new(),
            heard: Vec::new(),
            collector: Collector::default(),
        }
    }

    pub(super) fn slot(&mut self, number: u8) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(number))
    }

    pub(super) fn put(&mut self, number: u8, card: Option<FakeCard>) {
        if let Some(slot) = self.slot(number) {
            slot.put(card);
            self.changed.push(number);
        }
    }

    /// NotifySlotChange: two bits a slot, whether there is a card and whether that changed (CCID 1.1, 6.3.1).
    pub(super) fn notification(&mut self) -> Vec<u8> {
        let changed = std::mem::take(&mut self.changed);
        let bits = |(number, slot): (u8, &Slot)| {
            u8::from(slot.card.is_some()) | (u8::from(changed.contains(&number)) << 1)
        };
        let bits: Vec<u8> = (0..).zip(&self.slots).map(bits).collect();
        let pack = |four: &[u8]| four.iter().rev().fold(0, |byte, bits| (byte << 2) | bits);
        let mut message = vec![0x50];
        message.extend(bits.chunks(4).map(pack));
        message
    }

    fn answer(&mut self, command: &Command) -> Vec<Vec<u8>> {
        if self.messages.len() < MAX_LOG {
            self.messages.push((command.kind, command.sequence));
            let heard = (command.kind, command.specific, command.data.clone());
            self.heard.push(heard);
        }
        let (honours, holding) = (self.honours_abort, self.holding);
        let extensions = self.time_extensions;
        let Some(slot) = self.slot(command.slot) else {
            let to = (command.slot, command.sequence);
            return vec![reply(
                response_type(command.kind),
                to,
                2,
                Outcome::Failed(BAD_SLOT),
                0,
                &[],
            )];
        };
        if command.kind == 0x72 {
            return honours
                .then(|| slot.abort(command))
                .into_iter()
                .flatten()
                .collect();
        }
        if slot.aborting.is_some() {
            return vec![slot.failed(command, ABORTED)];
        }
        if slot.held.is_some() {
            return vec![slot.failed(command, BUSY)];
        }
        let answer = perform(slot, command);
        if !matches!(command.kind, 0x6F | 0x62) {
            return vec![answer];
        }
        if holding {
            slot.held = Some(answer);
            return Vec::new();
        }
        let mut answers = vec![time_extension(&answer, 1); extensions];
        answers.push(answer);
        answers
    }
}

/// Runs a command, if the state of the slot allows it.
fn perform(slot: &mut Slot, command: &Command) -> Vec<u8> {
    match command.kind {
        0x62 => slot.power_on(command),
        0x63 => {
            slot.power_off();
            slot.done(command, 0, &[])
        }
        0x65 => slot.done(command, 0, &[]),
        0x6F => slot.transfer(command),
        0x6C => slot.parameters(command),
        0x6D => slot.reset_parameters(command),
        0x61 => slot.set_parameters(command),
        0x6E if slot.card.is_some() => slot.done(command, 0, &[]),
        _ => slot.failed(command, UNSUPPORTED),
    }
}

/// The model as its device and its test share it.
#[derive(Clone, Debug)]
pub(super) struct SharedModel(pub(super) Arc<Mutex<ReaderModel>>);

impl Firmware for SharedModel {
    fn bulk_out(&mut self, transfer: &[u8]) -> Vec<DeviceMessage> {
        let mut model = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(command) = model.collector.take(transfer) else {
            return Vec::new();
        };
        let answers = model.answer(&command);
        answers.into_iter().map(DeviceMessage::Bulk).collect()
    }

    /// The control half of Abort (CCID 1.1, 5.3.1).
    fn control(&mut self, setup: SetupPacket, _data: &mut [u8]) -> Result<usize, TransferError> {
        let mut model = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let honours = model.honours_abort;
        let [number, sequence] = setup.value.to_le_bytes();
        match (setup.request_type, setup.request, model.slot(number)) {
            (0x21, 1, Some(slot)) if honours => {
                slot.begin_abort(sequence);
                Ok(0)
            }
            _ => Err(TransferError::Stall),
        }
    }

    fn reset(&mut self) {
        let mut model = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        model.collector = Collector::default();
        model.slots.iter_mut().for_each(Slot::restart);
    }
}
