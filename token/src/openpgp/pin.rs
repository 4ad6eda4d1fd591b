//! PW1, the user's PIN: one secret with two states on the card, one for signatures and one for all else
//! (OpenPGP card 3.4, 4.3).

use claviger_apdu::{CommandApdu, Expected, Secret, StatusWord};

use crate::{
    applet::{AppletKind, PinPurpose, PinStatus, PinTries},
    card::Conversation,
    error::TokenError,
    openpgp::{
        data_object::{self, ApplicationData, PasswordStatus},
        kdf::Kdf,
        key::Key,
    },
};

/// Shortest PW1 in bytes (4.3.1).
pub(super) const MIN_LEN: usize = 6;
/// Longest PW1 any card takes, and the longest there can be behind a key derivation function.
const MAX_LEN: usize = 127;

/// How the PIN is referred to in VERIFY (7.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reference {
    /// PW1 for signatures.
    Signing = 0x81,
    /// PW1 for everything else.
    Other = 0x82,
}

impl Reference {
    /// The state that `key` looks at.
    fn of(key: u8) -> Self {
        match Key::from_reference(key) {
            Some(Key::Signature) => Self::Signing,
            _ => Self::Other,
        }
    }
}

/// What is known of PW1.
#[derive(Debug)]
pub(super) struct Pin {
    status: PasswordStatus,
    tries: PinTries,
    /// Whether the card may have a key derivation function, and which once it is read.
    has_kdf: bool,
    kdf: Option<Kdf>,
    /// Whether a PIN was refused since: perhaps because another program has set another function.
    kdf_in_doubt: bool,
    /// Whether VERIFY without data asks for the state: since version 3.
    tells_state: bool,
}

impl Pin {
    /// As the application related data has it.
    pub(super) fn new(data: &ApplicationData) -> Self {
        let mut pin = Self {
            status: data.password,
            tries: PinTries::default(),
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
    }

    /// Tries as last heard.
    pub(super) const fn tries(&self) -> PinTries {
        self.tries
    }

    /// Longest PIN in bytes.
    pub(super) fn max_len(&self) -> usize {
        match self.kdf {
            Some(Kdf::Iterated { .. }) => MAX_LEN,
            _ if self.status.max_len < MIN_LEN => MAX_LEN,
            _ => self.status.max_len,
        }
    }

    /// Refuses a PIN of impossible length. A key derivation function that is not read yet may hide any.
    pub(super) fn check(&self, pin: &Secret) -> Result<(), TokenError> {
        let unread = self.has_kdf && self.kdf.is_none();
        let max = if unread { MAX_LEN } else { self.max_len() };
        if (MIN_LEN..=max).contains(&pin.len()) {
            return Ok(());
        }
        Err(TokenError::PinLength {
            len: pin.len(),
            min: MIN_LEN,
            max,
        })
    }

    /// Verifies `pin`: for a login the state for all else first, so that a wrong one costs one try, then the
    /// state for signatures if that outlasts a signature.
    pub(super) fn verify(
        &mut self,
        talk: &mut Conversation<'_, '_>,
        pin: &Secret,
        purpose: PinPurpose,
    ) -> Result<(), TokenError> {
        let secret = self.derive(talk, pin)?;
        match purpose {
            PinPurpose::Once(key) => {
                self.verify_reference(talk, Reference::of(key.reference), &secret)
            }
            PinPurpose::Login => {
                self.verify_reference(talk, Reference::Other, &secret)?;
                if !self.status.several_signatures {
                    return Ok(());
                }
                let signing = self.verify_reference(talk, Reference::Signing, &secret);
                if signing.is_err() {
                    // Half a login is none.
                    forget(talk, Reference::Other)?;
                }
                signing
            }
        }
    }

    /// What VERIFY must be sent for `pin`.
    fn derive(
        &mut self,
        talk: &mut Conversation<'_, '_>,
        pin: &Secret,
    ) -> Result<Secret, TokenError> {
        if self.status.pin_block_2 {
            return Err(TokenError::malformed(
                "OpenPGP PW status bytes C4",
                "the card wants PIN block 2 format, which is not supported; no PIN is sent",
            ));
        }
        if self.has_kdf && (self.kdf.is_none() || self.kdf_in_doubt) {
            self.kdf = Some(read_kdf(talk)?);
            self.kdf_in_doubt = false;
            self.check(pin)?;
        }
        Ok(self.kdf.as_ref().unwrap_or(&Kdf::Plain).derive(pin))
    }

    fn verify_reference(
        &mut self,
        talk: &mut Conversation<'_, '_>,
        reference: Reference,
        secret: &Secret,
    ) -> Result<(), TokenError> {
        let command = CommandApdu {
            data: secret.expose(),
            ..CommandApdu::header([0x00, 0x20, 0x00, reference as u8])
        };
        let status = talk.exchange(&command)?.status;
        self.kdf_in_doubt = !status.is_ok();
        match status {
            StatusWord::OK => {
                self.tries.note_success();
                Ok(())
            }
            StatusWord::AUTHENTICATION_BLOCKED => {
                self.tries.note(0);
                Err(TokenError::PinLocked)
            }
            StatusWord::SECURITY_STATUS_NOT_SATISFIED => {
                self.read_tries(talk)?;
                Err(self.wrong())
            }
            _ if status.sw1() == 0x63 => {
                match status.tries_left() {
                    Some(left) => self.tries.note(left),
                    None => self.read_tries(talk)?,
                }
                Err(self.wrong())
            }
            _ => Err(TokenError::refused("OpenPGP VERIFY", status)),
        }
    }

    const fn wrong(&self) -> TokenError {
        match self.tries.left {
            Some(0) => TokenError::PinLocked,
            tries_left => TokenError::WrongPin { tries_left },
        }
    }

    /// Asks how many tries are left; an answer that does not say leaves them unknown.
    fn read_tries(&mut self, talk: &mut Conversation<'_, '_>) -> Result<(), TokenError> {
        self.tries.left = None;
        let answer = talk.exchange(&get_data(data_object::PASSWORD_STATUS))?;
        if answer.status.is_ok()
            && let Ok(status) = PasswordStatus::parse(answer.data.expose())
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
        talk: &mut Conversation<'_, '_>,
        key: u8,
    ) -> Result<PinStatus, TokenError> {
        if self.tells_state {
            let status = talk.exchange(&ask(Reference::of(key)))?.status;
            match (status, status.tries_left()) {
                (StatusWord::OK, _) => return Ok(PinStatus::Verified),
                (_, Some(left)) => {
                    self.tries.note(left);
                    return Ok(self.not_verified());
                }
                _ => {}
            }
        }
        self.read_tries(talk)?;
        Ok(self.not_verified())
    }

    const fn not_verified(&self) -> PinStatus {
        match self.tries.left {
            Some(0) => PinStatus::Blocked,
            tries_left => PinStatus::NotVerified { tries_left },
        }
    }

    /// Makes the card forget both states. Cards that know no command for it are selected anew and asked.
    pub(super) fn unverify(&self, talk: &mut Conversation<'_, '_>) -> Result<(), TokenError> {
        let signing = forget(talk, Reference::Signing)?;
        let other = forget(talk, Reference::Other)?;
        if signing.is_ok() && other.is_ok() {
            return Ok(());
        }
        let refusal = if signing.is_ok() { other } else { signing };
        talk.select(AppletKind::OpenPgp)?;
        if !self.tells_state {
            return Ok(());
        }
        for reference in [Reference::Signing, Reference::Other] {
            if talk.exchange(&ask(reference))?.status.is_ok() {
                return Err(TokenError::refused("OpenPGP VERIFY to log out", refusal));
            }
        }
        Ok(())
    }
}

/// VERIFY without data: is it verified?
const fn ask(reference: Reference) -> CommandApdu<'static> {
    CommandApdu::header([0x00, 0x20, 0x00, reference as u8])
}

/// VERIFY that resets the state, since version 3.
fn forget(talk: &mut Conversation<'_, '_>, reference: Reference) -> Result<StatusWord, TokenError> {
    let command = CommandApdu::header([0x00, 0x20, 0xFF, reference as u8]);
    Ok(talk.exchange(&command)?.status)
}

/// The key derivation object; a card that has none answers 6A88 or nothing.
fn read_kdf(talk: &mut Conversation<'_, '_>) -> Result<Kdf, TokenError> {
    let answer = talk.exchange(&get_data(data_object::KDF))?;
    match answer.status {
        StatusWord::OK => Kdf::parse(answer.data.expose()),
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
