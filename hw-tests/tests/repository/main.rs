//! The repository: its tree, and what it installs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails loudly")]

mod install;
mod tree;
