//! The tries of a PIN, whether it is verified, and what for.

use crate::object::PrivateKey;

/// PIN tries as last heard from the card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PinTries {
    /// Tries left; unknown until the card said so.
    pub left: Option<u8>,
    /// The most ever seen, to tell whether some are gone.
    pub most: Option<u8>,
}

impl PinTries {
    /// Notes what the card said.
    pub fn note(&mut self, left: u8) {
        self.left = Some(left);
        self.most = self.most.max(Some(left));
    }

    /// Notes a successful verification, which gives all tries back.
    pub fn note_success(&mut self) {
        self.left = self.most;
    }
}

/// Whether a PIN is verified, as the card says without spending a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinStatus {
    /// It is.
    Verified,
    /// It is not; tries left where the card says.
    NotVerified {
        /// Tries left.
        tries_left: Option<u8>,
    },
    /// No tries are left.
    Blocked,
}

/// What a PIN is verified for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinPurpose {
    /// C_Login(CKU_USER), or the same again after the card lost it.
    Login,
    /// One use of a key with [`crate::object::PinPolicy::Always`].
    Once(PrivateKey),
}
