//! Event queue: watchers publish, callers wait. One mutex, one condition variable, one stop flag.

use std::{
    ops::{Deref, DerefMut},
    time::Instant,
};

use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A table whose changes are events.
pub(crate) trait EventSource {
    /// One event.
    type Event;

    /// Takes one pending event.
    fn take_event(&mut self) -> Option<Self::Event>;
}

#[derive(Debug, Default)]
struct State<T> {
    table: T,
    stopped: bool,
    broken: bool,
    /// One of the waiters is the watcher for all of them.
    has_watcher: bool,
}

/// A table, and the threads that wait for a change of the table.
#[derive(Debug, Default)]
pub(crate) struct EventQueue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

/// The outcome of a wait.
pub(crate) enum WaitOutcome<'a, T: EventSource> {
    /// One event. No other caller gets it.
    Event(T::Event),
    /// No event is pending, and the caller must not block.
    Nothing,
    /// The queue was stopped. This has precedence over pending events.
    Stopped,
    /// A watcher has failed, so events may be missing.
    Broken,
    /// No waiter is the watcher. The caller becomes the watcher for all waiters until it drops the lease.
    BecomeWatcher(WatchLease<'a, T>),
}

impl<T: EventSource> EventQueue<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the table for a lookup.
    pub(crate) fn table(&self) -> Guard<'_, T> {
        Guard(self.state())
    }

    /// Changes the table and wakes all waiters.
    pub(crate) fn update<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let result = change(&mut self.state().table);
        self.changed.notify_all();
        result
    }

    /// Ends all waits, those that begin later included.
    pub(crate) fn stop(&self) {
        self.state().stopped = true;
        self.changed.notify_all();
    }

    /// Records that a watcher has ended without having been stopped. Waits end as soon as no event is pending.
    pub(crate) fn mark_broken(&self) {
        self.state().broken = true;
        self.changed.notify_all();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.state().stopped
    }

    /// Waits for an event if `may_block` is set. With `may_watch`, the caller becomes the watcher if there is none.
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

    /// Waits until `should` holds for the table, the queue is stopped, or `deadline` has passed. Returns whether `should`
    /// holds.
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

/// Makes its holder the watcher. Dropping the lease lets another waiter become the watcher.
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
