//! Several programs, applets and readers at the same time.

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
