//! Joining threads that may be stuck in somebody else's code.

use std::{
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How long a thread may take to end; one inside a wedged pcscd never does.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often its end is looked for; nearly always it has ended at the first look.
const LOOK: Duration = Duration::from_micros(200);

/// Waits for `thread` to end, within bounds; one that does not is left behind with what it holds.
pub(crate) fn join(thread: JoinHandle<()>, what: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !thread.is_finished() {
        if Instant::now() > deadline {
            tracing::error!("{what} does not come back; it is left behind");
            return;
        }
        std::thread::sleep(LOOK);
    }
    if thread.join().is_err() {
        tracing::error!("{what} panicked");
    }
}
