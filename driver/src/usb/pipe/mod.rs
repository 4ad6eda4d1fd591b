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
    bulk::{Bulk, BulkError, Limit, Reply, SharedBulk, Why},
    control::Iccd,
    fair_queue::{Turn, Turns},
    foreign_use::Strangers,
};
use crate::{
    ccid::{budget, message::Command, quirks::Quirks},
    wait::Stop,
};

/// What the readers of one device have in common.
#[derive(Debug, Default)]
pub(crate) struct Common {
    /// How often the device was reset.
    resets: AtomicU64,
    /// Where no two of its readers may be at a command at the same time.
    turns: Option<Arc<Turns>>,
    /// Its readers were seen to leave out the empty packet after whole ones.
    no_empty_packet: Arc<AtomicBool>,
    /// Who else uses the device.
    pub(crate) strangers: Strangers,
}

impl Common {
    /// Of a device with these quirks.
    pub(crate) fn of(quirks: Quirks) -> Self {
        Self {
            resets: AtomicU64::new(0),
            turns: quirks.one_at_a_time.then(|| Turns::new(1)),
            no_empty_packet: Arc::default(),
            strangers: Strangers::default(),
        }
    }

    /// Whether its readers leave out the empty packet after whole ones, for whoever finds out to say so.
    pub(crate) fn no_empty_packet(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.no_empty_packet)
    }

    /// Whether one of its readers may have to wait for another.
    pub(crate) const fn takes_turns(&self) -> bool {
        self.turns.is_some()
    }

    /// How often the device was reset, and each of its cards with it.
    pub(crate) fn resets(&self) -> u64 {
        self.resets.load(Ordering::SeqCst)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct CommandPipe {
    wire: Wires,
    turns: Arc<Turns>,
    common: Arc<Common>,
}

/// For how many commands at a time.
#[derive(Debug)]
enum Wires {
    One(Mutex<Wire>),
    Several(SharedBulk),
}

#[derive(Debug)]
struct Wire {
    carrier: Carrier,
    /// The slot whose command was not answered last, if the pipe has not been put right since.
    troubled: Option<u8>,
}

/// What carries messages.
#[derive(Debug)]
pub(crate) enum Carrier {
    Bulk(Bulk),
    Iccd(Iccd),
}

impl From<Bulk> for Carrier {
    fn from(bulk: Bulk) -> Self {
        Self::Bulk(bulk)
    }
}

impl From<Iccd> for Carrier {
    fn from(iccd: Iccd) -> Self {
        Self::Iccd(iccd)
    }
}

impl Carrier {
    fn command(
        &mut self,
        command: &Command<'_>,
        slot: u8,
        limit: Limit,
        stop: &Stop,
    ) -> Result<Reply, BulkError> {
        match self {
            Self::Bulk(bulk) => bulk.command(command, slot, limit, stop),
            Self::Iccd(iccd) => iccd.command(command, limit, stop),
        }
    }

    const fn sequence(&self) -> Option<u8> {
        match self {
            Self::Bulk(bulk) => Some(bulk.sequence()),
            Self::Iccd(_) => None,
        }
    }

    fn recover(&mut self, slot: u8, until: Instant, stop: &Stop) -> Result<Reply, BulkError> {
        match self {
            Self::Bulk(bulk) => bulk.recover(slot, until, stop),
            Self::Iccd(iccd) => iccd.recover(until, stop),
        }
    }

    fn reset_device(&mut self) {
        match self {
            Self::Bulk(bulk) => bulk.reset_device(),
            Self::Iccd(iccd) => iccd.reset_device(),
        }
    }
}

/// A command's right to the pipe.
struct Right {
    _of_reader: Turn,
    _of_device: Option<Turn>,
}

impl CommandPipe {
    /// The pipe of a reader in the device that has `common`.
    pub(crate) fn new(carrier: impl Into<Carrier>, common: Arc<Common>) -> Self {
        Self {
            wire: Wires::One(Mutex::new(Wire {
                carrier: carrier.into(),
                troubled: None,
            })),
            turns: Turns::new(1),
            common,
        }
    }

    /// The pipe of a reader that can be at work in `busy` slots at a time, one command in each.
    pub(crate) fn shared(bulk: SharedBulk, busy: usize, common: Arc<Common>) -> Self {
        Self {
            wire: Wires::Several(bulk),
            turns: Turns::new(busy),
            common,
        }
    }

    /// The sequence number of the last command, where commands have one.
    pub(crate) fn sequence(&self) -> Option<u8> {
        match &self.wire {
            Wires::One(wire) => locked(wire).carrier.sequence(),
            Wires::Several(bulk) => Some(bulk.sequence()),
        }
    }

    /// Whether a command could be sent at once.
    pub(crate) fn is_free(&self) -> bool {
        let device = self.common.turns.as_ref();
        self.turns.is_free() && device.is_none_or(|turns| turns.is_free())
    }

    /// Waits for the turn of a command; the order is everywhere the same, the reader's and then the device's. A command that
    /// is to end before it has begun gets none: nothing is sent only to be taken back.
    fn right(&self, until: Instant, stop: &Stop) -> Result<Right, BulkError> {
        let sent = Sent::No;
        may_begin(until, stop)?;
        let take = |turns: &Arc<Turns>| {
            turns
                .take(until, stop)
                .map_err(|why| BulkError { why, sent })
        };
        let right = Right {
            _of_reader: take(&self.turns)?,
            _of_device: self.common.turns.as_ref().map(take).transpose()?,
        };
        may_begin(until, stop)?;
        Ok(right)
    }

    /// Makes the pipe fit for a command to `slot`; nothing of that command is sent.
    fn prepare(
        &self,
        _right: &Right,
        slot: u8,
        until: Instant,
        stop: &Stop,
    ) -> Result<(), BulkError> {
        if let Wires::One(wire) = &self.wire {
            locked(wire).put_right(slot, until, stop)?;
            // That may have taken all the time there was.
            may_begin(until, stop)?;
        }
        Ok(())
    }

    fn command(
        &self,
        _right: &Right,
        (command, slot): (&Command<'_>, u8),
        limit: Limit,
        stop: &Stop,
    ) -> Result<Reply, BulkError> {
        match &self.wire {
            Wires::One(wire) => locked(wire).command(command, slot, limit, stop),
            Wires::Several(bulk) => bulk.command(command, slot, limit, stop),
        }
    }

    fn recover(
        &self,
        _right: &Right,
        slot: u8,
        until: Instant,
        stop: &Stop,
    ) -> Result<Reply, BulkError> {
        match &self.wire {
            Wires::One(wire) => {
                let mut wire = locked(wire);
                let result = wire.carrier.recover(slot, until, stop);
                wire.note(slot, result)
            }
            Wires::Several(bulk) => bulk.recover(slot, until, stop),
        }
    }

    /// Resets the device, unless another slot is at work.
    fn reset_device(&self, _right: &Right) {
        match &self.wire {
            Wires::One(wire) => {
                self.common.resets.fetch_add(1, Ordering::SeqCst);
                locked(wire).carrier.reset_device();
            }
            Wires::Several(bulk) if bulk.is_idle() => {
                self.common.resets.fetch_add(1, Ordering::SeqCst);
                bulk.reset_device();
            }
            Wires::Several(_) => {}
        }
    }
}

/// Whether a command may still begin: nothing is sent after its deadline, or after a stop.
fn may_begin(until: Instant, stop: &Stop) -> Result<(), BulkError> {
    let why = if stop.is_set() {
        Why::Stopped
    } else if Instant::now() >= until {
        Why::TimedOut
    } else {
        return Ok(());
    };
    let sent = Sent::No;
    Err(BulkError { why, sent })
}

/// The wire, for whoever has the right to it.
fn locked(wire: &Mutex<Wire>) -> MutexGuard<'_, Wire> {
    wire.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wire {
    /// Before a command of `slot`: where that of another slot was not answered, it is aborted there and the pipe made to
    /// work again. What the other slot's card is at is for that slot to find out.
    fn put_right(&mut self, slot: u8, until: Instant, stop: &Stop) -> Result<(), BulkError> {
        let Some(troubled) = self.troubled.take_if(|troubled| *troubled != slot) else {
            return Ok(());
        };
        let sent = Sent::No;
        match self.carrier.recover(troubled, until, stop) {
            Err(BulkError { why, .. }) if matches!(why, Why::Gone | Why::Stopped) => {
                self.troubled = Some(troubled);
                Err(BulkError { why, sent })
            }
            // Whether the reader listens is seen by the command itself.
            _ => Ok(()),
        }
    }

    fn command(
        &mut self,
        command: &Command<'_>,
        slot: u8,
        limit: Limit,
        stop: &Stop,
    ) -> Result<Reply, BulkError> {
        let result = self.carrier.command(command, slot, limit, stop);
        self.note(slot, result)
    }

    fn note(&mut self, slot: u8, result: Result<Reply, BulkError>) -> Result<Reply, BulkError> {
        match &result {
            Ok(_) => self.troubled = None,
            Err(_) => self.troubled = Some(slot),
        }
        result
    }
}

/// One slot's use of a command pipe.
#[derive(Debug)]
pub(crate) struct SlotPipe {
    pipe: Arc<CommandPipe>,
    in_step: bool,
    /// As many resets of the device as the slot has taken in.
    resets: u64,
}

impl SlotPipe {
    /// A slot's use of `pipe`, in step until something happens.
    pub(crate) fn new(pipe: Arc<CommandPipe>) -> Self {
        let resets = pipe.common.resets();
        Self {
            pipe,
            in_step: true,
            resets,
        }
    }

    /// How many resets of the device the slot has taken in.
    pub(crate) const fn resets(&self) -> u64 {
        self.resets
    }

    /// Whether the next command can be sent without [`SlotPipe::recover`].
    pub(crate) fn is_in_step(&self) -> bool {
        self.in_step && self.resets == self.pipe.common.resets()
    }

    /// Distrusts the slot until [`SlotPipe::recover`].
    pub(crate) const fn fall_out_of_step(&mut self) {
        self.in_step = false;
    }

    /// Sends `command` to `slot` and waits for its answer, as long as `limit` says, or until `stop`; as long for its turn.
    ///
    /// # Errors
    /// [`BulkError`]; the slot is then out of step, unless the turn never came or the time was up before.
    pub(crate) fn command(
        &mut self,
        command: &Command<'_>,
        slot: u8,
        limit: impl Into<Limit>,
        stop: &Stop,
    ) -> Result<Reply, BulkError> {
        let limit = limit.into();
        let right = self.pipe.right(limit.begin(Instant::now()), stop)?;
        let until = limit.begin(Instant::now());
        self.pipe.prepare(&right, slot, until, stop)?;
        let result = self.pipe.command(&right, (command, slot), limit, stop);
        self.in_step = result.is_ok();
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
    ) -> Result<Reply, BulkError> {
        let right = self.pipe.right(until, stop)?;
        let resets = self.pipe.common.resets();
        let result = self.pipe.recover(&right, slot, until, stop);
        self.in_step = result.is_ok();
        if self.in_step {
            self.resets = resets;
        }
        result
    }

    /// Resets the whole device, and all cards in it; what follows tells whether it came back. Left out when somebody
    /// else has just done it, or another slot's command is under way after all.
    pub(crate) fn reset_device(&mut self) {
        let until = Instant::now() + budget::CANCEL;
        let Ok(right) = self.pipe.right(until, &Stop::new()) else {
            return;
        };
        if self.resets == self.pipe.common.resets() {
            self.pipe.reset_device(&right);
        }
    }
}

impl From<Bulk> for SlotPipe {
    /// The pipe of a reader nobody else uses.
    fn from(bulk: Bulk) -> Self {
        Self::new(Arc::new(CommandPipe::new(bulk, Arc::default())))
    }
}
