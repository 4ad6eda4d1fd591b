//! A token that takes its commands over the control pipe: one command and its answer.
//!
//! A request blocks until it ends, a second at most ([`budget::CONTROL`]); a stop and the deadline are looked at
//! between two of them. Nothing tells whose an answer is, so a token that did not answer is set back before it gets
//! another command: its card loses its state.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use claviger_apdu::{Secret, Sent};

use super::bulk::{self, BulkError, Reply, Why};
use crate::{
    ccid::{
        budget,
        iccd::{Exchange, Request, Step, Version},
        message::{Command, IccStatus},
    },
    usb::host::transfer::{Setup, TransferError, UsbInterface},
    wait::{Stop, readable},
};

/// The control pipe of a token.
#[derive(Debug)]
pub(crate) struct Iccd {
    interface: Arc<dyn UsbInterface>,
    number: u8,
    version: Version,
}

/// How long a command may take.
#[derive(Clone, Copy)]
struct Limit<'a> {
    limit: bulk::Limit,
    until: Instant,
    stop: &'a Stop,
}

impl<'a> Limit<'a> {
    fn begin(limit: bulk::Limit, stop: &'a Stop) -> Self {
        let until = limit.begin(Instant::now());
        Self { limit, until, stop }
    }

    /// What the next request may take.
    fn slice(&self) -> Result<Duration, Why> {
        let left = self.until.saturating_duration_since(Instant::now());
        if self.stop.is_set() {
            return Err(Why::Stopped);
        }
        if left.is_zero() {
            return Err(Why::TimedOut);
        }
        Ok(left.min(budget::CONTROL))
    }

    /// Waits for a token that is busy: to say so is a request for more time.
    fn wait(&mut self, delay: Duration) -> Result<(), Why> {
        let until = self.until.min(Instant::now() + delay);
        let _ = readable(&[], self.stop, Some(until));
        self.slice()?;
        self.until = self.limit.extended(1, Instant::now());
        Ok(())
    }
}

impl Iccd {
    /// The token that is interface `number` of its device.
    pub(crate) fn new(interface: Arc<dyn UsbInterface>, number: u8, version: Version) -> Self {
        Self {
            interface,
            number,
            version,
        }
    }

    /// Does `command` and waits for what comes of it, as long as `limit` says, or until `stop`.
    ///
    /// # Errors
    /// [`BulkError`]; nobody knows then what the token is at, unless nothing was sent.
    pub(crate) fn command(
        &mut self,
        command: &Command<'_>,
        limit: bulk::Limit,
        stop: &Stop,
    ) -> Result<Reply, BulkError> {
        let mut sent = Sent::No;
        self.follow(command, Limit::begin(limit, stop), &mut sent)
            .map_err(|why| BulkError { why, sent })
    }

    fn follow(
        &self,
        command: &Command<'_>,
        mut limit: Limit<'_>,
        sent: &mut Sent,
    ) -> Result<Reply, Why> {
        let mut exchange = Exchange::new(self.version, command);
        let mut step = exchange.begin();
        loop {
            step = match step.map_err(|nonsense| Why::Protocol(nonsense.0))? {
                Step::Write { request, data } => {
                    let slice = limit.slice()?;
                    *sent = Sent::Maybe;
                    self.write(request, &data, slice)?;
                    exchange.wrote()
                }
                Step::Read { request, room } => {
                    let answer = self.read(request, room, limit.slice()?)?;
                    exchange.read(answer.expose())
                }
                Step::Wait(delay) => {
                    limit.wait(delay)?;
                    Ok(exchange.waited())
                }
                Step::Done(outcome) => return Ok(Reply::from(outcome)),
            };
        }
    }

    fn setup(&self, request: Request) -> Setup {
        Setup {
            request_type: request.request_type,
            request: request.request,
            value: request.value,
            index: u16::from(self.number),
        }
    }

    fn write(&self, request: Request, data: &Secret, limit: Duration) -> Result<(), Why> {
        // The buffer is wiped with the secret it becomes again.
        let mut buffer = data.expose().to_vec();
        let written = self
            .interface
            .control(self.setup(request), &mut buffer, limit);
        let length = Secret::new(buffer).len();
        // As with a bulk pipe: the answer tells whether it has arrived.
        let counted = written.map_err(why)?;
        if counted != length {
            tracing::debug!("usb: {counted} of the {length} bytes of a request were counted");
        }
        Ok(())
    }

    fn read(&self, request: Request, room: usize, limit: Duration) -> Result<Secret, Why> {
        let mut buffer = vec![0; room];
        let read = self
            .interface
            .control(self.setup(request), &mut buffer, limit);
        let mut answer = Secret::new(buffer);
        answer.truncate(read.map_err(why)?);
        Ok(answer)
    }

    /// Sets the token back, whatever it is at: its card has no power then.
    ///
    /// # Errors
    /// [`BulkError`] when the token does not come back; its device may be reset then.
    pub(crate) fn recover(&mut self, until: Instant, stop: &Stop) -> Result<Reply, BulkError> {
        let mut last = BulkError {
            why: Why::TimedOut,
            sent: Sent::No,
        };
        for _ in 0..budget::STATUS_TRIES {
            let limit = bulk::Limit::from(until.min(Instant::now() + budget::STATUS));
            match self.command(&Command::IccPowerOff, limit, stop) {
                Ok(mut reply) => {
                    reply.icc = IccStatus::Inactive;
                    return Ok(reply);
                }
                Err(error) if matches!(error.why, Why::Gone | Why::Stopped) => return Err(error),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Resets the whole device; what follows tells whether it came back.
    pub(crate) fn reset_device(&mut self) {
        if let Err(error) = self.interface.reset() {
            tracing::warn!("usb: the device cannot be reset: {error}");
        }
    }
}

const fn why(error: TransferError) -> Why {
    match error {
        TransferError::Gone => Why::Gone,
        // At its limit.
        TransferError::Cancelled => Why::TimedOut,
        error => Why::Transfer(error),
    }
}
