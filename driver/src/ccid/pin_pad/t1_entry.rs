//! A PIN entry at a reader of the TPDU level, to a card that speaks T=1: the reader puts the PIN into an I-block, of
//! which it is given the prologue, and adds the error detection code (CCID 1.1, 6.1.11).
//!
//! N(S) and N(R) advance when the card has answered with its I-block, and not before: what the user cancelled, was
//! too slow for, or the reader rejected, never was a block. When nobody can tell, the numbers are given up, and the
//! next command begins with S(RESYNCH). No block with a PIN is sent again.

use claviger_apdu::{Secret, Sent};

use super::{PinEnd, PinEntry, PinOutcome};
use crate::{
    ccid::message::SlotError,
    protocol::{
        budget::{SUPERVISORY_BLOCKS, WAITING_TIME_EXTENSIONS},
        parameters::ErrorDetection,
        t1::block::{Block, Control, Function, PROLOGUE},
    },
};

/// Where T=1 stands with a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// N(S) of our next I-block.
    pub send: bool,
    /// N(S) of the card's next I-block.
    pub receive: bool,
}

/// An entry under way.
#[derive(Debug)]
pub struct T1Entry {
    data: Vec<u8>,
    detection: ErrorDetection,
    numbers: Numbers,
    extensions: u32,
    supervisory: u8,
}

/// What the reader's answer means.
#[derive(Debug)]
pub enum T1Step {
    /// The card asked for something: send `block` by XfrBlock and hand over what comes back.
    Send {
        /// An S-block.
        block: Secret,
        /// bBWI.
        waiting_time_multiplier: u8,
    },
    /// The entry is over.
    Ended {
        /// How.
        outcome: PinOutcome,
        /// The numbers from here on; `None` when both sides may not agree on them, and S(RESYNCH) is due.
        numbers: Option<Numbers>,
    },
}

impl T1Entry {
    /// `entry` to a card with which T=1 stands at `numbers`.
    #[must_use]
    pub fn new(entry: &PinEntry, numbers: Numbers, detection: ErrorDetection) -> Self {
        let (number, more) = (numbers.send, false);
        let block = Block {
            control: Control::I { number, more },
            information: entry.template(),
        };
        let block = block.encode(detection);
        let prologue = block.expose().first_chunk::<PROLOGUE>();
        Self {
            data: entry.with_prologue(prologue.copied().unwrap_or_default()),
            detection,
            numbers,
            extensions: 0,
            supervisory: 0,
        }
    }

    /// abData of the Secure command.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Takes the answer to the Secure command, or to the block [`T1Step::Send`] said to send.
    pub fn receive(&mut self, answer: Result<&[u8], SlotError>) -> T1Step {
        let block = match answer {
            Err(error) => return self.refused(error),
            Ok(bytes) => Block::parse(bytes, self.detection).map_err(|_| bytes.len()),
        };
        match block {
            Ok(block) => self.take(&block),
            Err(bytes) => lost(PinEnd::Malformed(bytes)),
        }
    }

    /// The reader's error. Once the card has asked for time, it has the block, whatever the reader says.
    fn refused(&self, error: SlotError) -> T1Step {
        let outcome = PinOutcome::of_ccid(Err(error));
        if self.extensions > 0 || self.supervisory > 0 {
            return lost(outcome.end);
        }
        let numbers = (outcome.sent == Sent::No).then_some(self.numbers);
        T1Step::Ended { outcome, numbers }
    }

    fn take(&mut self, block: &Block<'_>) -> T1Step {
        match block.control {
            Control::I {
                number,
                more: false,
            } if number == self.numbers.receive => {
                let Numbers { send, receive } = self.numbers;
                let advanced = Numbers {
                    send: !send,
                    receive: !receive,
                };
                // A card that announced another IFSC is brought back to its first one with the numbers.
                T1Step::Ended {
                    outcome: PinOutcome::of_status(block.information),
                    numbers: (self.supervisory == 0).then_some(advanced),
                }
            }
            Control::S {
                function: function @ (Function::Wtx | Function::Ifs),
                response: false,
            } => self.granted(function, block.information),
            _ => lost(PinEnd::Malformed(block.information.len())),
        }
    }

    /// Answers S(WTX) and S(IFS) with what they ask for.
    fn granted(&mut self, function: Function, information: &[u8]) -> T1Step {
        let multiplier = match function {
            Function::Wtx => {
                self.extensions += 1;
                information.first().copied().unwrap_or(1)
            }
            _ => {
                self.supervisory += 1;
                1
            }
        };
        if self.extensions > WAITING_TIME_EXTENSIONS || self.supervisory > SUPERVISORY_BLOCKS {
            return lost(PinEnd::Malformed(information.len()));
        }
        let control = Control::response(function);
        let block = Block {
            control,
            information,
        };
        T1Step::Send {
            block: block.encode(self.detection),
            waiting_time_multiplier: multiplier.max(1),
        }
    }
}

/// The end of an entry of which nobody knows what the card has had.
const fn lost(end: PinEnd) -> T1Step {
    T1Step::Ended {
        outcome: PinOutcome::maybe(end),
        numbers: None,
    }
}
