//! Handles: sequence numbers that no process ever sees twice, whatever C_Initialize and C_Finalize do.

use std::sync::atomic::{AtomicU64, Ordering};

use cryptoki_sys::CK_ULONG;

static LAST: AtomicU64 = AtomicU64::new(0);

/// A handle never given before; never 0, which the standard keeps for none.
pub(crate) fn fresh() -> CK_ULONG {
    let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    // 32-bit CK_ULONG: after four thousand million handles the process is told so by colliding ones.
    CK_ULONG::try_from(number).unwrap_or(CK_ULONG::MAX)
}
