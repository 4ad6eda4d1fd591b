//! CKA_ALLOWED_MECHANISMS agrees with the slot's mechanism list and with the mechanisms that a key accepts.

use std::ptr;

use claviger_hw_tests::{
    fixture::token_fixture::{
        Init, TestSession, TokenFixture, answered, checked, hex, plain, with,
    },
    for_each_card,
};
use cryptoki::{
    error::RvError,
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
};
use cryptoki_sys::{
    CK_AES_CTR_PARAMS, CK_ATTRIBUTE, CK_ECDH1_DERIVE_PARAMS, CK_FLAGS, CK_GCM_PARAMS, CK_MECHANISM,
    CK_MECHANISM_INFO, CK_MECHANISM_TYPE, CK_RSA_PKCS_OAEP_PARAMS, CK_RSA_PKCS_PSS_PARAMS,
    CK_ULONG, CKA_ALLOWED_MECHANISMS, CKF_DECRYPT, CKF_DERIVE, CKF_ENCRYPT, CKF_SIGN,
    CKF_SIGN_RECOVER, CKF_UNWRAP, CKF_VERIFY, CKF_VERIFY_RECOVER, CKF_WRAP, CKG_MGF1_SHA256,
    CKM_AES_CBC, CKM_AES_CBC_PAD, CKM_AES_CTR, CKM_AES_GCM, CKM_ECDH1_COFACTOR_DERIVE,
    CKM_ECDH1_DERIVE, CKM_RSA_PKCS_OAEP, CKM_RSA_PKCS_PSS, CKM_SHA_1, CKM_SHA_1_HMAC_GENERAL,
    CKM_SHA1_RSA_PKCS_PSS, CKM_SHA224, CKM_SHA224_HMAC_GENERAL, CKM_SHA224_RSA_PKCS_PSS,
    CKM_SHA256, CKM_SHA256_HMAC_GENERAL, CKM_SHA256_RSA_PKCS_PSS, CKM_SHA384,
    CKM_SHA384_HMAC_GENERAL, CKM_SHA384_RSA_PKCS_PSS, CKM_SHA512, CKM_SHA512_HMAC_GENERAL,
    CKM_SHA512_RSA_PKCS_PSS, CKZ_DATA_SPECIFIED,
};

for_each_card! { [piv openpgp piv_rsa openpgp_rsa piv_ec openpgp_ec] [
    init_accepts_only_allowed_mechanisms_of_the_key
    allowed_mechanisms_are_listed_by_the_slot_and_usable
    allowed_mechanisms_cover_each_usage_attribute_of_a_private_key
] }

/// Every number cryptoki-sys has a name for is in one of these.
const KNOWN: [std::ops::Range<CK_MECHANISM_TYPE>; 3] = [0..0x1400, 0x2000..0x2110, 0x4000..0x4080];

/// CKA_ALLOWED_MECHANISMS, by the function list: the crate omits mechanisms that it does not know. An empty list allows all.
fn allowed(session: &TestSession, key: ObjectHandle) -> Vec<CK_MECHANISM_TYPE> {
    let mut list = vec![0; 100];
    let mut entry = CK_ATTRIBUTE {
        type_: CKA_ALLOWED_MECHANISMS,
        pValue: list.as_mut_ptr().cast(),
        ulValueLen: 800,
    };
    let function = session.list.C_GetAttributeValue.unwrap();
    // SAFETY: a template of one entry whose buffer has that length.
    let code = unsafe { function(session.id(), key.handle(), &raw mut entry, 1) };
    assert_eq!(checked(code), Ok(()));
    list.truncate(entry.ulValueLen as usize / size_of::<CK_MECHANISM_TYPE>());
    list
}

fn functions(fixture: &TokenFixture<'_>, mechanism: CK_MECHANISM_TYPE) -> CK_FLAGS {
    let mut info = CK_MECHANISM_INFO::default();
    let slot = fixture.slot_id();
    let code = claviger_hw_tests::ck!(
        fixture.raw,
        C_GetMechanismInfo,
        slot,
        mechanism,
        &raw mut info
    );
    if checked(code).is_ok() { info.flags } else { 0 }
}

/// Parameters a mechanism may want, as long as they are in use.
struct Parameters {
    pss: CK_RSA_PKCS_PSS_PARAMS,
    oaep: CK_RSA_PKCS_OAEP_PARAMS,
    iv: [u8; 16],
    counter: CK_AES_CTR_PARAMS,
    gcm: CK_GCM_PARAMS,
    mac_length: CK_ULONG,
}

impl Parameters {
    fn new() -> Self {
        Self {
            iv: [0; 16],
            counter: CK_AES_CTR_PARAMS {
                ulCounterBits: 32,
                cb: [0; 16],
            },
            gcm: CK_GCM_PARAMS {
                pIv: ptr::null_mut(),
                ulIvLen: 12,
                ulIvBits: 96,
                pAAD: ptr::null_mut(),
                ulAADLen: 0,
                ulTagBits: 128,
            },
            mac_length: 16,
            pss: CK_RSA_PKCS_PSS_PARAMS {
                hashAlg: CKM_SHA256,
                mgf: CKG_MGF1_SHA256,
                sLen: 20,
            },
            oaep: CK_RSA_PKCS_OAEP_PARAMS {
                hashAlg: CKM_SHA256,
                mgf: CKG_MGF1_SHA256,
                source: CKZ_DATA_SPECIFIED,
                pSourceData: ptr::null_mut(),
                ulSourceDataLen: 0,
            },
        }
    }

    /// The mechanism with a right parameter, or with none.
    fn of(&mut self, mechanism: CK_MECHANISM_TYPE) -> CK_MECHANISM {
        self.pss.hashAlg = match mechanism {
            CKM_SHA1_RSA_PKCS_PSS => CKM_SHA_1,
            CKM_SHA224_RSA_PKCS_PSS => CKM_SHA224,
            CKM_SHA384_RSA_PKCS_PSS => CKM_SHA384,
            CKM_SHA512_RSA_PKCS_PSS => CKM_SHA512,
            _ => CKM_SHA256,
        };
        match mechanism {
            CKM_RSA_PKCS_PSS
            | CKM_SHA1_RSA_PKCS_PSS
            | CKM_SHA224_RSA_PKCS_PSS
            | CKM_SHA256_RSA_PKCS_PSS
            | CKM_SHA384_RSA_PKCS_PSS
            | CKM_SHA512_RSA_PKCS_PSS => with(mechanism, &mut self.pss),
            CKM_RSA_PKCS_OAEP => with(mechanism, &mut self.oaep),
            CKM_AES_CBC | CKM_AES_CBC_PAD => with(mechanism, &mut self.iv),
            CKM_AES_CTR => with(mechanism, &mut self.counter),
            CKM_AES_GCM => {
                self.gcm.pIv = self.iv.as_mut_ptr();
                with(mechanism, &mut self.gcm)
            }
            CKM_SHA_1_HMAC_GENERAL
            | CKM_SHA224_HMAC_GENERAL
            | CKM_SHA256_HMAC_GENERAL
            | CKM_SHA384_HMAC_GENERAL
            | CKM_SHA512_HMAC_GENERAL => with(mechanism, &mut self.mac_length),
            other => plain(other),
        }
    }
}

/// Each function that begins with a key: its flag, and the flag of the attribute that permits it.
fn beginnings(session: &TestSession) -> [(Init, CK_FLAGS, AttributeType); 6] {
    let list = session.list;
    [
        (list.C_SignInit, CKF_SIGN, AttributeType::Sign),
        (
            list.C_SignRecoverInit,
            CKF_SIGN_RECOVER,
            AttributeType::SignRecover,
        ),
        (list.C_DecryptInit, CKF_DECRYPT, AttributeType::Decrypt),
        (list.C_VerifyInit, CKF_VERIFY, AttributeType::Verify),
        (
            list.C_VerifyRecoverInit,
            CKF_VERIFY_RECOVER,
            AttributeType::VerifyRecover,
        ),
        (list.C_EncryptInit, CKF_ENCRYPT, AttributeType::Encrypt),
    ]
}

fn may(session: &TestSession, key: ObjectHandle, kind: AttributeType) -> bool {
    let result = session.get_attributes(key, &[kind]).unwrap_or_default();
    let text = format!("{result:?}");
    text.contains("(true)")
}

/// The generator of P-256 (SEC 2, 2.4.2).
const GENERATOR: &str = "04\
    6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296\
    4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5";
/// A public key of Ed25519 (RFC 8032, 7.1).
const ED25519: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

/// A key of each kind a session can have.
fn make_session_keys(session: &TestSession) {
    let (public, secret) = (ObjectClass::PUBLIC_KEY, ObjectClass::SECRET_KEY);
    let point = |kind, oid: &str, point: Vec<u8>| {
        let parameters = Attribute::EcParams(hex(oid));
        vec![
            Attribute::KeyType(kind),
            parameters,
            Attribute::EcPoint(point),
        ]
    };
    let wrapped = claviger_apdu::tlv::encode(0x04, &hex(GENERATOR));
    let rsa = vec![
        Attribute::KeyType(KeyType::RSA),
        Attribute::Modulus(vec![0xC5; 256]),
        Attribute::PublicExponent(vec![1, 0, 1]),
    ];
    let value = |kind| vec![Attribute::KeyType(kind), Attribute::Value(vec![0x1D; 32])];
    for (class, own) in [
        (
            public,
            [rsa, vec![Attribute::Encrypt(true), Attribute::Wrap(true)]].concat(),
        ),
        (public, point(KeyType::EC, "06082a8648ce3d030107", wrapped)),
        (
            public,
            point(KeyType::EC_EDWARDS, "06032b6570", hex(ED25519)),
        ),
        (
            secret,
            [
                value(KeyType::AES),
                vec![Attribute::Encrypt(true), Attribute::Decrypt(true)],
            ]
            .concat(),
        ),
        (
            secret,
            [value(KeyType::GENERIC_SECRET), vec![Attribute::Sign(true)]].concat(),
        ),
    ] {
        let verify = class == public || own.contains(&Attribute::Sign(true));
        let verify = verify.then_some(Attribute::Verify(true));
        let template = [&[Attribute::Class(class)], &own[..], verify.as_slice()].concat();
        answered(session.create_object(&template)).expect("C_CreateObject");
    }
}

/// All keys of the card, and one of each kind of the session.
fn keys(session: &TestSession) -> Vec<ObjectHandle> {
    make_session_keys(session);
    let classes = [
        ObjectClass::PRIVATE_KEY,
        ObjectClass::PUBLIC_KEY,
        ObjectClass::SECRET_KEY,
    ];
    classes
        .into_iter()
        .flat_map(|class| session.all(class))
        .collect()
}

fn init_accepts_only_allowed_mechanisms_of_the_key(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let (mut parameters, mut tried) = (Parameters::new(), 0);
    for key in keys(&session) {
        let allowed = allowed(&session, key);
        for mechanism in KNOWN.into_iter().flatten() {
            let flags = functions(fixture, mechanism);
            for (function, flag, attribute) in beginnings(&session) {
                let result = session.init(function, parameters.of(mechanism), key);
                let fits = allowed.is_empty() || allowed.contains(&mechanism);
                let expected = fits && may(&session, key, attribute);
                if result.is_ok() {
                    session.cancel(flag);
                    assert!(
                        expected && flags & flag != 0,
                        "{mechanism:#x} {attribute:?} of {key}"
                    );
                } else if result == Err(RvError::KeyFunctionNotPermitted) {
                    assert!(
                        !may(&session, key, attribute),
                        "{mechanism:#x} {attribute:?} of {key}"
                    );
                }
                tried += 1;
            }
        }
    }
    println!("{tried} beginnings");
}

/// Whether a key can be used with a mechanism in one call: to derive, wrap or unwrap.
fn works_at_once(
    session: &TestSession,
    key: ObjectHandle,
    mechanism: CK_MECHANISM_TYPE,
    flags: CK_FLAGS,
) -> bool {
    let mut point = [4_u8; 1];
    let mut ecdh = CK_ECDH1_DERIVE_PARAMS {
        kdf: 1,
        ulSharedDataLen: 0,
        pSharedData: ptr::null_mut(),
        ulPublicDataLen: 1,
        pPublicData: point.as_mut_ptr(),
    };
    let agrees = [CKM_ECDH1_DERIVE, CKM_ECDH1_COFACTOR_DERIVE].contains(&mechanism);
    if agrees && flags & CKF_DERIVE != 0 && may(session, key, AttributeType::Derive) {
        let function = session.list.C_DeriveKey.unwrap();
        let (mut mechanism, mut made) = (with(mechanism, &mut ecdh), 0);
        let (mechanism, null) = (&raw mut mechanism, ptr::null_mut());
        // SAFETY: a mechanism, no template, and where a handle may be written.
        let code = unsafe {
            function(
                session.id(),
                mechanism,
                key.handle(),
                null,
                0,
                &raw mut made,
            )
        };
        // The point is none: what is refused is that, or the template.
        return ![
            Err(RvError::MechanismInvalid),
            Err(RvError::KeyFunctionNotPermitted),
        ]
        .contains(&checked(code));
    }
    flags & CKF_WRAP != 0 && may(session, key, AttributeType::Wrap)
        || flags & CKF_UNWRAP != 0 && may(session, key, AttributeType::Unwrap)
}

fn allowed_mechanisms_are_listed_by_the_slot_and_usable(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let offered = fixture.mechanisms();
    let mut parameters = Parameters::new();
    for key in keys(&session) {
        for mechanism in allowed(&session, key) {
            assert!(offered.contains(&mechanism), "{mechanism:#x}");
            let flags = functions(fixture, mechanism);
            let begins = beginnings(&session).into_iter().any(|(function, flag, _)| {
                let begun = session
                    .init(function, parameters.of(mechanism), key)
                    .is_ok();
                if begun {
                    session.cancel(flag);
                }
                begun
            });
            let works = begins || works_at_once(&session, key, mechanism, flags);
            assert!(
                works,
                "{mechanism:#x} is allowed for {key} and does nothing"
            );
        }
    }
}

fn allowed_mechanisms_cover_each_usage_attribute_of_a_private_key(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    for key in session.all(ObjectClass::PRIVATE_KEY) {
        let allowed = allowed(&session, key);
        let any = |flag| {
            let can = |mechanism: &u64| functions(fixture, *mechanism) & flag != 0;
            allowed.iter().any(can)
        };
        for (kind, flag) in [
            (AttributeType::Sign, CKF_SIGN),
            (AttributeType::SignRecover, CKF_SIGN_RECOVER),
            (AttributeType::Decrypt, CKF_DECRYPT),
            (AttributeType::Unwrap, CKF_UNWRAP),
            (AttributeType::Derive, CKF_DERIVE),
        ] {
            assert!(
                !may(&session, key, kind) || any(flag),
                "{kind:?} of {key} by no mechanism"
            );
        }
        assert!(!allowed.is_empty(), "{key} is good for nothing");
    }
}
