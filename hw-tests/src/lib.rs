//! Cards with real firmware and no hardware, readers to put them in, and clients to use them.

#![forbid(unsafe_code)]

pub mod card;
pub mod provision;
