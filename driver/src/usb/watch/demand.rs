//! Whether anybody wants to know of the cards in readers. Only then are readers claimed to watch their cards.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{backend::Demand, usb::host::event_fd::Signal};

/// How long cards are watched after somebody has asked for them.
const LEASE: Duration = Duration::from_secs(1);

/// See [`Demand`]. Callers ask; the watch answers.
#[derive(Debug)]
pub(super) struct CardDemand {
    state: Mutex<State>,
    answered: Condvar,
    /// Wakes the watch.
    stir: Option<Arc<Signal>>,
}

#[derive(Debug, Default)]
struct State {
    /// Threads in C_WaitForSlotEvent.
    waiters: usize,
    /// Until when cards are watched without any.
    lease: Option<Instant>,
    /// Looks that were asked for, and the last whose result is known.
    asked: u64,
    answered: u64,
    /// Some card can come or go unseen.
    is_needed: bool,
    /// The cards are watched at the moment.
    is_watching: bool,
    /// The watch has ended.
    is_over: bool,
}

impl State {
    fn is_wanted(&self, now: Instant) -> bool {
        self.waiters > 0 || self.lease.is_some_and(|lease| lease > now)
    }

    /// Has the watch look, unless it knows by itself.
    fn ask(&mut self) -> bool {
        let asks = self.is_needed && !self.is_watching && !self.is_over;
        self.asked += u64::from(asks);
        asks
    }
}

impl CardDemand {
    pub(super) fn new(stir: Option<Arc<Signal>>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                is_needed: true,
                ..State::default()
            }),
            answered: Condvar::new(),
            stir,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stir(&self) {
        if let Some(stir) = &self.stir {
            stir.set();
        }
    }

    /// The number of the look that was asked for last, and whether cards are to be watched now. Whoever asks for them after this
    /// said no wakes the watch.
    pub(super) fn take_in(&self) -> (u64, bool) {
        let mut state = self.state();
        let is_wanted = state.is_wanted(Instant::now());
        state.is_watching &= is_wanted;
        (state.asked, is_wanted)
    }

    /// When that may end; `None` while somebody waits.
    pub(super) fn ends(&self) -> Option<Instant> {
        let state = self.state();
        state.lease.filter(|_| state.waiters == 0)
    }

    /// The result of the look with this number is known to everybody; cards are watched from now on, or not, and may need it.
    pub(super) fn answer(&self, look: u64, is_watching: bool, is_needed: bool) {
        let mut state = self.state();
        state.answered = look;
        state.is_watching = is_watching && state.is_wanted(Instant::now());
        state.is_needed = is_needed;
        drop(state);
        self.answered.notify_all();
    }

    /// The watch has ended.
    pub(super) fn end(&self) {
        self.state().is_over = true;
        self.answered.notify_all();
    }
}

impl Demand for CardDemand {
    fn begin_to_wait(&self) {
        let mut state = self.state();
        state.waiters += 1;
        let asks = state.ask();
        drop(state);
        if asks {
            self.stir();
        }
    }

    fn end_to_wait(&self) {
        let mut state = self.state();
        state.waiters = state.waiters.saturating_sub(1);
        let is_last = state.waiters == 0 && state.is_needed && !state.is_over;
        if is_last {
            state.lease = Some(Instant::now() + LEASE);
        }
        drop(state);
        if is_last {
            self.stir();
        }
    }

    fn refresh(&self, until: Instant) {
        let mut state = self.state();
        if state.waiters == 0 {
            state.lease = Some(Instant::now() + LEASE);
        }
        if !state.ask() {
            return;
        }
        let look = state.asked;
        drop(state);
        self.stir();
        let mut state = self.state();
        while state.answered < look && !state.is_over {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let woken = self.answered.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
