//! The command pipe of a claimed reader, which its slots share.
//!
//! ```text
//! Device of slot 0     Device of slot 1       what is known of a card; sends, or brings its own slot back
//!   SlotPipe             SlotPipe             in step or not, slot by slot
//!        \                /
//!         CommandPipe                         whose turn it is; what must be put right before anybody's next command
//!              |
//!    Bulk | SharedBulk | Iccd                  one message and its answer; SharedBulk: one in each slot
//! ```
//!
//! A slot that is out of step is brought back without touching the cards of the others. The last resort, a reset of the
//! device, takes all cards' power: it is counted, and no slot whose count is behind is in step.

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
    wait::Stop,
};

/// What the readers of one device have in common.
#[derive(Debug, Default)]
pub(crate) struct DeviceShared {
    /// How often the device was reset.
    resets: AtomicU64,
    /// Where no two of its readers may be at a command at the same time.
    command_queue: Option<Arc<FairQueue>>,
    /// Its readers were seen to leave out the empty packet after whole ones.
    omits_zlp: Arc<AtomicBool>,
    /// Who else uses the device.
    pub(crate) foreign_use: ForeignUse,
}

impl DeviceShared {
    /// Of a device with these quirks.
    pub(crate) fn with_quirks(quirks: Quirks) -> Self {
        Self {
            resets: AtomicU64::new(0),
            command_queue: quirks.one_at_a_time.then(|| FairQueue::new(1)),
            omits_zlp: Arc::default(),
            foreign_use: ForeignUse::default(),
        }
    }

    /// Whether its readers leave out the empty packet after whole ones, for whoever finds out to say so.
    pub(crate) fn omits_zlp(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.omits_zlp)
    }

    /// Whether one of its readers may have to wait for another.
    pub(crate) const fn is_exclusive(&self) -> bool {
        self.command_queue.is_some()
    }

    /// How often the device was reset, and each of its cards with it.
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

/// For how many commands at a time.
#[derive(Debug)]
enum PipeMode {
    Single(Mutex<SinglePipe>),
    Concurrent(ConcurrentBulkPipe),
}

#[derive(Debug)]
struct SinglePipe {
    carrier: MessageCarrier,
    /// The slot whose command was not answered last, if the pipe has not been put right since.
    unsynchronized_slot: Option<u8>,
}

/// What carries messages.
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
        stop: &Stop,
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
        until: Instant,
        stop: &Stop,
    ) -> Result<SlotResponse, BulkError> {
        match self {
            Self::Bulk(bulk) => bulk.recover(slot, until, stop),
            Self::Control(iccd) => iccd.recover(until, stop),
        }
    }

    fn reset_device(&mut self) {
        match self {
            Self::Bulk(bulk) => bulk.reset_device(),
            Self::Control(iccd) => iccd.reset_device(),
        }
    }
}

/// A command's right to the pipe.
struct CommandPermit {
    _of_reader: Permit,
    _of_device: Option<Permit>,
}

impl CommandPipe {
    /// The pipe of a reader in the device that has `common`.
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

    /// The pipe of a reader that can be at work in `busy` slots at a time, one command in each.
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

    /// Whether a command could be sent at once.
    pub(crate) fn is_free(&self) -> bool {
        let device = self.device.command_queue.as_ref();
        self.command_queue.is_free() && device.is_none_or(|queue| queue.is_free())
    }

    /// Waits for the turn of a command; the order is everywhere the same, the reader's and then the device's. A command that
    /// is to end before it has begun gets none: nothing is sent only to be taken back.
    fn acquire(&self, until: Instant, stop: &Stop) -> Result<CommandPermit, BulkError> {
        let sent = Sent::No;
        check_limits(until, stop)?;
        let take = |queue: &Arc<FairQueue>| {
            queue
                .acquire(until, stop)
                .map_err(|kind| BulkError { kind, sent })
        };
        let right = CommandPermit {
            _of_reader: take(&self.command_queue)?,
            _of_device: self.device.command_queue.as_ref().map(take).transpose()?,
        };
        check_limits(until, stop)?;
        Ok(right)
    }

    /// Makes the pipe fit for a command to `slot`; nothing of that command is sent.
    fn prepare(
        &self,
        _right: &CommandPermit,
        slot: u8,
        until: Instant,
        stop: &Stop,
    ) -> Result<(), BulkError> {
        if let PipeMode::Single(wire) = &self.mode {
            locked(wire).recover_other_slot(slot, until, stop)?;
            // That may have taken all the time there was.
            check_limits(until, stop)?;
        }
        Ok(())
    }

    fn command(
        &self,
        _right: &CommandPermit,
        (command, slot): (&Command<'_>, u8),
        limit: ResponseTimeout,
        stop: &Stop,
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
        until: Instant,
        stop: &Stop,
    ) -> Result<SlotResponse, BulkError> {
        match &self.mode {
            PipeMode::Single(wire) => {
                let mut wire = locked(wire);
                let result = wire.carrier.recover(slot, until, stop);
                wire.note_result(slot, result)
            }
            PipeMode::Concurrent(bulk) => bulk.recover(slot, until, stop),
        }
    }

    /// Resets the device, unless another slot is at work.
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

/// Whether a command may still begin: nothing is sent after its deadline, or after a stop.
fn check_limits(until: Instant, stop: &Stop) -> Result<(), BulkError> {
    let kind = if stop.is_set() {
        BulkErrorKind::Stopped
    } else if Instant::now() >= until {
        BulkErrorKind::TimedOut
    } else {
        return Ok(());
    };
    let sent = Sent::No;
    Err(BulkError { kind, sent })
}

/// The wire, for whoever has the right to it.
fn locked(wire: &Mutex<SinglePipe>) -> MutexGuard<'_, SinglePipe> {
    wire.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SinglePipe {
    /// Before a command of `slot`: where that of another slot was not answered, it is aborted there and the pipe made to
    /// work again. What the other slot's card is at is for that slot to find out.
    fn recover_other_slot(
        &mut self,
        slot: u8,
        until: Instant,
        stop: &Stop,
    ) -> Result<(), BulkError> {
        let Some(troubled) = self
            .unsynchronized_slot
            .take_if(|troubled| *troubled != slot)
        else {
            return Ok(());
        };
        let sent = Sent::No;
        match self.carrier.recover(troubled, until, stop) {
            Err(BulkError { kind, .. })
                if matches!(kind, BulkErrorKind::Disconnected | BulkErrorKind::Stopped) =>
            {
                self.unsynchronized_slot = Some(troubled);
                Err(BulkError { kind, sent })
            }
            // Whether the reader listens is seen by the command itself.
            _ => Ok(()),
        }
    }

    fn command(
        &mut self,
        command: &Command<'_>,
        slot: u8,
        limit: ResponseTimeout,
        stop: &Stop,
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
    /// As many resets of the device as the slot has taken in.
    resets: u64,
}

impl SlotPipe {
    /// A slot's use of `pipe`, in step until something happens.
    pub(crate) fn new(pipe: Arc<CommandPipe>) -> Self {
        let resets = pipe.device.resets();
        Self {
            pipe,
            synchronized: true,
            resets,
        }
    }

    /// How many resets of the device the slot has taken in.
    pub(crate) const fn resets(&self) -> u64 {
        self.resets
    }

    /// Whether the next command can be sent without [`SlotPipe::recover`].
    pub(crate) fn is_synchronized(&self) -> bool {
        self.synchronized && self.resets == self.pipe.device.resets()
    }

    /// Distrusts the slot until [`SlotPipe::recover`].
    pub(crate) const fn mark_desynchronized(&mut self) {
        self.synchronized = false;
    }

    /// Sends `command` to `slot` and waits for its answer, as long as `limit` says, or until `stop`; as long for its turn.
    ///
    /// # Errors
    /// [`BulkError`]; the slot is then out of step, unless the turn never came or the time was up before.
    pub(crate) fn command(
        &mut self,
        command: &Command<'_>,
        slot: u8,
        limit: impl Into<ResponseTimeout>,
        stop: &Stop,
    ) -> Result<SlotResponse, BulkError> {
        let limit = limit.into();
        let right = self.pipe.acquire(limit.start(Instant::now()), stop)?;
        let until = limit.start(Instant::now());
        self.pipe.prepare(&right, slot, until, stop)?;
        let result = self.pipe.command(&right, (command, slot), limit, stop);
        self.synchronized = result.is_ok();
        result
    }

    /// Brings the slot back into step: halts cleared, the command under way aborted, its late answers dropped.
    /// What its card makes of it is the caller's to find out; the cards of other slots are left alone.
    ///
    /// # Errors
    /// [`BulkError`] when the reader does not come back; its device may be reset then.
    pub(crate) fn recover(
        &mut self,
        slot: u8,
        until: Instant,
        stop: &Stop,
    ) -> Result<SlotResponse, BulkError> {
        let right = self.pipe.acquire(until, stop)?;
        let resets = self.pipe.device.resets();
        let result = self.pipe.recover(&right, slot, until, stop);
        self.synchronized = result.is_ok();
        if self.synchronized {
            self.resets = resets;
        }
        result
    }

    /// Resets the whole device, and all cards in it; what follows tells whether it came back. Left out when somebody
    /// else has just done it, or another slot's command is under way after all.
    pub(crate) fn reset_device(&mut self) {
        let until = Instant::now() + budget::CANCEL;
        let Ok(right) = self.pipe.acquire(until, &Stop::new()) else {
            return;
        };
        if self.resets == self.pipe.device.resets() {
            self.pipe.reset_device(&right);
        }
    }
}

impl From<BulkPipe> for SlotPipe {
    /// The pipe of a reader nobody else uses.
    fn from(bulk: BulkPipe) -> Self {
        Self::new(Arc::new(CommandPipe::new(bulk, Arc::default())))
    }
}
