//! Foreign clients with this module, over the socket reader and over pcscd.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails loudly"
)]

mod gnutls;
mod java;
mod naming;
mod nss;
mod opensc_compare;
mod openssl;
mod openssl_engine;
mod ordinary_user;
mod p11tool;
mod pkcs11_tool;
mod pkcs11_tool_keys;
mod pkcs11_tool_self_test;
mod pykcs11;
mod ssh;
mod token_identity;
