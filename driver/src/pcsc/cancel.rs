//! Ends a wait inside libpcsclite from another thread.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ::pcsc::Context;

use crate::{backend::Wake, wait::Stop};

/// Time for a cancelled wait to come back before it is cancelled again.
const AGAIN: Duration = Duration::from_millis(2);
/// How long a stop goes on when pcscd takes no notice.
const GIVE_UP: Duration = Duration::from_secs(2);

/// A stop that reaches a thread inside SCardGetStatusChange.
///
/// SCardCancel is not sticky: it succeeds and does nothing unless the other thread is already inside the
/// blocking receive. So the stop is set first and the cancel repeated until the wait is left.
#[derive(Default)]
pub(super) struct Canceller {
    pub(super) stop: Stop,
    waiting: Mutex<Option<Context>>,
    left: Condvar,
}

impl Canceller {
    /// Runs `wait`, which blocks on `context`, so that a stop ends it; nothing after a stop.
    pub(super) fn during<T>(&self, context: &Context, wait: impl FnOnce() -> T) -> Option<T> {
        let mut waiting = self.waiting();
        if self.stop.is_set() {
            return None;
        }
        *waiting = Some(context.clone());
        drop(waiting);
        let leave = Leave(self);
        let outcome = wait();
        drop(leave);
        Some(outcome)
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Context>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Canceller {
    fn stop(&self) {
        self.stop.stop();
        let until = Instant::now() + GIVE_UP;
        let mut waiting = self.waiting();
        while let Some(context) = waiting.clone() {
            if Instant::now() >= until {
                tracing::warn!("PC/SC: a wait did not end within {GIVE_UP:?} of being cancelled");
                return;
            }
            drop(waiting);
            // Its errors say no more than the wait's own end does.
            let _ = context.cancel();
            waiting = self.waiting();
            if waiting.is_some() {
                let left = self.left.wait_timeout(waiting, AGAIN);
                waiting = left.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

/// The wait is over, however it ended.
struct Leave<'a>(&'a Canceller);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        *self.0.waiting() = None;
        self.0.left.notify_all();
    }
}
