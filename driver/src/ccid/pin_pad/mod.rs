//! A PIN typed at the reader (CCID 1.1, 6.1.11; PC/SC part 10, 2.5): it never reaches this machine.
//!
//! Terms: a *request* is what an applet wants typed and sent; a [`PinPad`] is a reader that may be asked for it; an
//! *entry* is the request as this reader takes it, encoded for CCID or for PC/SC; an *outcome* is what became of it.
//!
//! ```text
//! PinRequest ──► PinPad::entry ──► PinEntry ──► ccid()    Secure     APDU level, TPDU of T=0
//!                  policy, limits     │     ──► T1Entry   Secure     TPDU of T=1: bTeoPrologue, N(S) kept or advanced
//!                                     │     ──► part10()  SCardControl
//!                                     └── PinOutcome: the card's status word, or why it never saw a PIN
//! ```
//!
//! A pad is used only where the table of readers says that it may be trusted ([`Trust::Table`]): many readers
//! announce a pad they do not have, and some tell the host which keys are pressed. Nothing here is sent twice: a
//! verification costs a try of the card's.
//!
//! Values only, and no user of them yet: the module does not offer CKF_PROTECTED_AUTHENTICATION_PATH.

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

/// Longest data of a Secure command made here: a modification of two PINs in blocks of fifteen bytes.
pub const LONGEST: usize = 55;

#[cfg(test)]
mod tests;
