//! All 104 functions of version 3.2, in the standard's order, under the version that added them.
//!
//! Each row has the C parameters of a function and one safe call. Only these rows turn the pointers of the parameters into an
//! [`Input`] or [`Output`].

use cryptoki_sys::{
    CK_ASYNC_DATA, CK_ATTRIBUTE, CK_BBOOL, CK_BYTE, CK_C_INITIALIZE_ARGS, CK_FLAGS,
    CK_FUNCTION_LIST_PTR, CK_INFO, CK_INTERFACE, CK_INTERFACE_PTR, CK_MECHANISM, CK_MECHANISM_INFO,
    CK_MECHANISM_TYPE, CK_NOTIFY, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_SESSION_INFO,
    CK_SESSION_VALIDATION_FLAGS_TYPE, CK_SLOT_ID, CK_SLOT_INFO, CK_TOKEN_INFO, CK_ULONG,
    CK_USER_TYPE, CK_UTF8CHAR, CK_VERSION, CK_VOID_PTR,
};

use claviger_token::{DecryptOperation, EncryptOperation};

use super::{
    entry_points::functions,
    interfaces::{self, Interface},
};
use crate::{
    functions::{
        administration, cipher, digest, dual, general, key,
        message::{self, MessageParameter},
        object, random, session, sign, slot_token,
        unsupported::refuse,
        verify,
    },
    pointer::{Input, Output},
};

/// One interface for each table below, the default first.
static INTERFACES: [Interface; 3] = [
    Interface::new(V3_2.version, &V3_2),
    Interface::new(V3_0.version, &V3_0),
    Interface::new(V2_40.version, &V2_40),
];

functions! {
    V2_40 {
        fn C_Initialize(arguments: CK_VOID_PTR) = |_| general::initialize(Input::new(arguments.cast::<CK_C_INITIALIZE_ARGS>().cast_const()));
        fn C_Finalize(reserved: CK_VOID_PTR) = |_| general::finalize(reserved);
        fn C_GetInfo(info: *mut CK_INFO) = |module| general::info(module, Output::new(info));
        fn C_GetFunctionList(list: *mut CK_FUNCTION_LIST_PTR) = |_| interfaces::function_list(&V2_40, Output::new(list));
        fn C_GetSlotList(present: CK_BBOOL, list: *mut CK_SLOT_ID, count: *mut CK_ULONG) = |module| slot_token::slot_list(module, present, Output::new(list), Output::new(count));
        fn C_GetSlotInfo(slot: CK_SLOT_ID, info: *mut CK_SLOT_INFO) = |module| slot_token::slot_info(module, slot, Output::new(info));
        fn C_GetTokenInfo(slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO) = |module| slot_token::token_info(module, slot, Output::new(info));
        fn C_GetMechanismList(slot: CK_SLOT_ID, list: *mut CK_MECHANISM_TYPE, count: *mut CK_ULONG) = |module| slot_token::mechanism_list(module, slot, Output::new(list), Output::new(count));
        fn C_GetMechanismInfo(slot: CK_SLOT_ID, kind: CK_MECHANISM_TYPE, info: *mut CK_MECHANISM_INFO) = |module| slot_token::mechanism_info(module, slot, kind, Output::new(info));
        fn C_InitToken(slot: CK_SLOT_ID, pin: *mut CK_UTF8CHAR, len: CK_ULONG, label: *mut CK_UTF8CHAR) = |module| refuse(module, "C_InitToken", (slot, pin, len, label));
        fn C_InitPIN(session: CK_SESSION_HANDLE, pin: *mut CK_UTF8CHAR, len: CK_ULONG) = |module| administration::init_pin(module, session, (Input::new(pin.cast_const()), len));
        fn C_SetPIN(session: CK_SESSION_HANDLE, old: *mut CK_UTF8CHAR, old_len: CK_ULONG, new: *mut CK_UTF8CHAR, new_len: CK_ULONG) = |module| administration::set_pin(module, session, (Input::new(old.cast_const()), old_len), (Input::new(new.cast_const()), new_len));
        fn C_OpenSession(slot: CK_SLOT_ID, flags: CK_FLAGS, _application: CK_VOID_PTR, _notify: CK_NOTIFY, session: *mut CK_SESSION_HANDLE) = |module| session::open(module, slot, flags, Output::new(session));
        fn C_CloseSession(session: CK_SESSION_HANDLE) = |module| session::close(module, session);
        fn C_CloseAllSessions(slot: CK_SLOT_ID) = |module| session::close_all(module, slot);
        fn C_GetSessionInfo(session: CK_SESSION_HANDLE, info: *mut CK_SESSION_INFO) = |module| session::info(module, session, Output::new(info));
        fn C_GetOperationState(session: CK_SESSION_HANDLE, state: *mut CK_BYTE, state_len: *mut CK_ULONG) = |module| digest::get_state(module, session, Output::new(state), Output::new(state_len));
        fn C_SetOperationState(session: CK_SESSION_HANDLE, state: *mut CK_BYTE, len: CK_ULONG, encryption_key: CK_OBJECT_HANDLE, authentication_key: CK_OBJECT_HANDLE) = |module| digest::set_state(module, session, Input::new(state.cast_const()), len, encryption_key, authentication_key);
        fn C_Login(session: CK_SESSION_HANDLE, user: CK_USER_TYPE, pin: *mut CK_UTF8CHAR, len: CK_ULONG) = |module| session::login(module, session, user, Input::new(pin.cast_const()), len);
        fn C_Logout(session: CK_SESSION_HANDLE) = |module| session::logout(module, session);
        fn C_CreateObject(session: CK_SESSION_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG, object: *mut CK_OBJECT_HANDLE) = |module| object::create(module, session, Input::new(template.cast_const()), count, Output::new(object));
        fn C_CopyObject(session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG, copy: *mut CK_OBJECT_HANDLE) = |module| object::copy(module, session, object, Input::new(template.cast_const()), count, Output::new(copy));
        fn C_DestroyObject(session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE) = |module| object::destroy(module, session, object);
        fn C_GetObjectSize(session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE, size: *mut CK_ULONG) = |module| object::size(module, session, object, Output::new(size));
        fn C_GetAttributeValue(session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG) = |module| object::attribute_value(module, session, object, Output::new(template), count);
        fn C_SetAttributeValue(session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG) = |module| object::set_attribute_value(module, session, object, Input::new(template.cast_const()), count);
        fn C_FindObjectsInit(session: CK_SESSION_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG) = |module| object::find_init(module, session, Input::new(template.cast_const()), count);
        fn C_FindObjects(session: CK_SESSION_HANDLE, list: *mut CK_OBJECT_HANDLE, max: CK_ULONG, count: *mut CK_ULONG) = |module| object::find(module, session, Output::new(list), max, Output::new(count));
        fn C_FindObjectsFinal(session: CK_SESSION_HANDLE) = |module| object::find_final(module, session);
        fn C_EncryptInit(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE) = |module| cipher::encrypt_init(module, session, Input::new(mechanism.cast_const()), key);
        fn C_Encrypt(session: CK_SESSION_HANDLE, data: *mut CK_BYTE, len: CK_ULONG, encrypted: *mut CK_BYTE, encrypted_len: *mut CK_ULONG) = |module| cipher::single::<EncryptOperation>(module, session, Input::new(data.cast_const()), len, Output::new(encrypted), Output::new(encrypted_len));
        fn C_EncryptUpdate(session: CK_SESSION_HANDLE, part: *mut CK_BYTE, len: CK_ULONG, encrypted: *mut CK_BYTE, encrypted_len: *mut CK_ULONG) = |module| cipher::update::<EncryptOperation>(module, session, Input::new(part.cast_const()), len, Output::new(encrypted), Output::new(encrypted_len));
        fn C_EncryptFinal(session: CK_SESSION_HANDLE, encrypted: *mut CK_BYTE, encrypted_len: *mut CK_ULONG) = |module| cipher::finish::<EncryptOperation>(module, session, Output::new(encrypted), Output::new(encrypted_len));
        fn C_DecryptInit(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE) = |module| cipher::decrypt_init(module, session, Input::new(mechanism.cast_const()), key);
        fn C_Decrypt(session: CK_SESSION_HANDLE, encrypted: *mut CK_BYTE, len: CK_ULONG, data: *mut CK_BYTE, data_len: *mut CK_ULONG) = |module| cipher::single::<DecryptOperation>(module, session, Input::new(encrypted.cast_const()), len, Output::new(data), Output::new(data_len));
        fn C_DecryptUpdate(session: CK_SESSION_HANDLE, encrypted: *mut CK_BYTE, len: CK_ULONG, part: *mut CK_BYTE, part_len: *mut CK_ULONG) = |module| cipher::update::<DecryptOperation>(module, session, Input::new(encrypted.cast_const()), len, Output::new(part), Output::new(part_len));
        fn C_DecryptFinal(session: CK_SESSION_HANDLE, part: *mut CK_BYTE, part_len: *mut CK_ULONG) = |module| cipher::finish::<DecryptOperation>(module, session, Output::new(part), Output::new(part_len));
        fn C_DigestInit(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM) = |module| digest::init(module, session, Input::new(mechanism.cast_const()));
        fn C_Digest(session: CK_SESSION_HANDLE, data: *mut CK_BYTE, len: CK_ULONG, digest: *mut CK_BYTE, digest_len: *mut CK_ULONG) = |module| digest::single(module, session, Input::new(data.cast_const()), len, Output::new(digest), Output::new(digest_len));
        fn C_DigestUpdate(session: CK_SESSION_HANDLE, part: *mut CK_BYTE, len: CK_ULONG) = |module| digest::update(module, session, Input::new(part.cast_const()), len);
        fn C_DigestKey(session: CK_SESSION_HANDLE, key: CK_OBJECT_HANDLE) = |module| digest::key(module, session, key);
        fn C_DigestFinal(session: CK_SESSION_HANDLE, digest: *mut CK_BYTE, digest_len: *mut CK_ULONG) = |module| digest::finish(module, session, Output::new(digest), Output::new(digest_len));
        fn C_SignInit(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE) = |module| sign::init(module, session, Input::new(mechanism.cast_const()), key);
        fn C_Sign(session: CK_SESSION_HANDLE, data: *mut CK_BYTE, len: CK_ULONG, signature: *mut CK_BYTE, signature_len: *mut CK_ULONG) = |module| sign::sign(module, session, Input::new(data.cast_const()), len, Output::new(signature), Output::new(signature_len));
        fn C_SignUpdate(session: CK_SESSION_HANDLE, part: *mut CK_BYTE, len: CK_ULONG) = |module| sign::update(module, session, Input::new(part.cast_const()), len);
        fn C_SignFinal(session: CK_SESSION_HANDLE, signature: *mut CK_BYTE, signature_len: *mut CK_ULONG) = |module| sign::sign_final(module, session, Output::new(signature), Output::new(signature_len));
        fn C_SignRecoverInit(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE) = |module| sign::recover_init(module, session, Input::new(mechanism.cast_const()), key);
        fn C_SignRecover(session: CK_SESSION_HANDLE, data: *mut CK_BYTE, len: CK_ULONG, signature: *mut CK_BYTE, signature_len: *mut CK_ULONG) = |module| sign::sign_recover(module, session, Input::new(data.cast_const()), len, Output::new(signature), Output::new(signature_len));
        fn C_VerifyInit(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE) = |module| verify::init(module, session, Input::new(mechanism.cast_const()), key);
        fn C_Verify(session: CK_SESSION_HANDLE, data: *mut CK_BYTE, len: CK_ULONG, signature: *mut CK_BYTE, signature_len: CK_ULONG) = |module| verify::verify(module, session, Input::new(data.cast_const()), len, Input::new(signature.cast_const()), signature_len);
        fn C_VerifyUpdate(session: CK_SESSION_HANDLE, part: *mut CK_BYTE, len: CK_ULONG) = |module| verify::update(module, session, Input::new(part.cast_const()), len);
        fn C_VerifyFinal(session: CK_SESSION_HANDLE, signature: *mut CK_BYTE, signature_len: CK_ULONG) = |module| verify::finish(module, session, Input::new(signature.cast_const()), signature_len);
        fn C_VerifyRecoverInit(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE) = |module| verify::recover_init(module, session, Input::new(mechanism.cast_const()), key);
        fn C_VerifyRecover(session: CK_SESSION_HANDLE, signature: *mut CK_BYTE, len: CK_ULONG, data: *mut CK_BYTE, data_len: *mut CK_ULONG) = |module| verify::recover(module, session, Input::new(signature.cast_const()), len, Output::new(data), Output::new(data_len));
        fn C_DigestEncryptUpdate(session: CK_SESSION_HANDLE, part: *mut CK_BYTE, len: CK_ULONG, encrypted: *mut CK_BYTE, encrypted_len: *mut CK_ULONG) = |module| dual::digest_encrypt(module, session, Input::new(part.cast_const()), len, Output::new(encrypted), Output::new(encrypted_len));
        fn C_DecryptDigestUpdate(session: CK_SESSION_HANDLE, encrypted: *mut CK_BYTE, len: CK_ULONG, part: *mut CK_BYTE, part_len: *mut CK_ULONG) = |module| dual::decrypt_digest(module, session, Input::new(encrypted.cast_const()), len, Output::new(part), Output::new(part_len));
        fn C_SignEncryptUpdate(session: CK_SESSION_HANDLE, part: *mut CK_BYTE, len: CK_ULONG, encrypted: *mut CK_BYTE, encrypted_len: *mut CK_ULONG) = |module| dual::sign_encrypt(module, session, Input::new(part.cast_const()), len, Output::new(encrypted), Output::new(encrypted_len));
        fn C_DecryptVerifyUpdate(session: CK_SESSION_HANDLE, encrypted: *mut CK_BYTE, len: CK_ULONG, part: *mut CK_BYTE, part_len: *mut CK_ULONG) = |module| dual::decrypt_verify(module, session, Input::new(encrypted.cast_const()), len, Output::new(part), Output::new(part_len));
        fn C_GenerateKey(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, template: *mut CK_ATTRIBUTE, count: CK_ULONG, key: *mut CK_OBJECT_HANDLE) = |module| key::generate(module, session, Input::new(mechanism.cast_const()), Input::new(template.cast_const()), count, Output::new(key));
        fn C_GenerateKeyPair(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, public: *mut CK_ATTRIBUTE, public_count: CK_ULONG, private: *mut CK_ATTRIBUTE, private_count: CK_ULONG, public_key: *mut CK_OBJECT_HANDLE, private_key: *mut CK_OBJECT_HANDLE) = |module| administration::generate_key_pair(module, session, Input::new(mechanism.cast_const()), (Input::new(public.cast_const()), public_count), (Input::new(private.cast_const()), private_count), (Output::new(public_key), Output::new(private_key)));
        fn C_WrapKey(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, wrapping_key: CK_OBJECT_HANDLE, key: CK_OBJECT_HANDLE, wrapped: *mut CK_BYTE, wrapped_len: *mut CK_ULONG) = |module| key::wrap(module, session, Input::new(mechanism.cast_const()), wrapping_key, key, Output::new(wrapped), Output::new(wrapped_len));
        fn C_UnwrapKey(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, unwrapping_key: CK_OBJECT_HANDLE, wrapped: *mut CK_BYTE, len: CK_ULONG, template: *mut CK_ATTRIBUTE, count: CK_ULONG, key: *mut CK_OBJECT_HANDLE) = |module| key::unwrap(module, session, Input::new(mechanism.cast_const()), unwrapping_key, (Input::new(wrapped.cast_const()), len), (Input::new(template.cast_const()), count), Output::new(key));
        fn C_DeriveKey(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, base_key: CK_OBJECT_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG, key: *mut CK_OBJECT_HANDLE) = |module| key::derive(module, session, Input::new(mechanism.cast_const()), base_key, Input::new(template.cast_const()), count, Output::new(key));
        fn C_SeedRandom(session: CK_SESSION_HANDLE, seed: *mut CK_BYTE, len: CK_ULONG) = |module| random::seed(module, session, Input::new(seed.cast_const()), len);
        fn C_GenerateRandom(session: CK_SESSION_HANDLE, random: *mut CK_BYTE, len: CK_ULONG) = |module| random::generate(module, session, Output::new(random), len);
        fn C_GetFunctionStatus(session: CK_SESSION_HANDLE) = |module| session::not_parallel(module, session);
        fn C_CancelFunction(session: CK_SESSION_HANDLE) = |module| session::not_parallel(module, session);
        fn C_WaitForSlotEvent(flags: CK_FLAGS, slot: *mut CK_SLOT_ID, reserved: CK_VOID_PTR) = |module| slot_token::wait_for_slot_event(module, flags, Output::new(slot), Input::new(reserved.cast::<u8>().cast_const()));
    }
    V3_0 {
        fn C_GetInterfaceList(list: *mut CK_INTERFACE, count: *mut CK_ULONG) = |_| interfaces::list(&INTERFACES, Output::new(list), Output::new(count));
        fn C_GetInterface(name: *mut CK_UTF8CHAR, version: *mut CK_VERSION, interface: *mut CK_INTERFACE_PTR, flags: CK_FLAGS) = |_| interfaces::find(&INTERFACES, Input::new(name.cast_const()), Input::new(version.cast_const()), Output::new(interface), flags);
        fn C_LoginUser(session: CK_SESSION_HANDLE, user: CK_USER_TYPE, pin: *mut CK_UTF8CHAR, len: CK_ULONG, _name: *mut CK_UTF8CHAR, name_len: CK_ULONG) = |module| session::login_user(module, session, user, (Input::new(pin.cast_const()), len), name_len);
        fn C_SessionCancel(session: CK_SESSION_HANDLE, flags: CK_FLAGS) = |module| session::cancel(module, session, flags);
        fn C_MessageEncryptInit(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE) = |module| refuse(module, "C_MessageEncryptInit", (session, mechanism, key));
        fn C_EncryptMessage(session: CK_SESSION_HANDLE, parameter: CK_VOID_PTR, parameter_len: CK_ULONG, associated: *mut CK_BYTE, associated_len: CK_ULONG, data: *mut CK_BYTE, len: CK_ULONG, encrypted: *mut CK_BYTE, encrypted_len: *mut CK_ULONG) = |module| refuse(module, "C_EncryptMessage", (session, parameter, parameter_len, associated, associated_len, data, len, encrypted, encrypted_len));
        fn C_EncryptMessageBegin(session: CK_SESSION_HANDLE, parameter: CK_VOID_PTR, parameter_len: CK_ULONG, associated: *mut CK_BYTE, associated_len: CK_ULONG) = |module| refuse(module, "C_EncryptMessageBegin", (session, parameter, parameter_len, associated, associated_len));
        fn C_EncryptMessageNext(session: CK_SESSION_HANDLE, parameter: CK_VOID_PTR, parameter_len: CK_ULONG, part: *mut CK_BYTE, len: CK_ULONG, encrypted: *mut CK_BYTE, encrypted_len: *mut CK_ULONG, flags: CK_FLAGS) = |module| refuse(module, "C_EncryptMessageNext", (session, parameter, parameter_len, part, len, encrypted, encrypted_len, flags));
        fn C_MessageEncryptFinal(session: CK_SESSION_HANDLE) = |module| refuse(module, "C_MessageEncryptFinal", (session,));
        fn C_MessageDecryptInit(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE) = |module| refuse(module, "C_MessageDecryptInit", (session, mechanism, key));
        fn C_DecryptMessage(session: CK_SESSION_HANDLE, parameter: CK_VOID_PTR, parameter_len: CK_ULONG, associated: *mut CK_BYTE, associated_len: CK_ULONG, encrypted: *mut CK_BYTE, len: CK_ULONG, data: *mut CK_BYTE, data_len: *mut CK_ULONG) = |module| refuse(module, "C_DecryptMessage", (session, parameter, parameter_len, associated, associated_len, encrypted, len, data, data_len));
        fn C_DecryptMessageBegin(session: CK_SESSION_HANDLE, parameter: CK_VOID_PTR, parameter_len: CK_ULONG, associated: *mut CK_BYTE, associated_len: CK_ULONG) = |module| refuse(module, "C_DecryptMessageBegin", (session, parameter, parameter_len, associated, associated_len));
        fn C_DecryptMessageNext(session: CK_SESSION_HANDLE, parameter: CK_VOID_PTR, parameter_len: CK_ULONG, encrypted: *mut CK_BYTE, len: CK_ULONG, part: *mut CK_BYTE, part_len: *mut CK_ULONG, flags: CK_FLAGS) = |module| refuse(module, "C_DecryptMessageNext", (session, parameter, parameter_len, encrypted, len, part, part_len, flags));
        fn C_MessageDecryptFinal(session: CK_SESSION_HANDLE) = |module| refuse(module, "C_MessageDecryptFinal", (session,));
        fn C_MessageSignInit(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE) = |module| message::sign_init(module, session, Input::new(mechanism.cast_const()), key);
        fn C_SignMessage(session: CK_SESSION_HANDLE, parameter: CK_VOID_PTR, parameter_len: CK_ULONG, data: *mut CK_BYTE, len: CK_ULONG, signature: *mut CK_BYTE, signature_len: *mut CK_ULONG) = |module| message::sign(module, session, MessageParameter(Input::new(parameter.cast::<u8>().cast_const()), parameter_len), Input::new(data.cast_const()), len, Output::new(signature), Output::new(signature_len));
        fn C_SignMessageBegin(session: CK_SESSION_HANDLE, parameter: CK_VOID_PTR, parameter_len: CK_ULONG) = |module| message::sign_begin(module, session, MessageParameter(Input::new(parameter.cast::<u8>().cast_const()), parameter_len));
        fn C_SignMessageNext(session: CK_SESSION_HANDLE, parameter: CK_VOID_PTR, parameter_len: CK_ULONG, part: *mut CK_BYTE, len: CK_ULONG, signature: *mut CK_BYTE, signature_len: *mut CK_ULONG) = |module| message::sign_next(module, session, MessageParameter(Input::new(parameter.cast::<u8>().cast_const()), parameter_len), Input::new(part.cast_const()), len, Output::new(signature), Output::new(signature_len));
        fn C_MessageSignFinal(session: CK_SESSION_HANDLE) = |module| message::sign_final(module, session);
        fn C_MessageVerifyInit(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE) = |module| message::verify_init(module, session, Input::new(mechanism.cast_const()), key);
        fn C_VerifyMessage(session: CK_SESSION_HANDLE, parameter: CK_VOID_PTR, parameter_len: CK_ULONG, data: *mut CK_BYTE, len: CK_ULONG, signature: *mut CK_BYTE, signature_len: CK_ULONG) = |module| message::verify(module, session, MessageParameter(Input::new(parameter.cast::<u8>().cast_const()), parameter_len), Input::new(data.cast_const()), len, Input::new(signature.cast_const()), signature_len);
        fn C_VerifyMessageBegin(session: CK_SESSION_HANDLE, parameter: CK_VOID_PTR, parameter_len: CK_ULONG) = |module| message::verify_begin(module, session, MessageParameter(Input::new(parameter.cast::<u8>().cast_const()), parameter_len));
        fn C_VerifyMessageNext(session: CK_SESSION_HANDLE, parameter: CK_VOID_PTR, parameter_len: CK_ULONG, part: *mut CK_BYTE, len: CK_ULONG, signature: *mut CK_BYTE, signature_len: CK_ULONG) = |module| message::verify_next(module, session, MessageParameter(Input::new(parameter.cast::<u8>().cast_const()), parameter_len), Input::new(part.cast_const()), len, Input::new(signature.cast_const()), signature_len);
        fn C_MessageVerifyFinal(session: CK_SESSION_HANDLE) = |module| message::verify_final(module, session);
    }
    V3_2 {
        fn C_EncapsulateKey(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, public_key: CK_OBJECT_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG, ciphertext: *mut CK_BYTE, ciphertext_len: *mut CK_ULONG, key: *mut CK_OBJECT_HANDLE) = |module| refuse(module, "C_EncapsulateKey", (session, mechanism, public_key, template, count, ciphertext, ciphertext_len, key));
        fn C_DecapsulateKey(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, private_key: CK_OBJECT_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG, ciphertext: *mut CK_BYTE, len: CK_ULONG, key: *mut CK_OBJECT_HANDLE) = |module| refuse(module, "C_DecapsulateKey", (session, mechanism, private_key, template, count, ciphertext, len, key));
        fn C_VerifySignatureInit(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE, signature: *mut CK_BYTE, len: CK_ULONG) = |module| verify::signature_init(module, session, Input::new(mechanism.cast_const()), key, Input::new(signature.cast_const()), len);
        fn C_VerifySignature(session: CK_SESSION_HANDLE, data: *mut CK_BYTE, len: CK_ULONG) = |module| verify::signature_single(module, session, Input::new(data.cast_const()), len);
        fn C_VerifySignatureUpdate(session: CK_SESSION_HANDLE, part: *mut CK_BYTE, len: CK_ULONG) = |module| verify::signature_update(module, session, Input::new(part.cast_const()), len);
        fn C_VerifySignatureFinal(session: CK_SESSION_HANDLE) = |module| verify::signature_finish(module, session);
        fn C_GetSessionValidationFlags(session: CK_SESSION_HANDLE, kind: CK_SESSION_VALIDATION_FLAGS_TYPE, flags: *mut CK_FLAGS) = |module| session::validation_flags(module, session, kind, Output::new(flags));
        fn C_AsyncComplete(session: CK_SESSION_HANDLE, function: *mut CK_UTF8CHAR, result: *mut CK_ASYNC_DATA) = |module| refuse(module, "C_AsyncComplete", (session, function, result));
        fn C_AsyncGetID(session: CK_SESSION_HANDLE, function: *mut CK_UTF8CHAR, id: *mut CK_ULONG) = |module| refuse(module, "C_AsyncGetID", (session, function, id));
        fn C_AsyncJoin(session: CK_SESSION_HANDLE, function: *mut CK_UTF8CHAR, id: CK_ULONG, data: *mut CK_BYTE, len: CK_ULONG) = |module| refuse(module, "C_AsyncJoin", (session, function, id, data, len));
        fn C_WrapKeyAuthenticated(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, wrapping_key: CK_OBJECT_HANDLE, key: CK_OBJECT_HANDLE, associated: *mut CK_BYTE, associated_len: CK_ULONG, wrapped: *mut CK_BYTE, wrapped_len: *mut CK_ULONG) = |module| refuse(module, "C_WrapKeyAuthenticated", (session, mechanism, wrapping_key, key, associated, associated_len, wrapped, wrapped_len));
        fn C_UnwrapKeyAuthenticated(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, unwrapping_key: CK_OBJECT_HANDLE, wrapped: *mut CK_BYTE, len: CK_ULONG, template: *mut CK_ATTRIBUTE, count: CK_ULONG, associated: *mut CK_BYTE, associated_len: CK_ULONG, key: *mut CK_OBJECT_HANDLE) = |module| refuse(module, "C_UnwrapKeyAuthenticated", (session, mechanism, unwrapping_key, wrapped, len, template, count, associated, associated_len, key));
    }
}
