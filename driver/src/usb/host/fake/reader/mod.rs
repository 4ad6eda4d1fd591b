//! A fake CCID reader in memory, with cards that are closures.
//!
//! It does only what CCID 1.1 requires of a reader at its exchange level. Optional behaviour (a response to Abort, an interrupt
//! endpoint, correct times) can be switched.

mod card;
mod card_interface;
mod descriptor;
mod firmware;
pub mod icc;
mod message;
mod slot;
mod t0;
mod t1;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use self::{
    card::{Disturbance, FakeCard, Pps, Protocol, echo},
    message::MAX_MESSAGE,
};
use self::{
    firmware::{ReaderModel, SharedModel},
    slot::Slot,
};
use super::{DeviceMessage, EndpointLayout, FakeDevice, fault::time_extension};

/// The exchange level of the reader (CCID 1.1, table 5.1-1, dwFeatures).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Characters, as many as the host requests.
    Character,
    /// Blocks of T=1, or headers and data of T=0.
    Tpdu,
    /// APDUs of up to 261 bytes.
    ShortApdu,
    /// APDUs of any length.
    ExtendedApdu,
}

/// The configuration of the reader.
#[derive(Clone, Debug)]
pub struct ReaderConfig {
    /// Its exchange level.
    pub level: Level,
    /// The rest of dwFeatures, without the exchange level.
    pub features: u32,
    /// dwMaxCCIDMessageLength.
    pub max_message: u32,
    /// dwMaxIFSD.
    pub max_ifsd: u32,
    /// dwProtocols: 1 for T=0, 2 for T=1.
    pub protocols: u32,
    /// bVoltageSupport: 1 for 5 V, 2 for 3 V, 4 for 1.8 V.
    pub voltages: u8,
    /// The number of slots.
    pub slots: u8,
    /// bInterfaceClass: 0B, or FF.
    pub class: u8,
    /// Endpoints, packets, and whether a full one is followed by an empty one.
    pub layout: EndpointLayout,
    /// idVendor, idProduct, bcdDevice.
    pub product: (u16, u16, u16),
}

impl ReaderConfig {
    /// A token that takes whole APDUs and sets everything itself.
    #[must_use]
    pub fn extended() -> Self {
        Self {
            level: Level::ExtendedApdu,
            features: 0x0000_00FE,
            max_message: 3072,
            max_ifsd: 3062,
            protocols: 3,
            voltages: 7,
            slots: 1,
            class: 0x0B,
            layout: EndpointLayout::default(),
            product: (0x1209, 0xC1A5, 0x0100),
        }
    }

    /// A reader of short APDUs.
    #[must_use]
    pub fn short() -> Self {
        Self {
            level: Level::ShortApdu,
            features: 0x0000_0842,
            max_message: 271,
            max_ifsd: 254,
            ..Self::extended()
        }
    }

    /// A reader that leaves parameters, rate and protocol to the host.
    #[must_use]
    pub fn tpdu() -> Self {
        Self {
            level: Level::Tpdu,
            features: 0x0000_0030,
            max_message: 271,
            max_ifsd: 254,
            ..Self::extended()
        }
    }

    /// The same for characters.
    #[must_use]
    pub fn character() -> Self {
        Self {
            level: Level::Character,
            ..Self::tpdu()
        }
    }

    /// The reader of QEMU (usb-ccid): TPDUs of T=0, and everything else done by itself.
    #[must_use]
    pub fn qemu() -> Self {
        Self {
            level: Level::Tpdu,
            features: 0x0000_04FE,
            max_message: 65_554,
            max_ifsd: 254,
            protocols: 1,
            product: (0x08E6, 0x4433, 0x0000),
            ..Self::extended()
        }
    }
}

/// A reader on the bus. A clone is the same reader.
#[derive(Clone, Debug)]
pub struct FakeReader {
    device: FakeDevice,
    model: SharedModel,
    config: Arc<ReaderConfig>,
}

impl FakeReader {
    /// A reader with empty slots.
    #[must_use]
    pub fn new(config: ReaderConfig) -> Self {
        let model = SharedModel(Arc::new(Mutex::new(ReaderModel::new(&config))));
        Self {
            device: FakeDevice::new(config.layout, model.clone()),
            model,
            config: Arc::new(config),
        }
    }

    /// Makes the reader with `card` in its first slot, inserted before the first query.
    #[must_use]
    pub fn with_card(config: ReaderConfig, card: FakeCard) -> Self {
        let reader = Self::new(config);
        reader.insert(0, card);
        reader.model().changed.clear();
        reader
    }

    /// Its device: claim, faults, counts.
    #[must_use]
    pub fn device(&self) -> &FakeDevice {
        &self.device
    }

    /// Device and configuration descriptor, as sysfs has them in `descriptors`.
    #[must_use]
    pub fn descriptors(&self) -> Vec<u8> {
        descriptor::descriptors(&self.config)
    }

    /// Inserts a card into a slot, with a notification.
    pub fn insert(&self, slot: u8, card: FakeCard) {
        self.change(slot, Some(card));
    }

    /// Removes the card of a slot, with a notification.
    pub fn remove(&self, slot: u8) {
        self.change(slot, None);
    }

    /// Exchanges the card of a slot, with one notification of one change.
    pub fn swap(&self, slot: u8, card: FakeCard) {
        self.model().put(slot, None);
        self.change(slot, Some(card));
    }

    /// Inserts a card into a slot, without a notification.
    pub fn put_unseen(&self, slot: u8, card: FakeCard) {
        let mut model = self.model();
        model.put(slot, Some(card));
        model.changed.clear();
    }

    /// Powers all cards down without a notification, like a hub that is switched off.
    pub fn lose_power(&self) {
        self.model().slots.iter_mut().for_each(Slot::restart);
    }

    /// Sets whether Abort is supported. Otherwise its control part stalls and its bulk part gets no response.
    pub fn honour_abort(&self, honour: bool) {
        self.model().honours_abort = honour;
    }

    /// Holds the card's responses back, until [`FakeReader::release`] or an abort.
    pub fn hold(&self) {
        self.model().holding = true;
    }

    /// Sends what was kept back, and keeps nothing back any more.
    pub fn release(&self) {
        let answers = {
            let mut model = self.model();
            model.holding = false;
            model
                .slots
                .iter_mut()
                .filter_map(Slot::take_held)
                .collect::<Vec<_>>()
        };
        for answer in answers {
            self.device.send(DeviceMessage::Bulk(answer));
        }
    }

    /// Sets how many time extensions come before each response of the card.
    pub fn extend_time(&self, count: usize) {
        self.model().time_extensions = count;
    }

    /// Requests `multiplier` times the time for the responses that are held back.
    pub fn ask_for_time(&self, multiplier: u8) {
        let model = self.model();
        let held = model.slots.iter().filter_map(|slot| slot.held.as_ref());
        let requests: Vec<_> = held
            .map(|answer| time_extension(answer, multiplier))
            .collect();
        drop(model);
        for request in requests {
            self.device.send(DeviceMessage::Bulk(request));
        }
    }

    /// From now on SetParameters fails with this bError, or works again.
    pub fn refuse_parameters(&self, error: Option<u8>) {
        let mut model = self.model();
        model.slots.iter_mut().for_each(|slot| slot.refuses = error);
    }

    /// Makes the next `count` resets of a card with power fail.
    pub fn fail_warm_resets(&self, count: usize) {
        let mut model = self.model();
        model
            .slots
            .iter_mut()
            .for_each(|slot| slot.mute_when_warm = count);
    }

    /// Reports a hardware error of a slot (CCID 1.1, 6.3.2).
    pub fn hardware_error(&self, slot: u8, sequence: u8, code: u8) {
        let message = vec![0x51, slot, sequence, code];
        self.device.send(DeviceMessage::Notification(message));
    }

    /// Returns how many blocks or APDUs the card of the slot has received.
    #[must_use]
    pub fn card_commands(&self, slot: u8) -> usize {
        self.model().slot(slot).map_or(0, |slot| slot.commands)
    }

    /// Returns whether the card of the slot is powered.
    #[must_use]
    pub fn powered(&self, slot: u8) -> bool {
        self.model().slot(slot).is_some_and(|slot| slot.powered)
    }

    /// The messages it was sent, in order: the type, the three bytes that are the message's own, the data.
    #[must_use]
    pub fn heard(&self) -> Vec<(u8, [u8; 3], Vec<u8>)> {
        self.model().heard.clone()
    }

    /// The types of the messages it was sent, in order, each with its sequence number.
    #[must_use]
    pub fn messages(&self) -> Vec<(u8, u8)> {
        self.model().messages.clone()
    }

    fn change(&self, slot: u8, card: Option<FakeCard>) {
        let notification = {
            let mut model = self.model();
            model.put(slot, card);
            model.notification()
        };
        self.device.send(DeviceMessage::Notification(notification));
    }

    fn model(&self) -> MutexGuard<'_, ReaderModel> {
        self.model.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
