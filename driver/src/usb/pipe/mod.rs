//! The command pipe of a claimed reader, which its slots share.
//!
//! ```text
//! CcidSlot 0           CcidSlot 1         state of the card; recovers its own slot
//!   SlotPipe             SlotPipe         synchronized or not, slot by slot
//!        \                /
//!         CommandPipe                     permits; recovery of another slot before the next command
//!              |
//! BulkPipe | ConcurrentBulkPipe | ControlPipe      one message and its response; ConcurrentBulkPipe: one in each slot
//! ```
//!
//! Recovery of one slot does not affect the cards of other slots. The last resort, a reset of the device, powers all cards down.
//! Resets are counted: a slot whose count is behind is not synchronized.

pub(crate) mod bulk;
pub(crate) mod control;
pub(crate) mod fair_queue;
pub(crate) mod foreign_use;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use claviger_apdu::Sent;

use self::{
    bulk::{BulkError, BulkErrorKind, BulkPipe, ConcurrentBulkPipe, ResponseTimeout, SlotResponse},
    control::ControlPipe,
    fair_queue::{FairQueue, Permit},
    foreign_use::ForeignUse,
};
use crate::{
    ccid::{budget, message::Command, quirks::Quirks},
    wait::{Backoff, StopFlag, wait_readable},
};

/// The state that the readers of one device share.
#[derive(Debug, Default)]
pub(crate) struct DeviceShared {
    /// Number of device resets.
    resets: AtomicU64,
    /// The queue of a device whose readers cannot run commands at the same time.
    command_queue: Option<Arc<FairQueue>>,
    /// The readers omit the zero-length packet after whole packets.
    omits_zlp: Arc<AtomicBool>,
    /// Counts uses by other programs.
    pub(crate) foreign_use: ForeignUse,
}

impl DeviceShared {
    /// The state of a device with these quirks.
    pub(crate) fn with_quirks(quirks: Quirks) -> Self {
        Self {
            resets: AtomicU64::new(0),
            command_queue: quirks.one_at_a_time.then(|| FairQueue::new(1)),
            omits_zlp: Arc::default(),
            foreign_use: ForeignUse::default(),
        }
    }

    /// Returns the flag whether the readers omit the zero-length packet after whole packets. A pipe that detects it sets the
    /// flag.
    pub(crate) fn omits_zlp(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.omits_zlp)
    }

    /// Returns whether a reader may have to wait for another reader of the device.
    pub(crate) const fn is_exclusive(&self) -> bool {
        self.command_queue.is_some()
    }

    /// Number of device resets. Each has reset all cards in the device.
    pub(crate) fn resets(&self) -> u64 {
        self.resets.load(Ordering::SeqCst)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct CommandPipe {
    mode: PipeMode,
    command_queue: Arc<FairQueue>,
    device: Arc<DeviceShared>,
}

/// The number of commands that run at a time.
#[derive(Debug)]
enum PipeMode {
    Single(Mutex<SinglePipe>),
    Concurrent(ConcurrentBulkPipe),
}

#[derive(Debug)]
struct SinglePipe {
    carrier: MessageCarrier,
    /// The slot whose last command got no response, until its recovery.
    unsynchronized_slot: Option<u8>,
}

/// The transfer layer of the messages.
#[derive(Debug)]
pub(crate) enum MessageCarrier {
    Bulk(BulkPipe),
    Control(ControlPipe),
}

impl From<BulkPipe> for MessageCarrier {
    fn from(bulk: BulkPipe) -> Self {
        Self::Bulk(bulk)
    }
}

impl From<ControlPipe> for MessageCarrier {
    fn from(iccd: ControlPipe) -> Self {
        Self::Control(iccd)
    }
}

impl MessageCarrier {
    fn command(
        &mut self,
        command: &Command<'_>,
        slot: u8,
        limit: ResponseTimeout,
        stop: &StopFlag,
    ) -> Result<SlotResponse, BulkError> {
        match self {
            Self::Bulk(bulk) => bulk.command(command, slot, limit, stop),
            Self::Control(iccd) => iccd.command(command, limit, stop),
        }
    }

    const fn last_sequence(&self) -> Option<u8> {
        match self {
            Self::Bulk(bulk) => Some(bulk.last_sequence()),
            Self::Control(_) => None,
        }
    }

    fn recover(
        &mut self,
        slot: u8,
        deadline: Instant,
        stop: &StopFlag,
    ) -> Result<SlotResponse, BulkError> {
        match self {
            Self::Bulk(bulk) => bulk.recover(slot, deadline, stop),
            Self::Control(iccd) => iccd.recover(deadline, stop),
        }
    }

    fn reset_device(&mut self) {
        match self {
            Self::Bulk(bulk) => bulk.reset_device(),
            Self::Control(iccd) => iccd.reset_device(),
        }
    }
}

/// A command's permits.
struct CommandPermit {
    _of_reader: Permit,
    _of_device: Option<Permit>,
}

impl CommandPipe {
    /// The pipe of a reader in the device that shares `common`.
    pub(crate) fn new(carrier: impl Into<MessageCarrier>, common: Arc<DeviceShared>) -> Self {
        Self {
            mode: PipeMode::Single(Mutex::new(SinglePipe {
                carrier: carrier.into(),
                unsynchronized_slot: None,
            })),
            command_queue: FairQueue::new(1),
            device: common,
        }
    }

    /// The pipe of a reader with `busy` busy slots: one command at a time in each.
    pub(crate) fn shared(bulk: ConcurrentBulkPipe, busy: usize, common: Arc<DeviceShared>) -> Self {
        Self {
            mode: PipeMode::Concurrent(bulk),
            command_queue: FairQueue::new(busy),
            device: common,
        }
    }

    /// The sequence number of the last command, where commands have one.
    pub(crate) fn last_sequence(&self) -> Option<u8> {
        match &self.mode {
            PipeMode::Single(wire) => locked(wire).carrier.last_sequence(),
            PipeMode::Concurrent(bulk) => Some(bulk.last_sequence()),
        }
    }

    /// Returns whether a command could be sent at once.
    pub(crate) fn is_free(&self) -> bool {
        let device = self.device.command_queue.as_ref();
        self.command_queue.is_free() && device.is_none_or(|queue| queue.is_free())
    }

    /// Waits for the permits of a command: the reader's, then the device's, always in this order. Grants none after the
    /// deadline or a stop, so that nothing is sent only to be cancelled.
    fn acquire(&self, deadline: Instant, stop: &StopFlag) -> Result<CommandPermit, BulkError> {
        let sent = Sent::No;
        check_limits(deadline, stop)?;
        let take = |queue: &Arc<FairQueue>| {
            queue
                .acquire(deadline, stop)
                .map_err(|kind| BulkError { kind, sent })
        };
        let right = CommandPermit {
            _of_reader: take(&self.command_queue)?,
            _of_device: self.device.command_queue.as_ref().map(take).transpose()?,
        };
        check_limits(deadline, stop)?;
        Ok(right)
    }

    /// Prepares the pipe for a command to `slot`. Sends nothing of that command.
    fn prepare(
        &self,
        _right: &CommandPermit,
        slot: u8,
        deadline: Instant,
        stop: &StopFlag,
    ) -> Result<(), BulkError> {
        if let PipeMode::Single(wire) = &self.mode {
            locked(wire).recover_other_slot(slot, deadline, stop)?;
            // That may have taken all the time there was.
            check_limits(deadline, stop)?;
        }
        Ok(())
    }

    fn command(
        &self,
        _right: &CommandPermit,
        (command, slot): (&Command<'_>, u8),
        limit: ResponseTimeout,
        stop: &StopFlag,
    ) -> Result<SlotResponse, BulkError> {
        match &self.mode {
            PipeMode::Single(wire) => locked(wire).command(command, slot, limit, stop),
            PipeMode::Concurrent(bulk) => bulk.command(command, slot, limit, stop),
        }
    }

    fn recover(
        &self,
        _right: &CommandPermit,
        slot: u8,
        deadline: Instant,
        stop: &StopFlag,
    ) -> Result<SlotResponse, BulkError> {
        match &self.mode {
            PipeMode::Single(wire) => {
                let mut wire = locked(wire);
                let result = wire.carrier.recover(slot, deadline, stop);
                wire.note_result(slot, result)
            }
            PipeMode::Concurrent(bulk) => bulk.recover(slot, deadline, stop),
        }
    }

    /// Resets the device, unless another slot runs a command.
    fn reset_device(&self, _right: &CommandPermit) {
        match &self.mode {
            PipeMode::Single(wire) => {
                self.device.resets.fetch_add(1, Ordering::SeqCst);
                locked(wire).carrier.reset_device();
            }
            PipeMode::Concurrent(bulk) if bulk.is_idle() => {
                self.device.resets.fetch_add(1, Ordering::SeqCst);
                bulk.reset_device();
            }
            PipeMode::Concurrent(_) => {}
        }
    }
}

/// Checks stop and deadline. Nothing is sent after either.
fn check_limits(deadline: Instant, stop: &StopFlag) -> Result<(), BulkError> {
    let kind = if stop.is_set() {
        BulkErrorKind::Stopped
    } else if Instant::now() >= deadline {
        BulkErrorKind::TimedOut
    } else {
        return Ok(());
    };
    let sent = Sent::No;
    Err(BulkError { kind, sent })
}

/// The pipe, for the holder of the permit.
fn locked(wire: &Mutex<SinglePipe>) -> MutexGuard<'_, SinglePipe> {
    wire.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SinglePipe {
    /// Before a command of `slot`: aborts an unanswered command of another slot. That slot recovers its card itself.
    fn recover_other_slot(
        &mut self,
        slot: u8,
        deadline: Instant,
        stop: &StopFlag,
    ) -> Result<(), BulkError> {
        let Some(troubled) = self
            .unsynchronized_slot
            .take_if(|troubled| *troubled != slot)
        else {
            return Ok(());
        };
        let sent = Sent::No;
        match self.carrier.recover(troubled, deadline, stop) {
            Err(BulkError { kind, .. })
                if matches!(kind, BulkErrorKind::Disconnected | BulkErrorKind::Stopped) =>
            {
                self.unsynchronized_slot = Some(troubled);
                Err(BulkError { kind, sent })
            }
            // The command itself shows whether the reader responds.
            _ => Ok(()),
        }
    }

    fn command(
        &mut self,
        command: &Command<'_>,
        slot: u8,
        limit: ResponseTimeout,
        stop: &StopFlag,
    ) -> Result<SlotResponse, BulkError> {
        let result = self.carrier.command(command, slot, limit, stop);
        self.note_result(slot, result)
    }

    fn note_result(
        &mut self,
        slot: u8,
        result: Result<SlotResponse, BulkError>,
    ) -> Result<SlotResponse, BulkError> {
        match &result {
            Ok(_) => self.unsynchronized_slot = None,
            Err(_) => self.unsynchronized_slot = Some(slot),
        }
        result
    }
}

/// One slot's use of a command pipe.
#[derive(Debug)]
pub(crate) struct SlotPipe {
    pipe: Arc<CommandPipe>,
    synchronized: bool,
    /// The device resets that the slot has taken in.
    resets: u64,
}

impl SlotPipe {
    /// A slot's use of `pipe`, synchronized at first.
    pub(crate) fn new(pipe: Arc<CommandPipe>) -> Self {
        let resets = pipe.device.resets();
        Self {
            pipe,
            synchronized: true,
            resets,
        }
    }

    /// The device resets that the slot has taken in.
    pub(crate) const fn resets(&self) -> u64 {
        self.resets
    }

    /// Returns whether the next command can be sent without [`SlotPipe::recover`].
    pub(crate) fn is_synchronized(&self) -> bool {
        self.synchronized && self.resets == self.pipe.device.resets()
    }

    /// Requires [`SlotPipe::recover`] before the next command.
    pub(crate) const fn mark_desynchronized(&mut self) {
        self.synchronized = false;
    }

    /// Sends `command` to `slot` and waits for the response, until `limit` or `stop`. The wait for a permit counts.
    ///
    /// # Errors
    /// [`BulkError`]; the slot is then desynchronized, unless nothing was sent.
    pub(crate) fn command(
        &mut self,
        command: &Command<'_>,
        slot: u8,
        limit: impl Into<ResponseTimeout>,
        stop: &StopFlag,
    ) -> Result<SlotResponse, BulkError> {
        let limit = limit.into();
        let right = self.pipe.acquire(limit.start(Instant::now()), stop)?;
        let deadline = limit.start(Instant::now());
        self.pipe.prepare(&right, slot, deadline, stop)?;
        let result = self.pipe.command(&right, (command, slot), limit, stop);
        self.synchronized = result.is_ok();
        result
    }

    /// Synchronizes the slot: aborts the pending command, clears halts that were seen, drops late responses. The caller recovers
    /// the card. Cards of other slots keep their state. A slow or busy reader is tried until `deadline`.
    ///
    /// # Errors
    /// [`BulkError`] when the reader does not come back; its device may be reset then.
    pub(crate) fn recover(
        &mut self,
        slot: u8,
        deadline: Instant,
        stop: &StopFlag,
    ) -> Result<SlotResponse, BulkError> {
        let mut pauses = Backoff::new(budget::RECOVERY_PAUSES.0, budget::RECOVERY_PAUSES.1);
        loop {
            let result = self.try_recover(slot, deadline, stop);
            let next_try = Instant::now() + pauses.next_delay();
            let needs_time = matches!(&result, Err(error) if error.kind.needs_time());
            if !needs_time || next_try >= deadline || stop.is_set() {
                return result;
            }
            // Other slots may use the pipe meanwhile.
            let _ = wait_readable(&[], stop, Some(next_try));
        }
    }

    fn try_recover(
        &mut self,
        slot: u8,
        deadline: Instant,
        stop: &StopFlag,
    ) -> Result<SlotResponse, BulkError> {
        let right = self.pipe.acquire(deadline, stop)?;
        let resets = self.pipe.device.resets();
        let result = self.pipe.recover(&right, slot, deadline, stop);
        self.synchronized = result.is_ok();
        if self.synchronized {
            self.resets = resets;
        }
        result
    }

    /// Resets the device and all cards in it. Does nothing if another slot has just done so, or runs a command.
    pub(crate) fn reset_device(&mut self) {
        let deadline = Instant::now() + budget::CANCEL;
        let Ok(right) = self.pipe.acquire(deadline, &StopFlag::new()) else {
            return;
        };
        if self.resets == self.pipe.device.resets() {
            self.pipe.reset_device(&right);
        }
    }
}

impl From<BulkPipe> for SlotPipe {
    /// The pipe of a reader that nothing else uses.
    fn from(bulk: BulkPipe) -> Self {
        Self::new(Arc::new(CommandPipe::new(bulk, Arc::default())))
    }
}
