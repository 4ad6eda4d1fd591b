//! Cards with real firmware and no hardware, readers to put them in, and clients to use them.
//!
//! | module | has |
//! |---|---|
//! | [`fixture`] | what tests set up: a provisioned card within a module's reach, the module in a process of its own |
//! | [`card`] | the card: the applets of the Nitrokey 3 in this process |
//! | [`provision`] | keys and certificates for it |
//! | [`reader`] | a place for it: presence, sharing, counts, faults |
//! | [`server`], [`vpcd`], [`pcscd`] | ways to it: the socket reader, vsmartcard, a pcscd of the test's own |
//! | [`usb`], [`vscard`] | ways to it over USB: a virtual reader of this machine, QEMU's of a guest |
//! | [`control`] | a reader's and a rig's remote control |
//! | [`client`], [`paths`], [`skip`] | programs with a time limit, where things are, tests that cannot run here |
//!
//! Everything is made for tests that run side by side: each rig has its own card, socket, folder and ports.

#![deny(unsafe_code)]

pub mod card;
pub mod client;
pub mod control;
#[allow(
    unsafe_code,
    reason = "calls the module by its C functions, forks, and asks the kernel"
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
