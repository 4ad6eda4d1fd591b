//! One card as the applets share it: which applet is selected, and conversations that prove it.

use std::time::Duration;

use claviger_apdu::{
    Atr, Call, CommandApdu, Epoch, Expected, Limits, ResponseApdu, Secret, Transaction, Transport,
    TransportError,
};

use crate::{
    application::{AppletKind, Application},
    error::TokenError,
};

/// How long to wait for other users of the card to let go.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15);

/// A connected card with its applets behind one connection.
pub struct Card {
    transport: Box<dyn Transport>,
    /// The applet that answered last, and when. Another process may have selected another one since.
    selected: Option<(AppletKind, Epoch)>,
    extended: bool,
    chains: bool,
}

impl Card {
    /// Takes over a connection.
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

    /// The card's answer to reset.
    #[must_use]
    pub fn atr(&self) -> &Atr {
        self.transport.atr()
    }

    /// Counts the losses of the card's state that were announced.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.transport.epoch()
    }

    /// Whether the connection has ended and is of no more use.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.transport.is_closed()
    }

    /// Takes the card up again, before an operation; see [`Transport::resume`].
    ///
    /// # Errors
    /// [`TransportError`]; the connection is then of no more use.
    pub fn resume(&mut self, call: Call) -> Result<(), TransportError> {
        self.transport.resume(call)
    }

    /// Whether it may be another card than that of the last connection to this reader.
    #[must_use]
    pub fn may_be_another(&self) -> bool {
        self.transport.may_be_another()
    }

    /// Allows extended-length APDUs, once an applet has said that the card takes them.
    pub(crate) fn allow_extended(&mut self) {
        self.extended = true;
    }

    /// Has long commands tried whole, once an applet has said that the card does not chain.
    pub(crate) fn forbid_chaining(&mut self) {
        self.chains = false;
    }

    /// Whether `kind` was selected when the card last answered and nothing announced a change since.
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

    /// Sends `command` by itself, without keeping others out. When it needs more than one frame it gets a
    /// transaction of its own, but still no proof that its applet is selected.
    ///
    /// # Errors
    /// Of the transport.
    pub(crate) fn exchange_shared(
        &mut self,
        command: &CommandApdu<'_>,
    ) -> Result<ResponseApdu, TransportError> {
        let limits = self.limits();
        // Where the reader cannot carry extended APDUs, an answer may come in pieces (always, with T=0).
        let in_one_piece = self.transport.limits().extended;
        let one_frame = command.frames(limits).is_ok_and(|frames| frames.len() == 1);
        let one_answer = limits.extended
            || matches!(
                command.expected,
                Expected::Nothing | Expected::UpTo(0..=256)
            );
        if in_one_piece && one_frame && one_answer {
            return Transaction::new(self.transport.as_mut(), limits).exchange(command);
        }
        let mut response = None;
        self.transport
            .transact(Call::within(TRANSACTION_TIMEOUT), &mut |link| {
                response = Some(Transaction::new(link, limits).exchange(command));
            })?;
        response.unwrap_or_else(|| Err(not_run()))
    }

    /// Talks to one applet while nobody else can; `body` decides whether the applet must be proved first.
    ///
    /// # Errors
    /// Those of `body`, or of the transport when exclusivity was not to be had.
    pub(crate) fn with_applet<R>(
        &mut self,
        application: &'static Application,
        body: impl FnOnce(&mut AppletTransaction<'_, '_>) -> Result<R, TokenError>,
    ) -> Result<R, TokenError> {
        let assumed = self.is_selected(application.kind);
        self.run_transaction(application, assumed, |tx| {
            let outcome = body(tx);
            (outcome, tx.answered.then_some(application.kind))
        })
    }

    /// Talks to a card nothing is known of; `body` says which applet it leaves selected. Until `body` selects
    /// another, the conversation is with `application`.
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
            .transact(Call::within(TRANSACTION_TIMEOUT), &mut |link| {
                let mut transaction = Transaction::new(link, limits);
                let mut tx = AppletTransaction::new(application, &mut transaction, assumed);
                outcome = body.take().map(|body| body(&mut tx));
            })?;
        let (result, selected) = outcome.ok_or_else(not_run)?;
        // After such a failure nobody knows what the card was left with; the next conversation selects anew.
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

/// A transport that says yes and does nothing breaks its contract.
fn not_run() -> TransportError {
    TransportError::before_card(
        claviger_apdu::TransportErrorKind::Protocol,
        "the reader granted a transaction and did not run it",
    )
}

/// An uninterrupted talk with one applet.
///
/// It begins *unproved*: the applet is only assumed to be selected. [`AppletTransaction::ensure_selected`] makes sure;
/// [`AppletTransaction::read`] makes sure when an answer looks as if it were not.
pub struct AppletTransaction<'t, 'a> {
    application: &'static Application,
    transaction: &'t mut Transaction<'a>,
    assumed: bool,
    confirmed: bool,
    answered: bool,
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
            answered: false,
            reselected: false,
        }
    }

    /// Whether the applet had to be selected, which makes most cards forget verified PINs.
    #[must_use]
    pub const fn was_reselected(&self) -> bool {
        self.reselected
    }

    /// Makes sure, in this very conversation, that the applet is selected. Returns the probe's answer when
    /// one was sent and understood.
    ///
    /// # Errors
    /// When the applet cannot be selected.
    pub fn ensure_selected(&mut self) -> Result<Option<Secret>, TokenError> {
        if self.confirmed {
            return Ok(None);
        }
        if self.assumed || self.answered {
            let response = self.exchange(&self.application.probe)?;
            if response.status.is_ok() && (self.application.is_probe_answer)(response.data.expose())
            {
                self.confirmed = true;
                self.answered = true;
                return Ok(Some(response.data));
            }
        }
        self.reselect()?;
        Ok(None)
    }

    /// Selects the applet again, which makes most cards forget verified PINs.
    ///
    /// # Errors
    /// As [`AppletTransaction::select`].
    pub fn reselect(&mut self) -> Result<(), TokenError> {
        self.select(self.application).map(drop)
    }

    /// Selects `application`, which the conversation is then with, and returns what SELECT answered.
    ///
    /// # Errors
    /// [`TokenError::Refused`] when the card does not have it.
    pub fn select(&mut self, application: &'static Application) -> Result<Secret, TokenError> {
        self.application = application;
        self.confirmed = false;
        self.answered = false;
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
        self.answered = true;
        Ok(response.data)
    }

    /// Sends one command as it is.
    ///
    /// # Errors
    /// Of the transport.
    pub fn exchange(&mut self, command: &CommandApdu<'_>) -> Result<ResponseApdu, TokenError> {
        Ok(self.transaction.exchange(command)?)
    }

    /// Sends a command that only reads. An answer that another applet might have given makes the
    /// conversation prove the applet and ask again.
    ///
    /// # Errors
    /// As [`AppletTransaction::exchange`] and [`AppletTransaction::ensure_selected`].
    pub fn read(&mut self, command: &CommandApdu<'_>) -> Result<ResponseApdu, TokenError> {
        if !self.assumed && !self.answered {
            self.ensure_selected()?;
        }
        let response = self.exchange(command)?;
        if response.status.is_ok() {
            self.answered = true;
            return Ok(response);
        }
        if self.confirmed || self.answered || !AppletKind::may_be_other_applet(response.status) {
            return Ok(response);
        }
        // The applet was there all along: the answer is its own.
        if self.ensure_selected()?.is_some() {
            return Ok(response);
        }
        self.exchange(command)
    }
}

impl std::fmt::Debug for AppletTransaction<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conversation")
            .field("kind", &self.application.kind)
            .field("proven", &self.confirmed)
            .finish_non_exhaustive()
    }
}
