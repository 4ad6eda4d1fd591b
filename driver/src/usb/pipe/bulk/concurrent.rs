//! The bulk pipe of a reader with several busy slots: one command at a time in each.
//!
//! The thread that sent a command waits for it. The thread that reads a response stores it with the command of the same slot and
//! sequence number, and wakes that command's thread. A thread checks its result under the lock before each wait. The wake-up
//! stays set until its owner checks, and the pipe's descriptors stay ready until the transfers are taken. No wake-up is lost.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Instant,
};

use claviger_apdu::Secret;

use super::{
    BulkEndpoints,
    abort::{abort_request, abort_timeout},
    active::ActiveCommand,
    error::{BulkError, BulkErrorKind},
    halts::HaltedEndpoints,
    incoming::IncomingMessage,
    liveness::{LivenessCheck, is_responsive},
    pending::{PendingCommand, failed},
    recovery::{check_limits, query_status},
    response::SlotResponse,
    timeout::ResponseTimeout,
    unlocked_wait::{owned, wait},
};
use crate::{
    ccid::{budget, message::Command},
    usb::host::{
        drain::{self, drain},
        event_fd::EventFd,
        transfer::{Completion, EndpointQueue, TransferError, UsbInterface},
    },
    wait::StopFlag,
};

/// See the module.
#[derive(Debug)]
pub(crate) struct ConcurrentBulkPipe {
    interface: Arc<dyn UsbInterface>,
    number: u8,
    state: Mutex<PipeState>,
}

#[derive(Debug)]
struct PipeState {
    queue: Box<dyn EndpointQueue>,
    endpoints: BulkEndpoints,
    incoming: IncomingMessage,
    /// The liveness of the reader. A response for any slot counts.
    liveness: LivenessCheck,
    sequence: u8,
    active: Vec<ActiveCommand>,
    /// Sequence numbers of the pending OUT transfers, oldest first.
    out_transfers: VecDeque<u8>,
    /// Responses to no pending command, and empty transfers, since the last match.
    unmatched: usize,
    /// A transfer failed. The endpoints have not been reset since.
    needs_reset: bool,
    halts: HaltedEndpoints,
    /// Wake-ups that no thread uses.
    wakeups: Vec<Arc<EventFd>>,
}

impl ConcurrentBulkPipe {
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
        let queue = interface.open_queue(&[endpoints.bulk_out, endpoints.bulk_in])?;
        let state = PipeState {
            queue,
            endpoints,
            incoming: IncomingMessage::new(longest, endpoints.packet),
            liveness: LivenessCheck::start(),
            sequence: 0,
            active: Vec::new(),
            out_transfers: VecDeque::new(),
            unmatched: 0,
            needs_reset: false,
            halts: HaltedEndpoints::default(),
            wakeups: Vec::new(),
        };
        Ok(Self {
            interface,
            number,
            state: Mutex::new(state),
        })
    }

    /// The same, with sequence numbers after `sequence`.
    pub(crate) fn after(self, sequence: u8) -> Self {
        self.state().sequence = sequence;
        self
    }

    /// Sets the device's flag for readers that omit zero-length packets.
    pub(crate) fn with_omits_zlp(self, omits_zlp: Arc<AtomicBool>) -> Self {
        self.state().incoming.share_omits_zlp(omits_zlp);
        self
    }

    /// The last sequence number.
    pub(crate) fn last_sequence(&self) -> u8 {
        self.state().sequence
    }

    fn state(&self) -> MutexGuard<'_, PipeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether no command is running.
    pub(crate) fn is_idle(&self) -> bool {
        self.state().active.is_empty()
    }

    /// Sends `command` to `slot` and waits for its response, until `limit` or `stop`.
    ///
    /// # Errors
    /// [`BulkError`]. The slot is then desynchronized.
    pub(crate) fn command(
        &self,
        command: &Command<'_>,
        slot: u8,
        limit: ResponseTimeout,
        stop: &StopFlag,
    ) -> Result<SlotResponse, BulkError> {
        let sequence = self.state().next_sequence();
        self.send(command, (slot, sequence), limit, stop)
    }

    fn send(
        &self,
        command: &Command<'_>,
        (slot, sequence): (u8, u8),
        limit: ResponseTimeout,
        stop: &StopFlag,
    ) -> Result<SlotResponse, BulkError> {
        let mut deadline = limit.start(Instant::now());
        let wakeup = self.state().begin(command, slot, sequence);
        loop {
            let mut state = self.state();
            if let Some(wakeup) = &wakeup {
                wakeup.clear();
            }
            state.process_completions();
            if let Some(multiplier) = state.extension(sequence) {
                deadline = limit.extended(multiplier, Instant::now());
            }
            let ended = if stop.is_set() {
                Some(BulkErrorKind::Stopped)
            } else {
                (Instant::now() >= deadline).then_some(BulkErrorKind::TimedOut)
            };
            if ended == Some(BulkErrorKind::TimedOut) {
                state.accept_unended();
            }
            if let Some(result) = state.result(sequence, ended) {
                return result;
            }
            if state.liveness.is_due() {
                if !state.accept_unended() {
                    state.liveness.postpone();
                    drop(state);
                    self.check_liveness();
                }
                continue;
            }
            let deadline = deadline.min(state.liveness.due);
            let due = state.queue.next_timeout().map(|due| Instant::now() + due);
            // Descriptors of our own, for the wait is without the lock.
            let fds = owned(&state.queue.poll_fds());
            drop(state);
            let first = due.map_or(deadline, |due| due.min(deadline));
            wait(fds, wakeup.as_deref(), first, stop);
        }
    }

    /// Asks whether the device responds, and ends all commands if it does not.
    fn check_liveness(&self) {
        // It takes a second at most, in which another thread may read responses.
        let is_there = is_responsive(&*self.interface);
        let mut state = self.state();
        if state.liveness.record(is_there) {
            tracing::warn!(
                "usb: the reader no longer responds to requests; its commands are ended"
            );
            state.fail_all(BulkErrorKind::TimedOut);
        }
    }

    /// Synchronizes one slot: aborts its command and drops late responses. Clears halts that were seen, unless another slot runs
    /// a command.
    ///
    /// # Errors
    /// [`BulkError`] when the reader does not come back; its device may be reset then.
    pub(crate) fn recover(
        &self,
        slot: u8,
        deadline: Instant,
        stop: &StopFlag,
    ) -> Result<SlotResponse, BulkError> {
        check_limits(deadline, stop)?;
        self.abort(slot, deadline, stop);
        query_status(deadline, stop, |limit| {
            self.command(&Command::GetSlotStatus, slot, limit, stop)
                .inspect_err(|_| self.reset_endpoints(deadline, stop))
        })
    }

    /// Resets the endpoints if there is time for it.
    fn reset_endpoints(&self, deadline: Instant, stop: &StopFlag) {
        if check_limits(deadline, stop).is_ok() {
            self.state().reset_endpoints();
        }
    }

    /// Does the same as [`BulkPipe`](super::BulkPipe) does on an abort.
    fn abort(&self, slot: u8, deadline: Instant, stop: &StopFlag) {
        let sequence = self.state().next_sequence();
        let setup = abort_request(self.number, slot, sequence);
        let timeout = abort_timeout(deadline);
        let asked = self.interface.control(setup, &mut [], timeout);
        if asked != Err(TransferError::Cancelled) {
            self.reset_endpoints(deadline, stop);
        }
        if let Err(error) = asked {
            tracing::debug!("usb: the reader rejected the ABORT request: {error}");
            return;
        }
        if check_limits(deadline, stop).is_err() {
            return;
        }
        let limit = deadline.min(Instant::now() + budget::ABORT);
        if let Err(error) = self.send(&Command::Abort, (slot, sequence), limit.into(), stop) {
            tracing::debug!("usb: the reader did not confirm Abort: {}", error.kind);
        }
    }

    /// Resets the whole device. The next command shows whether the device works again.
    pub(crate) fn reset_device(&self) {
        self.state().fail_all(BulkErrorKind::Disconnected);
        self.state().halts = HaltedEndpoints::default();
        if let Err(error) = self.interface.reset() {
            tracing::warn!("usb: the device cannot be reset: {error}");
        }
    }
}

impl PipeState {
    /// Returns a sequence number that no running command has.
    fn next_sequence(&mut self) -> u8 {
        // At most one of the 256 numbers is in use for each slot.
        for _ in 0..=u8::MAX {
            self.sequence = self.sequence.wrapping_add(1);
            let taken = |one: &ActiveCommand| one.sequence == self.sequence;
            if !self.active.iter().any(taken) {
                break;
            }
        }
        self.sequence
    }

    fn begin(&mut self, command: &Command<'_>, slot: u8, sequence: u8) -> Option<Arc<EventFd>> {
        if self.needs_reset {
            self.reset_endpoints();
        }
        if !self.awaits_response() {
            self.liveness = LivenessCheck::start();
        }
        let message = command.message(slot, sequence);
        let wakeup = self.wakeups.pop().or_else(|| EventFd::new().ok());
        self.active.push(ActiveCommand {
            sequence,
            exchange: PendingCommand::new(command, slot, message.len()),
            result: None,
            wakeup: wakeup.clone(),
        });
        self.listen();
        self.out_transfers.push_back(sequence);
        self.queue.submit_out(self.endpoints.bulk_out, message);
        wakeup
    }

    /// Keeps an IN transfer queued while a response is awaited.
    fn listen(&mut self) {
        if self.awaits_response() && self.queue.pending(self.endpoints.bulk_in) == 0 {
            let len = self.incoming.next_len();
            self.queue.submit_in(self.endpoints.bulk_in, len);
        }
    }

    fn awaits_response(&self) -> bool {
        self.active.iter().any(|one| one.result.is_none())
    }

    /// Takes the completed transfers of all commands.
    fn process_completions(&mut self) {
        while let Some(completion) = self.queue.next_completion() {
            self.liveness = LivenessCheck::start();
            self.process(completion);
        }
        self.listen();
    }

    fn process(&mut self, completion: Completion) {
        self.halts.note(&completion);
        if completion.endpoint == self.endpoints.bulk_out {
            self.handle_sent(&completion);
        } else if let Err(kind) = self.handle_transfer(completion) {
            self.fail_all(kind);
        }
    }

    /// After a silence: takes what the IN transfer holds, and queues another. Returns whether it held a response.
    fn accept_unended(&mut self) -> bool {
        let bulk_in = self.endpoints.bulk_in;
        if self.incoming.reads_exact_sizes() || self.queue.pending(bulk_in) == 0 {
            return false;
        }
        self.queue.cancel(bulk_in);
        let deadline = Instant::now() + budget::CANCEL;
        loop {
            while let Some(completion) = self.queue.next_completion() {
                match completion.result {
                    Err(TransferError::Cancelled) if completion.endpoint == bulk_in => {
                        self.incoming.collect(completion);
                    }
                    _ => self.process(completion),
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if self.queue.pending(bulk_in) == 0 || left.is_zero() {
                break;
            }
            drain::wait(&*self.queue, left);
        }
        let is_complete = self.incoming.is_complete();
        if is_complete {
            self.incoming.note_omitted_zlp();
            self.liveness = LivenessCheck::start();
            let message = self.incoming.take();
            if let Err(kind) = self.handle_message(message) {
                self.fail_all(kind);
            }
        }
        self.listen();
        is_complete
    }

    fn handle_sent(&mut self, completion: &Completion) {
        let Some(sequence) = self.out_transfers.pop_front() else {
            return;
        };
        let sender = self.active.iter_mut().find(|one| one.sequence == sequence);
        let taken = match sender {
            Some(sender) => sender.exchange.note_out_transfer(completion),
            None => failed(completion),
        };
        if let Err(kind) = taken {
            self.fail_all(kind);
        }
    }

    /// Handles an IN transfer: nothing, a part of a message, or messages.
    fn handle_transfer(&mut self, completion: Completion) -> Result<(), BulkErrorKind> {
        failed(&completion)?;
        if completion.transferred == 0 {
            return self.count_unmatched();
        }
        self.incoming.collect(completion);
        while !self.incoming.is_empty() && !self.incoming.awaits_more() {
            let message = self.incoming.take_first();
            self.handle_message(message)?;
        }
        Ok(())
    }

    /// Assigns a message to its command.
    fn handle_message(&mut self, message: Secret) -> Result<(), BulkErrorKind> {
        let [_, _, _, _, _, slot, sequence, ..] = *message.expose() else {
            return Err(BulkErrorKind::Protocol("a malformed message"));
        };
        let is_it = |one: &&mut ActiveCommand| {
            one.sequence == sequence && one.exchange.slot() == slot && one.result.is_none()
        };
        let Some(one) = self.active.iter_mut().find(is_it) else {
            let mut late = self.active.iter_mut();
            if let Some(one) = late.find(|one| one.exchange.slot() == slot) {
                one.exchange.count_stale()?;
            }
            return self.count_unmatched();
        };
        self.unmatched = 0;
        match one.exchange.parse_response(message, sequence) {
            // Its thread may have to wait longer now.
            Ok(None) => one.wake(),
            Ok(Some(reply)) => one.end(Ok(reply)),
            // Any other message of a reader that violates the protocol is not trusted either.
            Err(kind) => return Err(kind),
        }
        Ok(())
    }

    fn count_unmatched(&mut self) -> Result<(), BulkErrorKind> {
        self.unmatched += 1;
        if self.unmatched > budget::STALE_ANSWERS {
            return Err(BulkErrorKind::Protocol(
                "too many responses to other commands",
            ));
        }
        Ok(())
    }

    /// Ends all commands with an error.
    fn fail_all(&mut self, kind: BulkErrorKind) {
        self.needs_reset = true;
        self.unmatched = 0;
        self.incoming.clear();
        for one in &mut self.active {
            one.end(Err(kind));
        }
    }

    /// The multiplier of a request for more time that came for a command.
    fn extension(&mut self, sequence: u8) -> Option<u8> {
        let mut all = self.active.iter_mut();
        let one = all.find(|one| one.sequence == sequence)?;
        one.exchange.take_extension()
    }

    /// Returns the result of a command, if there is one. A command that ends because of `ended` no longer runs.
    fn result(
        &mut self,
        sequence: u8,
        ended: Option<BulkErrorKind>,
    ) -> Option<Result<SlotResponse, BulkError>> {
        let at = self
            .active
            .iter()
            .position(|one| one.sequence == sequence)?;
        let has_ended = self.active.get(at).is_some_and(|one| one.result.is_some());
        if !has_ended && ended.is_none() {
            return None;
        }
        if !has_ended && self.out_transfers.contains(&sequence) {
            self.cancel_out_transfers();
        }
        let ActiveCommand {
            exchange,
            result,
            wakeup,
            ..
        } = self.active.swap_remove(at);
        self.wakeups.extend(wakeup);
        let kind = ended.unwrap_or(BulkErrorKind::TimedOut);
        let sent = exchange.sent();
        let result = result.unwrap_or(Err(exchange.refined(kind)));
        Some(result.map_err(|kind| BulkError { kind, sent }))
    }

    /// Cancels all OUT transfers, because the reader accepts no commands.
    fn cancel_out_transfers(&mut self) {
        self.queue.cancel(self.endpoints.bulk_out);
        let deadline = Instant::now() + budget::CANCEL;
        while !self.out_transfers.is_empty() && Instant::now() < deadline {
            self.process_completions();
            if !self.out_transfers.is_empty() {
                drain::wait(
                    &*self.queue,
                    deadline.saturating_duration_since(Instant::now()),
                );
            }
        }
    }

    /// Drains the queue and clears the halts that were seen, unless a command is in progress.
    fn reset_endpoints(&mut self) {
        if self.active.iter().any(|one| one.result.is_none()) {
            return;
        }
        let all = [self.endpoints.bulk_in, self.endpoints.bulk_out];
        drain(&mut *self.queue, &all);
        self.out_transfers.clear();
        self.incoming.clear();
        for endpoint in all {
            self.halts.clear(&mut *self.queue, endpoint);
        }
        self.needs_reset = false;
    }
}
