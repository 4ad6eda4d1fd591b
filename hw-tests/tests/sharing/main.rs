//! One card or one machine for several: programs, applets, readers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails loudly"
)]

mod coexistence;
mod isolation;
mod logout;
mod scdaemon;
mod sessions;
