//! The tries of a PIN, its verification, and the purpose of the verification.

use crate::object::PrivateKey;

/// PIN tries, as the card last reported them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PinTries {
    /// Tries left. Unknown until the card reports them.
    pub left: Option<u8>,
    /// The highest number seen, which shows whether tries are spent.
    pub most: Option<u8>,
}

impl PinTries {
    /// Updates the tries with a report of the card.
    pub fn note(&mut self, left: u8) {
        self.left = Some(left);
        self.most = self.most.max(Some(left));
    }

    /// Updates the tries after a successful verification, which restores all tries.
    pub fn note_success(&mut self) {
        self.left = self.most;
    }
}

/// Whether a PIN is verified, as the card reports without spending a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinStatus {
    /// The PIN is verified.
    Verified,
    /// The PIN is not verified.
    NotVerified {
        /// Tries left, if the card reports them.
        tries_left: Option<u8>,
    },
    /// No tries are left.
    Blocked,
}

/// The purpose of a verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinPurpose {
    /// C_Login(CKU_USER), or its repetition after the card lost the verification.
    Login,
    /// One use of a key with [`crate::object::PinPolicy::Always`].
    Once(PrivateKey),
}
