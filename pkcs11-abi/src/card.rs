//! The card in one reader: its connection, its tokens, and what is known of them without asking.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use claviger_apdu::TransportErrorKind;
use claviger_token::{
    AppletKind, Card, MechanismInfo, Object, PinTries, Template, Token, TokenError, TokenInfo,
};
use cryptoki_sys::{CK_MECHANISM_TYPE, CK_OBJECT_HANDLE, CKR_DEVICE_REMOVED};

use crate::{
    card_state::{CardState, ReaderAccess},
    idle::{IdleCards, IdleReleaser},
    known_reader::{Insertion, ReaderKey},
    object_handles::ObjectHandles,
    rv::{Failure, ReturnCode},
};

/// When a connection that is in use is looked at again.
const BUSY_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// What is known of one token without talking to its card.
#[derive(Clone, Debug)]
pub(crate) struct CachedToken {
    pub(crate) info: TokenInfo,
    pub(crate) mechanisms: Arc<[MechanismInfo]>,
    pub(crate) login_state: LoginState,
    pub(crate) so_tries: PinTries,
    pub(crate) has_random: bool,
}

/// Who is logged in to a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoginState {
    LoggedOut,
    User,
    SecurityOfficer,
}

impl CachedCard {
    fn login_state(&self, applet: AppletKind) -> LoginState {
        let token = self.tokens.as_ref().and_then(|tokens| tokens.get(&applet));
        token.map_or(LoginState::LoggedOut, |token| token.login_state)
    }
}

#[derive(Debug, Default)]
struct CachedCard {
    card: Insertion,
    /// `None` until the card was asked.
    tokens: Option<BTreeMap<AppletKind, CachedToken>>,
    /// The card has no applet of ours, shown or not.
    foreign: bool,
    handles: BTreeMap<AppletKind, ObjectHandles>,
}

/// The readers of one generation that were ever used.
#[derive(Debug, Default)]
pub(crate) struct ReaderCards(Mutex<HashMap<ReaderKey, Arc<ReaderCard>>>);

impl ReaderCards {
    fn map(&self) -> MutexGuard<'_, HashMap<ReaderKey, Arc<ReaderCard>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The card of `reader`, made by `new` at its first use.
    ///
    /// # Errors
    /// Those of `new`.
    pub(crate) fn get_or_insert(
        &self,
        reader: ReaderKey,
        new: impl FnOnce() -> Result<ReaderCard, Failure>,
    ) -> Result<Arc<ReaderCard>, Failure> {
        let mut map = self.map();
        if let Some(card) = map.get(&reader) {
            return Ok(Arc::clone(card));
        }
        let card = Arc::new(new()?);
        map.insert(reader, Arc::clone(&card));
        Ok(card)
    }

    /// Takes all of them out.
    pub(crate) fn take_all(&self) -> Vec<Arc<ReaderCard>> {
        self.map().drain().map(|(_, card)| card).collect()
    }
}

impl IdleCards for ReaderCards {
    fn release_idle(&self, now: Instant) -> Option<Instant> {
        let cards: Vec<Arc<ReaderCard>> = self.map().values().cloned().collect();
        cards
            .iter()
            .filter_map(|card| card.release_if_idle(now))
            .min()
    }
}

/// The token of one applet on the card in a reader. Another card in the reader is not meant.
#[derive(Clone, Debug)]
pub(crate) struct TokenRef {
    pub(crate) reader: Arc<ReaderCard>,
    pub(crate) insertion: Insertion,
    pub(crate) applet: AppletKind,
}

impl TokenRef {
    fn state(&self) -> Result<MutexGuard<'_, CardState>, Failure> {
        self.reader.state(self.insertion)
    }

    fn cache(&self) -> Option<MutexGuard<'_, CachedCard>> {
        self.reader.cache(self.insertion)
    }

    fn find_in<'a>(
        &self,
        tokens: impl IntoIterator<Item = &'a mut Token>,
    ) -> Option<&'a mut Token> {
        let mut tokens = tokens.into_iter();
        tokens.find(|token| token.kind() == self.applet)
    }

    /// What is known of the token. Asks the card once which applets it has.
    ///
    /// # Errors
    /// TOKEN_NOT_PRESENT when the card does not have this applet, TOKEN_NOT_RECOGNIZED when it has none and this one is the
    /// first, or of the transport.
    pub(crate) fn cached(&self) -> Result<CachedToken, Failure> {
        let known = || self.cache()?.tokens.clone();
        let tokens = match known() {
            Some(tokens) => tokens,
            None => {
                let mut state = self.state()?;
                let asked = state
                    .connected(&self.reader.access, self.reader.reader)
                    .map(|_| ());
                self.reader.finish_use(&mut state, asked)?;
                known().ok_or(ReturnCode::TOKEN_NOT_PRESENT)?
            }
        };
        let foreign = self.cache().is_some_and(|cache| cache.foreign);
        if foreign && AppletKind::ALL.first() == Some(&self.applet) {
            return Err(ReturnCode::TOKEN_NOT_RECOGNIZED.into());
        }
        Ok(tokens
            .get(&self.applet)
            .ok_or(ReturnCode::TOKEN_NOT_PRESENT)?
            .clone())
    }

    /// Who is logged in to the token, as far as is known.
    pub(crate) fn login_state(&self) -> LoginState {
        let cache = self.cache();
        cache.map_or(LoginState::LoggedOut, |cache| {
            cache.login_state(self.applet)
        })
    }

    /// Returns whether a user is logged in to the token, as far as is known.
    pub(crate) fn is_logged_in(&self) -> bool {
        self.login_state() == LoginState::User
    }

    /// Returns whether the token has this mechanism, as far as is known.
    pub(crate) fn has_mechanism(&self, kind: CK_MECHANISM_TYPE) -> bool {
        let cache = self.cache();
        let tokens = cache.as_ref().and_then(|cache| cache.tokens.as_ref());
        let token = tokens.and_then(|tokens| tokens.get(&self.applet));
        token.is_some_and(|token| token.mechanisms.iter().any(|info| info.kind == kind))
    }

    /// Uses the token. No other call uses its card meanwhile.
    ///
    /// # Errors
    /// Those of `body`; DEVICE_REMOVED, or of the transport.
    pub(crate) fn with_token<R>(
        &self,
        body: impl FnOnce(&mut Card, &mut Token) -> Result<R, TokenError>,
    ) -> Result<R, Failure> {
        let mut state = self.state()?;
        let result = match state.connected(&self.reader.access, self.reader.reader) {
            Err(error) => Err(error),
            Ok((card, tokens)) => match self.find_in(tokens) {
                Some(token) => body(card, token).map_err(Failure::from),
                None => Err(ReturnCode::DEVICE_REMOVED.into()),
            },
        };
        self.reader.finish_use(&mut state, result)
    }

    /// The handles of the objects that match. The card is asked only if not all that could match is known.
    ///
    /// # Errors
    /// As [`TokenRef::with_token`].
    pub(crate) fn find(&self, template: &Template) -> Result<Vec<CK_OBJECT_HANDLE>, Failure> {
        let known = {
            let mut state = self.state()?;
            let token = self.find_in(state.tokens.iter_mut().flatten());
            token.and_then(|token| token.find_loaded(template))
        };
        let objects = match known {
            Some(objects) => objects,
            None => self.with_token(|card, token| token.find(card, template))?,
        };
        let mut cache = self.cache().ok_or(ReturnCode::DEVICE_REMOVED)?;
        let logged_in = cache.login_state(self.applet) == LoginState::User;
        let handles = cache.handles.entry(self.applet).or_default();
        let of_sessions = handles.find_session_objects(template, logged_in);
        let found = objects.into_iter().map(|object| handles.handle(object));
        Ok(found.chain(of_sessions).collect())
    }

    /// Uses the handles of the token's objects.
    ///
    /// # Errors
    /// DEVICE_REMOVED.
    pub(crate) fn with_handles<R>(
        &self,
        body: impl FnOnce(&mut ObjectHandles) -> R,
    ) -> Result<R, Failure> {
        let mut cache = self.cache().ok_or(ReturnCode::DEVICE_REMOVED)?;
        Ok(body(cache.handles.entry(self.applet).or_default()))
    }

    /// The object behind a handle, if it may be seen now.
    pub(crate) fn object(&self, handle: CK_OBJECT_HANDLE) -> Option<Arc<Object>> {
        let cache = self.cache()?;
        let logged_in = cache.login_state(self.applet) == LoginState::User;
        let object = cache.handles.get(&self.applet)?.get(handle)?;
        (logged_in || !object.is_private()).then(|| Arc::clone(object))
    }

    /// After the last session of a token was closed: its user is logged out, and the next search reads anew.
    pub(crate) fn last_session_closed(&self) {
        if self.login_state() != LoginState::LoggedOut
            && let Err(failure) = self.logout()
        {
            failure.log("logout after the last session");
        }
        if let Ok(mut state) = self.state()
            && let Some(token) = self.find_in(state.tokens.iter_mut().flatten())
        {
            token.forget_objects();
        }
    }

    /// Logs out here and on the card; handles of private objects die.
    ///
    /// # Errors
    /// When the card could not be told.
    pub(crate) fn logout(&self) -> Result<(), Failure> {
        let told = self.with_token(|card, token| token.logout(card));
        if told.is_err()
            && let Ok(mut state) = self.state()
            && let Some(token) = self.find_in(state.tokens.iter_mut().flatten())
        {
            // A card that could not be reached has not been asked either; for us the login is over.
            token.forget_login();
        }
        if let Some(mut cache) = self.cache() {
            if let Some(handles) = cache.handles.get_mut(&self.applet) {
                handles.forget_private();
            }
            let tokens = cache.tokens.as_mut();
            if let Some(token) = tokens.and_then(|tokens| tokens.get_mut(&self.applet)) {
                token.login_state = LoginState::LoggedOut;
            }
        }
        told
    }
}

/// One reader and the card in it. `state` is locked while its card works, `cache` for a lookup.
#[derive(Debug)]
pub(crate) struct ReaderCard {
    reader: ReaderKey,
    access: ReaderAccess,
    idle: Arc<IdleReleaser>,
    state: Mutex<CardState>,
    cache: Mutex<CachedCard>,
}

impl ReaderCard {
    pub(crate) fn new(reader: ReaderKey, access: ReaderAccess, idle: Arc<IdleReleaser>) -> Self {
        Self {
            reader,
            access,
            idle,
            state: Mutex::default(),
            cache: Mutex::default(),
        }
    }

    /// The state of one card. That of an earlier card is forgotten.
    ///
    /// # Errors
    /// DEVICE_REMOVED when another card has taken its place.
    fn state(&self, insertion: Insertion) -> Result<MutexGuard<'_, CardState>, Failure> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.insertion > insertion {
            return Err(ReturnCode::DEVICE_REMOVED.into());
        }
        if state.insertion < insertion {
            *state = CardState::of(insertion);
        }
        Ok(state)
    }

    /// What is known of one card. What is known of an earlier card is forgotten.
    fn cache(&self, insertion: Insertion) -> Option<MutexGuard<'_, CachedCard>> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.card < insertion {
            *cache = CachedCard {
                card: insertion,
                ..CachedCard::default()
            };
        }
        (cache.card == insertion).then_some(cache)
    }

    /// After a conversation: drops a connection that is of no more use, and brings the facts up to date.
    fn finish_use<R>(
        &self,
        state: &mut CardState,
        result: Result<R, Failure>,
    ) -> Result<R, Failure> {
        if let Err(Failure::Token(TokenError::Transport(error))) = &result {
            if connection_is_lost(error.kind) {
                state.drop_transport();
            }
            if card_is_gone(error.kind) {
                // The next card in this reader must not get this one's PIN, nor its sessions.
                state.tokens = None;
                self.access
                    .events
                    .table()
                    .card_removed(self.reader, state.insertion);
            }
        }
        self.update_cache(state);
        let release = self.idle.release(state.is_logged_in());
        state.idle_at = release
            .filter(|_| state.is_connected())
            .and_then(|after| Instant::now().checked_add(after));
        if let Some(at) = state.idle_at
            && !self.idle.schedule(at)
            && !state.is_logged_in()
        {
            state.release();
        }
        result
    }

    /// Brings the facts up to date; a login that is over takes the handles of private objects with it.
    fn update_cache(&self, state: &CardState) {
        let (Some(tokens), Some(mut cache)) = (&state.tokens, self.cache(state.insertion)) else {
            return;
        };
        let cached = |token: &Token| (token.kind(), cached_token(token));
        let fresh: BTreeMap<_, _> = tokens.iter().map(cached).collect();
        for applet in fresh
            .iter()
            .filter(|(_, token)| token.login_state != LoginState::User)
            .map(|(kind, _)| kind)
        {
            let before = cache.tokens.as_ref().and_then(|tokens| tokens.get(applet));
            if before.is_some_and(|token| token.login_state == LoginState::User)
                && let Some(handles) = cache.handles.get_mut(applet)
            {
                handles.forget_private();
            }
        }
        cache.tokens = Some(fresh);
        cache.foreign = state.foreign;
    }

    /// Lets go of a connection that has been idle long enough; tells when to come back for a younger one.
    fn release_if_idle(&self, now: Instant) -> Option<Instant> {
        // Busy is not idle.
        let Ok(mut state) = self.state.try_lock() else {
            return Some(now + BUSY_CHECK_INTERVAL);
        };
        let location = self.access.events.table().card_location(self.reader, now);
        if location.is_some_and(|location| location.card > state.insertion) {
            // The card has left, and its PIN goes with it.
            *state = CardState::of(state.insertion);
            return None;
        }
        let at = state.idle_at?;
        if at > now {
            return Some(at);
        }
        state.release();
        // Others can write to the card from here on; the next search reads it anew.
        state
            .tokens
            .iter_mut()
            .flatten()
            .for_each(Token::forget_objects);
        None
    }

    /// Logs every user out and lets the card go, unless a call is still talking to it.
    pub(crate) fn close(self: &Arc<Self>) {
        let Ok(mut state) = self.state.try_lock() else {
            return;
        };
        let applets: Vec<AppletKind> = state
            .tokens
            .iter()
            .flatten()
            .filter(|token| login_state(token) != LoginState::LoggedOut)
            .map(Token::kind)
            .collect();
        let insertion = state.insertion;
        state.idle_at = None;
        drop(state);
        for applet in applets {
            let token = TokenRef {
                reader: Arc::clone(self),
                insertion,
                applet,
            };
            match token.logout() {
                // A card that has left took the login along.
                Err(failure) if failure.code() != CKR_DEVICE_REMOVED => {
                    failure.log("logout at the end");
                }
                _ => {}
            }
        }
        if let Ok(mut state) = self.state.try_lock() {
            state.release();
        }
    }
}

fn cached_token(token: &Token) -> CachedToken {
    CachedToken {
        info: token.info(),
        mechanisms: token.mechanisms().into(),
        login_state: login_state(token),
        so_tries: token.so_tries(),
        has_random: token.has_random(),
    }
}

const fn login_state(token: &Token) -> LoginState {
    if token.is_so_logged_in() {
        LoginState::SecurityOfficer
    } else if token.is_logged_in() {
        LoginState::User
    } else {
        LoginState::LoggedOut
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
