//! The operations that are active in a session.

use claviger_apdu::Secret;
use claviger_token::{
    DecryptOperation, EncryptOperation, PinRule, PrivateKey, SignOperation, VerifyOperation,
    digest::Hasher,
};
use cryptoki_sys::{
    CK_FLAGS, CK_OBJECT_HANDLE, CKF_DECRYPT, CKF_DIGEST, CKF_ENCRYPT, CKF_FIND_OBJECTS,
    CKF_MESSAGE_SIGN, CKF_MESSAGE_VERIFY, CKF_SIGN, CKF_SIGN_RECOVER, CKF_VERIFY,
    CKF_VERIFY_RECOVER,
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
            (key.pin == PinRule::Always).then_some((key, &mut operation.context_pin))
        })
    }
}
