//! How the tokens of a card are discovered.

use std::sync::Arc;

use claviger_apdu::{Sent, TransportError, TransportErrorKind};

use crate::{
    applet::Applet,
    application::{AppletKind, Application},
    card::{AppletTransaction, Card},
    error::TokenError,
    naming::Naming,
    openpgp::{self, OpenPgp},
    piv::{self, Piv},
    token::Token,
};

impl Token {
    /// Discovers the applets of a card, with the values of C_GetTokenInfo, in one transaction. Objects have the default
    /// names.
    ///
    /// # Errors
    /// An error of the transport. A card with neither applet has no tokens, which is no error.
    pub fn discover(card: &mut Card) -> Result<Vec<Self>, TokenError> {
        Self::discover_as(card, &AppletKind::ALL, &Arc::default())
    }

    /// As [`Token::discover`], for `applets` only and with objects named by `naming`. Other applets are not selected.
    ///
    /// # Errors
    /// As [`Token::discover`].
    pub fn discover_as(
        card: &mut Card,
        applets: &[AppletKind],
        naming: &Arc<Naming>,
    ) -> Result<Vec<Self>, TokenError> {
        let atr = card.atr().clone();
        let wanted = |application: &'static Application| {
            applets.contains(&application.kind).then_some(application)
        };
        let tokens = card.with_any_applet(&piv::APPLICATION, |tx| {
            // PIV comes last, so that it stays selected. It is the applet that is used first.
            let openpgp = open(tx, wanted(&openpgp::APPLICATION), |tx, response| {
                OpenPgp::open(tx, response, &atr, naming)
            });
            let piv = open(tx, wanted(&piv::APPLICATION), |tx, response| {
                Piv::open(tx, response, &atr, naming)
            });
            let selected = match (&piv, &openpgp) {
                (Ok(Some(_)), _) => Some(AppletKind::Piv),
                (Ok(None), Ok(Some(_))) if wanted(&piv::APPLICATION).is_none() => {
                    Some(AppletKind::OpenPgp)
                }
                _ => None,
            };
            (openpgp.and_then(|openpgp| Ok((openpgp, piv?))), selected)
        })?;
        let (openpgp, piv) = tokens;
        let tokens: Vec<Self> = [piv, openpgp]
            .into_iter()
            .flatten()
            .map(|applet| Self {
                applet,
                login: None,
                so: None,
            })
            .collect();
        Self::apply_known_limits(card, &tokens);
        Ok(tokens)
    }
}

/// Selects and opens `application`, if it is wanted. Returns `None` if the card does not have the applet. An applet
/// whose identity cannot be read is left out with a warning.
fn open<A: Applet + 'static>(
    tx: &mut AppletTransaction<'_, '_>,
    application: Option<&'static Application>,
    open: impl FnOnce(&mut AppletTransaction<'_, '_>, &[u8]) -> Result<A, TokenError>,
) -> Result<Option<Box<dyn Applet>>, TokenError> {
    let Some(application) = application else {
        return Ok(None);
    };
    let opened = match tx.select(application) {
        Ok(response) => open(tx, response.expose()),
        Err(TokenError::Refused { .. }) => return Ok(None),
        Err(error) => Err(error),
    };
    match opened {
        Ok(applet) => Ok(Some(Box::new(applet))),
        Err(TokenError::Transport(error)) if !is_applet_fault(&error) => Err(error.into()),
        Err(error) => {
            tracing::warn!(
                "the {} applet is left out, because it cannot be opened: {error}",
                application.kind.name()
            );
            Ok(None)
        }
    }
}

/// Returns whether the applet itself violated the protocol. Such an applet must not hide the other one.
fn is_applet_fault(error: &TransportError) -> bool {
    error.kind == TransportErrorKind::Protocol && error.sent == Sent::Yes
}
