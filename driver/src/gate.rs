//! Keeps a fork out of the moments in which a C library holds a lock of the whole process.
//!
//! A child that was forked meanwhile has the lock and not the thread that would open it: its first call would wait for
//! ever. So a fork waits, for a moment, for all calls that end at once, and such a call for a fork. A call that may last
//! (a command, a connection, a wait for events) is not waited for: its own instant remains.
//!
//! The descriptors that a child closes are registered in such calls, too: [`fork_closed`](crate::fork_closed).
//!
//! libpcsclite's SCardEstablishContext holds such a lock while it talks to pcscd, every other call for an instant at its
//! beginning. libusb has three: they are taken when a context comes or goes, and when the loss of a device is handled.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use crate::fork_closed;

/// How long a fork waits; a pcscd that hangs must not stop it.
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_micros(50);

static INSIDE: AtomicUsize = AtomicUsize::new(0);
static FORKING: AtomicUsize = AtomicUsize::new(0);

/// A call that holds the lock, until dropped.
pub(crate) struct Pass(());

impl Drop for Pass {
    fn drop(&mut self) {
        INSIDE.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Waits while somebody forks.
pub(crate) fn enter() -> Pass {
    loop {
        INSIDE.fetch_add(1, Ordering::SeqCst);
        let pass = Pass(());
        if FORKING.load(Ordering::SeqCst) == 0 {
            return pass;
        }
        drop(pass);
        std::thread::sleep(LOOK);
    }
}

/// To be called before a fork, in the thread that forks.
pub(crate) fn before_fork() {
    FORKING.fetch_add(1, Ordering::SeqCst);
    let until = Instant::now() + PATIENCE;
    while INSIDE.load(Ordering::SeqCst) > 0 && Instant::now() < until {
        std::thread::sleep(LOOK);
    }
    fork_closed::before_fork();
}

/// To be called after a fork in the parent.
pub(crate) fn after_fork_in_parent() {
    FORKING.fetch_sub(1, Ordering::SeqCst);
}

/// To be called after a fork in the child, where no other thread is.
pub(crate) fn after_fork_in_child() {
    fork_closed::after_fork_in_child();
    INSIDE.store(0, Ordering::SeqCst);
    FORKING.store(0, Ordering::SeqCst);
}
