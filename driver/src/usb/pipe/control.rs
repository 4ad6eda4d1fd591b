//! The control pipe of an ICCD token: one command and its response.
//!
//! A request blocks until it ends, for at most [`budget::CONTROL`]. Stop and deadline are checked between two requests. A
//! response does not identify its command, so a token that did not respond is reset before its next command, and its card loses
//! its state.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use claviger_apdu::{Secret, Sent};

use super::bulk::{self, BulkError, BulkErrorKind, SlotResponse};
use crate::{
    ccid::{
        budget,
        iccd::{Exchange, Request, Step, Version},
        message::{Command, IccStatus},
    },
    usb::host::transfer::{SetupPacket, TransferError, UsbInterface},
    wait::{StopFlag, wait_readable},
};

/// The control pipe of a token.
#[derive(Debug)]
pub(crate) struct ControlPipe {
    interface: Arc<dyn UsbInterface>,
    number: u8,
    version: Version,
}

/// The time limits of a command.
#[derive(Clone, Copy)]
struct CommandDeadline<'a> {
    timeout: bulk::ResponseTimeout,
    deadline: Instant,
    stop: &'a StopFlag,
}

impl<'a> CommandDeadline<'a> {
    fn begin(limit: bulk::ResponseTimeout, stop: &'a StopFlag) -> Self {
        let deadline = limit.start(Instant::now());
        Self {
            timeout: limit,
            deadline,
            stop,
        }
    }

    /// Timeout of the next request.
    fn next_timeout(&self) -> Result<Duration, BulkErrorKind> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if self.stop.is_set() {
            return Err(BulkErrorKind::Stopped);
        }
        if left.is_zero() {
            return Err(BulkErrorKind::TimedOut);
        }
        Ok(left.min(budget::CONTROL))
    }

    /// Waits for a busy token. Busy counts as a request for more time.
    fn wait(&mut self, delay: Duration) -> Result<(), BulkErrorKind> {
        let deadline = self.deadline.min(Instant::now() + delay);
        let _ = wait_readable(&[], self.stop, Some(deadline));
        self.next_timeout()?;
        self.deadline = self.timeout.extended(1, Instant::now());
        Ok(())
    }
}

impl ControlPipe {
    /// The token on interface `number` of its device.
    pub(crate) fn new(interface: Arc<dyn UsbInterface>, number: u8, version: Version) -> Self {
        Self {
            interface,
            number,
            version,
        }
    }

    /// Runs `command` and waits for the response.
    ///
    /// # Errors
    /// [`BulkError`]. The state of the token is then unknown, unless nothing was sent.
    pub(crate) fn command(
        &mut self,
        command: &Command<'_>,
        limit: bulk::ResponseTimeout,
        stop: &StopFlag,
    ) -> Result<SlotResponse, BulkError> {
        let mut sent = Sent::No;
        self.run(command, CommandDeadline::begin(limit, stop), &mut sent)
            .map_err(|kind| BulkError { kind, sent })
    }

    fn run(
        &self,
        command: &Command<'_>,
        mut limit: CommandDeadline<'_>,
        sent: &mut Sent,
    ) -> Result<SlotResponse, BulkErrorKind> {
        let mut exchange = Exchange::new(self.version, command);
        let mut step = exchange.begin();
        loop {
            step = match step.map_err(|nonsense| BulkErrorKind::Protocol(nonsense.0))? {
                Step::Write { request, data } => {
                    let slice = limit.next_timeout()?;
                    *sent = Sent::Maybe;
                    self.write(request, &data, slice)?;
                    exchange.wrote()
                }
                Step::Read { request, room } => {
                    let answer = self.read(request, room, limit.next_timeout()?)?;
                    exchange.read(answer.expose())
                }
                Step::Wait(delay) => {
                    limit.wait(delay)?;
                    Ok(exchange.waited())
                }
                Step::Done(outcome) => return Ok(SlotResponse::from(outcome)),
            };
        }
    }

    fn setup(&self, request: Request) -> SetupPacket {
        SetupPacket {
            request_type: request.request_type,
            request: request.request,
            value: request.value,
            index: u16::from(self.number),
        }
    }

    fn write(&self, request: Request, data: &Secret, limit: Duration) -> Result<(), BulkErrorKind> {
        // The buffer is wiped with the secret it becomes again.
        let mut buffer = data.expose().to_vec();
        let written = self
            .interface
            .control(self.setup(request), &mut buffer, limit);
        let length = Secret::new(buffer).len();
        // As with a bulk pipe, the response shows whether the command has arrived.
        let counted = written.map_err(error_kind)?;
        if counted != length {
            tracing::debug!(
                "usb: {counted} of the {length} bytes of a request are reported as sent"
            );
        }
        Ok(())
    }

    fn read(
        &self,
        request: Request,
        room: usize,
        limit: Duration,
    ) -> Result<Secret, BulkErrorKind> {
        let mut buffer = vec![0; room];
        let read = self
            .interface
            .control(self.setup(request), &mut buffer, limit);
        let mut answer = Secret::new(buffer);
        answer.truncate(read.map_err(error_kind)?);
        Ok(answer)
    }

    /// Resets the token. Its card has no power afterwards.
    ///
    /// # Errors
    /// [`BulkError`] when the token does not come back; its device may be reset then.
    pub(crate) fn recover(
        &mut self,
        deadline: Instant,
        stop: &StopFlag,
    ) -> Result<SlotResponse, BulkError> {
        let mut last = BulkError {
            kind: BulkErrorKind::TimedOut,
            sent: Sent::No,
        };
        for _ in 0..budget::STATUS_TRIES {
            let limit = bulk::ResponseTimeout::from(deadline.min(Instant::now() + budget::STATUS));
            match self.command(&Command::IccPowerOff, limit, stop) {
                Ok(mut reply) => {
                    reply.icc = IccStatus::Inactive;
                    return Ok(reply);
                }
                Err(error)
                    if matches!(
                        error.kind,
                        BulkErrorKind::Disconnected | BulkErrorKind::Stopped
                    ) =>
                {
                    return Err(error);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Resets the whole device. The next command shows whether it responds again.
    pub(crate) fn reset_device(&mut self) {
        if let Err(error) = self.interface.reset() {
            tracing::warn!("usb: the device cannot be reset: {error}");
        }
    }
}

const fn error_kind(error: TransferError) -> BulkErrorKind {
    match error {
        TransferError::Disconnected => BulkErrorKind::Disconnected,
        // At its limit.
        TransferError::Cancelled => BulkErrorKind::TimedOut,
        error => BulkErrorKind::Transfer(error),
    }
}
