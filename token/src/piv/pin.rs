//! The PIN: its form, the status words about it, and the end of its verification (SP 800-73-4 part 2, 3.2.1).

use claviger_apdu::{CommandApdu, CommandBudget, Expected, Secret, StatusWord};

use super::{
    data_object::GET_DISCOVERY,
    discovery::{Discovery, GLOBAL_PIN, PIV_PIN},
};
use crate::{
    applet::OwnedCommand,
    card::AppletTransaction,
    error::TokenError,
    openpgp,
    pin::{PinStatus, PinTries},
};

/// Shortest PIN in bytes.
pub(super) const MIN_LEN: usize = 6;
/// Longest PIN in bytes. Shorter ones are padded with FF.
pub(super) const MAX_LEN: usize = 8;

/// Applications other than PIV. On cards that follow the standard, selecting one of them ends PIV's verifications.
const OTHER_APPLICATIONS: [&[u8]; 2] = [
    openpgp::APPLICATION.aid,
    // The issuer security domain, which every GlobalPlatform card has.
    &[0xA0, 0x00, 0x00, 0x01, 0x51, 0x00, 0x00, 0x00],
];

/// The state of the PIN, as far as known.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PinState {
    /// Which PIN the card requires. Unknown until the Discovery Object was read.
    discovery: Option<Discovery>,
    /// The tries, as the card last reported them.
    pub(super) tries: PinTries,
}

impl PinState {
    /// Caches the Discovery Object.
    pub(super) fn discovered(&mut self, discovery: Discovery) {
        self.discovery = Some(discovery);
    }

    fn reference(&self) -> u8 {
        self.discovery
            .map_or(PIV_PIN, |discovery| discovery.pin_reference)
    }

    /// Refuses a length that no PIV card takes.
    pub(super) fn check(pin: &Secret) -> Result<(), TokenError> {
        if (MIN_LEN..=MAX_LEN).contains(&pin.len()) {
            return Ok(());
        }
        Err(TokenError::PinLength {
            len: pin.len(),
            min: MIN_LEN,
            max: MAX_LEN,
        })
    }

    /// Sends VERIFY, which costs one try. Reads the Discovery Object first if it is not cached, because a try with the
    /// wrong PIN reference would be lost.
    pub(super) fn verify(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        pin: &Secret,
    ) -> Result<(), TokenError> {
        Self::check(pin)?;
        if self.discovery.is_none() {
            self.discover(tx)?;
        }
        let response = tx.exchange(&CommandApdu {
            data: padded(pin).expose(),
            expected: Expected::Nothing,
            ..CommandApdu::header([0x00, 0x20, 0x00, self.reference()])
        })?;
        self.verified(response.status)
    }

    /// Sends CHANGE REFERENCE DATA. Verifies the old PIN first: some cards use the same status word for a wrong old PIN
    /// and for a refused new PIN. A wrong old PIN is then reported with its tries.
    pub(super) fn change(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        old: &Secret,
        new: &Secret,
    ) -> Result<(), TokenError> {
        check_new(new)?;
        self.verify(tx, old)?;
        let header = [0x00, 0x24, 0x00, self.reference()];
        let status = tx
            .exchange(&two_pin_command(old, new, header).as_apdu())?
            .status;
        match status {
            _ if refuses_new(status) => Err(TokenError::NewPinInvalid {
                what: format!("{}: {status}", self.operation("CHANGE REFERENCE DATA")),
            }),
            status => self.verified(status),
        }
    }

    /// Builds the command that sets the PIN to `new` with the PUK (3.2.3). It changes the same PIN that
    /// [`PinState::verify`] sends.
    pub(super) fn reset(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        puk: &Secret,
        new: &Secret,
    ) -> Result<OwnedCommand, TokenError> {
        if self.discovery.is_none() {
            self.discover(tx)?;
        }
        Ok(two_pin_command(
            puk,
            new,
            [0x00, 0x2C, 0x00, self.reference()],
        ))
    }

    /// Sets the tries to their maximum after the PIN was reset.
    pub(super) fn was_reset(&mut self) {
        self.tries.note_success();
    }

    fn discover(&mut self, tx: &mut AppletTransaction<'_, '_>) -> Result<(), TokenError> {
        let response = tx.read(&GET_DISCOVERY)?;
        let discovery = response
            .status
            .is_ok()
            .then(|| Discovery::parse(response.data.expose()));
        // A card without the object, or with an invalid one, uses the PIV PIN.
        self.discovered(match discovery {
            Some(Ok(discovery)) => discovery,
            _ => Discovery {
                pin_reference: PIV_PIN,
            },
        });
        Ok(())
    }

    /// Converts the status of VERIFY with a PIN to a result.
    fn verified(&mut self, status: StatusWord) -> Result<(), TokenError> {
        if status.is_ok() {
            self.tries.note_success();
            return Ok(());
        }
        match tries_left(status) {
            Some(0) => {
                self.tries.note(0);
                Err(TokenError::PinLocked)
            }
            Some(left) => {
                // One try more was left before this command.
                self.tries.note(left.saturating_add(1));
                self.tries.note(left);
                Err(TokenError::WrongPin {
                    tries_left: Some(left),
                })
            }
            // A form that the card does not take, or a failed comparison without a number of tries.
            None if matches!(
                status,
                StatusWord::INCORRECT_DATA
                    | StatusWord::COMPARISON_FAILED
                    | StatusWord::SECURITY_STATUS_NOT_SATISFIED
            ) =>
            {
                Err(TokenError::WrongPin { tries_left: None })
            }
            None => Err(TokenError::refused(self.operation("VERIFY"), status)),
        }
    }

    /// Sends VERIFY without data, which spends no try.
    pub(super) fn status(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
    ) -> Result<PinStatus, TokenError> {
        let response = tx.exchange(&CommandApdu::header([0x00, 0x20, 0x00, self.reference()]))?;
        match (response.status, tries_left(response.status)) {
            (StatusWord::OK, _) => Ok(PinStatus::Verified),
            (_, Some(0)) => {
                self.tries.note(0);
                Ok(PinStatus::Blocked)
            }
            (_, Some(left)) => {
                self.tries.note(left);
                Ok(PinStatus::NotVerified {
                    tries_left: Some(left),
                })
            }
            // Old cards support VERIFY with data only. Assuming that the PIN is not verified is safe.
            (
                StatusWord::WRONG_LENGTH
                | StatusWord::COMPARISON_FAILED
                | StatusWord::SECURITY_STATUS_NOT_SATISFIED,
                None,
            ) => Ok(PinStatus::NotVerified { tries_left: None }),
            (status, None) => Err(TokenError::refused(self.operation("VERIFY status"), status)),
        }
    }

    /// Sends VERIFY with P1 = FF. On cards without that, selects another application and PIV again.
    pub(super) fn reset_verification(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
    ) -> Result<(), TokenError> {
        let response = tx.exchange(&CommandApdu::header([0x00, 0x20, 0xFF, self.reference()]))?;
        if response.status.is_ok() {
            return Ok(());
        }
        reselect(tx)?;
        match self.status(tx)? {
            PinStatus::Verified => Err(TokenError::refused(
                self.operation("VERIFY to log out"),
                response.status,
            )),
            PinStatus::NotVerified { .. } | PinStatus::Blocked => Ok(()),
        }
    }

    fn operation(&self, command: &str) -> String {
        let which = if self.reference() == GLOBAL_PIN {
            "global"
        } else {
            "PIV"
        };
        format!("PIV {command} of the {which} PIN")
    }
}

/// Selects another application and PIV again, which ends the verifications.
pub(super) fn reselect(tx: &mut AppletTransaction<'_, '_>) -> Result<(), TokenError> {
    for aid in OTHER_APPLICATIONS {
        let elsewhere = tx.exchange(&CommandApdu {
            data: aid,
            expected: Expected::UpTo(256),
            ..CommandApdu::header([0x00, 0xA4, 0x04, 0x00])
        })?;
        if elsewhere.status.is_ok() {
            break;
        }
    }
    tx.reselect()
}

/// Returns a PIN or PUK padded for the card.
fn padded(pin: &Secret) -> Secret {
    let mut padded = Secret::new(Vec::with_capacity(MAX_LEN));
    padded.extend(pin.expose());
    padded.extend(&vec![0xFF; MAX_LEN.saturating_sub(pin.len())]);
    padded
}

/// Builds a command with two PINs or PUKs, one after the other.
pub(super) fn two_pin_command(one: &Secret, other: &Secret, header: [u8; 4]) -> OwnedCommand {
    let mut data = Secret::new(Vec::with_capacity(2 * MAX_LEN));
    data.extend(padded(one).expose());
    data.extend(padded(other).expose());
    OwnedCommand {
        header,
        data,
        expected: Expected::Nothing,
        budget: CommandBudget::Fast,
    }
}

/// Refuses a new PIN or PUK of a length that no PIV card takes.
pub(super) fn check_new(new: &Secret) -> Result<(), TokenError> {
    PinState::check(new).map_err(|_| TokenError::NewPinLength {
        len: new.len(),
        min: MIN_LEN,
        max: MAX_LEN,
    })
}

/// Returns whether the status means that the card refuses the new PIN or PUK itself.
pub(super) const fn refuses_new(status: StatusWord) -> bool {
    matches!(
        status,
        StatusWord::INCORRECT_DATA
            | StatusWord::CONDITIONS_NOT_SATISFIED
            | StatusWord::WRONG_LENGTH
    )
}

/// Returns the tries left: from 63Cx, from 630x on old cards (YubiKey NEO), or from 6983. 6300 has no number.
pub(super) fn tries_left(status: StatusWord) -> Option<u8> {
    match status.0 {
        0x6301..=0x630F => Some(status.sw2()),
        0x6983 => Some(0),
        _ => status.tries_left(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_are_read_from_every_status_form() {
        assert_eq!(tries_left(StatusWord(0x63C2)), Some(2));
        assert_eq!(tries_left(StatusWord(0x6302)), Some(2));
        assert_eq!(tries_left(StatusWord(0x63C0)), Some(0));
        assert_eq!(tries_left(StatusWord(0x6983)), Some(0));
        assert_eq!(tries_left(StatusWord(0x6300)), None);
        assert_eq!(tries_left(StatusWord(0x6A80)), None);
    }

    #[test]
    fn a_wrong_pin_tells_how_many_tries_there_were() {
        let mut pin = PinState::default();
        let error = pin.verified(StatusWord(0x63C2)).unwrap_err();
        assert!(matches!(
            error,
            TokenError::WrongPin {
                tries_left: Some(2)
            }
        ));
        assert_eq!((pin.tries.left, pin.tries.most), (Some(2), Some(3)));
        pin.verified(StatusWord::OK).unwrap();
        assert_eq!(pin.tries.left, Some(3));
        assert!(matches!(
            pin.verified(StatusWord(0x6983)),
            Err(TokenError::PinLocked)
        ));
        assert_eq!(pin.tries.left, Some(0));
    }

    #[test]
    fn a_pin_is_6_to_8_bytes() {
        for (len, possible) in [(5, false), (6, true), (8, true), (9, false), (0, false)] {
            let pin = Secret::new(vec![b'1'; len]);
            assert_eq!(PinState::check(&pin).is_ok(), possible, "{len}");
        }
    }
}
