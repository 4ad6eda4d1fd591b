//! AES and HMAC with secret session keys (PKCS #11 3.2, 6.13 to 6.16, 6.20), computed on the host.

use claviger_hw_tests::{
    fixture::token_fixture::{TestSession, TokenFixture, answered, hex, plain, with},
    for_each_card,
};
use cryptoki::{
    error::RvError,
    mechanism::Mechanism,
    object::{Attribute, KeyType, ObjectClass, ObjectHandle},
};
use cryptoki_sys::{
    CK_GCM_PARAMS, CK_ULONG, CKM_AES_CBC, CKM_AES_CBC_PAD, CKM_AES_GCM, CKM_SHA256_HMAC,
};

for_each_card! { [piv openpgp] [
    cbc_is_that_of_the_standard
    cbc_takes_whole_blocks_and_wants_an_iv
    cbc_with_padding_takes_any_length
    a_wrong_padding_of_cbc_is_invalid
    cbc_in_parts_is_cbc_in_one
    gcm_is_that_of_the_standard
    gcm_in_parts_is_gcm_in_one
    gcm_rejects_forged_ciphertext_forged_tag_and_wrong_aad
    gcm_rejects_missing_and_invalid_parameters
    secret_key_with_disabled_usage_returns_function_not_permitted
    mechanism_for_another_key_type_is_rejected_at_init
    room_is_asked_for_and_small_buffers_keep_the_operation
    secret_keys_need_no_card
    keys_are_made_by_random
] }

/// A secret key for everything its type can.
pub fn key(session: &TestSession, kind: KeyType, value: &[u8]) -> ObjectHandle {
    key_with(session, kind, value, true)
}

fn key_with(session: &TestSession, kind: KeyType, value: &[u8], may: bool) -> ObjectHandle {
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
    answered(session.create_object(&template)).expect("C_CreateObject")
}

pub fn aes(session: &TestSession) -> ObjectHandle {
    key(session, KeyType::AES, &[0x4B; 16])
}

/// SP 800-38A, F.2.1.
fn cbc_is_that_of_the_standard(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = key(
        &session,
        KeyType::AES,
        &hex("2b7e151628aed2a6abf7158809cf4f3c"),
    );
    let iv = hex("000102030405060708090a0b0c0d0e0f").try_into().unwrap();
    let data = hex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51");
    let expected = hex("7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2");
    let mechanism = Mechanism::AesCbc(iv);
    assert_eq!(
        session.encrypt(&mechanism, key, &data).expect("C_Encrypt"),
        expected
    );
    assert_eq!(
        session
            .decrypt(&mechanism, key, &expected)
            .expect("C_Decrypt"),
        data
    );
}

fn cbc_takes_whole_blocks_and_wants_an_iv(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = aes(&session);
    let mechanism = Mechanism::AesCbc([1; 16]);
    for len in [1, 15, 17] {
        let result = answered(session.encrypt(&mechanism, key, &vec![7; len]));
        assert_eq!(result, Err(RvError::DataLenRange), "{len}");
        let result = answered(session.decrypt(&mechanism, key, &vec![7; len]));
        assert_eq!(result, Err(RvError::EncryptedDataLenRange), "{len}");
    }
    let mut short = [1_u8; 15];
    for kind in [CKM_AES_CBC, CKM_AES_CBC_PAD] {
        for mechanism in [plain(kind), with(kind, &mut short)] {
            for function in [session.list.C_EncryptInit, session.list.C_DecryptInit] {
                let result = session.init(function, mechanism, key);
                assert_eq!(result, Err(RvError::MechanismParamInvalid));
            }
        }
    }
}

fn cbc_with_padding_takes_any_length(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let mechanism = Mechanism::AesCbcPad([2; 16]);
    for size in [16, 24, 32] {
        let key = key(&session, KeyType::AES, &vec![0x5D; size]);
        for len in [0, 1, 15, 16, 17, 1000] {
            let data = vec![0xE1; len];
            let made = session.encrypt(&mechanism, key, &data).expect("C_Encrypt");
            assert_eq!(made.len(), (len / 16 + 1) * 16);
            assert_eq!(
                session.decrypt(&mechanism, key, &made).expect("C_Decrypt"),
                data
            );
        }
    }
}

fn a_wrong_padding_of_cbc_is_invalid(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = aes(&session);
    let unpadded = Mechanism::AesCbc([2; 16]);
    let padded = Mechanism::AesCbcPad([2; 16]);
    for last in [0, 17, 255] {
        let made = session
            .encrypt(&unpadded, key, &[last; 16])
            .expect("C_Encrypt");
        let result = answered(session.decrypt(&padded, key, &made));
        assert_eq!(result, Err(RvError::EncryptedDataInvalid), "{last}");
    }
    for len in [0, 15, 17] {
        let result = answered(session.decrypt(&padded, key, &vec![9; len]));
        assert_eq!(result, Err(RvError::EncryptedDataLenRange), "{len}");
    }
}

/// All outputs of an update with each piece, and of the final call.
fn in_parts(
    session: &TestSession,
    encrypt: bool,
    data: &[u8],
    piece: usize,
) -> Result<Vec<u8>, RvError> {
    let list = session.list;
    let (update, last) = if encrypt {
        (list.C_EncryptUpdate, list.C_EncryptFinal)
    } else {
        (list.C_DecryptUpdate, list.C_DecryptFinal)
    };
    let mut made = Vec::new();
    for part in data.chunks(piece) {
        made.extend(session.run(update, part, 4096)?);
    }
    made.extend(session.final_part(last, 4096)?);
    Ok(made)
}

fn cbc_in_parts_is_cbc_in_one(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = aes(&session);
    let data: Vec<u8> = (0..200).collect();
    let mechanism = Mechanism::AesCbcPad([3; 16]);
    let whole = session.encrypt(&mechanism, key, &data).expect("C_Encrypt");
    for piece in [1, 15, 16, 17, 100] {
        session
            .encrypt_init(&mechanism, key)
            .expect("C_EncryptInit");
        assert_eq!(
            in_parts(&session, true, &data, piece).unwrap(),
            whole,
            "{piece}"
        );
        session
            .decrypt_init(&mechanism, key)
            .expect("C_DecryptInit");
        assert_eq!(
            in_parts(&session, false, &whole, piece).unwrap(),
            data,
            "{piece}"
        );
    }
}

/// A GCM parameter with the buffers to which it points.
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

    fn begin(
        &mut self,
        session: &TestSession,
        encrypt: bool,
        key: ObjectHandle,
    ) -> Result<(), RvError> {
        let function = if encrypt {
            session.list.C_EncryptInit
        } else {
            session.list.C_DecryptInit
        };
        session.init(function, with(CKM_AES_GCM, &mut self.parameter()), key)
    }
}

/// The GCM specification of McGrew and Viega, test case 4.
fn standard_gcm(session: &TestSession) -> (Gcm, ObjectHandle, Vec<u8>, Vec<u8>) {
    let key = key(
        session,
        KeyType::AES,
        &hex("feffe9928665731c6d6a8f9467308308"),
    );
    let data = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39";
    let expected = "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e0915bc94fbc3221a5db94fae95ae7121a47";
    let gcm = Gcm::new(
        hex("cafebabefacedbaddecaf888"),
        hex("feedfacedeadbeeffeedfacedeadbeefabaddad2"),
    );
    (gcm, key, hex(data), hex(expected))
}

fn gcm_is_that_of_the_standard(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let (mut gcm, key, data, expected) = standard_gcm(&session);
    assert_eq!(gcm.begin(&session, true, key), Ok(()));
    assert_eq!(
        session.run(session.list.C_Encrypt, &data, 200).unwrap(),
        expected
    );
    assert_eq!(gcm.begin(&session, false, key), Ok(()));
    assert_eq!(
        session.run(session.list.C_Decrypt, &expected, 200).unwrap(),
        data
    );
    let mut unpadded = Gcm::new(vec![0; 12], vec![]);
    assert_eq!(unpadded.begin(&session, true, key), Ok(()));
    let tag = session
        .run(session.list.C_Encrypt, b"", 16)
        .expect("nothing to encrypt");
    assert_eq!(tag.len(), 16);
}

fn gcm_in_parts_is_gcm_in_one(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let (mut gcm, key, data, expected) = standard_gcm(&session);
    for piece in [1, 16, 33] {
        assert_eq!(gcm.begin(&session, true, key), Ok(()));
        assert_eq!(
            in_parts(&session, true, &data, piece).unwrap(),
            expected,
            "{piece}"
        );
        assert_eq!(gcm.begin(&session, false, key), Ok(()));
        assert_eq!(
            in_parts(&session, false, &expected, piece).unwrap(),
            data,
            "{piece}"
        );
    }
}

fn gcm_rejects_forged_ciphertext_forged_tag_and_wrong_aad(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let (mut gcm, key, _, good) = standard_gcm(&session);
    for at in [0, 30, good.len() - 1] {
        let mut forged = good.clone();
        forged[at] ^= 0x80;
        assert_eq!(gcm.begin(&session, false, key), Ok(()));
        let result = session.run(session.list.C_Decrypt, &forged, 200);
        assert!(is_forged(&result), "{result:?}");
        assert_eq!(gcm.begin(&session, false, key), Ok(()));
        let result = in_parts(&session, false, &forged, 16);
        assert!(is_forged(&result), "{result:?}");
    }
    gcm.aad[0] ^= 1;
    assert_eq!(gcm.begin(&session, false, key), Ok(()));
    let result = session.run(session.list.C_Decrypt, &good, 200);
    assert!(is_forged(&result), "{result:?}");
    assert_eq!(gcm.begin(&session, false, key), Ok(()));
    let result = session.run(session.list.C_Decrypt, &good[..15], 200);
    assert_eq!(
        result,
        Err(RvError::EncryptedDataLenRange),
        "shorter than a tag"
    );
}

/// CKR_AEAD_DECRYPT_FAILED of 3.0, or what 2.40 had for it.
fn is_forged(result: &Result<Vec<u8>, RvError>) -> bool {
    matches!(
        result,
        Err(RvError::EncryptedDataInvalid | RvError::UnknownErrorCode(0x42))
    ) || format!("{result:?}").contains("AeadDecryptFailed")
}

fn gcm_rejects_missing_and_invalid_parameters(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = aes(&session);
    let refused = Err(RvError::MechanismParamInvalid);
    for function in [session.list.C_EncryptInit, session.list.C_DecryptInit] {
        assert_eq!(session.init(function, plain(CKM_AES_GCM), key), refused);
        assert_eq!(
            session.init(function, with(CKM_AES_GCM, &mut [0_u64; 5]), key),
            refused
        );
    }
    let mut bad = Gcm::new(vec![1; 12], vec![]);
    for bits in [7, 129, 256, CK_ULONG::MAX] {
        bad.tag_bits = bits;
        assert_eq!(bad.begin(&session, true, key), refused, "{bits}");
    }
    let mut bad = Gcm::new(vec![], vec![]);
    assert_eq!(bad.begin(&session, true, key), refused, "no IV");
}

fn secret_key_with_disabled_usage_returns_function_not_permitted(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let (list, mut iv) = (session.list, [0_u8; 16]);
    let idle = key_with(&session, KeyType::AES, &[1; 16], false);
    for function in [list.C_EncryptInit, list.C_DecryptInit] {
        let result = session.init(function, with(CKM_AES_CBC, &mut iv), idle);
        assert_eq!(result, Err(RvError::KeyFunctionNotPermitted));
    }
    let idle = key_with(&session, KeyType::GENERIC_SECRET, &[1; 16], false);
    for function in [list.C_SignInit, list.C_VerifyInit] {
        let result = session.init(function, plain(CKM_SHA256_HMAC), idle);
        assert_eq!(result, Err(RvError::KeyFunctionNotPermitted));
    }
}

fn mechanism_for_another_key_type_is_rejected_at_init(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let (generic, mut iv) = (key(&session, KeyType::GENERIC_SECRET, &[1; 16]), [0_u8; 16]);
    let refused = [
        Err(RvError::KeyTypeInconsistent),
        Err(RvError::MechanismInvalid),
        Err(RvError::KeyFunctionNotPermitted),
    ];
    let result = session.init(
        session.list.C_EncryptInit,
        with(CKM_AES_CBC, &mut iv),
        generic,
    );
    assert!(refused.contains(&result), "{result:?}");
    let result = session.init(
        session.list.C_SignInit,
        plain(cryptoki_sys::CKM_ECDSA),
        aes(&session),
    );
    assert!(refused.contains(&result), "{result:?}");
}

fn room_is_asked_for_and_small_buffers_keep_the_operation(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let (key, list) = (aes(&session), session.list);
    let mechanism = Mechanism::AesCbcPad([4; 16]);
    session
        .encrypt_init(&mechanism, key)
        .expect("C_EncryptInit");
    assert!(session.query_len(list.C_Encrypt, b"seven..").unwrap() >= 16);
    let small = session.run(list.C_Encrypt, b"seven..", 15);
    assert_eq!(small, Err(RvError::BufferTooSmall));
    let made = session.run(list.C_Encrypt, b"seven..", 16).unwrap();
    session
        .decrypt_init(&mechanism, key)
        .expect("C_DecryptInit");
    assert!(session.query_len(list.C_Decrypt, &made).unwrap() >= 7);
    let small = session.run(list.C_Decrypt, &made, 6);
    assert_eq!(small, Err(RvError::BufferTooSmall));
    assert_eq!(session.run(list.C_Decrypt, &made, 16).unwrap(), b"seven..");
    session
        .encrypt_init(&mechanism, key)
        .expect("C_EncryptInit");
    let small = session.run(list.C_EncryptUpdate, &[1; 32], 15);
    assert_eq!(small, Err(RvError::BufferTooSmall));
    let mut made = session.run(list.C_EncryptUpdate, &[1; 32], 48).unwrap();
    let left = 48 - made.len();
    let small = session.final_part(list.C_EncryptFinal, left - 1);
    assert_eq!(small, Err(RvError::BufferTooSmall));
    made.extend(session.final_part(list.C_EncryptFinal, left).unwrap());
    assert_eq!(
        session.decrypt(&mechanism, key, &made).unwrap(),
        [1; 32],
        "once, not twice"
    );
}

fn secret_keys_need_no_card(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    fixture.silently(|| {
        let key = aes(&session);
        let made = session.encrypt(&Mechanism::AesCbcPad([0; 16]), key, b"data");
        assert!(made.is_ok());
        session.destroy_object(key).expect("C_DestroyObject");
    });
}

fn keys_are_made_by_random(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let template = |len: u64| {
        let fixed = [Attribute::ValueLen(len.into()), Attribute::Sensitive(false)];
        [&fixed[..], &[Attribute::Extractable(true)]].concat()
    };
    let make = |len| answered(session.generate_key(&Mechanism::AesKeyGen, &template(len)));
    let value = |key| {
        let kinds = [cryptoki::object::AttributeType::Value];
        format!("{:?}", session.get_attributes(key, &kinds).unwrap())
    };
    for len in [16, 24, 32] {
        let (one, two) = (make(len).expect("C_GenerateKey"), make(len).unwrap());
        assert_ne!(value(one), value(two));
        let local = session.get_attributes(one, &[cryptoki::object::AttributeType::Local]);
        assert_eq!(local.unwrap(), [Attribute::Local(true)]);
    }
    for len in [0, 8, 17, 64] {
        let result = make(len).map(drop);
        let refused = [
            Err(RvError::KeySizeRange),
            Err(RvError::AttributeValueInvalid),
            Err(RvError::TemplateInconsistent),
        ];
        assert!(refused.contains(&result), "{len}: {result:?}");
    }
    let result = answered(session.generate_key(&Mechanism::AesKeyGen, &[])).map(drop);
    assert_eq!(result, Err(RvError::TemplateIncomplete), "how long?");
}
