//! A PIN entry at a reader of the TPDU level, for a card with T=1. The driver gives the prologue of an I-block. The
//! reader inserts the PIN and adds the error detection code (CCID 1.1, 6.1.11).
//!
//! N(S) and N(R) advance only when the card has responded with its I-block. If the user cancels or is too slow, or
//! the reader rejects the entry, no block was sent. If it is unclear whether a block was sent, the numbers are
//! discarded, and the next command begins with S(RESYNCH). A block with a PIN is never sent again.

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

/// The sequence numbers of T=1 with a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// N(S) of the host's next I-block.
    pub send: bool,
    /// N(S) of the card's next I-block.
    pub receive: bool,
}

/// A running entry.
#[derive(Debug)]
pub struct T1Entry {
    data: Vec<u8>,
    detection: ErrorDetection,
    numbers: Numbers,
    extensions: u32,
    supervisory: u8,
}

/// The result of a response of the reader.
#[derive(Debug)]
pub enum T1Step {
    /// The card sent a request: send `block` by XfrBlock and pass the response to [`T1Entry::receive`].
    Send {
        /// An S-block.
        block: Secret,
        /// bBWI.
        waiting_time_multiplier: u8,
    },
    /// The entry has ended.
    Ended {
        /// The outcome.
        outcome: PinOutcome,
        /// The sequence numbers from now on. `None` if both sides may disagree, so that S(RESYNCH) is needed.
        numbers: Option<Numbers>,
    },
}

impl T1Entry {
    /// Begins `entry` with a card whose T=1 sequence numbers are `numbers`.
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

    /// Returns abData of the Secure command.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Processes the response to the Secure command, or to the block of [`T1Step::Send`].
    pub fn receive(&mut self, response: Result<&[u8], SlotError>) -> T1Step {
        let block = match response {
            Err(error) => return self.refused(error),
            Ok(bytes) => Block::parse(bytes, self.detection).map_err(|_| bytes.len()),
        };
        match block {
            Ok(block) => self.take(&block),
            Err(bytes) => ended_unknown(PinEnd::Malformed(bytes)),
        }
    }

    /// Processes an error of the reader. After a request for time, the card has the block, whatever the reader
    /// reports.
    fn refused(&self, error: SlotError) -> T1Step {
        let outcome = PinOutcome::of_ccid(Err(error));
        if self.extensions > 0 || self.supervisory > 0 {
            return ended_unknown(outcome.end);
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
                // A card that changed its IFSC needs S(RESYNCH), which resets the IFSC with the numbers.
                T1Step::Ended {
                    outcome: PinOutcome::of_status(block.information),
                    numbers: (self.supervisory == 0).then_some(advanced),
                }
            }
            Control::S {
                function: function @ (Function::Wtx | Function::Ifs),
                response: false,
            } => self.grant(function, block.information),
            _ => ended_unknown(PinEnd::Malformed(block.information.len())),
        }
    }

    /// Grants the request of S(WTX) or S(IFS).
    fn grant(&mut self, function: Function, information: &[u8]) -> T1Step {
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
            return ended_unknown(PinEnd::Malformed(information.len()));
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

/// Ends an entry after which it is unknown whether the card received a PIN.
const fn ended_unknown(end: PinEnd) -> T1Step {
    T1Step::Ended {
        outcome: PinOutcome::maybe(end),
        numbers: None,
    }
}
