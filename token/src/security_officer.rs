//! The security officer's (SO) view of a token, and changes of PINs.
//!
//! The login state is nobody, user or SO, never both. Each task runs in one transaction, which ensures that the applet
//! is selected and the SO is verified. So no task is left half done because another program used the card in between.

use std::time::SystemTime;

use claviger_apdu::{Secret, Sent};

use crate::{
    administration::SoPurpose,
    algorithm::{KeyAlgorithm, PublicKey},
    applet::Applet,
    card::{AppletTransaction, Card},
    error::TokenError,
    login::CachedPin,
    pin::{PinStatus, PinTries},
    token::{Token, ensure_selected},
};

impl Token {
    /// Returns whether the SO is logged in.
    #[must_use]
    pub const fn is_so_logged_in(&self) -> bool {
        self.so.is_some()
    }

    /// Returns the tries of the SO PIN, as the card last reported them.
    #[must_use]
    pub fn so_tries(&self) -> PinTries {
        self.applet.so_tries()
    }

    /// Logs the SO in. Exactly one try is spent, and none if the SO PIN has an impossible form.
    ///
    /// # Errors
    /// [`TokenError::AnotherLoggedIn`], [`TokenError::SoPinForm`], [`TokenError::WrongSoPin`],
    /// [`TokenError::SoPinLocked`], or an error of the transport.
    pub fn so_login(&mut self, card: &mut Card, so: &Secret) -> Result<(), TokenError> {
        if self.is_logged_in() {
            return Err(TokenError::AnotherLoggedIn);
        }
        self.applet.check_so_pin(so)?;
        self.with_applet(card, |applet, tx| applet.so_verify(tx, so))?;
        self.so = Some(CachedPin::new(so, self.applet.so_tries().left));
        Ok(())
    }

    /// Logs the SO out, here and on the card. The login ends here even if the card could not be reached.
    ///
    /// # Errors
    /// An error if the card could not be reached or refused. The SO then stays verified until the card is reset.
    pub fn so_logout(&mut self, card: &mut Card) -> Result<(), TokenError> {
        match self.so.take() {
            Some(so) => self.with_applet(card, |applet, tx| applet.so_unverify(tx, so.pin())),
            None => Ok(()),
        }
    }

    /// C_SetPIN: changes the SO PIN if the SO is logged in, otherwise the user PIN. The login state stays the same.
    ///
    /// # Errors
    /// [`TokenError::NewPinLength`], [`TokenError::NewPinInvalid`], the errors of the login, or an error of the
    /// transport.
    pub fn set_pin(
        &mut self,
        card: &mut Card,
        old: &Secret,
        new: &Secret,
    ) -> Result<(), TokenError> {
        if self.is_so_logged_in() {
            return self.set_so_pin(card, old, new);
        }
        self.applet.check_pin(old)?;
        let login = self.login.take();
        let changed = self.with_applet(card, |applet, tx| {
            let changed = applet.change_user_pin(tx, old, new);
            if login.is_none() && was_verified(&changed) {
                // Otherwise the PIN would stay verified for every program that uses the card.
                applet.reset_verification(tx).unwrap_or_else(|error| {
                    tracing::warn!("the PIN stays verified on the card: {error}");
                });
            }
            changed
        });
        let tries = self.applet.info().pin_tries.left;
        self.login = login.and_then(|login| kept(login, &changed, new, tries));
        changed
    }

    fn set_so_pin(
        &mut self,
        card: &mut Card,
        old: &Secret,
        new: &Secret,
    ) -> Result<(), TokenError> {
        self.applet.check_so_pin(old)?;
        let login = self.so.take();
        let changed = self.with_applet(card, |applet, tx| applet.change_so_pin(tx, old, new));
        let tries = self.applet.so_tries().left;
        self.so = login.and_then(|login| kept(login, &changed, new, tries));
        changed
    }

    /// C_InitPIN: sets the user's PIN to `new` and restores all its tries. The SO must be logged in.
    ///
    /// # Errors
    /// [`TokenError::NotLoggedIn`], [`TokenError::NewPinLength`], [`TokenError::NewPinInvalid`], or an error of the
    /// transport.
    pub fn init_pin(&mut self, card: &mut Card, new: &Secret) -> Result<(), TokenError> {
        self.with_so(card, SoPurpose::Pin, |applet, tx, so| {
            applet.init_user_pin(tx, so, new)
        })
    }

    /// Returns the algorithms for which [`Token::generate_key`] can generate a key in at least one key reference.
    #[must_use]
    pub fn generatable_algorithms(&self) -> Vec<KeyAlgorithm> {
        self.applet.generatable_algorithms()
    }

    /// Returns the key reference whose objects have this CKA_ID.
    #[must_use]
    pub fn key_reference_of(&self, id: &[u8]) -> Option<u8> {
        self.applet.key_reference_of(id)
    }

    /// Returns the data objects that [`Token::put_data`] can write, with the content octets of their object
    /// identifiers.
    #[must_use]
    pub fn writable_data_objects(&self) -> Vec<(u32, Vec<u8>)> {
        self.applet.writable_data_objects()
    }

    /// Generates a key in `reference` and replaces the present one.
    ///
    /// # Errors
    /// [`TokenError::NotLoggedIn`], [`TokenError::KeyNotGenerable`], [`TokenError::ValueInvalid`], or an error of the
    /// transport.
    pub fn generate_key(
        &mut self,
        card: &mut Card,
        reference: u8,
        algorithm: KeyAlgorithm,
        created: SystemTime,
    ) -> Result<PublicKey, TokenError> {
        self.with_so(card, SoPurpose::Contents, |applet, tx, _| {
            applet.generate(tx, reference, algorithm, created)
        })
    }

    /// Writes the certificate of a key. `None` removes the certificate.
    ///
    /// # Errors
    /// [`TokenError::NotLoggedIn`], [`TokenError::NoSpace`], [`TokenError::ValueInvalid`], or an error of the
    /// transport.
    pub fn put_certificate(
        &mut self,
        card: &mut Card,
        reference: u8,
        der: Option<&[u8]>,
    ) -> Result<(), TokenError> {
        self.with_so(card, SoPurpose::Contents, |applet, tx, _| {
            applet.put_certificate(tx, reference, der)
        })
    }

    /// Writes a data object. `None` removes its content.
    ///
    /// # Errors
    /// As [`Token::put_certificate`].
    pub fn put_data(
        &mut self,
        card: &mut Card,
        number: u32,
        content: Option<&[u8]>,
    ) -> Result<(), TokenError> {
        self.with_so(card, SoPurpose::Contents, |applet, tx, _| {
            applet.put_data(tx, number, content)
        })
    }

    /// Returns whether [`Token::random`] gives random bytes.
    #[must_use]
    pub fn has_random(&self) -> bool {
        self.applet.has_random()
    }

    /// Returns `len` random bytes from the card. Returns `None`, without using the card, if the card gives none.
    ///
    /// # Errors
    /// An error of the transport, or an error if the card gives another number of bytes.
    pub fn random(&mut self, card: &mut Card, len: usize) -> Result<Option<Secret>, TokenError> {
        if !self.has_random() {
            return Ok(None);
        }
        let applet = self.applet.as_mut();
        card.with_applet(applet.application(), |tx| applet.random(tx, len))
    }

    /// Runs `body` in a transaction in which the applet is confirmed to be selected.
    fn with_applet<R>(
        &mut self,
        card: &mut Card,
        body: impl FnOnce(&mut dyn Applet, &mut AppletTransaction<'_, '_>) -> Result<R, TokenError>,
    ) -> Result<R, TokenError> {
        let applet = self.applet.as_mut();
        card.with_applet(applet.application(), |tx| {
            ensure_selected(applet, tx)?;
            body(applet, tx)
        })
    }

    /// Runs `body` in a transaction in which the applet is confirmed to be selected and the SO is verified.
    fn with_so<R>(
        &mut self,
        card: &mut Card,
        purpose: SoPurpose,
        body: impl FnOnce(
            &mut dyn Applet,
            &mut AppletTransaction<'_, '_>,
            &Secret,
        ) -> Result<R, TokenError>,
    ) -> Result<R, TokenError> {
        let lost = |what: &str| TokenError::NotLoggedIn {
            operation: format!("administration{what}"),
        };
        let so = self.so.take().ok_or_else(|| lost(""))?;
        let mut stays = true;
        let outcome = self.with_applet(card, |applet, tx| {
            match applet.so_status(tx, so.pin(), purpose)? {
                PinStatus::Verified => {}
                PinStatus::NotVerified { tries_left } if so.may_be_tried(tries_left) => {
                    stays = false;
                    applet.so_verify(tx, so.pin())?;
                    stays = true;
                }
                PinStatus::NotVerified { .. } => {
                    stays = false;
                    return Err(lost(", after the card lost its login"));
                }
                PinStatus::Blocked => return Err(TokenError::SoPinLocked),
            }
            body(applet, tx, so.pin())
        });
        let refuted = matches!(
            outcome,
            Err(TokenError::WrongSoPin { .. } | TokenError::SoPinLocked)
        );
        self.so = Some(so).filter(|_| stays && !refuted);
        outcome
    }
}

/// Returns the PIN to cache after a change to `new`. Returns `None` if it is unclear which PIN is valid.
fn kept(
    login: CachedPin,
    changed: &Result<(), TokenError>,
    new: &Secret,
    tries: Option<u8>,
) -> Option<CachedPin> {
    match changed {
        Ok(()) => Some(CachedPin::new(new, tries)),
        Err(TokenError::PinLocked | TokenError::SoPinLocked) => None,
        Err(TokenError::Transport(error)) if error.sent != Sent::No => None,
        // The failed try was of another PIN than the cached one.
        Err(TokenError::WrongPin { .. } | TokenError::WrongSoPin { .. }) => {
            Some(login.with_tries(tries))
        }
        Err(_) => Some(login),
    }
}

/// Returns whether the old PIN was verified before this outcome.
const fn was_verified(changed: &Result<(), TokenError>) -> bool {
    matches!(
        changed,
        Ok(()) | Err(TokenError::NewPinInvalid { .. } | TokenError::Refused { .. })
    )
}
