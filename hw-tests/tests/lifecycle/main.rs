//! C_Initialize to C_Finalize: what a process, its children and its end have of the module, and what the module leaves.

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
mod library;
mod life;
