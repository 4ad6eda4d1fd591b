//! The passwords (OpenPGP card 3.4, 4.3). PW1, the user PIN, is one secret with two verification states on the card:
//! one for signatures, one for everything else. PW3 is the SO PIN.

use claviger_apdu::{CommandApdu, Expected, Secret, StatusWord};

use crate::{
    card::AppletTransaction,
    error::TokenError,
    openpgp::{
        data_object::{self, ApplicationData, PasswordStatus},
        kdf::{Kdf, Password},
        key::KeyRole,
    },
    pin::{PinPurpose, PinStatus, PinTries},
};

/// Shortest PW1 in bytes (4.3.1).
pub(super) const MIN_LEN: usize = 6;
/// Shortest PW3 in bytes (4.3.1).
const ADMIN_MIN_LEN: usize = 8;
/// Longest password of any card, and the longest password with a key derivation function.
const MAX_LEN: usize = 127;

/// The password reference in VERIFY (7.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PasswordReference {
    /// PW1 for signatures.
    Signing = 0x81,
    /// PW1 for everything else.
    Other = 0x82,
    /// PW3.
    Admin = 0x83,
}

impl PasswordReference {
    /// Returns the verification state that `key` depends on.
    fn of(key: u8) -> Self {
        match KeyRole::from_reference(key) {
            Some(KeyRole::Signature) => Self::Signing,
            _ => Self::Other,
        }
    }

    /// Returns the password of this reference.
    const fn password(self) -> Password {
        match self {
            Self::Signing | Self::Other => Password::User,
            Self::Admin => Password::Admin,
        }
    }
}

/// The state of the passwords, as far as known.
#[derive(Debug)]
pub(super) struct PinState {
    status: PasswordStatus,
    tries: PinTries,
    admin_tries: PinTries,
    /// Whether the card may have a key derivation function. `kdf` is the function, once it was read.
    has_kdf: bool,
    kdf: Option<Kdf>,
    /// Whether a PIN was refused since. Another program may have set another function.
    kdf_in_doubt: bool,
    /// Whether VERIFY without data reports the state, which is so since version 3.
    tells_state: bool,
}

impl PinState {
    /// Returns the state from the application related data.
    pub(super) fn new(data: &ApplicationData) -> Self {
        let mut pin = Self {
            status: data.password,
            tries: PinTries::default(),
            admin_tries: PinTries::default(),
            has_kdf: data.kdf,
            kdf: None,
            kdf_in_doubt: false,
            tells_state: data.identifier.version >= (3, 0),
        };
        pin.note(data.password);
        pin
    }

    /// Updates the state with newer PW status bytes.
    pub(super) fn note(&mut self, status: PasswordStatus) {
        self.status = status;
        self.tries.note(status.tries);
        self.admin_tries.note(status.admin_tries);
    }

    /// Returns the tries of PW1, as the card last reported them.
    pub(super) const fn tries(&self) -> PinTries {
        self.tries
    }

    /// Returns the tries of PW3, as the card last reported them.
    pub(super) const fn admin_tries(&self) -> PinTries {
        self.admin_tries
    }

    fn tries_mut(&mut self, password: Password) -> &mut PinTries {
        match password {
            Password::User => &mut self.tries,
            Password::Admin => &mut self.admin_tries,
        }
    }

    /// Returns the longest PIN in bytes.
    pub(super) fn max_len(&self) -> usize {
        self.lengths(Password::User).1
    }

    /// Returns the shortest and longest password in bytes.
    fn lengths(&self, password: Password) -> (usize, usize) {
        let (min, reported) = match password {
            Password::User => (MIN_LEN, self.status.max_len),
            Password::Admin => (ADMIN_MIN_LEN, self.status.admin_max_len),
        };
        match self.kdf {
            Some(Kdf::Iterated { .. }) => (min, MAX_LEN),
            _ if reported < min => (min, MAX_LEN),
            _ => (min, reported),
        }
    }

    /// Refuses a PIN of impossible length. While a key derivation function is not read, only its limits apply.
    pub(super) fn check(&self, pin: &Secret) -> Result<(), TokenError> {
        self.check_of(Password::User, pin)
            .map_err(|(min, max)| TokenError::PinLength {
                len: pin.len(),
                min,
                max,
            })
    }

    /// Refuses a PW3 of impossible length.
    pub(super) fn check_admin(&self, pin: &Secret) -> Result<(), TokenError> {
        self.check_of(Password::Admin, pin)
            .map_err(|(min, max)| TokenError::SoPinForm {
                what: format!(
                    "the admin PIN has {min} to {max} bytes, but {} were given",
                    pin.len()
                ),
            })
    }

    /// Refuses a new password of impossible length.
    pub(super) fn check_new(&self, password: Password, new: &Secret) -> Result<(), TokenError> {
        self.check_of(password, new)
            .map_err(|(min, max)| TokenError::NewPinLength {
                len: new.len(),
                min,
                max,
            })
    }

    fn check_of(&self, password: Password, pin: &Secret) -> Result<(), (usize, usize)> {
        let unread = self.has_kdf && self.kdf.is_none();
        let (min, reported) = self.lengths(password);
        let max = if unread { MAX_LEN } else { reported };
        if (min..=max).contains(&pin.len()) {
            Ok(())
        } else {
            Err((min, max))
        }
    }

    /// Verifies `pin`. A login verifies the state for everything else first, so that a wrong PIN costs one try only. It
    /// then verifies the state for signatures, if that lasts for several signatures.
    pub(super) fn verify(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        pin: &Secret,
        purpose: PinPurpose,
    ) -> Result<(), TokenError> {
        self.load_kdf(tx)?;
        self.check(pin)?;
        let secret = self.derived(pin, Password::User);
        match purpose {
            PinPurpose::Once(key) => {
                self.verify_reference(tx, PasswordReference::of(key.reference), &secret)
            }
            PinPurpose::Login => {
                self.verify_reference(tx, PasswordReference::Other, &secret)?;
                if !self.status.several_signatures {
                    return Ok(());
                }
                let signing = self.verify_reference(tx, PasswordReference::Signing, &secret);
                if signing.is_err() {
                    // A failed login must leave no state verified.
                    reset_verification(tx, PasswordReference::Other)?;
                }
                signing
            }
        }
    }

    /// Verifies PW3.
    pub(super) fn verify_admin(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        pin: &Secret,
    ) -> Result<(), TokenError> {
        self.load_kdf(tx)?;
        self.check_admin(pin)?;
        let secret = self.derived(pin, Password::Admin);
        self.verify_reference(tx, PasswordReference::Admin, &secret)
    }

    /// Sends CHANGE REFERENCE DATA (7.2.3). Verifies the old password first. The command contains both passwords
    /// without a separator: the card could take a part of a wrong old password as the right one, and the rest as the
    /// new one.
    pub(super) fn change(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        password: Password,
        old: &Secret,
        new: &Secret,
    ) -> Result<(), TokenError> {
        self.load_kdf(tx)?;
        self.check_new(password, new)?;
        let (verified, changed) = match password {
            Password::User => {
                self.check(old)?;
                (PasswordReference::Other, PasswordReference::Signing)
            }
            Password::Admin => {
                self.check_admin(old)?;
                (PasswordReference::Admin, PasswordReference::Admin)
            }
        };
        let mut data = self.derived(old, password);
        self.verify_reference(tx, verified, &data)?;
        data.extend(self.derived(new, password).expose());
        let command = CommandApdu {
            data: data.expose(),
            ..CommandApdu::header([0x00, 0x24, 0x00, changed as u8])
        };
        changed_to(tx, &command, "CHANGE REFERENCE DATA")
    }

    /// Sends RESET RETRY COUNTER (7.2.4), after PW3 was verified. PW1 is then `new`.
    pub(super) fn reset(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        new: &Secret,
    ) -> Result<(), TokenError> {
        self.load_kdf(tx)?;
        self.check_new(Password::User, new)?;
        let data = self.derived(new, Password::User);
        let command = CommandApdu {
            data: data.expose(),
            ..CommandApdu::header([0x00, 0x2C, 0x02, PasswordReference::Signing as u8])
        };
        changed_to(tx, &command, "RESET RETRY COUNTER")?;
        self.tries.note_success();
        Ok(())
    }

    /// Reads the key derivation function if necessary. Fails if a password cannot be sent in the form that the card
    /// compares.
    fn load_kdf(&mut self, tx: &mut AppletTransaction<'_, '_>) -> Result<(), TokenError> {
        if self.status.pin_block_2 {
            return Err(TokenError::malformed(
                "OpenPGP PW status bytes C4",
                "the card requires PIN block 2 format, which is not supported, so no PIN is sent",
            ));
        }
        if self.has_kdf && (self.kdf.is_none() || self.kdf_in_doubt) {
            self.kdf = Some(read_kdf(tx)?);
            self.kdf_in_doubt = false;
        }
        Ok(())
    }

    /// Returns the data of VERIFY for `pin`.
    fn derived(&self, pin: &Secret, password: Password) -> Secret {
        self.kdf
            .as_ref()
            .unwrap_or(&Kdf::Plain)
            .derive(pin, password)
    }

    fn verify_reference(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        reference: PasswordReference,
        secret: &Secret,
    ) -> Result<(), TokenError> {
        let command = CommandApdu {
            data: secret.expose(),
            ..CommandApdu::header([0x00, 0x20, 0x00, reference as u8])
        };
        let status = tx.exchange(&command)?.status;
        let password = reference.password();
        self.kdf_in_doubt = !status.is_ok();
        match status {
            StatusWord::OK => {
                self.tries_mut(password).note_success();
                return Ok(());
            }
            StatusWord::AUTHENTICATION_BLOCKED => self.tries_mut(password).note(0),
            StatusWord::SECURITY_STATUS_NOT_SATISFIED => self.read_tries(tx, password)?,
            _ if status.sw1() == 0x63 => match status.tries_left() {
                Some(left) => self.tries_mut(password).note(left),
                None => self.read_tries(tx, password)?,
            },
            _ => return Err(TokenError::refused("OpenPGP VERIFY", status)),
        }
        Err(self.wrong(password))
    }

    const fn wrong(&self, password: Password) -> TokenError {
        match (password, self.tries.left, self.admin_tries.left) {
            (Password::User, Some(0), _) => TokenError::PinLocked,
            (Password::User, tries_left, _) => TokenError::WrongPin { tries_left },
            (Password::Admin, _, Some(0)) => TokenError::SoPinLocked,
            (Password::Admin, _, tries_left) => TokenError::WrongSoPin { tries_left },
        }
    }

    /// Reads the tries left. If the response does not contain them, they are unknown.
    fn read_tries(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        password: Password,
    ) -> Result<(), TokenError> {
        self.tries_mut(password).left = None;
        let response = tx.exchange(&get_data(data_object::PASSWORD_STATUS))?;
        if response.status.is_ok()
            && let Ok(status) = PasswordStatus::parse(response.data.expose())
        {
            self.note(status);
        }
        Ok(())
    }

    /// Returns whether the PIN is verified for the key with this key reference.
    ///
    /// A card without a command for that counts as not verified. Verifying once more costs no try.
    pub(super) fn status(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        key: u8,
    ) -> Result<PinStatus, TokenError> {
        self.status_of(tx, PasswordReference::of(key))
    }

    /// Returns whether PW3 is verified.
    pub(super) fn admin_status(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
    ) -> Result<PinStatus, TokenError> {
        self.status_of(tx, PasswordReference::Admin)
    }

    fn status_of(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        reference: PasswordReference,
    ) -> Result<PinStatus, TokenError> {
        let password = reference.password();
        let mut reported = None;
        if self.tells_state {
            let status = tx.exchange(&query(reference))?.status;
            if status.is_ok() {
                return Ok(PinStatus::Verified);
            }
            reported = status.tries_left();
        }
        match reported {
            Some(left) => self.tries_mut(password).note(left),
            None => self.read_tries(tx, password)?,
        }
        Ok(match self.tries_mut(password).left {
            Some(0) => PinStatus::Blocked,
            tries_left => PinStatus::NotVerified { tries_left },
        })
    }

    /// Resets both verification states. If the card has no command for that, selects the applet again and checks the
    /// states.
    pub(super) fn unverify(&self, tx: &mut AppletTransaction<'_, '_>) -> Result<(), TokenError> {
        let signing = reset_verification(tx, PasswordReference::Signing)?;
        let other = reset_verification(tx, PasswordReference::Other)?;
        if signing.is_ok() && other.is_ok() {
            return Ok(());
        }
        let refusal = if signing.is_ok() { other } else { signing };
        self.reselect(
            tx,
            &[PasswordReference::Signing, PasswordReference::Other],
            refusal,
        )
    }

    /// Resets the verification of PW3.
    pub(super) fn unverify_admin(
        &self,
        tx: &mut AppletTransaction<'_, '_>,
    ) -> Result<(), TokenError> {
        let refusal = reset_verification(tx, PasswordReference::Admin)?;
        if refusal.is_ok() {
            return Ok(());
        }
        self.reselect(tx, &[PasswordReference::Admin], refusal)
    }

    fn reselect(
        &self,
        tx: &mut AppletTransaction<'_, '_>,
        references: &[PasswordReference],
        refusal: StatusWord,
    ) -> Result<(), TokenError> {
        tx.reselect()?;
        if !self.tells_state {
            return Ok(());
        }
        for reference in references {
            if tx.exchange(&query(*reference))?.status.is_ok() {
                return Err(TokenError::refused("OpenPGP VERIFY to log out", refusal));
            }
        }
        Ok(())
    }
}

/// Sends a command that changes a password. The old password is verified, so a refusal concerns the new one.
fn changed_to(
    tx: &mut AppletTransaction<'_, '_>,
    command: &CommandApdu<'_>,
    name: &str,
) -> Result<(), TokenError> {
    let status = tx.exchange(command)?.status;
    match status {
        StatusWord::OK => Ok(()),
        StatusWord::INCORRECT_DATA
        | StatusWord::WRONG_LENGTH
        | StatusWord::CONDITIONS_NOT_SATISFIED => Err(TokenError::NewPinInvalid {
            what: format!("OpenPGP {name}: {status}"),
        }),
        _ => Err(TokenError::refused(format!("OpenPGP {name}"), status)),
    }
}

/// Builds VERIFY without data, which queries the verification state.
const fn query(reference: PasswordReference) -> CommandApdu<'static> {
    CommandApdu::header([0x00, 0x20, 0x00, reference as u8])
}

/// Sends the VERIFY that resets the state, which exists since version 3.
fn reset_verification(
    tx: &mut AppletTransaction<'_, '_>,
    reference: PasswordReference,
) -> Result<StatusWord, TokenError> {
    let command = CommandApdu::header([0x00, 0x20, 0xFF, reference as u8]);
    Ok(tx.exchange(&command)?.status)
}

/// Reads the key derivation object. A card without one responds with 6A88 or with no data.
fn read_kdf(tx: &mut AppletTransaction<'_, '_>) -> Result<Kdf, TokenError> {
    let response = tx.exchange(&get_data(data_object::KDF))?;
    match response.status {
        StatusWord::OK => Kdf::parse(response.data.expose()),
        StatusWord::REFERENCE_NOT_FOUND => Ok(Kdf::Plain),
        status => Err(TokenError::refused(
            "OpenPGP GET DATA F9, the key derivation function, without which no PIN is sent",
            status,
        )),
    }
}

/// Builds GET DATA of a short object.
const fn get_data(tag: u8) -> CommandApdu<'static> {
    CommandApdu {
        expected: Expected::UpTo(256),
        ..CommandApdu::header([0x00, 0xCA, 0x00, tag])
    }
}
