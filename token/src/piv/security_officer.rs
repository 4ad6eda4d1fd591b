//! The security officer of a PIV card: the PUK, the management key, and what is known of both.
//!
//! A PUK is 6 to 8 bytes, a management key 32, 48 or 64 hexadecimal digits, so that one is never taken for the
//! other. The PUK gives the user a new PIN, the management key does all else.

use claviger_apdu::{Secret, StatusWord};

use super::{
    generation::GenerationAlgorithms,
    management_key::{KeyCipher, ManagementKey},
    pin::{self, tries_left},
};
use crate::{card::AppletTransaction, error::TokenError, pin::PinTries};

/// CHANGE REFERENCE DATA of the PUK.
pub(super) const CHANGE_PUK: [u8; 4] = [0x00, 0x24, 0x00, 0x81];

/// The two secrets of a security officer.
pub(super) enum SoPin<'a> {
    Puk(&'a Secret),
    Key(ManagementKey),
}

impl<'a> SoPin<'a> {
    pub(super) fn parse(so: &'a Secret) -> Result<Self, TokenError> {
        match ManagementKey::from_hex(so) {
            Some(key) => Ok(Self::Key(key)),
            None if (pin::MIN_LEN..=pin::MAX_LEN).contains(&so.len()) => Ok(Self::Puk(so)),
            None => Err(TokenError::SoPinForm {
                what: format!(
                    "the SO PIN of a PIV token is its PUK ({} to {} bytes) or its management key (32, 48 or 64 \
                     hexadecimal digits)",
                    pin::MIN_LEN,
                    pin::MAX_LEN
                ),
            }),
        }
    }
}

/// What is known of the card's administration.
pub(super) struct SoState {
    /// Tries of the PUK as last heard.
    pub(super) puk: PinTries,
    /// What the management key is for; unknown until it was needed.
    pub(super) cipher: Option<KeyCipher>,
    /// The keys that the card makes.
    pub(super) generable: GenerationAlgorithms,
    /// Whether the card was asked for its version, which says more of the keys it makes.
    pub(super) asked_version: bool,
}

impl SoState {
    pub(super) fn new(select_answer: &[u8]) -> Self {
        Self {
            puk: PinTries::default(),
            cipher: None,
            generable: GenerationAlgorithms::of(select_answer),
            asked_version: false,
        }
    }

    pub(super) fn authenticate(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        key: &ManagementKey,
    ) -> Result<KeyCipher, TokenError> {
        let known = self.cipher.take();
        let cipher = key.authenticate(tx, known)?;
        self.cipher = Some(cipher);
        Ok(cipher)
    }

    /// What CHANGE REFERENCE DATA or RESET RETRY COUNTER says of the PUK. One that tells wrong from refused has
    /// compared it: `refused` makes an error of the rest.
    pub(super) fn puk_result(
        &mut self,
        status: StatusWord,
        refused: impl FnOnce(StatusWord) -> Result<(), TokenError>,
    ) -> Result<(), TokenError> {
        match (status, tries_left(status)) {
            (StatusWord::OK, _) => {
                self.puk.note_success();
                Ok(())
            }
            (_, Some(0)) => {
                self.puk.note(0);
                Err(TokenError::SoPinLocked)
            }
            (_, Some(left)) => {
                // One more was there a moment ago.
                self.puk.note(left.saturating_add(1));
                self.puk.note(left);
                Err(TokenError::WrongSoPin {
                    tries_left: Some(left),
                })
            }
            (StatusWord::COMPARISON_FAILED | StatusWord::SECURITY_STATUS_NOT_SATISFIED, None) => {
                self.puk.left = None;
                Err(TokenError::WrongSoPin { tries_left: None })
            }
            (status, None) => refused(status),
        }
    }

    /// Changes the PUK to itself, which is the one way to have it compared and leaves all as it is.
    pub(super) fn verify_puk(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        puk: &Secret,
    ) -> Result<(), TokenError> {
        let response = tx.exchange(&pin::two_pin_command(puk, puk, CHANGE_PUK).as_apdu())?;
        self.puk_result(response.status, |status| match status {
            // No PUK can be written so.
            StatusWord::INCORRECT_DATA => Err(TokenError::WrongSoPin { tries_left: None }),
            // A card that lets nobody change it, or not to the same, compares it when it is needed.
            StatusWord::CONDITIONS_NOT_SATISFIED
            | StatusWord::FUNCTION_NOT_SUPPORTED
            | StatusWord::INCORRECT_P1_P2
            | StatusWord::REFERENCE_NOT_FOUND
            | StatusWord::INSTRUCTION_NOT_SUPPORTED => {
                tracing::info!("the PIV PUK is taken unproved: the card answers {status}");
                Ok(())
            }
            _ => Err(TokenError::refused(
                "PIV CHANGE REFERENCE DATA of the PUK",
                status,
            )),
        })
    }
}
