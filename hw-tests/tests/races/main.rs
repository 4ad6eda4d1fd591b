//! C_Initialize and C_Finalize, thousands of times: against waiters, and one after the other.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test fails loudly, and its figures are small"
)]

mod cycles;
mod waiters;
