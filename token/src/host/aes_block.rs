//! One block of AES, with a key of any length that AES has.

use aes::{
    Aes128, Aes192, Aes256,
    cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit},
};
use claviger_apdu::Secret;

/// Length of a block in bytes.
pub(super) const BLOCK: usize = 16;
/// One block.
pub(super) type Block = [u8; BLOCK];

/// An expanded key. It is wiped when dropped.
pub(super) enum Aes {
    Key128(Aes128),
    Key192(Aes192),
    Key256(Aes256),
}

impl Aes {
    /// Returns `None` for a key of a length that AES does not have.
    pub(super) fn new(key: &Secret) -> Option<Self> {
        let key = key.expose();
        match key.len() {
            16 => Aes128::new_from_slice(key).ok().map(Self::Key128),
            24 => Aes192::new_from_slice(key).ok().map(Self::Key192),
            32 => Aes256::new_from_slice(key).ok().map(Self::Key256),
            _ => None,
        }
    }

    pub(super) fn encrypt(&self, block: &mut Block) {
        match self {
            Self::Key128(aes) => aes.encrypt_block(block.into()),
            Self::Key192(aes) => aes.encrypt_block(block.into()),
            Self::Key256(aes) => aes.encrypt_block(block.into()),
        }
    }

    pub(super) fn decrypt(&self, block: &mut Block) {
        match self {
            Self::Key128(aes) => aes.decrypt_block(block.into()),
            Self::Key192(aes) => aes.decrypt_block(block.into()),
            Self::Key256(aes) => aes.decrypt_block(block.into()),
        }
    }
}

/// XORs `with` into `target`, up to the shorter length.
pub(super) fn xor(target: &mut [u8], with: &[u8]) {
    for (byte, with) in target.iter_mut().zip(with) {
        *byte ^= with;
    }
}
