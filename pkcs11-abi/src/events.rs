//! Slot events: who watches the readers, who waits for them, and how both are ended.
//!
//! With threads allowed, each backend has one thread, started by the first call that needs the slots; its loop
//! is `Watch::next_snapshot` → `SlotTable::apply` → wake. Without, one of the threads that call C_WaitForSlotEvent does
//! the watching itself, in one wait over all backends, and any other call looks once.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use claviger_driver::{Backend, Demand, StopHandle, usb::discovery::precedence::PcscdPrecedence};
use cryptoki_sys::CK_SLOT_ID;

use crate::{
    event_queue::{EventSource, Guard, WaitOutcome},
    idle::IdleReleaser,
    known_reader::{CardLocation, Insertion, ReaderKey},
    rv::{Failure, ReturnCode},
    slots::SlotTable,
    sources::{BackendWatcher, Shared, Sources},
    visibility::Visibility,
};

/// How often a caller's thread looks at pcscd's readers while it follows others, too: a wait for pcscd happens inside
/// libpcsclite, and covers nothing else.
const PCSC_QUERY_INTERVAL: Duration = Duration::from_millis(200);
/// How long a call waits for a look at cards that nobody watches.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a call that waits for a reader to return tries it.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(50);

impl EventSource for SlotTable {
    type Event = CK_SLOT_ID;

    fn take_event(&mut self) -> Option<CK_SLOT_ID> {
        SlotTable::take_event(self)
    }
}

/// The events of one generation of the module.
pub(crate) struct SlotEvents {
    shared: Arc<Shared>,
    may_create_threads: bool,
    /// No thread watches some backend: a thread that waits has to, or each call looks.
    unwatched: AtomicBool,
    wakers: Vec<Arc<dyn StopHandle>>,
    /// Of the backends that watch cards only for somebody.
    demands: Vec<Arc<dyn Demand>>,
    /// Backends without a thread; held while one of them is watched or looked at.
    sources: Mutex<Vec<BackendWatcher>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl SlotEvents {
    /// Prepares to watch `backends` for what `choice` shows; asks nothing of them yet. `idle` is told when cards have
    /// left; `gate` what pcscd says, where its readers may be reached on the USB, too.
    pub(crate) fn new(
        backends: &[Arc<dyn Backend>],
        may_create_threads: bool,
        idle: &Arc<IdleReleaser>,
        visibility: Arc<Visibility>,
        precedence: Option<Arc<PcscdPrecedence>>,
    ) -> Self {
        let sources = BackendWatcher::of(backends, precedence.as_ref());
        let wakers = sources
            .iter()
            .map(|source| source.watch.stop_handle())
            .collect();
        let demands = sources.iter().filter_map(|source| source.watch.demand());
        let demands = demands.collect();
        let shared = Shared::new(sources.len(), idle, precedence);
        shared
            .queue
            .update(|table| table.set_visibility(visibility));
        Self {
            shared: Arc::new(shared),
            may_create_threads,
            unwatched: AtomicBool::new(!may_create_threads),
            wakers,
            demands,
            sources: Mutex::new(sources),
            threads: Mutex::default(),
        }
    }

    /// The slot table, for a lookup.
    pub(crate) fn table(&self) -> Guard<'_, SlotTable> {
        self.shared.queue.table()
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.shared.queue.is_stopped()
    }

    /// Where this very card is, or was until its service was lost.
    ///
    /// # Errors
    /// DEVICE_REMOVED when it has left.
    pub(crate) fn card_location(
        &self,
        reader: ReaderKey,
        card: Insertion,
    ) -> Result<CardLocation, Failure> {
        let location = self.table().card_location(reader, Instant::now());
        let location = location.filter(|location| location.card == card);
        Ok(location.ok_or(ReturnCode::DEVICE_REMOVED)?)
    }

    /// Gives a lost service and its readers a moment to return, until `until` at most; whether to try again.
    pub(crate) fn wait_for_return(&self, reader: ReaderKey, deadline: Instant) -> bool {
        let attempt_end = deadline.min(Instant::now() + RECONNECT_INTERVAL);
        let seen = self.table().reappearances(reader);
        self.shared
            .queue
            .wait_until(attempt_end, |table| table.reappearances(reader) != seen);
        self.refresh();
        Instant::now() < deadline && !self.is_stopped()
    }

    /// Brings the table up to date. With threads it is, but for cards that nobody watches; the first call starts the threads.
    /// Without, every backend is looked at, unless somebody does already. The very first look is waited for, whoever takes it.
    pub(crate) fn refresh(&self) {
        self.start_threads();
        // Busy would mean that a waiter is watching, perhaps for hours, or that another call is looking.
        if self.unwatched.load(Ordering::SeqCst)
            && let Ok(mut sources) = self.sources.try_lock()
        {
            self.followed(&mut sources).query();
        }
        self.shared.wait_for_first_snapshots();
        if !self.unwatched.load(Ordering::SeqCst) {
            let deadline = Instant::now() + REFRESH_TIMEOUT;
            self.demands
                .iter()
                .for_each(|demand| demand.refresh(deadline));
        }
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sources(&self) -> MutexGuard<'_, Vec<BackendWatcher>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn followed<'a>(&'a self, all: &'a mut [BackendWatcher]) -> Sources<'a> {
        let shared = &self.shared;
        Sources { all, shared }
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

    /// A thread that follows `source`; without one the source comes back, and is looked at by each call.
    fn spawn(&self, source: BackendWatcher) -> Result<JoinHandle<()>, Option<BackendWatcher>> {
        let name = format!("claviger-ev{}", source.backend);
        let shared = Arc::clone(&self.shared);
        // Handed over this way, because a thread that does not start keeps what it was given.
        let handover = Arc::new(Mutex::new(Some(source)));
        let take = |from: &Mutex<Option<BackendWatcher>>| {
            from.lock().unwrap_or_else(PoisonError::into_inner).take()
        };
        let given = Arc::clone(&handover);
        let run = move || {
            let Some(mut source) = take(&given) else {
                return;
            };
            let follow = AssertUnwindSafe(|| {
                let mut alone = Sources {
                    all: std::slice::from_mut(&mut source),
                    shared: &shared,
                };
                // The first picture, too: a card that is looked at before it is watched may be another one then.
                while alone.follow_only().is_ok() {}
            });
            if catch_unwind(follow).is_err() {
                tracing::error!("internal error while following the readers; please report it");
                shared.queue.mark_broken();
            }
        };
        std::thread::Builder::new()
            .name(name)
            .spawn(run)
            .map_err(|error| {
                tracing::warn!("no thread for slot events: {error}; each call queries for itself");
                take(&handover)
            })
    }

    /// C_WaitForSlotEvent. An event goes to exactly one caller.
    ///
    /// # Errors
    /// NO_EVENT when there is none and the caller does not wait; CRYPTOKI_NOT_INITIALIZED after C_Finalize.
    pub(crate) fn wait(&self, may_block: bool) -> Result<CK_SLOT_ID, Failure> {
        self.refresh();
        let _waiting = may_block.then(|| Waiting::new(&self.demands));
        loop {
            let may_lead = self.unwatched.load(Ordering::SeqCst);
            match self.shared.queue.wait(may_block, may_lead) {
                WaitOutcome::Event(slot) => return Ok(slot),
                WaitOutcome::Nothing => return Err(ReturnCode::NO_EVENT.into()),
                WaitOutcome::Stopped => return Err(ReturnCode::NOT_INITIALIZED.into()),
                WaitOutcome::Broken => {
                    let what = "the readers are no longer followed after an internal error";
                    return Err(Failure::Environment(what.to_owned()));
                }
                WaitOutcome::BecomeWatcher(lease) => {
                    self.watch_as_waiter();
                    drop(lease);
                }
            }
        }
    }

    /// Watches in the caller's thread until something changed or the module is finalised; a stop is seen by the
    /// caller's loop.
    fn watch_as_waiter(&self) {
        let mut sources = self.sources();
        let mut followed = self.followed(&mut sources);
        match followed.blocking() {
            None => {
                let _ = followed.follow_pollable(None);
            }
            Some(blocking) if followed.depend_on(blocking) => {
                let alone = sources.remove(blocking);
                drop(sources);
                self.follow_alone(blocking, alone);
            }
            Some(blocking) => {
                followed.query_source(blocking);
                let _ = followed.follow_pollable(Some(Instant::now() + PCSC_QUERY_INTERVAL));
            }
        }
    }

    /// Follows the source that was at `place`, while other calls look at the rest.
    fn follow_alone(&self, index: usize, mut alone: BackendWatcher) {
        let mut followed = self.followed(std::slice::from_mut(&mut alone));
        let _ = followed.follow_only();
        let mut sources = self.sources();
        let index = index.min(sources.len());
        sources.insert(index, alone);
    }

    /// Ends all waiting for good: stop, wake the waiters, wake the watchers, join them. Returns when no thread
    /// of ours is left; the waiters leave on their own, and the caller waits for them.
    pub(crate) fn stop(&self) {
        self.shared.queue.stop();
        for waker in &self.wakers {
            waker.stop();
        }
        // A watch that no call has started ends no refresh.
        self.demands.iter().for_each(|demand| demand.stop());
        let threads = std::mem::take(&mut *self.threads());
        for thread in threads {
            crate::threads::join(thread, "a slot-event thread");
        }
    }
}

/// Somebody waits for events, for as long as the value lives.
struct Waiting<'a>(&'a [Arc<dyn Demand>]);

impl<'a> Waiting<'a> {
    fn new(demands: &'a [Arc<dyn Demand>]) -> Self {
        demands.iter().for_each(|demand| demand.add_waiter());
        Self(demands)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|demand| demand.remove_waiter());
    }
}

impl std::fmt::Debug for SlotEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SlotEvents")
            .field("may_create_threads", &self.may_create_threads)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests;
