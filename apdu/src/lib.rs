//! ISO 7816-4 from the host's side: commands, responses, chaining, TLV and the answer to reset.
//!
//! Terms: a *frame* is one APDU on the wire. A *command* may take several frames. An *exchange* is one command with its
//! whole response. A *transaction* is a time in which no other program can send to the card.
//!
//! This crate does no I/O, starts no thread, keeps no clock, and contains no `unsafe`. A driver implements
//! [`Transport`]. An applet exchanges commands in a [`Transaction`]:
//!
//! ```
//! use claviger_apdu::{Call, CommandApdu, Limits, ResponseBuffer, StatusWord, Transaction, Transmit, TransportError};
//!
//! struct Card;
//! impl Transmit for Card {
//!     fn transmit(&mut self, frame: &[u8], response: &mut ResponseBuffer, _: Call) -> Result<(), TransportError> {
//!         assert_eq!(frame, [0x00, 0x20, 0x00, 0x80]);
//!         response.set(&[0x63, 0xC3]).expect("two bytes fit");
//!         Ok(())
//!     }
//! }
//!
//! let mut card = Card;
//! let mut transaction = Transaction::new(&mut card, Limits::SHORT);
//! let response = transaction.exchange(&CommandApdu::header([0x00, 0x20, 0x00, 0x80]))?;
//! assert_eq!(response.status.tries_left(), Some(3));
//! # Ok::<(), TransportError>(())
//! ```
//!
//! Only a transport blocks, and only until the deadline of its [`Call`].

#![forbid(unsafe_code)]

pub mod atr;
pub mod command;
pub mod exchange;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
pub mod response;
pub mod secret;
pub mod status;
pub mod tlv;
pub mod transport;

#[cfg(test)]
mod corpora;

pub use atr::Atr;
pub use command::{CommandApdu, CommandBudget, Expected, Limits};
pub use response::{ResponseApdu, ResponseBuffer};
pub use secret::Secret;
pub use status::StatusWord;
pub use transport::{
    Call, Epoch, Sent, Transaction, Transmit, Transport, TransportError, TransportErrorKind,
};
