//! The bulk pipe of a reader that can be at work in several slots: one command under way in each, of as many as it says.
//!
//! Each command is waited for by the thread that sent it. Whichever thread sees an answer puts it with the command it
//! belongs to, by slot and sequence number, and rings that command's bell. A command's result is looked for under the
//! lock before each wait, a bell stays rung until its owner looks, under the lock, and the descriptors of the pipe stay ready until somebody has taken what
//! there is: so no wake-up is lost, whoever takes it.

use std::{
    collections::VecDeque,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use claviger_apdu::Sent;
use rustix::event::PollFlags;

use super::{
    BulkEndpoints, BulkError, Halts, Limit, Reply, Why, abort_request, abort_time, goes_on,
    pending::{Exchange, failed},
    read_size,
};
use crate::{
    ccid::{budget, message::Command},
    fork_closed::ForkClosed,
    usb::host::{
        drain::{self, settle},
        event_fd::Signal,
        transfer::{Completion, Pipes, TransferError, UsbInterface},
    },
    wait::{Stop, ready_of},
};

/// How often one looks for whose wait no descriptor was left.
const WITHOUT_DESCRIPTOR: Duration = Duration::from_millis(10);

/// See the module.
#[derive(Debug)]
pub(crate) struct SharedBulk {
    interface: Arc<dyn UsbInterface>,
    number: u8,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    pipes: Box<dyn Pipes>,
    endpoints: BulkEndpoints,
    read: usize,
    sequence: u8,
    under_way: Vec<UnderWay>,
    /// Whose transfers out have not ended, the oldest first.
    outs: VecDeque<u8>,
    /// Answers to no command under way, and empty transfers, since the last answer to one.
    strays: usize,
    /// A transfer failed; nobody has put the pipe right since.
    is_disordered: bool,
    halts: Halts,
    /// Bells that nobody waits for.
    bells: Vec<Arc<Signal>>,
}

/// A command under way. Its sequence number is that of no other.
#[derive(Debug)]
struct UnderWay {
    sequence: u8,
    exchange: Exchange,
    result: Option<Result<Reply, Why>>,
    bell: Option<Arc<Signal>>,
}

impl SharedBulk {
    /// The pipe of interface `number`, whose longest message has `longest` bytes.
    ///
    /// # Errors
    /// [`TransferError`] of an interface without these endpoints.
    pub(crate) fn new(
        interface: Arc<dyn UsbInterface>,
        number: u8,
        endpoints: BulkEndpoints,
        longest: usize,
    ) -> Result<Self, TransferError> {
        // The end of a command is looked for before its answer.
        let pipes = interface.pipes(&[endpoints.bulk_out, endpoints.bulk_in])?;
        let state = State {
            pipes,
            endpoints,
            read: read_size(longest, endpoints.packet.max(1)),
            sequence: 0,
            under_way: Vec::new(),
            outs: VecDeque::new(),
            strays: 0,
            is_disordered: false,
            halts: Halts::default(),
            bells: Vec::new(),
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

    /// The last sequence number.
    pub(crate) fn sequence(&self) -> u8 {
        self.state().sequence
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no command is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.state().under_way.is_empty()
    }

    /// Sends `command` to `slot` and waits for its answer, as long as `limit` says, or until `stop`.
    ///
    /// # Errors
    /// [`BulkError`]; the slot is then out of step.
    pub(crate) fn command(
        &self,
        command: &Command<'_>,
        slot: u8,
        limit: Limit,
        stop: &Stop,
    ) -> Result<Reply, BulkError> {
        let sequence = self.state().next_sequence();
        self.send(command, (slot, sequence), limit, stop)
    }

    fn send(
        &self,
        command: &Command<'_>,
        (slot, sequence): (u8, u8),
        limit: Limit,
        stop: &Stop,
    ) -> Result<Reply, BulkError> {
        let mut until = limit.begin(Instant::now());
        let bell = self.state().begin(command, slot, sequence);
        loop {
            let mut state = self.state();
            if let Some(bell) = &bell {
                bell.clear();
            }
            state.take_in();
            if let Some(multiplier) = state.extension(sequence) {
                until = limit.extended(multiplier, Instant::now());
            }
            let ended = if stop.is_set() {
                Some(Why::Stopped)
            } else {
                (Instant::now() >= until).then_some(Why::TimedOut)
            };
            if let Some(result) = state.result(sequence, ended) {
                return result;
            }
            let due = state.pipes.due().map(|due| Instant::now() + due);
            // Descriptors of our own, for the wait is without the lock.
            let fds = owned(&state.pipes.descriptors());
            drop(state);
            let first = due.map_or(until, |due| due.min(until));
            wait(fds, bell.as_deref(), first, stop);
        }
    }

    /// Brings one slot back: its command aborted, its late answers dropped, and where no other slot is at work, halts
    /// that were seen cleared.
    ///
    /// # Errors
    /// [`BulkError`] when the reader does not come back; its device may be reset then.
    pub(crate) fn recover(
        &self,
        slot: u8,
        until: Instant,
        stop: &Stop,
    ) -> Result<Reply, BulkError> {
        let mut last = BulkError {
            why: Why::TimedOut,
            sent: Sent::No,
        };
        goes_on(until, stop)?;
        self.abort(slot, until, stop);
        for _ in 0..budget::STATUS_TRIES {
            goes_on(until, stop)?;
            let limit = Limit::each(budget::STATUS, until);
            match self.command(&Command::GetSlotStatus, slot, limit, stop) {
                Ok(reply) => return Ok(reply),
                Err(error) if matches!(error.why, Why::Gone | Why::Stopped) => return Err(error),
                Err(error) => last = error,
            }
            self.put_right(until, stop);
        }
        Err(last)
    }

    /// Puts the pipe right, if there is time for it.
    fn put_right(&self, until: Instant, stop: &Stop) {
        if goes_on(until, stop).is_ok() {
            self.state().put_right();
        }
    }

    /// As [`Bulk::abort`](super::Bulk).
    fn abort(&self, slot: u8, until: Instant, stop: &Stop) {
        let sequence = self.state().next_sequence();
        let setup = abort_request(self.number, slot, sequence);
        let asked = self.interface.control(setup, &mut [], abort_time(until));
        if asked != Err(TransferError::Cancelled) {
            self.put_right(until, stop);
        }
        if let Err(error) = asked {
            tracing::debug!("usb: the reader takes no ABORT request: {error}");
            return;
        }
        if goes_on(until, stop).is_err() {
            return;
        }
        let limit = until.min(Instant::now() + budget::ABORT);
        if let Err(error) = self.send(&Command::Abort, (slot, sequence), limit.into(), stop) {
            tracing::debug!("usb: Abort was not confirmed: {}", error.why);
        }
    }

    /// Resets the whole device; what follows tells whether it came back.
    pub(crate) fn reset_device(&self) {
        self.state().fail(Why::Gone);
        self.state().halts = Halts::default();
        if let Err(error) = self.interface.reset() {
            tracing::warn!("usb: the device cannot be reset: {error}");
        }
    }
}

impl State {
    /// A number no command under way has.
    fn next_sequence(&mut self) -> u8 {
        // Of 256 numbers, at most one a slot is taken.
        for _ in 0..=u8::MAX {
            self.sequence = self.sequence.wrapping_add(1);
            let taken = |one: &UnderWay| one.sequence == self.sequence;
            if !self.under_way.iter().any(taken) {
                break;
            }
        }
        self.sequence
    }

    fn begin(&mut self, command: &Command<'_>, slot: u8, sequence: u8) -> Option<Arc<Signal>> {
        if self.is_disordered {
            self.put_right();
        }
        let message = command.message(slot, sequence);
        let bell = self.bells.pop().or_else(|| Signal::new().ok());
        self.under_way.push(UnderWay {
            sequence,
            exchange: Exchange::new(command, slot, message.len()),
            result: None,
            bell: bell.clone(),
        });
        self.listen();
        self.outs.push_back(sequence);
        self.pipes.submit_out(self.endpoints.bulk_out, message);
        bell
    }

    /// Has a transfer in queued while an answer is awaited.
    fn listen(&mut self) {
        let awaited = self.under_way.iter().any(|one| one.result.is_none());
        if awaited && self.pipes.pending(self.endpoints.bulk_in) == 0 {
            self.pipes.submit_in(self.endpoints.bulk_in, self.read);
        }
    }

    /// Takes what has come, for whomever.
    fn take_in(&mut self) {
        while let Some(completion) = self.pipes.completed() {
            self.halts.note(&completion);
            if completion.endpoint == self.endpoints.bulk_out {
                self.sent(&completion);
            } else if let Err(why) = self.received(completion) {
                self.fail(why);
            }
        }
        self.listen();
    }

    fn sent(&mut self, completion: &Completion) {
        let Some(sequence) = self.outs.pop_front() else {
            return;
        };
        let sender = self
            .under_way
            .iter_mut()
            .find(|one| one.sequence == sequence);
        let taken = match sender {
            Some(sender) => sender.exchange.sent_out(completion),
            None => failed(completion),
        };
        if let Err(why) = taken {
            self.fail(why);
        }
    }

    /// A message, for the command it answers.
    fn received(&mut self, completion: Completion) -> Result<(), Why> {
        failed(&completion)?;
        let [_, _, _, _, _, slot, sequence, ..] = *completion.buffer.expose() else {
            return match completion.transferred {
                0 => self.stray(),
                _ => Err(Why::Protocol("a damaged message")),
            };
        };
        let is_it = |one: &&mut UnderWay| {
            one.sequence == sequence && one.exchange.slot() == slot && one.result.is_none()
        };
        let Some(one) = self.under_way.iter_mut().find(is_it) else {
            return self.stray();
        };
        self.strays = 0;
        one.exchange.collect(completion);
        match one.exchange.judge(sequence) {
            // Its thread may have to wait longer now.
            Ok(None) => one.ring(),
            Ok(Some(reply)) => one.end(Ok(reply)),
            // What else a reader says that breaks the rules is not to be believed either.
            Err(why) => return Err(why),
        }
        Ok(())
    }

    fn stray(&mut self) -> Result<(), Why> {
        self.strays += 1;
        if self.strays > budget::STALE_ANSWERS {
            return Err(Why::Protocol("answers to other commands without end"));
        }
        Ok(())
    }

    /// Nobody gets an answer any more.
    fn fail(&mut self, why: Why) {
        self.is_disordered = true;
        self.strays = 0;
        for one in &mut self.under_way {
            one.end(Err(why));
        }
    }

    /// The multiplier of a request for more time that came for a command.
    fn extension(&mut self, sequence: u8) -> Option<u8> {
        let mut all = self.under_way.iter_mut();
        let one = all.find(|one| one.sequence == sequence)?;
        one.exchange.take_extension()
    }

    /// What came of a command; one that is given up because of `ended` is under way no more.
    fn result(&mut self, sequence: u8, ended: Option<Why>) -> Option<Result<Reply, BulkError>> {
        let at = self
            .under_way
            .iter()
            .position(|one| one.sequence == sequence)?;
        let has_ended = self
            .under_way
            .get(at)
            .is_some_and(|one| one.result.is_some());
        if !has_ended && ended.is_none() {
            return None;
        }
        if !has_ended && self.outs.contains(&sequence) {
            self.take_back_outs();
        }
        let UnderWay {
            exchange,
            result,
            bell,
            ..
        } = self.under_way.swap_remove(at);
        self.bells.extend(bell);
        let why = ended.unwrap_or(Why::TimedOut);
        let sent = exchange.sent();
        let result = result.unwrap_or(Err(why));
        Some(result.map_err(|why| BulkError { why, sent }))
    }

    /// The reader takes no commands: those on their way are taken back.
    fn take_back_outs(&mut self) {
        self.pipes.cancel(self.endpoints.bulk_out);
        let until = Instant::now() + budget::CANCEL;
        while !self.outs.is_empty() && Instant::now() < until {
            self.take_in();
            if !self.outs.is_empty() {
                drain::wait(
                    &*self.pipes,
                    until.saturating_duration_since(Instant::now()),
                );
            }
        }
    }

    /// Where nobody is at work, the pipe is made to work again.
    fn put_right(&mut self) {
        if self.under_way.iter().any(|one| one.result.is_none()) {
            return;
        }
        let all = [self.endpoints.bulk_in, self.endpoints.bulk_out];
        settle(&mut *self.pipes, &all);
        self.outs.clear();
        for endpoint in all {
            self.halts.clear(&mut *self.pipes, endpoint);
        }
        self.is_disordered = false;
    }
}

impl UnderWay {
    fn end(&mut self, result: Result<Reply, Why>) {
        if self.result.is_none() {
            self.result = Some(result);
            self.ring();
        }
    }

    fn ring(&self) {
        if let Some(bell) = &self.bell {
            bell.set();
        }
    }
}

/// Descriptors that live without the pipe; `None` when there are not enough left.
fn owned(fds: &[(BorrowedFd<'_>, PollFlags)]) -> Option<Vec<(ForkClosed<OwnedFd>, PollFlags)>> {
    let own = |(fd, flags): &(BorrowedFd<'_>, PollFlags)| {
        let fd = fd.try_clone_to_owned().ok()?;
        Some((ForkClosed::new(fd), *flags))
    };
    fds.iter().map(own).collect()
}

fn wait(
    fds: Option<Vec<(ForkClosed<OwnedFd>, PollFlags)>>,
    bell: Option<&Signal>,
    until: Instant,
    stop: &Stop,
) {
    let until = match (&fds, bell) {
        (Some(_), Some(_)) => until,
        _ => until.min(Instant::now() + WITHOUT_DESCRIPTOR),
    };
    let fds = fds.unwrap_or_default();
    let bell = bell.map(|bell| (bell.as_fd(), PollFlags::IN));
    let all: Vec<_> = fds
        .iter()
        .map(|(fd, flags)| (fd.as_fd(), *flags))
        .chain(bell)
        .collect();
    if let Err(errno) = ready_of(&all, stop, Some(until)) {
        tracing::warn!("usb: poll failed ({errno})");
        std::thread::sleep(WITHOUT_DESCRIPTOR);
    }
}
