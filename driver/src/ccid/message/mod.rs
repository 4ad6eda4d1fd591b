//! The messages of the bulk endpoints (CCID 1.1, 6.1 and 6.2): ten bytes of header, and data.

mod answer;
mod command;
mod slot_error;

#[cfg(any(test, feature = "fuzzing"))]
pub use answer::fuzz;
pub use answer::{Answer, AnswerKind, IccStatus, MessageError, Outcome};
pub use command::{Command, Voltage};
pub use slot_error::SlotError;

/// Bytes before the data of each message.
pub const HEADER: usize = 10;
