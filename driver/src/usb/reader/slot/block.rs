//! Exchanges blocks with a card: one XfrBlock each at the TPDU level, several at the character level (CCID 1.1, 6.1.4).

use std::time::{Duration, Instant};

use claviger_apdu::{Call, Secret, Sent, TransportError, TransportErrorKind};

use super::{
    CcidSlot,
    protocol_state::{BlockKind, ProtocolState},
};
use crate::{
    ccid::{
        descriptor::ExchangeLevel,
        message::{Command, IccStatus, SlotError},
    },
    protocol::{Failure, FailureReason, Step, character::CharacterStep},
    usb::pipe::bulk::{BulkError, BulkErrorKind, ResponseTimeout, SlotResponse},
};

/// One block to send.
pub(super) struct OutgoingBlock {
    pub(super) block: Secret,
    pub(super) kind: BlockKind,
    /// bBWI: 0 for the usual waiting time.
    pub(super) bwi: u8,
    /// The timeout of the response.
    pub(super) timeout: Duration,
}

/// The outcome of a block.
pub(super) enum BlockOutcome {
    Response(Secret),
    /// The card's response was malformed.
    TransmissionError,
    /// The card sent nothing.
    NoResponse,
    /// The reader rejected the command.
    Rejected(SlotError, SlotResponse),
}

impl CcidSlot {
    /// Runs the protocol until the card has responded to `frame`.
    pub(super) fn run_protocol(
        &mut self,
        line: &mut ProtocolState,
        frame: &[u8],
        call: Call,
    ) -> Result<Secret, TransportError> {
        // Whether the card had received the command before the current block, and whether it has after that block.
        let mut before = Sent::No;
        let mut step = line.begin(frame);
        loop {
            let outgoing = match step {
                Step::Done(answer) => return Ok(answer),
                Step::Failed(failure) => return Err(self.protocol_failure(failure)),
                Step::Send {
                    block,
                    waiting_time_multiplier,
                } => self.outgoing(line, block, waiting_time_multiplier),
            };
            let after = line.sent();
            let outcome = self.send_block(outgoing, call).map_err(|error| {
                let sent = combined_sent(before, after, error.sent);
                if sent != Sent::No {
                    self.pipe.mark_desynchronized();
                }
                self.transfer_error("the command", BulkError { sent, ..error })
            })?;
            step = match outcome {
                BlockOutcome::Response(answer) => line.receive(answer.expose()),
                BlockOutcome::TransmissionError => line.transmission_error(),
                BlockOutcome::NoResponse => line.response_timeout(),
                BlockOutcome::Rejected(error, reply) => {
                    let sent = combined_sent(before, after, Sent::Maybe);
                    return Err(self.block_error(error, &reply, before == Sent::No, sent));
                }
            };
            before = after;
        }
    }

    fn outgoing(&self, line: &ProtocolState, block: Secret, multiplier: u8) -> OutgoingBlock {
        OutgoingBlock {
            block,
            kind: line.kind(),
            bwi: if multiplier > 1 { multiplier } else { 0 },
            timeout: self.reader.scaled_timeout(line.timing().limit(multiplier)),
        }
    }

    /// Handles a protocol that ended without a response.
    fn protocol_failure(&mut self, failure: Failure) -> TransportError {
        if failure.needs_reset() {
            self.pipe.mark_desynchronized();
        }
        let doubt = match (failure.reason, failure.sent) {
            (FailureReason::Unsuitable(_), _) | (_, Sent::No) => "it was not sent",
            (_, Sent::Yes) => "the card has received it and may have executed it",
            (_, Sent::Maybe) => "it is unknown whether the card has executed it",
        };
        let what = format!("the command failed: {failure}; {doubt}");
        self.error(TransportErrorKind::Protocol, failure.sent, &what)
    }

    /// Sends one block and waits for its response.
    ///
    /// # Errors
    /// [`BulkError`] about this block.
    pub(super) fn send_block(
        &mut self,
        outgoing: OutgoingBlock,
        call: Call,
    ) -> Result<BlockOutcome, BulkError> {
        if self.reader.level() == ExchangeLevel::Character {
            return self.send_characters(outgoing, call);
        }
        self.transfer_block(outgoing.block.expose(), 0, &outgoing, call)
    }

    fn send_characters(
        &mut self,
        mut outgoing: OutgoingBlock,
        call: Call,
    ) -> Result<BlockOutcome, BulkError> {
        let block = std::mem::take(&mut outgoing.block);
        let (mut characters, mut turn) = outgoing.kind.characters(block);
        let mut begun = false;
        loop {
            let (bytes, expected) = match turn {
                CharacterStep::Done(answer) => return Ok(BlockOutcome::Response(answer)),
                CharacterStep::Damaged => return Ok(BlockOutcome::TransmissionError),
                CharacterStep::Exchange { bytes, expected } => (bytes, expected),
            };
            // A response that does not fit in one message is split into several.
            let room = u16::try_from(self.reader.max_block()).unwrap_or(u16::MAX);
            let outcome = self
                .transfer_block(bytes.expose(), expected.min(room), &outgoing, call)
                .map_err(|error| BulkError {
                    sent: if begun { Sent::Maybe } else { error.sent },
                    ..error
                })?;
            begun = true;
            turn = match outcome {
                BlockOutcome::Response(answer) => characters.receive(answer.expose()),
                other => return Ok(other),
            };
        }
    }

    /// One XfrBlock.
    fn transfer_block(
        &mut self,
        data: &[u8],
        level_parameter: u16,
        outgoing: &OutgoingBlock,
        call: Call,
    ) -> Result<BlockOutcome, BulkError> {
        self.check_limits(data, call)?;
        let block = Command::XfrBlock {
            bwi: outgoing.bwi,
            level_parameter,
            data,
        };
        let reply = self.command(
            &block,
            ResponseTimeout::per_message(outgoing.timeout, call.deadline),
        )?;
        Ok(match reply.error {
            None => BlockOutcome::Response(Secret::copy_from(reply.data())),
            Some(error) if reply.icc != IccStatus::Active => BlockOutcome::Rejected(error, reply),
            Some(SlotError::IccMute) => BlockOutcome::NoResponse,
            Some(SlotError::Parity | SlotError::Overrun | SlotError::ProcedureByte) => {
                BlockOutcome::TransmissionError
            }
            Some(error) => BlockOutcome::Rejected(error, reply),
        })
    }

    /// Checks stop, deadline and block length between two blocks.
    fn check_limits(&self, data: &[u8], call: Call) -> Result<(), BulkError> {
        let why = if self.stop.is_set() {
            BulkErrorKind::Stopped
        } else if Instant::now() >= call.deadline {
            BulkErrorKind::TimedOut
        } else if data.len() > self.reader.max_block() {
            BulkErrorKind::TooLong
        } else {
            return Ok(());
        };
        let sent = Sent::No;
        Err(BulkError { kind: why, sent })
    }
}

/// Returns whether the card has received the command after a block failed with `this`.
fn combined_sent(before: Sent, after: Sent, this: Sent) -> Sent {
    match (before, after) {
        (_, Sent::No) => Sent::No,
        (Sent::No, _) => this,
        (_, after) => after,
    }
}
