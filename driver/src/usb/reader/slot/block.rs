//! Blocks to a card: one XfrBlock each at the TPDU level, several at the character level (CCID 1.1, 6.1.4).

use std::time::{Duration, Instant};

use claviger_apdu::{Call, Secret, Sent, TransportError, TransportErrorKind};

use super::{
    Device,
    protocol_state::{Kind, Line},
};
use crate::{
    ccid::{
        descriptor::ExchangeLevel,
        message::{Command, IccStatus, SlotError},
    },
    protocol::{Failure, Reason, Step, character::Turn},
    usb::pipe::bulk::{BulkError, Limit, Reply, Why},
};

/// One block on its way.
pub(super) struct Outgoing {
    pub(super) block: Secret,
    pub(super) kind: Kind,
    /// bBWI: 0 for the usual waiting time.
    pub(super) bwi: u8,
    /// How long the answer may take.
    pub(super) time: Duration,
}

/// What came of a block.
pub(super) enum Carried {
    Answer(Secret),
    /// The card sent something that is no answer.
    Damaged,
    /// The card sent nothing.
    Silent,
    /// The reader could not do it.
    Refused(SlotError, Reply),
}

impl Device {
    /// Talks to the card until it has answered `frame`.
    pub(super) fn converse(
        &mut self,
        line: &mut Line,
        frame: &[u8],
        call: Call,
    ) -> Result<Secret, TransportError> {
        // Whether the card had seen the command before the present block, and has once it has got it.
        let mut before = Sent::No;
        let mut step = line.begin(frame);
        loop {
            let outgoing = match step {
                Step::Done(answer) => return Ok(answer),
                Step::Failed(failure) => return Err(self.given_up(failure)),
                Step::Send {
                    block,
                    waiting_time_multiplier,
                } => self.outgoing(line, block, waiting_time_multiplier),
            };
            let after = line.sent();
            let carried = self.carry(outgoing, call).map_err(|error| {
                let sent = of_both(before, after, error.sent);
                if sent != Sent::No {
                    self.bulk.fall_out_of_step();
                }
                self.transfer_error("the command", BulkError { sent, ..error })
            })?;
            step = match carried {
                Carried::Answer(answer) => line.receive(answer.expose()),
                Carried::Damaged => line.damaged(),
                Carried::Silent => line.silent(),
                Carried::Refused(error, reply) => {
                    let sent = of_both(before, after, Sent::Maybe);
                    return Err(self.refused(error, &reply, before == Sent::No, sent));
                }
            };
            before = after;
        }
    }

    fn outgoing(&self, line: &Line, block: Secret, multiplier: u8) -> Outgoing {
        Outgoing {
            block,
            kind: line.kind(),
            bwi: if multiplier > 1 { multiplier } else { 0 },
            time: self.reader.patience(line.time().times(multiplier)),
        }
    }

    /// The protocol ended without an answer.
    fn given_up(&mut self, failure: Failure) -> TransportError {
        if failure.needs_reset() {
            self.bulk.fall_out_of_step();
        }
        let doubt = match (failure.reason, failure.sent) {
            (Reason::Unsuitable(_), _) | (_, Sent::No) => "it was not sent",
            (_, Sent::Yes) => "the card has it, and may have carried it out",
            (_, Sent::Maybe) => "whether the card has carried it out nobody knows",
        };
        let what = format!("the command failed: {failure}; {doubt}");
        self.error(TransportErrorKind::Protocol, failure.sent, &what)
    }

    /// Sends one block and waits for the answer to it.
    ///
    /// # Errors
    /// [`BulkError`] about this block.
    pub(super) fn carry(&mut self, outgoing: Outgoing, call: Call) -> Result<Carried, BulkError> {
        if self.reader.level() == ExchangeLevel::Character {
            return self.carry_characters(outgoing, call);
        }
        self.transfer(outgoing.block.expose(), 0, &outgoing, call)
    }

    fn carry_characters(
        &mut self,
        mut outgoing: Outgoing,
        call: Call,
    ) -> Result<Carried, BulkError> {
        let block = std::mem::take(&mut outgoing.block);
        let (mut characters, mut turn) = outgoing.kind.characters(block);
        let mut begun = false;
        loop {
            let (bytes, expected) = match turn {
                Turn::Done(answer) => return Ok(Carried::Answer(answer)),
                Turn::Damaged => return Ok(Carried::Damaged),
                Turn::Exchange { bytes, expected } => (bytes, expected),
            };
            // What does not fit in a message comes in several.
            let room = u16::try_from(self.reader.longest()).unwrap_or(u16::MAX);
            let carried = self
                .transfer(bytes.expose(), expected.min(room), &outgoing, call)
                .map_err(|error| BulkError {
                    sent: if begun { Sent::Maybe } else { error.sent },
                    ..error
                })?;
            begun = true;
            turn = match carried {
                Carried::Answer(answer) => characters.receive(answer.expose()),
                other => return Ok(other),
            };
        }
    }

    /// One XfrBlock.
    fn transfer(
        &mut self,
        data: &[u8],
        level_parameter: u16,
        outgoing: &Outgoing,
        call: Call,
    ) -> Result<Carried, BulkError> {
        self.goes_on(data, call)?;
        let block = Command::XfrBlock {
            bwi: outgoing.bwi,
            level_parameter,
            data,
        };
        let reply = self.command(&block, Limit::each(outgoing.time, call.deadline))?;
        Ok(match reply.error {
            None => Carried::Answer(Secret::copy_from(reply.data())),
            Some(error) if reply.icc != IccStatus::Active => Carried::Refused(error, reply),
            Some(SlotError::IccMute) => Carried::Silent,
            Some(SlotError::Parity | SlotError::Overrun | SlotError::ProcedureByte) => {
                Carried::Damaged
            }
            Some(error) => Carried::Refused(error, reply),
        })
    }

    /// Between two blocks nobody waits: the end of the call is looked for here.
    fn goes_on(&self, data: &[u8], call: Call) -> Result<(), BulkError> {
        let why = if self.stop.is_set() {
            Why::Stopped
        } else if Instant::now() >= call.deadline {
            Why::TimedOut
        } else if data.len() > self.reader.longest() {
            Why::TooLong
        } else {
            return Ok(());
        };
        let sent = Sent::No;
        Err(BulkError { why, sent })
    }
}

/// Whether the card has seen the command when a block failed of which `this` is known.
fn of_both(before: Sent, after: Sent, this: Sent) -> Sent {
    match (before, after) {
        (_, Sent::No) => Sent::No,
        (Sent::No, _) => this,
        (_, after) => after,
    }
}
