//! Keeps a fork from copying a process-wide lock that a C library holds.
//!
//! A child gets a copy of the locked lock, but not the thread that would unlock it. The child's first call would
//! block for ever. So a fork waits for all short calls to end, and a short call waits for a fork. A fork does not
//! wait for a call that may take long (a command, a connection, a wait for events). Such a call holds the lock for a
//! moment only, in which a fork can still copy it. Both waits are bounded: other libraries' fork handlers may wait
//! for the very thread that waits here.
//!
//! Descriptors that a child closes are registered in such calls, too: see [`fork_closed`](crate::fork_closed).
//!
//! SCardEstablishContext holds libpcsclite's process-wide lock while it talks to pcscd. Every other call holds it for
//! a moment at its beginning. libusb has three such locks. It takes them when a context is made or destroyed, and
//! when it handles the loss of a device.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

/// How long a fork waits for calls. A pcscd that hangs must not block the fork.
const FORK_WAIT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a call waits for forks. The fork of a process with much memory takes a tenth of this time.
const FORK_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_micros(50);

static INSIDE: AtomicUsize = AtomicUsize::new(0);
static FORKING: AtomicUsize = AtomicUsize::new(0);

/// A call that may hold such a lock. The call ends when the guard is dropped.
pub(crate) struct ForkGuard(());

impl Drop for ForkGuard {
    fn drop(&mut self) {
        INSIDE.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Begins a call. Waits first while a fork is in progress, up to [`FORK_TIMEOUT`].
pub(crate) fn enter() -> ForkGuard {
    let mut deadline = None;
    loop {
        INSIDE.fetch_add(1, Ordering::SeqCst);
        let guard = ForkGuard(());
        if FORKING.load(Ordering::SeqCst) == 0
            || Instant::now() > *deadline.get_or_insert_with(|| Instant::now() + FORK_TIMEOUT)
        {
            return guard;
        }
        drop(guard);
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Makes new calls wait, then waits for the running calls, up to [`FORK_WAIT_TIMEOUT`]. Call this before a fork, in
/// the thread that forks.
pub(crate) fn before_fork() {
    FORKING.fetch_add(1, Ordering::SeqCst);
    let deadline = Instant::now() + FORK_WAIT_TIMEOUT;
    while INSIDE.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Call this after a fork in the parent.
pub(crate) fn after_fork_in_parent() {
    FORKING.fetch_sub(1, Ordering::SeqCst);
}

/// Forgets the calls of the parent's threads, which do not exist in the child. Call this after a fork in the child.
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
        let test = "fork_guard::tests::in_a_process_of_its_own";
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
