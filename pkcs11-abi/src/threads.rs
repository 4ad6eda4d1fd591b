//! Joining the module's threads.

use std::{thread::JoinHandle, time::Duration};

/// How long a thread may take to end; one inside a wedged pcscd never does.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits for `thread` to end, within bounds.
pub(crate) fn join(thread: JoinHandle<()>, what: &str) {
    claviger_driver::threads::join_within(thread, what, JOIN_TIMEOUT);
}
