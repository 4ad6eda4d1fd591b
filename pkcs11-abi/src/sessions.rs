//! Sessions. Each has its token and its active operations.

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

/// One session. Its token and insertion never change. When the card is removed, the session becomes invalid.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) handle: CK_SESSION_HANDLE,
    pub(crate) slot: CK_SLOT_ID,
    pub(crate) token: TokenRef,
    pub(crate) read_write: bool,
    operations: Mutex<Operations>,
}

impl Session {
    /// Returns a new session with a new handle.
    pub(crate) fn new(slot: CK_SLOT_ID, token: TokenRef, read_write: bool) -> Self {
        Self {
            handle: handle::fresh(),
            slot,
            token,
            read_write,
            operations: Mutex::default(),
        }
    }

    /// Locks and returns the operations. A call keeps them locked to its end, so calls of one session run one after the
    /// other.
    pub(crate) fn operations(&self) -> MutexGuard<'_, Operations> {
        self.operations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the object behind a handle. A private object is returned only while the user is logged in.
    ///
    /// # Errors
    /// `missing`, which depends on the calling function.
    pub(crate) fn object(
        &self,
        handle: CK_OBJECT_HANDLE,
        missing: ReturnCode,
    ) -> Result<Arc<Object>, Failure> {
        let object = self.token.object(handle);
        object.ok_or_else(|| missing.into())
    }

    /// Returns the key behind a handle, as [`Session::object`] does. An object that is not a key counts as missing.
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

    /// Adds an object to this session and returns its handle.
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

    /// Removes a session. Returns the session, and whether it was the last one on its slot and insertion.
    pub(crate) fn remove(&self, handle: CK_SESSION_HANDLE) -> Option<(Arc<Session>, bool)> {
        let mut map = self.map();
        let session = map.remove(&handle)?;
        let last = !map.values().any(|other| {
            other.slot == session.slot && other.token.insertion == session.token.insertion
        });
        Some((session, last))
    }

    /// Returns the handles of the sessions on a slot.
    pub(crate) fn on_slot(&self, slot: CK_SLOT_ID) -> Vec<CK_SESSION_HANDLE> {
        self.map()
            .values()
            .filter(|session| session.slot == slot)
            .map(|session| session.handle)
            .collect()
    }

    /// Returns the handles of all sessions.
    pub(crate) fn all(&self) -> Vec<CK_SESSION_HANDLE> {
        self.map().keys().copied().collect()
    }

    /// Returns the number of sessions on a slot and insertion, and the number of read/write sessions among them.
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
