//! Slot events: the watchers, the waiters, and how both are stopped.
//!
//! With threads allowed, each backend has one watcher thread. The first call that needs the slots starts these threads. Their
//! loop is `Watch::next_snapshot` → `SlotTable::apply` → wake. Without threads, one of the waiters is the watcher, in one
//! wait over all pollable backends, and every other call queries once.

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

/// Interval at which a waiter that watches other backends too queries pcscd. A wait for pcscd happens inside libpcsclite and
/// cannot cover another backend.
const PCSC_QUERY_INTERVAL: Duration = Duration::from_millis(200);
/// Timeout of a poll of the cards that are not monitored.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval at which a call that waits for a reader to return tries to connect.
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
    /// At least one backend has no watcher thread. A waiter must watch it, or each call must query it.
    unwatched: AtomicBool,
    wakers: Vec<Arc<dyn StopHandle>>,
    /// The demands of the backends that monitor cards only while a caller waits for events.
    demands: Vec<Arc<dyn Demand>>,
    /// The backends without a thread. Locked while one of these is watched or queried.
    sources: Mutex<Vec<BackendWatcher>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl SlotEvents {
    /// Prepares to watch `backends`, and queries none of them yet. `visibility` selects the readers and applets. `idle` is
    /// notified when cards were removed. `precedence` receives the snapshots of pcscd if the `usb` backend is configured too.
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

    /// Locks the slot table for a lookup.
    pub(crate) fn table(&self) -> Guard<'_, SlotTable> {
        self.shared.queue.table()
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.shared.queue.is_stopped()
    }

    /// Returns the location of the card of this insertion. If the service was lost, the location is the last known one.
    ///
    /// # Errors
    /// DEVICE_REMOVED if the card was removed.
    pub(crate) fn card_location(
        &self,
        reader: ReaderKey,
        card: Insertion,
    ) -> Result<CardLocation, Failure> {
        let location = self.table().card_location(reader, Instant::now());
        let location = location.filter(|location| location.card == card);
        Ok(location.ok_or(ReturnCode::DEVICE_REMOVED)?)
    }

    /// Waits up to `RECONNECT_INTERVAL` for the reader to return after a loss of its service. Returns whether to connect
    /// again: `deadline` has not passed, and the module was not stopped.
    pub(crate) fn wait_for_return(&self, reader: ReaderKey, deadline: Instant) -> bool {
        let attempt_end = deadline.min(Instant::now() + RECONNECT_INTERVAL);
        let seen = self.table().reappearances(reader);
        self.shared
            .queue
            .wait_until(attempt_end, |table| table.reappearances(reader) != seen);
        self.refresh();
        Instant::now() < deadline && !self.is_stopped()
    }

    /// Brings the slot table up to date. With threads, the watchers do so, and only unmonitored cards are polled here. The
    /// first call starts the threads. Without threads, queries every backend, unless another thread watches or queries them
    /// now. Waits for the first snapshot of each backend.
    pub(crate) fn refresh(&self) {
        self.start_threads();
        // If the lock is held, a waiter watches, perhaps for hours, or another call queries.
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
        // `stop` sets the stop flag before it takes this lock, so no thread can start after `stop`.
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

    /// Starts a thread that follows `source`. If that fails, returns the source, so that each call can query it.
    fn spawn(&self, source: BackendWatcher) -> Result<JoinHandle<()>, Option<BackendWatcher>> {
        let name = format!("claviger-ev{}", source.backend);
        let shared = Arc::clone(&self.shared);
        // A closure is lost if its thread does not start. The shared cell keeps the source for the error path.
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
                // The watch takes the first snapshot too. A card that was queried before the watch began could be replaced
                // unnoticed.
                while alone.follow_only().is_ok() {}
            });
            if catch_unwind(follow).is_err() {
                tracing::error!("internal error while watching the readers; please report it");
                shared.queue.mark_broken();
            }
        };
        std::thread::Builder::new()
            .name(name)
            .spawn(run)
            .map_err(|error| {
                tracing::warn!(
                    "cannot start a thread for slot events: {error}; each call queries the readers"
                );
                take(&handover)
            })
    }

    /// C_WaitForSlotEvent. An event goes to exactly one caller.
    ///
    /// # Errors
    /// NO_EVENT if no event is pending and the caller must not block. CRYPTOKI_NOT_INITIALIZED after C_Finalize.
    /// GENERAL_ERROR after an internal error of a watcher.
    pub(crate) fn wait(&self, may_block: bool) -> Result<CK_SLOT_ID, Failure> {
        self.refresh();
        let _waiting = may_block.then(|| Waiting::new(&self.demands));
        loop {
            let may_watch = self.unwatched.load(Ordering::SeqCst);
            match self.shared.queue.wait(may_block, may_watch) {
                WaitOutcome::Event(slot) => return Ok(slot),
                WaitOutcome::Nothing => return Err(ReturnCode::NO_EVENT.into()),
                WaitOutcome::Stopped => return Err(ReturnCode::NOT_INITIALIZED.into()),
                WaitOutcome::Broken => {
                    let what = "the readers are no longer watched after an internal error";
                    return Err(Failure::Environment(what.to_owned()));
                }
                WaitOutcome::BecomeWatcher(lease) => {
                    self.watch_as_waiter();
                    drop(lease);
                }
            }
        }
    }

    /// Watches in the caller's thread until a reader has changed or the watch was stopped. The caller then checks the stop
    /// flag.
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

    /// Follows only the source that was at `index`. Other calls query the rest meanwhile.
    fn follow_alone(&self, index: usize, mut alone: BackendWatcher) {
        let mut followed = self.followed(std::slice::from_mut(&mut alone));
        let _ = followed.follow_only();
        let mut sources = self.sources();
        let index = index.min(sources.len());
        sources.insert(index, alone);
    }

    /// Stops all waits, those that begin later included: sets the stop flag, wakes the waiters and the watchers, and joins
    /// the watcher threads. Does not wait for the waiters; their calls return on their own.
    pub(crate) fn stop(&self) {
        self.shared.queue.stop();
        for waker in &self.wakers {
            waker.stop();
        }
        // A watch that never ran does not end a running refresh, so the demands are stopped too.
        self.demands.iter().for_each(|demand| demand.stop());
        let threads = std::mem::take(&mut *self.threads());
        for thread in threads {
            crate::threads::join(thread, "a slot-event thread");
        }
    }
}

/// Registers a waiter with the demands, until dropped.
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
