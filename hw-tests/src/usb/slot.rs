//! The CCID slot of a virtual reader: messages and responses (CCID 1.1, 6).

use std::os::fd::OwnedFd;

use crate::reader::{CardUser, Reader, Stop};

/// bError: the card is absent or does not respond.
const ICC_MUTE: u8 = 0xFE;
const HEADER: usize = 10;

/// A message to the reader.
pub(super) struct Message {
    kind: u8,
    slot: u8,
    sequence: u8,
    data: Vec<u8>,
}

impl Message {
    /// Takes the first message from `bytes`. Returns `None` while it is incomplete.
    pub(super) fn take(bytes: &mut Vec<u8>) -> Option<Self> {
        let [kind, a, b, c, d, slot, sequence, ..] = *bytes.first_chunk::<HEADER>()?;
        let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).ok()?;
        if bytes.len() < HEADER.checked_add(length)? {
            return None;
        }
        let mut message: Vec<u8> = bytes.drain(..HEADER + length).collect();
        Some(Self {
            kind,
            slot,
            sequence,
            data: message.split_off(HEADER),
        })
    }

    /// Returns whether the message carries a command APDU (CCID 1.1, 6.1.4: XfrBlock).
    pub(super) const fn is_to_the_card(&self) -> bool {
        self.kind == 0x6F
    }

    /// The response that requests a time extension.
    pub(super) fn extension(&self) -> Vec<u8> {
        self.answer(0x80, 0x80, 1, &[])
    }

    fn answer(&self, kind: u8, status: u8, error: u8, data: &[u8]) -> Vec<u8> {
        let length = u32::try_from(data.len()).unwrap_or(0).to_le_bytes();
        let mut bytes = vec![kind];
        bytes.extend(length);
        bytes.extend([self.slot, self.sequence, status, error, 0]);
        bytes.extend(data);
        bytes
    }
}

/// The CCID slot: its card, and whether the card has power.
pub(super) struct Slot {
    reader: Reader,
    stop: Stop,
    line: OwnedFd,
    /// The user that sends frames to the card. Each insertion needs a new one.
    user: CardUser,
    is_powered: bool,
}

impl Slot {
    /// Makes the slot of `reader`. The host is at the other end of `line`.
    pub(super) fn new(reader: &Reader, stop: &Stop, line: OwnedFd) -> std::io::Result<Self> {
        Ok(Self {
            user: CardUser::new(reader, stop.clone(), line.try_clone()?),
            reader: reader.clone(),
            stop: stop.clone(),
            line,
            is_powered: false,
        })
    }

    /// Executes a message. Returns the response.
    pub(super) fn execute(&mut self, message: &Message) -> Vec<u8> {
        let is_present = self.reader.is_present();
        self.is_powered &= is_present;
        let kind = match message.kind {
            0x62 | 0x6F => 0x80,
            0x61 | 0x6C | 0x6D => 0x82,
            _ => 0x81,
        };
        let done: Result<Vec<u8>, u8> = match message.kind {
            0x62 if is_present => self.power_on(),
            0x6F if self.is_powered => self.user.transmit(&message.data).map_err(|_| ICC_MUTE),
            0x62 | 0x6F => Err(ICC_MUTE),
            0x63 => {
                self.user.power_off();
                self.is_powered = false;
                Ok(Vec::new())
            }
            0x65 | 0x72 => Ok(Vec::new()),
            0x61 | 0x6C | 0x6D => Ok(vec![0x11, 0x10, 0, 0x4D, 0, 0xFE, 0]),
            // bError is the offset of the rejected byte: the message type.
            _ => Err(0),
        };
        // The card may have been removed meanwhile.
        let icc = match (self.reader.is_present(), self.is_powered) {
            (false, _) => 2,
            (true, false) => 1,
            (true, true) => 0,
        };
        match done {
            Ok(data) => message.answer(kind, icc, 0, &data),
            Err(error) => message.answer(kind, icc | 0x40, error, &[]),
        }
    }

    /// Powers the card on. Resets a card that has power.
    fn power_on(&mut self) -> Result<Vec<u8>, u8> {
        if self.user.attach().is_err() {
            // Another card was inserted.
            let line = self.line.try_clone().map_err(|_| ICC_MUTE)?;
            self.user = CardUser::new(&self.reader, self.stop.clone(), line);
            self.user.attach().map_err(|_| ICC_MUTE)?;
        }
        if self.is_powered {
            self.user.warm_reset();
        } else {
            self.user.power_on();
        }
        self.is_powered = true;
        Ok(self.reader.atr().to_vec())
    }
}
