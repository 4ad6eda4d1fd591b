//! CKA_ALLOWED_MECHANISMS, the slot's list and what is really accepted agree: for each key and each mechanism.

use std::ptr;

use cryptoki::{
    error::RvError,
    object::{Attribute, AttributeType, ObjectClass, ObjectHandle},
};
use cryptoki_sys::{
    CK_ATTRIBUTE, CK_ECDH1_DERIVE_PARAMS, CK_FLAGS, CK_MECHANISM, CK_MECHANISM_INFO,
    CK_MECHANISM_TYPE, CK_RSA_PKCS_OAEP_PARAMS, CK_RSA_PKCS_PSS_PARAMS, CKA_ALLOWED_MECHANISMS,
    CKF_DECRYPT, CKF_DERIVE, CKF_ENCRYPT, CKF_SIGN, CKF_SIGN_RECOVER, CKF_UNWRAP, CKF_VERIFY,
    CKF_VERIFY_RECOVER, CKF_WRAP, CKG_MGF1_SHA256, CKM_ECDH1_COFACTOR_DERIVE, CKM_ECDH1_DERIVE,
    CKM_RSA_PKCS_OAEP, CKM_RSA_PKCS_PSS, CKM_SHA_1, CKM_SHA1_RSA_PKCS_PSS, CKM_SHA224,
    CKM_SHA224_RSA_PKCS_PSS, CKM_SHA256, CKM_SHA256_RSA_PKCS_PSS, CKM_SHA384,
    CKM_SHA384_RSA_PKCS_PSS, CKM_SHA512, CKM_SHA512_RSA_PKCS_PSS, CKZ_DATA_SPECIFIED,
};

use crate::{
    Bench, Seat,
    bench::{Init, checked, plain, with},
};

on_cards! { [piv openpgp piv_rsa openpgp_rsa piv_ec openpgp_ec] [
    what_is_allowed_is_accepted_and_nothing_else_is
    what_is_allowed_is_on_the_slots_list
    a_private_key_is_allowed_what_its_attributes_say
    what_the_slot_offers_of_the_card_a_key_can_do
] }

/// Every number cryptoki-sys has a name for is in one of these.
const KNOWN: [std::ops::Range<CK_MECHANISM_TYPE>; 3] = [0..0x1400, 0x2000..0x2110, 0x4000..0x4080];

/// CKA_ALLOWED_MECHANISMS, by the bare table: the crate leaves out what it does not know.
fn allowed(seat: &Seat, key: ObjectHandle) -> Vec<CK_MECHANISM_TYPE> {
    let mut list = vec![0; 100];
    let mut entry = CK_ATTRIBUTE {
        type_: CKA_ALLOWED_MECHANISMS,
        pValue: list.as_mut_ptr().cast(),
        ulValueLen: 800,
    };
    let function = seat.list.C_GetAttributeValue.unwrap();
    // SAFETY: a template of one entry whose buffer has that length.
    let code = unsafe { function(seat.id(), key.handle(), &raw mut entry, 1) };
    assert_eq!(checked(code), Ok(()));
    list.truncate(entry.ulValueLen as usize / size_of::<CK_MECHANISM_TYPE>());
    list
}

fn functions(bench: &Bench<'_>, mechanism: CK_MECHANISM_TYPE) -> CK_FLAGS {
    let mut info = CK_MECHANISM_INFO::default();
    let slot = bench.slot_id();
    let code = crate::ck!(
        bench.raw,
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
}

impl Parameters {
    const fn new() -> Self {
        Self {
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
            other => plain(other),
        }
    }
}

/// Each function that begins with a key: its flag, and the flag of the attribute that permits it.
fn beginnings(seat: &Seat) -> [(Init, CK_FLAGS, AttributeType); 6] {
    let list = seat.list;
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

fn may(seat: &Seat, key: ObjectHandle, kind: AttributeType) -> bool {
    let told = seat.get_attributes(key, &[kind]).unwrap_or_default();
    let text = format!("{told:?}");
    text.contains("(true)")
}

fn keys(seat: &Seat) -> Vec<ObjectHandle> {
    let private = seat.all(ObjectClass::PRIVATE_KEY);
    [private, seat.all(ObjectClass::PUBLIC_KEY)].concat()
}

fn what_is_allowed_is_accepted_and_nothing_else_is(bench: &Bench<'_>) {
    let seat = bench.user();
    let (mut parameters, mut tried) = (Parameters::new(), 0);
    for key in keys(&seat) {
        let allowed = allowed(&seat, key);
        for mechanism in KNOWN.into_iter().flatten() {
            let flags = functions(bench, mechanism);
            for (function, flag, attribute) in beginnings(&seat) {
                let told = seat.init(function, parameters.of(mechanism), key);
                let expected = allowed.contains(&mechanism) && may(&seat, key, attribute);
                if told.is_ok() {
                    seat.give_up(flag);
                    assert!(
                        expected && flags & flag != 0,
                        "{mechanism:#x} {attribute:?} of {key}"
                    );
                } else if told == Err(RvError::KeyFunctionNotPermitted) {
                    assert!(
                        !may(&seat, key, attribute),
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
    seat: &Seat,
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
    if agrees && flags & CKF_DERIVE != 0 && may(seat, key, AttributeType::Derive) {
        let function = seat.list.C_DeriveKey.unwrap();
        let (mut mechanism, mut made) = (with(mechanism, &mut ecdh), 0);
        let (mechanism, null) = (&raw mut mechanism, ptr::null_mut());
        // SAFETY: a mechanism, no template, and where a handle may be written.
        let code = unsafe { function(seat.id(), mechanism, key.handle(), null, 0, &raw mut made) };
        // The point is none: what is refused is that, or the template.
        return ![
            Err(RvError::MechanismInvalid),
            Err(RvError::KeyFunctionNotPermitted),
        ]
        .contains(&checked(code));
    }
    flags & CKF_WRAP != 0 && may(seat, key, AttributeType::Wrap)
        || flags & CKF_UNWRAP != 0 && may(seat, key, AttributeType::Unwrap)
}

fn what_is_allowed_is_on_the_slots_list(bench: &Bench<'_>) {
    let seat = bench.user();
    let offered = bench.mechanisms();
    let mut parameters = Parameters::new();
    for key in keys(&seat) {
        for mechanism in allowed(&seat, key) {
            assert!(offered.contains(&mechanism), "{mechanism:#x}");
            let flags = functions(bench, mechanism);
            let begins = beginnings(&seat).into_iter().any(|(function, flag, _)| {
                let begun = seat.init(function, parameters.of(mechanism), key).is_ok();
                if begun {
                    seat.give_up(flag);
                }
                begun
            });
            let works = begins || works_at_once(&seat, key, mechanism, flags);
            assert!(
                works,
                "{mechanism:#x} is allowed for {key} and does nothing"
            );
        }
    }
}

fn a_private_key_is_allowed_what_its_attributes_say(bench: &Bench<'_>) {
    let seat = bench.user();
    for key in seat.all(ObjectClass::PRIVATE_KEY) {
        let allowed = allowed(&seat, key);
        let any = |flag| {
            let can = |mechanism: &u64| functions(bench, *mechanism) & flag != 0;
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
                !may(&seat, key, kind) || any(flag),
                "{kind:?} of {key} by no mechanism"
            );
        }
        assert!(!allowed.is_empty(), "{key} is good for nothing");
    }
}

/// CKF_HW: the card takes part. Then a key of such a card can be made to do it, and these cards have them all.
fn what_the_slot_offers_of_the_card_a_key_can_do(bench: &Bench<'_>) {
    let seat = bench.user();
    let all: Vec<Vec<u64>> = keys(&seat).iter().map(|key| allowed(&seat, *key)).collect();
    let kinds: Vec<_> = seat
        .all(ObjectClass::PRIVATE_KEY)
        .iter()
        .flat_map(|key| {
            seat.get_attributes(*key, &[AttributeType::KeyType])
                .unwrap()
        })
        .collect();
    let rsa = kinds.contains(&Attribute::KeyType(cryptoki::object::KeyType::RSA));
    for mechanism in bench.mechanisms() {
        let of_the_card = functions(bench, mechanism) & cryptoki_sys::CKF_HW != 0;
        let of_rsa = mechanism < 0x100;
        if of_the_card && of_rsa && rsa {
            let some = all.iter().any(|allowed| allowed.contains(&mechanism));
            assert!(some, "{mechanism:#x} is offered and no key can do it");
        }
    }
}
