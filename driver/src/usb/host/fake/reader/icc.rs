//! A token of the control pipe in memory (USB ICCD 1.0, 6.2): version A step by step with a card of T=0, version B with
//! whole APDUs or parts of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{EndpointLayout, FakeCard, FakeDevice, ReaderConfig, descriptor, t0::T0};
use crate::{
    ccid::iccd::Version,
    usb::host::{
        fake::{DeviceMessage, Firmware},
        transfer::{SetupPacket, TransferError},
    },
};

/// A wrong response of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// No bytes.
    Empty,
    /// The last byte is left out.
    Short,
    /// The response has as many bytes as the request allows.
    Full,
    /// The first byte is another.
    Flipped,
    /// The previous response comes again.
    Stale,
}

impl Lie {
    /// Each of them.
    pub const ALL: [Self; 5] = [
        Self::Empty,
        Self::Short,
        Self::Full,
        Self::Flipped,
        Self::Stale,
    ];
}

/// A token on the bus. A clone is the same token.
#[derive(Clone, Debug)]
pub struct FakeIcc {
    device: FakeDevice,
    model: Arc<Mutex<Model>>,
    version: Version,
}

#[derive(Debug)]
struct Model {
    version: Version,
    /// The most data of a response of version B.
    room: usize,
    card: FakeCard,
    powered: bool,
    t0: T0,
    /// A command of which more is to come.
    incoming: Vec<u8>,
    /// The data to be read, in order. Version A has the status that announces it.
    outgoing: Vec<(u8, Vec<u8>)>,
    /// How often the token is busy before each response, and how often it has been.
    busy: (usize, usize),
    /// The next wrong response, and how many responses come before it.
    lie: Option<(Lie, usize)>,
    last: Vec<u8>,
    commands: usize,
    /// It refuses every request until it is reset.
    deaf: bool,
}

impl FakeIcc {
    /// A token with a card; of version A, one of T=0.
    #[must_use]
    pub fn new(version: Version, card: FakeCard) -> Self {
        let model = Arc::new(Mutex::new(Model {
            version,
            room: 261,
            card,
            powered: false,
            t0: T0::default(),
            incoming: Vec::new(),
            outgoing: Vec::new(),
            busy: (0, 0),
            lie: None,
            last: Vec::new(),
            commands: 0,
            deaf: false,
        }));
        Self {
            device: FakeDevice::new(EndpointLayout::default(), Shared(Arc::clone(&model))),
            model,
            version,
        }
    }

    /// Its device: claim, faults, counts.
    #[must_use]
    pub fn device(&self) -> &FakeDevice {
        &self.device
    }

    /// Device and configuration descriptor: an interface without endpoints.
    #[must_use]
    pub fn descriptors(&self) -> Vec<u8> {
        let config = ReaderConfig {
            features: 0x0000_0840,
            max_message: 271,
            ..ReaderConfig::short()
        };
        let mut bytes = descriptor::descriptors(&config);
        bytes.truncate(18 + 9 + 9 + 54);
        let number = match self.version {
            Version::A => 1,
            Version::B => 2,
        };
        // The configuration's length, the interface's count of endpoints and its protocol.
        for (at, byte) in [(20, 72), (21, 0), (31, 0), (34, number)] {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        bytes
    }

    /// Sets how often the token is busy before each response.
    pub fn be_busy(&self, times: usize) {
        self.model().busy = (times, 0);
    }

    /// Sets whether the token rejects every request until it is reset.
    pub fn be_deaf(&self, deaf: bool) {
        self.model().deaf = deaf;
    }

    /// Makes the response after so many others wrong.
    pub fn lie(&self, lie: Lie, after: usize) {
        self.model().lie = Some((lie, after));
    }

    /// Returns whether the wrong response has been sent.
    #[must_use]
    pub fn lied(&self) -> bool {
        self.model().lie.is_none()
    }

    /// Returns how many whole commands the card has received.
    #[must_use]
    pub fn commands(&self) -> usize {
        self.model().commands
    }

    /// Returns whether the card is powered.
    #[must_use]
    pub fn powered(&self) -> bool {
        self.model().powered
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Shared(Arc<Mutex<Model>>);

impl Firmware for Shared {
    fn bulk_out(&mut self, _transfer: &[u8]) -> Vec<DeviceMessage> {
        Vec::new()
    }

    fn control(&mut self, setup: SetupPacket, data: &mut [u8]) -> Result<usize, TransferError> {
        let mut model = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if model.deaf {
            return Err(TransferError::Stall);
        }
        if setup.request_type == 0x21 {
            model.write(setup, data)?;
            return Ok(data.len());
        }
        let answer = model.read(setup.request)?;
        let answer = model.maybe_lie(answer, data.len());
        for (to, from) in data.iter_mut().zip(&answer) {
            *to = *from;
        }
        Ok(answer.len().min(data.len()))
    }

    fn reset(&mut self) {
        let mut model = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        model.power_off();
        model.deaf = false;
    }
}

impl Model {
    fn power_off(&mut self) {
        (self.card.reset)();
        self.powered = false;
        self.t0 = T0::default();
        self.incoming.clear();
        self.outgoing.clear();
        self.busy.1 = 0;
    }

    fn write(&mut self, setup: SetupPacket, data: &[u8]) -> Result<(), TransferError> {
        match (self.version, setup.request) {
            (_, 0x63) => self.power_off(),
            (Version::B, 0x62) if setup.value == 1 => {
                self.powered = true;
                let atr = self.card.atr.clone();
                self.outgoing = vec![(0x00, atr)];
            }
            (Version::A, 0x65) if self.powered => self.t0_part(data),
            (Version::B, 0x65) if self.powered => self.block(setup.value.to_be_bytes(), data),
            _ => return Err(TransferError::Stall),
        }
        Ok(())
    }

    fn read(&mut self, request: u8) -> Result<Vec<u8>, TransferError> {
        let (times, done) = self.busy;
        let is_answer = matches!(
            (self.version, request),
            (Version::A, 0xA0) | (Version::B, 0x6F)
        );
        if is_answer && done < times {
            self.busy.1 += 1;
            return Ok(match self.version {
                Version::A => vec![0x40],
                Version::B => vec![0x80, 0, 0],
            });
        }
        self.busy.1 = 0;
        match (self.version, request) {
            (Version::A, 0x62) => {
                self.powered = true;
                Ok(self.card.atr.clone())
            }
            (Version::A, 0xA0) => Ok(vec![
                self.outgoing.first().map_or(0x00, |(status, _)| *status),
            ]),
            (Version::A, 0x6F) if !self.outgoing.is_empty() => Ok(self.outgoing.remove(0).1),
            (Version::B, 0x81) => Ok(vec![0x40, u8::from(!self.powered), 0]),
            (Version::B, 0x6F) if !self.outgoing.is_empty() => {
                let (kind, data) = self.outgoing.remove(0);
                Ok([&[kind][..], &data].concat())
            }
            _ => Err(TransferError::Stall),
        }
    }

    /// Version A: a header, or the data the card waits for.
    fn t0_part(&mut self, part: &[u8]) {
        self.incoming.extend_from_slice(part);
        self.outgoing.clear();
        let takes_data =
            matches!(self.incoming.as_slice(), [_, 0xEC | 0xD6, _, _, length, ..] if *length > 0);
        if takes_data && self.incoming.len() == 5 {
            self.outgoing.push((0x10, Vec::new()));
            return;
        }
        let command = std::mem::take(&mut self.incoming);
        if command.get(1) != Some(&0xC0) {
            self.commands = self.commands.saturating_add(1);
        }
        let Some(mut answer) = self.t0.answer(&command, &mut self.card.apdu) else {
            self.outgoing.push((0x80, Vec::new()));
            return;
        };
        let status = answer.split_off(answer.len().saturating_sub(2));
        if !answer.is_empty() {
            self.outgoing.push((0x10, answer));
        }
        self.outgoing.push((0x20, status));
    }

    /// Version B: an APDU or a part of one, or a request for more of the response.
    fn block(&mut self, [level, _]: [u8; 2], data: &[u8]) {
        if level == 0x10 {
            return;
        }
        self.incoming.extend_from_slice(data);
        if matches!(level, 0x01 | 0x03) {
            self.outgoing = vec![(0x10, Vec::new())];
            return;
        }
        let command = std::mem::take(&mut self.incoming);
        self.commands = self.commands.saturating_add(1);
        let response = (self.card.apdu)(&command);
        let parts: Vec<&[u8]> = response.chunks(self.room).collect();
        let last = parts.len().saturating_sub(1);
        let kind = |at: usize| match (at == 0, at == last) {
            (true, true) => 0x00,
            (true, false) => 0x01,
            (false, true) => 0x02,
            (false, false) => 0x03,
        };
        let parts = parts.iter().enumerate();
        self.outgoing = parts.map(|(at, part)| (kind(at), part.to_vec())).collect();
    }

    fn maybe_lie(&mut self, mut answer: Vec<u8>, room: usize) -> Vec<u8> {
        let last = std::mem::replace(&mut self.last, answer.clone());
        let Some((lie, left)) = self.lie else {
            return answer;
        };
        if let Some(left) = left.checked_sub(1) {
            self.lie = Some((lie, left));
            return answer;
        }
        self.lie = None;
        match lie {
            Lie::Empty => answer.clear(),
            Lie::Short => drop(answer.pop()),
            Lie::Full => answer.resize(room, 0xAA),
            Lie::Flipped => {
                if let Some(first) = answer.first_mut() {
                    *first ^= 0x25;
                }
            }
            Lie::Stale => answer = last,
        }
        answer
    }
}
