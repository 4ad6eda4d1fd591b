//! Counts the callers that wait for card events. Readers are claimed to monitor their cards only while there are any.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{backend::Demand, usb::host::event_fd::EventFd};

/// How long cards are monitored after a caller queried them.
const LEASE_TIME: Duration = Duration::from_secs(1);

/// See [`Demand`]. Callers request, the watch completes.
#[derive(Debug)]
pub(super) struct CardDemand {
    state: Mutex<State>,
    completed: Condvar,
    /// Wakes the watch.
    watch_event: Option<Arc<EventFd>>,
}

#[derive(Debug, Default)]
struct State {
    /// Threads in C_WaitForSlotEvent.
    waiters: usize,
    /// End of monitoring without waiters.
    lease: Option<Instant>,
    /// Number of the last poll request.
    requested: u64,
    /// Number of the last poll whose result is reported.
    completed: u64,
    /// Some card can be exchanged without a notification.
    is_needed: bool,
    /// The cards are monitored.
    is_monitoring: bool,
    /// The watch has ended, or will not begin.
    is_closed: bool,
}

impl State {
    fn is_wanted(&self, now: Instant) -> bool {
        self.waiters > 0 || self.lease.is_some_and(|lease| lease > now)
    }

    /// Requests a poll, unless the cards are monitored.
    fn request(&mut self) -> bool {
        let asks = self.is_needed && !self.is_monitoring && !self.is_closed;
        self.requested += u64::from(asks);
        asks
    }
}

impl CardDemand {
    pub(super) fn new(event: Option<Arc<EventFd>>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                is_needed: true,
                ..State::default()
            }),
            completed: Condvar::new(),
            watch_event: event,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_watch(&self) {
        if let Some(event) = &self.watch_event {
            event.notify();
        }
    }

    /// The number of the last poll request, and whether cards are to be monitored now. After a "no", the next request wakes the
    /// watch.
    pub(super) fn take_requests(&self) -> (u64, bool) {
        let mut state = self.state();
        let is_wanted = state.is_wanted(Instant::now());
        state.is_monitoring &= is_wanted;
        (state.requested, is_wanted)
    }

    /// Returns when the demand may end. `None` with waiters.
    pub(super) fn lease_end(&self) -> Option<Instant> {
        let state = self.state();
        state.lease.filter(|_| state.waiters == 0)
    }

    /// Completes the request with this number. Records whether cards are monitored and whether they need it. Returns whether
    /// there is a newer request.
    pub(super) fn complete(&self, poll: u64, is_watching: bool, is_needed: bool) -> bool {
        let mut state = self.state();
        state.completed = poll;
        state.is_monitoring = is_watching && state.is_wanted(Instant::now());
        state.is_needed = is_needed;
        let is_newer = state.requested != poll;
        drop(state);
        self.completed.notify_all();
        is_newer
    }
}

impl Demand for CardDemand {
    fn add_waiter(&self) {
        let mut state = self.state();
        state.waiters += 1;
        let asks = state.request();
        drop(state);
        if asks {
            self.wake_watch();
        }
    }

    fn remove_waiter(&self) {
        let mut state = self.state();
        state.waiters = state.waiters.saturating_sub(1);
        let is_last = state.waiters == 0 && state.is_needed && !state.is_closed;
        if is_last {
            state.lease = Some(Instant::now() + LEASE_TIME);
        }
        drop(state);
        if is_last {
            self.wake_watch();
        }
    }

    fn refresh(&self, deadline: Instant) {
        let mut state = self.state();
        if state.waiters == 0 {
            state.lease = Some(Instant::now() + LEASE_TIME);
        }
        if !state.request() {
            return;
        }
        let poll = state.requested;
        drop(state);
        self.wake_watch();
        let mut state = self.state();
        while state.completed < poll && !state.is_closed {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let woken = self.completed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn stop(&self) {
        self.state().is_closed = true;
        self.completed.notify_all();
    }
}
