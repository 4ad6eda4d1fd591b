//! Exchanges with tokens that receive commands over the control pipe (USB ICCD 1.0, 6.2). This module only computes
//! the requests and interprets the responses. It does no I/O and does not wait.
//!
//! | | version A | version B |
//! |---|---|---|
//! | power on | ICC_POWER_ON gives the answer to reset | ICC_POWER_ON, then DATA_BLOCK |
//! | power off | ICC_POWER_OFF | the same, then SLOT_STATUS |
//! | status | GET_ICC_STATUS: one byte | SLOT_STATUS, or the first byte of DATA_BLOCK |
//! | a block | the TPDUs of T=0, in steps: header, data, status word | XFR_BLOCK, then DATA_BLOCK |
//!
//! Nothing identifies the command to which a response belongs. So a response that was not read must be discarded
//! before the next command: power off resets the token.

#[cfg(any(test, feature = "fuzzing"))]
mod fuzz;
#[cfg(test)]
mod tests;

use std::time::Duration;

use claviger_apdu::Secret;

#[cfg(any(test, feature = "fuzzing"))]
pub use self::fuzz::fuzz;
use super::{
    budget,
    message::{Command, IccStatus, SlotError},
};
use crate::protocol::{Step as Protocol, T0};

/// bmRequestType of requests of the class to an interface (USB 2.0, 9.3).
const TO_TOKEN: u8 = 0x21;
const FROM_TOKEN: u8 = 0xA1;

/// bRequest.
const ICC_POWER_ON: u8 = 0x62;
const ICC_POWER_OFF: u8 = 0x63;
const XFR_BLOCK: u8 = 0x65;
const DATA_BLOCK: u8 = 0x6F;
const SLOT_STATUS: u8 = 0x81;
const GET_ICC_STATUS: u8 = 0xA0;

/// Length of the longest answer to reset (ISO 7816-3, 8.2.1), plus one byte to detect one that is too long.
const ATR: usize = 33 + 1;
/// Header of a T=0 command.
const HEADER: usize = 5;
/// Most data of a T=0 response, plus one byte to detect too much.
const T0_DATA: usize = 256 + 1;
/// Most bytes read of a block of version B. Some systems reject larger requests.
const BLOCK: usize = 0x1000;

/// The version of the token's protocol (bInterfaceProtocol).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 01: the steps of T=0.
    A,
    /// 02: blocks, as over bulk pipes.
    B,
}

/// The next action of the caller.
#[derive(Debug)]
pub enum Step {
    /// Make this request with this data, then call [`Exchange::wrote`].
    Write {
        /// The request.
        request: Request,
        /// The data to send.
        data: Secret,
    },
    /// Make this request, then pass the bytes to [`Exchange::read`].
    Read {
        /// The request.
        request: Request,
        /// The most bytes to read.
        room: usize,
    },
    /// Wait this long, then call [`Exchange::waited`].
    Wait(Duration),
    /// The command has ended.
    Done(Outcome),
}

/// A request to the token, without wIndex (the interface) and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// bmRequestType.
    pub request_type: u8,
    /// bRequest.
    pub request: u8,
    /// wValue.
    pub value: u16,
}

/// How a command ended.
#[derive(Debug)]
pub struct Outcome {
    /// The state of the card.
    pub icc: IccStatus,
    /// bChainParameter, which is the bResponseType of the block.
    pub chain: u8,
    /// Why the command failed.
    pub error: Option<SlotError>,
    /// The block, or the answer to reset.
    pub data: Secret,
}

/// A response that the protocol does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Nonsense(pub &'static str);

/// The exchange of one command.
#[derive(Debug)]
pub struct Exchange<'a> {
    version: Version,
    command: &'a Command<'a>,
    phase: Phase,
    polls: usize,
    t0: T0,
    /// The part of the TPDU that is not sent yet.
    unsent: Secret,
    /// The part of the response to the TPDU that was received.
    response: Secret,
}

/// The last or the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The token is reset before it is powered up.
    Resetting,
    /// The token is powered up or down, or its status is queried.
    Main,
    /// A: the token is polled after its reset until it is no longer busy.
    AwaitingIdle,
    /// The response to the command is read.
    Fetching,
    /// A: the status is queried, to learn what the card needs next.
    QueryingStatus(Exchanged),
    /// A: data or the status word is read.
    Reading(Part),
    /// A: data is written.
    Writing,
}

/// The part of a TPDU that has been exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exchanged {
    AfterHeader,
    AfterData,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Data,
    StatusWord,
}

impl<'a> Exchange<'a> {
    /// Begins `command`.
    #[must_use]
    pub fn new(version: Version, command: &'a Command<'a>) -> Self {
        let phase = match command {
            Command::IccPowerOn { .. } => Phase::Resetting,
            _ => Phase::Main,
        };
        Self {
            version,
            command,
            phase,
            polls: 0,
            t0: T0::new(),
            unsent: Secret::default(),
            response: Secret::default(),
        }
    }

    /// Returns the first step.
    ///
    /// # Errors
    /// None for a command itself. Only the later steps can return [`Nonsense`].
    pub fn begin(&mut self) -> Result<Step, Nonsense> {
        match (self.version, self.command) {
            // Power off first ends whatever the token was doing.
            (_, Command::IccPowerOn { .. } | Command::IccPowerOff) => {
                Ok(write(ICC_POWER_OFF, 0, Secret::default()))
            }
            (Version::A, Command::GetSlotStatus) => Ok(self.query_status(Phase::Main)),
            (Version::B, Command::GetSlotStatus) => Ok(self.fetch(SLOT_STATUS, 3)),
            (Version::A, Command::XfrBlock { data, .. }) => match self.t0.begin(data) {
                Protocol::Failed(_) => Ok(failed(SlotError::NotSupported, IccStatus::Active)),
                step => self.follow(step),
            },
            (
                Version::B,
                Command::XfrBlock {
                    level_parameter,
                    data,
                    ..
                },
            ) => {
                // bLevelParameter is the upper byte.
                let [level, _] = level_parameter.to_le_bytes();
                let value = u16::from_le_bytes([0, level]);
                Ok(write(XFR_BLOCK, value, Secret::copy_from(data)))
            }
            _ => Ok(failed(SlotError::NotSupported, IccStatus::Active)),
        }
    }

    /// Continues after the data of [`Step::Write`] was written.
    ///
    /// # Errors
    /// [`Nonsense`].
    pub fn wrote(&mut self) -> Result<Step, Nonsense> {
        match (self.version, self.command, self.phase) {
            (Version::A, Command::IccPowerOn { .. }, _) => {
                Ok(self.query_status(Phase::AwaitingIdle))
            }
            (Version::A, Command::IccPowerOff, _) => Ok(Step::Done(Outcome {
                icc: IccStatus::Inactive,
                chain: 0,
                error: None,
                data: Secret::default(),
            })),
            (Version::A, _, Phase::Writing) => {
                Ok(self.query_status(Phase::QueryingStatus(Exchanged::AfterData)))
            }
            (Version::A, ..) => {
                Ok(self.query_status(Phase::QueryingStatus(Exchanged::AfterHeader)))
            }
            (Version::B, Command::IccPowerOn { .. }, Phase::Resetting) => {
                self.phase = Phase::AwaitingIdle;
                Ok(read(SLOT_STATUS, 3))
            }
            (Version::B, Command::IccPowerOff, _) => Ok(self.fetch(SLOT_STATUS, 3)),
            (Version::B, Command::IccPowerOn { .. }, _) => Ok(self.fetch(DATA_BLOCK, 1 + ATR)),
            (Version::B, ..) => Ok(self.fetch(DATA_BLOCK, BLOCK)),
        }
    }

    /// Continues after the time of [`Step::Wait`] has passed.
    #[must_use]
    pub const fn waited(&self) -> Step {
        match (self.version, self.command, self.phase) {
            (Version::A, ..) => read(GET_ICC_STATUS, 1),
            (_, Command::IccPowerOn { .. }, Phase::Fetching) => read(DATA_BLOCK, 1 + ATR),
            (_, Command::XfrBlock { .. }, _) => read(DATA_BLOCK, BLOCK),
            _ => read(SLOT_STATUS, 3),
        }
    }

    /// Processes the bytes that were read.
    ///
    /// # Errors
    /// [`Nonsense`]. The state of the token is then unknown.
    pub fn read(&mut self, bytes: &[u8]) -> Result<Step, Nonsense> {
        match self.version {
            Version::A => self.read_a(bytes),
            Version::B => self.read_b(bytes),
        }
    }

    fn query_status(&mut self, phase: Phase) -> Step {
        self.phase = phase;
        read(GET_ICC_STATUS, 1)
    }

    fn fetch(&mut self, request: u8, room: usize) -> Step {
        self.phase = Phase::Fetching;
        read(request, room)
    }

    /// Schedules another query, because the token is busy.
    fn poll(&mut self, delay: Duration) -> Result<Step, Nonsense> {
        self.polls += 1;
        if self.polls > budget::ICCD_POLLS {
            return Err(Nonsense("the token stays busy"));
        }
        Ok(Step::Wait(delay))
    }
}

/// Version B: bResponseType and the data after it.
impl Exchange<'_> {
    fn read_b(&mut self, bytes: &[u8]) -> Result<Step, Nonsense> {
        let is_status = self.phase == Phase::AwaitingIdle || !self.wants_block();
        match bytes {
            // wDelayTime, in units of 10 ms. 0 lets the host choose.
            [0x80, low, high, ..] => {
                let tens = u32::from(u16::from_le_bytes([*low, *high]));
                self.poll(budget::ICCD_POLL.saturating_mul(tens.max(1)))
            }
            [0x40, status, error, ..] => self.status(*status, *error),
            // The response to a status request is a status, whatever its type says.
            [0x00, status, error] if is_status => self.status(*status, *error),
            [chain @ (0x00..=0x03 | 0x10), data @ ..] if !is_status => Ok(block(*chain, data)),
            [] => Err(Nonsense("the response is empty")),
            _ => Err(Nonsense("the response has an unknown type")),
        }
    }

    fn status(&mut self, status: u8, error: u8) -> Result<Step, Nonsense> {
        let icc = match status & 0x03 {
            0 => IccStatus::Active,
            1 => IccStatus::Inactive,
            _ => IccStatus::Absent,
        };
        if self.phase == Phase::AwaitingIdle {
            self.phase = Phase::Main;
            return Ok(write(ICC_POWER_ON, 1, Secret::default()));
        }
        match status >> 6 {
            0 if !self.wants_block() => Ok(Step::Done(Outcome {
                icc,
                chain: 0,
                error: None,
                data: Secret::default(),
            })),
            1 => Ok(failed(SlotError::from_code(error), icc)),
            2 => self.poll(budget::ICCD_POLL),
            0 => Err(Nonsense("the response is a status instead of a block")),
            _ => Err(Nonsense("the response has a reserved status")),
        }
    }

    const fn wants_block(&self) -> bool {
        matches!(
            self.command,
            Command::IccPowerOn { .. } | Command::XfrBlock { .. }
        )
    }
}

/// Version A: one status byte, and the steps of T=0.
impl Exchange<'_> {
    fn read_a(&mut self, bytes: &[u8]) -> Result<Step, Nonsense> {
        match (self.phase, bytes) {
            (Phase::Fetching, atr) => Ok(done(Secret::copy_from(atr))),
            (Phase::Reading(part), bytes) => self.part(part, bytes),
            (_, [status]) => self.process_status(*status),
            _ => Err(Nonsense("the status does not have one byte")),
        }
    }

    /// Processes a status byte: idle (00), waiting for data or having data (10), having a status word (20), busy
    /// (40), mute (80).
    fn process_status(&mut self, status: u8) -> Result<Step, Nonsense> {
        if status & 0x40 != 0 {
            return self.poll(budget::ICCD_POLL);
        }
        match (self.phase, status) {
            (Phase::AwaitingIdle, _) => {
                self.phase = Phase::Fetching;
                Ok(read(ICC_POWER_ON, ATR))
            }
            (Phase::Main, 0x80) => Ok(Step::Done(Outcome {
                icc: IccStatus::Inactive,
                chain: 0,
                error: None,
                data: Secret::default(),
            })),
            (Phase::Main, _) => Ok(done(Secret::default())),
            (_, 0x80) => Ok(failed(SlotError::IccMute, IccStatus::Active)),
            (Phase::QueryingStatus(Exchanged::AfterHeader), 0x10) if !self.unsent.is_empty() => {
                self.phase = Phase::Writing;
                Ok(write(XFR_BLOCK, 0, std::mem::take(&mut self.unsent)))
            }
            (Phase::QueryingStatus(Exchanged::AfterHeader), 0x10) => {
                self.phase = Phase::Reading(Part::Data);
                Ok(read(DATA_BLOCK, T0_DATA))
            }
            (Phase::QueryingStatus(_), 0x20) => {
                self.phase = Phase::Reading(Part::StatusWord);
                Ok(read(DATA_BLOCK, 2))
            }
            _ => Err(Nonsense("the status does not fit the command")),
        }
    }

    fn part(&mut self, part: Part, bytes: &[u8]) -> Result<Step, Nonsense> {
        let fits = match part {
            Part::Data => bytes.len() < T0_DATA,
            Part::StatusWord => bytes.len() == 2,
        };
        if !fits {
            return Err(Nonsense("the response has an impossible length"));
        }
        self.response.extend(bytes);
        if part == Part::Data {
            return Ok(self.query_status(Phase::QueryingStatus(Exchanged::AfterData)));
        }
        let response = std::mem::take(&mut self.response);
        let step = self.t0.receive(response.expose());
        self.follow(step)
    }

    /// Sends the next TPDU, of which the header goes first.
    fn follow(&mut self, step: Protocol) -> Result<Step, Nonsense> {
        match step {
            Protocol::Send { block, .. } => {
                let Some((header, data)) = block.expose().split_at_checked(HEADER) else {
                    return Err(Nonsense("the command has no header"));
                };
                self.unsent = Secret::copy_from(data);
                self.phase = Phase::Main;
                Ok(write(XFR_BLOCK, 0, Secret::copy_from(header)))
            }
            Protocol::Done(response) => Ok(done(response)),
            Protocol::Failed(_) => Err(Nonsense("the response is not allowed by T=0")),
        }
    }
}

const fn write(request: u8, value: u16, data: Secret) -> Step {
    let request = Request {
        request_type: TO_TOKEN,
        request,
        value,
    };
    Step::Write { request, data }
}

const fn read(request: u8, room: usize) -> Step {
    let request = Request {
        request_type: FROM_TOKEN,
        request,
        value: 0,
    };
    Step::Read { request, room }
}

fn block(chain: u8, data: &[u8]) -> Step {
    Step::Done(Outcome {
        icc: IccStatus::Active,
        chain,
        error: None,
        data: Secret::copy_from(data),
    })
}

const fn done(data: Secret) -> Step {
    Step::Done(Outcome {
        icc: IccStatus::Active,
        chain: 0,
        error: None,
        data,
    })
}

fn failed(error: SlotError, icc: IccStatus) -> Step {
    Step::Done(Outcome {
        icc,
        chain: 0,
        error: Some(error),
        data: Secret::default(),
    })
}
