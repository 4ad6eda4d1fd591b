//! Sessions: which token, in which state, with which operations under way.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use claviger_apdu::Secret;
use claviger_token::{
    AppletKind, Card, DecryptOperation, EncryptOperation, Object, PinPolicy, PrivateKey,
    SignOperation, Token, TokenError, VerifyOperation, digest::Hasher,
};
use cryptoki_sys::{
    CK_FLAGS, CK_MECHANISM_TYPE, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_SLOT_ID, CKF_DECRYPT,
    CKF_DIGEST, CKF_ENCRYPT, CKF_FIND_OBJECTS, CKF_MESSAGE_SIGN, CKF_MESSAGE_VERIFY, CKF_SIGN,
    CKF_SIGN_RECOVER, CKF_VERIFY, CKF_VERIFY_RECOVER,
};

use crate::{
    card::{LoginState, ReaderCard},
    handle,
    known_reader::Insertion,
    object_handles::ObjectHandles,
    rv::{Failure, ReturnCode},
};

/// A search begun by C_FindObjectsInit: the handles not yet given, in reverse.
#[derive(Debug)]
pub(crate) struct Search {
    pub(crate) rest: Vec<CK_OBJECT_HANDLE>,
}

/// An operation under way.
#[derive(Debug)]
pub(crate) struct ActiveOperation<T> {
    pub(crate) operation: T,
    /// Its key dies with the user's login.
    pub(crate) private: bool,
    /// An update was called: only the final call may end it.
    pub(crate) multi_part: bool,
    /// The last of its output, computed and not yet fetched, because the caller's buffer was too small.
    pub(crate) unread_output: Option<Secret>,
}

impl<T> ActiveOperation<T> {
    pub(crate) const fn new(operation: T, private: bool) -> Self {
        Self {
            operation,
            private,
            multi_part: false,
            unread_output: None,
        }
    }
}

/// A series of messages (PKCS #11 3.0, 5.11 and 5.16).
#[derive(Debug)]
pub(crate) struct MessageOperation<T> {
    pub(crate) active: ActiveOperation<T>,
    /// A message was begun and has not ended.
    pub(crate) message_open: bool,
}

/// A verification that knows its signature from the start (PKCS #11 3.2).
#[derive(Debug)]
pub(crate) struct VerifySignatureOperation {
    pub(crate) verification: VerifyOperation,
    pub(crate) signature: Vec<u8>,
}

/// What a session has under way: one of each kind at most.
#[derive(Debug, Default)]
pub(crate) struct Operations {
    pub(crate) search: Option<Search>,
    pub(crate) digest: Option<ActiveOperation<Hasher>>,
    pub(crate) encrypt: Option<ActiveOperation<EncryptOperation>>,
    pub(crate) decrypt: Option<ActiveOperation<DecryptOperation>>,
    pub(crate) sign: Option<ActiveOperation<SignOperation>>,
    pub(crate) sign_recover: Option<ActiveOperation<SignOperation>>,
    pub(crate) verify: Option<ActiveOperation<VerifyOperation>>,
    pub(crate) verify_recover: Option<ActiveOperation<VerifyOperation>>,
    pub(crate) verify_signature: Option<ActiveOperation<VerifySignatureOperation>>,
    pub(crate) sign_messages: Option<MessageOperation<SignOperation>>,
    pub(crate) verify_messages: Option<MessageOperation<VerifyOperation>>,
}

impl Operations {
    /// Ends what goes on with keys that die with the user's login.
    pub(crate) fn end_private(&mut self) {
        fn end<T>(active: &mut Option<ActiveOperation<T>>) {
            active.take_if(|active| active.private);
        }
        end(&mut self.encrypt);
        end(&mut self.decrypt);
        end(&mut self.sign);
        end(&mut self.sign_recover);
        end(&mut self.verify);
        end(&mut self.verify_recover);
        end(&mut self.verify_signature);
        self.sign_messages
            .take_if(|messages| messages.active.private);
        self.verify_messages
            .take_if(|messages| messages.active.private);
    }

    /// Whether something goes on with a key.
    pub(crate) const fn uses_key(&self) -> bool {
        self.encrypt.is_some()
            || self.decrypt.is_some()
            || self.sign.is_some()
            || self.sign_recover.is_some()
            || self.verify.is_some()
            || self.verify_recover.is_some()
            || self.verify_signature.is_some()
            || self.sign_messages.is_some()
            || self.verify_messages.is_some()
    }

    /// Ends the operations that `flags` of CK_MECHANISM_INFO name (C_SessionCancel).
    pub(crate) fn cancel(&mut self, flags: CK_FLAGS) {
        let has = |flag| flags & flag != 0;
        if has(CKF_FIND_OBJECTS) {
            self.search = None;
        }
        if has(CKF_DIGEST) {
            self.digest = None;
        }
        if has(CKF_ENCRYPT) {
            self.encrypt = None;
        }
        if has(CKF_DECRYPT) {
            self.decrypt = None;
        }
        if has(CKF_SIGN) {
            self.sign = None;
        }
        if has(CKF_SIGN_RECOVER) {
            self.sign_recover = None;
        }
        if has(CKF_VERIFY) {
            self.verify = None;
            self.verify_signature = None;
        }
        if has(CKF_VERIFY_RECOVER) {
            self.verify_recover = None;
        }
        if has(CKF_MESSAGE_SIGN) {
            self.sign_messages = None;
        }
        if has(CKF_MESSAGE_VERIFY) {
            self.verify_messages = None;
        }
    }

    /// The key that waits for its own PIN, and where the PIN goes: a signature's before a decryption's.
    pub(crate) fn awaiting_context_login(&mut self) -> Option<(PrivateKey, &mut Option<Secret>)> {
        let messages = self
            .sign_messages
            .as_mut()
            .map(|messages| &mut messages.active);
        let signing = [self.sign.as_mut(), self.sign_recover.as_mut(), messages]
            .into_iter()
            .flatten()
            .map(|active| &mut active.operation)
            .filter(|operation| operation.wants_context_login())
            .find_map(|operation| {
                let key = *operation.private_key()?;
                Some((key, &mut operation.context_pin))
            });
        signing.or_else(|| {
            let operation = &mut self.decrypt.as_mut()?.operation;
            let key = *operation.private_key()?;
            (key.pin == PinPolicy::Always).then_some((key, &mut operation.context_pin))
        })
    }
}

/// One session. Its token and card never change: when the card leaves, the session is dead.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) handle: CK_SESSION_HANDLE,
    pub(crate) slot: CK_SLOT_ID,
    pub(crate) applet: AppletKind,
    pub(crate) read_write: bool,
    pub(crate) card: Insertion,
    pub(crate) reader: Arc<ReaderCard>,
    operations: Mutex<Operations>,
}

impl Session {
    /// A new session with a fresh handle.
    pub(crate) fn new(
        slot: CK_SLOT_ID,
        applet: AppletKind,
        read_write: bool,
        card: Insertion,
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

    /// One conversation with its token.
    ///
    /// # Errors
    /// Those of `body`, or of the way to the card.
    pub(crate) fn with_token<R>(
        &self,
        body: impl FnOnce(&mut Card, &mut Token) -> Result<R, TokenError>,
    ) -> Result<R, Failure> {
        self.reader.with_token(self.card, self.applet, body)
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
        let object = self.reader.object(self.card, self.applet, handle);
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
        let object = self.reader.object(self.card, self.applet, handle);
        object
            .filter(|object| object.key.is_some())
            .ok_or_else(|| missing.into())
    }

    /// Gives a new object of this session its handle.
    ///
    /// # Errors
    /// DEVICE_REMOVED.
    pub(crate) fn add_object(&self, object: Object) -> Result<CK_OBJECT_HANDLE, Failure> {
        self.with_handles(|handles| handles.add(self.handle, object))
    }

    /// A look at the handles of its token's objects.
    ///
    /// # Errors
    /// DEVICE_REMOVED.
    pub(crate) fn with_handles<R>(
        &self,
        body: impl FnOnce(&mut ObjectHandles) -> R,
    ) -> Result<R, Failure> {
        self.reader.with_handles(self.card, self.applet, body)
    }

    /// Whether a user is logged in to its token.
    pub(crate) fn is_logged_in(&self) -> bool {
        self.login_state() == LoginState::User
    }

    /// Whether C_GetMechanismList of its token has this mechanism.
    pub(crate) fn offers(&self, kind: CK_MECHANISM_TYPE) -> bool {
        self.reader.has_mechanism(self.card, self.applet, kind)
    }

    /// Who is logged in to its token.
    pub(crate) fn login_state(&self) -> LoginState {
        self.reader.login_state(self.card, self.applet)
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
    pub(crate) fn count(&self, slot: CK_SLOT_ID, card: Insertion) -> (usize, usize) {
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
