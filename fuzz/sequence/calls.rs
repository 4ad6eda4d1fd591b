//! Every function of the table with the kinds of its arguments.

use cryptoki_sys::{CK_FUNCTION_LIST_3_2, CK_RV, CK_ULONG};

/// What an argument is, or two that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Session,
    Slot,
    /// An object, or a key.
    Object,
    Mechanism,
    /// A mechanism by its number.
    MechanismType,
    /// Attributes and their number.
    Template,
    /// Attributes with room for their values, and their number.
    Attributes,
    /// Bytes and their number.
    Input,
    /// A parameter for one message and its length.
    Parameter,
    /// Room for bytes and where their number is.
    Output,
    /// Room for bytes, and their number.
    Random,
    /// Room for things of this size and where the number of them is.
    List(usize),
    /// Room for handles, how many, and where the number of them goes.
    Found,
    /// Where a structure of so many bytes goes.
    Struct(usize),
    /// Where the handle of a session goes.
    NewSession,
    /// Where the handle of an object goes.
    NewObject,
    User,
    Pin,
    /// A PIN that no card would look at.
    ImpossiblePin,
    /// 32 characters.
    Label,
    /// Characters that end with 0.
    Text,
    /// CK_VERSION or null.
    Version,
    SessionFlags,
    /// CKF_DONT_BLOCK and whatever else: a call that waits would wait for ever.
    WaitFlags,
    /// Flags and numbers of any kind.
    Number,
    /// CK_BBOOL.
    Bool,
    /// Null; sometimes not.
    Reserved,
    /// Null, or anything at all: it is never followed.
    Opaque,
    InitializeArgs,
}

/// An argument in its register.
trait Word {
    fn of(word: usize) -> Self;
}

impl Word for CK_ULONG {
    fn of(word: usize) -> Self {
        word as Self
    }
}

impl Word for u8 {
    fn of(word: usize) -> Self {
        word as Self
    }
}

impl<T> Word for *mut T {
    fn of(word: usize) -> Self {
        word as Self
    }
}

impl<F> Word for Option<F> {
    fn of(_: usize) -> Self {
        None
    }
}

/// A function that takes its arguments from a list.
trait Callable {
    fn call(self, words: &[usize]) -> CK_RV;
}

macro_rules! callable {
    ($($argument:ident)*) => {
        impl<$($argument: Word),*> Callable for unsafe extern "C" fn($($argument),*) -> CK_RV {
            fn call(self, words: &[usize]) -> CK_RV {
                let mut words = words.iter().copied();
                $(#[allow(non_snake_case)] let $argument = $argument::of(words.next().expect("an argument"));)*
                assert_eq!(words.next(), None, "an argument too many");
                // SAFETY: each pointer is null or to a piece of memory of the length that is said with it.
                unsafe { self($($argument),*) }
            }
        }
    };
}

callable!(A);
callable!(A B);
callable!(A B C);
callable!(A B C D);
callable!(A B C D E);
callable!(A B C D E F);
callable!(A B C D E F G);
callable!(A B C D E F G H);
callable!(A B C D E F G H I);
callable!(A B C D E F G H I J);

/// A function of the table.
#[derive(Debug)]
pub struct Function {
    pub name: &'static str,
    pub kinds: &'static [Kind],
    call: fn(&CK_FUNCTION_LIST_3_2, &[usize]) -> CK_RV,
}

impl Function {
    pub fn call(&self, list: &CK_FUNCTION_LIST_3_2, words: &[usize]) -> CK_RV {
        (self.call)(list, words)
    }

    pub fn named(name: &str) -> &'static Self {
        let function = FUNCTIONS.iter().find(|function| function.name == name);
        function.expect("a function of this name")
    }

    /// What would sensibly come after it: the functions whose names begin with one of the returned words.
    pub fn followers(&self) -> Vec<&'static Self> {
        const FAMILIES: [(&str, &[&str]); 15] = [
            ("C_SignRecover", &["C_SignRecover", "C_Login"]),
            ("C_VerifyRecover", &["C_VerifyRecover"]),
            ("C_VerifySignature", &["C_VerifySignature"]),
            (
                "C_MessageSign",
                &["C_SignMessage", "C_MessageSignFinal", "C_Login"],
            ),
            ("C_SignMessage", &["C_SignMessage", "C_MessageSignFinal"]),
            (
                "C_MessageVerify",
                &["C_VerifyMessage", "C_MessageVerifyFinal"],
            ),
            (
                "C_VerifyMessage",
                &["C_VerifyMessage", "C_MessageVerifyFinal"],
            ),
            (
                "C_SignEncrypt",
                &["C_SignFinal", "C_EncryptFinal", "C_SignEncryptUpdate"],
            ),
            (
                "C_Sign",
                &["C_Sign", "C_Login", "C_EncryptInit", "C_SessionCancel"],
            ),
            ("C_Verify", &["C_Verify", "C_DecryptInit"]),
            (
                "C_Encrypt",
                &["C_Encrypt", "C_DigestEncryptUpdate", "C_SignEncryptUpdate"],
            ),
            ("C_Decrypt", &["C_Decrypt", "C_Login"]),
            (
                "C_Digest",
                &["C_Digest", "C_GetOperationState", "C_EncryptInit"],
            ),
            (
                "C_GetOperationState",
                &["C_SetOperationState", "C_DigestFinal"],
            ),
            ("C_FindObjects", &["C_FindObjects"]),
        ];
        let family = FAMILIES
            .iter()
            .find(|(name, _)| self.name.starts_with(name));
        let begins = |function: &&Self| {
            family
                .is_some_and(|(_, names)| names.iter().any(|name| function.name.starts_with(name)))
        };
        FUNCTIONS.iter().filter(begins).collect()
    }
}

macro_rules! functions {
    ($($name:ident: $($kind:expr),*;)*) => {
        /// In the order of the table.
        pub static FUNCTIONS: &[Function] = {
            use Kind::*;
            use cryptoki_sys::*;
            &[$(Function {
                name: stringify!($name),
                kinds: &[$($kind),*],
                call: |list, words| list.$name.expect("every slot of the table is filled").call(words),
            }),*]
        };
    };
}

functions! {
    C_Initialize: InitializeArgs;
    C_Finalize: Reserved;
    C_GetInfo: Struct(size_of::<CK_INFO>());
    C_GetFunctionList: Struct(8);
    C_GetSlotList: Bool, List(8);
    C_GetSlotInfo: Slot, Struct(size_of::<CK_SLOT_INFO>());
    C_GetTokenInfo: Slot, Struct(size_of::<CK_TOKEN_INFO>());
    C_GetMechanismList: Slot, List(8);
    C_GetMechanismInfo: Slot, MechanismType, Struct(size_of::<CK_MECHANISM_INFO>());
    C_InitToken: Slot, ImpossiblePin, Label;
    C_InitPIN: Session, ImpossiblePin;
    C_SetPIN: Session, ImpossiblePin, ImpossiblePin;
    C_OpenSession: Slot, SessionFlags, Opaque, Opaque, NewSession;
    C_CloseSession: Session;
    C_CloseAllSessions: Slot;
    C_GetSessionInfo: Session, Struct(size_of::<CK_SESSION_INFO>());
    C_GetOperationState: Session, Output;
    C_SetOperationState: Session, Input, Object, Object;
    C_Login: Session, User, Pin;
    C_Logout: Session;
    C_CreateObject: Session, Template, NewObject;
    C_CopyObject: Session, Object, Template, NewObject;
    C_DestroyObject: Session, Object;
    C_GetObjectSize: Session, Object, Struct(8);
    C_GetAttributeValue: Session, Object, Attributes;
    C_SetAttributeValue: Session, Object, Template;
    C_FindObjectsInit: Session, Template;
    C_FindObjects: Session, Found;
    C_FindObjectsFinal: Session;
    C_EncryptInit: Session, Mechanism, Object;
    C_Encrypt: Session, Input, Output;
    C_EncryptUpdate: Session, Input, Output;
    C_EncryptFinal: Session, Output;
    C_DecryptInit: Session, Mechanism, Object;
    C_Decrypt: Session, Input, Output;
    C_DecryptUpdate: Session, Input, Output;
    C_DecryptFinal: Session, Output;
    C_DigestInit: Session, Mechanism;
    C_Digest: Session, Input, Output;
    C_DigestUpdate: Session, Input;
    C_DigestKey: Session, Object;
    C_DigestFinal: Session, Output;
    C_SignInit: Session, Mechanism, Object;
    C_Sign: Session, Input, Output;
    C_SignUpdate: Session, Input;
    C_SignFinal: Session, Output;
    C_SignRecoverInit: Session, Mechanism, Object;
    C_SignRecover: Session, Input, Output;
    C_VerifyInit: Session, Mechanism, Object;
    C_Verify: Session, Input, Input;
    C_VerifyUpdate: Session, Input;
    C_VerifyFinal: Session, Input;
    C_VerifyRecoverInit: Session, Mechanism, Object;
    C_VerifyRecover: Session, Input, Output;
    C_DigestEncryptUpdate: Session, Input, Output;
    C_DecryptDigestUpdate: Session, Input, Output;
    C_SignEncryptUpdate: Session, Input, Output;
    C_DecryptVerifyUpdate: Session, Input, Output;
    C_GenerateKey: Session, Mechanism, Template, NewObject;
    C_GenerateKeyPair: Session, Mechanism, Template, Template, NewObject, NewObject;
    C_WrapKey: Session, Mechanism, Object, Object, Output;
    C_UnwrapKey: Session, Mechanism, Object, Input, Template, NewObject;
    C_DeriveKey: Session, Mechanism, Object, Template, NewObject;
    C_SeedRandom: Session, Input;
    C_GenerateRandom: Session, Random;
    C_GetFunctionStatus: Session;
    C_CancelFunction: Session;
    C_WaitForSlotEvent: WaitFlags, Struct(8), Reserved;
    C_GetInterfaceList: List(size_of::<CK_INTERFACE>());
    C_GetInterface: Text, Version, Struct(8), Number;
    C_LoginUser: Session, User, Pin, Input;
    C_SessionCancel: Session, Number;
    C_MessageEncryptInit: Session, Mechanism, Object;
    C_EncryptMessage: Session, Parameter, Input, Input, Output;
    C_EncryptMessageBegin: Session, Parameter, Input;
    C_EncryptMessageNext: Session, Parameter, Input, Output, Number;
    C_MessageEncryptFinal: Session;
    C_MessageDecryptInit: Session, Mechanism, Object;
    C_DecryptMessage: Session, Parameter, Input, Input, Output;
    C_DecryptMessageBegin: Session, Parameter, Input;
    C_DecryptMessageNext: Session, Parameter, Input, Output, Number;
    C_MessageDecryptFinal: Session;
    C_MessageSignInit: Session, Mechanism, Object;
    C_SignMessage: Session, Parameter, Input, Output;
    C_SignMessageBegin: Session, Parameter;
    C_SignMessageNext: Session, Parameter, Input, Output;
    C_MessageSignFinal: Session;
    C_MessageVerifyInit: Session, Mechanism, Object;
    C_VerifyMessage: Session, Parameter, Input, Input;
    C_VerifyMessageBegin: Session, Parameter;
    C_VerifyMessageNext: Session, Parameter, Input, Input;
    C_MessageVerifyFinal: Session;
    C_EncapsulateKey: Session, Mechanism, Object, Template, Output, NewObject;
    C_DecapsulateKey: Session, Mechanism, Object, Template, Input, NewObject;
    C_VerifySignatureInit: Session, Mechanism, Object, Input;
    C_VerifySignature: Session, Input;
    C_VerifySignatureUpdate: Session, Input;
    C_VerifySignatureFinal: Session;
    C_GetSessionValidationFlags: Session, Number, Struct(8);
    C_AsyncComplete: Session, Text, Struct(size_of::<CK_ASYNC_DATA>());
    C_AsyncGetID: Session, Text, Struct(8);
    C_AsyncJoin: Session, Text, Number, Random;
    C_WrapKeyAuthenticated: Session, Mechanism, Object, Object, Input, Output;
    C_UnwrapKeyAuthenticated: Session, Mechanism, Object, Input, Template, Input, NewObject;
}
