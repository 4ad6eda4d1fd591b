//! What a call costs, how soon an event is told, and that a blocked process costs nothing.

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
