//! Virtual cards with real firmware, virtual readers for them, and clients that use them.
//!
//! | module | has |
//! |---|---|
//! | [`fixture`] | test fixtures: provisioned cards that the module can reach, the module in a process of its own |
//! | [`card`] | the card: the applets of the Nitrokey 3 in this process |
//! | [`provision`] | keys and certificates for it |
//! | [`reader`] | a reader for it: presence, sharing, counts, faults |
//! | [`server`], [`vpcd`], [`pcscd`] | services for it: the socket reader, vsmartcard, a pcscd of the test's own |
//! | [`usb`], [`vscard`] | USB readers for it: a virtual reader of this machine, the reader of a QEMU guest |
//! | [`control`] | remote control of a reader and of a card fixture |
//! | [`client`], [`paths`], [`skip`] | programs with a time limit, paths, skipped tests |
//!
//! Tests can run in parallel: each card fixture has its own card, socket, folder and ports.

#![deny(unsafe_code)]

pub mod card;
pub mod client;
pub mod control;
#[allow(
    unsafe_code,
    reason = "calls the module by its C functions, forks, and makes system calls"
)]
pub mod fixture;
pub mod paths;
pub mod pcscd;
pub mod provision;
pub mod reader;
pub mod server;
pub mod skip;
pub mod usb;
pub mod vpcd;
pub mod vscard;

mod t0;
