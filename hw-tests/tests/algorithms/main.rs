//! Every mechanism with every kind of key of the firmware, checked against OpenSSL.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test fails loudly, and its figures are small"
)]

mod agreement;
mod decryption;
mod openssl;
mod signatures;
mod verification;
