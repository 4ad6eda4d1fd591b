//! A reader for one virtual card, shared by any number of users.
//!
//! The rules of sharing are those of `docs/socket-reader.md`, here without a socket. [`crate::server`] and
//! [`crate::vpcd`] make a reader available to clients. The test controls the reader itself: it inserts, removes and resets
//! the card, reads the counts, and may decide each frame's [`FrameFault`].

mod apdu_log;
mod fault;
mod user;

use std::{
    collections::VecDeque,
    fmt, io,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

pub(crate) use self::user::CardUser;
use self::{apdu_log::ApduLog, fault::Faults};
pub use self::{
    apdu_log::{Counts, Entry, Event, Exchange},
    fault::FrameFault,
};
use crate::card::VirtualCard;

/// A reader and its card. Clones are the same reader.
#[derive(Clone, Debug)]
pub struct Reader(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    card: VirtualCard,
    journal: ApduLog,
    faults: Faults,
    users: AtomicU64,
    state: Mutex<SharedState>,
    /// Notified when `state` has changed.
    changed: Condvar,
}

/// The state of the card and of its users.
#[derive(Debug, Default)]
struct SharedState {
    present: bool,
    /// Counts insertions and removals.
    changes: u32,
    powered: bool,
    /// Counts resets.
    resets: u64,
    holder: Option<u64>,
    /// Users that wait for a transaction, in order of arrival.
    queue: VecDeque<u64>,
    /// Whether an exchange is running.
    busy: bool,
    watchers: Vec<(u64, Watcher)>,
}

/// Whether a card is present, and the count of insertions and removals so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Presence {
    pub(crate) present: bool,
    pub(crate) changes: u32,
}

/// Called for each change, in order, while the reader is locked.
struct Watcher(Box<dyn FnMut(Presence) + Send>);

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watcher")
    }
}

/// A stop flag: ends the waits of one server's users.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Reader {
    /// Makes a reader called `name` that holds `card`.
    #[must_use]
    pub fn new(name: &str, card: VirtualCard) -> Self {
        let state = SharedState {
            present: true,
            ..SharedState::default()
        };
        Self(Arc::new(Inner {
            name: name.to_owned(),
            card,
            journal: ApduLog::new(),
            faults: Faults::default(),
            users: AtomicU64::new(0),
            state: Mutex::new(state),
            changed: Condvar::new(),
        }))
    }

    /// The reader's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The card's answer to reset.
    #[must_use]
    pub fn atr(&self) -> &[u8] {
        &self.0.card.config().atr
    }

    /// Inserts the card, without power. Does nothing if the card is present.
    pub fn insert(&self) {
        self.change_presence(true, Event::Insert);
    }

    /// Removes the card. This ends its transactions, and its users get only `CardRemoved` from now on. Does nothing if the card
    /// is absent.
    pub fn remove(&self) {
        self.change_presence(false, Event::Remove);
    }

    /// Returns whether the card is present.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.state().present
    }

    /// Power-cycles the card while users may be connected, as bad contacts would.
    pub fn reset(&self) {
        let mut state = self.state();
        // Ends a silence. The second increment reports the reset again to a user that reconnects in between.
        state.resets += 1;
        self.0.changed.notify_all();
        state = self.wait_while(state, |state| state.busy);
        state.resets += 1;
        self.0.journal.write(0, Event::Reset);
        self.0.card.reset();
        drop(state);
    }

    /// Powers up a card without users. The card is ready when this returns.
    pub(crate) fn boot(&self) {
        let _place = self.state();
        self.0.card.boot();
    }

    /// Lets `script` decide the fate of every frame from now on. The script must not use the reader itself.
    pub fn on_frame(&self, script: impl FnMut(&[u8]) -> FrameFault + Send + 'static) {
        self.0.faults.follow(Some(Box::new(script)));
    }

    /// Returns whether a fault was applied to a frame since the last [`Reader::on_frame`].
    #[must_use]
    pub fn has_caught(&self) -> bool {
        self.0.faults.has_caught()
    }

    /// Removes the script: the card responds to every frame again.
    pub fn heal(&self) {
        self.0.faults.follow(None);
    }

    /// The counts so far, or since [`Reader::zero`].
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.0.journal.counts()
    }

    /// All events so far, or since [`Reader::zero`], in order.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.0.journal.entries()
    }

    /// The exchanges among [`Reader::entries`].
    #[must_use]
    pub fn exchanges(&self) -> Vec<Exchange> {
        let exchange = |entry: Entry| match entry.event {
            Event::Exchange(exchange) => Some(exchange),
            _ => None,
        };
        self.entries().into_iter().filter_map(exchange).collect()
    }

    /// Clears counts and entries. A log file is not changed.
    pub fn zero(&self) {
        self.0.journal.clear();
    }

    /// Adds a remark to the entries.
    pub fn mark(&self, text: &str) {
        self.0.journal.write(0, Event::Mark(text.to_owned()));
    }

    /// Appends every later entry also to the file at `path`.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn log_to(&self, path: &Path) -> io::Result<()> {
        self.0.journal.log_to(path)
    }

    /// Calls `watcher` at once with the current state, and then for each change until [`Reader::unwatch`]. Returns its number.
    pub(crate) fn watch(&self, mut watcher: impl FnMut(Presence) + Send + 'static) -> u64 {
        let id = self.0.users.fetch_add(1, Ordering::Relaxed) + 1;
        let mut state = self.state();
        watcher(state.presence());
        state.watchers.push((id, Watcher(Box::new(watcher))));
        id
    }

    /// Removes the watcher with this number.
    pub(crate) fn unwatch(&self, id: u64) {
        self.state().watchers.retain(|(watcher, _)| *watcher != id);
    }

    /// Waits for a card. Returns false if `stop` was set first.
    pub(crate) fn wait_for_card(&self, stop: &Stop) -> bool {
        let state = self.wait_while(self.state(), |state| !state.present && !stop.is_set());
        state.present && !stop.is_set()
    }

    /// Sets `stop` and ends the waits that use it.
    pub(crate) fn stop(&self, stop: &Stop) {
        let state = self.state();
        stop.0.store(true, Ordering::Release);
        self.0.changed.notify_all();
        drop(state);
    }

    fn change_presence(&self, present: bool, event: Event) {
        let mut state = self.state();
        if state.present == present {
            return;
        }
        state.present = present;
        state.changes = state.changes.wrapping_add(1);
        state.powered = false;
        state.holder = None;
        self.0.journal.write(0, event);
        let presence = state.presence();
        state
            .watchers
            .iter_mut()
            .for_each(|(_, watcher)| (watcher.0)(presence));
        self.0.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, SharedState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_change<'a>(
        &'a self,
        state: MutexGuard<'a, SharedState>,
    ) -> MutexGuard<'a, SharedState> {
        self.0
            .changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while<'a>(
        &'a self,
        state: MutexGuard<'a, SharedState>,
        condition: impl Fn(&SharedState) -> bool,
    ) -> MutexGuard<'a, SharedState> {
        let waited = self.0.changed.wait_while(state, |state| condition(state));
        waited.unwrap_or_else(PoisonError::into_inner)
    }
}

impl SharedState {
    const fn presence(&self) -> Presence {
        Presence {
            present: self.present,
            changes: self.changes,
        }
    }
}
