//! A token in the hands of the security officer, and PINs changed by those who know them.
//!
//! Nobody, the user or the security officer is logged in, never two of them. Each piece of work is one conversation
//! that proves the applet and the security officer to it, so that nothing is written by halves after somebody else
//! had the card.

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
    token::{Token, prove},
};

impl Token {
    /// Whether the security officer is logged in.
    #[must_use]
    pub const fn is_so_logged_in(&self) -> bool {
        self.so.is_some()
    }

    /// Tries of the security officer as last heard.
    #[must_use]
    pub fn so_tries(&self) -> PinTries {
        self.applet.so_tries()
    }

    /// Logs the security officer in: exactly one try is spent, and none when the secret cannot be right.
    ///
    /// # Errors
    /// [`TokenError::AnotherLoggedIn`], [`TokenError::SoPinForm`], [`TokenError::WrongSoPin`],
    /// [`TokenError::SoPinLocked`], or of the transport.
    pub fn so_login(&mut self, card: &mut Card, so: &Secret) -> Result<(), TokenError> {
        if self.is_logged_in() {
            return Err(TokenError::AnotherLoggedIn);
        }
        self.applet.check_so_pin(so)?;
        self.with_applet(card, |applet, tx| applet.so_verify(tx, so))?;
        self.so = Some(CachedPin::new(so, self.applet.so_tries().left));
        Ok(())
    }

    /// Logs the security officer out here and on the card. The login is over even when the card could not be told.
    ///
    /// # Errors
    /// When the card could not be told: the security officer then stays verified until it is reset.
    pub fn so_logout(&mut self, card: &mut Card) -> Result<(), TokenError> {
        match self.so.take() {
            Some(so) => self.with_applet(card, |applet, tx| applet.so_unverify(tx, so.pin())),
            None => Ok(()),
        }
    }

    /// C_SetPIN: gives whoever is logged in, or else the user, the PIN `new`. Who is logged in stays so.
    ///
    /// # Errors
    /// [`TokenError::NewPinLength`], [`TokenError::NewPinInvalid`], those of the login, or of the transport.
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
                // It would else be so for every program that has the card.
                applet
                    .reset_verification(tx)
                    .unwrap_or_else(|error| tracing::warn!("the PIN stays verified: {error}"));
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

    /// C_InitPIN: the security officer gives the user the PIN `new` and all tries back.
    ///
    /// # Errors
    /// [`TokenError::NotLoggedIn`], [`TokenError::NewPinLength`], [`TokenError::NewPinInvalid`], or of the transport.
    pub fn init_pin(&mut self, card: &mut Card, new: &Secret) -> Result<(), TokenError> {
        self.with_so(card, SoPurpose::Pin, |applet, tx, so| {
            applet.init_user_pin(tx, so, new)
        })
    }

    /// The keys [`Token::generate_key`] can make in one place or another.
    #[must_use]
    pub fn generable(&self) -> Vec<KeyAlgorithm> {
        self.applet.generatable_algorithms()
    }

    /// The key reference whose objects have this CKA_ID.
    #[must_use]
    pub fn place_of(&self, id: &[u8]) -> Option<u8> {
        self.applet.key_reference_of(id)
    }

    /// The places [`Token::put_data`] can write to, with the content octets of their object identifiers.
    #[must_use]
    pub fn writable_data_objects(&self) -> Vec<(u32, Vec<u8>)> {
        self.applet.writable_data_objects()
    }

    /// Makes a key in the place of `reference`, over the one that is there.
    ///
    /// # Errors
    /// [`TokenError::NotLoggedIn`], [`TokenError::KeyNotGenerable`], [`TokenError::ValueInvalid`], or of the
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

    /// Writes the certificate of a key, or with `None` removes it.
    ///
    /// # Errors
    /// [`TokenError::NotLoggedIn`], [`TokenError::NoSpace`], [`TokenError::ValueInvalid`], or of the transport.
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

    /// Writes a data object, or with `None` removes it.
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

    /// Whether [`Token::random`] gives any.
    #[must_use]
    pub fn has_random(&self) -> bool {
        self.applet.has_random()
    }

    /// `len` bytes of the card's randomness; `None` from a card that gives none, which is not asked.
    ///
    /// # Errors
    /// Of the transport, or when the card gives other than it was asked for.
    pub fn random(&mut self, card: &mut Card, len: usize) -> Result<Option<Secret>, TokenError> {
        if !self.has_random() {
            return Ok(None);
        }
        let applet = self.applet.as_mut();
        card.with_applet(applet.application(), |tx| applet.random(tx, len))
    }

    /// A conversation with the proved applet.
    fn with_applet<R>(
        &mut self,
        card: &mut Card,
        body: impl FnOnce(&mut dyn Applet, &mut AppletTransaction<'_, '_>) -> Result<R, TokenError>,
    ) -> Result<R, TokenError> {
        let applet = self.applet.as_mut();
        card.with_applet(applet.application(), |tx| {
            prove(applet, tx)?;
            body(applet, tx)
        })
    }

    /// A conversation with the proved applet and the security officer verified in it.
    fn with_so<R>(
        &mut self,
        card: &mut Card,
        work: SoPurpose,
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
            match applet.so_status(tx, so.pin(), work)? {
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

/// What is kept for a login after its PIN was to be changed to `new`. Nothing is when nobody knows which one holds.
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
        // The try that went was not one of the kept PIN.
        Err(TokenError::WrongPin { .. } | TokenError::WrongSoPin { .. }) => {
            Some(login.with_tries(tries))
        }
        Err(_) => Some(login),
    }
}

/// Whether the old PIN was verified on the way to this outcome.
const fn was_verified(changed: &Result<(), TokenError>) -> bool {
    matches!(
        changed,
        Ok(()) | Err(TokenError::NewPinInvalid { .. } | TokenError::Refused { .. })
    )
}
