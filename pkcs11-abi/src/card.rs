//! The card in one reader: its connection, its tokens, and what is known of them without asking.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use claviger_apdu::{Call, TransportErrorKind};
use claviger_driver::{Backend, ReaderId};
use claviger_token::{
    AppletKind, Card, MechanismInfo, Object, ObjectId, Token, TokenError, TokenInfo,
};
use cryptoki_sys::CK_OBJECT_HANDLE;

use crate::{
    handle,
    rv::{Failure, Rule},
    slots::CardCount,
};

/// How long connecting to a card may take.
const CONNECT: Duration = Duration::from_secs(10);

/// What is known of one token without talking to its card.
#[derive(Clone, Debug)]
pub(crate) struct TokenFacts {
    pub(crate) info: TokenInfo,
    pub(crate) mechanisms: Arc<[MechanismInfo]>,
    pub(crate) logged_in: bool,
}

/// Object handles of one token: the same object keeps its handle, a private one until logout.
#[derive(Debug, Default)]
pub(crate) struct ObjectHandles {
    by_id: HashMap<ObjectId, CK_OBJECT_HANDLE>,
    objects: HashMap<CK_OBJECT_HANDLE, Arc<Object>>,
}

impl ObjectHandles {
    fn handle(&mut self, object: Arc<Object>) -> CK_OBJECT_HANDLE {
        let handle = *self.by_id.entry(object.id).or_insert_with(handle::fresh);
        self.objects.insert(handle, object);
        handle
    }

    fn forget_private(&mut self) {
        self.objects.retain(|_, object| !object.is_private());
        let objects = &self.objects;
        self.by_id.retain(|_, handle| objects.contains_key(handle));
    }
}

#[derive(Debug, Default)]
struct Facts {
    card: CardCount,
    /// `None` until the card was asked.
    tokens: Option<BTreeMap<AppletKind, TokenFacts>>,
    handles: BTreeMap<AppletKind, ObjectHandles>,
    /// Sessions open on any token of this card; without one the connection is let go after each call.
    sessions: usize,
}

#[derive(Debug, Default)]
struct Live {
    count: CardCount,
    card: Option<Card>,
    tokens: Option<Vec<Token>>,
}

/// One reader and the card in it. `live` is held for one card's conversation, `facts` for a lookup.
#[derive(Debug)]
pub(crate) struct ReaderCard {
    reader: ReaderId,
    backend: Arc<dyn Backend>,
    live: Mutex<Live>,
    facts: Mutex<Facts>,
}

impl ReaderCard {
    pub(crate) fn new(reader: ReaderId, backend: Arc<dyn Backend>) -> Self {
        Self {
            reader,
            backend,
            live: Mutex::default(),
            facts: Mutex::default(),
        }
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The facts, of this very card; those of an earlier one are forgotten.
    fn facts_of(&self, count: CardCount) -> MutexGuard<'_, Facts> {
        let mut facts = self.facts();
        if facts.card != count {
            *facts = Facts {
                card: count,
                ..Facts::default()
            };
        }
        facts
    }

    /// The token's facts; asks the card once which applets it has.
    ///
    /// # Errors
    /// TOKEN_NOT_PRESENT when the card does not have this applet, TOKEN_NOT_RECOGNIZED when it has none and
    /// `applet` is the first, or of the transport.
    pub(crate) fn token(
        &self,
        count: CardCount,
        applet: AppletKind,
    ) -> Result<TokenFacts, Failure> {
        if self.facts_of(count).tokens.is_none() {
            let mut live = self.live();
            live.turn_to(count);
            let discovered = live.ready(&*self.backend, &self.reader).map(|_| ());
            self.settle(&mut live, discovered)?;
        }
        let facts = self.facts_of(count);
        match facts.tokens.as_ref() {
            Some(tokens) if tokens.is_empty() && Some(&applet) == AppletKind::ALL.first() => {
                Err(Rule::TOKEN_NOT_RECOGNIZED.into())
            }
            tokens => Ok(tokens
                .and_then(|tokens| tokens.get(&applet))
                .ok_or(Rule::TOKEN_NOT_PRESENT)?
                .clone()),
        }
    }

    /// Whether a user is logged in to the token, as far as is known.
    pub(crate) fn is_logged_in(&self, count: CardCount, applet: AppletKind) -> bool {
        let facts = self.facts_of(count);
        facts
            .tokens
            .as_ref()
            .and_then(|tokens| tokens.get(&applet))
            .is_some_and(|token| token.logged_in)
    }

    /// One conversation with a token, alone with its card.
    ///
    /// # Errors
    /// Those of `body`, or of the way to the card.
    pub(crate) fn with_token<R>(
        &self,
        count: CardCount,
        applet: AppletKind,
        body: impl FnOnce(&mut Card, &mut Token) -> Result<R, TokenError>,
    ) -> Result<R, Failure> {
        let mut live = self.live();
        live.turn_to(count);
        let result = match live.ready(&*self.backend, &self.reader) {
            Err(error) => Err(error),
            Ok((card, tokens)) => match tokens.iter_mut().find(|token| token.kind() == applet) {
                Some(token) => body(card, token).map_err(Failure::from),
                None => Err(Rule::DEVICE_REMOVED.into()),
            },
        };
        self.settle(&mut live, result)
    }

    /// After a conversation: drops a connection that is of no more use, and brings the facts up to date.
    fn settle<R>(&self, live: &mut Live, result: Result<R, Failure>) -> Result<R, Failure> {
        if let Err(Failure::Token(TokenError::Transport(error))) = &result
            && connection_is_lost(error.kind)
        {
            live.card = None;
        }
        let mut facts = self.facts_of(live.count);
        if let Some(tokens) = &live.tokens {
            facts.tokens = Some(
                tokens
                    .iter()
                    .map(|token| (token.kind(), facts_of_token(token)))
                    .collect(),
            );
        }
        if facts.sessions == 0 {
            live.card = None;
        }
        result
    }

    /// Gives objects their handles.
    pub(crate) fn handles(
        &self,
        count: CardCount,
        applet: AppletKind,
        objects: Vec<Arc<Object>>,
    ) -> Vec<CK_OBJECT_HANDLE> {
        let mut facts = self.facts_of(count);
        let handles = facts.handles.entry(applet).or_default();
        objects
            .into_iter()
            .map(|object| handles.handle(object))
            .collect()
    }

    /// The object behind a handle, if it may be seen now.
    pub(crate) fn object(
        &self,
        count: CardCount,
        applet: AppletKind,
        handle: CK_OBJECT_HANDLE,
    ) -> Option<Arc<Object>> {
        let facts = self.facts_of(count);
        let logged_in = facts.tokens.as_ref()?.get(&applet)?.logged_in;
        let object = facts.handles.get(&applet)?.objects.get(&handle)?;
        (logged_in || !object.is_private()).then(|| Arc::clone(object))
    }

    /// Notes that a session was opened on this card.
    pub(crate) fn session_opened(&self, count: CardCount) {
        self.facts_of(count).sessions += 1;
    }

    /// Notes that a session was closed. `last_of_token` logs the user out and makes the next search read
    /// anew; the last of all lets the card go.
    pub(crate) fn session_closed(&self, count: CardCount, applet: AppletKind, last_of_token: bool) {
        {
            let mut facts = self.facts_of(count);
            facts.sessions = facts.sessions.saturating_sub(1);
        }
        if last_of_token {
            if self.is_logged_in(count, applet)
                && let Err(failure) = self.logout(count, applet)
            {
                failure.log("logout after the last session");
            }
            self.forget_objects(count, applet);
        }
        let mut live = self.live();
        if live.count == count && self.facts().sessions == 0 {
            live.card = None;
        }
    }

    /// Logs out here and on the card; handles of private objects die.
    ///
    /// # Errors
    /// When the card could not be told.
    pub(crate) fn logout(&self, count: CardCount, applet: AppletKind) -> Result<(), Failure> {
        let told = self.with_token(count, applet, |card, token| token.logout(card));
        let mut facts = self.facts_of(count);
        if let Some(handles) = facts.handles.get_mut(&applet) {
            handles.forget_private();
        }
        if let Some(token) = facts
            .tokens
            .as_mut()
            .and_then(|tokens| tokens.get_mut(&applet))
        {
            token.logged_in = false;
        }
        told
    }

    fn forget_objects(&self, count: CardCount, applet: AppletKind) {
        let mut live = self.live();
        if live.count == count
            && let Some(token) = live
                .tokens
                .iter_mut()
                .flatten()
                .find(|token| token.kind() == applet)
        {
            token.forget_objects();
        }
    }
}

impl Live {
    /// Forgets everything of an earlier card.
    fn turn_to(&mut self, count: CardCount) {
        if self.count != count {
            *self = Self {
                count,
                ..Self::default()
            };
        }
    }

    /// The connected card and its tokens; connects and asks for its applets when need be.
    fn ready(
        &mut self,
        backend: &dyn Backend,
        reader: &ReaderId,
    ) -> Result<(&mut Card, &mut [Token]), Failure> {
        let card = match &mut self.card {
            Some(card) => card,
            empty => empty.insert(Card::new(backend.connect(reader, Call::within(CONNECT))?)),
        };
        let tokens = match &mut self.tokens {
            Some(tokens) => tokens,
            unknown => unknown.insert(Token::discover(card)?),
        };
        Ok((card, tokens))
    }
}

fn facts_of_token(token: &Token) -> TokenFacts {
    TokenFacts {
        info: token.info(),
        mechanisms: token.mechanisms().into(),
        logged_in: token.is_logged_in(),
    }
}

/// Whether a connection that failed so is worth keeping.
const fn connection_is_lost(kind: TransportErrorKind) -> bool {
    !matches!(
        kind,
        TransportErrorKind::Busy | TransportErrorKind::CardReset | TransportErrorKind::Cancelled
    )
}
