//! PKCS #11, rule by rule. Each test checks one rule, on PIV tokens and on OpenPGP tokens.
//!
//! The `cryptoki` crate is the client. Calls that it does not offer go through the function list.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test fails loudly, and its figures are small"
)]

mod allowed_mechanisms;
mod attribute_values;
mod attributes;
mod calls;
mod context_login;
mod decrypt;
mod derive;
mod digest;
mod dual;
mod general;
mod hmac;
mod initialize;
mod interfaces;
mod key_wrap;
mod login;
mod messages;
mod oaep;
mod objects;
mod profiles;
mod pss;
mod random;
mod secret_keys;
mod security_officer;
mod session_object_lifetime;
mod session_objects;
mod sessions;
mod sign;
mod sign_raw_rsa;
mod slots;
mod verify;
mod verify_signature;
mod wrap;
