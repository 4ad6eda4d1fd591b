//! One card, shared by its applets: the selected applet, and transactions that ensure which one is selected.

use std::time::Duration;

use claviger_apdu::{
    Atr, Call, CommandApdu, Epoch, Expected, Limits, ResponseApdu, Secret, Transaction, Transport,
    TransportError,
};

use crate::{
    application::{AppletKind, Application},
    error::TokenError,
};

/// Longest wait for other programs to end their transactions.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15);

/// A connected card with its applets behind one transport.
pub struct Card {
    transport: Box<dyn Transport>,
    /// The applet that responded last, and the epoch of that response. Another process may have selected another applet
    /// since.
    selected: Option<(AppletKind, Epoch)>,
    extended: bool,
    chains: bool,
}

impl Card {
    /// Takes over a transport.
    #[must_use]
    pub fn new(transport: Box<dyn Transport>) -> Self {
        let extended = transport.atr().announces_extended_length();
        Self {
            transport,
            selected: None,
            extended,
            chains: true,
        }
    }

    /// Returns the card's answer to reset.
    #[must_use]
    pub fn atr(&self) -> &Atr {
        self.transport.atr()
    }

    /// Returns the epoch, which counts the announced losses of the card's state.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.transport.epoch()
    }

    /// Returns whether the transport has ended and is unusable.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.transport.is_closed()
    }

    /// Checks the card before an operation; see [`Transport::resume`].
    ///
    /// # Errors
    /// [`TransportError`]. The transport is then unusable.
    pub fn resume(&mut self, call: Call) -> Result<(), TransportError> {
        self.transport.resume(call)
    }

    /// Returns whether this may be another card than that of the last transport to this reader.
    #[must_use]
    pub fn may_be_another(&self) -> bool {
        self.transport.may_be_another()
    }

    /// Allows extended-length APDUs. Call this after an applet has stated that the card takes them.
    pub(crate) fn allow_extended(&mut self) {
        self.extended = true;
    }

    /// Sends long commands as one frame. Call this after an applet has stated that the card does not support chaining.
    pub(crate) fn forbid_chaining(&mut self) {
        self.chains = false;
    }

    /// Returns whether `kind` was selected at the card's last response and no loss of state was announced since.
    pub(crate) fn is_selected(&self, kind: AppletKind) -> bool {
        self.selected == Some((kind, self.transport.epoch()))
    }

    fn limits(&self) -> Limits {
        let limits = self.transport.limits();
        let limits = if self.chains {
            limits
        } else {
            limits.without_chaining()
        };
        if self.extended {
            limits
        } else {
            limits.short()
        }
    }

    /// Sends `command` outside a transaction. A command of several frames gets a transaction, but no probe.
    ///
    /// # Errors
    /// [`TransportError`].
    pub(crate) fn exchange_shared(
        &mut self,
        command: &CommandApdu<'_>,
    ) -> Result<ResponseApdu, TransportError> {
        let limits = self.limits();
        // If the reader cannot carry extended APDUs, a response may come in pieces (with T=0 always).
        let in_one_piece = self.transport.limits().extended;
        let one_frame = command.frames(limits).is_ok_and(|frames| frames.len() == 1);
        let one_response = limits.extended
            || matches!(
                command.expected,
                Expected::Nothing | Expected::UpTo(0..=256)
            );
        if in_one_piece && one_frame && one_response {
            return Transaction::new(self.transport.as_mut(), limits).exchange(command);
        }
        let mut response = None;
        self.transport
            .transact(Call::within(TRANSACTION_TIMEOUT), &mut |transmit| {
                response = Some(Transaction::new(transmit, limits).exchange(command));
            })?;
        response.unwrap_or_else(|| Err(not_run()))
    }

    /// Runs `body` in a transaction with one applet. `body` decides whether to ensure first that the applet is
    /// selected.
    ///
    /// # Errors
    /// Those of `body`, or an error of the transport if the transaction did not begin.
    pub(crate) fn with_applet<R>(
        &mut self,
        application: &'static Application,
        body: impl FnOnce(&mut AppletTransaction<'_, '_>) -> Result<R, TokenError>,
    ) -> Result<R, TokenError> {
        let assumed = self.is_selected(application.kind);
        self.run_transaction(application, assumed, |tx| {
            let outcome = body(tx);
            (outcome, tx.responded.then_some(application.kind))
        })
    }

    /// Runs `body` in a transaction with a card whose applets are unknown. `body` returns the applet that it leaves
    /// selected. Until `body` selects another applet, the transaction belongs to `application`.
    pub(crate) fn with_any_applet<R>(
        &mut self,
        application: &'static Application,
        body: impl FnOnce(&mut AppletTransaction<'_, '_>) -> (Result<R, TokenError>, Option<AppletKind>),
    ) -> Result<R, TokenError> {
        self.run_transaction(application, false, body)
    }

    fn run_transaction<R>(
        &mut self,
        application: &'static Application,
        assumed: bool,
        body: impl FnOnce(&mut AppletTransaction<'_, '_>) -> (Result<R, TokenError>, Option<AppletKind>),
    ) -> Result<R, TokenError> {
        let limits = self.limits();
        let mut body = Some(body);
        let mut outcome = None;
        self.selected = None;
        self.transport
            .transact(Call::within(TRANSACTION_TIMEOUT), &mut |transmit| {
                let mut transaction = Transaction::new(transmit, limits);
                let mut tx = AppletTransaction::new(application, &mut transaction, assumed);
                outcome = body.take().map(|body| body(&mut tx));
            })?;
        let (result, selected) = outcome.ok_or_else(not_run)?;
        // After such an error the state of the card is unknown. The next transaction selects the applet again.
        let unknown = matches!(
            result,
            Err(TokenError::Transport(_)
                | TokenError::Refused { .. }
                | TokenError::Malformed { .. })
        );
        let selected = selected.filter(|_| !unknown);
        self.selected = selected.map(|kind| (kind, self.transport.epoch()));
        result
    }
}

impl std::fmt::Debug for Card {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Card")
            .field("atr", self.atr())
            .field("selected", &self.selected)
            .finish_non_exhaustive()
    }
}

/// The error for a transport that returns success without running the transaction, which violates its contract.
fn not_run() -> TransportError {
    TransportError::before_card(
        claviger_apdu::TransportErrorKind::Protocol,
        "the reader granted a transaction and did not run it",
    )
}

/// A transaction with one applet.
///
/// It begins *unconfirmed*: the applet is only assumed to be selected. [`AppletTransaction::ensure_selected`] confirms
/// it. [`AppletTransaction::read`] does so if a response suggests that another applet is selected.
pub struct AppletTransaction<'t, 'a> {
    application: &'static Application,
    transaction: &'t mut Transaction<'a>,
    assumed: bool,
    confirmed: bool,
    responded: bool,
    reselected: bool,
}

impl<'t, 'a> AppletTransaction<'t, 'a> {
    fn new(
        application: &'static Application,
        transaction: &'t mut Transaction<'a>,
        assumed: bool,
    ) -> Self {
        Self {
            application,
            transaction,
            assumed,
            confirmed: false,
            responded: false,
            reselected: false,
        }
    }

    /// Returns whether the applet had to be selected. Most cards then end the verification of PINs.
    #[must_use]
    pub const fn was_reselected(&self) -> bool {
        self.reselected
    }

    /// Ensures, within this transaction, that the applet is selected. Returns the response to the probe if the probe
    /// confirmed it, `None` if the applet was selected again or had been confirmed before.
    ///
    /// # Errors
    /// An error if the applet cannot be selected.
    pub fn ensure_selected(&mut self) -> Result<Option<Secret>, TokenError> {
        if self.confirmed {
            return Ok(None);
        }
        if self.assumed || self.responded {
            let response = self.exchange(&self.application.probe)?;
            if response.status.is_ok() && (self.application.is_probe_answer)(response.data.expose())
            {
                self.confirmed = true;
                self.responded = true;
                return Ok(Some(response.data));
            }
        }
        self.reselect()?;
        Ok(None)
    }

    /// Selects the applet again. Most cards then end the verification of PINs.
    ///
    /// # Errors
    /// As [`AppletTransaction::select`].
    pub fn reselect(&mut self) -> Result<(), TokenError> {
        self.select(self.application).map(drop)
    }

    /// Selects `application`, to which the transaction then belongs. Returns the response to SELECT.
    ///
    /// # Errors
    /// [`TokenError::Refused`] if the card does not have the applet.
    pub fn select(&mut self, application: &'static Application) -> Result<Secret, TokenError> {
        self.application = application;
        self.confirmed = false;
        self.responded = false;
        let command = CommandApdu {
            data: application.aid,
            expected: Expected::UpTo(256),
            ..CommandApdu::header([0x00, 0xA4, 0x04, 0x00])
        };
        let response = self.exchange(&command)?;
        if !response.status.is_ok() {
            return Err(TokenError::refused(
                format!("SELECT {}", application.kind.name()),
                response.status,
            ));
        }
        self.reselected = true;
        self.confirmed = true;
        self.responded = true;
        Ok(response.data)
    }

    /// Sends one command unchanged.
    ///
    /// # Errors
    /// An error of the transport.
    pub fn exchange(&mut self, command: &CommandApdu<'_>) -> Result<ResponseApdu, TokenError> {
        Ok(self.transaction.exchange(command)?)
    }

    /// Sends a command that only reads. If another applet may have sent the response, ensures that the applet is
    /// selected and sends the command again.
    ///
    /// # Errors
    /// As [`AppletTransaction::exchange`] and [`AppletTransaction::ensure_selected`].
    pub fn read(&mut self, command: &CommandApdu<'_>) -> Result<ResponseApdu, TokenError> {
        if !self.assumed && !self.responded {
            self.ensure_selected()?;
        }
        let response = self.exchange(command)?;
        if response.status.is_ok() {
            self.responded = true;
            return Ok(response);
        }
        if self.confirmed || self.responded || !AppletKind::may_be_other_applet(response.status) {
            return Ok(response);
        }
        // The applet was selected all the time, so the response is its own.
        if self.ensure_selected()?.is_some() {
            return Ok(response);
        }
        self.exchange(command)
    }
}

impl std::fmt::Debug for AppletTransaction<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppletTransaction")
            .field("kind", &self.application.kind)
            .field("confirmed", &self.confirmed)
            .finish_non_exhaustive()
    }
}
