//! What hostile arguments get, rule by rule: the standard's code, nothing read or written beside what the caller gave,
//! and no state half changed. Whatever is given ends at a page that cannot be touched.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::macro_metavars_in_unsafe,
    unreachable_pub,
    reason = "a test fails loudly, and its figures are small"
)]

#[path = "../conformance/bench.rs"]
#[macro_use]
#[allow(dead_code, reason = "shared with the suite of rules")]
mod bench;
#[path = "../../../fuzz/sequence/calls.rs"]
#[allow(dead_code, reason = "shared with the sequences of calls")]
mod calls;
#[path = "../conformance/cards.rs"]
#[allow(dead_code, reason = "shared with the suite of rules")]
mod cards;
#[path = "../../../fuzz/sequence/memory.rs"]
#[allow(dead_code, reason = "shared with the sequences of calls")]
mod memory;
#[path = "../stage/mod.rs"]
mod stage;

mod desk;
mod handles;
mod keys;
mod messages;
mod operations;
mod overlap;
mod parameters;
mod pins;
mod state;
mod templates;

use bench::{Bench, Seat};
