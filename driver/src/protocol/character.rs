//! Exchanges blocks and TPDUs with a reader of the character level. Such a reader sends the given bytes and then
//! waits for a given number of bytes (CCID: wLevelParameter).
//!
//! ```text
//! T=0  > header          < procedure byte     > data         < SW1 SW2
//! T=1  > block           < NAD PCB LEN        >              < information field, EDC
//! PPS  > request         < PPSS PPS0 and one  >              < the bytes that PPS0 announces
//! ```
//!
//! The number is always the number of bytes that must follow in any case, so that the reader never waits for a byte
//! that does not come.

use claviger_apdu::Secret;

use super::{
    budget::{NULL_BYTES, SHORT_READS},
    parameters::ErrorDetection,
    t1::block::{MAX_INFORMATION, PROLOGUE},
};

/// The next action of the caller.
#[derive(Debug)]
pub enum CharacterStep {
    /// Send these bytes, perhaps none, and pass on the response. The card's timeout starts again.
    Exchange {
        /// What to send.
        bytes: Secret,
        /// How many bytes to wait for.
        expected: u16,
    },
    /// The whole response, for [`super::T1::receive`], [`super::T0::receive`] or [`super::pps::PpsRequest::accept`].
    Done(Secret),
    /// The response violates the protocol. Call [`super::T1::transmission_error`] or
    /// [`super::T0::transmission_error`].
    Damaged,
}

/// The exchange of one block or TPDU.
#[derive(Debug)]
pub struct CharacterExchange {
    protocol: Protocol,
    /// The bytes that may be sent next.
    outgoing: Secret,
    received: Secret,
    short_reads: u8,
}

#[derive(Debug)]
enum Protocol {
    T0(Tpdu),
    T1(ErrorDetection),
    Pps,
}

/// A command TPDU and its progress.
#[derive(Debug)]
struct Tpdu {
    instruction: u8,
    /// The data, and how many bytes of it have been sent.
    data: Secret,
    sent: usize,
    /// How many bytes the card may still send.
    due: usize,
    expecting: Expecting,
    nulls: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expecting {
    Procedure,
    /// This many bytes of data.
    Data(usize),
    /// SW2.
    Status,
    Nothing,
}

/// The effect of a byte from the card.
enum Effect {
    None,
    /// The byte belongs to the response.
    Keep,
    /// This many bytes of data may be sent.
    Send(usize),
}

/// The received bytes violate the protocol.
struct ProtocolViolation;

impl CharacterExchange {
    /// Begins the exchange of a T=0 command TPDU: a header of five bytes, and the data if there is any.
    #[must_use]
    pub fn t0(tpdu: &[u8]) -> (Self, CharacterStep) {
        let (header, data) = tpdu.split_at(tpdu.len().min(5));
        let p3 = header.get(4).copied().unwrap_or(0);
        let due = match (data, p3) {
            ([], 0) => 256,
            ([], le) => usize::from(le),
            _ => 0,
        };
        let state = Tpdu {
            instruction: header.get(1).copied().unwrap_or(0),
            data: Secret::copy_from(data),
            sent: 0,
            due,
            expecting: Expecting::Procedure,
            nulls: 0,
        };
        Self::begin(Protocol::T0(state), Secret::copy_from(header))
    }

    /// Begins the exchange of a T=1 block.
    #[must_use]
    pub fn t1(block: Secret, detection: ErrorDetection) -> (Self, CharacterStep) {
        Self::begin(Protocol::T1(detection), block)
    }

    /// Begins the exchange of a PPS request.
    #[must_use]
    pub fn pps(request: Secret) -> (Self, CharacterStep) {
        Self::begin(Protocol::Pps, request)
    }

    fn begin(protocol: Protocol, outgoing: Secret) -> (Self, CharacterStep) {
        let mut characters = Self {
            protocol,
            outgoing,
            received: Secret::default(),
            short_reads: 0,
        };
        let step = characters.next();
        (characters, step)
    }

    /// Processes the bytes that the reader returned.
    pub fn receive(&mut self, bytes: &[u8]) -> CharacterStep {
        if usize::from(self.expected()) < bytes.len() {
            return CharacterStep::Damaged;
        }
        if bytes.len() < usize::from(self.expected()) {
            self.short_reads += 1;
            if self.short_reads > SHORT_READS {
                return CharacterStep::Damaged;
            }
        } else {
            self.short_reads = 0;
        }
        match self.take(bytes) {
            Ok(()) => self.next(),
            Err(ProtocolViolation) => CharacterStep::Damaged,
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), ProtocolViolation> {
        let Protocol::T0(tpdu) = &mut self.protocol else {
            self.received.extend(bytes);
            return Ok(());
        };
        for byte in bytes {
            // The card must not send before it has received the data that it requested.
            if !self.outgoing.is_empty() {
                return Err(ProtocolViolation);
            }
            match tpdu.take(*byte)? {
                Effect::Keep => self.received.extend(&[*byte]),
                Effect::Send(count) => self.outgoing.extend(tpdu.piece(count)),
                Effect::None => {}
            }
        }
        Ok(())
    }

    fn next(&mut self) -> CharacterStep {
        let expected = self.expected();
        if expected == 0 {
            return match self.received.len() {
                0 => CharacterStep::Damaged,
                _ => CharacterStep::Done(std::mem::take(&mut self.received)),
            };
        }
        CharacterStep::Exchange {
            bytes: std::mem::take(&mut self.outgoing),
            expected,
        }
    }

    /// Returns how many more bytes must follow, or 0 if the response is complete.
    fn expected(&self) -> u16 {
        let received = self.received.expose();
        let whole = match &self.protocol {
            Protocol::T0(tpdu) => return u16::try_from(tpdu.expected()).unwrap_or(u16::MAX),
            Protocol::T1(detection) => block_len(received, *detection),
            Protocol::Pps => pps_len(received),
        };
        let count = whole.saturating_sub(received.len());
        u16::try_from(count).unwrap_or(u16::MAX)
    }
}

/// Returns the length of the block that begins with `bytes`, as far as it is known.
fn block_len(bytes: &[u8], detection: ErrorDetection) -> usize {
    match bytes.get(PROLOGUE - 1) {
        None => PROLOGUE,
        // This length is reserved, so the end of the block is unknown, and the block is invalid anyway.
        Some(len) if *len > MAX_INFORMATION => PROLOGUE,
        Some(len) => PROLOGUE + usize::from(*len) + detection.epilogue(),
    }
}

/// Returns the length of the PPS response that begins with `bytes`: PPSS, PPS0, PCK, and the bytes that PPS0
/// announces by b5 to b7 (ISO 7816-3, 9.2).
fn pps_len(bytes: &[u8]) -> usize {
    let announced = bytes.get(1).map_or(0, |pps0| (pps0 & 0x70).count_ones());
    3 + announced as usize
}

impl Tpdu {
    /// Returns how many bytes follow in any case. A procedure byte is followed by data, by the second byte of a
    /// status word, or, if it is NULL, by another procedure byte. It may be the last byte if the card waits for data.
    fn expected(&self) -> usize {
        match self.expecting {
            Expecting::Nothing => 0,
            Expecting::Status => 1,
            Expecting::Data(count) => count + 2,
            Expecting::Procedure if self.sent < self.data.len() => 1,
            Expecting::Procedure => 2,
        }
    }

    fn take(&mut self, byte: u8) -> Result<Effect, ProtocolViolation> {
        match self.expecting {
            Expecting::Nothing => return Err(ProtocolViolation),
            Expecting::Procedure => return self.procedure(byte),
            Expecting::Status => self.expecting = Expecting::Nothing,
            Expecting::Data(count) => {
                self.due = self.due.saturating_sub(1);
                self.expecting = match count {
                    0 | 1 => Expecting::Procedure,
                    more => Expecting::Data(more - 1),
                };
            }
        }
        Ok(Effect::Keep)
    }

    /// Processes a procedure byte (ISO 7816-3, 10.3.3). INS with its lowest bit changed once requested a programming
    /// voltage, and otherwise means the same as INS.
    fn procedure(&mut self, byte: u8) -> Result<Effect, ProtocolViolation> {
        match byte {
            0x60 if self.nulls >= NULL_BYTES => return Err(ProtocolViolation),
            0x60 => {
                self.nulls += 1;
                return Ok(Effect::None);
            }
            0x61..=0x6F | 0x90..=0x9F => {
                self.expecting = Expecting::Status;
                return Ok(Effect::Keep);
            }
            _ => {}
        }
        match byte ^ self.instruction {
            0x00 | 0x01 => self.transfer(usize::MAX),
            0xFF | 0xFE => self.transfer(1),
            _ => Err(ProtocolViolation),
        }
    }

    /// The card requests or sends up to `most` of the remaining bytes: all of them, or one.
    fn transfer(&mut self, most: usize) -> Result<Effect, ProtocolViolation> {
        match (self.data.len() - self.sent, self.due) {
            (0, 0) => Err(ProtocolViolation),
            (0, due) => {
                self.expecting = Expecting::Data(due.min(most));
                Ok(Effect::None)
            }
            (left, _) => Ok(Effect::Send(left.min(most))),
        }
    }

    /// Returns the next `count` bytes of the data.
    fn piece(&mut self, count: usize) -> &[u8] {
        let from = self.sent;
        self.sent = self.data.len().min(from + count);
        self.data.expose().get(from..self.sent).unwrap_or(&[])
    }
}

/// Sends a TPDU or a block to a reader that returns `bytes`, for the fuzz target `character`.
///
/// ```text
/// | form | length of the command's data | then for each step: count | as many bytes, at most the requested number |
/// form: bit 2: PPS; else bit 0: T=1 with a CRC or, with bit 1, an LRC; else T=0 to the card or, with bit 1, from it
/// ```
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let Some(([form, len], mut reader)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    let data: Vec<u8> = (0..*len).collect();
    let command = match form & 7 {
        4.. => vec![0xFF, 0x11, 0x18, 0xF6],
        0 => [&[0, 0xDB, 0x3F, 0xFF, *len], data.as_slice()].concat(),
        2 => vec![0, 0xCB, 0x3F, 0xFF, *len],
        _ => [&[0, 0, *len], data.as_slice(), &[0]].concat(),
    };
    let (mut characters, mut step) = match form & 7 {
        4.. => CharacterExchange::pps(Secret::copy_from(&command)),
        0 | 2 => CharacterExchange::t0(&command),
        1 => CharacterExchange::t1(Secret::copy_from(&command), ErrorDetection::Crc),
        _ => CharacterExchange::t1(Secret::copy_from(&command), ErrorDetection::Lrc),
    };
    let mut sent = Vec::new();
    let max_steps = reader.len();
    let mut requests = 0_usize;
    while let CharacterStep::Exchange { bytes, expected } = &step {
        sent.extend_from_slice(bytes.expose());
        assert!(
            command.starts_with(&sent),
            "each byte is sent once, in order"
        );
        assert!((1..=260).contains(expected));
        requests += 1;
        assert!(
            requests <= max_steps + usize::from(SHORT_READS) + 1,
            "it ends"
        );
        let (count, rest) = reader.split_first().unwrap_or((&0, &[]));
        let most = rest
            .len()
            .min(usize::from(*count))
            .min(usize::from(*expected));
        let (returned, rest) = rest.split_at(most);
        reader = rest;
        step = characters.receive(returned);
    }
    if let CharacterStep::Done(response) = step {
        assert!(!response.is_empty() && response.len() <= 260);
    }
}
