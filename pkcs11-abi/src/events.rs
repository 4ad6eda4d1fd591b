//! Slot events: who watches the readers, who waits for them, and how both are ended.
//!
//! With threads allowed, each backend has one thread, started by the first call that needs the slots; its loop
//! is `Watch::next` → `SlotTable::apply` → wake. Without, one of the threads that call C_WaitForSlotEvent does
//! the watching itself, and any other call looks once.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use claviger_apdu::Call;
use claviger_driver::{Backend, Readers, Stopped, Wake, Watch};
use cryptoki_sys::CK_SLOT_ID;

use crate::{
    board::{Board, Guard, Outcome, Table},
    choice::Choice,
    idle::Idle,
    known_reader::{CardCount, Place, ReaderKey},
    rv::{Failure, Rule},
    slots::SlotTable,
};

/// How long a first look at the readers may take: pcscd waits for every reader to power its card.
const LOOK: Duration = Duration::from_secs(5);
/// How often a caller's thread looks at each of several backends, which no single wait can cover.
const SEVERAL_BACKENDS: Duration = Duration::from_millis(200);
/// How often a call that waits for a reader to return tries it.
const AGAIN: Duration = Duration::from_millis(50);

impl Table for SlotTable {
    type Event = CK_SLOT_ID;

    fn take_event(&mut self) -> Option<CK_SLOT_ID> {
        SlotTable::take_event(self)
    }
}

/// What watchers, waiters and all other calls share.
struct Shared {
    board: Board<SlotTable>,
    idle: Weak<Idle>,
    /// Backends nobody has looked at yet.
    unseen: AtomicUsize,
}

impl Shared {
    fn apply(&self, backend: usize, picture: &Readers, first: bool) {
        let applied = self.board.update(|table| {
            if first {
                // Under the board's lock, so that who waits for the first look cannot miss it.
                self.unseen.fetch_sub(1, Ordering::SeqCst);
            }
            table.apply(backend, picture, first, Instant::now())
        });
        let Some(idle) = self.idle.upgrade() else {
            return;
        };
        if applied.other_cards {
            idle.look_at(Instant::now());
        }
        if let Some(at) = applied.look_again {
            idle.look_at(at);
        }
    }
}

/// One backend's watch, until a thread takes it.
struct Source {
    backend: usize,
    watch: Box<dyn Watch>,
    looked: bool,
    /// The trouble last logged, so that it is said once and not at every look.
    told: Option<String>,
}

impl Source {
    fn look(&mut self, shared: &Shared) {
        let picture = self.watch.now(Call::within(LOOK));
        self.take_in(&picture, shared);
    }

    fn follow(&mut self, shared: &Shared) -> Result<(), Stopped> {
        let picture = self.watch.next()?;
        self.take_in(&picture, shared);
        Ok(())
    }

    fn follow_to_the_end(&mut self, shared: &Shared) {
        self.look(shared);
        while self.follow(shared).is_ok() {}
    }

    fn take_in(&mut self, picture: &Readers, shared: &Shared) {
        let trouble = picture.trouble.as_ref().map(ToString::to_string);
        if trouble != self.told
            && let Some(trouble) = &trouble
            // A watch that was ended finds its service gone.
            && !shared.board.is_stopped()
        {
            tracing::warn!("{trouble}");
        }
        self.told = trouble;
        shared.apply(self.backend, picture, !self.looked);
        self.looked = true;
    }
}

/// The events of one generation of the module.
pub(crate) struct Events {
    shared: Arc<Shared>,
    may_create_threads: bool,
    /// No thread watches some backend: a thread that waits has to, or each call looks.
    unwatched: AtomicBool,
    wakers: Vec<Arc<dyn Wake>>,
    /// Backends without a thread; held while one of them is watched or looked at.
    sources: Mutex<Vec<Source>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Events {
    /// Prepares to watch `backends` for what `choice` shows; asks nothing of them yet. `idle` is told when cards have
    /// left.
    pub(crate) fn new(
        backends: &[Arc<dyn Backend>],
        may_create_threads: bool,
        idle: &Arc<Idle>,
        choice: Arc<Choice>,
    ) -> Self {
        let source = |(backend, of): (usize, &Arc<dyn Backend>)| Source {
            backend,
            watch: of.watch(),
            looked: false,
            told: None,
        };
        let sources: Vec<Source> = backends.iter().enumerate().map(source).collect();
        let wakers = sources.iter().map(|source| source.watch.waker()).collect();
        let shared = Shared {
            board: Board::default(),
            idle: Arc::downgrade(idle),
            unseen: AtomicUsize::new(sources.len()),
        };
        shared.board.update(|table| table.choose(choice));
        Self {
            shared: Arc::new(shared),
            may_create_threads,
            unwatched: AtomicBool::new(!may_create_threads),
            wakers,
            sources: Mutex::new(sources),
            threads: Mutex::default(),
        }
    }

    /// The slot table, for a lookup.
    pub(crate) fn table(&self) -> Guard<'_, SlotTable> {
        self.shared.board.table()
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.shared.board.is_stopped()
    }

    /// Where this very card is, or was until its service was lost.
    ///
    /// # Errors
    /// DEVICE_REMOVED when it has left.
    pub(crate) fn place(&self, reader: ReaderKey, card: CardCount) -> Result<Place, Failure> {
        let place = self.table().place(reader, Instant::now());
        let place = place.filter(|place| place.card == card);
        Ok(place.ok_or(Rule::DEVICE_REMOVED)?)
    }

    /// Gives a lost service and its readers a moment to return, until `until` at most; whether to try again.
    pub(crate) fn wait_for_return(&self, reader: ReaderKey, until: Instant) -> bool {
        let moment = until.min(Instant::now() + AGAIN);
        let seen = self.table().sighting(reader);
        self.shared
            .board
            .wait_until(moment, |table| table.sighting(reader) != seen);
        self.refresh();
        Instant::now() < until && !self.is_stopped()
    }

    /// Brings the table up to date. With threads it always is; the first call starts them. Without, every backend
    /// is looked at, unless somebody does already. The very first look is waited for, whoever takes it.
    pub(crate) fn refresh(&self) {
        self.start_threads();
        // Busy would mean that a waiter is watching, perhaps for hours, or that another call is looking.
        if self.unwatched.load(Ordering::SeqCst)
            && let Ok(mut sources) = self.sources.try_lock()
        {
            sources
                .iter_mut()
                .for_each(|source| source.look(&self.shared));
        }
        self.wait_for_first_look();
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sources(&self) -> MutexGuard<'_, Vec<Source>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_threads(&self) {
        if self.unwatched.load(Ordering::SeqCst) {
            return;
        }
        // `stop` takes this lock after it has said so: no thread starts behind its back.
        let mut threads = self.threads();
        if self.is_stopped() {
            return;
        }
        let sources = std::mem::take(&mut *self.sources());
        for source in sources {
            match self.spawn(source) {
                Ok(thread) => threads.push(thread),
                Err(source) => {
                    self.unwatched.store(true, Ordering::SeqCst);
                    self.sources().extend(source);
                }
            }
        }
    }

    fn wait_for_first_look(&self) {
        let Shared { board, unseen, .. } = &*self.shared;
        let seen = |_: &SlotTable| unseen.load(Ordering::SeqCst) == 0;
        if unseen.load(Ordering::SeqCst) > 0
            && !board.wait_until(Instant::now() + LOOK, seen)
            && !self.is_stopped()
        {
            tracing::warn!("no picture of the readers after {LOOK:?}; going on without");
        }
    }

    /// A thread that follows `source`; without one the source comes back, and is looked at by each call.
    fn spawn(&self, source: Source) -> Result<JoinHandle<()>, Option<Source>> {
        let name = format!("claviger-ev{}", source.backend);
        let shared = Arc::clone(&self.shared);
        // Handed over this way, because a thread that does not start keeps what it was given.
        let handover = Arc::new(Mutex::new(Some(source)));
        let take = |from: &Mutex<Option<Source>>| {
            from.lock().unwrap_or_else(PoisonError::into_inner).take()
        };
        let given = Arc::clone(&handover);
        let run = move || {
            let Some(mut source) = take(&given) else {
                return;
            };
            let follow = AssertUnwindSafe(|| source.follow_to_the_end(&shared));
            if catch_unwind(follow).is_err() {
                tracing::error!("internal error while following the readers; please report it");
                shared.board.break_down();
            }
        };
        std::thread::Builder::new()
            .name(name)
            .spawn(run)
            .map_err(|error| {
                tracing::warn!("no thread for slot events: {error}; each call looks for itself");
                take(&handover)
            })
    }

    /// C_WaitForSlotEvent. An event goes to exactly one caller.
    ///
    /// # Errors
    /// NO_EVENT when there is none and the caller does not wait; CRYPTOKI_NOT_INITIALIZED after C_Finalize.
    pub(crate) fn wait(&self, may_block: bool) -> Result<CK_SLOT_ID, Failure> {
        self.refresh();
        loop {
            let may_lead = self.unwatched.load(Ordering::SeqCst);
            match self.shared.board.wait(may_block, may_lead) {
                Outcome::Event(slot) => return Ok(slot),
                Outcome::Nothing => return Err(Rule::NO_EVENT.into()),
                Outcome::Stopped => return Err(Rule::NOT_INITIALIZED.into()),
                Outcome::Broken => {
                    let what = "the readers are no longer followed after an internal error";
                    return Err(Failure::Environment(what.to_owned()));
                }
                Outcome::Lead(leading) => {
                    self.lead();
                    drop(leading);
                }
            }
        }
    }

    /// Watches in the caller's thread until something changed or the module is finalised.
    fn lead(&self) {
        let mut sources = self.sources();
        match sources.as_mut_slice() {
            // A stop is seen by the caller's loop.
            [only] => drop(only.follow(&self.shared)),
            several => {
                for source in several {
                    source.look(&self.shared);
                }
                drop(sources);
                let moment = Instant::now() + SEVERAL_BACKENDS;
                self.shared.board.wait_until(moment, SlotTable::has_event);
            }
        }
    }

    /// Ends all waiting for good: stop, wake the waiters, wake the watchers, join them. Returns when no thread
    /// of ours is left; the waiters leave on their own, and the caller waits for them.
    pub(crate) fn stop(&self) {
        self.shared.board.stop();
        for waker in &self.wakers {
            waker.stop();
        }
        let threads = std::mem::take(&mut *self.threads());
        for thread in threads {
            crate::threads::join(thread, "a slot-event thread");
        }
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events")
            .field("may_create_threads", &self.may_create_threads)
            .finish_non_exhaustive()
    }
}
