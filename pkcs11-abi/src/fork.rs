//! Per-process state. A forked child gets a fresh value and never touches that of its parent.
//!
//! A forked child is a new application (PKCS #11 2.40 usage guide, 2.5.2). It must not touch the parent's locks, which other
//! threads may have held, nor the parent's connections. So each value is leaked and marked with the count of forks. A child
//! sees another count and makes a value of its own. Nothing of the parent's is ever dropped in the child.

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use claviger_driver::fork;

/// How often this process is a fork of the one that loaded the library.
static FORKS: AtomicU64 = AtomicU64::new(0);

/// A value that each process has for itself. It is made at its first use, in a forked child anew.
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

/// Has forks counted from the first call on.
fn count_forks() {
    static REGISTERED: AtomicBool = AtomicBool::new(false);
    // No `Once`: a fork while another thread is inside it would leave the child waiting for ever.
    if !REGISTERED.load(Ordering::SeqCst) && !REGISTERED.swap(true, Ordering::SeqCst) {
        // SAFETY: in the child only atomics are written, which is safe there; the C library drops the registration
        // when this library is unloaded.
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
    /// The value of this process.
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
                // SAFETY: another thread was first; nobody has seen this one.
                drop(unsafe { Box::from_raw(fresh) });
            }
        }
    }
}
