//! libpcsclite itself: loaded before the first context is made, for the life of the process.

use ::pcsc::{Error, ffi};

use crate::fork_guard;

/// Loads the library if it is not; asks the system anew until it was found.
///
/// # Errors
/// `NoService` where it cannot be loaded.
pub(super) fn load() -> Result<(), Error> {
    if is_loaded() {
        return Ok(());
    }
    // The loader has a lock of the whole process.
    let _pass = fork_guard::enter();
    ffi::load().map_err(|why| {
        tracing::debug!("PC/SC: {why}");
        Error::NoService
    })
}

/// Whether the library was found.
pub(super) fn is_loaded() -> bool {
    ffi::is_loaded()
}

/// What explains that there is no service, and what helps.
pub(super) fn cure() -> &'static str {
    if is_loaded() {
        "; pcscd does not run, or its socket is out of reach (docs/pcscd.md)"
    } else {
        "; libpcsclite.so.1 is not installed or cannot be loaded: install pcscd and libpcsclite1 (docs/pcscd.md)"
    }
}
