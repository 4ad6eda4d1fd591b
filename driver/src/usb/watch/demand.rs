//! Whether anybody wants to know of the cards in readers. Only then are readers claimed to watch their cards.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{backend::Demand, usb::host::event_fd::EventFd};

/// How long cards are watched after somebody has asked for them.
const LEASE_TIME: Duration = Duration::from_secs(1);

/// See [`Demand`]. Callers ask; the watch answers.
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
    /// Until when cards are watched without any.
    lease: Option<Instant>,
    /// Looks that were asked for, and the last whose result is known.
    requested: u64,
    completed: u64,
    /// Some card can come or go unseen.
    is_needed: bool,
    /// The cards are watched at the moment.
    is_monitoring: bool,
    /// The watch has ended.
    is_closed: bool,
}

impl State {
    fn is_wanted(&self, now: Instant) -> bool {
        self.waiters > 0 || self.lease.is_some_and(|lease| lease > now)
    }

    /// Has the watch look, unless it knows by itself.
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

    /// The number of the look that was asked for last, and whether cards are to be watched now. Whoever asks for them after this
    /// said no wakes the watch.
    pub(super) fn take_requests(&self) -> (u64, bool) {
        let mut state = self.state();
        let is_wanted = state.is_wanted(Instant::now());
        state.is_monitoring &= is_wanted;
        (state.requested, is_wanted)
    }

    /// When that may end; `None` while somebody waits.
    pub(super) fn lease_end(&self) -> Option<Instant> {
        let state = self.state();
        state.lease.filter(|_| state.waiters == 0)
    }

    /// The result of the look with this number is known to everybody; cards are watched from now on, or not, and may need it.
    pub(super) fn complete(&self, poll: u64, is_watching: bool, is_needed: bool) {
        let mut state = self.state();
        state.completed = poll;
        state.is_monitoring = is_watching && state.is_wanted(Instant::now());
        state.is_needed = is_needed;
        drop(state);
        self.completed.notify_all();
    }

    /// The watch has ended.
    pub(super) fn close(&self) {
        self.state().is_closed = true;
        self.completed.notify_all();
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

    fn refresh(&self, until: Instant) {
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
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let woken = self.completed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
