//! Sessions: which token, in which state, with which operations under way.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use claviger_token::{AppletKind, SignOperation};
use cryptoki_sys::{CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_SLOT_ID};

use crate::{card::ReaderCard, handle, known_reader::CardCount};

/// A search begun by C_FindObjectsInit: the handles not yet given, in reverse.
#[derive(Debug)]
pub(crate) struct Search {
    pub(crate) rest: Vec<CK_OBJECT_HANDLE>,
}

/// A signature begun by C_SignInit.
#[derive(Debug)]
pub(crate) struct Signature {
    pub(crate) operation: SignOperation,
    /// C_SignUpdate was called: only C_SignFinal may end it.
    pub(crate) in_parts: bool,
}

/// What a session has under way.
#[derive(Debug, Default)]
pub(crate) struct Operations {
    pub(crate) search: Option<Search>,
    pub(crate) signature: Option<Signature>,
}

/// One session. Its token and card never change: when the card leaves, the session is dead.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) handle: CK_SESSION_HANDLE,
    pub(crate) slot: CK_SLOT_ID,
    pub(crate) applet: AppletKind,
    pub(crate) read_write: bool,
    pub(crate) card: CardCount,
    pub(crate) reader: Arc<ReaderCard>,
    operations: Mutex<Operations>,
}

impl Session {
    /// A new session with a fresh handle.
    pub(crate) fn new(
        slot: CK_SLOT_ID,
        applet: AppletKind,
        read_write: bool,
        card: CardCount,
        reader: Arc<ReaderCard>,
    ) -> Self {
        Self {
            handle: handle::fresh(),
            slot,
            applet,
            read_write,
            card,
            reader,
            operations: Mutex::default(),
        }
    }

    /// What is under way; held for the length of a call, so that two threads in one session take turns.
    pub(crate) fn operations(&self) -> MutexGuard<'_, Operations> {
        self.operations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a user is logged in to its token.
    pub(crate) fn is_logged_in(&self) -> bool {
        self.reader.is_logged_in(self.card, self.applet)
    }
}

/// All sessions of one generation.
#[derive(Debug, Default)]
pub(crate) struct Sessions(Mutex<HashMap<CK_SESSION_HANDLE, Arc<Session>>>);

impl Sessions {
    fn map(&self) -> MutexGuard<'_, HashMap<CK_SESSION_HANDLE, Arc<Session>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, session: Session) -> CK_SESSION_HANDLE {
        let handle = session.handle;
        self.map().insert(handle, Arc::new(session));
        handle
    }

    pub(crate) fn get(&self, handle: CK_SESSION_HANDLE) -> Option<Arc<Session>> {
        self.map().get(&handle).cloned()
    }

    /// Takes a session out, and tells whether it was the last one of its token's card.
    pub(crate) fn remove(&self, handle: CK_SESSION_HANDLE) -> Option<(Arc<Session>, bool)> {
        let mut map = self.map();
        let session = map.remove(&handle)?;
        let last = !map
            .values()
            .any(|other| other.slot == session.slot && other.card == session.card);
        Some((session, last))
    }

    /// Handles of the sessions on a slot.
    pub(crate) fn on_slot(&self, slot: CK_SLOT_ID) -> Vec<CK_SESSION_HANDLE> {
        self.map()
            .values()
            .filter(|session| session.slot == slot)
            .map(|session| session.handle)
            .collect()
    }

    /// All handles.
    pub(crate) fn all(&self) -> Vec<CK_SESSION_HANDLE> {
        self.map().keys().copied().collect()
    }

    /// Sessions on this card of a slot, and how many of them may write.
    pub(crate) fn count(&self, slot: CK_SLOT_ID, card: CardCount) -> (usize, usize) {
        let map = self.map();
        let mine = || {
            map.values()
                .filter(|session| session.slot == slot && session.card == card)
        };
        (
            mine().count(),
            mine().filter(|session| session.read_write).count(),
        )
    }
}
