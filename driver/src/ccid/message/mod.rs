//! The messages of the bulk endpoints (CCID 1.1, 6.1 and 6.2): a header of ten bytes, then data.

mod command;
mod response;
mod slot_error;

pub use command::{Command, Voltage};
#[cfg(any(test, feature = "fuzzing"))]
pub use response::fuzz;
pub use response::{CcidResponse, CommandStatus, IccStatus, MessageError, ResponseKind};
pub use slot_error::SlotError;

/// The length of a message's header.
pub const HEADER: usize = 10;
