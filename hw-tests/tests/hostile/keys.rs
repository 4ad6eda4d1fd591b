//! C_GenerateKey, C_GenerateKeyPair, C_WrapKey, C_UnwrapKey and C_DeriveKey with hostile arguments (PKCS #11 3.2, 5.18). A
//! rejected call creates no key.

use claviger_hw_tests::{
    fixture::{
        raw_call::{Arg, Entry, HUGE, NO, NULL, RawCall, Value, YES, secret_key},
        token_fixture::{TestSession, TokenFixture},
    },
    for_each_card,
    provision::ADMIN_PIN,
};
use cryptoki_sys::*;

use crate::templates::session_arg;

for_each_card! { [piv openpgp] [
    a_secret_of_impossible_size_is_not_generated
    unwrap_key_rejects_null_wrong_length_and_forged_wrapped_keys
    wrap_key_with_null_length_pointer_or_small_buffer_is_rejected
    unwrap_and_generate_reject_templates_of_impossible_session_keys
    a_pair_that_no_card_makes_is_refused_before_the_card
    key_pair_generation_without_so_login_is_rejected
    key_pair_generation_with_null_handle_pointers_keeps_the_old_key
] }

const AES: Arg<'static> = Arg::Mechanism(CKM_AES_KEY_GEN, &[]);
const SECRET: Arg<'static> = Arg::Mechanism(CKM_GENERIC_SECRET_KEY_GEN, &[]);
const WRAP: Arg<'static> = Arg::Mechanism(CKM_AES_KEY_WRAP, &[]);
const EC: Arg<'static> = Arg::Mechanism(CKM_EC_KEY_PAIR_GEN, &[]);
const RSA: Arg<'static> = Arg::Mechanism(CKM_RSA_PKCS_KEY_PAIR_GEN, &[]);
/// prime256v1, and an unknown curve.
const P256: Value<'static> = Value::Bytes(b"\x06\x08\x2A\x86\x48\xCE\x3D\x03\x01\x07");
const NO_CURVE: Value<'static> = Value::Bytes(b"\x06\x03\x2A\x03\x04");
const ID: Entry<'static> = (CKA_ID, Value::Bytes(&[1]));

fn count(session: &TestSession) -> usize {
    session.find_objects(&[]).unwrap().len()
}

fn a_secret_of_impossible_size_is_not_generated(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let (s, before) = (session_arg(&session), count(&session));
    let size = CKR_KEY_SIZE_RANGE;
    for (mechanism, len, code) in [
        (AES, 0, CKR_ATTRIBUTE_VALUE_INVALID),
        (AES, 15, size),
        (AES, 17, size),
        (AES, 33, size),
        (AES, CK_ULONG::MAX, size),
        (SECRET, 0, CKR_ATTRIBUTE_VALUE_INVALID),
        (SECRET, 4097, size),
        (SECRET, CK_ULONG::MAX, size),
    ] {
        let length = [(CKA_VALUE_LEN, Value::Word(len))];
        let arguments = [s, mechanism, Arg::Template(&length), Arg::Handle];
        calls.expect(code, "C_GenerateKey", &format!("{len} bytes"), &arguments);
    }
    let none = [s, AES, Arg::Template(&[]), Arg::Handle];
    calls.expect(CKR_TEMPLATE_INCOMPLETE, "C_GenerateKey", "no length", &none);
    assert_eq!(count(&session), before);
    for mechanism in [AES, SECRET] {
        let length = [(CKA_VALUE_LEN, Value::Word(32))];
        calls.expect_ok(
            "C_GenerateKey",
            &[s, mechanism, Arg::Template(&length), Arg::Handle],
        );
    }
}

fn unwrap_key_rejects_null_wrong_length_and_forged_wrapped_keys(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let s = session_arg(&session);
    let key = calls.aes(s);
    let wrapped = calls
        .expect_ok("C_WrapKey", &[s, WRAP, key, key, Arg::Out(24)])
        .output;
    let before = count(&session);
    let entries = secret_key(CKK_AES);
    let there = Arg::In(&wrapped);
    let range = CKR_WRAPPED_KEY_LEN_RANGE;
    for (code, pointer, len) in [
        (CKR_ARGUMENTS_BAD, NULL, 24),
        (CKR_ARGUMENTS_BAD, NULL, HUGE),
        (CKR_ARGUMENTS_BAD, there, HUGE),
        (range, there, 0),
        (range, NULL, 0),
        (range, there, 8),
        (range, there, 16),
        (range, there, 23),
        (CKR_WRAPPED_KEY_INVALID, Arg::In(&[1; 24]), 24),
    ] {
        let what = format!("{len:#X} bytes");
        let arguments = [
            s,
            WRAP,
            key,
            pointer,
            Arg::Word(len),
            Arg::Template(&entries),
            Arg::Handle,
        ];
        calls.expect(code, "C_UnwrapKey", &what, &arguments);
    }
    let right = [s, WRAP, key, Arg::Bytes(&wrapped), Arg::Template(&entries)];
    let no_place = [&right[..], &[NULL]].concat();
    calls.expect(CKR_ARGUMENTS_BAD, "C_UnwrapKey", "no place", &no_place);
    assert_eq!(count(&session), before);
    calls.expect_ok("C_UnwrapKey", &[&right[..], &[Arg::Handle]].concat());
}

fn wrap_key_with_null_length_pointer_or_small_buffer_is_rejected(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let s = session_arg(&session);
    let key = calls.aes(s);
    let nowhere = [s, WRAP, key, key, Arg::In(&[0; 24]), NULL];
    calls.expect(CKR_ARGUMENTS_BAD, "C_WrapKey", "no length", &nowhere);
    let asked = calls
        .expect_ok("C_WrapKey", &[s, WRAP, key, key, Arg::Asked])
        .len;
    assert_eq!(asked, 24);
    for room in [0, 1, 23] {
        let result = calls.call("C_WrapKey", &[s, WRAP, key, key, Arg::Out(room)]);
        assert_eq!((result.code, result.len), (CKR_BUFFER_TOO_SMALL, 24));
    }
    calls.expect_ok("C_WrapKey", &[s, WRAP, key, key, Arg::Out(24)]);
}

fn unwrap_and_generate_reject_templates_of_impossible_session_keys(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let s = session_arg(&session);
    let key = calls.aes(s);
    let wrapped = calls
        .expect_ok("C_WrapKey", &[s, WRAP, key, key, Arg::Out(24)])
        .output;
    let before = count(&session);
    let length = (CKA_VALUE_LEN, Value::Word(16));
    let inconsistent = CKR_TEMPLATE_INCONSISTENT;
    let rows = [
        (CKA_CLASS, Value::Word(CKO_PUBLIC_KEY), inconsistent),
        (CKA_CLASS, Value::Word(CK_ULONG::MAX), inconsistent),
        (CKA_TOKEN, YES, inconsistent),
        (CKA_VALUE, Value::Bytes(&[1; 16]), inconsistent),
        (CKA_LOCAL, YES, CKR_ATTRIBUTE_READ_ONLY),
        (CKA_ALWAYS_SENSITIVE, YES, CKR_ATTRIBUTE_READ_ONLY),
        (CKA_MODULUS, Value::Bytes(&[1]), CKR_ATTRIBUTE_TYPE_INVALID),
    ];
    for (kind, value, code) in rows {
        let what = format!("{kind:#X} {value:?}");
        let mut unwrapped = vec![(CKA_KEY_TYPE, Value::Word(CKK_AES)), (kind, value)];
        let template = [
            s,
            WRAP,
            key,
            Arg::Bytes(&wrapped),
            Arg::Template(&unwrapped),
            Arg::Handle,
        ];
        calls.expect(code, "C_UnwrapKey", &what, &template);
        unwrapped[0] = length;
        let template = [s, AES, Arg::Template(&unwrapped), Arg::Handle];
        calls.expect(code, "C_GenerateKey", &what, &template);
    }
    let other = [length, (CKA_KEY_TYPE, Value::Word(CKK_GENERIC_SECRET))];
    let arguments = [s, AES, Arg::Template(&other), Arg::Handle];
    calls.expect(inconsistent, "C_GenerateKey", "another type", &arguments);
    assert_eq!(count(&session), before);
}

/// C_GenerateKeyPair's arguments.
fn pair<'a>(
    s: Arg<'a>,
    mechanism: Arg<'a>,
    public: &'a [Entry<'a>],
    private: &'a [Entry<'a>],
) -> [Arg<'a>; 6] {
    [
        s,
        mechanism,
        Arg::Template(public),
        Arg::Template(private),
        Arg::Handle,
        Arg::Handle,
    ]
}

fn a_pair_that_no_card_makes_is_refused_before_the_card(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.read_write());
    let s = session_arg(&session);
    assert_eq!(session.login_as(CKU_SO, so_credential(fixture)), Ok(()));
    let curve = (CKA_EC_PARAMS, P256);
    let bits = |bits| (CKA_MODULUS_BITS, Value::Word(bits));
    let (incomplete, inconsistent) = (CKR_TEMPLATE_INCOMPLETE, CKR_TEMPLATE_INCONSISTENT);
    let (other_id, three) = ((CKA_ID, Value::Bytes(&[2])), Value::Bytes(&[3]));
    let nonsense = Value::Bytes(b"\x06\x7Fnonsense");
    let (size, invalid) = (CKR_KEY_SIZE_RANGE, CKR_ATTRIBUTE_VALUE_INVALID);
    let rows: [(Arg<'_>, &[Entry<'_>], &[Entry<'_>], CK_RV); 21] = [
        (EC, &[], &[ID], incomplete),
        (EC, &[curve], &[], incomplete),
        (EC, &[curve, ID], &[other_id], inconsistent),
        (
            EC,
            &[curve, (CKA_CLASS, Value::Word(CKO_PRIVATE_KEY))],
            &[ID],
            inconsistent,
        ),
        (
            EC,
            &[curve],
            &[ID, (CKA_KEY_TYPE, Value::Word(CKK_RSA))],
            inconsistent,
        ),
        (EC, &[curve], &[ID, (CKA_TOKEN, NO)], inconsistent),
        (EC, &[curve], &[ID, (CKA_EXTRACTABLE, YES)], inconsistent),
        (EC, &[curve], &[ID, (CKA_SENSITIVE, NO)], inconsistent),
        (EC, &[curve], &[ID, (CKA_PRIVATE, NO)], inconsistent),
        (
            EC,
            &[curve],
            &[ID, (CKA_LOCAL, YES)],
            CKR_ATTRIBUTE_READ_ONLY,
        ),
        (EC, &[curve], &[ID, (CKA_SIGN, Value::Bytes(&[2]))], invalid),
        (
            EC,
            &[curve],
            &[ID, (CK_ULONG::MAX, YES)],
            CKR_ATTRIBUTE_TYPE_INVALID,
        ),
        (
            EC,
            &[(CKA_EC_PARAMS, NO_CURVE)],
            &[ID],
            CKR_CURVE_NOT_SUPPORTED,
        ),
        (
            EC,
            &[(CKA_EC_PARAMS, nonsense)],
            &[ID],
            CKR_DOMAIN_PARAMS_INVALID,
        ),
        (
            EC,
            &[(CKA_EC_PARAMS, Value::Bytes(&[]))],
            &[ID],
            CKR_DOMAIN_PARAMS_INVALID,
        ),
        (EC, &[curve], &[(CKA_ID, Value::Bytes(&[0xEE]))], invalid),
        (RSA, &[], &[ID], incomplete),
        (
            RSA,
            &[bits(2048), (CKA_PUBLIC_EXPONENT, three)],
            &[ID],
            invalid,
        ),
        (RSA, &[bits(0)], &[ID], size),
        (RSA, &[bits(2047)], &[ID], size),
        (RSA, &[bits(CK_ULONG::MAX)], &[ID], size),
    ];
    let before = count(&session);
    for (mechanism, public, private, code) in rows {
        let what = format!("{public:?}, {private:?}");
        let arguments = pair(s, mechanism, public, private);
        calls.expect(code, "C_GenerateKeyPair", &what, &arguments);
    }
    assert_eq!(count(&session), before);
}

/// Whom the token lets make keys.
pub fn so_credential(fixture: &TokenFixture<'_>) -> &'static str {
    if fixture.is_piv() {
        "010203040506070801020304050607080102030405060708"
    } else {
        ADMIN_PIN
    }
}

fn key_pair_generation_without_so_login_is_rejected(fixture: &TokenFixture<'_>) {
    let mut calls = RawCall::new(fixture);
    let (public, private) = ([(CKA_EC_PARAMS, P256)], [ID]);
    let reader = fixture.read_only();
    let read_only = CKR_SESSION_READ_ONLY;
    let arguments = pair(session_arg(&reader), EC, &public, &private);
    fixture.silently(|| calls.expect(read_only, "C_GenerateKeyPair", "read-only", &arguments));
    reader.end_session();
    let session = fixture.read_write();
    let arguments = pair(session_arg(&session), EC, &public, &private);
    let not_logged_in = CKR_USER_NOT_LOGGED_IN;
    fixture.silently(|| calls.expect(not_logged_in, "C_GenerateKeyPair", "nobody", &arguments));
    assert_eq!(session.login_user(), Ok(()));
    fixture.silently(|| calls.expect(not_logged_in, "C_GenerateKeyPair", "the user", &arguments));
}

fn key_pair_generation_with_null_handle_pointers_keeps_the_old_key(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.read_write());
    let s = session_arg(&session);
    assert_eq!(session.login_as(CKU_SO, so_credential(fixture)), Ok(()));
    let (public, private) = ([(CKA_EC_PARAMS, P256)], [ID]);
    let right = pair(s, EC, &public, &private);
    for (one, other) in [(NULL, Arg::Handle), (Arg::Handle, NULL), (NULL, NULL)] {
        let arguments = [&right[..4], &[one, other]].concat();
        fixture.silently(|| {
            calls.expect(
                CKR_ARGUMENTS_BAD,
                "C_GenerateKeyPair",
                "no place",
                &arguments,
            );
        });
    }
    session.logout().unwrap();
    assert_eq!(session.login_user(), Ok(()));
    let key = session.signer();
    let signing = session.signing(key);
    assert_eq!(session.init(session.list.C_SignInit, signing, key), Ok(()));
    let signature = session
        .run(session.list.C_Sign, b"message", 600)
        .expect("C_Sign");
    let public = session.public_of(key);
    assert_eq!(
        session.init(session.list.C_VerifyInit, signing, public),
        Ok(())
    );
    assert_eq!(session.check_signature(b"message", &signature), Ok(()));
}
