//! The transport to a card and its tokens: opened on use, released when idle, reopened for the same card only.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use claviger_apdu::{Call, TransportErrorKind};
use claviger_driver::Backend;
use claviger_token::{Card, Token};

use crate::{
    events::SlotEvents,
    known_reader::{CardLocation, Insertion, ReaderKey},
    rv::{Failure, ReturnCode},
    slots::READER_RETURN_TIMEOUT,
    visibility::Visibility,
};

/// Timeout of a connect, and of resuming a transport.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The means to reach the card of a reader: its backend, the slot table, and the filter for its tokens.
#[derive(Debug)]
pub(crate) struct ReaderAccess {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) events: Arc<SlotEvents>,
    pub(crate) visibility: Arc<Visibility>,
}

/// The reason why there is no transport.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum LastDisconnect {
    /// The module released the card. The watch of the reader has reported since whether the card was removed.
    #[default]
    Released,
    /// The transport broke. The card in the reader must be compared with the earlier card before it is used.
    Broken,
}

/// One card of a reader: its transport, if there is one, and its tokens.
#[derive(Debug, Default)]
pub(crate) struct CardState {
    pub(crate) insertion: Insertion,
    /// `None` until the card was read, and after it was removed.
    pub(crate) tokens: Option<Vec<Token>>,
    /// The card has no supported applet, visible or hidden.
    pub(crate) foreign: bool,
    /// The instant from which the idle card may be disconnected.
    pub(crate) idle_at: Option<Instant>,
    card: Option<Card>,
    absence: LastDisconnect,
    reappearances: u32,
}

impl CardState {
    /// Returns the state of a card that has not been used yet.
    pub(crate) fn of(insertion: Insertion) -> Self {
        Self {
            insertion,
            ..Self::default()
        }
    }

    /// Returns the connected card and its tokens. Connects first if needed, and reads the applets of a new card.
    ///
    /// # Errors
    /// DEVICE_REMOVED if the card was removed or replaced; transport errors.
    pub(crate) fn connected(
        &mut self,
        access: &ReaderAccess,
        reader: ReaderKey,
    ) -> Result<(&mut Card, &mut [Token]), Failure> {
        if !self.is_usable() {
            self.drop_transport();
        }
        let mut card = match self.card.take() {
            Some(card) => card,
            None => self.connect(access, reader)?,
        };
        let tokens = match self.tokens.take() {
            Some(tokens) => Ok(tokens),
            None => access.visibility.discover(&mut card).map(|found| {
                self.foreign = found.foreign;
                found.tokens
            }),
        };
        let card = self.card.insert(card);
        Ok((card, self.tokens.insert(tokens?)))
    }

    /// Returns whether the transport still reaches its card. Returns true if there is no transport.
    fn is_usable(&mut self) -> bool {
        let Some(card) = &mut self.card else {
            return true;
        };
        let resumed = match card.is_closed() {
            true => return false,
            false => card.resume(Call::within(CONNECT_TIMEOUT)),
        };
        if let Err(error) = &resumed {
            tracing::debug!("the transport to the card has ended: {error}");
        }
        resumed.is_ok()
    }

    /// Connects to the card of this insertion. While its service restarts, waits up to `READER_RETURN_TIMEOUT` for the card.
    fn connect(&mut self, access: &ReaderAccess, reader: ReaderKey) -> Result<Card, Failure> {
        let deadline = Instant::now() + READER_RETURN_TIMEOUT;
        if self.tokens.is_some() {
            // The module held no transport since the last use, so the card may have been removed unnoticed.
            access.events.refresh();
        }
        loop {
            let location = access.events.card_location(reader, self.insertion)?;
            match access
                .backend
                .connect(&location.reader, Call::within(CONNECT_TIMEOUT))
            {
                Ok(transport) => {
                    let mut card = Card::new(transport);
                    if card.may_be_another() {
                        self.absence = LastDisconnect::Broken;
                    }
                    self.check_same_card(&mut card, &location, access, reader)?;
                    self.reappearances = location.reappearances;
                    self.absence = LastDisconnect::Released;
                    return Ok(card);
                }
                Err(error) => {
                    if !self.may_return(error.kind, &location)
                        || !access.events.wait_for_return(reader, deadline)
                    {
                        return Err(error.into());
                    }
                }
            }
        }
    }

    /// Returns whether the missing card may return soon, because its service restarts.
    fn may_return(&self, kind: TransportErrorKind, location: &CardLocation) -> bool {
        let restarts = location.out_of_sight || self.absence == LastDisconnect::Broken;
        self.tokens.is_some()
            && match kind {
                TransportErrorKind::NoService => true,
                TransportErrorKind::NoReader | TransportErrorKind::NoCard => restarts,
                _ => false,
            }
    }

    /// Compares `card` with the tokens read earlier, if the card may have been replaced unnoticed.
    ///
    /// # Errors
    /// DEVICE_REMOVED for another card; transport errors.
    fn check_same_card(
        &mut self,
        card: &mut Card,
        location: &CardLocation,
        access: &ReaderAccess,
        reader: ReaderKey,
    ) -> Result<(), Failure> {
        let Some(tokens) = &mut self.tokens else {
            return Ok(());
        };
        if self.absence == LastDisconnect::Released && self.reappearances == location.reappearances
        {
            Token::apply_known_limits(card, tokens);
            return Ok(());
        }
        let found = access.visibility.discover(card)?.tokens;
        let same = |(token, found): (&Token, &Token)| token.is_same_card(found);
        if tokens.len() == found.len() && tokens.iter().zip(&found).all(same) {
            tracing::debug!("a new transport reaches the same card");
            tokens.iter_mut().for_each(Token::forget_objects);
            return Ok(());
        }
        tracing::warn!("the reader now holds another card; the sessions of the earlier card end");
        self.tokens = None;
        access.events.table().card_removed(reader, self.insertion);
        Err(ReturnCode::DEVICE_REMOVED.into())
    }

    pub(crate) const fn is_connected(&self) -> bool {
        self.card.is_some()
    }

    pub(crate) fn is_logged_in(&self) -> bool {
        let is_in = |token: &Token| token.is_logged_in() || token.is_so_logged_in();
        self.tokens.iter().flatten().any(is_in)
    }

    /// Disconnects the idle card. A transport that has closed by itself counts as broken.
    pub(crate) fn release(&mut self) {
        self.idle_at = None;
        if self.card.as_ref().is_some_and(Card::is_closed) {
            self.absence = LastDisconnect::Broken;
        }
        self.card = None;
    }

    /// Drops a broken transport.
    pub(crate) fn drop_transport(&mut self) {
        self.idle_at = None;
        self.card = None;
        self.absence = LastDisconnect::Broken;
    }
}
