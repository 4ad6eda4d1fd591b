//! Joining threads that may be stuck in somebody else's code.

use std::{
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How often the end is looked for; nearly always it has come at the first look.
const POLL_INTERVAL: Duration = Duration::from_micros(200);

/// Waits for `thread` to end, as long as `patience`; one that does not is left behind with what it holds.
pub fn join_within(thread: JoinHandle<()>, what: &str, patience: Duration) {
    let deadline = Instant::now() + patience;
    while !thread.is_finished() {
        if Instant::now() > deadline {
            tracing::error!("{what} does not come back; it is left behind");
            return;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    if thread.join().is_err() {
        tracing::error!("{what} panicked");
    }
}
