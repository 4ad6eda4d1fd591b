//! PIN entry at the reader (CCID 1.1, 6.1.11; PC/SC part 10, 2.5). The PIN never reaches this machine.
//!
//! Terms: a *request* is the PIN entry and the command that an applet needs. A [`PinPad`] is a reader whose PIN pad
//! may be used. An *entry* is the request encoded for one reader, for CCID or for PC/SC. An *outcome* is the result
//! of an entry.
//!
//! ```text
//! PinRequest ──► PinPad::entry ──► PinEntry ──► ccid()    Secure     APDU level, TPDU of T=0
//!                  policy, limits     │     ──► T1Entry   Secure     TPDU of T=1: bTeoPrologue, N(S) kept or advanced
//!                                     │     ──► part10()  SCardControl
//!                                     └── PinOutcome: the card's status word, or why it never received a PIN
//! ```
//!
//! A PIN pad is used only if the table of readers trusts it ([`Trust::Table`]). Many readers announce a PIN pad that
//! they do not have, and some reveal the pressed keys to the host. Nothing is sent twice, because a verification
//! costs one of the card's tries.
//!
//! This module only converts values. It has no caller yet: the module does not offer
//! CKF_PROTECTED_AUTHENTICATION_PATH.

mod entry;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
mod outcome;
mod pad;
mod quirks;
mod request;
mod t1_entry;

pub use entry::PinEntry;
pub use outcome::{PinEnd, PinOutcome};
pub use pad::{NoPinPad, Operations, PinPad, Trust};
pub use quirks::PadQuirks;
pub use request::{Digits, PinForm, PinRequest, Purpose, RequestError};
pub use t1_entry::{Numbers, T1Entry, T1Step};

/// The longest data of a Secure command of this module: a modification of two PINs in blocks of fifteen bytes.
pub const LONGEST: usize = 55;

#[cfg(test)]
mod tests;
