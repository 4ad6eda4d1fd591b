//! Cards, readers and services that are lost, exchanged, unreachable or broken.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails loudly"
)]

mod access;
mod bad_input;
mod exchange;
mod removal;
mod resilience;
mod restart;
mod suspended_pcscd;
