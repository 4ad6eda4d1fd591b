//! One pending command: the transfers so far, and what they mean.

use claviger_apdu::{Secret, Sent};

use super::{error::BulkErrorKind, response::SlotResponse};
use crate::{
    ccid::{
        budget,
        message::{CcidResponse, Command, CommandStatus, ResponseKind},
    },
    usb::host::transfer::{Completion, TransferError},
};

/// State of the OUT transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OutTransfer {
    InFlight,
    Done,
    Refused,
}

/// One pending command.
#[derive(Debug)]
pub(super) struct PendingCommand {
    kind: ResponseKind,
    slot: u8,
    length: usize,
    out: OutTransfer,
    stale: usize,
    empty: usize,
    extensions: usize,
    /// The multiplier of the last time extension request.
    extension: Option<u8>,
}

impl PendingCommand {
    /// `command` to `slot`, a message of `length` bytes.
    pub(super) fn new(command: &Command<'_>, slot: u8, length: usize) -> Self {
        Self {
            kind: command.response_kind(),
            slot,
            length,
            out: OutTransfer::InFlight,
            stale: 0,
            empty: 0,
            extensions: 0,
            extension: None,
        }
    }

    /// The multiplier of the request for more time that came last, once.
    pub(super) const fn take_extension(&mut self) -> Option<u8> {
        self.extension.take()
    }

    pub(super) const fn slot(&self) -> u8 {
        self.slot
    }

    pub(super) const fn sent(&self) -> Sent {
        match self.out {
            OutTransfer::Refused => Sent::No,
            OutTransfer::InFlight | OutTransfer::Done => Sent::Maybe,
        }
    }

    /// Takes in the end of the OUT transfer. A count other than the command's length means nothing, because a USB/IP server
    /// may count no bytes. The response shows whether the reader has the command.
    pub(super) fn note_out_transfer(
        &mut self,
        completion: &Completion,
    ) -> Result<(), BulkErrorKind> {
        if completion.transferred == 0 && completion.result.is_err() {
            self.out = OutTransfer::Refused;
        }
        failed(completion)?;
        if completion.transferred != self.length {
            tracing::debug!(
                "usb: {} of the {} bytes of a command are reported as sent",
                completion.transferred,
                self.length
            );
        }
        self.out = OutTransfer::Done;
        Ok(())
    }

    /// A response to an earlier command arrived. Returns an error after too many.
    pub(super) fn count_stale(&mut self) -> Result<(), BulkErrorKind> {
        self.stale += 1;
        if self.stale > budget::STALE_ANSWERS {
            return Err(BulkErrorKind::Protocol(
                "too many responses to other commands",
            ));
        }
        Ok(())
    }

    /// Refines a timeout: a reader that has responded to earlier commands meanwhile is late, not unresponsive.
    pub(super) const fn refined(&self, kind: BulkErrorKind) -> BulkErrorKind {
        match kind {
            BulkErrorKind::TimedOut if self.stale > 0 => BulkErrorKind::Late,
            kind => kind,
        }
    }

    pub(super) fn count_empty(&mut self) -> Result<(), BulkErrorKind> {
        self.empty += 1;
        if self.empty > budget::EMPTY_TRANSFERS {
            return Err(BulkErrorKind::Protocol("too many empty transfers"));
        }
        Ok(())
    }

    /// Parses a message. Returns `None` while the response is still to come.
    pub(super) fn parse_response(
        &mut self,
        message: Secret,
        sequence: u8,
    ) -> Result<Option<SlotResponse>, BulkErrorKind> {
        let answer = CcidResponse::parse(message.expose())
            .map_err(|_| BulkErrorKind::Protocol("a malformed message"))?;
        if !answer.matches(self.kind, self.slot, sequence) {
            self.count_stale()?;
            return Ok(None);
        }
        let error = match answer.outcome {
            CommandStatus::Processed => None,
            CommandStatus::Failed(error) => Some(error),
            CommandStatus::TimeExtension { multiplier } => {
                self.extension = Some(multiplier);
                self.extensions += 1;
                if self.extensions > budget::TIME_EXTENSIONS {
                    return Err(BulkErrorKind::Protocol("too many requests for more time"));
                }
                return Ok(None);
            }
        };
        let (icc, specific) = (answer.icc, answer.specific);
        Ok(Some(SlotResponse {
            message,
            icc,
            specific,
            error,
        }))
    }
}

pub(super) fn failed(completion: &Completion) -> Result<(), BulkErrorKind> {
    match completion.result {
        Ok(()) => Ok(()),
        Err(TransferError::Disconnected) => Err(BulkErrorKind::Disconnected),
        Err(error) => Err(BulkErrorKind::Transfer(error)),
    }
}
