//! Handles: sequence numbers. A process never gets a number twice, also across C_Finalize and C_Initialize.

use std::sync::atomic::{AtomicU64, Ordering};

use cryptoki_sys::CK_ULONG;

static LAST: AtomicU64 = AtomicU64::new(0);

/// Returns a new handle. It is never 0, which is CK_INVALID_HANDLE.
pub(crate) fn fresh() -> CK_ULONG {
    let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    // With a 32-bit CK_ULONG, all handles after the first 2^32 - 2 are the same.
    CK_ULONG::try_from(number).unwrap_or(CK_ULONG::MAX)
}
