//! PIV and OpenPGP cards as Cryptoki tokens.
//!
//! Terms: a *card* is one connection; an *applet* is one application on it; a *token* is an applet with a login;
//! an *object* has all its attributes from the moment it is read; a *conversation* is an uninterrupted talk
//! with an applet.
//!
//! A signature walks `Token::sign` (login rule, host hash and padding) → the applet's one literal command →
//! [`claviger_apdu::Transaction::exchange`]. Status words gain meaning in the applet, once.
//!
//! Everything here blocks as long as the card does and not otherwise; nothing starts a thread or knows a reader.
//! Numbers of Cryptoki come from `cryptoki-sys`, its structures and pointers do not.

#![forbid(unsafe_code)]

pub mod administration;
mod administrator;
pub mod algorithm;
pub mod applet;
pub mod attribute;
pub mod card;
pub mod certificate;
pub mod error;
#[doc(hidden)]
pub mod fuzz;
mod login;
pub mod mechanism;
pub mod object;
pub mod openpgp;
pub mod operation;
pub mod piv;
pub mod token;

pub use administration::{Administration, SoWork};
pub use applet::{AppletKind, PinTries, TokenInfo, Wanted};
pub use attribute::{Template, Value};
pub use card::{Card, Conversation};
pub use error::TokenError;
pub use mechanism::MechanismInfo;
pub use object::{Object, ObjectId, PinRule, PrivateKey};
pub use operation::SignOperation;
pub use token::Token;
