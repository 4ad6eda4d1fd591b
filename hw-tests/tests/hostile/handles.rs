//! Handles of sessions, objects and keys that are invalid, stale, or of another kind.

use claviger_hw_tests::{
    fixture::{
        raw_call::{
            Arg, HUGE, NULL, RawCall, Value,
            calls::{FUNCTIONS, Kind},
            memory::Use,
            secret_key,
        },
        token_fixture::TokenFixture,
    },
    for_each_card,
};
use cryptoki::object::ObjectClass;
use cryptoki_sys::*;

use crate::templates::session_arg;

for_each_card! { [piv openpgp] [
    invalid_session_handle_is_rejected_before_any_pointer_is_read
    invalid_object_handle_returns_the_code_of_its_argument
    an_object_that_is_no_key_is_no_key_handle
    a_key_of_another_class_or_type_is_inconsistent
    a_key_that_may_not_may_not
] }

/// Functions that need a session and say only that they do not exist here.
const UNSUPPORTED: [&str; 17] = [
    "C_MessageEncryptInit",
    "C_EncryptMessage",
    "C_EncryptMessageBegin",
    "C_EncryptMessageNext",
    "C_MessageEncryptFinal",
    "C_MessageDecryptInit",
    "C_DecryptMessage",
    "C_DecryptMessageBegin",
    "C_DecryptMessageNext",
    "C_MessageDecryptFinal",
    "C_EncapsulateKey",
    "C_DecapsulateKey",
    "C_AsyncComplete",
    "C_AsyncGetID",
    "C_AsyncJoin",
    "C_WrapKeyAuthenticated",
    "C_UnwrapKeyAuthenticated",
];

fn invalid_session_handle_is_rejected_before_any_pointer_is_read(fixture: &TokenFixture<'_>) {
    let (mut calls, closed) = (RawCall::new(fixture), fixture.read_write());
    let dead = closed.id() as usize;
    closed.end_session();
    // The byte behind a piece is on a page that cannot be touched.
    calls.memory.clear();
    let (piece, _) = calls.memory.place(&[0; 8], 0, Use::Input);
    let nowhere = piece as usize + 8;
    let of_sessions = FUNCTIONS
        .iter()
        .filter(|function| function.kinds.first() == Some(&Kind::Session));
    let mut seen = 0;
    for function in of_sessions {
        let words: usize = function.kinds.iter().map(words_of).sum();
        let code = if UNSUPPORTED.contains(&function.name) {
            CKR_FUNCTION_NOT_SUPPORTED
        } else {
            CKR_SESSION_HANDLE_INVALID
        };
        for session in [0, HUGE, dead] {
            let rest = Arg::Word(nowhere);
            let arguments = [vec![Arg::Word(session)], vec![rest; words - 1]].concat();
            fixture.silently(|| calls.expect(code, function.name, "no session", &arguments));
        }
        seen += 1;
    }
    assert!(seen > 80, "{seen} functions with a session");
}

/// How many words an argument of this kind is.
const fn words_of(kind: &Kind) -> usize {
    match kind {
        Kind::Found => 3,
        Kind::Template | Kind::Attributes | Kind::Input | Kind::Parameter | Kind::Output => 2,
        Kind::Random | Kind::List(_) | Kind::Pin | Kind::ImpossiblePin => 2,
        _ => 1,
    }
}

/// A call with one handle in its place, and the code for a handle that is none.
fn users(
    s: Arg<'static>,
    good: Arg<'static>,
    key: Arg<'static>,
) -> Vec<(&'static str, Vec<Arg<'static>>, CK_RV)> {
    let empty = Arg::Template(&[]);
    let [ecb, mac, wrap, derive] = [
        CKM_AES_ECB,
        CKM_SHA256_HMAC,
        CKM_AES_KEY_WRAP,
        CKM_ECDH1_DERIVE,
    ]
    .map(|kind| Arg::Mechanism(kind, &[]));
    let (no_object, no_key) = (CKR_OBJECT_HANDLE_INVALID, CKR_KEY_HANDLE_INVALID);
    let wrapped = Arg::Bytes(&[1; 24]);
    let mut users = vec![
        ("C_CopyObject", vec![s, key, empty, Arg::Handle], no_object),
        ("C_DestroyObject", vec![s, key], no_object),
        ("C_GetObjectSize", vec![s, key, Arg::Handle], no_object),
        ("C_GetAttributeValue", vec![s, key, empty], no_object),
        ("C_SetAttributeValue", vec![s, key, empty], no_object),
        (
            "C_WrapKey",
            vec![s, wrap, key, good, Arg::Out(64)],
            CKR_WRAPPING_KEY_HANDLE_INVALID,
        ),
        ("C_WrapKey", vec![s, wrap, good, key, Arg::Out(64)], no_key),
        (
            "C_UnwrapKey",
            vec![s, wrap, key, wrapped, empty, Arg::Handle],
            CKR_UNWRAPPING_KEY_HANDLE_INVALID,
        ),
        (
            "C_DeriveKey",
            vec![s, derive, key, empty, Arg::Handle],
            no_key,
        ),
    ];
    for name in ["C_EncryptInit", "C_DecryptInit"] {
        users.push((name, vec![s, ecb, key], no_key));
    }
    let signers = [
        "C_SignInit",
        "C_VerifyInit",
        "C_MessageSignInit",
        "C_MessageVerifyInit",
    ];
    users.extend(signers.map(|name| (name, vec![s, mac, key], no_key)));
    users.push(("C_VerifySignatureInit", vec![s, mac, key, wrapped], no_key));
    users
}

fn invalid_object_handle_returns_the_code_of_its_argument(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let s = session_arg(&session);
    let good = calls.aes(s);
    let destroyed = calls.aes(s);
    calls.expect_ok("C_DestroyObject", &[s, destroyed]);
    let other = fixture.read_write();
    let orphan = calls.aes(session_arg(&other));
    other.end_session();
    for key in [
        NULL,
        Arg::Word(HUGE),
        Arg::Word(0x00DE_AD00),
        destroyed,
        orphan,
        s,
    ] {
        for (name, arguments, code) in users(s, good, key) {
            fixture.silently(|| calls.expect(code, name, &format!("{key:?}"), &arguments));
        }
        // The handle is checked only while a digest is active.
        calls.expect_ok("C_DigestInit", &[s, Arg::Mechanism(CKM_SHA256, &[])]);
        calls.expect(CKR_KEY_HANDLE_INVALID, "C_DigestKey", "none", &[s, key]);
        calls.expect(
            CKR_OPERATION_NOT_INITIALIZED,
            "C_DigestFinal",
            "over",
            &[s, Arg::Out(32)],
        );
    }
}

fn an_object_that_is_no_key_is_no_key_handle(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let s = session_arg(&session);
    let (good, data) = (calls.aes(s), calls.data(s));
    let certificate = session.all(ObjectClass::CERTIFICATE)[0].handle() as usize;
    let profile = session.all(ObjectClass::PROFILE)[0].handle() as usize;
    for object in [data, Arg::Word(certificate), Arg::Word(profile)] {
        let of_keys = users(s, good, object)
            .into_iter()
            .filter(|(_, _, code)| *code != CKR_OBJECT_HANDLE_INVALID);
        for (name, arguments, _) in of_keys {
            // A derivation also checks its parameter, which is invalid here.
            let result = calls.call(name, &arguments).code;
            let none = [
                CKR_KEY_HANDLE_INVALID,
                CKR_WRAPPING_KEY_HANDLE_INVALID,
                CKR_UNWRAPPING_KEY_HANDLE_INVALID,
            ];
            let parameter = name == "C_DeriveKey" && result == CKR_MECHANISM_PARAM_INVALID;
            assert!(
                none.contains(&result) || parameter,
                "{name}, {object:?}: {result:#X}"
            );
        }
    }
}

fn a_key_of_another_class_or_type_is_inconsistent(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let s = session_arg(&session);
    let (aes, generic, signer) = (calls.aes(s), calls.generic(s), session.signer());
    let signing = Arg::Mechanism(session.signing(signer).mechanism, &[]);
    let public = Arg::Word(session.public_of(signer).handle() as usize);
    let signer = Arg::Word(signer.handle() as usize);
    let [ecb, mac, wrap] =
        [CKM_AES_ECB, CKM_SHA256_HMAC, CKM_AES_KEY_WRAP].map(|kind| Arg::Mechanism(kind, &[]));
    let inconsistent = CKR_KEY_TYPE_INCONSISTENT;
    let wrapped = Arg::Bytes(&[1; 24]);
    let entries = secret_key(CKK_AES);
    let template = Arg::Template(&entries);
    let rows: [(&str, &[Arg<'_>], CK_RV); 12] = [
        ("C_SignInit", &[s, signing, public], inconsistent),
        ("C_SignInit", &[s, signing, aes], inconsistent),
        ("C_SignInit", &[s, mac, signer], inconsistent),
        ("C_SignInit", &[s, mac, aes], inconsistent),
        ("C_MessageSignInit", &[s, signing, public], inconsistent),
        ("C_VerifyInit", &[s, signing, signer], inconsistent),
        ("C_VerifyInit", &[s, mac, public], inconsistent),
        ("C_EncryptInit", &[s, ecb, generic], inconsistent),
        ("C_EncryptInit", &[s, ecb, public], inconsistent),
        ("C_DecryptInit", &[s, ecb, signer], inconsistent),
        (
            "C_WrapKey",
            &[s, wrap, generic, aes, Arg::Out(64)],
            CKR_WRAPPING_KEY_TYPE_INCONSISTENT,
        ),
        (
            "C_UnwrapKey",
            &[s, wrap, generic, wrapped, template, Arg::Handle],
            CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT,
        ),
    ];
    for (name, arguments, code) in rows {
        fixture.silently(|| calls.expect(code, name, "another key", arguments));
    }
    calls.expect(
        CKR_KEY_UNEXTRACTABLE,
        "C_WrapKey",
        "of the card",
        &[s, wrap, aes, signer, Arg::Out(64)],
    );
    for key in [signer, public] {
        calls.expect_ok("C_DigestInit", &[s, Arg::Mechanism(CKM_SHA256, &[])]);
        calls.expect(
            CKR_KEY_INDIGESTIBLE,
            "C_DigestKey",
            "of the card",
            &[s, key],
        );
    }
}

fn a_key_that_may_not_may_not(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let s = session_arg(&session);
    let all = [
        CKA_ENCRYPT,
        CKA_DECRYPT,
        CKA_WRAP,
        CKA_UNWRAP,
        CKA_SIGN,
        CKA_VERIFY,
    ];
    let mut made = secret_key(CKK_AES);
    made.extend(all.map(|kind| (kind, Value::Bytes(&[0]))));
    made.push((CKA_VALUE, Value::Bytes(&[1; 16])));
    let aes = calls.expect_ok("C_CreateObject", &[s, Arg::Template(&made), Arg::Handle]);
    let aes = Arg::Word(aes.handle as usize);
    made[1].1 = Value::Word(CKK_GENERIC_SECRET);
    let generic = calls.expect_ok("C_CreateObject", &[s, Arg::Template(&made), Arg::Handle]);
    let generic = Arg::Word(generic.handle as usize);
    let [ecb, mac, wrap] =
        [CKM_AES_ECB, CKM_SHA256_HMAC, CKM_AES_KEY_WRAP].map(|kind| Arg::Mechanism(kind, &[]));
    let entries = secret_key(CKK_AES);
    let unwrapped = [
        s,
        wrap,
        aes,
        Arg::Bytes(&[1; 24]),
        Arg::Template(&entries),
        Arg::Handle,
    ];
    let rows: [(&str, &[Arg<'_>]); 8] = [
        ("C_EncryptInit", &[s, ecb, aes]),
        ("C_DecryptInit", &[s, ecb, aes]),
        ("C_SignInit", &[s, mac, generic]),
        ("C_VerifyInit", &[s, mac, generic]),
        ("C_MessageSignInit", &[s, mac, generic]),
        ("C_MessageVerifyInit", &[s, mac, generic]),
        ("C_WrapKey", &[s, wrap, aes, generic, Arg::Out(64)]),
        ("C_UnwrapKey", &unwrapped),
    ];
    for (name, arguments) in rows {
        calls.expect(CKR_KEY_FUNCTION_NOT_PERMITTED, name, "may not", arguments);
    }
}
