//! AES and HMAC with secret keys of the session (PKCS #11 3.2, 6.13 to 6.16, 6.20): the host's work.

use claviger_hw_tests::{
    fixture::token_fixture::{Bench, Seat, answered, hex, plain, with},
    on_cards,
};
use cryptoki::{
    error::RvError,
    mechanism::Mechanism,
    object::{Attribute, KeyType, ObjectClass, ObjectHandle},
};
use cryptoki_sys::{
    CK_GCM_PARAMS, CK_ULONG, CKM_AES_CBC, CKM_AES_CBC_PAD, CKM_AES_GCM, CKM_SHA_1_HMAC,
    CKM_SHA224_HMAC, CKM_SHA256_HMAC, CKM_SHA384_HMAC, CKM_SHA512_HMAC,
};

on_cards! { [piv openpgp] [
    cbc_is_that_of_the_standard
    cbc_takes_whole_blocks_and_wants_an_iv
    cbc_with_padding_takes_any_length
    a_wrong_padding_of_cbc_is_invalid
    cbc_in_parts_is_cbc_in_one
    gcm_is_that_of_the_standard
    gcm_in_parts_is_gcm_in_one
    a_forged_tag_gives_nothing
    gcm_wants_its_parameter_whole
    hmac_is_that_of_the_standard
    hmac_in_parts_is_hmac_in_one
    a_wrong_hmac_is_told_by_length_and_value
    a_key_does_what_its_attributes_say
    a_key_does_what_its_type_can
    room_is_asked_for_and_small_buffers_keep_the_operation
    secret_keys_need_no_card
    keys_are_made_by_random
] }

/// A secret key for everything its type can.
fn key(seat: &Seat, kind: KeyType, value: &[u8]) -> ObjectHandle {
    key_with(seat, kind, value, true)
}

fn key_with(seat: &Seat, kind: KeyType, value: &[u8], may: bool) -> ObjectHandle {
    let mut template = vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(kind),
        Attribute::Value(value.to_vec()),
        Attribute::Sensitive(true),
    ];
    template.extend([
        Attribute::Encrypt(may),
        Attribute::Decrypt(may),
        Attribute::Sign(may),
        Attribute::Verify(may),
        Attribute::Wrap(may),
        Attribute::Unwrap(may),
    ]);
    answered(seat.create_object(&template)).expect("C_CreateObject")
}

fn aes(seat: &Seat) -> ObjectHandle {
    key(seat, KeyType::AES, &[0x4B; 16])
}

/// SP 800-38A, F.2.1.
fn cbc_is_that_of_the_standard(bench: &Bench<'_>) {
    let seat = bench.user();
    let key = key(
        &seat,
        KeyType::AES,
        &hex("2b7e151628aed2a6abf7158809cf4f3c"),
    );
    let iv = hex("000102030405060708090a0b0c0d0e0f").try_into().unwrap();
    let data = hex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51");
    let expected = hex("7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2");
    let mechanism = Mechanism::AesCbc(iv);
    assert_eq!(
        seat.encrypt(&mechanism, key, &data).expect("C_Encrypt"),
        expected
    );
    assert_eq!(
        seat.decrypt(&mechanism, key, &expected).expect("C_Decrypt"),
        data
    );
}

fn cbc_takes_whole_blocks_and_wants_an_iv(bench: &Bench<'_>) {
    let seat = bench.user();
    let key = aes(&seat);
    let mechanism = Mechanism::AesCbc([1; 16]);
    for len in [1, 15, 17] {
        let told = answered(seat.encrypt(&mechanism, key, &vec![7; len]));
        assert_eq!(told, Err(RvError::DataLenRange), "{len}");
        let told = answered(seat.decrypt(&mechanism, key, &vec![7; len]));
        assert_eq!(told, Err(RvError::EncryptedDataLenRange), "{len}");
    }
    let mut short = [1_u8; 15];
    for kind in [CKM_AES_CBC, CKM_AES_CBC_PAD] {
        for mechanism in [plain(kind), with(kind, &mut short)] {
            for function in [seat.list.C_EncryptInit, seat.list.C_DecryptInit] {
                let told = seat.init(function, mechanism, key);
                assert_eq!(told, Err(RvError::MechanismParamInvalid));
            }
        }
    }
}

fn cbc_with_padding_takes_any_length(bench: &Bench<'_>) {
    let seat = bench.user();
    let mechanism = Mechanism::AesCbcPad([2; 16]);
    for size in [16, 24, 32] {
        let key = key(&seat, KeyType::AES, &vec![0x5D; size]);
        for len in [0, 1, 15, 16, 17, 1000] {
            let data = vec![0xE1; len];
            let made = seat.encrypt(&mechanism, key, &data).expect("C_Encrypt");
            assert_eq!(made.len(), (len / 16 + 1) * 16);
            assert_eq!(
                seat.decrypt(&mechanism, key, &made).expect("C_Decrypt"),
                data
            );
        }
    }
}

fn a_wrong_padding_of_cbc_is_invalid(bench: &Bench<'_>) {
    let seat = bench.user();
    let key = aes(&seat);
    let bare = Mechanism::AesCbc([2; 16]);
    let padded = Mechanism::AesCbcPad([2; 16]);
    for last in [0, 17, 255] {
        let made = seat.encrypt(&bare, key, &[last; 16]).expect("C_Encrypt");
        let told = answered(seat.decrypt(&padded, key, &made));
        assert_eq!(told, Err(RvError::EncryptedDataInvalid), "{last}");
    }
    for len in [0, 15, 17] {
        let told = answered(seat.decrypt(&padded, key, &vec![9; len]));
        assert_eq!(told, Err(RvError::EncryptedDataLenRange), "{len}");
    }
}

/// All outputs of an update with each piece, and of the final call.
fn in_parts(seat: &Seat, encrypt: bool, data: &[u8], piece: usize) -> Result<Vec<u8>, RvError> {
    let list = seat.list;
    let (update, last) = if encrypt {
        (list.C_EncryptUpdate, list.C_EncryptFinal)
    } else {
        (list.C_DecryptUpdate, list.C_DecryptFinal)
    };
    let mut made = Vec::new();
    for part in data.chunks(piece) {
        made.extend(seat.run(update, part, 4096)?);
    }
    made.extend(seat.last(last, 4096)?);
    Ok(made)
}

fn cbc_in_parts_is_cbc_in_one(bench: &Bench<'_>) {
    let seat = bench.user();
    let key = aes(&seat);
    let data: Vec<u8> = (0..200).collect();
    let mechanism = Mechanism::AesCbcPad([3; 16]);
    let whole = seat.encrypt(&mechanism, key, &data).expect("C_Encrypt");
    for piece in [1, 15, 16, 17, 100] {
        seat.encrypt_init(&mechanism, key).expect("C_EncryptInit");
        assert_eq!(
            in_parts(&seat, true, &data, piece).unwrap(),
            whole,
            "{piece}"
        );
        seat.decrypt_init(&mechanism, key).expect("C_DecryptInit");
        assert_eq!(
            in_parts(&seat, false, &whole, piece).unwrap(),
            data,
            "{piece}"
        );
    }
}

/// A GCM parameter that lives as long as the buffers it names.
struct Gcm {
    iv: Vec<u8>,
    aad: Vec<u8>,
    tag_bits: CK_ULONG,
}

impl Gcm {
    fn new(iv: Vec<u8>, aad: Vec<u8>) -> Self {
        Self {
            iv,
            aad,
            tag_bits: 128,
        }
    }

    fn parameter(&mut self) -> CK_GCM_PARAMS {
        CK_GCM_PARAMS {
            pIv: self.iv.as_mut_ptr(),
            ulIvLen: self.iv.len() as CK_ULONG,
            ulIvBits: self.iv.len() as CK_ULONG * 8,
            pAAD: self.aad.as_mut_ptr(),
            ulAADLen: self.aad.len() as CK_ULONG,
            ulTagBits: self.tag_bits,
        }
    }

    fn begin(&mut self, seat: &Seat, encrypt: bool, key: ObjectHandle) -> Result<(), RvError> {
        let function = if encrypt {
            seat.list.C_EncryptInit
        } else {
            seat.list.C_DecryptInit
        };
        seat.init(function, with(CKM_AES_GCM, &mut self.parameter()), key)
    }
}

/// The GCM specification of McGrew and Viega, test case 4.
fn standard_gcm(seat: &Seat) -> (Gcm, ObjectHandle, Vec<u8>, Vec<u8>) {
    let key = key(seat, KeyType::AES, &hex("feffe9928665731c6d6a8f9467308308"));
    let data = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39";
    let expected = "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e0915bc94fbc3221a5db94fae95ae7121a47";
    let gcm = Gcm::new(
        hex("cafebabefacedbaddecaf888"),
        hex("feedfacedeadbeeffeedfacedeadbeefabaddad2"),
    );
    (gcm, key, hex(data), hex(expected))
}

fn gcm_is_that_of_the_standard(bench: &Bench<'_>) {
    let seat = bench.user();
    let (mut gcm, key, data, expected) = standard_gcm(&seat);
    assert_eq!(gcm.begin(&seat, true, key), Ok(()));
    assert_eq!(seat.run(seat.list.C_Encrypt, &data, 200).unwrap(), expected);
    assert_eq!(gcm.begin(&seat, false, key), Ok(()));
    assert_eq!(seat.run(seat.list.C_Decrypt, &expected, 200).unwrap(), data);
    let mut bare = Gcm::new(vec![0; 12], vec![]);
    assert_eq!(bare.begin(&seat, true, key), Ok(()));
    let tag = seat
        .run(seat.list.C_Encrypt, b"", 16)
        .expect("nothing to encrypt");
    assert_eq!(tag.len(), 16);
}

fn gcm_in_parts_is_gcm_in_one(bench: &Bench<'_>) {
    let seat = bench.user();
    let (mut gcm, key, data, expected) = standard_gcm(&seat);
    for piece in [1, 16, 33] {
        assert_eq!(gcm.begin(&seat, true, key), Ok(()));
        assert_eq!(
            in_parts(&seat, true, &data, piece).unwrap(),
            expected,
            "{piece}"
        );
        assert_eq!(gcm.begin(&seat, false, key), Ok(()));
        assert_eq!(
            in_parts(&seat, false, &expected, piece).unwrap(),
            data,
            "{piece}"
        );
    }
}

fn a_forged_tag_gives_nothing(bench: &Bench<'_>) {
    let seat = bench.user();
    let (mut gcm, key, _, good) = standard_gcm(&seat);
    for at in [0, 30, good.len() - 1] {
        let mut forged = good.clone();
        forged[at] ^= 0x80;
        assert_eq!(gcm.begin(&seat, false, key), Ok(()));
        let told = seat.run(seat.list.C_Decrypt, &forged, 200);
        assert!(is_forged(&told), "{told:?}");
        assert_eq!(gcm.begin(&seat, false, key), Ok(()));
        let told = in_parts(&seat, false, &forged, 16);
        assert!(is_forged(&told), "{told:?}");
    }
    gcm.aad[0] ^= 1;
    assert_eq!(gcm.begin(&seat, false, key), Ok(()));
    let told = seat.run(seat.list.C_Decrypt, &good, 200);
    assert!(is_forged(&told), "{told:?}");
    assert_eq!(gcm.begin(&seat, false, key), Ok(()));
    let told = seat.run(seat.list.C_Decrypt, &good[..15], 200);
    assert_eq!(
        told,
        Err(RvError::EncryptedDataLenRange),
        "shorter than a tag"
    );
}

/// CKR_AEAD_DECRYPT_FAILED of 3.0, or what 2.40 had for it.
fn is_forged(told: &Result<Vec<u8>, RvError>) -> bool {
    matches!(
        told,
        Err(RvError::EncryptedDataInvalid | RvError::UnknownErrorCode(0x42))
    ) || format!("{told:?}").contains("AeadDecryptFailed")
}

fn gcm_wants_its_parameter_whole(bench: &Bench<'_>) {
    let seat = bench.user();
    let key = aes(&seat);
    let refused = Err(RvError::MechanismParamInvalid);
    for function in [seat.list.C_EncryptInit, seat.list.C_DecryptInit] {
        assert_eq!(seat.init(function, plain(CKM_AES_GCM), key), refused);
        assert_eq!(
            seat.init(function, with(CKM_AES_GCM, &mut [0_u64; 5]), key),
            refused
        );
    }
    let mut bad = Gcm::new(vec![1; 12], vec![]);
    for bits in [7, 129, 256, CK_ULONG::MAX] {
        bad.tag_bits = bits;
        assert_eq!(bad.begin(&seat, true, key), refused, "{bits}");
    }
    let mut bad = Gcm::new(vec![], vec![]);
    assert_eq!(bad.begin(&seat, true, key), refused, "no IV");
}

/// RFC 4231, test case 2, and RFC 2202 for SHA-1.
const HMACS: [(CK_ULONG, &str); 5] = [
    (CKM_SHA_1_HMAC, "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"),
    (
        CKM_SHA224_HMAC,
        "a30e01098bc6dbbf45690f3a7e9e6d0f8bbea2a39e6148008fd05e44",
    ),
    (
        CKM_SHA256_HMAC,
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
    ),
    (
        CKM_SHA384_HMAC,
        "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649",
    ),
    (
        CKM_SHA512_HMAC,
        "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737",
    ),
];
const QUESTION: &[u8] = b"what do ya want for nothing?";

fn hmac_is_that_of_the_standard(bench: &Bench<'_>) {
    let seat = bench.user();
    let key = key(&seat, KeyType::GENERIC_SECRET, b"Jefe");
    for (mechanism, expected) in HMACS {
        assert_eq!(
            seat.init(seat.list.C_SignInit, plain(mechanism), key),
            Ok(())
        );
        let made = seat.run(seat.list.C_Sign, QUESTION, 64).unwrap();
        assert_eq!(made, hex(expected), "{mechanism:#x}");
        assert_eq!(
            seat.init(seat.list.C_VerifyInit, plain(mechanism), key),
            Ok(())
        );
        assert_eq!(seat.judge(QUESTION, &made), Ok(()));
    }
}

fn hmac_in_parts_is_hmac_in_one(bench: &Bench<'_>) {
    let seat = bench.user();
    let key = key(&seat, KeyType::GENERIC_SECRET, b"Jefe");
    for (mechanism, expected) in HMACS {
        assert_eq!(
            seat.init(seat.list.C_SignInit, plain(mechanism), key),
            Ok(())
        );
        assert_eq!(
            seat.init(seat.list.C_VerifyInit, plain(mechanism), key),
            Ok(())
        );
        for part in QUESTION.chunks(5) {
            assert_eq!(seat.part(seat.list.C_SignUpdate, part), Ok(()));
            assert_eq!(seat.part(seat.list.C_VerifyUpdate, part), Ok(()));
        }
        let made = seat.last(seat.list.C_SignFinal, 64).unwrap();
        assert_eq!(made, hex(expected));
        assert_eq!(seat.part(seat.list.C_VerifyFinal, &made), Ok(()));
    }
}

fn a_wrong_hmac_is_told_by_length_and_value(bench: &Bench<'_>) {
    let seat = bench.user();
    let key = key(&seat, KeyType::GENERIC_SECRET, b"Jefe");
    for (tag, code) in [
        (vec![0; 32], RvError::SignatureInvalid),
        (vec![0; 31], RvError::SignatureLenRange),
        (vec![0; 33], RvError::SignatureLenRange),
    ] {
        let begun = seat.init(seat.list.C_VerifyInit, plain(CKM_SHA256_HMAC), key);
        assert_eq!(begun, Ok(()));
        assert_eq!(seat.judge(QUESTION, &tag), Err(code));
    }
}

fn a_key_does_what_its_attributes_say(bench: &Bench<'_>) {
    let seat = bench.user();
    let (list, mut iv) = (seat.list, [0_u8; 16]);
    let idle = key_with(&seat, KeyType::AES, &[1; 16], false);
    for function in [list.C_EncryptInit, list.C_DecryptInit] {
        let told = seat.init(function, with(CKM_AES_CBC, &mut iv), idle);
        assert_eq!(told, Err(RvError::KeyFunctionNotPermitted));
    }
    let idle = key_with(&seat, KeyType::GENERIC_SECRET, &[1; 16], false);
    for function in [list.C_SignInit, list.C_VerifyInit] {
        let told = seat.init(function, plain(CKM_SHA256_HMAC), idle);
        assert_eq!(told, Err(RvError::KeyFunctionNotPermitted));
    }
}

fn a_key_does_what_its_type_can(bench: &Bench<'_>) {
    let seat = bench.user();
    let (generic, mut iv) = (key(&seat, KeyType::GENERIC_SECRET, &[1; 16]), [0_u8; 16]);
    let refused = [
        Err(RvError::KeyTypeInconsistent),
        Err(RvError::MechanismInvalid),
        Err(RvError::KeyFunctionNotPermitted),
    ];
    let told = seat.init(seat.list.C_EncryptInit, with(CKM_AES_CBC, &mut iv), generic);
    assert!(refused.contains(&told), "{told:?}");
    let told = seat.init(
        seat.list.C_SignInit,
        plain(cryptoki_sys::CKM_ECDSA),
        aes(&seat),
    );
    assert!(refused.contains(&told), "{told:?}");
}

fn room_is_asked_for_and_small_buffers_keep_the_operation(bench: &Bench<'_>) {
    let seat = bench.user();
    let (key, list) = (aes(&seat), seat.list);
    let mechanism = Mechanism::AesCbcPad([4; 16]);
    seat.encrypt_init(&mechanism, key).expect("C_EncryptInit");
    assert!(seat.ask(list.C_Encrypt, b"seven..").unwrap() >= 16);
    let small = seat.run(list.C_Encrypt, b"seven..", 15);
    assert_eq!(small, Err(RvError::BufferTooSmall));
    let made = seat.run(list.C_Encrypt, b"seven..", 16).unwrap();
    seat.decrypt_init(&mechanism, key).expect("C_DecryptInit");
    assert!(seat.ask(list.C_Decrypt, &made).unwrap() >= 7);
    let small = seat.run(list.C_Decrypt, &made, 6);
    assert_eq!(small, Err(RvError::BufferTooSmall));
    assert_eq!(seat.run(list.C_Decrypt, &made, 16).unwrap(), b"seven..");
    seat.encrypt_init(&mechanism, key).expect("C_EncryptInit");
    let small = seat.run(list.C_EncryptUpdate, &[1; 32], 15);
    assert_eq!(small, Err(RvError::BufferTooSmall));
    let mut made = seat.run(list.C_EncryptUpdate, &[1; 32], 48).unwrap();
    let left = 48 - made.len();
    let small = seat.last(list.C_EncryptFinal, left - 1);
    assert_eq!(small, Err(RvError::BufferTooSmall));
    made.extend(seat.last(list.C_EncryptFinal, left).unwrap());
    assert_eq!(
        seat.decrypt(&mechanism, key, &made).unwrap(),
        [1; 32],
        "once, not twice"
    );
}

fn secret_keys_need_no_card(bench: &Bench<'_>) {
    let seat = bench.user();
    bench.silently(|| {
        let key = aes(&seat);
        let made = seat.encrypt(&Mechanism::AesCbcPad([0; 16]), key, b"data");
        assert!(made.is_ok());
        seat.destroy_object(key).expect("C_DestroyObject");
    });
}

fn keys_are_made_by_random(bench: &Bench<'_>) {
    let seat = bench.user();
    let template = |len: u64| {
        let fixed = [Attribute::ValueLen(len.into()), Attribute::Sensitive(false)];
        [&fixed[..], &[Attribute::Extractable(true)]].concat()
    };
    let make = |len| answered(seat.generate_key(&Mechanism::AesKeyGen, &template(len)));
    let value = |key| {
        let kinds = [cryptoki::object::AttributeType::Value];
        format!("{:?}", seat.get_attributes(key, &kinds).unwrap())
    };
    for len in [16, 24, 32] {
        let (one, two) = (make(len).expect("C_GenerateKey"), make(len).unwrap());
        assert_ne!(value(one), value(two));
        let local = seat.get_attributes(one, &[cryptoki::object::AttributeType::Local]);
        assert_eq!(local.unwrap(), [Attribute::Local(true)]);
    }
    for len in [0, 8, 17, 64] {
        let told = make(len).map(drop);
        let refused = [
            Err(RvError::KeySizeRange),
            Err(RvError::AttributeValueInvalid),
            Err(RvError::TemplateInconsistent),
        ];
        assert!(refused.contains(&told), "{len}: {told:?}");
    }
    let told = answered(seat.generate_key(&Mechanism::AesKeyGen, &[])).map(drop);
    assert_eq!(told, Err(RvError::TemplateIncomplete), "how long?");
}
