//! The cost of calls, the delay of events, and the idle cost of a blocked process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test fails loudly, and its figures are small"
)]

mod budgets;
mod latency;
mod quiet;
