//! Slot events: who watches the readers, who waits for them, and how both are ended.
//!
//! With threads allowed, each backend has one thread, started by the first call that needs the slots; its loop
//! is `Watch::next` → `SlotTable::apply` → wake. Without, one of the threads that call C_WaitForSlotEvent does
//! the watching itself, and any other call looks once.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use claviger_apdu::Call;
use claviger_driver::{Backend, Readers, Stopped, Wake, Watch};
use cryptoki_sys::CK_SLOT_ID;

use crate::{
    idle::Idle,
    rv::{Failure, Rule},
    slots::SlotTable,
};

/// How long a first look at the readers may take: pcscd waits for every reader to power its card.
const LOOK: Duration = Duration::from_secs(5);
/// How often a caller's thread looks at each of several backends, which no single wait can cover.
const SEVERAL_BACKENDS: Duration = Duration::from_millis(200);

/// What watchers, waiters and all other calls share.
struct Shared {
    table: Mutex<SlotTable>,
    changed: Condvar,
    stopped: AtomicBool,
    idle: Weak<Idle>,
    /// Backends nobody has looked at yet.
    unseen: AtomicUsize,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, SlotTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, backend: usize, picture: &Readers, first: bool) {
        let other_cards = {
            let mut table = self.table();
            if first {
                // Under the table's lock, so that who waits for the first look cannot miss it.
                self.unseen.fetch_sub(1, Ordering::SeqCst);
            }
            table.apply(backend, picture, first)
        };
        self.changed.notify_all();
        if other_cards && let Some(idle) = self.idle.upgrade() {
            idle.look_now();
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

    fn take_in(&mut self, picture: &Readers, shared: &Shared) {
        let trouble = picture.trouble.as_ref().map(ToString::to_string);
        if trouble != self.told
            && let Some(trouble) = &trouble
        {
            tracing::warn!("{trouble}");
        }
        self.told = trouble;
        shared.apply(self.backend, picture, !self.looked);
        self.looked = true;
    }
}

/// Who watches.
#[derive(Default)]
struct Watching {
    /// Backends nobody watches: a thread will, or the caller looks at them.
    sources: Vec<Source>,
    /// A thread for each other backend.
    threads: Vec<JoinHandle<()>>,
}

impl Watching {
    /// Looks at what nobody watches.
    fn look(&mut self, shared: &Shared) {
        for source in &mut self.sources {
            source.look(shared);
        }
    }
}

/// The events of one generation of the module.
pub(crate) struct Events {
    shared: Arc<Shared>,
    may_create_threads: bool,
    wakers: Vec<Arc<dyn Wake>>,
    watching: Mutex<Watching>,
    /// Whether a waiter watches in its own thread, when threads may not be created.
    leader: Mutex<bool>,
}

impl Events {
    /// Prepares to watch `backends`; asks nothing of them yet. `idle` is told when cards have left.
    pub(crate) fn new(
        backends: &[Arc<dyn Backend>],
        may_create_threads: bool,
        idle: &Arc<Idle>,
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
            table: Mutex::default(),
            changed: Condvar::new(),
            stopped: AtomicBool::new(false),
            idle: Arc::downgrade(idle),
            unseen: AtomicUsize::new(sources.len()),
        };
        let watching = Watching {
            sources,
            threads: Vec::new(),
        };
        Self {
            shared: Arc::new(shared),
            may_create_threads,
            wakers,
            watching: Mutex::new(watching),
            leader: Mutex::new(false),
        }
    }

    /// The slot table, for a lookup.
    pub(crate) fn table(&self) -> MutexGuard<'_, SlotTable> {
        self.shared.table()
    }

    fn is_stopped(&self) -> bool {
        self.shared.stopped.load(Ordering::SeqCst)
    }

    fn watching(&self) -> MutexGuard<'_, Watching> {
        self.watching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the table up to date. With threads it always is; the first call starts them and waits for their
    /// first look. Without, every backend is looked at, unless a waiter is watching it already.
    pub(crate) fn refresh(&self) {
        if self.may_create_threads {
            self.start_threads();
            self.wait_for_first_look();
        } else if let Ok(mut watching) = self.watching.try_lock() {
            // Busy would mean that a waiter is watching, perhaps for hours, or that another call is looking.
            watching.look(&self.shared);
        }
    }

    fn start_threads(&self) {
        let mut watching = self.watching();
        if self.is_stopped() {
            return;
        }
        for source in std::mem::take(&mut watching.sources) {
            match self.spawn(source) {
                Ok(thread) => watching.threads.push(thread),
                Err(source) => watching.sources.extend(source),
            }
        }
        watching.look(&self.shared);
    }

    fn wait_for_first_look(&self) {
        if self.shared.unseen.load(Ordering::SeqCst) == 0 {
            return;
        }
        let deadline = Instant::now() + LOOK;
        let mut table = self.table();
        while self.shared.unseen.load(Ordering::SeqCst) > 0 && !self.is_stopped() {
            let Some(rest) = deadline.checked_duration_since(Instant::now()) else {
                tracing::warn!("no picture of the readers after {LOOK:?}; going on without");
                return;
            };
            let woken = self.shared.changed.wait_timeout(table, rest);
            table = woken.unwrap_or_else(PoisonError::into_inner).0;
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
            if let Some(mut source) = take(&given) {
                source.look(&shared);
                while source.follow(&shared).is_ok() {}
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
    pub(crate) fn wait(&self, may_block: bool) -> Result<CK_SLOT_ID, Failure> {
        self.refresh();
        if self.may_create_threads {
            self.wait_for_threads(may_block)
        } else {
            self.wait_here(may_block)
        }
    }

    fn wait_for_threads(&self, may_block: bool) -> Result<CK_SLOT_ID, Failure> {
        let mut table = self.table();
        loop {
            if self.is_stopped() {
                return Err(Rule::NOT_INITIALIZED.into());
            }
            if let Some(slot) = table.take_event() {
                return Ok(slot);
            }
            if !may_block {
                return Err(Rule::NO_EVENT.into());
            }
            table = self
                .shared
                .changed
                .wait(table)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// One waiter leads: it watches and wakes the others, who take over when it has its event and leaves.
    fn wait_here(&self, may_block: bool) -> Result<CK_SLOT_ID, Failure> {
        loop {
            let mut table = self.table();
            if self.is_stopped() {
                return Err(Rule::NOT_INITIALIZED.into());
            }
            if let Some(slot) = table.take_event() {
                return Ok(slot);
            }
            if !may_block {
                return Err(Rule::NO_EVENT.into());
            }
            // The flag changes only under the table's lock, so a follower cannot miss the leader's leaving.
            let mut leader = self.leader.lock().unwrap_or_else(PoisonError::into_inner);
            if *leader {
                drop(leader);
                drop(
                    self.shared
                        .changed
                        .wait(table)
                        .unwrap_or_else(PoisonError::into_inner),
                );
                continue;
            }
            *leader = true;
            drop((leader, table));
            self.lead();
            let table = self.table();
            *self.leader.lock().unwrap_or_else(PoisonError::into_inner) = false;
            drop(table);
            self.shared.changed.notify_all();
        }
    }

    /// Watches in the caller's thread until something changed or the module is finalised.
    fn lead(&self) {
        let mut watching = self.watching();
        match watching.sources.as_mut_slice() {
            // A stop is seen by the caller's loop.
            [only] => drop(only.follow(&self.shared)),
            several => {
                for source in several {
                    source.look(&self.shared);
                }
                drop(watching);
                let table = self.table();
                if !self.is_stopped() {
                    drop(self.shared.changed.wait_timeout(table, SEVERAL_BACKENDS));
                }
            }
        }
    }

    /// Ends all waiting for good: stop, wake the waiters, wake the watchers, join them. Returns when no thread
    /// of ours is left; the waiters leave on their own, and the caller waits for them.
    pub(crate) fn stop(&self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.wake_waiters();
        for waker in &self.wakers {
            waker.stop();
        }
        for thread in self.take_threads() {
            crate::threads::join(thread, "a slot-event thread");
        }
    }

    /// The threads, once a call that looks for the first time is through; a look may be stuck.
    fn take_threads(&self) -> Vec<JoinHandle<()>> {
        let deadline = Instant::now() + LOOK;
        loop {
            match self.watching.try_lock() {
                Ok(mut watching) => return std::mem::take(&mut watching.threads),
                Err(TryLockError::Poisoned(error)) => {
                    return std::mem::take(&mut error.into_inner().threads);
                }
                Err(TryLockError::WouldBlock) if Instant::now() > deadline => return Vec::new(),
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_micros(200)),
            }
        }
    }

    fn wake_waiters(&self) {
        // The lock makes sure that a waiter is either before its look at `stopped` or inside its wait.
        drop(self.table());
        self.shared.changed.notify_all();
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events")
            .field("may_create_threads", &self.may_create_threads)
            .finish_non_exhaustive()
    }
}
