//! Every function, called with nothing.

use std::ptr;

use cryptoki_sys::{
    CK_FUNCTION_LIST, CK_FUNCTION_LIST_3_0, CK_FUNCTION_LIST_3_2, CK_RV, CK_ULONG, CK_VERSION,
};
use libloading::Library;

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
with_nothing!(A B C D E F G H I);
with_nothing!(A B C D E F G H I J);

/// A table of functions.
pub trait Table {
    const VERSION: (u8, u8);

    fn version(&self) -> CK_VERSION;

    /// What each function that needs a module says to arguments of nothing, in the standard's order.
    fn call_each(&self) -> Vec<(&'static str, CK_RV)>;
}

macro_rules! table {
    ($table:ident, $major:literal $minor:literal: $($name:ident)*) => {
        impl Table for $table {
            const VERSION: (u8, u8) = ($major, $minor);

            fn version(&self) -> CK_VERSION {
                self.version
            }

            fn call_each(&self) -> Vec<(&'static str, CK_RV)> {
                vec![$((
                    stringify!($name),
                    self.$name.expect("every slot of the table is filled").call_with_nothing(),
                )),*]
            }
        }
    };
}

macro_rules! functions {
    (
        always { $($always:ident)* }
        V2_40 { $($first:ident)* }
        V3_0 { $($second:ident)* }
        V3_2 { $($third:ident)* }
    ) => {
        /// The names of all functions.
        pub const NAMES: &[&str] =
            &[$(stringify!($always),)* $(stringify!($first),)* $(stringify!($second),)* $(stringify!($third)),*];

        table!(CK_FUNCTION_LIST, 2 40: $($first)*);
        table!(CK_FUNCTION_LIST_3_0, 3 0: $($first)* $($second)*);
        table!(CK_FUNCTION_LIST_3_2, 3 2: $($first)* $($second)* $($third)*);

        /// A table of what a library exports by the functions' names.
        pub fn exported(library: &Library) -> CK_FUNCTION_LIST_3_2 {
            CK_FUNCTION_LIST_3_2 {
                version: CK_VERSION { major: 3, minor: 2 },
                $($always: by_name(library, stringify!($always)),)*
                $($first: by_name(library, stringify!($first)),)*
                $($second: by_name(library, stringify!($second)),)*
                $($third: by_name(library, stringify!($third)),)*
            }
        }
    };
}

functions! {
    always {
        C_Initialize C_Finalize C_GetFunctionList C_GetInterfaceList C_GetInterface
    }
    V2_40 {
        C_GetInfo C_GetSlotList C_GetSlotInfo C_GetTokenInfo C_GetMechanismList C_GetMechanismInfo C_InitToken
        C_InitPIN C_SetPIN C_OpenSession C_CloseSession C_CloseAllSessions C_GetSessionInfo C_GetOperationState
        C_SetOperationState C_Login C_Logout C_CreateObject C_CopyObject C_DestroyObject C_GetObjectSize
        C_GetAttributeValue C_SetAttributeValue C_FindObjectsInit C_FindObjects C_FindObjectsFinal C_EncryptInit
        C_Encrypt C_EncryptUpdate C_EncryptFinal C_DecryptInit C_Decrypt C_DecryptUpdate C_DecryptFinal C_DigestInit
        C_Digest C_DigestUpdate C_DigestKey C_DigestFinal C_SignInit C_Sign C_SignUpdate C_SignFinal
        C_SignRecoverInit C_SignRecover C_VerifyInit C_Verify C_VerifyUpdate C_VerifyFinal C_VerifyRecoverInit
        C_VerifyRecover C_DigestEncryptUpdate C_DecryptDigestUpdate C_SignEncryptUpdate C_DecryptVerifyUpdate
        C_GenerateKey C_GenerateKeyPair C_WrapKey C_UnwrapKey C_DeriveKey C_SeedRandom C_GenerateRandom
        C_GetFunctionStatus C_CancelFunction C_WaitForSlotEvent
    }
    V3_0 {
        C_LoginUser C_SessionCancel C_MessageEncryptInit C_EncryptMessage C_EncryptMessageBegin C_EncryptMessageNext
        C_MessageEncryptFinal C_MessageDecryptInit C_DecryptMessage C_DecryptMessageBegin C_DecryptMessageNext
        C_MessageDecryptFinal C_MessageSignInit C_SignMessage C_SignMessageBegin C_SignMessageNext
        C_MessageSignFinal C_MessageVerifyInit C_VerifyMessage C_VerifyMessageBegin C_VerifyMessageNext
        C_MessageVerifyFinal
    }
    V3_2 {
        C_EncapsulateKey C_DecapsulateKey C_VerifySignatureInit C_VerifySignature C_VerifySignatureUpdate
        C_VerifySignatureFinal C_GetSessionValidationFlags C_AsyncComplete C_AsyncGetID C_AsyncJoin
        C_WrapKeyAuthenticated C_UnwrapKeyAuthenticated
    }
}

/// `F` is the type that the standard gives this function.
fn by_name<F: Copy>(library: &Library, name: &str) -> F {
    // SAFETY: as above.
    *unsafe { library.get::<F>(name.as_bytes()) }.expect("an exported function")
}
