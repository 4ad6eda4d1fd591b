//! C_Initialize to C_Finalize: processes, forked children, exits, and resources that the module leaves behind.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test fails loudly, and its figures are small"
)]

mod alone;
mod end;
mod exit;
mod fork;
mod generations;
mod library;
