//! Hostile arguments, rule by rule: the call returns the standard's code, accesses no memory beyond its arguments, and changes
//! no state partially. Each argument ends at a page without access.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test fails loudly, and its figures are small"
)]

mod handles;
mod keys;
mod messages;
mod operations;
mod overlap;
mod parameters;
mod pins;
mod sequences;
mod state;
mod templates;
