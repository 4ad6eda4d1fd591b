//! The card in one reader: its connection, its tokens, and what is known of them without asking.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use claviger_apdu::TransportErrorKind;
use claviger_token::{
    AppletKind, Card, MechanismInfo, Object, PinTries, Template, Token, TokenError, TokenInfo,
};
use cryptoki_sys::{CK_MECHANISM_TYPE, CK_OBJECT_HANDLE, CKR_DEVICE_REMOVED};

use crate::{
    card_state::{Live, Way},
    idle::Idle,
    known_reader::{CardCount, ReaderKey},
    object_handles::ObjectHandles,
    rv::{Failure, Rule},
};

/// When a connection that is in use is looked at again.
const BUSY: Duration = Duration::from_secs(1);

/// What is known of one token without talking to its card.
#[derive(Clone, Debug)]
pub(crate) struct TokenFacts {
    pub(crate) info: TokenInfo,
    pub(crate) mechanisms: Arc<[MechanismInfo]>,
    pub(crate) who: Who,
    pub(crate) so_tries: PinTries,
    pub(crate) has_random: bool,
}

/// Who is logged in to a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Nobody,
    User,
    SecurityOfficer,
}

impl Facts {
    fn who(&self, applet: AppletKind) -> Who {
        let token = self.tokens.as_ref().and_then(|tokens| tokens.get(&applet));
        token.map_or(Who::Nobody, |token| token.who)
    }
}

#[derive(Debug, Default)]
struct Facts {
    card: CardCount,
    /// `None` until the card was asked.
    tokens: Option<BTreeMap<AppletKind, TokenFacts>>,
    /// The card has no applet of ours, shown or not.
    foreign: bool,
    handles: BTreeMap<AppletKind, ObjectHandles>,
}

/// One reader and the card in it. `live` is held for one card's conversation, `facts` for a lookup.
#[derive(Debug)]
pub(crate) struct ReaderCard {
    reader: ReaderKey,
    way: Way,
    idle: Arc<Idle>,
    live: Mutex<Live>,
    facts: Mutex<Facts>,
}

impl ReaderCard {
    pub(crate) fn new(reader: ReaderKey, way: Way, idle: Arc<Idle>) -> Self {
        Self {
            reader,
            way,
            idle,
            live: Mutex::default(),
            facts: Mutex::default(),
        }
    }

    /// The conversation with this very card; what is known of an earlier one is forgotten.
    ///
    /// # Errors
    /// DEVICE_REMOVED when another card has taken its place.
    fn live(&self, count: CardCount) -> Result<MutexGuard<'_, Live>, Failure> {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if live.count > count {
            return Err(Rule::DEVICE_REMOVED.into());
        }
        if live.count < count {
            *live = Live::of(count);
        }
        Ok(live)
    }

    /// The facts of this very card; those of an earlier one are forgotten, and an earlier one has none.
    fn facts(&self, count: CardCount) -> Option<MutexGuard<'_, Facts>> {
        let mut facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        if facts.card < count {
            *facts = Facts {
                card: count,
                ..Facts::default()
            };
        }
        (facts.card == count).then_some(facts)
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
        let known = |card: &Self| card.facts(count)?.tokens.clone();
        let tokens = match known(self) {
            Some(tokens) => tokens,
            None => {
                let mut live = self.live(count)?;
                let asked = live.ready(&self.way, self.reader).map(|_| ());
                self.settle(&mut live, asked)?;
                known(self).ok_or(Rule::TOKEN_NOT_PRESENT)?
            }
        };
        let foreign = self.facts(count).is_some_and(|facts| facts.foreign);
        if foreign && AppletKind::ALL.first() == Some(&applet) {
            return Err(Rule::TOKEN_NOT_RECOGNIZED.into());
        }
        Ok(tokens.get(&applet).ok_or(Rule::TOKEN_NOT_PRESENT)?.clone())
    }

    /// Who is logged in to the token, as far as is known.
    pub(crate) fn who(&self, count: CardCount, applet: AppletKind) -> Who {
        self.facts(count)
            .map_or(Who::Nobody, |facts| facts.who(applet))
    }

    /// Whether the token has this mechanism, as far as is known.
    pub(crate) fn offers(
        &self,
        count: CardCount,
        applet: AppletKind,
        kind: CK_MECHANISM_TYPE,
    ) -> bool {
        let facts = self.facts(count);
        let token = facts
            .as_ref()
            .and_then(|facts| facts.tokens.as_ref()?.get(&applet));
        token.is_some_and(|token| token.mechanisms.iter().any(|info| info.kind == kind))
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
        let mut live = self.live(count)?;
        let result = match live.ready(&self.way, self.reader) {
            Err(error) => Err(error),
            Ok((card, tokens)) => match tokens.iter_mut().find(|token| token.kind() == applet) {
                Some(token) => body(card, token).map_err(Failure::from),
                None => Err(Rule::DEVICE_REMOVED.into()),
            },
        };
        self.settle(&mut live, result)
    }

    /// Objects that match, each with its handle; the card is left alone when all that could match is known.
    ///
    /// # Errors
    /// Of the way to the card.
    pub(crate) fn find(
        &self,
        count: CardCount,
        applet: AppletKind,
        template: &Template,
    ) -> Result<Vec<CK_OBJECT_HANDLE>, Failure> {
        let known = {
            let live = self.live(count)?;
            let token = live
                .tokens
                .iter()
                .flatten()
                .find(|token| token.kind() == applet);
            token.and_then(|token| token.find_known(template))
        };
        let objects = match known {
            Some(objects) => objects,
            None => self.with_token(count, applet, |card, token| token.find(card, template))?,
        };
        let mut facts = self.facts(count).ok_or(Rule::DEVICE_REMOVED)?;
        let logged_in = facts.who(applet) == Who::User;
        let handles = facts.handles.entry(applet).or_default();
        let of_sessions = handles.find_of_sessions(template, logged_in);
        let found = objects.into_iter().map(|object| handles.handle(object));
        Ok(found.chain(of_sessions).collect())
    }

    /// A look at the handles of a token's objects.
    ///
    /// # Errors
    /// DEVICE_REMOVED.
    pub(crate) fn with_handles<R>(
        &self,
        count: CardCount,
        applet: AppletKind,
        body: impl FnOnce(&mut ObjectHandles) -> R,
    ) -> Result<R, Failure> {
        let mut facts = self.facts(count).ok_or(Rule::DEVICE_REMOVED)?;
        Ok(body(facts.handles.entry(applet).or_default()))
    }

    /// After a conversation: drops a connection that is of no more use, and brings the facts up to date.
    fn settle<R>(&self, live: &mut Live, result: Result<R, Failure>) -> Result<R, Failure> {
        if let Err(Failure::Token(TokenError::Transport(error))) = &result {
            if connection_is_lost(error.kind) {
                live.lose_connection();
            }
            if card_is_gone(error.kind) {
                // The next card in this reader must not get this one's PIN, nor its sessions.
                live.tokens = None;
                self.way.events.table().lose_card(self.reader, live.count);
            }
        }
        self.take_note(live);
        let release = self.idle.release(live.is_logged_in());
        live.idle_at = release
            .filter(|_| live.is_connected())
            .and_then(|after| Instant::now().checked_add(after));
        if let Some(at) = live.idle_at
            && !self.idle.watch_until(at)
            && !live.is_logged_in()
        {
            live.let_go();
        }
        result
    }

    /// Brings the facts up to date; a login that is over takes the handles of private objects with it.
    fn take_note(&self, live: &Live) {
        let (Some(tokens), Some(mut facts)) = (&live.tokens, self.facts(live.count)) else {
            return;
        };
        let facts_of = |token: &Token| (token.kind(), facts_of_token(token));
        let fresh: BTreeMap<_, _> = tokens.iter().map(facts_of).collect();
        for applet in fresh
            .iter()
            .filter(|(_, token)| token.who != Who::User)
            .map(|(kind, _)| kind)
        {
            let before = facts.tokens.as_ref().and_then(|tokens| tokens.get(applet));
            if before.is_some_and(|token| token.who == Who::User)
                && let Some(handles) = facts.handles.get_mut(applet)
            {
                handles.forget_private();
            }
        }
        facts.tokens = Some(fresh);
        facts.foreign = live.foreign;
    }

    /// Lets go of a connection that has been idle long enough; tells when to come back for a younger one.
    pub(crate) fn let_go_if_idle(&self, now: Instant) -> Option<Instant> {
        // Busy is not idle.
        let Ok(mut live) = self.live.try_lock() else {
            return Some(now + BUSY);
        };
        let place = self.way.events.table().place(self.reader, now);
        if place.is_some_and(|place| place.card > live.count) {
            // The card has left, and its PIN goes with it.
            *live = Live::of(live.count);
            return None;
        }
        let at = live.idle_at?;
        if at > now {
            return Some(at);
        }
        live.let_go();
        // Others can write to the card from here on; the next search reads it anew.
        live.tokens
            .iter_mut()
            .flatten()
            .for_each(Token::forget_objects);
        None
    }

    /// The object behind a handle, if it may be seen now.
    pub(crate) fn object(
        &self,
        count: CardCount,
        applet: AppletKind,
        handle: CK_OBJECT_HANDLE,
    ) -> Option<Arc<Object>> {
        let facts = self.facts(count)?;
        let logged_in = facts.who(applet) == Who::User;
        let object = facts.handles.get(&applet)?.get(handle)?;
        (logged_in || !object.is_private()).then(|| Arc::clone(object))
    }

    /// After the last session of a token was closed: its user is logged out, and the next search reads anew.
    pub(crate) fn last_session_closed(&self, count: CardCount, applet: AppletKind) {
        if self.who(count, applet) != Who::Nobody
            && let Err(failure) = self.logout(count, applet)
        {
            failure.log("logout after the last session");
        }
        if let Ok(mut live) = self.live(count)
            && let Some(token) = live
                .tokens
                .iter_mut()
                .flatten()
                .find(|token| token.kind() == applet)
        {
            token.forget_objects();
        }
    }

    /// Logs out here and on the card; handles of private objects die.
    ///
    /// # Errors
    /// When the card could not be told.
    pub(crate) fn logout(&self, count: CardCount, applet: AppletKind) -> Result<(), Failure> {
        let told = self.with_token(count, applet, |card, token| token.logout(card));
        if told.is_err()
            && let Ok(mut live) = self.live(count)
        {
            // A card that could not be reached has not been asked either; for us the login is over.
            live.tokens
                .iter_mut()
                .flatten()
                .filter(|token| token.kind() == applet)
                .for_each(Token::forget_login);
        }
        if let Some(mut facts) = self.facts(count) {
            if let Some(handles) = facts.handles.get_mut(&applet) {
                handles.forget_private();
            }
            if let Some(token) = facts
                .tokens
                .as_mut()
                .and_then(|tokens| tokens.get_mut(&applet))
            {
                token.who = Who::Nobody;
            }
        }
        told
    }
}

impl ReaderCard {
    /// Logs every user out and lets the card go, unless a call is still talking to it.
    pub(crate) fn close(&self) {
        let Ok(mut live) = self.live.try_lock() else {
            return;
        };
        let applets: Vec<AppletKind> = live
            .tokens
            .iter()
            .flatten()
            .filter(|token| who(token) != Who::Nobody)
            .map(Token::kind)
            .collect();
        let count = live.count;
        live.idle_at = None;
        drop(live);
        for applet in applets {
            match self.logout(count, applet) {
                // A card that has left took the login along.
                Err(failure) if failure.code() != CKR_DEVICE_REMOVED => {
                    failure.log("logout at the end");
                }
                _ => {}
            }
        }
        if let Ok(mut live) = self.live.try_lock() {
            live.let_go();
        }
    }
}

fn facts_of_token(token: &Token) -> TokenFacts {
    TokenFacts {
        info: token.info(),
        mechanisms: token.mechanisms().into(),
        who: who(token),
        so_tries: token.so_tries(),
        has_random: token.has_random(),
    }
}

const fn who(token: &Token) -> Who {
    if token.is_so_logged_in() {
        Who::SecurityOfficer
    } else if token.is_logged_in() {
        Who::User
    } else {
        Who::Nobody
    }
}

/// Whether a connection that failed so is worth keeping.
const fn connection_is_lost(kind: TransportErrorKind) -> bool {
    !matches!(
        kind,
        TransportErrorKind::Busy | TransportErrorKind::CardReset | TransportErrorKind::Cancelled
    )
}

/// Whether a failure means that the card has left the reader, or the reader its place.
const fn card_is_gone(kind: TransportErrorKind) -> bool {
    matches!(
        kind,
        TransportErrorKind::CardRemoved | TransportErrorKind::NoCard | TransportErrorKind::NoReader
    )
}
