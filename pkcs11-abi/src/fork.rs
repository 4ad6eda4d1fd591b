//! Where the module lives in this process, and only in this one.
//!
//! A forked child is a new application (PKCS #11 2.40 usage guide, 2.5.2): it must not touch the parent's
//! locks, which other threads may have held, nor its connections. So the home of the module is a leaked value
//! marked with the count of forks; a child sees another count and gets a home of its own. Nothing of the
//! parent's is ever dropped in the child.

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use claviger_driver::fork;

use crate::{lifecycle::Lifecycle, module::Module};

/// How often this process is a fork of the one that loaded the library.
static FORKS: AtomicU64 = AtomicU64::new(0);
static HOME: AtomicPtr<ForkMarked> = AtomicPtr::new(std::ptr::null_mut());

struct ForkMarked {
    forks: u64,
    lifecycle: Lifecycle<Module>,
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

/// Whether this process is a fork of the one that loaded the library.
pub(crate) fn is_child() -> bool {
    FORKS.load(Ordering::SeqCst) > 0
}

/// The home of the module in this process; a fresh one in a child that has not been here yet.
pub(crate) fn lifecycle() -> &'static Lifecycle<Module> {
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
    let forks = FORKS.load(Ordering::SeqCst);
    loop {
        let current = HOME.load(Ordering::Acquire);
        // SAFETY: a pointer stored here came from `Box::into_raw` and is never freed.
        if let Some(marked) = unsafe { current.as_ref() }
            && marked.forks == forks
        {
            return &marked.lifecycle;
        }
        let fresh = Box::into_raw(Box::new(ForkMarked {
            forks,
            lifecycle: Lifecycle::default(),
        }));
        if HOME
            .compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Acquire)
            .is_err()
        {
            // SAFETY: another thread was first; nobody has seen this one.
            drop(unsafe { Box::from_raw(fresh) });
        }
    }
}
