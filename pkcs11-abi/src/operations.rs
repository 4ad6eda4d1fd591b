//! The operations that are active in a session.

use claviger_apdu::Secret;
use claviger_token::{
    DecryptOperation, EncryptOperation, PinRule, PrivateKey, SignOperation, VerifyOperation,
    digest::Hasher,
};
use cryptoki_sys::{
    CK_FLAGS, CK_MECHANISM, CK_OBJECT_HANDLE, CKF_DECRYPT, CKF_DIGEST, CKF_ENCRYPT,
    CKF_FIND_OBJECTS, CKF_MESSAGE_SIGN, CKF_MESSAGE_VERIFY, CKF_SIGN, CKF_SIGN_RECOVER, CKF_VERIFY,
    CKF_VERIFY_RECOVER,
};

use crate::{
    pointer::{Input, OutputFit},
    rv::{Failure, ReturnCode},
};

/// A search begun by C_FindObjectsInit: the handles not yet given, in reverse.
#[derive(Debug)]
pub(crate) struct Search {
    pub(crate) rest: Vec<CK_OBJECT_HANDLE>,
}

/// An operation that is active.
#[derive(Debug)]
pub(crate) struct ActiveOperation<T> {
    pub(crate) operation: T,
    /// Its key dies with the user's login.
    private: bool,
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

    /// An operation with the same key, made of this one before its first part.
    pub(crate) fn map<U>(self, into: impl FnOnce(T) -> U) -> ActiveOperation<U> {
        ActiveOperation::new(into(self.operation), self.private)
    }
}

/// The operation of one kind in a session, if one is active.
///
/// The rule of all kinds is here: a length query, a small buffer or a missing context login keeps the operation as it was.
/// Any other error ends it. Success ends it too, except in [`OperationState::update`].
#[derive(Debug)]
pub(crate) struct OperationState<T>(Option<ActiveOperation<T>>);

impl<T> Default for OperationState<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> From<ActiveOperation<T>> for OperationState<T> {
    fn from(active: ActiveOperation<T>) -> Self {
        Self(Some(active))
    }
}

impl<T> OperationState<T> {
    pub(crate) const fn is_active(&self) -> bool {
        self.0.is_some()
    }

    /// The operation that is active.
    ///
    /// # Errors
    /// OPERATION_NOT_INITIALIZED.
    pub(crate) fn active(&mut self) -> Result<&mut ActiveOperation<T>, Failure> {
        let active = self.0.as_mut();
        active.ok_or_else(|| ReturnCode::OPERATION_NOT_INITIALIZED.into())
    }

    pub(crate) fn end(&mut self) {
        self.0 = None;
    }

    /// Begins the operation that `new` makes.
    ///
    /// # Errors
    /// OPERATION_ACTIVE, or those of `new`.
    pub(crate) fn begin(
        &mut self,
        new: impl FnOnce() -> Result<ActiveOperation<T>, Failure>,
    ) -> Result<(), Failure> {
        if self.is_active() {
            return Err(ReturnCode::OPERATION_ACTIVE.into());
        }
        self.0 = Some(new()?);
        Ok(())
    }

    /// Begins the operation that `new` makes of a mechanism. A NULL mechanism cancels the active operation (PKCS #11 3.0,
    /// 5.8.1 and the like). With none active NULL is a bad argument, as in version 2.40.
    ///
    /// # Errors
    /// OPERATION_ACTIVE, ARGUMENTS_BAD, or those of `new`.
    pub(crate) fn init(
        &mut self,
        mechanism: Input<'_, CK_MECHANISM>,
        new: impl FnOnce(&CK_MECHANISM) -> Result<ActiveOperation<T>, Failure>,
    ) -> Result<(), Failure> {
        if self.is_active() && mechanism.is_null() {
            self.end();
            return Ok(());
        }
        self.begin(|| new(&mechanism.get()?))
    }

    /// Does the whole operation at once.
    ///
    /// # Errors
    /// OPERATION_NOT_INITIALIZED, OPERATION_ACTIVE after an update, or those of `body`.
    pub(crate) fn single_part<R: Into<OutputFit>>(
        &mut self,
        body: impl FnOnce(&mut ActiveOperation<T>) -> Result<R, Failure>,
    ) -> Result<(), Failure> {
        self.final_part(|active| {
            if active.multi_part {
                return Err(ReturnCode::OPERATION_ACTIVE.into());
            }
            body(active)
        })
    }

    /// Does one part of the operation.
    ///
    /// # Errors
    /// OPERATION_NOT_INITIALIZED, or those of `body`.
    pub(crate) fn update<R: Into<OutputFit>>(
        &mut self,
        body: impl FnOnce(&mut ActiveOperation<T>) -> Result<R, Failure>,
    ) -> Result<(), Failure> {
        if self.run(body)? == OutputFit::Fits {
            self.active()?.multi_part = true;
        }
        Ok(())
    }

    /// Does the last part of the operation.
    ///
    /// # Errors
    /// OPERATION_NOT_INITIALIZED, or those of `body`.
    pub(crate) fn final_part<R: Into<OutputFit>>(
        &mut self,
        body: impl FnOnce(&mut ActiveOperation<T>) -> Result<R, Failure>,
    ) -> Result<(), Failure> {
        if self.run(body)? == OutputFit::Fits {
            self.end();
        }
        Ok(())
    }

    /// Runs `body`. An error that does not keep the operation ends it.
    fn run<R: Into<OutputFit>>(
        &mut self,
        body: impl FnOnce(&mut ActiveOperation<T>) -> Result<R, Failure>,
    ) -> Result<OutputFit, Failure> {
        let result = body(self.active()?);
        if result
            .as_ref()
            .is_err_and(|failure| !keeps_operation(failure))
        {
            self.end();
        }
        result.map(Into::into)
    }
}

/// Returns whether an error leaves an operation as it was.
fn keeps_operation(failure: &Failure) -> bool {
    matches!(
        failure,
        Failure::ReturnCode(ReturnCode::BUFFER_TOO_SMALL | ReturnCode::USER_NOT_LOGGED_IN)
    )
}

/// A series of messages (PKCS #11 3.0, 5.11 and 5.16).
#[derive(Debug)]
pub(crate) struct MessageOperation<T> {
    pub(crate) operation: T,
    /// A message was begun and has not ended.
    pub(crate) message_open: bool,
}

impl<T> MessageOperation<T> {
    pub(crate) const fn new(operation: T) -> Self {
        Self {
            operation,
            message_open: false,
        }
    }
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
    pub(crate) search: OperationState<Search>,
    pub(crate) digest: OperationState<Hasher>,
    pub(crate) encrypt: OperationState<EncryptOperation>,
    pub(crate) decrypt: OperationState<DecryptOperation>,
    pub(crate) sign: OperationState<SignOperation>,
    pub(crate) sign_recover: OperationState<SignOperation>,
    pub(crate) verify: OperationState<VerifyOperation>,
    pub(crate) verify_recover: OperationState<VerifyOperation>,
    pub(crate) verify_signature: OperationState<VerifySignatureOperation>,
    pub(crate) sign_messages: OperationState<MessageOperation<SignOperation>>,
    pub(crate) verify_messages: OperationState<MessageOperation<VerifyOperation>>,
}

impl Operations {
    /// Ends what goes on with keys that die with the user's login.
    pub(crate) fn end_private(&mut self) {
        fn end<T>(state: &mut OperationState<T>) {
            state.0.take_if(|active| active.private);
        }
        end(&mut self.encrypt);
        end(&mut self.decrypt);
        end(&mut self.sign);
        end(&mut self.sign_recover);
        end(&mut self.verify);
        end(&mut self.verify_recover);
        end(&mut self.verify_signature);
        end(&mut self.sign_messages);
        end(&mut self.verify_messages);
    }

    /// Whether something goes on with a key.
    pub(crate) const fn uses_key(&self) -> bool {
        self.encrypt.is_active()
            || self.decrypt.is_active()
            || self.sign.is_active()
            || self.sign_recover.is_active()
            || self.verify.is_active()
            || self.verify_recover.is_active()
            || self.verify_signature.is_active()
            || self.sign_messages.is_active()
            || self.verify_messages.is_active()
    }

    /// Ends the operations that `flags` of CK_MECHANISM_INFO name (C_SessionCancel).
    pub(crate) fn cancel(&mut self, flags: CK_FLAGS) {
        let has = |flag| flags & flag != 0;
        if has(CKF_FIND_OBJECTS) {
            self.search.end();
        }
        if has(CKF_DIGEST) {
            self.digest.end();
        }
        if has(CKF_ENCRYPT) {
            self.encrypt.end();
        }
        if has(CKF_DECRYPT) {
            self.decrypt.end();
        }
        if has(CKF_SIGN) {
            self.sign.end();
        }
        if has(CKF_SIGN_RECOVER) {
            self.sign_recover.end();
        }
        if has(CKF_VERIFY) {
            self.verify.end();
            self.verify_signature.end();
        }
        if has(CKF_VERIFY_RECOVER) {
            self.verify_recover.end();
        }
        if has(CKF_MESSAGE_SIGN) {
            self.sign_messages.end();
        }
        if has(CKF_MESSAGE_VERIFY) {
            self.verify_messages.end();
        }
    }

    /// The key that waits for its own PIN, and where the PIN goes: a signature's before a decryption's.
    pub(crate) fn awaiting_context_login(&mut self) -> Option<(PrivateKey, &mut Option<Secret>)> {
        fn operation<T>(state: &mut OperationState<T>) -> Option<&mut T> {
            Some(&mut state.0.as_mut()?.operation)
        }
        let messages = operation(&mut self.sign_messages).map(|messages| &mut messages.operation);
        let signing = [
            operation(&mut self.sign),
            operation(&mut self.sign_recover),
            messages,
        ]
        .into_iter()
        .flatten()
        .filter(|operation| operation.wants_context_login())
        .find_map(|operation| {
            let key = *operation.private_key()?;
            Some((key, &mut operation.context_pin))
        });
        signing.or_else(|| {
            let operation = operation(&mut self.decrypt)?;
            let key = *operation.private_key()?;
            (key.pin == PinRule::Always).then_some((key, &mut operation.context_pin))
        })
    }
}
