//! The passwords (OpenPGP card 3.4, 4.3). PW1, the user's PIN, is one secret with two states on the card, one for
//! signatures and one for all else; PW3 is the security officer's.

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
/// Longest password any card takes, and the longest there can be behind a key derivation function.
const MAX_LEN: usize = 127;

/// How the PIN is referred to in VERIFY (7.2.2).
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
    /// The state that `key` looks at.
    fn of(key: u8) -> Self {
        match KeyRole::from_reference(key) {
            Some(KeyRole::Signature) => Self::Signing,
            _ => Self::Other,
        }
    }

    /// Whose secret it asks for.
    const fn password(self) -> Password {
        match self {
            Self::Signing | Self::Other => Password::User,
            Self::Admin => Password::Admin,
        }
    }
}

/// What is known of the passwords.
#[derive(Debug)]
pub(super) struct PinState {
    status: PasswordStatus,
    tries: PinTries,
    admin_tries: PinTries,
    /// Whether the card may have a key derivation function, and which once it is read.
    has_kdf: bool,
    kdf: Option<Kdf>,
    /// Whether a PIN was refused since: perhaps because another program has set another function.
    kdf_in_doubt: bool,
    /// Whether VERIFY without data asks for the state: since version 3.
    tells_state: bool,
}

impl PinState {
    /// As the application related data has it.
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

    /// Takes note of newer PW status bytes.
    pub(super) fn note(&mut self, status: PasswordStatus) {
        self.status = status;
        self.tries.note(status.tries);
        self.admin_tries.note(status.admin_tries);
    }

    /// Tries as last heard.
    pub(super) const fn tries(&self) -> PinTries {
        self.tries
    }

    /// Tries of PW3 as last heard.
    pub(super) const fn admin_tries(&self) -> PinTries {
        self.admin_tries
    }

    fn tries_mut(&mut self, password: Password) -> &mut PinTries {
        match password {
            Password::User => &mut self.tries,
            Password::Admin => &mut self.admin_tries,
        }
    }

    /// Longest PIN in bytes.
    pub(super) fn max_len(&self) -> usize {
        self.lengths(Password::User).1
    }

    /// Shortest and longest password in bytes.
    fn lengths(&self, password: Password) -> (usize, usize) {
        let (min, told) = match password {
            Password::User => (MIN_LEN, self.status.max_len),
            Password::Admin => (ADMIN_MIN_LEN, self.status.admin_max_len),
        };
        match self.kdf {
            Some(Kdf::Iterated { .. }) => (min, MAX_LEN),
            _ if told < min => (min, MAX_LEN),
            _ => (min, told),
        }
    }

    /// Refuses a PIN of impossible length. A key derivation function that is not read yet may hide any.
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
                what: format!("the admin PIN has {min} to {max} bytes, not {}", pin.len()),
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
        let (min, told) = self.lengths(password);
        let max = if unread { MAX_LEN } else { told };
        if (min..=max).contains(&pin.len()) {
            Ok(())
        } else {
            Err((min, max))
        }
    }

    /// Verifies `pin`: for a login the state for all else first, so that a wrong one costs one try, then the
    /// state for signatures if that outlasts a signature.
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
                    // Half a login is none.
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

    /// CHANGE REFERENCE DATA (7.2.3). The old password is verified by itself first: the card is sent both without a
    /// mark between them, and would take a beginning of a wrong old one for the right one and the rest for the new.
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

    /// RESET RETRY COUNTER (7.2.4) after PW3: PW1 is `new` then.
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

    /// Makes sure that a password is sent as the card compares it, or not at all.
    fn load_kdf(&mut self, tx: &mut AppletTransaction<'_, '_>) -> Result<(), TokenError> {
        if self.status.pin_block_2 {
            return Err(TokenError::malformed(
                "OpenPGP PW status bytes C4",
                "the card wants PIN block 2 format, which is not supported; no PIN is sent",
            ));
        }
        if self.has_kdf && (self.kdf.is_none() || self.kdf_in_doubt) {
            self.kdf = Some(read_kdf(tx)?);
            self.kdf_in_doubt = false;
        }
        Ok(())
    }

    /// What VERIFY must be sent for `pin`.
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

    /// Asks how many tries are left; an answer that does not say leaves them unknown.
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

    /// Whether the PIN is verified for the key with this reference.
    ///
    /// A card that cannot be asked counts as not verified: verifying once more costs nothing.
    pub(super) fn status(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        key: u8,
    ) -> Result<PinStatus, TokenError> {
        self.status_of(tx, PasswordReference::of(key))
    }

    /// Whether PW3 is verified.
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
        let mut told = None;
        if self.tells_state {
            let status = tx.exchange(&ask(reference))?.status;
            if status.is_ok() {
                return Ok(PinStatus::Verified);
            }
            told = status.tries_left();
        }
        match told {
            Some(left) => self.tries_mut(password).note(left),
            None => self.read_tries(tx, password)?,
        }
        Ok(match self.tries_mut(password).left {
            Some(0) => PinStatus::Blocked,
            tries_left => PinStatus::NotVerified { tries_left },
        })
    }

    /// Makes the card forget both states. Cards that know no command for it are selected anew and asked.
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

    /// Makes the card forget PW3.
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
            if tx.exchange(&ask(*reference))?.status.is_ok() {
                return Err(TokenError::refused("OpenPGP VERIFY to log out", refusal));
            }
        }
        Ok(())
    }
}

/// Sends what gives a password another value. The old one is verified, so that a refusal is about the new one.
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

/// VERIFY without data: is it verified?
const fn ask(reference: PasswordReference) -> CommandApdu<'static> {
    CommandApdu::header([0x00, 0x20, 0x00, reference as u8])
}

/// VERIFY that resets the state, since version 3.
fn reset_verification(
    tx: &mut AppletTransaction<'_, '_>,
    reference: PasswordReference,
) -> Result<StatusWord, TokenError> {
    let command = CommandApdu::header([0x00, 0x20, 0xFF, reference as u8]);
    Ok(tx.exchange(&command)?.status)
}

/// The key derivation object; a card that has none answers 6A88 or nothing.
fn read_kdf(tx: &mut AppletTransaction<'_, '_>) -> Result<Kdf, TokenError> {
    let response = tx.exchange(&get_data(data_object::KDF))?;
    match response.status {
        StatusWord::OK => Kdf::parse(response.data.expose()),
        StatusWord::REFERENCE_NOT_FOUND => Ok(Kdf::Plain),
        status => Err(TokenError::refused(
            "OpenPGP GET DATA F9 (key derivation; without it no PIN is sent)",
            status,
        )),
    }
}

/// GET DATA of a short object.
const fn get_data(tag: u8) -> CommandApdu<'static> {
    CommandApdu {
        expected: Expected::UpTo(256),
        ..CommandApdu::header([0x00, 0xCA, 0x00, tag])
    }
}
