//! Message-based signing, C_VerifySignature, data recovery and dual functions with null pointers and bad lengths
//! (PKCS #11 3.2, 5.13, 5.15 to 5.17).

use claviger_hw_tests::{
    fixture::{
        raw_call::{Arg, HUGE, NULL, RawCall},
        token_fixture::{TestSession, TokenFixture},
    },
    for_each_card,
};
use cryptoki_sys::*;

use crate::templates::session_arg;

for_each_card! { [piv openpgp] [
    bad_message_keeps_the_message_signing_operation
    bad_message_keeps_the_message_verification_operation
    a_parameter_for_a_message_is_a_bad_argument
    known_signature_of_null_or_wrong_length_leaves_no_active_operation
    a_bad_message_ends_the_verification_of_a_known_signature
    dual_function_error_ends_both_operations
    two_operations_at_once_are_both_needed
] }

for_each_card! { [piv_rsa openpgp_rsa] [
    verify_recover_rejects_null_wrong_length_and_forged_signatures
] }

const NOTHING: CK_RV = CKR_OPERATION_NOT_INITIALIZED;
const SHA256: Arg<'static> = Arg::Mechanism(CKM_SHA256, &[]);
const MAC: Arg<'static> = Arg::Mechanism(CKM_SHA256_HMAC, &[]);
const ECB: Arg<'static> = Arg::Mechanism(CKM_AES_ECB, &[]);
const MESSAGE: Arg<'static> = Arg::Bytes(b"a message of the right sort");
const NONE: [Arg<'static>; 2] = [NULL, Arg::Word(0)];

/// Bytes that are nowhere, or past all memory.
const BAD: [(&str, Arg<'static>, usize); 4] = [
    ("nowhere", NULL, 8),
    ("nowhere, endless", NULL, HUGE),
    ("endless", Arg::In(b"12345678"), HUGE),
    ("past the address space", Arg::In(b"12345678"), HUGE / 2 + 1),
];

/// Mechanism and key of a signature by the card, of its verification, and of a MAC.
fn pairs(calls: &mut RawCall<'_>, session: &TestSession) -> [[[Arg<'static>; 2]; 2]; 2] {
    let mac = [MAC, calls.generic(session_arg(session))];
    let signer = session.signer();
    let mechanism = Arg::Mechanism(session.signing(signer).mechanism, &[]);
    let public = Arg::Word(session.public_of(signer).handle() as usize);
    let signer = Arg::Word(signer.handle() as usize);
    [[mac, mac], [[mechanism, signer], [mechanism, public]]]
}

/// The arguments after the session.
fn all<'a>(session: Arg<'a>, parts: &[&[Arg<'a>]]) -> Vec<Arg<'a>> {
    [&[session][..], &parts.concat()].concat()
}

fn bad_message_keeps_the_message_signing_operation(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let s = session_arg(&session);
    for [signing, _] in pairs(&mut calls, &session) {
        calls.expect_ok("C_MessageSignInit", &all(s, &[&signing]));
        let good = all(s, &[&NONE, &[MESSAGE, Arg::Out(64)]]);
        let expected = calls.expect_ok("C_SignMessage", &good).output.len();
        for (what, pointer, len) in BAD {
            let bad = [pointer, Arg::Word(len)];
            let whole = all(s, &[&NONE, &bad, &[Arg::Out(64)]]);
            calls.expect(CKR_ARGUMENTS_BAD, "C_SignMessage", what, &whole);
            calls.expect_ok("C_SignMessageBegin", &all(s, &[&NONE]));
            let part = all(s, &[&NONE, &bad, &[NULL, NULL]]);
            calls.expect(CKR_ARGUMENTS_BAD, "C_SignMessageNext", what, &part);
            calls.expect(CKR_ARGUMENTS_BAD, "C_SignMessageNext", what, &whole);
            let result = calls.expect_ok("C_SignMessageNext", &good);
            assert_eq!(result.output.len(), expected, "{what}");
        }
        let nowhere = all(s, &[&NONE, &[MESSAGE, Arg::In(&[0; 64]), NULL]]);
        calls.expect(CKR_ARGUMENTS_BAD, "C_SignMessage", "no length", &nowhere);
        calls.expect_ok("C_SignMessage", &good);
        calls.expect_ok("C_MessageSignFinal", &[s]);
        calls.expect(NOTHING, "C_SignMessage", "after the end", &good);
    }
}

fn bad_message_keeps_the_message_verification_operation(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let s = session_arg(&session);
    for [signing, verifying] in pairs(&mut calls, &session) {
        calls.expect_ok("C_SignInit", &all(s, &[&signing]));
        let signature = calls
            .expect_ok("C_Sign", &[s, MESSAGE, Arg::Out(64)])
            .output;
        let (right, len) = (Arg::Bytes(&signature), signature.len());
        calls.expect_ok("C_MessageVerifyInit", &all(s, &[&verifying]));
        let good = all(s, &[&NONE, &[MESSAGE, right]]);
        for (what, pointer, len) in BAD {
            let bad = [pointer, Arg::Word(len)];
            let whole = all(s, &[&NONE, &bad, &[right]]);
            calls.expect(CKR_ARGUMENTS_BAD, "C_VerifyMessage", what, &whole);
            calls.expect_ok("C_VerifyMessage", &good);
            calls.expect_ok("C_VerifyMessageBegin", &all(s, &[&NONE]));
            calls.expect(CKR_ARGUMENTS_BAD, "C_VerifyMessageNext", what, &whole);
            calls.expect_ok("C_VerifyMessageNext", &good);
        }
        let there = Arg::In(&signature);
        for length in [0, len - 1, HUGE, 1 << 20, 65_537] {
            let cut = all(s, &[&NONE, &[MESSAGE, there, Arg::Word(length)]]);
            let what = format!("a signature of {length:#X} bytes");
            calls.expect(CKR_SIGNATURE_LEN_RANGE, "C_VerifyMessage", &what, &cut);
            calls.expect_ok("C_VerifyMessage", &good);
        }
        let none = all(s, &[&NONE, &[MESSAGE], &NONE]);
        calls.expect(CKR_ARGUMENTS_BAD, "C_VerifyMessage", "no signature", &none);
        calls.expect_ok("C_VerifyMessage", &good);
        calls.expect_ok("C_MessageVerifyFinal", &[s]);
        calls.expect(NOTHING, "C_VerifyMessage", "after the end", &good);
    }
}

fn a_parameter_for_a_message_is_a_bad_argument(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let s = session_arg(&session);
    let [[signing, verifying], _] = pairs(&mut calls, &session);
    calls.expect_ok("C_MessageSignInit", &all(s, &[&signing]));
    calls.expect_ok("C_MessageVerifyInit", &all(s, &[&verifying]));
    let byte = Arg::In(b"x");
    let rows = [
        [byte, Arg::Word(1)],
        [byte, Arg::Word(0)],
        [NULL, Arg::Word(1)],
        [NULL, Arg::Word(HUGE)],
    ];
    let signature = Arg::Bytes(&[1; 32]);
    for parameter in rows {
        let what = format!("{parameter:?}");
        let sign = all(s, &[&parameter, &[MESSAGE, Arg::Out(64)]]);
        let verify = all(s, &[&parameter, &[MESSAGE, signature]]);
        let begin = all(s, &[&parameter]);
        for (name, arguments) in [
            ("C_SignMessage", &sign),
            ("C_SignMessageBegin", &begin),
            ("C_VerifyMessage", &verify),
            ("C_VerifyMessageBegin", &begin),
        ] {
            calls.expect(CKR_ARGUMENTS_BAD, name, &what, arguments);
        }
    }
    let next = all(s, &[&NONE, &[MESSAGE, Arg::Out(64)]]);
    calls.expect(NOTHING, "C_SignMessageNext", "no message was begun", &next);
    calls.expect_ok("C_SignMessage", &next);
}

fn known_signature_of_null_or_wrong_length_leaves_no_active_operation(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let s = session_arg(&session);
    for [_, verifying] in pairs(&mut calls, &session) {
        for (what, len) in [("nowhere", 0), ("nowhere", 64), ("nowhere, endless", HUGE)] {
            let arguments = all(s, &[&verifying, &[NULL, Arg::Word(len)]]);
            calls.expect(CKR_ARGUMENTS_BAD, "C_VerifySignatureInit", what, &arguments);
            calls.expect(NOTHING, "C_VerifySignature", what, &[s, MESSAGE]);
        }
        // An invalid length is reported at the init or at the verification.
        let there = Arg::In(b"12345678");
        for len in [0, 8, 65_537, 1 << 20, HUGE / 2 + 1, HUGE] {
            let arguments = all(s, &[&verifying, &[there, Arg::Word(len)]]);
            let begun = calls.call("C_VerifySignatureInit", &arguments).code;
            let result = match begun {
                CKR_OK => calls.call("C_VerifySignature", &[s, MESSAGE]).code,
                code => code,
            };
            assert_eq!(result, CKR_SIGNATURE_LEN_RANGE, "{len:#X} bytes");
            calls.expect(NOTHING, "C_VerifySignature", "over", &[s, MESSAGE]);
        }
    }
}

fn a_bad_message_ends_the_verification_of_a_known_signature(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let s = session_arg(&session);
    for [signing, verifying] in pairs(&mut calls, &session) {
        calls.expect_ok("C_SignInit", &all(s, &[&signing]));
        let signature = calls
            .expect_ok("C_Sign", &[s, MESSAGE, Arg::Out(64)])
            .output;
        let init = all(s, &[&verifying, &[Arg::Bytes(&signature)]]);
        for (what, pointer, len) in BAD {
            for name in ["C_VerifySignature", "C_VerifySignatureUpdate"] {
                calls.expect_ok("C_VerifySignatureInit", &init);
                let bad = [s, pointer, Arg::Word(len)];
                calls.expect(CKR_ARGUMENTS_BAD, name, what, &bad);
                calls.expect(NOTHING, "C_VerifySignatureFinal", what, &[s]);
            }
        }
        calls.expect_ok("C_VerifySignatureInit", &init);
        calls.expect_ok("C_VerifySignature", &[s, MESSAGE]);
    }
}

/// Two operations: how each begins, and the function that does both.
fn twins(calls: &mut RawCall<'_>, s: Arg<'static>) -> [(Init, Init, &'static str); 4] {
    let (aes, mac) = (calls.aes(s), calls.generic(s));
    let [encrypt, decrypt] =
        ["C_EncryptInit", "C_DecryptInit"].map(|name| (name, vec![s, ECB, aes]));
    let digest = ("C_DigestInit", vec![s, SHA256]);
    let sign = ("C_SignInit", vec![s, MAC, mac]);
    let verify = ("C_VerifyInit", vec![s, MAC, mac]);
    [
        (digest.clone(), encrypt.clone(), "C_DigestEncryptUpdate"),
        (digest, decrypt.clone(), "C_DecryptDigestUpdate"),
        (sign, encrypt, "C_SignEncryptUpdate"),
        (verify, decrypt, "C_DecryptVerifyUpdate"),
    ]
}

type Init = (&'static str, Vec<Arg<'static>>);

fn dual_function_error_ends_both_operations(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let s = session_arg(&session);
    for (one, other, both) in twins(&mut calls, s) {
        let rows = BAD
            .map(|(what, pointer, len)| (what, [pointer, Arg::Word(len), Arg::Out(64)].to_vec()));
        let block = Arg::Bytes(&[1; 16]);
        let nowhere = ("no length", vec![block, Arg::In(&[0; 16]), NULL]);
        for (what, arguments) in rows.into_iter().chain([nowhere]) {
            calls.expect_ok(one.0, &one.1);
            calls.expect_ok(other.0, &other.1);
            calls.expect(
                CKR_BUFFER_TOO_SMALL,
                both,
                "15 bytes",
                &[s, block, Arg::Out(15)],
            );
            calls.expect_ok(both, &[s, block, Arg::Asked]);
            calls.expect(CKR_ARGUMENTS_BAD, both, what, &all(s, &[&arguments]));
            // Neither operation is active: each can begin again.
            calls.expect_ok(one.0, &one.1);
            calls.expect_ok(other.0, &other.1);
            calls.expect_ok(both, &[s, block, Arg::Out(16)]);
            for init in [&one, &other] {
                let nothing = vec![NULL; init.1.len() - 1];
                calls.expect_ok(init.0, &all(s, &[&nothing]));
            }
        }
    }
}

fn two_operations_at_once_are_both_needed(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let s = session_arg(&session);
    let block = Arg::Bytes(&[1; 16]);
    for (one, other, both) in twins(&mut calls, s) {
        for init in [&one, &other] {
            calls.expect_ok(init.0, &init.1);
            calls.expect(NOTHING, both, "one of two", &[s, block, Arg::Out(16)]);
            calls.expect(CKR_OPERATION_ACTIVE, init.0, "it goes on", &init.1);
            let nothing = vec![NULL; init.1.len() - 1];
            calls.expect_ok(init.0, &all(s, &[&nothing]));
        }
    }
}

fn verify_recover_rejects_null_wrong_length_and_forged_signatures(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let (s, signer) = (session_arg(&session), session.signer());
    let public = Arg::Word(session.public_of(signer).handle() as usize);
    let signer = Arg::Word(signer.handle() as usize);
    let pkcs1 = Arg::Mechanism(CKM_RSA_PKCS, &[]);
    calls.expect_ok("C_SignRecoverInit", &[s, pkcs1, signer]);
    let signature = calls
        .expect_ok("C_SignRecover", &[s, MESSAGE, Arg::Out(256)])
        .output;
    let there = Arg::In(&signature);
    let init = [s, pkcs1, public];
    for (code, pointer, len) in [
        (CKR_ARGUMENTS_BAD, NULL, 256),
        (CKR_ARGUMENTS_BAD, NULL, HUGE),
        (CKR_SIGNATURE_LEN_RANGE, there, 0),
        (CKR_SIGNATURE_LEN_RANGE, there, 255),
        (CKR_SIGNATURE_LEN_RANGE, there, HUGE),
        (CKR_SIGNATURE_INVALID, Arg::In(&[1; 256]), 256),
    ] {
        calls.expect_ok("C_VerifyRecoverInit", &init);
        let arguments = [s, pointer, Arg::Word(len), Arg::Out(256)];
        calls.expect(
            code,
            "C_VerifyRecover",
            &format!("{len:#X} bytes"),
            &arguments,
        );
        calls.expect(NOTHING, "C_VerifyRecover", "over", &arguments);
    }
    calls.expect_ok("C_VerifyRecoverInit", &init);
    let nowhere = [s, Arg::Bytes(&signature), Arg::In(&[0; 256]), NULL];
    calls.expect(CKR_ARGUMENTS_BAD, "C_VerifyRecover", "no length", &nowhere);
    calls.expect_ok("C_VerifyRecoverInit", &init);
    let all = Arg::Bytes(&signature);
    calls.expect(
        CKR_BUFFER_TOO_SMALL,
        "C_VerifyRecover",
        "short",
        &[s, all, Arg::Out(26)],
    );
    let result = calls.expect_ok("C_VerifyRecover", &[s, all, Arg::Out(27)]);
    assert_eq!(result.output, b"a message of the right sort");
}
