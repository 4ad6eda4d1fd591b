//! The C faces of all 68 functions of version 2.40, and their table.
//!
//! Each row names the C parameters and the one safe call behind them; a pointer becomes an [`In`] or [`Out`]
//! here and nowhere else.

use cryptoki_sys::{
    CK_ATTRIBUTE, CK_BBOOL, CK_BYTE, CK_C_INITIALIZE_ARGS, CK_FLAGS, CK_FUNCTION_LIST,
    CK_FUNCTION_LIST_PTR, CK_INFO, CK_MECHANISM, CK_MECHANISM_INFO, CK_MECHANISM_TYPE, CK_NOTIFY,
    CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE, CK_SESSION_INFO, CK_SLOT_ID, CK_SLOT_INFO,
    CK_TOKEN_INFO, CK_ULONG, CK_USER_TYPE, CK_UTF8CHAR, CK_VERSION, CK_VOID_PTR,
};

use crate::{
    entry,
    functions::{general, object, random, session, sign, slot_token, unsupported::refuse},
    pointer::{In, Out},
};

macro_rules! functions {
    ($(fn $name:ident($($parameter:tt: $type:ty),*) = |$module:ident| $call:expr;)*) => {
        $(
            #[allow(non_snake_case, unused_unsafe, clippy::multiple_unsafe_ops_per_block)]
            unsafe extern "C" fn $name($($parameter: $type),*) -> CK_RV {
                // SAFETY: the caller promises, as the standard demands, that each pointer is null or points to
                // what the other parameters say until the function returns.
                entry::call(stringify!($name), |$module| unsafe { $call })
            }
        )*

        /// Version 2.40 (PKCS #11 3.0, 3.6 pins the two bytes).
        static FUNCTIONS: CK_FUNCTION_LIST = CK_FUNCTION_LIST {
            version: CK_VERSION { major: 2, minor: 40 },
            C_Initialize: Some(C_Initialize),
            C_Finalize: Some(C_Finalize),
            C_GetFunctionList: Some(C_GetFunctionList),
            $($name: Some($name),)*
        };

        /// Every function of the table but the three that work without a module.
        #[cfg(test)]
        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

functions! {
    fn C_GetInfo(info: *mut CK_INFO) = |module| general::info(module, Out::new(info));
    fn C_GetSlotList(present: CK_BBOOL, list: *mut CK_SLOT_ID, count: *mut CK_ULONG) = |module| slot_token::slot_list(module, present, Out::new(list), Out::new(count));
    fn C_GetSlotInfo(slot: CK_SLOT_ID, info: *mut CK_SLOT_INFO) = |module| slot_token::slot_info(module, slot, Out::new(info));
    fn C_GetTokenInfo(slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO) = |module| slot_token::token_info(module, slot, Out::new(info));
    fn C_GetMechanismList(slot: CK_SLOT_ID, list: *mut CK_MECHANISM_TYPE, count: *mut CK_ULONG) = |module| slot_token::mechanism_list(module, slot, Out::new(list), Out::new(count));
    fn C_GetMechanismInfo(slot: CK_SLOT_ID, kind: CK_MECHANISM_TYPE, info: *mut CK_MECHANISM_INFO) = |module| slot_token::mechanism_info(module, slot, kind, Out::new(info));
    fn C_InitToken(_: CK_SLOT_ID, _: *mut CK_UTF8CHAR, _: CK_ULONG, _: *mut CK_UTF8CHAR) = |module| refuse(module, "C_InitToken");
    fn C_InitPIN(_: CK_SESSION_HANDLE, _: *mut CK_UTF8CHAR, _: CK_ULONG) = |module| refuse(module, "C_InitPIN");
    fn C_SetPIN(_: CK_SESSION_HANDLE, _: *mut CK_UTF8CHAR, _: CK_ULONG, _: *mut CK_UTF8CHAR, _: CK_ULONG) = |module| refuse(module, "C_SetPIN");
    fn C_OpenSession(slot: CK_SLOT_ID, flags: CK_FLAGS, _: CK_VOID_PTR, _: CK_NOTIFY, session: *mut CK_SESSION_HANDLE) = |module| session::open(module, slot, flags, Out::new(session));
    fn C_CloseSession(session: CK_SESSION_HANDLE) = |module| session::close(module, session);
    fn C_CloseAllSessions(slot: CK_SLOT_ID) = |module| session::close_all(module, slot);
    fn C_GetSessionInfo(session: CK_SESSION_HANDLE, info: *mut CK_SESSION_INFO) = |module| session::info(module, session, Out::new(info));
    fn C_GetOperationState(_: CK_SESSION_HANDLE, _: *mut CK_BYTE, _: *mut CK_ULONG) = |module| refuse(module, "C_GetOperationState");
    fn C_SetOperationState(_: CK_SESSION_HANDLE, _: *mut CK_BYTE, _: CK_ULONG, _: CK_OBJECT_HANDLE, _: CK_OBJECT_HANDLE) = |module| refuse(module, "C_SetOperationState");
    fn C_Login(session: CK_SESSION_HANDLE, user: CK_USER_TYPE, pin: *mut CK_UTF8CHAR, len: CK_ULONG) = |module| session::login(module, session, user, In::new(pin.cast_const()), len);
    fn C_Logout(session: CK_SESSION_HANDLE) = |module| session::logout(module, session);
    fn C_CreateObject(_: CK_SESSION_HANDLE, _: *mut CK_ATTRIBUTE, _: CK_ULONG, _: *mut CK_OBJECT_HANDLE) = |module| refuse(module, "C_CreateObject");
    fn C_CopyObject(_: CK_SESSION_HANDLE, _: CK_OBJECT_HANDLE, _: *mut CK_ATTRIBUTE, _: CK_ULONG, _: *mut CK_OBJECT_HANDLE) = |module| refuse(module, "C_CopyObject");
    fn C_DestroyObject(_: CK_SESSION_HANDLE, _: CK_OBJECT_HANDLE) = |module| refuse(module, "C_DestroyObject");
    fn C_GetObjectSize(session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE, size: *mut CK_ULONG) = |module| object::size(module, session, object, Out::new(size));
    fn C_GetAttributeValue(session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG) = |module| object::attribute_value(module, session, object, Out::new(template), count);
    fn C_SetAttributeValue(_: CK_SESSION_HANDLE, _: CK_OBJECT_HANDLE, _: *mut CK_ATTRIBUTE, _: CK_ULONG) = |module| refuse(module, "C_SetAttributeValue");
    fn C_FindObjectsInit(session: CK_SESSION_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG) = |module| object::find_init(module, session, In::new(template.cast_const()), count);
    fn C_FindObjects(session: CK_SESSION_HANDLE, list: *mut CK_OBJECT_HANDLE, max: CK_ULONG, count: *mut CK_ULONG) = |module| object::find(module, session, Out::new(list), max, Out::new(count));
    fn C_FindObjectsFinal(session: CK_SESSION_HANDLE) = |module| object::find_final(module, session);
    fn C_EncryptInit(_: CK_SESSION_HANDLE, _: *mut CK_MECHANISM, _: CK_OBJECT_HANDLE) = |module| refuse(module, "C_EncryptInit");
    fn C_Encrypt(_: CK_SESSION_HANDLE, _: *mut CK_BYTE, _: CK_ULONG, _: *mut CK_BYTE, _: *mut CK_ULONG) = |module| refuse(module, "C_Encrypt");
    fn C_EncryptUpdate(_: CK_SESSION_HANDLE, _: *mut CK_BYTE, _: CK_ULONG, _: *mut CK_BYTE, _: *mut CK_ULONG) = |module| refuse(module, "C_EncryptUpdate");
    fn C_EncryptFinal(_: CK_SESSION_HANDLE, _: *mut CK_BYTE, _: *mut CK_ULONG) = |module| refuse(module, "C_EncryptFinal");
    fn C_DecryptInit(_: CK_SESSION_HANDLE, _: *mut CK_MECHANISM, _: CK_OBJECT_HANDLE) = |module| refuse(module, "C_DecryptInit");
    fn C_Decrypt(_: CK_SESSION_HANDLE, _: *mut CK_BYTE, _: CK_ULONG, _: *mut CK_BYTE, _: *mut CK_ULONG) = |module| refuse(module, "C_Decrypt");
    fn C_DecryptUpdate(_: CK_SESSION_HANDLE, _: *mut CK_BYTE, _: CK_ULONG, _: *mut CK_BYTE, _: *mut CK_ULONG) = |module| refuse(module, "C_DecryptUpdate");
    fn C_DecryptFinal(_: CK_SESSION_HANDLE, _: *mut CK_BYTE, _: *mut CK_ULONG) = |module| refuse(module, "C_DecryptFinal");
    fn C_DigestInit(_: CK_SESSION_HANDLE, _: *mut CK_MECHANISM) = |module| refuse(module, "C_DigestInit");
    fn C_Digest(_: CK_SESSION_HANDLE, _: *mut CK_BYTE, _: CK_ULONG, _: *mut CK_BYTE, _: *mut CK_ULONG) = |module| refuse(module, "C_Digest");
    fn C_DigestUpdate(_: CK_SESSION_HANDLE, _: *mut CK_BYTE, _: CK_ULONG) = |module| refuse(module, "C_DigestUpdate");
    fn C_DigestKey(_: CK_SESSION_HANDLE, _: CK_OBJECT_HANDLE) = |module| refuse(module, "C_DigestKey");
    fn C_DigestFinal(_: CK_SESSION_HANDLE, _: *mut CK_BYTE, _: *mut CK_ULONG) = |module| refuse(module, "C_DigestFinal");
    fn C_SignInit(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE) = |module| sign::init(module, session, In::new(mechanism.cast_const()), key);
    fn C_Sign(session: CK_SESSION_HANDLE, data: *mut CK_BYTE, len: CK_ULONG, signature: *mut CK_BYTE, signature_len: *mut CK_ULONG) = |module| sign::sign(module, session, In::new(data.cast_const()), len, Out::new(signature), Out::new(signature_len));
    fn C_SignUpdate(session: CK_SESSION_HANDLE, part: *mut CK_BYTE, len: CK_ULONG) = |module| sign::update(module, session, In::new(part.cast_const()), len);
    fn C_SignFinal(session: CK_SESSION_HANDLE, signature: *mut CK_BYTE, signature_len: *mut CK_ULONG) = |module| sign::finish_parts(module, session, Out::new(signature), Out::new(signature_len));
    fn C_SignRecoverInit(_: CK_SESSION_HANDLE, _: *mut CK_MECHANISM, _: CK_OBJECT_HANDLE) = |module| refuse(module, "C_SignRecoverInit");
    fn C_SignRecover(_: CK_SESSION_HANDLE, _: *mut CK_BYTE, _: CK_ULONG, _: *mut CK_BYTE, _: *mut CK_ULONG) = |module| refuse(module, "C_SignRecover");
    fn C_VerifyInit(_: CK_SESSION_HANDLE, _: *mut CK_MECHANISM, _: CK_OBJECT_HANDLE) = |module| refuse(module, "C_VerifyInit");
    fn C_Verify(_: CK_SESSION_HANDLE, _: *mut CK_BYTE, _: CK_ULONG, _: *mut CK_BYTE, _: CK_ULONG) = |module| refuse(module, "C_Verify");
    fn C_VerifyUpdate(_: CK_SESSION_HANDLE, _: *mut CK_BYTE, _: CK_ULONG) = |module| refuse(module, "C_VerifyUpdate");
    fn C_VerifyFinal(_: CK_SESSION_HANDLE, _: *mut CK_BYTE, _: CK_ULONG) = |module| refuse(module, "C_VerifyFinal");
    fn C_VerifyRecoverInit(_: CK_SESSION_HANDLE, _: *mut CK_MECHANISM, _: CK_OBJECT_HANDLE) = |module| refuse(module, "C_VerifyRecoverInit");
    fn C_VerifyRecover(_: CK_SESSION_HANDLE, _: *mut CK_BYTE, _: CK_ULONG, _: *mut CK_BYTE, _: *mut CK_ULONG) = |module| refuse(module, "C_VerifyRecover");
    fn C_DigestEncryptUpdate(_: CK_SESSION_HANDLE, _: *mut CK_BYTE, _: CK_ULONG, _: *mut CK_BYTE, _: *mut CK_ULONG) = |module| refuse(module, "C_DigestEncryptUpdate");
    fn C_DecryptDigestUpdate(_: CK_SESSION_HANDLE, _: *mut CK_BYTE, _: CK_ULONG, _: *mut CK_BYTE, _: *mut CK_ULONG) = |module| refuse(module, "C_DecryptDigestUpdate");
    fn C_SignEncryptUpdate(_: CK_SESSION_HANDLE, _: *mut CK_BYTE, _: CK_ULONG, _: *mut CK_BYTE, _: *mut CK_ULONG) = |module| refuse(module, "C_SignEncryptUpdate");
    fn C_DecryptVerifyUpdate(_: CK_SESSION_HANDLE, _: *mut CK_BYTE, _: CK_ULONG, _: *mut CK_BYTE, _: *mut CK_ULONG) = |module| refuse(module, "C_DecryptVerifyUpdate");
    fn C_GenerateKey(_: CK_SESSION_HANDLE, _: *mut CK_MECHANISM, _: *mut CK_ATTRIBUTE, _: CK_ULONG, _: *mut CK_OBJECT_HANDLE) = |module| refuse(module, "C_GenerateKey");
    fn C_GenerateKeyPair(_: CK_SESSION_HANDLE, _: *mut CK_MECHANISM, _: *mut CK_ATTRIBUTE, _: CK_ULONG, _: *mut CK_ATTRIBUTE, _: CK_ULONG, _: *mut CK_OBJECT_HANDLE, _: *mut CK_OBJECT_HANDLE) = |module| refuse(module, "C_GenerateKeyPair");
    fn C_WrapKey(_: CK_SESSION_HANDLE, _: *mut CK_MECHANISM, _: CK_OBJECT_HANDLE, _: CK_OBJECT_HANDLE, _: *mut CK_BYTE, _: *mut CK_ULONG) = |module| refuse(module, "C_WrapKey");
    fn C_UnwrapKey(_: CK_SESSION_HANDLE, _: *mut CK_MECHANISM, _: CK_OBJECT_HANDLE, _: *mut CK_BYTE, _: CK_ULONG, _: *mut CK_ATTRIBUTE, _: CK_ULONG, _: *mut CK_OBJECT_HANDLE) = |module| refuse(module, "C_UnwrapKey");
    fn C_DeriveKey(_: CK_SESSION_HANDLE, _: *mut CK_MECHANISM, _: CK_OBJECT_HANDLE, _: *mut CK_ATTRIBUTE, _: CK_ULONG, _: *mut CK_OBJECT_HANDLE) = |module| refuse(module, "C_DeriveKey");
    fn C_SeedRandom(session: CK_SESSION_HANDLE, _: *mut CK_BYTE, _: CK_ULONG) = |module| random::none(module, session);
    fn C_GenerateRandom(session: CK_SESSION_HANDLE, _: *mut CK_BYTE, _: CK_ULONG) = |module| random::none(module, session);
    fn C_GetFunctionStatus(session: CK_SESSION_HANDLE) = |module| session::not_parallel(module, session);
    fn C_CancelFunction(session: CK_SESSION_HANDLE) = |module| session::not_parallel(module, session);
    fn C_WaitForSlotEvent(flags: CK_FLAGS, slot: *mut CK_SLOT_ID, reserved: CK_VOID_PTR) = |module| slot_token::wait_for_slot_event(module, flags, Out::new(slot), In::new(reserved.cast::<u8>().cast_const()));
}

#[allow(non_snake_case)]
unsafe extern "C" fn C_Initialize(arguments: CK_VOID_PTR) -> CK_RV {
    entry::guard("C_Initialize", || {
        // SAFETY: null, or a CK_C_INITIALIZE_ARGS as the standard demands.
        general::initialize(unsafe {
            In::new(arguments.cast::<CK_C_INITIALIZE_ARGS>().cast_const())
        })
    })
}

#[allow(non_snake_case)]
unsafe extern "C" fn C_Finalize(reserved: CK_VOID_PTR) -> CK_RV {
    entry::guard("C_Finalize", || general::finalize(reserved))
}

/// The module's one door: gives the table of all functions (PKCS #11 2.40, 5.4).
///
/// # Safety
/// `list` is null, which is CKR_ARGUMENTS_BAD, or where a pointer may be written.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut CK_FUNCTION_LIST_PTR) -> CK_RV {
    entry::guard("C_GetFunctionList", || {
        // SAFETY: the caller's promise, above.
        let list = unsafe { Out::new(list) };
        // The table is never written; the type of the standard has no const.
        list.put((&raw const FUNCTIONS).cast_mut())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::functions::unsupported::UNSUPPORTED;

    #[test]
    fn the_table_has_all_68_functions_of_version_2_40() {
        assert_eq!((FUNCTIONS.version.major, FUNCTIONS.version.minor), (2, 40));
        assert_eq!(NAMES.len() + 3, 68);
        assert_eq!(
            size_of::<CK_FUNCTION_LIST>(),
            size_of::<usize>() * 69,
            "68 pointers behind the version"
        );
    }

    #[test]
    fn unsupported_functions_are_listed_once_with_a_reason() {
        for (name, reason) in UNSUPPORTED {
            assert!(NAMES.contains(name), "{name} is no function");
            assert!(!reason.is_empty(), "{name}");
        }
        let mut names: Vec<_> = UNSUPPORTED.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), UNSUPPORTED.len());
    }
}
