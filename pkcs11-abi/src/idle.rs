//! Releases idle cards, so that a program that needs exclusive access to a card (scdaemon) can get it.

use std::{
    fmt::Debug,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// The cards that an [`IdleReleaser`] releases.
pub(crate) trait IdleCards: Debug + Send + Sync {
    /// Releases every card that has been idle long enough. Returns when to check again.
    fn release_idle(&self, now: Instant) -> Option<Instant>;
}

/// How long a transport to an idle card is kept. `None` keeps it for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IdleTimeouts {
    /// While no user is logged in.
    pub(crate) idle: Option<Duration>,
    /// While a user is logged in. Reconnecting then costs more, because the card may have lost its login.
    pub(crate) logged_in: Option<Duration>,
}

impl Default for IdleTimeouts {
    fn default() -> Self {
        Self {
            idle: Some(Duration::from_secs(1)),
            logged_in: Some(Duration::from_secs(5)),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    next: Option<Instant>,
    stopped: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread that releases idle cards. It starts with the first transport, sleeps until the next card is due, and sleeps
/// without a timeout while no check is scheduled.
#[derive(Debug)]
pub(crate) struct IdleReleaser {
    shared: Arc<Shared>,
    cards: Arc<dyn IdleCards>,
    release: IdleTimeouts,
    may_create_threads: bool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl IdleReleaser {
    pub(crate) fn new(
        cards: Arc<dyn IdleCards>,
        release: IdleTimeouts,
        may_create_threads: bool,
    ) -> Self {
        Self {
            shared: Arc::default(),
            cards,
            release,
            may_create_threads,
            thread: Mutex::default(),
        }
    }

    /// Returns how long a card may be idle before it is released.
    pub(crate) const fn release(&self, logged_in: bool) -> Option<Duration> {
        if logged_in {
            self.release.logged_in
        } else {
            self.release.idle
        }
    }

    /// Schedules a check at `at`. Returns false if there is no thread; the caller must then disconnect now.
    pub(crate) fn schedule(&self, at: Instant) -> bool {
        if !self.may_create_threads || !self.is_running() {
            return false;
        }
        self.check_at(at);
        true
    }

    fn is_running(&self) -> bool {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        // Checked under the lock of `thread`: `stop` sets the flag before it takes this lock, and joins a thread that was
        // started earlier.
        if self.shared.state().stopped {
            return false;
        }
        if thread.is_none() {
            let (shared, cards) = (Arc::clone(&self.shared), Arc::clone(&self.cards));
            *thread = std::thread::Builder::new()
                .name("claviger-idle".to_owned())
                .spawn(move || release_when_due(&shared, cards.as_ref()))
                .inspect_err(|error| {
                    tracing::warn!("cannot start the thread that releases idle cards: {error}");
                })
                .ok();
        }
        thread.is_some()
    }

    /// Makes the thread, if it runs, check all cards at `at`. Cards may have been removed.
    pub(crate) fn check_at(&self, at: Instant) {
        let mut state = self.shared.state();
        if state.next.is_none_or(|next| at < next) {
            state.next = Some(at);
            self.shared.changed.notify_one();
        }
    }

    /// Ends the thread and joins it.
    pub(crate) fn stop(&self) {
        self.shared.state().stopped = true;
        self.shared.changed.notify_one();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            crate::threads::join(thread, "the thread for idle cards");
        }
    }
}

fn release_when_due(shared: &Shared, cards: &dyn IdleCards) {
    let mut state = shared.state();
    while !state.stopped {
        let now = Instant::now();
        match state.next {
            None => {
                let woken = shared.changed.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
            }
            Some(at) if at > now => {
                let wait = shared.changed.wait_timeout(state, at - now);
                state = wait.unwrap_or_else(PoisonError::into_inner).0;
            }
            Some(_) => {
                state.next = None;
                drop(state);
                let later = cards.release_idle(now);
                state = shared.state();
                state.next = [state.next, later].into_iter().flatten().min();
            }
        }
    }
}
