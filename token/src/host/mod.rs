//! Cryptography the host does itself: with public keys, and with secret keys of a session. No card is asked.

mod aes_block;
pub mod cipher;
mod counter;
mod gcm;
pub mod kdf;
pub mod key_wrap;
pub mod mac;
pub mod public_key;
pub mod random;
