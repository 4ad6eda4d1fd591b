//! A token: one applet of one card with its login state. The rules that no applet may forget live here.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use claviger_apdu::{Secret, Sent, StatusWord, TransportErrorKind};
use cryptoki_sys::CKA_ID;

use crate::{
    applet::{Applet, OwnedCommand, SearchScope, TokenInfo},
    application::AppletKind,
    attribute::Template,
    card::{AppletTransaction, Card},
    error::TokenError,
    login::CachedPin,
    mechanism::{self, MechanismInfo},
    object::{Object, PinPolicy, PrivateKey},
    operation::{CipherOperation, DecryptOperation, KeyInput, SignOperation},
    pin::{PinPurpose, PinStatus},
    profile,
};

/// A card that waits for a touch in vain takes longer. One that says sooner that the PIN is missing may have been
/// logged out by another program, which may have logged in again by the time the PIN's state is asked for.
const TOUCH: Duration = Duration::from_secs(1);

/// Conversations that one use of a key may take while others reset the card.
const MAX_TURNS: usize = 4;

/// One applet of one card.
pub struct Token {
    pub(crate) applet: Box<dyn Applet>,
    /// The user's.
    pub(crate) login: Option<CachedPin>,
    /// The security officer's; never both.
    pub(crate) so: Option<CachedPin>,
}

impl Token {
    /// Tells a new connection to the same card what is known of it.
    pub fn apply_known_limits(card: &mut Card, tokens: &[Self]) {
        if tokens.iter().any(|token| token.applet.extended_length()) {
            card.allow_extended();
        }
        if tokens.iter().any(|token| !token.applet.chains()) {
            card.forbid_chaining();
        }
    }

    /// Whether `other` was found on the same card. A card that does not tell who it is cannot be recognised.
    #[must_use]
    pub fn is_same_card(&self, other: &Self) -> bool {
        let serial = self.info().serial;
        let is_told = serial.bytes().any(|digit| digit != b'0');
        self.kind() == other.kind() && is_told && serial == other.info().serial
    }

    /// Which applet it is.
    #[must_use]
    pub fn kind(&self) -> AppletKind {
        self.applet.kind()
    }

    /// What C_GetTokenInfo says; never asks the card.
    #[must_use]
    pub fn info(&self) -> TokenInfo {
        self.applet.info()
    }

    /// The mechanisms of the token.
    #[must_use]
    pub fn mechanisms(&self) -> Vec<MechanismInfo> {
        let mut mechanisms =
            mechanism::generation_mechanisms(&self.applet.generatable_algorithms());
        mechanisms.extend(self.applet.mechanisms());
        mechanisms
    }

    /// Whether a user is logged in.
    #[must_use]
    pub const fn is_logged_in(&self) -> bool {
        self.login.is_some()
    }

    /// The objects that match `template` and may be seen now, when the card need not be asked for them.
    #[must_use]
    pub fn find_loaded(&self, template: &Template) -> Option<Vec<Arc<Object>>> {
        let logged_in = self.is_logged_in();
        if !self
            .applet
            .is_loaded(&SearchScope::of_template(template, logged_in))
        {
            return None;
        }
        let found =
            |object: &Arc<Object>| (logged_in || !object.is_private()) && object.matches(template);
        let objects = self.applet.objects().into_iter();
        Some(objects.chain(profile::all()).filter(found).collect())
    }

    /// The objects that match `template` and may be seen now. Reads from the card what could match and is
    /// not known yet.
    ///
    /// # Errors
    /// Of the transport.
    pub fn find(
        &mut self,
        card: &mut Card,
        template: &Template,
    ) -> Result<Vec<Arc<Object>>, TokenError> {
        if let Some(known) = self.find_loaded(template) {
            return Ok(known);
        }
        let scope = SearchScope::of_template(template, self.is_logged_in());
        let applet = self.applet.as_mut();
        card.with_applet(applet.application(), |tx| applet.load(tx, &scope))?;
        Ok(self.find_loaded(template).unwrap_or_default())
    }

    /// The objects with this CKA_ID, private ones included whoever is logged in: what was just made there.
    ///
    /// # Errors
    /// Of the transport.
    pub fn objects_of(
        &mut self,
        card: &mut Card,
        id: &[u8],
    ) -> Result<Vec<Arc<Object>>, TokenError> {
        let template = Template(vec![(CKA_ID, id.to_vec())]);
        let scope = SearchScope::of_template(&template, true);
        let applet = self.applet.as_mut();
        if !applet.is_loaded(&scope) {
            card.with_applet(applet.application(), |tx| applet.load(tx, &scope))?;
        }
        let mut objects = applet.objects();
        objects.retain(|object| object.matches(&template));
        Ok(objects)
    }

    /// Forgets what was read, so that the next search sees what others have written.
    pub fn forget_objects(&mut self) {
        self.applet.forget_objects();
    }

    /// Logs the user in: exactly one try is spent, and none when the PIN cannot be right.
    ///
    /// # Errors
    /// [`TokenError::AnotherLoggedIn`], [`TokenError::PinLength`], [`TokenError::WrongPin`],
    /// [`TokenError::PinLocked`], or of the transport.
    pub fn login(&mut self, card: &mut Card, pin: &Secret) -> Result<(), TokenError> {
        if self.is_so_logged_in() {
            return Err(TokenError::AnotherLoggedIn);
        }
        self.verify(card, pin, PinPurpose::Login)?;
        self.login = Some(CachedPin::new(pin, self.applet.info().pin_tries.left));
        Ok(())
    }

    /// Verifies the PIN for one use of `key` alone (CKU_CONTEXT_SPECIFIC); the caller keeps it until then.
    ///
    /// # Errors
    /// As [`Token::login`].
    pub fn context_login(
        &mut self,
        card: &mut Card,
        key: &PrivateKey,
        pin: &Secret,
    ) -> Result<(), TokenError> {
        let verified = self.verify(card, pin, PinPurpose::Once(*key));
        if matches!(verified, Err(TokenError::PinLocked)) {
            self.login = None;
        }
        verified
    }

    fn verify(
        &mut self,
        card: &mut Card,
        pin: &Secret,
        purpose: PinPurpose,
    ) -> Result<(), TokenError> {
        self.applet.check_pin(pin)?;
        let applet = self.applet.as_mut();
        card.with_applet(applet.application(), |tx| {
            prove(applet, tx)?;
            applet.verify(tx, pin, purpose)
        })
    }

    /// Logs the user, or the security officer, out here and on the card. The login is over even when the card could
    /// not be told.
    ///
    /// # Errors
    /// When the card could not be told: it then stays verified for every program until it is reset.
    pub fn logout(&mut self, card: &mut Card) -> Result<(), TokenError> {
        if self.is_so_logged_in() {
            return self.so_logout(card);
        }
        self.login = None;
        let applet = self.applet.as_mut();
        card.with_applet(applet.application(), |tx| {
            prove(applet, tx)?;
            applet.reset_verification(tx)
        })
    }

    /// Forgets the login without talking to the card, which is gone.
    pub fn forget_login(&mut self) {
        self.login = None;
        self.so = None;
    }

    /// Uses a private key of the card once: signs, decrypts or agrees.
    ///
    /// The command goes out alone when nothing announced that the card's state was lost. When the answer
    /// says otherwise, one conversation proves the applet, restores the login if that may be, and repeats it.
    /// `context_pin` is the PIN for this use of a key that wants it each time.
    ///
    /// # Errors
    /// [`TokenError::NotLoggedIn`] when a login is needed that is not there, [`TokenError::TouchMissing`],
    /// [`TokenError::Refused`], or of the transport.
    pub fn use_private_key(
        &mut self,
        card: &mut Card,
        key: &PrivateKey,
        input: &KeyInput,
        context_pin: Option<&Secret>,
    ) -> Result<Secret, TokenError> {
        let command = self.applet.key_command(key, input)?;
        self.require_login(key, context_pin)?;
        let mut refused = None;
        if card.is_selected(self.applet.kind()) {
            let asked = Instant::now();
            match card.exchange_shared(&command.as_apdu()) {
                Ok(response) if response.status.is_ok() => {
                    return self.applet.key_output(key, input, &response.data);
                }
                Ok(response) if AppletKind::may_be_other_applet(response.status) => {
                    refused = Some(response.status).filter(|status| {
                        *status != StatusWord::SECURITY_STATUS_NOT_SATISFIED
                            || asked.elapsed() >= TOUCH
                    });
                }
                Ok(response) => {
                    return Err(refused_input(input, self.refusal(key, response.status)));
                }
                Err(error) if error.sent == Sent::No && may_repeat(error.kind) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let response = self
            .use_key_in_transaction(card, key, &command, context_pin, refused)
            .map_err(|error| refused_input(input, error))?;
        self.applet.key_output(key, input, &response)
    }

    /// Checks that the logins are there which one use of `key` needs.
    fn require_login(
        &self,
        key: &PrivateKey,
        context_pin: Option<&Secret>,
    ) -> Result<(), TokenError> {
        let missing = match key.pin {
            PinPolicy::Never => false,
            PinPolicy::Once => self.login.is_none(),
            PinPolicy::Always => self.login.is_none() || context_pin.is_none(),
        };
        if missing {
            return Err(TokenError::NotLoggedIn {
                operation: self.applet.key_name(key),
            });
        }
        Ok(())
    }

    /// Signs what `operation` has collected, by a key of the card or on the host.
    ///
    /// # Errors
    /// As [`Token::use_private_key`]; [`TokenError::Malformed`] for a signature that is longer than the key.
    pub fn sign(
        &mut self,
        card: &mut Card,
        operation: &mut SignOperation,
    ) -> Result<Secret, TokenError> {
        let context_pin = operation.context_pin.take();
        let Some((key, input)) = operation.input()? else {
            return Ok(operation.mac().unwrap_or_default());
        };
        let signature = self.use_private_key(card, &key, &input, context_pin.as_ref())?;
        if signature.len() > operation.signature_len() {
            return Err(TokenError::malformed("signature", "longer than the key"));
        }
        Ok(signature)
    }

    /// Decrypts what `operation` has collected, by a key of the card; the host's own it ends with
    /// [`CipherOperation::finish`].
    ///
    /// # Errors
    /// As [`Token::use_private_key`]; [`TokenError::EncryptedDataLength`], [`TokenError::EncryptedDataInvalid`].
    pub fn decrypt(
        &mut self,
        card: &mut Card,
        operation: &mut DecryptOperation,
    ) -> Result<Secret, TokenError> {
        let context_pin = operation.context_pin.take();
        match operation.input()? {
            Some((key, input)) => {
                let output = self.use_private_key(card, &key, &input, context_pin.as_ref())?;
                operation.plaintext(output)
            }
            None => Ok(operation.finish()?.unwrap_or_default()),
        }
    }

    /// Proves the applet, restores the login and sends the command, all in one transaction. Begins again if another program
    /// has reset the card meanwhile. `refused` is the status of a refusal outside the transaction.
    fn use_key_in_transaction(
        &mut self,
        card: &mut Card,
        key: &PrivateKey,
        command: &OwnedCommand,
        context_pin: Option<&Secret>,
        mut refused: Option<StatusWord>,
    ) -> Result<Secret, TokenError> {
        let mut repetitions = 1..MAX_TURNS;
        loop {
            let refused = refused.take();
            let used = card.with_applet(self.applet.application(), |tx| {
                prove(self.applet.as_mut(), tx)?;
                let first_refusal = refused.filter(|_| !tx.was_reselected());
                self.restore_pin_state(tx, key, context_pin, first_refusal)?;
                let response = tx.exchange(&command.as_apdu())?;
                response.ok().map_err(|status| self.refusal(key, status))
            });
            match used {
                Err(error) if met_earlier_reset(&error) && repetitions.next().is_some() => {}
                outcome => return outcome,
            }
        }
    }

    /// Brings the PIN state `key` needs back. `unchanged` is the status of a refusal that came although the
    /// applet was still selected: if the PIN was not the reason, it stands.
    fn restore_pin_state(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        key: &PrivateKey,
        context_pin: Option<&Secret>,
        first_refusal: Option<StatusWord>,
    ) -> Result<(), TokenError> {
        match (key.pin, context_pin) {
            (PinPolicy::Never, _) => {
                first_refusal.map_or(Ok(()), |status| Err(self.refusal(key, status)))
            }
            // Only 6982 says that the PIN was missing; another refusal is not mended by verifying again.
            (PinPolicy::Always, Some(pin)) => match first_refusal {
                Some(status) if status != StatusWord::SECURITY_STATUS_NOT_SATISFIED => {
                    Err(self.refusal(key, status))
                }
                _ => self.applet.verify(tx, pin, PinPurpose::Once(*key)),
            },
            (PinPolicy::Always, None) => Err(TokenError::NotLoggedIn {
                operation: self.applet.key_name(key),
            }),
            (PinPolicy::Once, _) => match self.applet.pin_status(tx, key)? {
                PinStatus::Verified => {
                    first_refusal.map_or(Ok(()), |status| Err(self.refusal(key, status)))
                }
                PinStatus::Blocked => {
                    self.login = None;
                    Err(TokenError::PinLocked)
                }
                PinStatus::NotVerified { tries_left } => {
                    self.reverify_cached_pin(tx, key, tries_left)
                }
            },
        }
    }

    /// Verifies the kept PIN, silently. When that fails, or may not be tried, the login is over.
    fn reverify_cached_pin(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        key: &PrivateKey,
        tries_left: Option<u8>,
    ) -> Result<(), TokenError> {
        let lost = || TokenError::NotLoggedIn {
            operation: format!(
                "{}, after the card lost its login",
                self.applet.key_name(key)
            ),
        };
        let Some(cached) = self.login.take_if(|cached| cached.may_be_tried(tries_left)) else {
            self.login = None;
            return Err(lost());
        };
        self.applet.verify(tx, cached.pin(), PinPurpose::Login)?;
        tracing::debug!(
            "{}: the card had lost the login; it is verified again",
            self.applet.kind().name()
        );
        self.login = Some(cached);
        Ok(())
    }

    fn refusal(&self, key: &PrivateKey, status: StatusWord) -> TokenError {
        let operation = format!("using {}", self.applet.key_name(key));
        match status {
            StatusWord::SECURITY_STATUS_NOT_SATISFIED if key.pin != PinPolicy::Never => {
                TokenError::TouchMissing { operation }
            }
            StatusWord::REFERENCE_NOT_FOUND => TokenError::NoSuchKey {
                key: self.applet.key_name(key),
            },
            _ => TokenError::refused(operation, status),
        }
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token")
            .field("kind", &self.kind())
            .field("logged_in", &self.is_logged_in())
            .finish_non_exhaustive()
    }
}

/// What a card calls bad data is the caller's, where only the card can tell (SP 800-73-4 part 2, 3.2.4; OpenPGP, 7.2.11).
fn refused_input(input: &KeyInput, error: TokenError) -> TokenError {
    let TokenError::Refused { status, .. } = &error else {
        return error;
    };
    let bad_data = [StatusWord::INCORRECT_DATA, StatusWord::NO_PRECISE_DIAGNOSIS];
    match input {
        KeyInput::Cryptogram(_) if bad_data.contains(status) => TokenError::EncryptedDataInvalid,
        KeyInput::Block(_) if bad_data.contains(status) => TokenError::DataInvalid,
        _ => error,
    }
}

/// Whether a conversation met a reset that another program had asked for before it began: pcscd lets it through.
/// The command has not been executed then.
fn met_earlier_reset(error: &TokenError) -> bool {
    match error {
        TokenError::Refused { status, .. } => {
            AppletKind::may_be_other_applet(*status)
                && *status != StatusWord::SECURITY_STATUS_NOT_SATISFIED
        }
        TokenError::Transport(error) => {
            error.kind == TransportErrorKind::CardReset && error.sent == Sent::No
        }
        _ => false,
    }
}

/// A command that was refused entry may go out again in a conversation of its own.
const fn may_repeat(kind: TransportErrorKind) -> bool {
    matches!(
        kind,
        TransportErrorKind::CardReset | TransportErrorKind::Busy
    )
}

pub(crate) fn prove(
    applet: &mut dyn Applet,
    tx: &mut AppletTransaction<'_, '_>,
) -> Result<(), TokenError> {
    match tx.ensure_selected()? {
        Some(response) => applet.take_probe_answer(response.expose()),
        None => Ok(()),
    }
}
