//! PIV and OpenPGP cards as Cryptoki tokens.
//!
//! Terms: a *card* is one connection; an *applet* is one application on it; a *token* is an applet with a login;
//! an *object* has all its attributes from the moment it is read; a *conversation* is an uninterrupted talk
//! with an applet.
//!
//! A signature walks [`SignOperation`] (host hash and padding) → `Token::use_private_key` (login rule) → the applet's one literal command →
//! [`claviger_apdu::Transaction::exchange`]. Status words gain meaning in the applet, once.
//!
//! Everything here blocks as long as the card does and not otherwise; nothing starts a thread or knows a reader.
//! Numbers of Cryptoki come from `cryptoki-sys`, its structures and pointers do not.

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
