//! Where watchers put events and callers wait for them: one lock, one condition, one flag that ends it all.

use std::{
    ops::{Deref, DerefMut},
    time::Instant,
};

use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What is waited for.
pub(crate) trait EventSource {
    /// One thing that happened.
    type Event;

    /// Takes one event that nobody was told of.
    fn take_event(&mut self) -> Option<Self::Event>;
}

#[derive(Debug, Default)]
struct State<T> {
    table: T,
    stopped: bool,
    broken: bool,
    /// One of the waiters watches for all of them.
    has_watcher: bool,
}

/// A table, and those who wait for it to change.
#[derive(Debug, Default)]
pub(crate) struct EventQueue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

/// How a wait ends.
pub(crate) enum WaitOutcome<'a, T: EventSource> {
    /// An event, which nobody else is told.
    Event(T::Event),
    /// There is none, and the caller does not wait.
    Nothing,
    /// The board was stopped; this comes before any event.
    Stopped,
    /// A watcher has failed, and nothing can be promised.
    Broken,
    /// Nobody watches: the caller does, for all who wait, until it drops this.
    BecomeWatcher(WatchLease<'a, T>),
}

impl<T: EventSource> EventQueue<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The table, for a lookup.
    pub(crate) fn table(&self) -> Guard<'_, T> {
        Guard(self.state())
    }

    /// Changes the table and wakes those who wait.
    pub(crate) fn update<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let result = change(&mut self.state().table);
        self.changed.notify_all();
        result
    }

    /// Ends every wait, also those that begin later.
    pub(crate) fn stop(&self) {
        self.state().stopped = true;
        self.changed.notify_all();
    }

    /// A watcher will watch no more, and not because it was told to.
    pub(crate) fn mark_broken(&self) {
        self.state().broken = true;
        self.changed.notify_all();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.state().stopped
    }

    /// Waits for an event, if the caller `may_block`; the first who `may_watch` is asked to watch instead.
    pub(crate) fn wait(&self, may_block: bool, may_watch: bool) -> WaitOutcome<'_, T> {
        let mut state = self.state();
        loop {
            if state.stopped {
                return WaitOutcome::Stopped;
            }
            if let Some(event) = state.table.take_event() {
                return WaitOutcome::Event(event);
            }
            if state.broken {
                return WaitOutcome::Broken;
            }
            if !may_block {
                return WaitOutcome::Nothing;
            }
            if may_watch && !state.has_watcher {
                state.has_watcher = true;
                return WaitOutcome::BecomeWatcher(WatchLease(self));
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until the table is as it `should` be, the board is stopped, or `until`; whether it is so.
    pub(crate) fn wait_until(&self, deadline: Instant, should: impl Fn(&T) -> bool) -> bool {
        let mut state = self.state();
        loop {
            if should(&state.table) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.stopped || left.is_zero() {
                return false;
            }
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The lead among those who wait; given up when dropped, for another to take.
pub(crate) struct WatchLease<'a, T: EventSource>(&'a EventQueue<T>);

impl<T: EventSource> Drop for WatchLease<'_, T> {
    fn drop(&mut self) {
        self.0.state().has_watcher = false;
        self.0.changed.notify_all();
    }
}

/// The table, locked.
pub(crate) struct Guard<'a, T>(MutexGuard<'a, State<T>>);

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.table
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0.table
    }
}
