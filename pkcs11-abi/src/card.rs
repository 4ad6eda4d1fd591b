//! The card in one reader: its transport, its tokens, and the cache that answers without the card.

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

/// After finding a card in use, the idle thread checks that card again after this time.
const BUSY_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The cached properties of one token. Reading them needs no card.
#[derive(Clone, Debug)]
pub(crate) struct CachedToken {
    pub(crate) info: TokenInfo,
    pub(crate) mechanisms: Arc<[MechanismInfo]>,
    pub(crate) login_state: LoginState,
    pub(crate) so_tries: PinTries,
    pub(crate) has_random: bool,
}

/// The login state of a token.
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
    /// `None` until the card was read.
    tokens: Option<BTreeMap<AppletKind, CachedToken>>,
    /// The card has no supported applet, visible or hidden.
    foreign: bool,
    handles: BTreeMap<AppletKind, ObjectHandles>,
}

/// The readers that this generation has used, each with its card.
#[derive(Debug, Default)]
pub(crate) struct ReaderCards(Mutex<HashMap<ReaderKey, Arc<ReaderCard>>>);

impl ReaderCards {
    fn map(&self) -> MutexGuard<'_, HashMap<ReaderKey, Arc<ReaderCard>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the entry of `reader`. Its first use makes the entry with `new`.
    ///
    /// # Errors
    /// The errors of `new`.
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

    /// Removes and returns all entries.
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

/// The token of one applet, on one insertion of a card. It never refers to a later card in the same reader.
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

    /// Returns the cached properties of the token. The first call reads the applets of the card.
    ///
    /// # Errors
    /// TOKEN_NOT_PRESENT if the card does not have this applet. TOKEN_NOT_RECOGNIZED if the card has no supported applet and
    /// this applet is the first one. DEVICE_REMOVED. Transport errors.
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

    /// Returns the cached login state of the token.
    pub(crate) fn login_state(&self) -> LoginState {
        let cache = self.cache();
        cache.map_or(LoginState::LoggedOut, |cache| {
            cache.login_state(self.applet)
        })
    }

    /// Returns whether the user is logged in, by the cached login state.
    pub(crate) fn is_logged_in(&self) -> bool {
        self.login_state() == LoginState::User
    }

    /// Returns whether the cache lists this mechanism for the token.
    pub(crate) fn has_mechanism(&self, kind: CK_MECHANISM_TYPE) -> bool {
        let cache = self.cache();
        let tokens = cache.as_ref().and_then(|cache| cache.tokens.as_ref());
        let token = tokens.and_then(|tokens| tokens.get(&self.applet));
        token.is_some_and(|token| token.mechanisms.iter().any(|info| info.kind == kind))
    }

    /// Runs `body` with the connected card and the token. The card stays locked meanwhile, so no other call uses it.
    ///
    /// # Errors
    /// The errors of `body`; DEVICE_REMOVED; transport errors.
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

    /// Returns the handles of the objects that match. The card is read only if an object that could match is not loaded yet.
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

    /// Runs `body` with the handles of the token's objects.
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

    /// Returns the object behind a handle. A private object is returned only while the user is logged in.
    pub(crate) fn object(&self, handle: CK_OBJECT_HANDLE) -> Option<Arc<Object>> {
        let cache = self.cache()?;
        let logged_in = cache.login_state(self.applet) == LoginState::User;
        let object = cache.handles.get(&self.applet)?.get(handle)?;
        (logged_in || !object.is_private()).then(|| Arc::clone(object))
    }

    /// Call this after the last session of the token was closed. Logs out, and makes the next search read the card again.
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

    /// Logs out in this module and on the card. The handles of private objects become invalid.
    ///
    /// # Errors
    /// The card could not be logged out. In this module the logout has happened nevertheless.
    pub(crate) fn logout(&self) -> Result<(), Failure> {
        let result = self.with_token(|card, token| token.logout(card));
        if result.is_err()
            && let Ok(mut state) = self.state()
            && let Some(token) = self.find_in(state.tokens.iter_mut().flatten())
        {
            // The card may be unreachable. For this module the login is over nevertheless.
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
        result
    }
}

/// One reader and the card in it. `state` is locked while the card is used, `cache` for a lookup.
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

    /// Locks and returns the state of one card. The state of an earlier card is dropped.
    ///
    /// # Errors
    /// DEVICE_REMOVED if a later card has been used in this reader.
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

    /// Locks and returns the cache of one card. The cache of an earlier card is dropped. Returns `None` if a later card has
    /// been used in this reader.
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

    /// Ends a use of the card: drops a lost transport, updates the cache, and schedules the release of the idle card.
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
                // The next card in this reader must not get the PIN or the sessions of the removed card.
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

    /// Updates the cache from the tokens. If a user's login has ended, the handles of private objects become invalid.
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

    /// Disconnects a card that has been idle long enough. Otherwise returns when to check again, if a check is needed.
    fn release_if_idle(&self, now: Instant) -> Option<Instant> {
        let Ok(mut state) = self.state.try_lock() else {
            return Some(now + BUSY_CHECK_INTERVAL);
        };
        let location = self.access.events.table().card_location(self.reader, now);
        if location.is_some_and(|location| location.card > state.insertion) {
            // The card was removed. Its tokens hold a cached PIN and are dropped.
            *state = CardState::of(state.insertion);
            return None;
        }
        let at = state.idle_at?;
        if at > now {
            return Some(at);
        }
        state.release();
        // Other programs can write to the card now, so the next search must read the card again.
        state
            .tokens
            .iter_mut()
            .flatten()
            .for_each(Token::forget_objects);
        None
    }

    /// Logs out of all tokens and disconnects the card, unless a call is still using the card.
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
                // The login ended when the card was removed.
                Err(failure) if failure.code() != CKR_DEVICE_REMOVED => {
                    failure.log("logout at shutdown");
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

/// Returns whether an error of this kind makes the transport unusable.
const fn connection_is_lost(kind: TransportErrorKind) -> bool {
    !matches!(
        kind,
        TransportErrorKind::Busy | TransportErrorKind::CardReset | TransportErrorKind::Cancelled
    )
}

/// Returns whether an error of this kind means that the card or the reader was removed.
const fn card_is_gone(kind: TransportErrorKind) -> bool {
    matches!(
        kind,
        TransportErrorKind::CardRemoved | TransportErrorKind::NoCard | TransportErrorKind::NoReader
    )
}
