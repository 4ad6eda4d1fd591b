//! Transmission protocols (ISO 7816-3) against cards that the test plays.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failing helper is a failing test"
)]

mod character;
mod notation;
mod parameters;
mod pps;
mod t0;
mod t1_limits;
mod t1_noise;
mod t1_scenarios;
mod t1_traps;
