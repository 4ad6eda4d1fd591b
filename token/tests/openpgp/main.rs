//! The OpenPGP application as a token, in scripted card sessions.

mod administration;
mod certificates;
#[allow(unreachable_pub, reason = "written for every test of the crate")]
#[path = "../common/mod.rs"]
mod common;
mod kdf;
mod login;
mod reading;
mod session;
mod signing;
