//! One message to a reader and its response: two transfers, the IN transfer queued first.
//!
//! A response counts if type, slot and sequence number match. Up to `STALE_ANSWERS` others are dropped. A command without a
//! response desynchronizes its slot: nothing else is sent to it before [`BulkPipe::recover`].

mod abort;
mod active;
mod concurrent;
mod error;
mod halts;
mod incoming;
mod liveness;
mod pending;
mod recovery;
mod response;
mod timeout;
mod unlocked_wait;

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use self::{
    abort::{abort_request, abort_timeout},
    halts::HaltedEndpoints,
    incoming::IncomingMessage,
    liveness::{LivenessCheck, is_responsive},
    pending::{PendingCommand, failed},
    recovery::{check_limits, query_status},
};
pub(crate) use self::{
    concurrent::ConcurrentBulkPipe,
    error::{BulkError, BulkErrorKind},
    response::SlotResponse,
    timeout::ResponseTimeout,
};
use crate::{
    ccid::{budget, message::Command},
    usb::host::{
        drain,
        transfer::{Completion, EndpointAddress, EndpointQueue, TransferError, UsbInterface},
    },
    wait::{StopFlag, wait_any},
};

/// The two bulk endpoints of a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BulkEndpoints {
    pub(crate) bulk_in: EndpointAddress,
    pub(crate) bulk_out: EndpointAddress,
    /// Packet size of `bulk_in`.
    pub(crate) packet: usize,
}

/// The bulk pipe of a reader, for one command at a time.
#[derive(Debug)]
pub(crate) struct BulkPipe {
    interface: Arc<dyn UsbInterface>,
    number: u8,
    pipes: Box<dyn EndpointQueue>,
    endpoints: BulkEndpoints,
    incoming: IncomingMessage,
    sequence: u8,
    halts: HaltedEndpoints,
}

impl BulkPipe {
    /// Makes the pipe of interface `number`, whose longest message has `longest` bytes.
    ///
    /// # Errors
    /// [`TransferError`] if the interface lacks these endpoints.
    pub(crate) fn new(
        interface: Arc<dyn UsbInterface>,
        number: u8,
        endpoints: BulkEndpoints,
        longest: usize,
    ) -> Result<Self, TransferError> {
        // The completion of the command is taken before its response.
        let pipes = interface.open_queue(&[endpoints.bulk_out, endpoints.bulk_in])?;
        Ok(Self {
            interface,
            number,
            pipes,
            endpoints,
            incoming: IncomingMessage::new(longest, endpoints.packet),
            sequence: 0,
            halts: HaltedEndpoints::default(),
        })
    }

    /// Sets the device's flag for readers that omit zero-length packets.
    pub(crate) fn with_omits_zlp(mut self, omits_zlp: Arc<AtomicBool>) -> Self {
        self.incoming.share_omits_zlp(omits_zlp);
        self
    }

    /// The same, with sequence numbers after `sequence`.
    pub(crate) fn after(self, sequence: u8) -> Self {
        Self { sequence, ..self }
    }

    /// The last sequence number.
    pub(crate) const fn last_sequence(&self) -> u8 {
        self.sequence
    }

    /// Resets the whole device. The next command shows whether the device works again.
    pub(crate) fn reset_device(&mut self) {
        self.cancel_pending();
        self.halts = HaltedEndpoints::default();
        if let Err(error) = self.interface.reset() {
            tracing::warn!("usb: the device cannot be reset: {error}");
        }
    }

    /// Sends `command` to `slot` and waits for its response, until `timeout` or `stop`.
    ///
    /// # Errors
    /// [`BulkError`]. The slot is then desynchronized.
    pub(crate) fn command(
        &mut self,
        command: &Command<'_>,
        slot: u8,
        limit: impl Into<ResponseTimeout>,
        stop: &StopFlag,
    ) -> Result<SlotResponse, BulkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let message = command.message(slot, self.sequence);
        let mut exchange = PendingCommand::new(command, slot, message.len());
        self.incoming.clear();
        self.submit_next_in();
        self.pipes.submit_out(self.endpoints.bulk_out, message);
        match self.wait_for_response(&mut exchange, limit.into(), stop) {
            Ok(reply) => Ok(reply),
            Err(kind) => {
                let sent = exchange.sent();
                self.cancel_pending();
                let kind = exchange.refined(kind);
                Err(BulkError { kind, sent })
            }
        }
    }

    /// Queues the next IN transfer.
    fn submit_next_in(&mut self) {
        let len = self.incoming.next_len();
        self.pipes.submit_in(self.endpoints.bulk_in, len);
    }

    fn wait_for_response(
        &mut self,
        exchange: &mut PendingCommand,
        limit: ResponseTimeout,
        stop: &StopFlag,
    ) -> Result<SlotResponse, BulkErrorKind> {
        let mut deadline = limit.start(Instant::now());
        let mut liveness = LivenessCheck::start();
        loop {
            while let Some(completion) = self.pipes.next_completion() {
                if let Some(reply) = self.handle_completion(exchange, completion)? {
                    return Ok(reply);
                }
                liveness = LivenessCheck::start();
            }
            if let Some(multiplier) = exchange.take_extension() {
                deadline = limit.extended(multiplier, Instant::now());
            }
            if stop.is_set() {
                return Err(BulkErrorKind::Stopped);
            }
            if Instant::now() >= deadline {
                self.cancel_pending();
                let reply = self.accept_without_zlp(exchange);
                return reply.ok().flatten().ok_or(BulkErrorKind::TimedOut);
            }
            if liveness.is_due() {
                if let Some(reply) = self.accept_unended(exchange)? {
                    return Ok(reply);
                }
                if liveness.record(is_responsive(&*self.interface)) {
                    tracing::warn!(
                        "usb: the reader no longer responds to requests; its command is ended"
                    );
                    return Err(BulkErrorKind::TimedOut);
                }
            }
            self.wait(deadline.min(liveness.due), stop);
        }
    }

    /// Waits for a completion.
    fn wait(&self, deadline: Instant, stop: &StopFlag) {
        let due = self.pipes.next_timeout().map(|due| Instant::now() + due);
        let deadline = due.map_or(deadline, |due| due.min(deadline));
        if let Err(errno) = wait_any(&self.pipes.poll_fds(), stop, Some(deadline)) {
            tracing::warn!("usb: poll failed while waiting for the reader ({errno})");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn handle_completion(
        &mut self,
        exchange: &mut PendingCommand,
        completion: Completion,
    ) -> Result<Option<SlotResponse>, BulkErrorKind> {
        self.halts.note(&completion);
        if completion.endpoint == self.endpoints.bulk_out {
            return exchange.note_out_transfer(&completion).map(|()| None);
        }
        failed(&completion)?;
        if completion.transferred == 0 {
            exchange.count_empty()?;
            self.submit_next_in();
            return Ok(None);
        }
        self.incoming.collect(completion);
        if self.incoming.awaits_more() {
            self.submit_next_in();
            return Ok(None);
        }
        let reply = exchange.parse_response(self.incoming.take(), self.sequence)?;
        if reply.is_none() {
            self.submit_next_in();
        }
        if reply.is_some() {
            self.end_out_transfer();
        }
        Ok(reply)
    }

    /// Ends the OUT transfer. Its completion may arrive after the response.
    fn end_out_transfer(&mut self) {
        let bulk_out = self.endpoints.bulk_out;
        while self.pipes.pending(bulk_out) > 0 {
            let Some(completion) = self.pipes.next_completion() else {
                self.pipes.cancel(bulk_out);
                return self.drain(Instant::now() + budget::CANCEL);
            };
            self.halts.note(&completion);
        }
    }

    /// After a silence: takes what the IN transfer holds, and queues another unless that is the response.
    fn accept_unended(
        &mut self,
        exchange: &mut PendingCommand,
    ) -> Result<Option<SlotResponse>, BulkErrorKind> {
        if self.incoming.reads_exact_sizes() || self.pipes.pending(self.endpoints.bulk_out) > 0 {
            return Ok(None);
        }
        self.cancel_pending();
        let reply = self.accept_without_zlp(exchange)?;
        if reply.is_none() && self.pipes.pending(self.endpoints.bulk_in) == 0 {
            self.submit_next_in();
        }
        Ok(reply)
    }

    /// A response of whole packets may be complete without its zero-length packet.
    fn accept_without_zlp(
        &mut self,
        exchange: &mut PendingCommand,
    ) -> Result<Option<SlotResponse>, BulkErrorKind> {
        if !self.incoming.is_complete() {
            return Ok(None);
        }
        let reply = exchange.parse_response(self.incoming.take(), self.sequence)?;
        if reply.is_some() {
            self.incoming.note_omitted_zlp();
        }
        Ok(reply)
    }

    /// Cancels the pending transfers and collects what arrives meanwhile.
    fn cancel_pending(&mut self) {
        let BulkEndpoints {
            bulk_in, bulk_out, ..
        } = self.endpoints;
        for endpoint in [bulk_in, bulk_out] {
            if self.pipes.pending(endpoint) > 0 {
                self.pipes.cancel(endpoint);
            }
        }
        self.drain(Instant::now() + budget::CANCEL);
    }

    fn drain(&mut self, deadline: Instant) {
        loop {
            while let Some(completion) = self.pipes.next_completion() {
                self.halts.note(&completion);
                if completion.endpoint == self.endpoints.bulk_in {
                    self.incoming.collect(completion);
                }
            }
            let BulkEndpoints {
                bulk_in, bulk_out, ..
            } = self.endpoints;
            let pending = self.pipes.pending(bulk_in) + self.pipes.pending(bulk_out);
            let left = deadline.saturating_duration_since(Instant::now());
            if pending == 0 || left.is_zero() {
                return;
            }
            drain::wait(&*self.pipes, left);
        }
    }

    /// Synchronizes the slot: aborts the pending command, clears halts that were seen, drops late responses. The caller recovers
    /// the card.
    ///
    /// # Errors
    /// [`BulkError`] when the reader does not come back; its device may be reset then.
    pub(crate) fn recover(
        &mut self,
        slot: u8,
        deadline: Instant,
        stop: &StopFlag,
    ) -> Result<SlotResponse, BulkError> {
        self.cancel_pending();
        check_limits(deadline, stop)?;
        let listens = self.abort(slot, deadline, stop);
        query_status(deadline, stop, |limit| {
            let result = self.command(&Command::GetSlotStatus, slot, limit, stop);
            if listens && result.is_err() {
                self.clear_halts(deadline, stop);
            }
            result
        })
    }

    /// Clears the halts that were seen. The kernel waits up to five seconds for the device, so nothing is cleared after the
    /// deadline.
    fn clear_halts(&mut self, deadline: Instant, stop: &StopFlag) {
        let BulkEndpoints {
            bulk_in, bulk_out, ..
        } = self.endpoints;
        for endpoint in [bulk_in, bulk_out] {
            if check_limits(deadline, stop).is_ok() {
                self.halts.clear(&mut *self.pipes, endpoint);
            }
        }
    }

    /// Aborts by control and by bulk, with one sequence number for both (CCID 1.1, 5.3.1). A reader that supports no abort is
    /// left to GetSlotStatus. Returns whether the device responds to control requests: otherwise no halt can be cleared.
    fn abort(&mut self, slot: u8, deadline: Instant, stop: &StopFlag) -> bool {
        let sequence = self.sequence.wrapping_add(1);
        let setup = abort_request(self.number, slot, sequence);
        let asked = self
            .interface
            .control(setup, &mut [], abort_timeout(deadline));
        let listens = asked != Err(TransferError::Cancelled);
        if listens {
            self.clear_halts(deadline, stop);
        }
        if let Err(error) = asked {
            tracing::debug!("usb: the reader rejected the ABORT request: {error}");
        } else if check_limits(deadline, stop).is_ok() {
            let limit = deadline.min(Instant::now() + budget::ABORT);
            if let Err(error) = self.command(&Command::Abort, slot, limit, stop) {
                tracing::debug!("usb: the reader did not confirm Abort: {}", error.kind);
            }
        }
        listens
    }
}
