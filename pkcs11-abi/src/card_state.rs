//! The connection to the card in a reader, and its tokens: made when needed, let go when idle, and made again
//! when it was lost, with the same card only.

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

/// How long connecting to a card may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How a reader's card is reached, and who knows where it is.
#[derive(Debug)]
pub(crate) struct ReaderAccess {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) events: Arc<SlotEvents>,
    pub(crate) visibility: Arc<Visibility>,
}

/// Why there is no connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum LastDisconnect {
    /// It was let go: the reader was watched since, and says whether the card has left.
    #[default]
    Released,
    /// It broke: what is in the reader now has to prove that it is the same card.
    Broken,
}

/// What is known of a card while its conversation may go on.
#[derive(Debug, Default)]
pub(crate) struct CardState {
    pub(crate) insertion: Insertion,
    /// `None` until the card was asked, and when it is gone.
    pub(crate) tokens: Option<Vec<Token>>,
    /// The card has no applet of ours, shown or not.
    pub(crate) foreign: bool,
    /// When the connection may be let go.
    pub(crate) idle_at: Option<Instant>,
    card: Option<Card>,
    absence: LastDisconnect,
    reappearances: u32,
}

impl CardState {
    /// Nothing is known yet of this card.
    pub(crate) fn of(count: Insertion) -> Self {
        Self {
            insertion: count,
            ..Self::default()
        }
    }

    /// The connected card and its tokens; connects and asks for its applets when need be.
    ///
    /// # Errors
    /// DEVICE_REMOVED when the card has left or is another one, or of the transport.
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

    /// Whether a connection, if there is one, still reaches the card that it was made to.
    fn is_usable(&mut self) -> bool {
        let Some(card) = &mut self.card else {
            return true;
        };
        let resumed = match card.is_closed() {
            true => return false,
            false => card.resume(Call::within(CONNECT_TIMEOUT)),
        };
        if let Err(error) = &resumed {
            tracing::debug!("the connection has ended: {error}");
        }
        resumed.is_ok()
    }

    /// A connection to this very card. One whose service was lost gets a moment to return.
    fn connect(&mut self, access: &ReaderAccess, reader: ReaderKey) -> Result<Card, Failure> {
        let deadline = Instant::now() + READER_RETURN_TIMEOUT;
        if self.tokens.is_some() {
            // Nobody held the card meanwhile.
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

    /// Whether a card that is not there now may be there in a moment: its service restarts.
    fn may_return(&self, kind: TransportErrorKind, location: &CardLocation) -> bool {
        let restarts = location.out_of_sight || self.absence == LastDisconnect::Broken;
        self.tokens.is_some()
            && match kind {
                TransportErrorKind::NoService => true,
                TransportErrorKind::NoReader | TransportErrorKind::NoCard => restarts,
                _ => false,
            }
    }

    /// Makes sure that tokens known from before are on `card`, if it may have been exchanged unseen.
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
            tracing::debug!("the same card, over a new connection");
            tokens.iter_mut().for_each(Token::forget_objects);
            return Ok(());
        }
        tracing::warn!("another card was found where the one in use was; its sessions end");
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

    /// Lets go of a connection that works.
    pub(crate) fn release(&mut self) {
        self.idle_at = None;
        if self.card.as_ref().is_some_and(Card::is_closed) {
            self.absence = LastDisconnect::Broken;
        }
        self.card = None;
    }

    /// Drops a connection that does not.
    pub(crate) fn drop_transport(&mut self) {
        self.idle_at = None;
        self.card = None;
        self.absence = LastDisconnect::Broken;
    }
}
