//! Every function of the list, called with nothing.

use std::ptr;

use cryptoki_sys::{CK_RV, CK_ULONG};

use super::raw::Raw;

/// An argument that means nothing: zero, a null pointer, no callback.
trait Nothing {
    fn nothing() -> Self;
}

impl Nothing for CK_ULONG {
    fn nothing() -> Self {
        0
    }
}

impl Nothing for u8 {
    fn nothing() -> Self {
        0
    }
}

impl<T> Nothing for *mut T {
    fn nothing() -> Self {
        ptr::null_mut()
    }
}

impl<F> Nothing for Option<F> {
    fn nothing() -> Self {
        None
    }
}

/// A function that can be called with nothing, whatever it asks for.
trait WithNothing {
    fn call_with_nothing(self) -> CK_RV;
}

macro_rules! with_nothing {
    ($($argument:ident)*) => {
        impl<$($argument: Nothing),*> WithNothing for unsafe extern "C" fn($($argument),*) -> CK_RV {
            fn call_with_nothing(self) -> CK_RV {
                // SAFETY: each pointer is null, and a length or a count that goes with it is 0.
                unsafe { self($($argument::nothing()),*) }
            }
        }
    };
}

with_nothing!(A);
with_nothing!(A B);
with_nothing!(A B C);
with_nothing!(A B C D);
with_nothing!(A B C D E);
with_nothing!(A B C D E F);
with_nothing!(A B C D E F G);
with_nothing!(A B C D E F G H);

macro_rules! call_each {
    ($raw:expr; $($name:ident)*) => {
        vec![$((
            stringify!($name),
            $raw.list().$name.expect("every slot of the table is filled").call_with_nothing(),
        )),*]
    };
}

impl Raw {
    /// What each function but C_Initialize, C_GetFunctionList and C_Finalize says to arguments of nothing.
    pub fn call_each(&self) -> Vec<(&'static str, CK_RV)> {
        call_each! { self;
            C_GetInfo C_GetSlotList C_GetSlotInfo C_GetTokenInfo C_GetMechanismList C_GetMechanismInfo C_InitToken
            C_InitPIN C_SetPIN C_OpenSession C_CloseSession C_CloseAllSessions C_GetSessionInfo C_GetOperationState
            C_SetOperationState C_Login C_Logout C_CreateObject C_CopyObject C_DestroyObject C_GetObjectSize
            C_GetAttributeValue C_SetAttributeValue C_FindObjectsInit C_FindObjects C_FindObjectsFinal C_EncryptInit
            C_Encrypt C_EncryptUpdate C_EncryptFinal C_DecryptInit C_Decrypt C_DecryptUpdate C_DecryptFinal
            C_DigestInit C_Digest C_DigestUpdate C_DigestKey C_DigestFinal C_SignInit C_Sign C_SignUpdate C_SignFinal
            C_SignRecoverInit C_SignRecover C_VerifyInit C_Verify C_VerifyUpdate C_VerifyFinal C_VerifyRecoverInit
            C_VerifyRecover C_DigestEncryptUpdate C_DecryptDigestUpdate C_SignEncryptUpdate C_DecryptVerifyUpdate
            C_GenerateKey C_GenerateKeyPair C_WrapKey C_UnwrapKey C_DeriveKey C_SeedRandom C_GenerateRandom
            C_GetFunctionStatus C_CancelFunction C_WaitForSlotEvent
        }
    }
}
