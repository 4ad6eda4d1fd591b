//! Ends a watch's wait inside libpcsclite from another thread.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ::pcsc::{Context, Error};

use super::watchdog::{CallWatchdog, WatchedContext};
use crate::{socket_shutdown::ShutdownHandle, stop::StopHandle, wait::StopFlag};

/// How long a cancelled wait may take to return before it is cancelled again.
const CANCEL_INTERVAL: Duration = Duration::from_millis(2);
/// How long a stop keeps trying if pcscd does not respond.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Stops a watch whose thread may be inside libpcsclite.
///
/// SCardCancel does not stay in effect. It succeeds without any effect unless the other thread is already inside the
/// blocking receive, and it needs pcscd. So a stop shuts down the watch's connection instead. If the socket of that
/// connection is unknown, the stop cancels the wait repeatedly until the wait has returned.
pub(super) struct WatchCanceller {
    pub(super) stop: StopFlag,
    watchdog: Arc<CallWatchdog>,
    current: Mutex<CurrentWait>,
    returned: Condvar,
}

#[derive(Default)]
struct CurrentWait {
    shutdown_handle: Option<Arc<ShutdownHandle>>,
    /// The context of a running wait whose socket is unknown.
    waiting: Option<Context>,
}

impl WatchCanceller {
    pub(super) fn new(watchdog: Arc<CallWatchdog>) -> Self {
        Self {
            stop: StopFlag::new(),
            watchdog,
            current: Mutex::default(),
            returned: Condvar::new(),
        }
    }

    /// Makes a stop end every call on this connection.
    ///
    /// # Errors
    /// `Cancelled` after a stop.
    pub(super) fn attach(&self, established: &WatchedContext) -> Result<(), Error> {
        let mut current = self.current();
        if self.stop.is_set() {
            return Err(Error::Cancelled);
        }
        current.shutdown_handle = established.shutdown_handle().cloned();
        Ok(())
    }

    /// Runs `wait`, which blocks, so that a stop ends it. After a stop, `wait` does not run, and `None` is returned.
    pub(super) fn run_cancellable<T>(
        &self,
        established: &WatchedContext,
        wait: impl FnOnce() -> T,
    ) -> Option<T> {
        let mut current = self.current();
        if self.stop.is_set() {
            return None;
        }
        if established.shutdown_handle().is_some() {
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

    /// Ends the wait repeatedly, until it has returned. One attempt is not enough: the thread may not have begun its
    /// wait, or opened its socket.
    fn end_until_left(&self) {
        let deadline = Instant::now() + STOP_TIMEOUT;
        while self.end_once() {
            if Instant::now() >= deadline {
                tracing::warn!(
                    "PC/SC: a watch did not end within {STOP_TIMEOUT:?} after its stop; it is left running"
                );
                return;
            }
            let current = self.current();
            let _ = self.returned.wait_timeout(current, CANCEL_INTERVAL);
        }
    }

    /// Tries once to end the wait. Returns whether there was a wait or a new connection to end.
    fn end_once(&self) -> bool {
        let waiting = self.current().waiting.clone();
        // The error is ignored: the end of the wait shows whether the cancel worked.
        let _ = waiting.as_ref().map(Context::cancel);
        self.watchdog.abort_new_watch() | waiting.is_some()
    }
}

impl StopHandle for WatchCanceller {
    fn stop(&self) {
        self.stop.stop();
        let shutdown_handle = self.current().shutdown_handle.clone();
        shutdown_handle
            .iter()
            .for_each(|shutdown_handle| shutdown_handle.shut_down());
        // The watch may be making another connection, or waiting on a connection whose socket is unknown.
        self.end_until_left();
    }
}

/// Marks a wait as ended when dropped, however the wait ended.
struct WaitGuard<'a>(&'a WatchCanceller);

impl Drop for WaitGuard<'_> {
    fn drop(&mut self) {
        self.0.current().waiting = None;
        self.0.returned.notify_all();
    }
}
