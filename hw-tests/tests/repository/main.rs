//! The repository: its tree, its documents, the imports between its files, and what it installs.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails loudly"
)]

mod docs;
mod imports;
mod install;
mod tree;
