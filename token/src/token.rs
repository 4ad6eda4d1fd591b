//! A token: one applet of one card with its login state. The rules for PINs that hold for every applet are here.

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

/// A card that waits for a touch in vain takes longer than this. If a card reports a missing PIN sooner, another
/// program may have logged the user out. That program may even have logged in again before the PIN's state is queried.
const TOUCH: Duration = Duration::from_secs(1);

/// Most transactions for one use of a key, while other programs reset the card.
const MAX_TURNS: usize = 4;

/// One applet of one card.
pub struct Token {
    pub(crate) applet: Box<dyn Applet>,
    /// The PIN of the logged-in user.
    pub(crate) login: Option<CachedPin>,
    /// The SO PIN of the logged-in security officer. It is never set together with `login`.
    pub(crate) so: Option<CachedPin>,
}

impl Token {
    /// Sets the limits of a new transport from what `tokens`, which were found on the same card, know of the card.
    pub fn apply_known_limits(card: &mut Card, tokens: &[Self]) {
        if tokens.iter().any(|token| token.applet.extended_length()) {
            card.allow_extended();
        }
        if tokens.iter().any(|token| !token.applet.chains()) {
            card.forbid_chaining();
        }
    }

    /// Returns whether `other` was found on the same card. A card without a serial number is never recognised.
    #[must_use]
    pub fn is_same_card(&self, other: &Self) -> bool {
        let serial = self.info().serial;
        let is_told = serial.bytes().any(|digit| digit != b'0');
        self.kind() == other.kind() && is_told && serial == other.info().serial
    }

    /// Returns the kind of the applet.
    #[must_use]
    pub fn kind(&self) -> AppletKind {
        self.applet.kind()
    }

    /// Returns the values of C_GetTokenInfo. Does not use the card.
    #[must_use]
    pub fn info(&self) -> TokenInfo {
        self.applet.info()
    }

    /// Returns the mechanisms of the token.
    #[must_use]
    pub fn mechanisms(&self) -> Vec<MechanismInfo> {
        let mut mechanisms =
            mechanism::generation_mechanisms(&self.applet.generatable_algorithms());
        mechanisms.extend(self.applet.mechanisms());
        mechanisms
    }

    /// Returns whether a user is logged in.
    #[must_use]
    pub const fn is_logged_in(&self) -> bool {
        self.login.is_some()
    }

    /// Returns the objects that match `template` and are visible now. Returns `None` if they must be read from the
    /// card.
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

    /// Returns the objects that match `template` and are visible now. Reads from the card the objects that may match
    /// and are not cached.
    ///
    /// # Errors
    /// An error of the transport.
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

    /// Returns the objects with this CKA_ID, private ones included, whatever the login state. Call this for objects
    /// that were just made.
    ///
    /// # Errors
    /// An error of the transport.
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

    /// Clears the cache of objects, so that the next search finds objects that other programs have written.
    pub fn forget_objects(&mut self) {
        self.applet.forget_objects();
    }

    /// Logs the user in. Exactly one try is spent, and none if the PIN has an impossible length.
    ///
    /// # Errors
    /// [`TokenError::AnotherLoggedIn`], [`TokenError::PinLength`], [`TokenError::WrongPin`], [`TokenError::PinLocked`],
    /// or an error of the transport.
    pub fn login(&mut self, card: &mut Card, pin: &Secret) -> Result<(), TokenError> {
        if self.is_so_logged_in() {
            return Err(TokenError::AnotherLoggedIn);
        }
        self.verify(card, pin, PinPurpose::Login)?;
        self.login = Some(CachedPin::new(pin, self.applet.info().pin_tries.left));
        Ok(())
    }

    /// Verifies the PIN for one use of `key` (CKU_CONTEXT_SPECIFIC). The caller keeps the PIN until that use.
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
            ensure_selected(applet, tx)?;
            applet.verify(tx, pin, purpose)
        })
    }

    /// Logs the user or the security officer out, here and on the card. The login ends here even if the card could not
    /// be reached.
    ///
    /// # Errors
    /// An error if the card could not be reached or refused. The PIN then stays verified for every program until the
    /// card is reset.
    pub fn logout(&mut self, card: &mut Card) -> Result<(), TokenError> {
        if self.is_so_logged_in() {
            return self.so_logout(card);
        }
        self.login = None;
        let applet = self.applet.as_mut();
        card.with_applet(applet.application(), |tx| {
            ensure_selected(applet, tx)?;
            applet.reset_verification(tx)
        })
    }

    /// Ends the login without using the card. Call this after the card was removed.
    pub fn forget_login(&mut self) {
        self.login = None;
        self.so = None;
    }

    /// Uses a private key of the card once: signs, decrypts or agrees on a secret.
    ///
    /// The command is sent outside a transaction if no loss of the card's state was announced. If the response suggests
    /// a loss, one transaction ensures that the applet is selected, restores the login if that is allowed, and repeats
    /// the command. `context_pin` is the PIN for this use of a key that needs a context login.
    ///
    /// # Errors
    /// [`TokenError::NotLoggedIn`] if a required login is missing, [`TokenError::TouchMissing`],
    /// [`TokenError::Refused`], or an error of the transport.
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

    /// Signs the message of `operation`, with a key of the card or on the host.
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

    /// Decrypts the ciphertext of `operation` with a key of the card. If the host decrypts, this ends the operation
    /// with [`CipherOperation::finish`].
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

    /// Ensures that the applet is selected, restores the login and sends the command, all in one transaction. Begins again
    /// if another program has reset the card since. `refused` is the status of a refusal outside the transaction.
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
                ensure_selected(self.applet.as_mut(), tx)?;
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

    /// Restores the PIN state for `key`. `first_refusal` is the status of a refusal that came while the applet was
    /// selected. It is the final result, unless it means that the PIN was missing.
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
            // Only 6982 means that the PIN was missing. After another refusal, verifying again does not help.
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

    /// Verifies the cached PIN without asking the user. If that fails or is not allowed, the login ends.
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
            "{}: the card had lost the login; the cached PIN was verified again",
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

/// Converts a refusal of bad data to an error about the caller's input. Only the card can check such input (SP 800-73-4
/// part 2, 3.2.4; OpenPGP, 7.2.11).
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

/// Returns whether a transaction met a reset that another program had requested before it began: pcscd reports it
/// inside the transaction. The command has not been executed then.
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

/// Returns whether a command that the card never received may be sent again in a transaction of its own.
const fn may_repeat(kind: TransportErrorKind) -> bool {
    matches!(
        kind,
        TransportErrorKind::CardReset | TransportErrorKind::Busy
    )
}

pub(crate) fn ensure_selected(
    applet: &mut dyn Applet,
    tx: &mut AppletTransaction<'_, '_>,
) -> Result<(), TokenError> {
    match tx.ensure_selected()? {
        Some(response) => applet.take_probe_answer(response.expose()),
        None => Ok(()),
    }
}
