//! A reader whose responses the test chooses.

use std::sync::{Arc, Mutex};

use claviger_apdu::{Call, TransportError};

use super::{STEP_TIMEOUT, class, drive};
use crate::usb::{
    host::{
        fake::{
            DeviceMessage, FakeDevice, FakeReader, Firmware,
            reader::{ReaderConfig, echo},
        },
        transfer::{SetupPacket, TransferError},
    },
    reader::slot::CcidSlot,
};

/// T=1, historical bytes "fake".
pub(super) const ATR: [u8; 11] = [
    0x3B, 0x84, 0x81, 0x31, 0xFE, 0x45, b'f', b'a', b'k', b'e', 0x86,
];

/// A command as the reader got it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Got {
    pub(super) kind: u8,
    pub(super) slot: u8,
    pub(super) sequence: u8,
    pub(super) specific: [u8; 3],
    pub(super) data: Vec<u8>,
}

impl Got {
    pub(super) fn parse(message: &[u8]) -> Self {
        let [kind, _, _, _, _, slot, sequence, a, b, c, data @ ..] = message else {
            panic!("a message of {} bytes", message.len());
        };
        Self {
            kind: *kind,
            slot: *slot,
            sequence: *sequence,
            specific: [*a, *b, *c],
            data: data.to_vec(),
        }
    }

    /// Returns a response to the command.
    pub(super) fn reply(&self, status: u8, error: u8, last: u8, data: &[u8]) -> Vec<u8> {
        let kind = match self.kind {
            0x62 | 0x6F => 0x80,
            _ => 0x81,
        };
        let length = u32::try_from(data.len()).unwrap().to_le_bytes();
        let tail = [self.slot, self.sequence, status, error, last];
        [&[kind], &length[..], &tail, data].concat()
    }

    /// Returns the response of a correct token.
    pub(super) fn good(&self) -> Vec<u8> {
        match self.kind {
            0x62 => self.reply(0, 0, 0, &ATR),
            0x6F => self.reply(0, 0, 0, &echo(&self.data)),
            0x63 => self.reply(1, 0, 0, &[]),
            _ => self.reply(0, 0, 0, &[]),
        }
    }
}

/// The responses of the reader to a command, or `None` for the responses of a correct reader.
type Says = Box<dyn FnMut(&Got) -> Option<Vec<Vec<u8>>> + Send>;

/// The commands to the reader.
#[derive(Clone, Default)]
pub(super) struct Heard {
    commands: Arc<Mutex<Vec<Got>>>,
    requests: Arc<Mutex<Vec<SetupPacket>>>,
}

impl Heard {
    pub(super) fn commands(&self) -> Vec<Got> {
        self.commands.lock().unwrap().clone()
    }

    pub(super) fn kinds(&self) -> Vec<u8> {
        self.commands().iter().map(|got| got.kind).collect()
    }

    /// Returns the number of commands of a type.
    pub(super) fn count(&self, kind: u8) -> usize {
        self.kinds().iter().filter(|one| **one == kind).count()
    }

    pub(super) fn requests(&self) -> Vec<SetupPacket> {
        self.requests.lock().unwrap().clone()
    }

    pub(super) fn forget(&self) {
        self.commands.lock().unwrap().clear();
        self.requests.lock().unwrap().clear();
    }
}

struct Script {
    heard: Heard,
    says: Says,
    takes_abort: bool,
}

impl Firmware for Script {
    fn bulk_out(&mut self, transfer: &[u8]) -> Vec<DeviceMessage> {
        let got = Got::parse(transfer);
        self.heard.commands.lock().unwrap().push(got.clone());
        let answers = (self.says)(&got).unwrap_or_else(|| vec![got.good()]);
        answers.into_iter().map(DeviceMessage::Bulk).collect()
    }

    fn control(&mut self, setup: SetupPacket, _data: &mut [u8]) -> Result<usize, TransferError> {
        self.heard.requests.lock().unwrap().push(setup);
        if self.takes_abort {
            return Ok(0);
        }
        Err(TransferError::Stall)
    }
}

/// A reader that follows a script, and its driver.
pub(super) struct Scripted {
    pub(super) bus: FakeDevice,
    pub(super) heard: Heard,
    pub(super) device: CcidSlot,
}

impl Scripted {
    pub(super) fn new(
        config: ReaderConfig,
        takes_abort: bool,
        says: impl FnMut(&Got) -> Option<Vec<Vec<u8>>> + Send + 'static,
    ) -> Self {
        let heard = Heard::default();
        let script = Script {
            heard: heard.clone(),
            says: Box::new(says),
            takes_abort,
        };
        let layout = config.layout;
        let bus = FakeDevice::new(layout, script);
        let class = class(&FakeReader::new(config));
        let device = drive(bus.claim().unwrap(), class, layout, &Arc::default());
        Self { bus, heard, device }
    }

    /// The same with a powered card, and with an empty record of commands.
    pub(super) fn powered(
        config: ReaderConfig,
        takes_abort: bool,
        says: impl FnMut(&Got) -> Option<Vec<Vec<u8>>> + Send + 'static,
    ) -> Self {
        let mut scripted = Self::new(config, takes_abort, says);
        scripted.power().unwrap();
        scripted.heard.forget();
        scripted.bus.forget();
        scripted
    }

    pub(super) fn power(&mut self) -> Result<(), TransportError> {
        self.device.power_on(Call::within(STEP_TIMEOUT)).map(drop)
    }
}
