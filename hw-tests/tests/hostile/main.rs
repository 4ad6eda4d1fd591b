//! What hostile arguments get, rule by rule: the standard's code, nothing read or written beside what the caller gave,
//! and no state half changed. Whatever is given ends at a page that cannot be touched.

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
