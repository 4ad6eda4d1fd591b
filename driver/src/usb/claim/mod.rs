//! Having a reader to oneself: the lock among our own processes, then the claim against all others.

pub(crate) mod lock;
pub(crate) mod pipe;
pub mod record;
mod release_requests;
pub(crate) mod shared;

use std::{
    fmt,
    hash::{BuildHasher as _, RandomState},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use claviger_apdu::{Atr, TransportError, TransportErrorKind};

use self::{
    lock::{Lock, Locks},
    record::Record,
};
use super::{
    discovery::{reader_info::Site, sysfs::Bus},
    host::{
        event_fd::Signal,
        open::{self, Opened, Stack},
        owner,
        transfer::{OpenError, UsbInterface},
    },
    pipe::{CommandPipe, foreign_use::Stay},
};
use crate::{
    fork_closed::ForkClosed,
    wait::{Pauses, Stop, readable},
};

/// How long somebody with another driver is given to let go of a reader.
const FOREIGN: Duration = Duration::from_secs(2);
/// Pauses between two tries for a reader that somebody has: the first, and the longest.
const TRIES: (Duration, Duration) = (Duration::from_millis(2), LONGEST);
pub(crate) const LONGEST: Duration = Duration::from_millis(50);
/// Pauses between two knocks, whose holder may be another than before.
const KNOCKS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));

/// How far from those of a user that has not let go, and whose last is not known, the next one's sequence numbers begin: a late answer
/// to a command of that one has no number that is used soon.
const FAR: u8 = 128;

/// Opens devices: by one of the stacks, or in a test.
pub(crate) trait Opener: fmt::Debug + Send + Sync {
    /// Claims the reader's interface; waits for nobody.
    fn open(&self, site: &Site) -> Result<Opened, OpenError>;

    /// When the last transfer to the device behind a node was begun, by whomever, as far as that can be told.
    fn last_transfer(&self, node: &Path) -> Option<u64>;

    /// Who has an interface that was busy, if that can be told; takes its time.
    fn owner(&self, _site: &Site) -> Option<String> {
        None
    }
}

impl Opener for Stack {
    fn open(&self, site: &Site) -> Result<Opened, OpenError> {
        open::attempt(&site.node, site.interface.number, *self)
    }

    fn last_transfer(&self, node: &Path) -> Option<u64> {
        open::last_transfer(node)
    }

    fn owner(&self, site: &Site) -> Option<String> {
        Some(owner::owned(&site.node, site.interface.number))
    }
}

/// What all readers of a backend share.
#[derive(Debug)]
pub(crate) struct Means {
    pub(crate) bus: Bus,
    pub(crate) opener: Box<dyn Opener>,
    pub(crate) locks: Locks,
    /// Somebody listens all the time for other processes that want a reader; else none is kept between two uses.
    pub(crate) is_followed: bool,
    /// Tells the watch that a reader was claimed, and that there is somebody to knock.
    pub(crate) stir: Option<Arc<Signal>>,
}

impl Means {
    /// Wakes the watch, if there is one.
    pub(crate) fn stir(&self) {
        if let Some(stir) = &self.stir {
            stir.set();
        }
    }
}

/// A claimed reader. The claim ends with the last owner of this and of the interface's pipes, and the lock after it.
#[derive(Debug)]
pub(crate) struct Grip {
    // Before the claim they need.
    pipe: Mutex<Option<Arc<CommandPipe>>>,
    interface: Arc<dyn UsbInterface>,
    lock: Mutex<Lock>,
    /// The answers to reset of the cards that are powered, for the next user.
    atrs: Mutex<Vec<Option<Atr>>>,
    /// Somebody knocked.
    wanted: AtomicBool,
    /// Counts the times that somebody began or ceased to listen to what the reader tells of its cards: odd in between.
    listening: AtomicU64,
    /// A slot was left in the middle of something.
    is_disordered: AtomicBool,
    /// What the user before left, if it was of this very plugging in.
    left: Option<Record>,
    life: String,
    uses: u64,
    /// As many resets of the device as there had been.
    resets: u64,
    /// Somebody else may have used the device since the user before let go.
    is_touched: bool,
    means: Arc<Means>,
    node: PathBuf,
    stay: Stay,
    /// The number after which this claim's begin.
    sequence: u8,
    // After all of the claim.
    last_sequence: LastSequence,
}

/// The sequence number of the last command of a reader's claims in this process. A clone is the same; each claim has one to its end.
#[derive(Clone, Debug, Default)]
pub(crate) struct LastSequence(Arc<Mutex<Option<u8>>>);

impl LastSequence {
    fn number(&self) -> MutexGuard<'_, Option<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a claim lasts, or has not ended altogether.
    pub(crate) fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// The number after which the next claim's begin, if the last user of the reader has `left` a record.
    fn next(&self, left: Option<&Record>) -> u8 {
        if let Some(left) = left {
            let far = if left.is_left { 0 } else { FAR };
            return left.sequence.wrapping_add(far);
        }
        let number = *self.number();
        number.unwrap_or_else(|| {
            // Another in each process.
            let [first, ..] = RandomState::new().hash_one(0).to_ne_bytes();
            first
        })
    }
}

impl Grip {
    /// One try for the reader.
    pub(crate) fn take(
        site: &Site,
        means: &Arc<Means>,
        last_sequence: &LastSequence,
        knocks: bool,
    ) -> Result<Self, Taken> {
        let mut lock = means.locks.take(&site.place, knocks).ok_or(Taken::Ours)?;
        let strangers = &site.common.strangers;
        let stay = strangers.enter();
        let opened = means.opener.open(site).map_err(|error| {
            if matches!(error, OpenError::Busy(_)) {
                strangers.notice();
            }
            Taken::Open(error)
        })?;
        // The address, and so the node, may belong to another device by now.
        match means.bus.still_has(&site.port, &site.life) {
            Ok(true) => {}
            Ok(false) => return Err(Taken::Open(OpenError::Gone)),
            Err(error) => return Err(Taken::Open(OpenError::Failed(error.to_string()))),
        }
        stay.begin(opened.last_transfer);
        let left = lock.record().filter(|record| record.life == site.life);
        let is_touched = left.as_ref().is_none_or(|left| {
            left.last_transfer.is_none() || left.last_transfer != opened.last_transfer
        });
        let atrs = left.as_ref().filter(|left| left.is_left && !is_touched);
        let atrs = atrs.map(|left| left.atrs.clone());
        let grip = Self {
            pipe: Mutex::default(),
            interface: opened.interface,
            uses: left.as_ref().map_or(0, |left| left.uses).wrapping_add(1),
            life: site.life.clone(),
            lock: Mutex::new(lock),
            atrs: Mutex::new(atrs.unwrap_or_default()),
            sequence: last_sequence.next(left.as_ref()),
            last_sequence: last_sequence.clone(),
            wanted: AtomicBool::new(false),
            listening: AtomicU64::new(0),
            is_disordered: AtomicBool::new(false),
            left,
            resets: site.common.resets(),
            is_touched,
            means: Arc::clone(means),
            node: site.node.clone(),
            stay,
        };
        grip.lock().write(&grip.record());
        Ok(grip)
    }

    /// The reader's command pipe, one for all of its slots.
    ///
    /// # Errors
    /// NoReader when it has left, Protocol when its endpoints cannot be had.
    pub(crate) fn pipe(&self, site: &Site) -> Result<Arc<CommandPipe>, TransportError> {
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipe) = &*pipe {
            return Ok(Arc::clone(pipe));
        }
        let interface = Arc::clone(&self.interface);
        let opened = pipe::pipe(interface, &site.interface, &site.common, self.sequence)?;
        Ok(Arc::clone(pipe.insert(opened)))
    }

    /// The sequence number of the last command.
    fn last_sequence(&self) -> u8 {
        let pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        let last = pipe.as_ref().and_then(|pipe| pipe.sequence());
        last.unwrap_or(self.sequence)
    }

    /// Whether a command could be sent at once.
    pub(crate) fn is_free(&self) -> bool {
        let pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        pipe.as_ref().is_none_or(|pipe| pipe.is_free())
    }

    fn atrs(&self) -> MutexGuard<'_, Vec<Option<Atr>>> {
        self.atrs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Lock> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) const fn interface(&self) -> &Arc<dyn UsbInterface> {
        &self.interface
    }

    /// The number of this use of the reader.
    pub(crate) const fn uses(&self) -> u64 {
        self.uses
    }

    /// What the user before left.
    pub(crate) const fn left(&self) -> Option<&Record> {
        self.left.as_ref()
    }

    /// The user before did not let go in good order: reader and cards may be in the middle of anything.
    pub(crate) fn was_abandoned(&self) -> bool {
        self.left.as_ref().is_some_and(|left| !left.is_left)
    }

    /// The card the user before left powered in the slot, unless the device was reset or used by somebody else since, or that
    /// user never let go.
    pub(crate) fn left_in(&self, site: &Site) -> Option<&Atr> {
        let left = self
            .left
            .as_ref()
            .filter(|left| left.is_left && !self.is_touched)?;
        let atr = left.atr(site.slot);
        atr.filter(|_| self.resets == site.common.resets())
    }

    /// Tells the next user which card is powered in `slot`.
    pub(crate) fn leave(&self, slot: u8, atr: Option<Atr>) {
        self.take_atr(usize::from(slot), atr);
        self.lock().write(&self.record());
    }

    fn take_atr(&self, slot: usize, atr: Option<Atr>) {
        let mut atrs = self.atrs();
        if atrs.len() <= slot {
            atrs.resize(slot + 1, None);
        }
        if let Some(left) = atrs.get_mut(slot) {
            *left = atr;
        }
    }

    /// A slot is left in the middle of something: whoever claims the reader next, in whichever process, aborts that and
    /// resets the cards.
    pub(crate) fn leave_in_disorder(&self) {
        self.is_disordered.store(true, Ordering::SeqCst);
    }

    /// What is known of the reader if this user is killed.
    fn record(&self) -> Record {
        Record {
            life: self.life.clone(),
            uses: self.uses,
            atrs: self.atrs().clone(),
            sequence: self.sequence,
            last_transfer: None,
            is_left: false,
        }
    }

    /// Whether another process has asked for the reader.
    pub(crate) fn is_wanted(&self) -> bool {
        let heard = self.lock().heard();
        if heard.here {
            self.wanted.store(true, Ordering::SeqCst);
        }
        if heard.elsewhere {
            // The watch is not woken by what was taken from under it.
            self.means.stir();
        }
        self.wanted.load(Ordering::SeqCst)
    }

    /// Says whether what the reader tells of its cards is listened to. One thread does, the watch.
    pub(crate) fn listen(&self, listens: bool) {
        if self.listening().is_some() != listens {
            self.listening.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A number of the time for which the reader has been listened to without a gap; `None` if it is not.
    pub(crate) fn listening(&self) -> Option<u64> {
        let changes = self.listening.load(Ordering::SeqCst);
        (changes % 2 == 1).then_some(changes)
    }

    /// Has it let go of at the end of the conversation that is under way.
    pub(crate) fn recall(&self) {
        self.wanted.store(true, Ordering::SeqCst);
    }

    /// Becomes readable at a knock.
    pub(crate) fn descriptor(&self) -> Option<Arc<ForkClosed<OwnedFd>>> {
        self.lock().descriptor()
    }
}

impl Drop for Grip {
    fn drop(&mut self) {
        let sequence = self.last_sequence();
        *self.last_sequence.number() = Some(sequence);
        let last_transfer = self
            .stay
            .end(|| self.means.opener.last_transfer(&self.node));
        let record = Record {
            sequence,
            last_transfer,
            is_left: !self.is_disordered.load(Ordering::SeqCst),
            ..self.record()
        };
        self.lock().write(&record);
    }
}

/// Why a reader could not be had.
pub(crate) enum Taken {
    /// Another process with this driver has it.
    Ours,
    /// Another slot of it is just being opened in this process.
    Opening,
    Open(OpenError),
}

/// How much a reader is wanted.
#[derive(Clone, Copy)]
pub(crate) struct Wish<'a> {
    /// Until when it is waited for.
    pub(crate) until: Instant,
    /// Whoever has it is asked to let go.
    pub(crate) knocks: bool,
    pub(crate) stop: &'a Arc<Stop>,
}

/// Tries `take` until it succeeds, as long as `wish` says: waits for our own processes to the end, for others a moment.
/// `take` is told whether to knock, which is not each time: each wakes the holder. It is tried less and less often, and after a knock
/// of which the holder will hear at once as at first.
///
/// # Errors
/// Busy with the likely owner, Denied, NoReader, Cancelled, TimedOut while another slot is opened: [`TransportError`],
/// never with anything sent.
pub(crate) fn wait_for(
    site: &Site,
    opener: &dyn Opener,
    wish: Wish<'_>,
    mut take: impl FnMut(bool) -> Result<Arc<Grip>, Taken>,
) -> Result<Arc<Grip>, TransportError> {
    let patience = Instant::now() + FOREIGN;
    let mut tries = Pauses::new(TRIES.0, TRIES.1);
    let mut pauses = Pauses::new(KNOCKS.0, KNOCKS.1);
    let mut knock = Instant::now();
    loop {
        let now = Instant::now();
        let knocks = wish.knocks && now >= knock;
        let taken = match take(knocks) {
            Ok(grip) => return Ok(grip),
            Err(taken) => taken,
        };
        if knocks {
            knock = now + pauses.next_pause();
            if matches!(taken, Taken::Ours) {
                tries.start_over();
            }
        }
        let until = match &taken {
            Taken::Ours | Taken::Opening => wish.until,
            Taken::Open(OpenError::Busy(_)) => wish.until.min(patience),
            Taken::Open(_) => now,
        };
        let now = Instant::now();
        if now >= until {
            return Err(refused(site, opener, taken));
        }
        let _ = readable(&[], wish.stop, Some(until.min(now + tries.next_pause())));
        if wish.stop.is_set() {
            let what = format!("reader {}: the call was ended", site.interface.name);
            return Err(TransportError::before_card(
                TransportErrorKind::Cancelled,
                what,
            ));
        }
    }
}

fn refused(site: &Site, opener: &dyn Opener, taken: Taken) -> TransportError {
    match taken {
        Taken::Ours => {
            let what = "another program uses it through this module and did not let go in time";
            about(site, OpenError::Busy(what.to_owned()))
        }
        Taken::Opening => {
            let name = &site.interface.name;
            let what = format!("reader {name}: it is still being opened for another of its slots");
            TransportError::before_card(TransportErrorKind::TimedOut, what)
        }
        Taken::Open(OpenError::Busy(what)) => {
            let what = opener.owner(site).unwrap_or(what);
            about(site, OpenError::Busy(what))
        }
        Taken::Open(error) => about(site, error),
    }
}

fn about(site: &Site, error: OpenError) -> TransportError {
    let error = TransportError::from(error);
    TransportError {
        what: format!("reader {}: {}", site.interface.name, error.what),
        ..error
    }
}
