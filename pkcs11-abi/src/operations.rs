//! The operations that are active in a session.

use claviger_apdu::Secret;
use claviger_token::{
    DecryptOperation, EncryptOperation, PrivateKey, SignOperation, VerifyOperation, digest::Hasher,
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

/// The properties of an operation that [`Operations`] needs.
pub(crate) trait Operation {
    /// Returns whether the operation uses a key.
    fn uses_key(&self) -> bool {
        true
    }

    /// Returns the key that waits for a context login, and the place for its PIN. Returns `None` if none waits.
    fn awaiting_context_login(&mut self) -> Option<(PrivateKey, &mut Option<Secret>)> {
        None
    }
}

impl Operation for Hasher {
    fn uses_key(&self) -> bool {
        false
    }
}

impl Operation for SignOperation {
    fn awaiting_context_login(&mut self) -> Option<(PrivateKey, &mut Option<Secret>)> {
        let key = *self.private_key()?;
        let waits = self.wants_context_login();
        waits.then_some((key, &mut self.context_pin))
    }
}

impl Operation for DecryptOperation {
    fn awaiting_context_login(&mut self) -> Option<(PrivateKey, &mut Option<Secret>)> {
        let key = *self.private_key()?;
        let waits = self.wants_context_login();
        waits.then_some((key, &mut self.context_pin))
    }
}

impl Operation for EncryptOperation {}

impl Operation for VerifyOperation {}

/// A search that C_FindObjectsInit began: the handles not yet returned, in reverse order.
#[derive(Debug)]
pub(crate) struct Search {
    pub(crate) rest: Vec<CK_OBJECT_HANDLE>,
}

impl Operation for Search {
    fn uses_key(&self) -> bool {
        false
    }
}

/// An operation that is active.
#[derive(Debug)]
pub(crate) struct ActiveOperation<T> {
    pub(crate) operation: T,
    /// The key is private, so a logout ends the operation.
    private: bool,
    /// An update was called, so a single-part call is no longer allowed.
    pub(crate) multi_part: bool,
    /// The last output, computed but not yet returned, because the caller's buffer was too small.
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

    /// Converts the operation, before its first part, to another type with the same key.
    pub(crate) fn map<U>(self, into: impl FnOnce(T) -> U) -> ActiveOperation<U> {
        ActiveOperation::new(into(self.operation), self.private)
    }
}

/// The operation of one kind in a session, if one is active.
///
/// One rule holds for all kinds: a length query, a small buffer or a missing context login keeps the operation as it was. Any
/// other error ends it. Success ends it too, except in [`OperationState::update`].
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

    /// Returns the active operation.
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
    /// OPERATION_ACTIVE, or the errors of `new`.
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

    /// Begins the operation that `new` makes from a mechanism. A NULL mechanism cancels the active operation (PKCS #11 3.0,
    /// 5.8.1 and similar sections). With none active, NULL is ARGUMENTS_BAD, as in version 2.40.
    ///
    /// # Errors
    /// OPERATION_ACTIVE, ARGUMENTS_BAD, or the errors of `new`.
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

    /// Does the whole operation in one call.
    ///
    /// # Errors
    /// OPERATION_NOT_INITIALIZED, OPERATION_ACTIVE after an update, or the errors of `body`.
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
    /// OPERATION_NOT_INITIALIZED, or the errors of `body`.
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
    /// OPERATION_NOT_INITIALIZED, or the errors of `body`.
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
    /// A message has begun and has not ended.
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

impl<T: Operation> Operation for MessageOperation<T> {
    fn uses_key(&self) -> bool {
        self.operation.uses_key()
    }

    fn awaiting_context_login(&mut self) -> Option<(PrivateKey, &mut Option<Secret>)> {
        self.operation.awaiting_context_login()
    }
}

/// A verification that gets its signature in its first call (PKCS #11 3.2).
#[derive(Debug)]
pub(crate) struct VerifySignatureOperation {
    pub(crate) verification: VerifyOperation,
    pub(crate) signature: Vec<u8>,
}

impl Operation for VerifySignatureOperation {}

/// An [`OperationState`] of any kind.
trait AnyState {
    fn end(&mut self);
    fn end_if_private(&mut self);
    fn active_operation(&mut self) -> Option<&mut dyn Operation>;
}

impl<T: Operation> AnyState for OperationState<T> {
    fn end(&mut self) {
        self.0 = None;
    }

    fn end_if_private(&mut self) {
        self.0.take_if(|active| active.private);
    }

    fn active_operation(&mut self) -> Option<&mut dyn Operation> {
        Some(&mut self.0.as_mut()?.operation)
    }
}

macro_rules! operations {
    ($($name:ident: $operation:ty = $flag:ident,)*) => {
        /// The operations of a session, at most one of each kind.
        #[derive(Debug, Default)]
        pub(crate) struct Operations {
            $(pub(crate) $name: OperationState<$operation>,)*
        }

        impl Operations {
            /// Iterates over all kinds, each with its flag of CK_MECHANISM_INFO.
            fn all(&mut self) -> impl Iterator<Item = (CK_FLAGS, &mut dyn AnyState)> {
                let all = [$(($flag, &mut self.$name as &mut dyn AnyState),)*];
                all.into_iter()
            }
        }
    };
}

// A context login goes to the first operation in this order that waits: to a signature before a decryption.
operations! {
    search: Search = CKF_FIND_OBJECTS,
    digest: Hasher = CKF_DIGEST,
    sign: SignOperation = CKF_SIGN,
    sign_recover: SignOperation = CKF_SIGN_RECOVER,
    sign_messages: MessageOperation<SignOperation> = CKF_MESSAGE_SIGN,
    verify: VerifyOperation = CKF_VERIFY,
    verify_recover: VerifyOperation = CKF_VERIFY_RECOVER,
    verify_messages: MessageOperation<VerifyOperation> = CKF_MESSAGE_VERIFY,
    verify_signature: VerifySignatureOperation = CKF_VERIFY,
    encrypt: EncryptOperation = CKF_ENCRYPT,
    decrypt: DecryptOperation = CKF_DECRYPT,
}

impl Operations {
    /// Ends the operations with private keys.
    pub(crate) fn end_private(&mut self) {
        self.all().for_each(|(_, state)| state.end_if_private());
    }

    /// Returns whether an operation with a key is active.
    pub(crate) fn uses_key(&mut self) -> bool {
        self.all()
            .filter_map(|(_, state)| state.active_operation())
            .any(|operation| operation.uses_key())
    }

    /// Ends the operations that `flags` of CK_MECHANISM_INFO name (C_SessionCancel).
    pub(crate) fn cancel(&mut self, flags: CK_FLAGS) {
        self.all()
            .filter(|(flag, _)| flags & flag != 0)
            .for_each(|(_, state)| state.end());
    }

    /// Returns the key that waits for a context login, and the place for its PIN. Returns `None` if none waits.
    pub(crate) fn awaiting_context_login(&mut self) -> Option<(PrivateKey, &mut Option<Secret>)> {
        self.all()
            .filter_map(|(_, state)| state.active_operation())
            .find_map(|operation| operation.awaiting_context_login())
    }
}
