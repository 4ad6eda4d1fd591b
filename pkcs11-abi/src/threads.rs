//! Joins the module's threads.

use std::{thread::JoinHandle, time::Duration};

/// Timeout of a join. A thread that waits for an unresponsive pcscd may never end.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits up to `JOIN_TIMEOUT` for `thread` to end.
pub(crate) fn join(thread: JoinHandle<()>, what: &str) {
    claviger_driver::threads::join_within(thread, what, JOIN_TIMEOUT);
}
