//! What is done about a fork, for `pthread_atfork`.

use crate::{fork_closed, fork_guard};

/// To be called before a fork, in the thread that forks (pthread_atfork): keeps it out of the moments in which
/// libpcsclite, or libusb, could not be used in the child. Waits a second at most.
pub fn before_fork() {
    fork_guard::before_fork();
    // Descriptors that were registered while the fork waited are closed in the child, too.
    fork_closed::before_fork();
}

/// To be called after a fork in the parent.
pub fn after_fork_in_parent() {
    fork_guard::after_fork_in_parent();
}

/// To be called after a fork in the child.
pub fn after_fork_in_child() {
    fork_closed::after_fork_in_child();
    fork_guard::after_fork_in_child();
}
