//! Loads libpcsclite before the first context is made. The library stays loaded until the process ends.

use ::pcsc::{Error, ffi};

use crate::fork_guard;

/// Loads the library if it is not loaded. After a failure, the next call tries again.
///
/// # Errors
/// `NoService` if the library cannot be loaded.
pub(super) fn load() -> Result<(), Error> {
    if is_loaded() {
        return Ok(());
    }
    // The loader holds a process-wide lock.
    let _pass = fork_guard::enter();
    ffi::load().map_err(|why| {
        tracing::debug!("PC/SC: {why}");
        Error::NoService
    })
}

/// Returns whether the library is loaded.
pub(super) fn is_loaded() -> bool {
    ffi::is_loaded()
}

/// Returns why there is no service and how to solve it.
pub(super) fn hint() -> &'static str {
    if is_loaded() {
        "; pcscd does not run, or its socket is unreachable (docs/pcscd.md)"
    } else {
        "; libpcsclite.so.1 is not installed or cannot be loaded: install pcscd and libpcsclite1 (docs/pcscd.md)"
    }
}
