//! Cryptography on the host: with public keys, and with the secret keys of sessions. It uses no card.

mod aes_block;
pub mod cipher;
mod counter;
mod gcm;
pub mod kdf;
pub mod key_wrap;
pub mod mac;
pub mod public_key;
pub mod random;
