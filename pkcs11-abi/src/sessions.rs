//! Sessions: which token, with which operations active.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use claviger_token::Object;
use cryptoki_sys::{CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_SLOT_ID};

use crate::{
    card::TokenRef,
    handle,
    known_reader::Insertion,
    operations::Operations,
    rv::{Failure, ReturnCode},
};

/// One session. Its token and card never change: when the card leaves, the session is dead.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) handle: CK_SESSION_HANDLE,
    pub(crate) slot: CK_SLOT_ID,
    pub(crate) token: TokenRef,
    pub(crate) read_write: bool,
    operations: Mutex<Operations>,
}

impl Session {
    /// A new session with a fresh handle.
    pub(crate) fn new(slot: CK_SLOT_ID, token: TokenRef, read_write: bool) -> Self {
        Self {
            handle: handle::fresh(),
            slot,
            token,
            read_write,
            operations: Mutex::default(),
        }
    }

    /// The operations. They are locked for the length of a call, so that two threads in one session take turns.
    pub(crate) fn operations(&self) -> MutexGuard<'_, Operations> {
        self.operations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The object behind a handle, if this session may see it now.
    ///
    /// # Errors
    /// `missing`, the code of the function's own.
    pub(crate) fn object(
        &self,
        handle: CK_OBJECT_HANDLE,
        missing: ReturnCode,
    ) -> Result<Arc<Object>, Failure> {
        let object = self.token.object(handle);
        object.ok_or_else(|| missing.into())
    }

    /// As [`Session::object`] of a key: another object's handle is none of a key.
    ///
    /// # Errors
    /// `missing`.
    pub(crate) fn key(
        &self,
        handle: CK_OBJECT_HANDLE,
        missing: ReturnCode,
    ) -> Result<Arc<Object>, Failure> {
        let object = self.token.object(handle);
        object
            .filter(|object| object.key.is_some())
            .ok_or_else(|| missing.into())
    }

    /// Gives a new object of this session its handle.
    ///
    /// # Errors
    /// DEVICE_REMOVED.
    pub(crate) fn add_object(&self, object: Object) -> Result<CK_OBJECT_HANDLE, Failure> {
        self.token
            .with_handles(|handles| handles.add(self.handle, object))
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
        let last = !map.values().any(|other| {
            other.slot == session.slot && other.token.insertion == session.token.insertion
        });
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
    pub(crate) fn count(&self, slot: CK_SLOT_ID, card: Insertion) -> (usize, usize) {
        let map = self.map();
        let mine = || {
            map.values()
                .filter(|session| session.slot == slot && session.token.insertion == card)
        };
        (
            mine().count(),
            mine().filter(|session| session.read_write).count(),
        )
    }
}
