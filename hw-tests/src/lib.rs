//! Cards with real firmware and no hardware, readers to put them in, and clients to use them.

#![forbid(unsafe_code)]

pub mod card;
pub mod control;
pub mod provision;
pub mod reader;
pub mod server;
pub mod vpcd;
