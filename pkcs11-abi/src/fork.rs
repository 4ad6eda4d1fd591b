//! Per-process state. A forked child gets a fresh value and never touches the value of its parent.
//!
//! A forked child is a new application (PKCS #11 2.40 usage guide, 2.5.2). It must not use the parent's locks, which other
//! threads may have held, nor the parent's connections. So each value is leaked and marked with the fork count. A child has
//! another fork count and makes a new value. The child never drops a value of the parent.

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use claviger_driver::fork;

/// The number of forks between the process that loaded the library and this process.
static FORKS: AtomicU64 = AtomicU64::new(0);

/// A value for each process, made at its first use. A forked child makes a new value.
pub(crate) struct PerProcess<T>(AtomicPtr<ForkMarked<T>>);

struct ForkMarked<T> {
    forks: u64,
    value: T,
}

extern "C" fn before() {
    fork::before_fork();
}

extern "C" fn in_parent() {
    fork::after_fork_in_parent();
}

extern "C" fn in_child() {
    FORKS.fetch_add(1, Ordering::SeqCst);
    fork::after_fork_in_child();
}

/// Returns whether this process is a fork of the one that loaded the library.
pub(crate) fn is_child() -> bool {
    FORKS.load(Ordering::SeqCst) > 0
}

/// Registers the fork handlers at the first call.
fn count_forks() {
    static REGISTERED: AtomicBool = AtomicBool::new(false);
    // Not a `Once`: if a fork happened while another thread was inside the `Once`, the child would wait for ever.
    if !REGISTERED.load(Ordering::SeqCst) && !REGISTERED.swap(true, Ordering::SeqCst) {
        // SAFETY: the handlers are functions of this library, and the C library drops the registration when this library is
        // unloaded. The handler in the child does only what is allowed in a forked child.
        let refused =
            unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
        if refused != 0 {
            tracing::error!(
                "fork handler not registered (error {refused}); do not use this module after a fork"
            );
        }
    }
}

impl<T> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(std::ptr::null_mut()))
    }
}

impl<T: Default + Send + Sync + 'static> PerProcess<T> {
    /// Returns the value of this process.
    pub(crate) fn get(&self) -> &'static T {
        count_forks();
        let forks = FORKS.load(Ordering::SeqCst);
        loop {
            let current = self.0.load(Ordering::Acquire);
            // SAFETY: a pointer stored here came from `Box::into_raw` and is never freed.
            if let Some(marked) = unsafe { current.as_ref() }
                && marked.forks == forks
            {
                return &marked.value;
            }
            let fresh = Box::into_raw(Box::new(ForkMarked {
                forks,
                value: T::default(),
            }));
            if self
                .0
                .compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Acquire)
                .is_err()
            {
                // SAFETY: another thread was first, so `fresh` was never shared.
                drop(unsafe { Box::from_raw(fresh) });
            }
        }
    }
}
