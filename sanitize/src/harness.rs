//! The private pcscd of `hw-tests` and what it stands on, taken from there file by file: the test cards in that
//! package take minutes to build.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "only a part of each is used here"
)]

#[path = "../../hw-tests/src/client.rs"]
pub mod client;
#[path = "../../hw-tests/src/paths.rs"]
pub mod paths;
#[path = "../../hw-tests/src/pcscd/mod.rs"]
pub mod pcscd;
