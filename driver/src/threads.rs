//! Joins threads that may hang in another library.

use std::{
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How often the thread is checked. Nearly always it has ended at the first check.
const POLL_INTERVAL: Duration = Duration::from_micros(200);

/// Waits up to `timeout` for `thread` to end. A thread that is still running then is left behind with everything it
/// owns.
pub fn join_within(thread: JoinHandle<()>, what: &str, timeout: Duration) {
    let deadline = Instant::now() + timeout;
    while !thread.is_finished() {
        if Instant::now() > deadline {
            tracing::error!("{what} did not end within {timeout:?}; it is left behind");
            return;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    if thread.join().is_err() {
        tracing::error!("{what} panicked");
    }
}
