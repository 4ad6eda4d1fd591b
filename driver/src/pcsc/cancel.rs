//! Ends a watch inside libpcsclite from another thread.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ::pcsc::{Context, Error};

use super::watchdog::{CallWatchdog, WatchedContext};
use crate::{socket_shutdown::ShutdownHandle, stop::StopHandle, wait::StopFlag};

/// Time for a cancelled wait to come back before it is cancelled again.
const CANCEL_INTERVAL: Duration = Duration::from_millis(2);
/// How long a stop goes on when pcscd takes no notice.
const GIVE_UP: Duration = Duration::from_secs(2);

/// A stop that reaches a thread inside libpcsclite.
///
/// SCardCancel is not sticky: it succeeds and does nothing unless the other thread is already inside the
/// blocking receive, and it asks pcscd. So the watch's connection is cut instead. Only where that could not be
/// told from others is the wait cancelled, after the stop was set, again and again until it is left.
pub(super) struct WatchCanceller {
    pub(super) stop: StopFlag,
    watchdog: Arc<CallWatchdog>,
    current: Mutex<CurrentWait>,
    left: Condvar,
}

#[derive(Default)]
struct CurrentWait {
    line: Option<Arc<ShutdownHandle>>,
    /// The context of a wait that runs and has no line.
    waiting: Option<Context>,
}

impl WatchCanceller {
    pub(super) fn new(watchdog: Arc<CallWatchdog>) -> Self {
        Self {
            stop: StopFlag::new(),
            watchdog,
            current: Mutex::default(),
            left: Condvar::new(),
        }
    }

    /// Makes a stop end every call on this connection.
    ///
    /// # Errors
    /// After a stop.
    pub(super) fn attach(&self, established: &WatchedContext) -> Result<(), Error> {
        let mut current = self.current();
        if self.stop.is_set() {
            return Err(Error::Cancelled);
        }
        current.line = established.line().cloned();
        Ok(())
    }

    /// Runs `wait`, which blocks, so that a stop ends it; nothing after a stop.
    pub(super) fn run_cancellable<T>(
        &self,
        established: &WatchedContext,
        wait: impl FnOnce() -> T,
    ) -> Option<T> {
        let mut current = self.current();
        if self.stop.is_set() {
            return None;
        }
        if established.line().is_some() {
            drop(current);
            return Some(wait());
        }
        current.waiting = established.context().ok().cloned();
        drop(current);
        let leave = WaitGuard(self);
        let outcome = wait();
        drop(leave);
        Some(outcome)
    }

    fn current(&self) -> MutexGuard<'_, CurrentWait> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Again and again: a wait that has not begun to wait, and a socket that is not there yet, cannot be ended.
    fn end_until_left(&self) {
        let deadline = Instant::now() + GIVE_UP;
        while self.end_once() {
            if Instant::now() >= deadline {
                tracing::warn!("PC/SC: a watch did not end within {GIVE_UP:?} of being stopped");
                return;
            }
            let current = self.current();
            let _ = self.left.wait_timeout(current, CANCEL_INTERVAL);
        }
    }

    /// Whether there was something to end.
    fn end_once(&self) -> bool {
        let waiting = self.current().waiting.clone();
        // Its errors say no more than the wait's own end does.
        let _ = waiting.as_ref().map(Context::cancel);
        self.watchdog.abort_new_watch() | waiting.is_some()
    }
}

impl StopHandle for WatchCanceller {
    fn stop(&self) {
        self.stop.stop();
        let line = self.current().line.clone();
        line.iter().for_each(|line| line.shut_down());
        // The watch may be making another connection, or waiting on one that could not be told from others.
        self.end_until_left();
    }
}

/// The wait is over, however it ended.
struct WaitGuard<'a>(&'a WatchCanceller);

impl Drop for WaitGuard<'_> {
    fn drop(&mut self) {
        self.0.current().waiting = None;
        self.0.left.notify_all();
    }
}
