//! Null, malformed and impossible templates: C_CreateObject, C_CopyObject,
//! C_SetAttributeValue, C_FindObjectsInit, C_GenerateKey (PKCS #11 3.2, 4.1 and 5.7).

use claviger_hw_tests::{
    fixture::{
        raw_call::{
            Arg, DATA, Entry, HUGE, NULL, RawCall, Value, YES, memory::Use, secret_key, words,
        },
        token_fixture::{TestSession, TokenFixture},
    },
    for_each_card,
};
use cryptoki_sys::*;

for_each_card! { [piv openpgp] [
    null_or_endless_template_returns_arguments_bad
    null_or_endless_attribute_value_is_invalid
    a_value_of_another_size_is_invalid
    attribute_given_twice_with_two_values_is_inconsistent
    a_template_at_odd_addresses_is_read
    a_template_within_a_template_is_no_attribute_here
    a_value_may_lie_over_the_template
    a_class_or_type_that_cannot_be_made_is_refused
    rejected_template_changes_and_copies_no_object
    null_handle_pointer_creates_no_object
] }

/// Functions that read a template, and what they are given before and behind it.
struct Reader {
    name: &'static str,
    before: Vec<Arg<'static>>,
    behind: Vec<Arg<'static>>,
}

fn reader(name: &'static str, before: &[Arg<'static>], behind: &[Arg<'static>]) -> Reader {
    Reader {
        name,
        before: before.to_vec(),
        behind: behind.to_vec(),
    }
}

impl Reader {
    fn with<'a>(&self, template: &[Arg<'a>]) -> Vec<Arg<'a>> {
        [&self.before[..], template, &self.behind[..]].concat()
    }
}

const AES_GENERATION: Arg<'static> = Arg::Mechanism(CKM_AES_KEY_GEN, &[]);
/// The initial value of AES key wrap.
const AES_WRAP: Arg<'static> = Arg::Mechanism(CKM_AES_KEY_WRAP, &[]);
/// More attributes than there are.
const MANY: usize = 1025;

pub fn session_arg(session: &TestSession) -> Arg<'static> {
    Arg::Word(session.id() as usize)
}

fn readers(calls: &mut RawCall<'_>, session: Arg<'static>) -> Vec<Reader> {
    let (data, key) = (calls.data(session), calls.aes(session));
    let wrapped = calls.expect_ok("C_WrapKey", &[session, AES_WRAP, key, key, Arg::Out(64)]);
    let wrapped = Box::leak(wrapped.output.into_boxed_slice());
    let pair = Arg::Mechanism(CKM_EC_KEY_PAIR_GEN, &[]);
    let public = [session, pair];
    let private = [session, pair, Arg::Template(&[])];
    vec![
        reader("C_CreateObject", &[session], &[Arg::Handle]),
        reader("C_CopyObject", &[session, data], &[Arg::Handle]),
        reader("C_SetAttributeValue", &[session, data], &[]),
        reader("C_FindObjectsInit", &[session], &[]),
        reader("C_GenerateKey", &[session, AES_GENERATION], &[Arg::Handle]),
        reader(
            "C_UnwrapKey",
            &[session, AES_WRAP, key, Arg::Bytes(wrapped)],
            &[Arg::Handle],
        ),
        reader(
            "C_GenerateKeyPair",
            &public,
            &[Arg::Template(&[]), Arg::Handle, Arg::Handle],
        ),
        reader("C_GenerateKeyPair", &private, &[Arg::Handle, Arg::Handle]),
    ]
}

fn null_or_endless_template_returns_arguments_bad(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let readers = readers(&mut calls, session_arg(&session));
    let entry = words(&[CKA_LABEL as usize, 0, 0]);
    let rows = [
        ("nowhere", NULL, 1),
        ("nowhere, seven", NULL, 7),
        ("nowhere, endless", NULL, HUGE),
        ("endless", Arg::In(&entry), HUGE),
        ("past the address space", Arg::In(&entry), HUGE / 24),
        ("of too many", Arg::In(&entry), MANY),
    ];
    for function in &readers {
        for (what, template, count) in rows {
            let arguments = function.with(&[template, Arg::Word(count)]);
            fixture.silently(|| calls.expect(CKR_ARGUMENTS_BAD, function.name, what, &arguments));
        }
    }
    calls.expect_ok(
        "C_FindObjectsInit",
        &[session_arg(&session), NULL, Arg::Word(0)],
    );
}

fn null_or_endless_attribute_value_is_invalid(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let readers = readers(&mut calls, session_arg(&session));
    let byte = Box::leak(Box::new(7_u8));
    let there = std::ptr::from_ref(byte) as usize;
    let rows = [
        ("nowhere", Value::Raw(0, 1)),
        ("nowhere, endless", Value::Raw(0, HUGE)),
        ("endless", Value::Raw(there, HUGE)),
        ("half the address space", Value::Raw(there, HUGE / 2)),
        ("a terabyte", Value::Raw(there, 1 << 40)),
    ];
    for function in &readers {
        for (what, value) in rows {
            let template = [(CKA_LABEL, value)];
            let arguments = function.with(&[Arg::Template(&template)]);
            fixture.silently(|| {
                calls.expect(CKR_ATTRIBUTE_VALUE_INVALID, function.name, what, &arguments);
            });
        }
    }
    calls.expect_ok(
        "C_FindObjectsInit",
        &[session_arg(&session), NULL, Arg::Word(0)],
    );
}

fn a_value_of_another_size_is_invalid(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let session = session_arg(&session);
    let sizes = |kind, sizes: &[usize]| -> Vec<(CK_ATTRIBUTE_TYPE, Vec<u8>)> {
        sizes.iter().map(|size| (kind, vec![0; *size])).collect()
    };
    let rows = [
        sizes(CKA_ENCRYPT, &[0, 2, 4, 8]),
        vec![(CKA_ENCRYPT, vec![2]), (CKA_ENCRYPT, vec![0xFF])],
        sizes(CKA_PRIVATE, &[0, 2, 8]),
        sizes(CKA_KEY_TYPE, &[0, 1, 4, 7, 9, 16]),
        sizes(CKA_START_DATE, &[1, 7, 9]),
        vec![(CKA_END_DATE, b"2026-1-1".to_vec())],
        sizes(CKA_ALLOWED_MECHANISMS, &[1, 7, 9, 15]),
    ]
    .concat();
    for (kind, value) in &rows {
        let what = format!("{} bytes of {kind:#X}", value.len());
        let wrong = [(*kind, Value::Bytes(value))];
        let generated = [(CKA_VALUE_LEN, Value::Word(16)), wrong[0]];
        let template = Arg::Template(&generated);
        let arguments = [session, AES_GENERATION, template, Arg::Handle];
        calls.expect(
            CKR_ATTRIBUTE_VALUE_INVALID,
            "C_GenerateKey",
            &what,
            &arguments,
        );
        let key = (CKA_VALUE, Value::Bytes(&[1; 16]));
        let mut made = secret_key(CKK_AES);
        made.retain(|(given, _)| given != kind);
        made.extend([key, wrong[0]]);
        let arguments = [session, Arg::Template(&made), Arg::Handle];
        calls.expect(
            CKR_ATTRIBUTE_VALUE_INVALID,
            "C_CreateObject",
            &what,
            &arguments,
        );
    }
    for len in [0, 15, 17, 33, 4097] {
        let value = vec![1; len];
        let mut made = secret_key(CKK_AES);
        made.push((CKA_VALUE, Value::Bytes(&value)));
        let arguments = [session, Arg::Template(&made), Arg::Handle];
        let what = format!("an AES key of {len} bytes");
        calls.expect(
            CKR_ATTRIBUTE_VALUE_INVALID,
            "C_CreateObject",
            &what,
            &arguments,
        );
    }
}

fn attribute_given_twice_with_two_values_is_inconsistent(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let session = session_arg(&session);
    let fixed = secret_key(CKK_AES);
    let readers = readers(&mut calls, session);
    let makers = readers
        .iter()
        .filter(|reader| !["C_FindObjectsInit", "C_GenerateKeyPair"].contains(&reader.name));
    for function in makers {
        let fixed: &[Entry<'_>] = match function.name {
            "C_CreateObject" => &[fixed[0], fixed[1], (CKA_VALUE, Value::Bytes(&[1; 16]))],
            "C_GenerateKey" => &[(CKA_VALUE_LEN, Value::Word(16))],
            "C_UnwrapKey" => &fixed,
            _ => &[],
        };
        let one = (CKA_LABEL, Value::Bytes(b"one"));
        let other = (CKA_LABEL, Value::Bytes(b"other"));
        let twice = [fixed, &[one, other]].concat();
        let arguments = function.with(&[Arg::Template(&twice)]);
        calls.expect(
            CKR_TEMPLATE_INCONSISTENT,
            function.name,
            "two values",
            &arguments,
        );
        let same = [fixed, &[one, one]].concat();
        calls.expect_ok(function.name, &function.with(&[Arg::Template(&same)]));
    }
}

fn a_template_at_odd_addresses_is_read(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let session = session_arg(&session);
    let readers = readers(&mut calls, session);
    let made = [(CKA_VALUE, Value::Bytes(&[1; 16]))];
    let made = [secret_key(CKK_AES), made.to_vec()].concat();
    let key = secret_key(CKK_AES);
    let label = [(CKA_LABEL, Value::Bytes(b"odd"))];
    for function in &readers {
        let template: &[Entry<'_>] = match function.name {
            "C_CreateObject" => &made,
            "C_GenerateKey" => &[(CKA_VALUE_LEN, Value::Word(16))],
            "C_UnwrapKey" => &key,
            "C_GenerateKeyPair" => continue,
            _ => &label,
        };
        let mut arguments = function.with(&[Arg::OddTemplate(template)]);
        for argument in &mut arguments {
            if let Arg::Mechanism(kind, _) = *argument {
                *argument = Arg::Odd(&*Box::leak(
                    words(&[kind as usize, 0, 0]).into_boxed_slice(),
                ));
            }
        }
        calls.expect_ok(function.name, &arguments);
    }
}

fn a_template_within_a_template_is_no_attribute_here(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let session = session_arg(&session);
    let readers = readers(&mut calls, session);
    // Attributes whose values are nowhere, and a length that is no multiple of theirs.
    let inner = words(&[
        CKA_WRAP_TEMPLATE as usize,
        0,
        HUGE,
        CKA_CLASS as usize,
        8,
        8,
    ]);
    for function in &readers {
        let code = match function.name {
            "C_FindObjectsInit" => CKR_OK,
            _ => CKR_ATTRIBUTE_TYPE_INVALID,
        };
        for kind in [CKA_WRAP_TEMPLATE, CKA_UNWRAP_TEMPLATE, CKA_DERIVE_TEMPLATE] {
            for len in [48, 24, 47, 0] {
                let mut template = vec![(kind, Value::Bytes(&inner[..len]))];
                if function.name == "C_CreateObject" {
                    template.extend(secret_key(CKK_AES));
                }
                let arguments = function.with(&[Arg::Template(&template)]);
                calls.expect(code, function.name, &format!("{kind:#X}"), &arguments);
                if code == CKR_OK {
                    calls.expect_ok("C_FindObjectsFinal", &[session]);
                }
            }
        }
    }
}

fn a_value_may_lie_over_the_template(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let zeros = [0; 24 * 3];
    calls.memory.clear();
    let (list, piece) = calls.memory.place(&zeros, 0, Use::Input);
    let class = CKO_DATA.to_ne_bytes();
    let (class, _) = calls.memory.place(&class, 0, Use::Input);
    let at = list as usize;
    let entries = words(
        &[
            [CKA_CLASS as usize, class as usize, 8],
            [CKA_VALUE as usize, at, 24 * 3],
            // The last bytes before the page that cannot be touched.
            [CKA_LABEL as usize, at + 24 * 3 - 8, 8],
        ]
        .concat(),
    );
    calls.memory.fill(piece, &entries);
    let mut handle = 0_u64;
    let place = &raw mut handle as usize;
    let code = calls.call_words("C_CreateObject", &[session.id() as usize, at, 3, place]);
    assert_eq!(code, CKR_OK);
    let object = Arg::Word(handle as usize);
    calls.expect_ok("C_DestroyObject", &[session_arg(&session), object]);
}

fn a_class_or_type_that_cannot_be_made_is_refused(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let session = session_arg(&session);
    let value = (CKA_VALUE, Value::Bytes(&[1; 16]));
    let class = |class| (CKA_CLASS, Value::Word(class));
    let kind = |kind| (CKA_KEY_TYPE, Value::Word(kind));
    let invalid = CKR_ATTRIBUTE_VALUE_INVALID;
    let rows: [(CK_RV, &[Entry<'_>]); 12] = [
        (CKR_TEMPLATE_INCOMPLETE, &[]),
        (CKR_TEMPLATE_INCOMPLETE, &[value]),
        (CKR_TEMPLATE_INCOMPLETE, &[class(CKO_SECRET_KEY)]),
        (CKR_TEMPLATE_INCOMPLETE, &[class(CKO_SECRET_KEY), value]),
        (
            CKR_TEMPLATE_INCOMPLETE,
            &[class(CKO_SECRET_KEY), kind(CKK_AES)],
        ),
        (
            CKR_TEMPLATE_INCOMPLETE,
            &[class(CKO_PUBLIC_KEY), kind(CKK_RSA)],
        ),
        (invalid, &[class(CKO_PRIVATE_KEY), kind(CKK_RSA)]),
        (invalid, &[class(CKO_HW_FEATURE)]),
        (invalid, &[class(CKO_PROFILE)]),
        (invalid, &[class(CK_ULONG::MAX)]),
        (invalid, &[class(CKO_SECRET_KEY), kind(CKK_DES3), value]),
        (
            invalid,
            &[class(CKO_SECRET_KEY), kind(CK_ULONG::MAX), value],
        ),
    ];
    for (code, template) in rows {
        let what = format!("{template:?}");
        let arguments = [session, Arg::Template(template), Arg::Handle];
        fixture.silently(|| calls.expect(code, "C_CreateObject", &what, &arguments));
    }
}

fn rejected_template_changes_and_copies_no_object(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let session = session_arg(&session);
    let key = calls.aes(session);
    let label = |fixture: &TokenFixture<'_>| {
        let label = [cryptoki::object::Attribute::Label(b"changed".to_vec())];
        let session = fixture.read_only();
        let (labelled, all) = (session.find_objects(&label), session.find_objects(&[]));
        (labelled.unwrap().len(), all.unwrap().len())
    };
    let before = label(fixture);
    let first = (CKA_LABEL, Value::Bytes(b"changed"));
    let rows = [
        (
            (CKA_ENCRYPT, Value::Bytes(&[2])),
            CKR_ATTRIBUTE_VALUE_INVALID,
        ),
        ((CKA_LABEL, Value::Raw(0, 9)), CKR_ATTRIBUTE_VALUE_INVALID),
        ((CKA_MODULUS, YES), CKR_ATTRIBUTE_TYPE_INVALID),
        ((CK_ULONG::MAX, YES), CKR_ATTRIBUTE_TYPE_INVALID),
        ((CKA_LOCAL, YES), CKR_ATTRIBUTE_READ_ONLY),
        ((CKA_UNIQUE_ID, Value::Bytes(b"x")), CKR_ATTRIBUTE_READ_ONLY),
        ((CKA_VALUE, Value::Bytes(&[9; 16])), CKR_ATTRIBUTE_READ_ONLY),
        (
            (CKA_LABEL, Value::Bytes(b"other")),
            CKR_TEMPLATE_INCONSISTENT,
        ),
    ];
    for (last, code) in rows {
        let entries = [first, last];
        let template = Arg::Template(&entries);
        let what = format!("{last:?}");
        calls.expect(
            code,
            "C_SetAttributeValue",
            &what,
            &[session, key, template],
        );
        let arguments = [session, key, template, Arg::Handle];
        calls.expect(code, "C_CopyObject", &what, &arguments);
        assert_eq!(label(fixture), before, "{what}");
    }
    let entries = [first];
    let good = Arg::Template(&entries);
    calls.expect_ok("C_SetAttributeValue", &[session, key, good]);
    assert_eq!(label(fixture), (before.0 + 1, before.1));
}

fn null_handle_pointer_creates_no_object(fixture: &TokenFixture<'_>) {
    let (mut calls, user) = (RawCall::new(fixture), fixture.user());
    let session = session_arg(&user);
    let key = calls.aes(session);
    let count = || user.find_objects(&[]).unwrap().len();
    let before = count();
    let length = Arg::Template(&[(CKA_VALUE_LEN, Value::Word(16))]);
    let rows: [(&str, &[Arg<'_>]); 3] = [
        ("C_CreateObject", &[session, Arg::Template(&DATA), NULL]),
        ("C_CopyObject", &[session, key, Arg::Template(&[]), NULL]),
        ("C_GenerateKey", &[session, AES_GENERATION, length, NULL]),
    ];
    for (name, arguments) in rows {
        calls.expect(CKR_ARGUMENTS_BAD, name, "no place", arguments);
        assert_eq!(count(), before, "{name}");
    }
}
