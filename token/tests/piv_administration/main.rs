//! Administration of a PIV card by its security officer, command by command.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests fail a test by panicking"
)]

#[allow(unreachable_pub, reason = "written for every test of the crate")]
#[path = "../common/mod.rs"]
mod common;
mod contents;
mod management_key;
mod pins;

use aes::{
    Aes128,
    cipher::{BlockCipherEncrypt, KeyInit},
};
use claviger_apdu::Secret;
use claviger_token::{Card, Token};
use common::{piv, text};

/// The Discovery Object, which is the probe for PIV and names PIV's own PIN.
const PROBE: &str = "
    > 00 CB 3F FF 03 5C 01 7E 00
    < 7E 12 4F 0B A000000308000010000100 5F2F 02 4010 9000
";
/// A management key for AES-128, and the card's challenge for it.
const KEY: &str = "000102030405060708090A0B0C0D0E0F";
const CHALLENGE: [u8; 16] = [0x5A; 16];

/// Returns a card with this session after its discovery.
fn open(session: &str) -> (Card, Token) {
    piv::discover(&format!("{}{session}", piv::DISCOVERED))
}

fn secret(text: &str) -> Secret {
    Secret::copy_from(text.as_bytes())
}

/// GET METADATA of the management key on a card without metadata.
const NO_METADATA: &str = "> 00 F7 00 9B 00\n< 6D00\n";

/// Scripts single authentication with [`KEY`] on a card without mutual authentication. `end` is the last status word.
fn authenticate(end: &str) -> String {
    let key: Vec<u8> = (0..16).collect();
    let mut block = CHALLENGE.into();
    Aes128::new_from_slice(&key)
        .unwrap()
        .encrypt_block(&mut block);
    format!(
        "> 00 87 08 9B 04 7C 02 80 00 00
        < 6A80
        > 00 87 08 9B 04 7C 02 81 00 00
        < 7C 12 81 10 {} 9000
        > 00 87 08 9B 14 7C 12 82 10 {}
        < {end}\n",
        text(&CHALLENGE),
        text(&block)
    )
}

/// Scripts the login of the security officer with [`KEY`].
fn so_login() -> String {
    format!("[\n{PROBE}{NO_METADATA}{}]\n", authenticate("9000"))
}

/// Scripts a transaction of the security officer, who is logged in with [`KEY`].
fn task(commands: &str) -> String {
    format!("[\n{PROBE}{}{commands}]\n", authenticate("9000"))
}

/// Returns a card whose security officer is logged in with [`KEY`], and which continues with `session`.
fn managed(session: &str) -> (Card, Token) {
    let (mut card, mut token) = open(&format!("{}{session}", so_login()));
    token.so_login(&mut card, &secret(KEY)).unwrap();
    (card, token)
}
