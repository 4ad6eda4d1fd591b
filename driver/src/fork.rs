//! The handlers of a fork, for `pthread_atfork`.

use crate::{fork_closed, fork_guard};

/// Prepares for a fork. Call this before the fork, in the thread that forks (pthread_atfork). Waits up to a second,
/// so that the fork does not copy a lock which libpcsclite or libusb holds.
pub fn before_fork() {
    fork_guard::before_fork();
    // The child also closes the descriptors that were registered while the fork waited.
    fork_closed::before_fork();
}

/// Call this after a fork in the parent.
pub fn after_fork_in_parent() {
    fork_guard::after_fork_in_parent();
}

/// Call this after a fork in the child.
pub fn after_fork_in_child() {
    fork_closed::after_fork_in_child();
    fork_guard::after_fork_in_child();
}
