//! PIV and OpenPGP cards as Cryptoki tokens.
//!
//! Terms: a *card* is one transport. An *applet* is one application on it. A *token* is an applet with a login state.
//! An *object* has all its attributes from the moment it is read. A *transaction* is a time in which no other program
//! can send to the card.
//!
//! A signature passes [`SignOperation`] (hash and padding on the host), `Token::use_private_key` (login rules), the
//! applet's one command, and [`claviger_apdu::Transaction::exchange`]. Only the applet interprets status words.
//!
//! Calls block as long as the card works, and not otherwise. The crate starts no thread and knows no reader. It takes
//! the constants of Cryptoki from `cryptoki-sys`, but not its structures and pointers.

#![forbid(unsafe_code)]

pub mod administration;
pub mod algorithm;
pub mod applet;
pub mod application;
pub mod attribute;
mod attribute_table;
pub mod card;
pub mod certificate;
pub mod digest;
mod discovery;
pub mod error;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
pub mod host;
pub mod key_pair_spec;
mod login;
pub mod mechanism;
mod named_curve;
pub mod naming;
pub mod object;
pub mod openpgp;
pub mod operation;
pub mod padding;
pub mod pin;
pub mod piv;
mod profile;
mod security_officer;
pub mod session_object;
pub mod token;

#[cfg(test)]
mod corpora;
#[cfg(test)]
mod hex;

pub use administration::{Administration, SoPurpose};
pub use applet::{SearchScope, TokenInfo};
pub use application::AppletKind;
pub use attribute::{SharedSecret, Template, Value};
pub use card::{AppletTransaction, Card};
pub use error::{TemplateFault, TokenError};
pub use mechanism::{Mechanism, MechanismInfo, Parameter};
pub use naming::{IdScheme, Naming};
pub use object::{Key, Object, ObjectId, PinPolicy, PrivateKey};
pub use operation::{
    CipherOperation, DecryptOperation, EncryptOperation, SignOperation, VerifyOperation,
};
pub use pin::PinTries;
pub use token::Token;
