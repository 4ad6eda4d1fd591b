//! Input and output in the same buffer, or in overlapping ones: the output is the same as in a separate buffer
//! (PKCS #11 3.2, 5.2).

use claviger_hw_tests::{
    fixture::{
        raw_call::{Arg, RawCall, memory::Use, words},
        token_fixture::TokenFixture,
    },
    for_each_card,
};
use cryptoki_sys::*;

use crate::{
    operations::{OperationKind, operation_kinds},
    templates::session_arg,
};

for_each_card! { [piv openpgp] [
    output_buffer_may_overlap_the_input
    parts_may_lie_over_their_output
    length_inside_the_output_buffer_does_no_harm
    attributes_may_share_their_room_and_lie_over_the_template
    each_attribute_is_answered_though_others_cannot_be
] }

/// Bytes by which the output begins before the input, or behind it.
const SHIFTS: [isize; 9] = [0, 1, 8, 15, 16, -1, -8, -15, -16];
const MIDDLE: usize = 64;

/// One piece that holds the input at its middle and the output `shift` bytes from there; what a function makes of it.
fn overlapped(
    calls: &mut RawCall<'_>,
    name: &str,
    operation: &OperationKind,
    room: usize,
    shift: isize,
) -> Vec<u8> {
    calls.memory.clear();
    let len = operation.input.len();
    let end = len.max(room.saturating_add_signed(shift));
    let mut content = vec![0; MIDDLE + end];
    content[MIDDLE..MIDDLE + len].copy_from_slice(&operation.input);
    let (start, piece) = calls.memory.place(&content, 0, Use::Free);
    let (count, number) = calls.memory.place(&room.to_ne_bytes(), 1, Use::Free);
    let Arg::Word(session) = operation.init.1[0] else {
        panic!("a session")
    };
    let input = start as usize + MIDDLE;
    let at = MIDDLE.saturating_add_signed(shift);
    let list = [session, input, len, start as usize + at, count as usize];
    let code = calls.call_words(name, &list);
    assert_eq!(code, CKR_OK, "{name}, shifted by {shift}");
    let written = calls.memory.number(number, 0);
    let content = calls.memory.content(piece);
    let (before, after) = (&content[..at.min(MIDDLE)], &content[at + written..]);
    assert!(before.iter().all(|byte| *byte == 0), "{name}: before it");
    let input = [&vec![0; MIDDLE][..], &operation.input].concat();
    let untouched = input.get(at + written..).unwrap_or_default();
    assert!(after.starts_with(untouched), "{name}: behind it");
    content[at..at + written].to_vec()
}

/// Gives the operation an input of distinct bytes, so that a misplaced byte is noticed.
fn distinct(mut operation: OperationKind) -> OperationKind {
    operation.input = (0..operation.input.len()).map(|at| at as u8 + 1).collect();
    operation
}

/// A signature of the card is another one each time.
fn repeats(operation: &OperationKind) -> bool {
    operation.output != 64
}

fn output_buffer_may_overlap_the_input(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let s = session_arg(&session);
    for operation in operation_kinds(&mut calls, &session)
        .into_iter()
        .map(distinct)
    {
        operation.begin(&mut calls);
        let apart = [s, Arg::Bytes(&operation.input), Arg::Out(operation.output)];
        let expected = calls.expect_ok(operation.single, &apart).output;
        for shift in SHIFTS {
            operation.begin(&mut calls);
            let made = overlapped(
                &mut calls,
                operation.single,
                &operation,
                operation.output,
                shift,
            );
            if repeats(&operation) {
                assert_eq!(made, expected, "{}, shifted by {shift}", operation.single);
            } else {
                assert_eq!(made.len(), expected.len());
            }
        }
    }
}

fn parts_may_lie_over_their_output(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let s = session_arg(&session);
    let ciphers = operation_kinds(&mut calls, &session)
        .into_iter()
        .map(distinct);
    for operation in ciphers.filter(|operation| operation.single.ends_with("crypt")) {
        let update = operation.update.expect("in parts");
        operation.begin(&mut calls);
        let room = [s, Arg::Bytes(&operation.input), Arg::Out(48)];
        let expected = calls.expect_ok(update, &room).output;
        assert!(operation.ends(&mut calls));
        for shift in SHIFTS {
            operation.begin(&mut calls);
            let made = overlapped(&mut calls, update, &operation, expected.len(), shift);
            assert_eq!(made, expected, "{update}, shifted by {shift}");
            assert!(operation.ends(&mut calls));
        }
    }
}

fn length_inside_the_output_buffer_does_no_harm(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    for operation in operation_kinds(&mut calls, &session) {
        operation.begin(&mut calls);
        calls.memory.clear();
        let mut content = operation.input.clone();
        content.resize(operation.output.max(content.len()) + 8, 0);
        content[..8].copy_from_slice(&operation.output.to_ne_bytes());
        let (start, _) = calls.memory.place(&content, 0, Use::Free);
        let (start, len) = (start as usize, operation.input.len());
        let list = [session.id() as usize, start, len, start, start];
        // The output is not checked. No other memory may change.
        let code = calls.call_words(operation.single, &list);
        assert_eq!(code, CKR_OK, "{}", operation.single);
        operation.works(&mut calls);
    }
}

/// C_GetAttributeValue with a template of words that may be written.
fn ask(
    calls: &mut RawCall<'_>,
    object: [usize; 2],
    list: &[usize],
    tail: usize,
) -> (CK_RV, Vec<usize>) {
    let (pointer, piece) = calls.memory.place(&words(list), tail, Use::Free);
    let [session, object] = object;
    let count = list.len() / 3;
    let code = calls.call_words(
        "C_GetAttributeValue",
        &[session, object, pointer as usize, count],
    );
    let lengths = (0..count).map(|entry| calls.memory.number(piece, entry * 24 + 16));
    (code, lengths.collect())
}

fn attributes_may_share_their_room_and_lie_over_the_template(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let object = [session.id() as usize, session.signer().handle() as usize];
    let (class, kind, label) = (
        CKA_CLASS as usize,
        CKA_KEY_TYPE as usize,
        CKA_LABEL as usize,
    );
    calls.memory.clear();
    let (room, piece) = calls.memory.place(&[0; 8], 0, Use::Free);
    let room = room as usize;
    let (code, lengths) = ask(&mut calls, object, &[kind, room, 8, class, room, 8], 0);
    assert_eq!((code, lengths), (CKR_OK, vec![8, 8]));
    assert_eq!(
        calls.memory.number(piece, 0) as CK_ULONG,
        CKO_PRIVATE_KEY,
        "the last one"
    );
    // The values go where the template is; how long they are is written last.
    for at in [0, 8, 16, 24, 28, 40] {
        calls.memory.clear();
        let (list, piece) = calls.memory.place(&[0; 48], 0, Use::Free);
        let over = list as usize + at;
        let template = words(&[class, over, 8, label, over, 48 - at]);
        calls.memory.fill(piece, &template);
        let list = [object[0], object[1], list as usize, 2];
        let code = calls.call_words("C_GetAttributeValue", &list);
        assert!(
            [CKR_OK, CKR_BUFFER_TOO_SMALL].contains(&code),
            "{at}: {code:#X}"
        );
        assert_eq!(calls.memory.number(piece, 16), 8, "{at}");
    }
    assert_eq!(session.signer().handle() as usize, object[1]);
}

fn each_attribute_is_answered_though_others_cannot_be(fixture: &TokenFixture<'_>) {
    const NO: usize = usize::MAX;
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let object = [session.id() as usize, session.signer().handle() as usize];
    let class = CKA_CLASS as usize;
    let (few, unknown) = (CKR_BUFFER_TOO_SMALL, CKR_ATTRIBUTE_TYPE_INVALID);
    // Attribute, room (none when it is the largest number), what is said of it; code and length.
    let rows: [(usize, usize, usize, CK_RV, usize); 9] = [
        (class, NO, 0, CKR_OK, 8),
        (class, NO, NO, CKR_OK, 8),
        (class, 8, 8, CKR_OK, 8),
        (class, 8, NO, CKR_OK, 8),
        (class, 7, 7, few, NO),
        (class, 0, 0, few, NO),
        (CKA_WRAP_TEMPLATE as usize, 48, 48, unknown, NO),
        (CKA_VENDOR_DEFINED as usize, 8, 8, unknown, NO),
        (CKA_PRIVATE_EXPONENT as usize, 8, 8, unknown, NO),
    ];
    for tail in [0, 1] {
        for (kind, room, length, code, len) in rows {
            calls.memory.clear();
            let purpose = if code == CKR_OK {
                Use::Free
            } else {
                Use::Input
            };
            let pointer = match room {
                NO => 0,
                room => calls.memory.place(&vec![0; room], tail, purpose).0 as usize,
            };
            let list = [kind, pointer, length, class, 0, 0, kind, 0, 0];
            let (result, lengths) = ask(&mut calls, object, &list, tail);
            let sensitive =
                result == CKR_ATTRIBUTE_SENSITIVE && kind == CKA_PRIVATE_EXPONENT as usize;
            assert!(result == code || sensitive, "{kind:#X}: {result:#X}");
            assert_eq!(lengths[..2], [len, 8], "{kind:#X}");
        }
    }
}
