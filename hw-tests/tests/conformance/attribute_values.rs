//! C_GetAttributeValue to the letter (PKCS #11 3.2, 5.7.5): each entry is processed independently of the others.

use std::ptr;

use claviger_hw_tests::{
    ck,
    fixture::token_fixture::{TestSession, TokenFixture, checked},
    for_each_card,
};
use cryptoki::{
    error::RvError,
    object::{ObjectClass, ObjectHandle},
};
use cryptoki_sys::{
    CK_ATTRIBUTE, CK_ATTRIBUTE_TYPE, CK_ULONG, CKA_APPLICATION, CKA_CLASS, CKA_ID, CKA_KEY_TYPE,
    CKA_LABEL, CKA_MODULUS_BITS, CKA_PRIVATE_EXPONENT, CKA_SUBJECT, CKA_URL, CKA_VALUE,
};

const NONE: CK_ULONG = CK_ULONG::MAX;
const UNTOUCHED: u8 = 0xA5;

for_each_card! { [piv openpgp] [
    a_null_value_asks_for_the_exact_length
    a_buffer_of_the_exact_length_is_filled
    a_larger_buffer_is_filled_and_the_length_is_exact
    get_attribute_value_leaves_a_small_buffer_unwritten_without_length
    an_attribute_the_object_has_not_gets_no_length
    sensitive_attribute_has_no_length_with_any_buffer
    an_empty_value_has_length_zero
    get_attribute_value_fills_each_valid_entry_in_every_mixture
    the_same_attribute_may_be_asked_for_twice
    get_attribute_value_with_empty_template_succeeds
    a_template_that_is_not_there_is_a_bad_argument
    no_value_is_asked_of_the_card_twice
    an_unaligned_buffer_is_filled
] }

/// One entry of a template, with its buffer.
#[derive(Clone)]
struct Entry {
    kind: CK_ATTRIBUTE_TYPE,
    /// `None` asks for the length.
    room: Option<usize>,
}

/// What became of an entry: the length, and the buffer.
type Answer = (CK_ULONG, Vec<u8>);

/// C_GetAttributeValue: the code and the answers. Nothing is written past a buffer.
fn get(
    session: &TestSession,
    object: ObjectHandle,
    entries: &[Entry],
) -> (Result<(), RvError>, Vec<Answer>) {
    const BEYOND: usize = 8;
    let buffer = |entry: &Entry| vec![UNTOUCHED; entry.room.unwrap_or(0) + BEYOND];
    let mut buffers: Vec<Vec<u8>> = entries.iter().map(buffer).collect();
    let mut template: Vec<CK_ATTRIBUTE> = Vec::new();
    for (entry, buffer) in entries.iter().zip(&mut buffers) {
        let room = entry.room.map(|_| buffer.as_mut_ptr().cast());
        template.push(CK_ATTRIBUTE {
            type_: entry.kind,
            pValue: room.unwrap_or(ptr::null_mut()),
            ulValueLen: entry.room.unwrap_or(0) as CK_ULONG,
        });
    }
    let function = session.list.C_GetAttributeValue.unwrap();
    let (list, count) = (template.as_mut_ptr(), template.len() as CK_ULONG);
    // SAFETY: a template with its length, and buffers with theirs.
    let code = unsafe { function(session.id(), object.handle(), list, count) };
    for (entry, buffer) in entries.iter().zip(&mut buffers) {
        let beyond = buffer.split_off(entry.room.unwrap_or(0));
        assert_eq!(
            beyond, [UNTOUCHED; BEYOND],
            "{:#x}: written past",
            entry.kind
        );
    }
    let lengths = template.iter().map(|entry| entry.ulValueLen);
    (checked(code), lengths.zip(buffers).collect())
}

const fn ask(kind: CK_ATTRIBUTE_TYPE) -> Entry {
    Entry { kind, room: None }
}

const fn room(kind: CK_ATTRIBUTE_TYPE, room: usize) -> Entry {
    Entry {
        kind,
        room: Some(room),
    }
}

fn untouched(len: usize) -> Vec<u8> {
    vec![UNTOUCHED; len]
}

/// A certificate: its value is long, its URL empty, and it has no modulus.
fn certificate(fixture: &TokenFixture<'_>) -> (TestSession, ObjectHandle) {
    let session = fixture.read_only();
    let certificate = session.all(ObjectClass::CERTIFICATE)[0];
    (session, certificate)
}

fn value(session: &TestSession, object: ObjectHandle, kind: CK_ATTRIBUTE_TYPE) -> Vec<u8> {
    let (code, answers) = get(session, object, &[room(kind, 4096)]);
    assert_eq!(code, Ok(()));
    answers[0].1[..answers[0].0 as usize].to_vec()
}

fn a_null_value_asks_for_the_exact_length(fixture: &TokenFixture<'_>) {
    let (session, object) = certificate(fixture);
    let len = value(&session, object, CKA_VALUE).len();
    assert!(len > 200, "a certificate");
    let (code, answers) = get(&session, object, &[ask(CKA_VALUE), ask(CKA_CLASS)]);
    assert_eq!(code, Ok(()));
    let lengths = [answers[0].0 as usize, answers[1].0 as usize];
    assert_eq!(lengths, [len, size_of::<CK_ULONG>()]);
}

fn a_buffer_of_the_exact_length_is_filled(fixture: &TokenFixture<'_>) {
    let (session, object) = certificate(fixture);
    let expected = value(&session, object, CKA_VALUE);
    let (code, answers) = get(&session, object, &[room(CKA_VALUE, expected.len())]);
    assert_eq!(code, Ok(()));
    assert_eq!(answers, [(expected.len() as CK_ULONG, expected)]);
}

fn a_larger_buffer_is_filled_and_the_length_is_exact(fixture: &TokenFixture<'_>) {
    let (session, object) = certificate(fixture);
    let id = value(&session, object, CKA_ID);
    let (code, answers) = get(&session, object, &[room(CKA_ID, 50)]);
    assert_eq!((code, answers[0].0), (Ok(()), id.len() as CK_ULONG));
    assert_eq!(answers[0].1[..id.len()], id);
    assert_eq!(answers[0].1[id.len()..], untouched(50 - id.len()));
}

fn get_attribute_value_leaves_a_small_buffer_unwritten_without_length(fixture: &TokenFixture<'_>) {
    let (session, object) = certificate(fixture);
    let len = value(&session, object, CKA_VALUE).len();
    for small in [0, 1, len - 1] {
        let (code, answers) = get(&session, object, &[room(CKA_VALUE, small)]);
        assert_eq!(code, Err(RvError::BufferTooSmall));
        assert_eq!(answers, [(NONE, untouched(small))]);
    }
}

fn an_attribute_the_object_has_not_gets_no_length(fixture: &TokenFixture<'_>) {
    let (session, object) = certificate(fixture);
    for kind in [CKA_MODULUS_BITS, CKA_APPLICATION, 0x7FFF_0001, NONE] {
        for entry in [ask(kind), room(kind, 20)] {
            let room = entry.room.unwrap_or(0);
            let (code, answers) = get(&session, object, &[entry]);
            assert_eq!(code, Err(RvError::AttributeTypeInvalid), "{kind:#x}");
            assert_eq!(answers, [(NONE, untouched(room))]);
        }
    }
}

/// A private key, and an attribute of it that never leaves the card.
fn secret(session: &TestSession) -> (ObjectHandle, CK_ATTRIBUTE_TYPE) {
    let key = session.signer();
    let rsa = cryptoki::object::KeyType::RSA;
    let kind = value(session, key, CKA_KEY_TYPE);
    let rsa = kind == CK_ULONG::from(*rsa).to_ne_bytes();
    (key, if rsa { CKA_PRIVATE_EXPONENT } else { CKA_VALUE })
}

fn sensitive_attribute_has_no_length_with_any_buffer(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let (key, kind) = secret(&session);
    for entry in [ask(kind), room(kind, 0), room(kind, 600)] {
        let room = entry.room.unwrap_or(0);
        let (code, answers) = get(&session, key, &[entry]);
        assert_eq!(code, Err(RvError::AttributeSensitive));
        assert_eq!(answers, [(NONE, untouched(room))]);
    }
}

fn an_empty_value_has_length_zero(fixture: &TokenFixture<'_>) {
    let (session, object) = certificate(fixture);
    for entry in [ask(CKA_URL), room(CKA_URL, 0), room(CKA_URL, 9)] {
        let room = entry.room.unwrap_or(0);
        let (code, answers) = get(&session, object, &[entry]);
        assert_eq!((code, answers), (Ok(()), vec![(0, untouched(room))]));
    }
}

/// All orders of all five rows: none stops the others, and the code is of one that applies.
fn get_attribute_value_fills_each_valid_entry_in_every_mixture(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let (key, sensitive) = secret(&session);
    let label = value(&session, key, CKA_LABEL);
    let len = label.len() as CK_ULONG;
    let rows: [(Entry, CK_ULONG, bool, Option<RvError>); 5] = [
        (
            room(sensitive, 64),
            NONE,
            false,
            Some(RvError::AttributeSensitive),
        ),
        (
            room(CKA_APPLICATION, 64),
            NONE,
            false,
            Some(RvError::AttributeTypeInvalid),
        ),
        (ask(CKA_LABEL), len, false, None),
        (room(CKA_LABEL, 64), len, true, None),
        (
            room(CKA_LABEL, 1),
            NONE,
            false,
            Some(RvError::BufferTooSmall),
        ),
    ];
    for mixture in 1..6_usize.pow(4) {
        let chosen = (0..4).filter_map(|digit| rows.get(mixture / 6_usize.pow(digit) % 6));
        let chosen: Vec<_> = chosen.collect();
        let entries: Vec<Entry> = chosen.iter().map(|row| row.0.clone()).collect();
        let (code, answers) = get(&session, key, &entries);
        for ((entry, expected, filled, _), (result, buffer)) in chosen.iter().zip(&answers) {
            assert_eq!(result, expected, "{:#x} in mixture {mixture}", entry.kind);
            let content = if *filled { label.clone() } else { Vec::new() };
            let rest = untouched(buffer.len() - content.len());
            assert_eq!(*buffer, [content, rest].concat());
        }
        let faults: Vec<RvError> = chosen.iter().filter_map(|row| row.3).collect();
        match code {
            Ok(()) => assert_eq!(faults, [], "mixture {mixture}"),
            Err(code) => assert!(faults.contains(&code), "mixture {mixture}: {code:?}"),
        }
    }
}

fn the_same_attribute_may_be_asked_for_twice(fixture: &TokenFixture<'_>) {
    let (session, object) = certificate(fixture);
    let (code, answers) = get(
        &session,
        object,
        &[room(CKA_ID, 9), room(CKA_ID, 9), ask(CKA_ID)],
    );
    assert_eq!(code, Ok(()));
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[2].0, answers[0].0);
}

fn get_attribute_value_with_empty_template_succeeds(fixture: &TokenFixture<'_>) {
    let (session, object) = certificate(fixture);
    let (code, _) = get(&session, object, &[]);
    assert_eq!(code, Ok(()));
}

fn a_template_that_is_not_there_is_a_bad_argument(fixture: &TokenFixture<'_>) {
    let (session, object) = certificate(fixture);
    for count in [1, 3, CK_ULONG::MAX] {
        let (session, object) = (session.id(), object.handle());
        let code = ck!(
            fixture.raw,
            C_GetAttributeValue,
            session,
            object,
            ptr::null_mut(),
            count
        );
        assert_eq!(checked(code), Err(RvError::ArgumentsBad));
    }
}

fn no_value_is_asked_of_the_card_twice(fixture: &TokenFixture<'_>) {
    let (session, object) = certificate(fixture);
    fixture.silently(|| {
        for kind in [CKA_VALUE, CKA_SUBJECT, CKA_ID, CKA_LABEL] {
            assert_eq!(get(&session, object, &[ask(kind)]).0, Ok(()));
        }
    });
}

fn an_unaligned_buffer_is_filled(fixture: &TokenFixture<'_>) {
    let (session, object) = certificate(fixture);
    let expected = value(&session, object, CKA_CLASS);
    for offset in 0..8 {
        let mut buffer = [UNTOUCHED; 24];
        let mut template = CK_ATTRIBUTE {
            type_: CKA_CLASS,
            pValue: buffer[offset..].as_mut_ptr().cast(),
            ulValueLen: 8,
        };
        let (session, object) = (session.id(), object.handle());
        let code = ck!(
            fixture.raw,
            C_GetAttributeValue,
            session,
            object,
            &raw mut template,
            1
        );
        assert_eq!(checked(code), Ok(()));
        assert_eq!(buffer[offset..offset + 8], expected);
        assert_eq!(buffer[offset + 8..], untouched(16 - offset));
    }
}
