//! Bad pointers and lengths of C_Encrypt…, C_Decrypt…, C_Digest…, C_Sign…, C_Verify… and related functions: every error but
//! BUFFER_TOO_SMALL ends the operation, and a length query does not (PKCS #11 3.2, 5.2 and 5.8 to 5.15).

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
    null_or_endless_input_ends_the_operation
    null_length_pointer_ends_the_operation_with_arguments_bad
    buffer_one_byte_short_keeps_the_operation_active
    length_query_for_huge_input_succeeds_or_ends_with_arguments_bad
    update_with_zero_length_input_succeeds_with_any_pointer
    missing_operation_is_reported_before_bad_arguments
    null_or_wrong_length_signature_ends_the_verification
] }

for_each_card! { [piv_rsa openpgp_rsa] [
    null_or_endless_input_ends_an_rsa_operation
    null_length_pointer_ends_an_rsa_operation_with_arguments_bad
    buffer_one_byte_short_keeps_an_rsa_operation_active
] }

/// A kind of operation that turns input into output.
#[derive(Clone, Debug)]
pub struct OperationKind {
    /// C_…Init and its arguments.
    pub init: (&'static str, Vec<Arg<'static>>),
    pub single: &'static str,
    pub update: Option<&'static str>,
    pub last: Option<&'static str>,
    pub input: Vec<u8>,
    /// Length of the output.
    pub output: usize,
    /// Whether C_…Update has output too.
    streams: bool,
}

impl OperationKind {
    pub fn begin(&self, calls: &mut RawCall<'_>) {
        calls.expect_ok(self.init.0, &self.init.1);
    }

    /// Ends the operation. Returns whether it was active.
    pub fn ends(&self, calls: &mut RawCall<'_>) -> bool {
        let (name, arguments) = &self.init;
        let is_active = match calls.call(name, arguments).code {
            CKR_OPERATION_ACTIVE => true,
            code => {
                assert_eq!(code, CKR_OK, "{name}");
                false
            }
        };
        let nothing: Vec<Arg<'_>> = (1..arguments.len()).map(|_| NULL).collect();
        calls.expect_ok(name, &[&arguments[..1], &nothing].concat());
        is_active
    }

    /// Begins the operation and makes a call. Checks its code, and whether the operation stays active.
    #[track_caller]
    fn expect(
        &self,
        calls: &mut RawCall<'_>,
        (code, stays): (CK_RV, bool),
        name: &str,
        what: &str,
        arguments: &[Arg<'_>],
    ) {
        let all = [&self.init.1[..1], arguments].concat();
        self.begin(calls);
        calls
            .fixture
            .silently(|| calls.expect(code, name, what, &all));
        assert_eq!(self.ends(calls), stays, "{name}, {what}: active or not");
    }

    /// Runs the whole operation, which must succeed.
    pub fn works(&self, calls: &mut RawCall<'_>) {
        self.begin(calls);
        let (session, input) = (self.init.1[0], Arg::Bytes(&self.input));
        let result = calls.expect_ok(self.single, &[session, input, Arg::Out(self.output)]);
        assert_eq!(result.len, self.output, "{}", self.single);
    }
}

fn operation_kind(
    init: (&'static str, &[Arg<'static>]),
    [single, update, last]: [&'static str; 3],
    (input, output): (Vec<u8>, usize),
) -> OperationKind {
    let some = |name: &'static str| Some(name).filter(|name| !name.is_empty());
    OperationKind {
        init: (init.0, init.1.to_vec()),
        single,
        update: some(update),
        last: some(last),
        input,
        output,
        streams: single.ends_with("crypt"),
    }
}

const ENCRYPT: [&str; 3] = ["C_Encrypt", "C_EncryptUpdate", "C_EncryptFinal"];
const DECRYPT: [&str; 3] = ["C_Decrypt", "C_DecryptUpdate", "C_DecryptFinal"];
const DIGEST: [&str; 3] = ["C_Digest", "C_DigestUpdate", "C_DigestFinal"];
const SIGN: [&str; 3] = ["C_Sign", "C_SignUpdate", "C_SignFinal"];
const IV: [u8; 16] = [7; 16];

/// The operations of every token with session keys, and a signature by the card.
pub fn operation_kinds(calls: &mut RawCall<'_>, session: &TestSession) -> Vec<OperationKind> {
    let s = session_arg(session);
    let (aes, generic) = (calls.aes(s), calls.generic(s));
    let signer = session.signer();
    let signing = session.signing(signer).mechanism;
    let mechanism = |kind| Arg::Mechanism(kind, &[]);
    let signer = Arg::Word(signer.handle() as usize);
    let (ecb, cbc) = (mechanism(CKM_AES_ECB), Arg::Mechanism(CKM_AES_CBC, &IV));
    let padded = Arg::Mechanism(CKM_AES_CBC_PAD, &IV);
    let block = || vec![3; 32];
    let hashed = [s, mechanism(CKM_SHA256)];
    let mac = [s, mechanism(CKM_SHA256_HMAC), generic];
    let mut operations = vec![
        operation_kind(("C_EncryptInit", &[s, ecb, aes]), ENCRYPT, (block(), 32)),
        operation_kind(("C_EncryptInit", &[s, cbc, aes]), ENCRYPT, (block(), 32)),
        operation_kind(
            ("C_EncryptInit", &[s, padded, aes]),
            ENCRYPT,
            (vec![3; 20], 32),
        ),
        operation_kind(("C_DecryptInit", &[s, ecb, aes]), DECRYPT, (block(), 32)),
        operation_kind(("C_DecryptInit", &[s, cbc, aes]), DECRYPT, (block(), 32)),
        operation_kind(("C_DigestInit", &hashed), DIGEST, (block(), 32)),
        operation_kind(("C_SignInit", &mac), SIGN, (block(), 32)),
    ];
    let by_card = [s, mechanism(signing), signer];
    operations.push(operation_kind(
        ("C_SignInit", &by_card),
        SIGN,
        (block(), 64),
    ));
    operations
}

/// The operations of RSA keys on a card, and of their public keys on the host.
fn rsa_operation_kinds(session: &TestSession) -> Vec<OperationKind> {
    let s = session_arg(session);
    let handle = |key: cryptoki::object::ObjectHandle| Arg::Word(key.handle() as usize);
    let pkcs1 = Arg::Mechanism(CKM_RSA_PKCS, &[]);
    let decrypts = cryptoki::object::Attribute::Decrypt(true);
    let once = cryptoki::object::Attribute::AlwaysAuthenticate(false);
    let decryptor = session.private_with(&[decrypts, once]);
    let decryptor = *decryptor.last().expect("a key that decrypts");
    let public = session.public_of(decryptor);
    let (signer, message) = (session.signer(), vec![5; 32]);
    let recover = [s, pkcs1, handle(signer)];
    let only = |single| [single, "", ""];
    vec![
        operation_kind(
            ("C_EncryptInit", &[s, pkcs1, handle(public)]),
            ENCRYPT,
            (message.clone(), 256),
        ),
        operation_kind(
            ("C_DecryptInit", &[s, pkcs1, handle(decryptor)]),
            DECRYPT,
            (vec![1; 256], 245),
        ),
        operation_kind(("C_SignInit", &recover), SIGN, (message.clone(), 256)),
        operation_kind(
            ("C_SignRecoverInit", &recover),
            only("C_SignRecover"),
            (message, 256),
        ),
    ]
}

fn bad_input(calls: &mut RawCall<'_>, operations: &[OperationKind]) {
    let over = (CKR_ARGUMENTS_BAD, false);
    for operation in operations {
        let there = Arg::In(&operation.input);
        for (what, input, len) in [
            ("nowhere", NULL, 8),
            ("nowhere, endless", NULL, HUGE),
            ("endless", there, HUGE),
            ("half the address space and one", there, HUGE / 2 + 1),
        ] {
            let whole = [input, Arg::Word(len), Arg::Out(operation.output.max(300))];
            operation.expect(calls, over, operation.single, what, &whole);
            if let Some(update) = operation.update {
                let part = if operation.streams {
                    &whole[..]
                } else {
                    &whole[..2]
                };
                operation.expect(calls, over, update, what, part);
            }
        }
    }
}

fn bad_output(calls: &mut RawCall<'_>, operations: &[OperationKind]) {
    let over = (CKR_ARGUMENTS_BAD, false);
    for operation in operations {
        let (input, room) = (Arg::Bytes(&operation.input), vec![0; operation.output]);
        for (what, buffer) in [("a buffer", Arg::In(&room)), ("no buffer", NULL)] {
            operation.expect(calls, over, operation.single, what, &[input, buffer, NULL]);
            if let Some(update) = operation.update.filter(|_| operation.streams) {
                operation.expect(calls, over, update, what, &[input, buffer, NULL]);
            }
            if let Some(last) = operation.last {
                operation.expect(calls, over, last, what, &[buffer, NULL]);
            }
        }
    }
}

fn short_output(calls: &mut RawCall<'_>, operations: &[OperationKind]) {
    for operation in operations {
        let (session, input) = (operation.init.1[0], Arg::Bytes(&operation.input));
        operation.begin(calls);
        calls.fixture.silently(|| {
            let asked = calls.expect_ok(operation.single, &[session, input, Arg::Asked]);
            assert!(asked.len >= operation.output, "{}", operation.single);
            for room in [0, 1, operation.output - 1] {
                let result = calls.call(operation.single, &[session, input, Arg::Out(room)]);
                assert_eq!(result.code, CKR_BUFFER_TOO_SMALL, "{}", operation.single);
                assert_eq!(result.len, asked.len, "{}", operation.single);
            }
        });
        assert!(operation.ends(calls), "{} has ended it", operation.single);
    }
}

fn null_or_endless_input_ends_the_operation(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let operations = operation_kinds(&mut calls, &session);
    bad_input(&mut calls, &operations);
    operations
        .iter()
        .for_each(|operation| operation.works(&mut calls));
}

fn null_length_pointer_ends_the_operation_with_arguments_bad(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let operations = operation_kinds(&mut calls, &session);
    bad_output(&mut calls, &operations);
    operations
        .iter()
        .for_each(|operation| operation.works(&mut calls));
}

fn buffer_one_byte_short_keeps_the_operation_active(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let operations = operation_kinds(&mut calls, &session);
    short_output(&mut calls, &operations);
    operations
        .iter()
        .for_each(|operation| operation.works(&mut calls));
}

fn null_or_endless_input_ends_an_rsa_operation(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    bad_input(&mut calls, &rsa_operation_kinds(&session));
}

fn null_length_pointer_ends_an_rsa_operation_with_arguments_bad(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    bad_output(&mut calls, &rsa_operation_kinds(&session));
}

fn buffer_one_byte_short_keeps_an_rsa_operation_active(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    short_output(&mut calls, &rsa_operation_kinds(&session));
}

fn length_query_for_huge_input_succeeds_or_ends_with_arguments_bad(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let operations = operation_kinds(&mut calls, &session);
    for operation in &operations {
        let session = operation.init.1[0];
        for len in [HUGE, HUGE - 1, HUGE - 15, HUGE - 16, HUGE / 2, HUGE / 2 + 1] {
            operation.begin(&mut calls);
            let asked = calls.call(
                operation.single,
                &[session, NULL, Arg::Word(len), Arg::Asked],
            );
            // A length beyond any memory may be rejected too. That ends the operation.
            let stays = operation.ends(&mut calls);
            match asked.code {
                CKR_OK => assert!(
                    stays && asked.len >= operation.output,
                    "{len:#X}: {asked:?}"
                ),
                CKR_ARGUMENTS_BAD => assert!(!stays, "{}", operation.single),
                code => panic!("{}: {code:#X}", operation.single),
            }
        }
    }
}

fn update_with_zero_length_input_succeeds_with_any_pointer(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let operations = operation_kinds(&mut calls, &session);
    for operation in &operations {
        let update = operation.update.expect("in parts");
        operation.begin(&mut calls);
        for pointer in [0, 1, HUGE] {
            let nothing = [
                operation.init.1[0],
                Arg::Word(pointer),
                Arg::Word(0),
                Arg::Out(0),
            ];
            let arguments = if operation.streams { 4 } else { 3 };
            calls.expect_ok(update, &nothing[..arguments]);
        }
        assert!(operation.ends(&mut calls), "{update} has ended it");
    }
}

fn missing_operation_is_reported_before_bad_arguments(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let s = session_arg(&session);
    let names = [
        "C_Encrypt",
        "C_EncryptUpdate",
        "C_Decrypt",
        "C_DecryptUpdate",
        "C_Digest",
        "C_Sign",
        "C_SignRecover",
        "C_Verify",
        "C_VerifyRecover",
        "C_DigestEncryptUpdate",
        "C_DecryptDigestUpdate",
        "C_SignEncryptUpdate",
        "C_DecryptVerifyUpdate",
    ];
    let none = CKR_OPERATION_NOT_INITIALIZED;
    for name in names {
        for len in [1, HUGE] {
            let arguments = [s, NULL, Arg::Word(len), NULL, Arg::Word(0)];
            calls.expect(none, name, "nothing begun", &arguments);
        }
    }
    for name in [
        "C_EncryptFinal",
        "C_DecryptFinal",
        "C_DigestFinal",
        "C_SignFinal",
    ] {
        calls.expect(none, name, "nothing begun", &[s, NULL, NULL]);
    }
    for name in [
        "C_DigestUpdate",
        "C_SignUpdate",
        "C_VerifyUpdate",
        "C_VerifyFinal",
    ] {
        calls.expect(none, name, "nothing begun", &[s, NULL, Arg::Word(HUGE)]);
    }
    calls.expect(none, "C_DigestKey", "nothing begun", &[s, Arg::Word(HUGE)]);
}

fn null_or_wrong_length_signature_ends_the_verification(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let s = session_arg(&session);
    let (key, signer) = (calls.generic(s), session.signer());
    let public = Arg::Word(session.public_of(signer).handle() as usize);
    let by_card = Arg::Mechanism(session.signing(signer).mechanism, &[]);
    let mac = Arg::Mechanism(CKM_SHA256_HMAC, &[]);
    let message = Arg::Bytes(b"message");
    for (arguments, len) in [([s, mac, key], 32), ([s, by_card, public], 64)] {
        let operation = operation_kind(
            ("C_VerifyInit", &arguments),
            ["C_Verify", "", ""],
            (Vec::new(), len),
        );
        let signature = vec![1; len];
        let there = Arg::In(&signature);
        for (code, pointer, length) in [
            (CKR_ARGUMENTS_BAD, NULL, 0),
            (CKR_ARGUMENTS_BAD, NULL, len),
            (CKR_ARGUMENTS_BAD, NULL, HUGE),
            (CKR_SIGNATURE_LEN_RANGE, there, 0),
            (CKR_SIGNATURE_LEN_RANGE, there, len - 1),
            (CKR_SIGNATURE_LEN_RANGE, there, HUGE),
            (CKR_SIGNATURE_LEN_RANGE, there, 1 << 20),
            (CKR_SIGNATURE_INVALID, there, len),
        ] {
            let what = format!("{length:#X} bytes");
            let pair = [pointer, Arg::Word(length)];
            operation.expect(
                &mut calls,
                (code, false),
                "C_Verify",
                &what,
                &[&[message], &pair[..]].concat(),
            );
            operation.expect(&mut calls, (code, false), "C_VerifyFinal", &what, &pair);
        }
        let nowhere = [NULL, Arg::Word(1), Arg::Bytes(&signature)];
        operation.expect(
            &mut calls,
            (CKR_ARGUMENTS_BAD, false),
            "C_Verify",
            "nowhere",
            &nowhere,
        );
    }
}
