//! The security officer (SO) of a PIV card: the PUK, the management key, and the state of both.
//!
//! A PUK has 6 to 8 bytes. A management key has 32, 48 or 64 hexadecimal digits. So one is never mistaken for the
//! other. The PUK authorizes a new user PIN, the management key everything else.

use claviger_apdu::{Secret, StatusWord};

use super::{
    generation::GenerationAlgorithms,
    management_key::{KeyCipher, ManagementKey},
    pin::{self, tries_left},
};
use crate::{card::AppletTransaction, error::TokenError, pin::PinTries};

/// CHANGE REFERENCE DATA of the PUK.
pub(super) const CHANGE_PUK: [u8; 4] = [0x00, 0x24, 0x00, 0x81];

/// The two kinds of SO PIN.
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

/// The state of the card's administration, as far as known.
pub(super) struct SoState {
    /// Tries of the PUK, as the card last reported them.
    pub(super) puk: PinTries,
    /// The cipher of the management key. Unknown until GET METADATA or an authentication shows it.
    pub(super) cipher: Option<KeyCipher>,
    /// The algorithms for which the card generates keys.
    pub(super) generatable_algorithms: GenerationAlgorithms,
    /// Whether the version was queried, which shows more algorithms for key generation.
    pub(super) queried_version: bool,
}

impl SoState {
    pub(super) fn new(select_response: &[u8]) -> Self {
        Self {
            puk: PinTries::default(),
            cipher: None,
            generatable_algorithms: GenerationAlgorithms::of(select_response),
            queried_version: false,
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

    /// Converts the status of CHANGE REFERENCE DATA or RESET RETRY COUNTER to a result of comparing the PUK. `refused`
    /// converts a status that says nothing about the comparison.
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
                // One try more was left before this command.
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

    /// Verifies the PUK by changing it to itself. No other command compares the PUK without a change.
    pub(super) fn verify_puk(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        puk: &Secret,
    ) -> Result<(), TokenError> {
        let response = tx.exchange(&pin::two_pin_command(puk, puk, CHANGE_PUK).as_apdu())?;
        self.puk_result(response.status, |status| match status {
            // No card accepts a PUK of this form.
            StatusWord::INCORRECT_DATA => Err(TokenError::WrongSoPin { tries_left: None }),
            // This card does not allow the change, or not to the same value. It compares the PUK when the PUK is used.
            StatusWord::CONDITIONS_NOT_SATISFIED
            | StatusWord::FUNCTION_NOT_SUPPORTED
            | StatusWord::INCORRECT_P1_P2
            | StatusWord::REFERENCE_NOT_FOUND
            | StatusWord::INSTRUCTION_NOT_SUPPORTED => {
                tracing::info!(
                    "the PIV PUK cannot be verified at login (the card responds {status}); its first use verifies it"
                );
                Ok(())
            }
            _ => Err(TokenError::refused(
                "PIV CHANGE REFERENCE DATA of the PUK",
                status,
            )),
        })
    }
}
