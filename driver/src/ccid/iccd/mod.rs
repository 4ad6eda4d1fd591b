//! Tokens that take their commands over the control pipe (USB ICCD 1.0, 6.2): what is asked of it, and what the answers
//! mean. Values only: requests go out, what was read comes in, nothing waits here.
//!
//! | | version A | version B |
//! |---|---|---|
//! | power on | ICC_POWER_ON gives the answer to reset | ICC_POWER_ON, then DATA_BLOCK |
//! | power off | ICC_POWER_OFF | the same, then SLOT_STATUS |
//! | what it is at | GET_ICC_STATUS: one byte | SLOT_STATUS, or the first byte of DATA_BLOCK |
//! | a block | the TPDUs of T=0, in steps: header, data, status word | XFR_BLOCK, then DATA_BLOCK |
//!
//! Nothing tells one answer from another, so one that was not fetched must be done away with before the next command:
//! power off sets the token back.

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

/// Longest answer to reset (ISO 7816-3, 8.2.1), and one byte more, to see one that is too long.
const ATR: usize = 33 + 1;
/// Header of a T=0 command.
const HEADER: usize = 5;
/// Data of a T=0 answer, and one byte more.
const T0_DATA: usize = 256 + 1;
/// What is read of a block of version B: a request is refused by some systems above this.
const BLOCK: usize = 0x1000;

/// How the token is spoken to (bInterfaceProtocol).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 01: T=0, step by step.
    A,
    /// 02: blocks, as over bulk pipes.
    B,
}

/// What to do next.
#[derive(Debug)]
pub enum Step {
    /// Make this request with these data, then tell by [`Exchange::wrote`].
    Write {
        /// The request.
        request: Request,
        /// What is sent with it.
        data: Secret,
    },
    /// Make this request, for so many bytes at most, then hand over what came to [`Exchange::read`].
    Read {
        /// The request.
        request: Request,
        /// Bytes there must be room for.
        room: usize,
    },
    /// Let so much time pass, then tell by [`Exchange::waited`].
    Wait(Duration),
    /// The command is through.
    Done(Outcome),
}

/// A request to the token, but its wIndex (its interface) and its length.
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
    /// What the token holds.
    pub icc: IccStatus,
    /// bChainParameter, which is the bResponseType of the block.
    pub chain: u8,
    /// Why it could not be done.
    pub error: Option<SlotError>,
    /// The block, or the answer to reset.
    pub data: Secret,
}

/// Something no token may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Nonsense(pub &'static str);

/// One command on its way.
#[derive(Debug)]
pub struct Exchange<'a> {
    version: Version,
    command: &'a Command<'a>,
    phase: Phase,
    polls: usize,
    t0: T0,
    /// What of the TPDU is still to be sent.
    unsent: Secret,
    /// What came of the answer to the TPDU.
    answer: Secret,
}

/// What was asked last, or is to be asked next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// To be set back before it is powered.
    SettingBack,
    /// Powered on or off, or asked for its status, next.
    Main,
    /// A: whether it has come to rest after having been set back.
    Resting,
    /// What there is to the command is read.
    Fetching,
    /// A: what the card wants next is asked for.
    Asking(Asked),
    /// A: data are read, or the status word.
    Reading(Part),
    /// A: data are written.
    Writing,
}

/// What has been exchanged of a TPDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
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
            Command::IccPowerOn { .. } => Phase::SettingBack,
            _ => Phase::Main,
        };
        Self {
            version,
            command,
            phase,
            polls: 0,
            t0: T0::new(),
            unsent: Secret::default(),
            answer: Secret::default(),
        }
    }

    /// The first step.
    ///
    /// # Errors
    /// Never of a command alone; [`Nonsense`] is what the other steps may meet.
    pub fn begin(&mut self) -> Result<Step, Nonsense> {
        match (self.version, self.command) {
            // What a token was at before is done away with first.
            (_, Command::IccPowerOn { .. } | Command::IccPowerOff) => {
                Ok(write(ICC_POWER_OFF, 0, Secret::default()))
            }
            (Version::A, Command::GetSlotStatus) => Ok(self.ask(Phase::Main)),
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

    /// What was to be written is written.
    ///
    /// # Errors
    /// [`Nonsense`].
    pub fn wrote(&mut self) -> Result<Step, Nonsense> {
        match (self.version, self.command, self.phase) {
            (Version::A, Command::IccPowerOn { .. }, _) => Ok(self.ask(Phase::Resting)),
            (Version::A, Command::IccPowerOff, _) => Ok(Step::Done(Outcome {
                icc: IccStatus::Inactive,
                chain: 0,
                error: None,
                data: Secret::default(),
            })),
            (Version::A, _, Phase::Writing) => Ok(self.ask(Phase::Asking(Asked::AfterData))),
            (Version::A, ..) => Ok(self.ask(Phase::Asking(Asked::AfterHeader))),
            (Version::B, Command::IccPowerOn { .. }, Phase::SettingBack) => {
                self.phase = Phase::Resting;
                Ok(read(SLOT_STATUS, 3))
            }
            (Version::B, Command::IccPowerOff, _) => Ok(self.fetch(SLOT_STATUS, 3)),
            (Version::B, Command::IccPowerOn { .. }, _) => Ok(self.fetch(DATA_BLOCK, 1 + ATR)),
            (Version::B, ..) => Ok(self.fetch(DATA_BLOCK, BLOCK)),
        }
    }

    /// The time has passed.
    #[must_use]
    pub const fn waited(&self) -> Step {
        match (self.version, self.command, self.phase) {
            (Version::A, ..) => read(GET_ICC_STATUS, 1),
            (_, Command::IccPowerOn { .. }, Phase::Fetching) => read(DATA_BLOCK, 1 + ATR),
            (_, Command::XfrBlock { .. }, _) => read(DATA_BLOCK, BLOCK),
            _ => read(SLOT_STATUS, 3),
        }
    }

    /// Takes what was read.
    ///
    /// # Errors
    /// [`Nonsense`], after which nobody knows what the token is at.
    pub fn read(&mut self, bytes: &[u8]) -> Result<Step, Nonsense> {
        match self.version {
            Version::A => self.read_a(bytes),
            Version::B => self.read_b(bytes),
        }
    }

    fn ask(&mut self, phase: Phase) -> Step {
        self.phase = phase;
        read(GET_ICC_STATUS, 1)
    }

    fn fetch(&mut self, request: u8, room: usize) -> Step {
        self.phase = Phase::Fetching;
        read(request, room)
    }

    /// It is busy, and is to be asked again.
    fn poll(&mut self, delay: Duration) -> Result<Step, Nonsense> {
        self.polls += 1;
        if self.polls > budget::ICCD_POLLS {
            return Err(Nonsense("it is busy without end"));
        }
        Ok(Step::Wait(delay))
    }
}

/// Version B: bResponseType and what it announces.
impl Exchange<'_> {
    fn read_b(&mut self, bytes: &[u8]) -> Result<Step, Nonsense> {
        let is_status = self.phase == Phase::Resting || !self.wants_block();
        match bytes {
            // wDelayTime, in units of 10 ms; 0 is for the host to choose.
            [0x80, low, high, ..] => {
                let tens = u32::from(u16::from_le_bytes([*low, *high]));
                self.poll(budget::ICCD_POLL.saturating_mul(tens.max(1)))
            }
            [0x40, status, error, ..] => self.status(*status, *error),
            // A status that was asked for is one, whatever it is called.
            [0x00, status, error] if is_status => self.status(*status, *error),
            [chain @ (0x00..=0x03 | 0x10), data @ ..] if !is_status => Ok(block(*chain, data)),
            [] => Err(Nonsense("an answer of no bytes")),
            _ => Err(Nonsense("an answer of no known type")),
        }
    }

    fn status(&mut self, status: u8, error: u8) -> Result<Step, Nonsense> {
        let icc = match status & 0x03 {
            0 => IccStatus::Active,
            1 => IccStatus::Inactive,
            _ => IccStatus::Absent,
        };
        if self.phase == Phase::Resting {
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
            0 => Err(Nonsense("a status where a block was expected")),
            _ => Err(Nonsense("a status of no known kind")),
        }
    }

    const fn wants_block(&self) -> bool {
        matches!(
            self.command,
            Command::IccPowerOn { .. } | Command::XfrBlock { .. }
        )
    }
}

/// Version A: one byte of status, and the steps of T=0.
impl Exchange<'_> {
    fn read_a(&mut self, bytes: &[u8]) -> Result<Step, Nonsense> {
        match (self.phase, bytes) {
            (Phase::Fetching, atr) => Ok(done(Secret::copy_from(atr))),
            (Phase::Reading(part), bytes) => self.part(part, bytes),
            (_, [status]) => self.wish(*status),
            _ => Err(Nonsense("a status that is not of one byte")),
        }
    }

    /// What it says it is at: nothing (00), waiting for data or having some (10), having a status word (20), busy (40),
    /// mute (80).
    fn wish(&mut self, status: u8) -> Result<Step, Nonsense> {
        if status & 0x40 != 0 {
            return self.poll(budget::ICCD_POLL);
        }
        match (self.phase, status) {
            (Phase::Resting, _) => {
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
            (Phase::Asking(Asked::AfterHeader), 0x10) if !self.unsent.is_empty() => {
                self.phase = Phase::Writing;
                Ok(write(XFR_BLOCK, 0, std::mem::take(&mut self.unsent)))
            }
            (Phase::Asking(Asked::AfterHeader), 0x10) => {
                self.phase = Phase::Reading(Part::Data);
                Ok(read(DATA_BLOCK, T0_DATA))
            }
            (Phase::Asking(_), 0x20) => {
                self.phase = Phase::Reading(Part::StatusWord);
                Ok(read(DATA_BLOCK, 2))
            }
            _ => Err(Nonsense("a status that does not fit the command")),
        }
    }

    fn part(&mut self, part: Part, bytes: &[u8]) -> Result<Step, Nonsense> {
        let fits = match part {
            Part::Data => bytes.len() < T0_DATA,
            Part::StatusWord => bytes.len() == 2,
        };
        if !fits {
            return Err(Nonsense("an answer of a length that cannot be"));
        }
        self.answer.extend(bytes);
        if part == Part::Data {
            return Ok(self.ask(Phase::Asking(Asked::AfterData)));
        }
        let answer = std::mem::take(&mut self.answer);
        let step = self.t0.receive(answer.expose());
        self.follow(step)
    }

    /// The next TPDU: its header first.
    fn follow(&mut self, step: Protocol) -> Result<Step, Nonsense> {
        match step {
            Protocol::Send { block, .. } => {
                let Some((header, data)) = block.expose().split_at_checked(HEADER) else {
                    return Err(Nonsense("a command without a header"));
                };
                self.unsent = Secret::copy_from(data);
                self.phase = Phase::Main;
                Ok(write(XFR_BLOCK, 0, Secret::copy_from(header)))
            }
            Protocol::Done(answer) => Ok(done(answer)),
            Protocol::Failed(_) => Err(Nonsense("an answer T=0 does not know")),
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
