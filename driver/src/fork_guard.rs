//! Keeps a fork out of the moments in which a C library holds a lock of the whole process.
//!
//! A child that was forked meanwhile has the lock and not the thread that would open it: its first call would wait for
//! ever. So a fork waits, for a moment, for all calls that end at once, and such a call for a fork. A call that may last
//! (a command, a connection, a wait for events) is not waited for: its own instant remains. Neither waits without end: what
//! other libraries do before a fork may wait for the very thread that is kept waiting here.
//!
//! The descriptors that a child closes are registered in such calls, too: [`fork_closed`](crate::fork_closed).
//!
//! libpcsclite's SCardEstablishContext holds such a lock while it talks to pcscd, every other call for an instant at its
//! beginning. libusb has three: they are taken when a context comes or goes, and when the loss of a device is handled.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

/// How long a fork waits; a pcscd that hangs must not stop it.
const FORK_WAIT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a call waits for forks; one of a process with much memory takes a tenth of it.
const FORK_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_micros(50);

static INSIDE: AtomicUsize = AtomicUsize::new(0);
static FORKING: AtomicUsize = AtomicUsize::new(0);

/// A call that holds the lock, until dropped.
pub(crate) struct ForkGuard(());

impl Drop for ForkGuard {
    fn drop(&mut self) {
        INSIDE.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Waits while somebody forks, for a while.
pub(crate) fn enter() -> ForkGuard {
    let mut deadline = None;
    loop {
        INSIDE.fetch_add(1, Ordering::SeqCst);
        let pass = ForkGuard(());
        if FORKING.load(Ordering::SeqCst) == 0
            || Instant::now() > *deadline.get_or_insert_with(|| Instant::now() + FORK_TIMEOUT)
        {
            return pass;
        }
        drop(pass);
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// To be called before a fork, in the thread that forks.
pub(crate) fn before_fork() {
    FORKING.fetch_add(1, Ordering::SeqCst);
    let deadline = Instant::now() + FORK_WAIT_TIMEOUT;
    while INSIDE.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// To be called after a fork in the parent.
pub(crate) fn after_fork_in_parent() {
    FORKING.fetch_sub(1, Ordering::SeqCst);
}

/// To be called after a fork in the child, where no other thread is.
pub(crate) fn after_fork_in_child() {
    INSIDE.store(0, Ordering::SeqCst);
    FORKING.store(0, Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn fork_that_never_ends_does_not_block_calls_for_ever() {
        let test = "gate::tests::in_a_process_of_its_own";
        let mut this = Command::new(std::env::current_exe().unwrap());
        let ran = this.args(["--exact", test, "--ignored"]).output().unwrap();
        assert!(String::from_utf8_lossy(&ran.stdout).contains("1 passed"));
    }

    #[test]
    #[ignore = "run by the test above"]
    fn in_a_process_of_its_own() {
        before_fork();
        drop(enter());
        after_fork_in_parent();
        drop(enter());
    }
}
