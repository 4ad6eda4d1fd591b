//! Parameters of mechanisms: absent, of the wrong size, with null pointers or with pointers to the end of memory
//! (PKCS #11 3.2, 5.1 and 6).

use claviger_hw_tests::{
    fixture::{
        raw_call::{
            Arg, HUGE, NULL, RawCall,
            memory::{Memory, Use},
            words,
        },
        token_fixture::TokenFixture,
    },
    for_each_card,
};
use cryptoki::object::{Attribute, ObjectClass};
use cryptoki_sys::*;

use crate::templates::session_arg;

for_each_card! { [piv openpgp] [
    a_mechanism_without_a_parameter_takes_none
    a_parameter_of_another_size_is_invalid
    numbers_in_a_parameter_have_their_range
    gcm_parameters_with_bad_pointers_or_lengths_are_rejected
    a_mechanism_at_an_odd_address_is_read
    unknown_mechanism_is_invalid_with_any_parameter
] }

for_each_card! { [piv_rsa] [
    parameters_of_pss_and_oaep_are_held_to_their_rules
] }

for_each_card! { [piv_ec openpgp_ec] [
    parameters_of_an_agreement_are_held_to_their_rules
] }

const BAD: CK_RV = CKR_MECHANISM_PARAM_INVALID;
const POINT: &[u8] = &[
    0x04, 0x6B, 0x17, 0xD1, 0xF2, 0xE1, 0x2C, 0x42, 0x47, 0xF8, 0xBC, 0xE6, 0xE5, 0x63, 0xA4, 0x40,
    0xF2, 0x77, 0x03, 0x7D, 0x81, 0x2D, 0xEB, 0x33, 0xA0, 0xF4, 0xA1, 0x39, 0x45, 0xD8, 0x98, 0xC2,
    0x96, 0x4F, 0xE3, 0x42, 0xE2, 0xFE, 0x1A, 0x7F, 0x9B, 0x8E, 0xE7, 0xEB, 0x4A, 0x7C, 0x0F, 0x9E,
    0x16, 0x2B, 0xCE, 0x33, 0x57, 0x6B, 0x31, 0x5E, 0xCE, 0xCB, 0xB6, 0x40, 0x68, 0x37, 0xBF, 0x51,
    0xF5,
];

/// Memory of the test's own that a parameter can point to; it lasts as long as the test, and ends at a page that cannot
/// be touched.
struct Store(Memory);

impl Store {
    fn keep(&mut self, bytes: &[u8]) -> usize {
        self.0.place(bytes, 0, Use::Input).0 as usize
    }
}

fn store() -> Store {
    Store(Memory::new())
}

fn counter(bits: usize) -> Vec<u8> {
    [&words(&[bits])[..], &[0; 16]].concat()
}

/// C_…Init of a mechanism whose parameter is so many bytes; when it begins, it is ended again.
#[track_caller]
fn begins(calls: &mut RawCall<'_>, code: CK_RV, name: &str, what: &str, arguments: &[Arg<'_>]) {
    calls
        .fixture
        .silently(|| calls.expect(code, name, what, arguments));
    if code == CKR_OK {
        let nothing = vec![NULL; arguments.len() - 1];
        calls.expect_ok(name, &[&arguments[..1], &nothing].concat());
    }
}

fn a_mechanism_without_a_parameter_takes_none(fixture: &TokenFixture<'_>) {
    let (mut calls, session, mut store) = (RawCall::new(fixture), fixture.user(), store());
    let s = session_arg(&session);
    let (aes, generic, signer) = (calls.aes(s), calls.generic(s), session.signer());
    let signing = session.signing(signer).mechanism;
    let signer = Arg::Word(signer.handle() as usize);
    let there = store.keep(&[0; 8]);
    for (name, kind, key) in [
        ("C_DigestInit", CKM_SHA256, None),
        ("C_SignInit", signing, Some(signer)),
        ("C_SignInit", CKM_SHA256_HMAC, Some(generic)),
        ("C_VerifyInit", CKM_SHA256_HMAC, Some(generic)),
        ("C_EncryptInit", CKM_AES_ECB, Some(aes)),
        ("C_DecryptInit", CKM_AES_ECB, Some(aes)),
        ("C_MessageSignInit", signing, Some(signer)),
    ] {
        for (pointer, len) in [(there, 1), (there, 8), (there, HUGE), (0, 1), (0, HUGE)] {
            let arguments = [Some(s), Some(Arg::RawMechanism(kind, pointer, len)), key];
            let arguments: Vec<Arg<'_>> = arguments.into_iter().flatten().collect();
            begins(
                &mut calls,
                BAD,
                name,
                &format!("{kind:#X}, {len:#X} bytes"),
                &arguments,
            );
        }
        let arguments = [Some(s), Some(Arg::RawMechanism(kind, 0, 0)), key];
        let arguments: Vec<Arg<'_>> = arguments.into_iter().flatten().collect();
        begins(&mut calls, CKR_OK, name, "no parameter", &arguments);
    }
}

/// Mechanisms of AES and HMAC with a valid parameter that contains no pointers.
fn simple(
    aes: Arg<'static>,
    generic: Arg<'static>,
) -> Vec<(&'static str, CK_ULONG, Arg<'static>, Vec<u8>)> {
    vec![
        ("C_EncryptInit", CKM_AES_CBC, aes, vec![7; 16]),
        ("C_DecryptInit", CKM_AES_CBC_PAD, aes, vec![7; 16]),
        ("C_EncryptInit", CKM_AES_CTR, aes, counter(128)),
        ("C_SignInit", CKM_SHA256_HMAC_GENERAL, generic, words(&[16])),
        (
            "C_VerifyInit",
            CKM_SHA256_HMAC_GENERAL,
            generic,
            words(&[32]),
        ),
    ]
}

fn a_parameter_of_another_size_is_invalid(fixture: &TokenFixture<'_>) {
    let (mut calls, session, mut store) = (RawCall::new(fixture), fixture.user(), store());
    let s = session_arg(&session);
    let (aes, generic) = (calls.aes(s), calls.generic(s));
    for (name, kind, key, right) in simple(aes, generic) {
        let len = right.len();
        let there = store.keep(&right);
        let longer = store.keep(&[&right[..], &[0]].concat());
        for (pointer, length) in [
            (there, 0),
            (there, len - 1),
            (longer, len + 1),
            (there, HUGE),
            (there, HUGE / 2 + 1),
            (0, 0),
            (0, len),
            (0, HUGE),
        ] {
            let what = format!("{kind:#X}, {length:#X} bytes");
            begins(
                &mut calls,
                BAD,
                name,
                &what,
                &[s, Arg::RawMechanism(kind, pointer, length), key],
            );
        }
        begins(
            &mut calls,
            CKR_OK,
            name,
            "right",
            &[s, Arg::RawMechanism(kind, there, len), key],
        );
    }
    for (kind, right, wrong) in [
        (CKM_AES_KEY_WRAP, 8, [4, 7, 9]),
        (CKM_AES_KEY_WRAP_KWP, 4, [3, 5, 8]),
    ] {
        for len in wrong.into_iter().chain([HUGE]) {
            let there = store.keep(&[1; 9]);
            let arguments = [
                s,
                Arg::RawMechanism(kind, there, len),
                aes,
                generic,
                Arg::Asked,
            ];
            calls.expect(
                BAD,
                "C_WrapKey",
                &format!("{kind:#X}, {len:#X} bytes"),
                &arguments,
            );
        }
        let arguments = [
            s,
            Arg::RawMechanism(kind, 0, right),
            aes,
            generic,
            Arg::Asked,
        ];
        calls.expect(BAD, "C_WrapKey", "nowhere", &arguments);
    }
}

fn numbers_in_a_parameter_have_their_range(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let s = session_arg(&session);
    let (aes, generic) = (calls.aes(s), calls.generic(s));
    for (bits, code) in [
        (0, BAD),
        (1, CKR_OK),
        (128, CKR_OK),
        (129, BAD),
        (HUGE, BAD),
    ] {
        let parameter = counter(bits);
        let mechanism = Arg::Mechanism(CKM_AES_CTR, &parameter);
        begins(
            &mut calls,
            code,
            "C_EncryptInit",
            &format!("{bits} bits"),
            &[s, mechanism, aes],
        );
    }
    for (len, code) in [(0, BAD), (1, CKR_OK), (32, CKR_OK), (33, BAD), (HUGE, BAD)] {
        let parameter = words(&[len]);
        let mechanism = Arg::Mechanism(CKM_SHA256_HMAC_GENERAL, &parameter);
        for name in ["C_SignInit", "C_VerifyInit"] {
            begins(
                &mut calls,
                code,
                name,
                &format!("{len} bytes"),
                &[s, mechanism, generic],
            );
        }
    }
}

/// CK_GCM_PARAMS.
fn gcm(iv: [usize; 2], aad: [usize; 2], tag: usize) -> Vec<u8> {
    words(&[iv[0], iv[1], iv[1].wrapping_mul(8), aad[0], aad[1], tag])
}

fn gcm_parameters_with_bad_pointers_or_lengths_are_rejected(fixture: &TokenFixture<'_>) {
    let (mut calls, session, mut store) = (RawCall::new(fixture), fixture.user(), store());
    let (s, none) = (session_arg(&session), [0, 0]);
    let aes = calls.aes(s);
    let iv = store.keep(&[1; 12]);
    let right = [iv, 12];
    let rows = [
        ("right", right, none, 128, CKR_OK),
        ("additional data", right, [iv, 12], 96, CKR_OK),
        (
            "data at the end of memory and none of it",
            right,
            [HUGE, 0],
            128,
            CKR_OK,
        ),
        ("no vector", none, none, 128, BAD),
        ("a vector nowhere", [0, 12], none, 128, BAD),
        ("an endless vector", [iv, HUGE], none, 128, BAD),
        ("a vector past all reason", [iv, 1 << 20], none, 128, BAD),
        ("data nowhere", right, [0, 1], 128, BAD),
        ("endless data", right, [iv, HUGE], 128, BAD),
        ("endless data nowhere", right, [0, HUGE], 128, BAD),
        ("no tag", right, none, 0, BAD),
        ("a tag of seven bits", right, none, 7, BAD),
        ("a tag of 129 bits", right, none, 129, BAD),
        ("a tag of 136 bits", right, none, 136, BAD),
        ("an endless tag", right, none, HUGE, BAD),
    ];
    for (what, iv, aad, tag, code) in rows {
        let parameter = gcm(iv, aad, tag);
        let mechanism = Arg::Mechanism(CKM_AES_GCM, &parameter);
        for name in ["C_EncryptInit", "C_DecryptInit"] {
            begins(&mut calls, code, name, what, &[s, mechanism, aes]);
        }
    }
    let parameter = gcm(right, none, 128);
    for len in [0, parameter.len() - 1] {
        let mechanism = Arg::Mechanism(CKM_AES_GCM, &parameter[..len]);
        begins(
            &mut calls,
            BAD,
            "C_EncryptInit",
            "cut",
            &[s, mechanism, aes],
        );
    }
}

fn a_mechanism_at_an_odd_address_is_read(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let s = session_arg(&session);
    let (aes, generic) = (calls.aes(s), calls.generic(s));
    for (name, kind, key, right) in simple(aes, generic) {
        let mut odd = Memory::new();
        let (parameter, _) = odd.place(&right, 3, Use::Input);
        let mechanism = words(&[kind as usize, parameter as usize, right.len()]);
        begins(
            &mut calls,
            CKR_OK,
            name,
            "odd",
            &[s, Arg::Odd(&mechanism), key],
        );
    }
    let mut odd = Memory::new();
    let (iv, _) = odd.place(&[1; 12], 1, Use::Input);
    let (gcm, _) = odd.place(&gcm([iv as usize, 12], [0, 0], 128), 5, Use::Input);
    let mechanism = words(&[CKM_AES_GCM as usize, gcm as usize, 48]);
    begins(
        &mut calls,
        CKR_OK,
        "C_EncryptInit",
        "odd",
        &[s, Arg::Odd(&mechanism), aes],
    );
}

fn unknown_mechanism_is_invalid_with_any_parameter(fixture: &TokenFixture<'_>) {
    let (mut calls, session) = (RawCall::new(fixture), fixture.user());
    let s = session_arg(&session);
    let aes = calls.aes(s);
    let kinds = [CKM_DES3_CBC, CKM_VENDOR_DEFINED, CKM_MD5, CK_ULONG::MAX];
    for kind in kinds {
        for (pointer, len) in [(0, 0), (0, HUGE), (HUGE, HUGE), (8, 16)] {
            let mechanism = Arg::RawMechanism(kind, pointer, len);
            let with_key = [
                "C_EncryptInit",
                "C_DecryptInit",
                "C_SignInit",
                "C_VerifyInit",
            ];
            for name in with_key {
                let code = CKR_MECHANISM_INVALID;
                calls.expect(code, name, &format!("{kind:#X}"), &[s, mechanism, aes]);
            }
            let template = Arg::Template(&[]);
            let generated = [s, mechanism, template, Arg::Handle];
            let derived = [s, mechanism, aes, template, Arg::Handle];
            let pair = [s, mechanism, template, template, Arg::Handle, Arg::Handle];
            let unwrapped = [
                s,
                mechanism,
                aes,
                Arg::Bytes(&[1; 24]),
                template,
                Arg::Handle,
            ];
            let rows: [(&str, &[Arg<'_>]); 6] = [
                ("C_DigestInit", &[s, mechanism]),
                ("C_GenerateKey", &generated),
                ("C_GenerateKeyPair", &pair),
                ("C_DeriveKey", &derived),
                ("C_WrapKey", &[s, mechanism, aes, aes, Arg::Out(64)]),
                ("C_UnwrapKey", &unwrapped),
            ];
            for (name, arguments) in rows {
                let what = format!("{kind:#X}");
                calls.expect(CKR_MECHANISM_INVALID, name, &what, arguments);
            }
        }
    }
}

fn parameters_of_pss_and_oaep_are_held_to_their_rules(fixture: &TokenFixture<'_>) {
    let (mut calls, session, mut store) = (RawCall::new(fixture), fixture.user(), store());
    let s = session_arg(&session);
    let signer = Arg::Word(session.signer().handle() as usize);
    let [hash, mgf, other] = [CKM_SHA256, CKG_MGF1_SHA256, CKM_SHA512].map(|word| word as usize);
    for (parameter, code) in [
        (&[hash, mgf, 32][..], CKR_OK),
        (&[hash, mgf, 0], CKR_OK),
        (&[hash, mgf, 222], CKR_OK),
        (&[hash, mgf, 223], BAD),
        (&[hash, mgf, HUGE], BAD),
        (&[hash, 0, 32], BAD),
        (&[hash, HUGE, 32], BAD),
        (&[other, mgf, 32], BAD),
        (&[0, mgf, 32], BAD),
        (&[HUGE, mgf, 32], BAD),
        (&[hash, mgf], BAD),
        (&[hash, mgf, 32, 0], BAD),
        (&[], BAD),
    ] {
        let parameter = words(parameter);
        let mechanism = Arg::Mechanism(CKM_SHA256_RSA_PKCS_PSS, &parameter);
        begins(
            &mut calls,
            code,
            "C_SignInit",
            "PSS",
            &[s, mechanism, signer],
        );
    }
    let public = session.find_objects(&[
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::Encrypt(true),
    ]);
    let public = Arg::Word(public.unwrap()[0].handle() as usize);
    let label = store.keep(b"label");
    for (source, at, len, code) in [
        (1, label, 5, CKR_OK),
        (1, 0, 0, CKR_OK),
        (0, 0, 0, CKR_OK),
        (0, label, 5, BAD),
        (2, label, 5, BAD),
        (HUGE, 0, 0, BAD),
        (1, 0, 5, BAD),
        (1, label, HUGE, BAD),
        (1, label, 1 << 20, BAD),
        (1, 0, HUGE, BAD),
    ] {
        let parameter = words(&[hash, mgf, source, at, len]);
        let mechanism = Arg::Mechanism(CKM_RSA_PKCS_OAEP, &parameter);
        let what = format!("OAEP, source {source}, {len:#X} bytes");
        begins(
            &mut calls,
            code,
            "C_EncryptInit",
            &what,
            &[s, mechanism, public],
        );
        let cut = Arg::Mechanism(CKM_RSA_PKCS_OAEP, &parameter[..39]);
        begins(&mut calls, BAD, "C_EncryptInit", "cut", &[s, cut, public]);
    }
}

fn parameters_of_an_agreement_are_held_to_their_rules(fixture: &TokenFixture<'_>) {
    let (mut calls, session, mut store) = (RawCall::new(fixture), fixture.user(), store());
    let s = session_arg(&session);
    let wanted = [
        Attribute::Derive(true),
        Attribute::AlwaysAuthenticate(false),
    ];
    let key = *session
        .private_with(&wanted)
        .last()
        .expect("a key that agrees");
    let key = Arg::Word(key.handle() as usize);
    let (point, shared) = (store.keep(POINT), store.keep(b"shared"));
    let mut wrong = POINT.to_vec();
    wrong[64] ^= 1;
    let off_curve = store.keep(&wrong);
    let (null, sha) = (CKD_NULL as usize, CKD_SHA256_KDF as usize);
    let template = Arg::Template(&[]);
    let count = || session.find_objects(&[]).unwrap().len();
    let before = count();
    for (what, parameter) in [
        ("no function", [0, 0, 0, 65, point]),
        ("an endless function", [HUGE, 0, 0, 65, point]),
        ("shared data for none", [null, 6, shared, 65, point]),
        ("shared data nowhere", [sha, 6, 0, 65, point]),
        ("endless shared data", [sha, HUGE, shared, 65, point]),
        ("no point", [null, 0, 0, 0, 0]),
        ("a point nowhere", [null, 0, 0, 65, 0]),
        ("an endless point", [null, 0, 0, HUGE, point]),
        ("a short point", [null, 0, 0, 64, point]),
        ("half a point", [null, 0, 0, 33, point]),
        ("a point off the curve", [null, 0, 0, 65, off_curve]),
    ] {
        let parameter = words(&parameter);
        let mechanism = Arg::Mechanism(CKM_ECDH1_DERIVE, &parameter);
        let arguments = [s, mechanism, key, template, Arg::Handle];
        fixture.silently(|| calls.expect(BAD, "C_DeriveKey", what, &arguments));
    }
    let right = words(&[null, 0, 0, 65, point]);
    for len in [0, 39] {
        let mechanism = Arg::Mechanism(CKM_ECDH1_DERIVE, &right[..len]);
        let arguments = [s, mechanism, key, template, Arg::Handle];
        fixture.silently(|| calls.expect(BAD, "C_DeriveKey", "cut", &arguments));
    }
    assert_eq!(count(), before, "none was made");
    let mechanism = Arg::Mechanism(CKM_ECDH1_DERIVE, &right);
    calls.expect_ok("C_DeriveKey", &[s, mechanism, key, template, Arg::Handle]);
    assert_eq!(count(), before + 1);
}
