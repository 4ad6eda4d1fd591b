//! C_DeriveKey with ECDH (PKCS #11 3.2, 5.18.5 and 6.3.18): parameters, lengths, templates. The program `algorithms` compares
//! the secrets with OpenSSL's.

use cryptoki::{
    error::RvError,
    mechanism::{
        Mechanism,
        elliptic_curve::{EcKdf, Ecdh1DeriveParams},
    },
    object::{Attribute, AttributeInfo, AttributeType, KeyType, ObjectClass, ObjectHandle},
};
use cryptoki_sys::{
    CK_ATTRIBUTE, CK_ECDH1_DERIVE_PARAMS, CK_MECHANISM, CK_ULONG, CKM_ECDH1_COFACTOR_DERIVE,
    CKM_ECDH1_DERIVE, CKM_ECDSA,
};
use sha2::{Digest as _, Sha256};

use claviger_hw_tests::{
    fixture::token_fixture::{TestSession, TokenFixture, answered, checked, plain, with},
    for_each_card,
};

for_each_card! { [piv_ec openpgp openpgp_ec] [
    a_shared_secret_is_a_generic_secret_of_the_field
    both_forms_of_a_point_give_the_same_secret
    a_secret_is_cut_at_its_end
    a_secret_longer_than_the_field_is_refused
    derived_aes_key_has_the_requested_length_and_others_are_rejected
    a_kdf_hashes_secret_counter_and_shared_data
    a_kdf_makes_any_length
    a_bad_point_is_refused_before_the_card
    ecdh_with_unknown_kdf_returns_mechanism_param_invalid
    shared_data_without_a_kdf_are_refused
    the_parameter_must_be_whole
    the_base_key_must_be_one_that_derives
    derive_rejects_templates_of_other_than_session_secrets
    a_derived_secret_is_not_local
    sensitive_or_unextractable_derived_value_cannot_be_read
    derive_after_logout_returns_key_handle_invalid
    derivation_keeps_the_active_signature_operation
    cofactor_derivation_equals_plain_ecdh_or_is_rejected
] }

/// A session, the key that derives and the peer's point: that of the same card's key, so that the answer is known to both.
struct Agreement {
    session: TestSession,
    base: ObjectHandle,
    peer: Vec<u8>,
}

fn agreement(fixture: &TokenFixture<'_>) -> Agreement {
    let session = fixture.user();
    let base = session.private_with(&[Attribute::Derive(true)])[0];
    let peer = raw_point(&session, base);
    Agreement {
        session,
        base,
        peer,
    }
}

fn raw_point(session: &TestSession, key: ObjectHandle) -> Vec<u8> {
    let point = session
        .get_attributes(key, &[AttributeType::EcPoint])
        .unwrap();
    let [Attribute::EcPoint(point)] = point.as_slice() else {
        panic!("no CKA_EC_POINT")
    };
    let unwrapped = claviger_apdu::tlv::only(point, 0x04);
    unwrapped.map_or_else(|_| point.clone(), <[u8]>::to_vec)
}

fn secret(len: Option<u64>) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Token(false),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ];
    template.extend(len.map(|len| Attribute::ValueLen(len.into())));
    template
}

fn value(session: &TestSession, key: ObjectHandle) -> Vec<u8> {
    let got = session
        .get_attributes(key, &[AttributeType::Value])
        .unwrap();
    match got.as_slice() {
        [Attribute::Value(value)] => value.clone(),
        other => panic!("{other:?}"),
    }
}

impl Agreement {
    fn derive(&self, kdf: EcKdf<'_>, template: &[Attribute]) -> Result<ObjectHandle, RvError> {
        self.derive_with(kdf, &self.peer, template)
    }

    fn derive_with(
        &self,
        kdf: EcKdf<'_>,
        peer: &[u8],
        template: &[Attribute],
    ) -> Result<ObjectHandle, RvError> {
        let mechanism = Mechanism::Ecdh1Derive(Ecdh1DeriveParams::new(kdf, peer));
        answered(self.session.derive_key(&mechanism, self.base, template))
    }

    #[track_caller]
    fn secret(&self, kdf: EcKdf<'_>, len: Option<u64>) -> Vec<u8> {
        let key = self.derive(kdf, &secret(len)).expect("C_DeriveKey");
        value(&self.session, key)
    }

    /// The code of C_DeriveKey with this mechanism and a right template.
    fn raw(&self, mechanism: CK_MECHANISM, base: u64) -> Result<(), RvError> {
        let template = secret(None);
        let mut template: Vec<CK_ATTRIBUTE> = template.iter().map(Into::into).collect();
        let function = self.session.list.C_DeriveKey.unwrap();
        let (mut mechanism, mut key) = (mechanism, 0);
        let (list, len) = (template.as_mut_ptr(), template.len() as CK_ULONG);
        let session = self.session.id();
        // SAFETY: a mechanism, a template with its length, and where a handle may be written.
        checked(unsafe { function(session, &raw mut mechanism, base, list, len, &raw mut key) })
    }

    fn parameter(&mut self) -> CK_ECDH1_DERIVE_PARAMS {
        CK_ECDH1_DERIVE_PARAMS {
            kdf: 1,
            ulSharedDataLen: 0,
            pSharedData: std::ptr::null_mut(),
            ulPublicDataLen: self.peer.len() as CK_ULONG,
            pPublicData: self.peer.as_mut_ptr(),
        }
    }
}

fn a_shared_secret_is_a_generic_secret_of_the_field(fixture: &TokenFixture<'_>) {
    let agreement = agreement(fixture);
    let (apdus, key) = fixture
        .process
        .apdus(|| agreement.derive(EcKdf::null(), &secret(None)).unwrap());
    assert_eq!(apdus, 1, "one command");
    let session = &agreement.session;
    assert_eq!(value(session, key).len(), 32);
    let kinds = [
        AttributeType::Class,
        AttributeType::KeyType,
        AttributeType::ValueLen,
    ];
    let expected = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::ValueLen(32.into()),
    ];
    assert_eq!(session.get_attributes(key, &kinds).unwrap(), expected);
}

fn both_forms_of_a_point_give_the_same_secret(fixture: &TokenFixture<'_>) {
    let agreement = agreement(fixture);
    let unwrapped = agreement.secret(EcKdf::null(), None);
    assert_eq!(agreement.secret(EcKdf::null(), None), unwrapped);
    let wrapped = claviger_apdu::tlv::encode(0x04, &agreement.peer);
    let key = agreement.derive_with(EcKdf::null(), &wrapped, &secret(None));
    assert_eq!(
        value(&agreement.session, key.expect("a DER OCTET STRING")),
        unwrapped
    );
}

fn a_secret_is_cut_at_its_end(fixture: &TokenFixture<'_>) {
    let agreement = agreement(fixture);
    let whole = agreement.secret(EcKdf::null(), None);
    for len in [1, 16, 31, 32] {
        let cut = agreement.secret(EcKdf::null(), Some(len));
        assert_eq!(cut, whole[..len as usize], "{len}");
    }
}

fn a_secret_longer_than_the_field_is_refused(fixture: &TokenFixture<'_>) {
    let agreement = agreement(fixture);
    for len in [33, 64, u64::MAX] {
        let result = agreement
            .derive(EcKdf::null(), &secret(Some(len)))
            .map(drop);
        let refused = [
            Err(RvError::KeySizeRange),
            Err(RvError::TemplateInconsistent),
            Err(RvError::AttributeValueInvalid),
        ];
        assert!(refused.contains(&result), "{len}: {result:?}");
    }
}

fn derived_aes_key_has_the_requested_length_and_others_are_rejected(fixture: &TokenFixture<'_>) {
    let agreement = agreement(fixture);
    let aes = |len: u64| {
        let mut template = secret(Some(len));
        template[1] = Attribute::KeyType(KeyType::AES);
        agreement.derive(EcKdf::null(), &template)
    };
    let whole = agreement.secret(EcKdf::null(), None);
    for len in [16, 24, 32] {
        let key = aes(len).expect("C_DeriveKey");
        assert_eq!(value(&agreement.session, key), whole[..len as usize]);
    }
    for len in [1, 15, 17, 31] {
        let result = aes(len).map(drop);
        let refused = [
            Err(RvError::KeySizeRange),
            Err(RvError::TemplateInconsistent),
            Err(RvError::AttributeValueInvalid),
        ];
        assert!(refused.contains(&result), "{len}: {result:?}");
    }
}

/// ANSI X9.63: the hash of secret, counter and shared data.
fn x963(secret: &[u8], shared: &[u8], len: usize) -> Vec<u8> {
    let block = |counter: u32| {
        let hash = Sha256::new()
            .chain_update(secret)
            .chain_update(counter.to_be_bytes());
        hash.chain_update(shared).finalize()
    };
    (1..).flat_map(block).take(len).collect()
}

fn a_kdf_hashes_secret_counter_and_shared_data(fixture: &TokenFixture<'_>) {
    let agreement = agreement(fixture);
    let whole = agreement.secret(EcKdf::null(), None);
    for shared in [&b""[..], b"shared between the two"] {
        let derived = agreement.secret(EcKdf::sha256(shared), Some(32));
        assert_eq!(derived, x963(&whole, shared, 32));
    }
}

fn a_kdf_makes_any_length(fixture: &TokenFixture<'_>) {
    let agreement = agreement(fixture);
    let whole = agreement.secret(EcKdf::null(), None);
    for len in [1, 31, 33, 64, 200] {
        let derived = agreement.secret(EcKdf::sha256(b"x"), Some(len));
        assert_eq!(derived, x963(&whole, b"x", len as usize), "{len}");
    }
    for kdf in [
        EcKdf::sha1(b""),
        EcKdf::sha224(b""),
        EcKdf::sha384(b""),
        EcKdf::sha512(b""),
    ] {
        assert_eq!(agreement.secret(kdf, Some(48)).len(), 48, "{kdf:?}");
    }
}

fn a_bad_point_is_refused_before_the_card(fixture: &TokenFixture<'_>) {
    let agreement = agreement(fixture);
    let mut bad = vec![
        vec![],
        agreement.peer[1..].to_vec(),
        [&agreement.peer[..], &[0]].concat(),
    ];
    if agreement.peer.len() == 65 {
        // Not on the curve, and of another form.
        let mut off = agreement.peer.clone();
        off[64] ^= 1;
        bad.extend([off, [&[7], &agreement.peer[1..]].concat(), vec![0; 65]]);
    }
    for point in bad {
        let result = fixture.silently(|| {
            agreement
                .derive_with(EcKdf::null(), &point, &secret(None))
                .map(drop)
        });
        let refused = [
            Err(RvError::MechanismParamInvalid),
            Err(RvError::PublicKeyInvalid),
        ];
        assert!(refused.contains(&result), "{point:02x?}: {result:?}");
    }
}

fn ecdh_with_unknown_kdf_returns_mechanism_param_invalid(fixture: &TokenFixture<'_>) {
    let mut agreement = agreement(fixture);
    for kdf in [0, 0x55, CK_ULONG::MAX] {
        let mut parameter = CK_ECDH1_DERIVE_PARAMS {
            kdf,
            ..agreement.parameter()
        };
        let mechanism = with(CKM_ECDH1_DERIVE, &mut parameter);
        let result = agreement.raw(mechanism, agreement.base.handle());
        assert_eq!(result, Err(RvError::MechanismParamInvalid), "{kdf:#x}");
    }
}

fn shared_data_without_a_kdf_are_refused(fixture: &TokenFixture<'_>) {
    let mut agreement = agreement(fixture);
    let mut shared = *b"shared";
    let mut parameter = CK_ECDH1_DERIVE_PARAMS {
        ulSharedDataLen: 6,
        pSharedData: shared.as_mut_ptr(),
        ..agreement.parameter()
    };
    let result = agreement.raw(
        with(CKM_ECDH1_DERIVE, &mut parameter),
        agreement.base.handle(),
    );
    assert_eq!(result, Err(RvError::MechanismParamInvalid));
}

fn the_parameter_must_be_whole(fixture: &TokenFixture<'_>) {
    let mut agreement = agreement(fixture);
    let mut parameter = agreement.parameter();
    let whole = with(CKM_ECDH1_DERIVE, &mut parameter);
    let mut without_point = CK_ECDH1_DERIVE_PARAMS {
        pPublicData: std::ptr::null_mut(),
        ..agreement.parameter()
    };
    let cut = CK_MECHANISM {
        ulParameterLen: 39,
        ..whole
    };
    let without_point = with(CKM_ECDH1_DERIVE, &mut without_point);
    for mechanism in [plain(CKM_ECDH1_DERIVE), cut, without_point] {
        let result = agreement.raw(mechanism, agreement.base.handle());
        assert_eq!(result, Err(RvError::MechanismParamInvalid));
    }
    assert_eq!(agreement.raw(whole, agreement.base.handle()), Ok(()));
}

fn the_base_key_must_be_one_that_derives(fixture: &TokenFixture<'_>) {
    let mut agreement = agreement(fixture);
    let mut parameter = agreement.parameter();
    let mechanism = with(CKM_ECDH1_DERIVE, &mut parameter);
    for handle in [0, 0x00DE_AD00] {
        assert_eq!(
            agreement.raw(mechanism, handle),
            Err(RvError::KeyHandleInvalid)
        );
    }
    let session = &agreement.session;
    for other in [session.signer(), session.public_of(agreement.base)] {
        let result = agreement.raw(mechanism, other.handle());
        let refused = [
            Err(RvError::KeyFunctionNotPermitted),
            Err(RvError::KeyTypeInconsistent),
            Err(RvError::MechanismInvalid),
        ];
        assert!(refused.contains(&result), "{result:?}");
    }
    let result = agreement.raw(plain(CKM_ECDSA), agreement.base.handle());
    assert_eq!(result, Err(RvError::MechanismInvalid));
}

fn derive_rejects_templates_of_other_than_session_secrets(fixture: &TokenFixture<'_>) {
    let agreement = agreement(fixture);
    for (bad, codes) in [
        (
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            vec![
                RvError::TemplateInconsistent,
                RvError::AttributeValueInvalid,
            ],
        ),
        (
            Attribute::KeyType(KeyType::RSA),
            vec![
                RvError::TemplateInconsistent,
                RvError::AttributeValueInvalid,
            ],
        ),
        (
            Attribute::Token(true),
            vec![
                RvError::TemplateInconsistent,
                RvError::AttributeValueInvalid,
                RvError::TokenWriteProtected,
            ],
        ),
        (
            Attribute::UniqueId(b"mine".to_vec()),
            vec![RvError::AttributeReadOnly],
        ),
        (
            Attribute::Modulus(vec![1]),
            vec![RvError::TemplateInconsistent, RvError::AttributeTypeInvalid],
        ),
    ] {
        let mut template = secret(Some(16));
        let same =
            |given: &Attribute| std::mem::discriminant(given) != std::mem::discriminant(&bad);
        template.retain(same);
        template.push(bad.clone());
        let result = fixture.silently(|| agreement.derive(EcKdf::null(), &template).map(drop));
        assert!(
            codes.iter().any(|code| result == Err(*code)),
            "{bad:?}: {result:?}"
        );
    }
}

fn a_derived_secret_is_not_local(fixture: &TokenFixture<'_>) {
    let agreement = agreement(fixture);
    let key = agreement.derive(EcKdf::null(), &secret(None)).unwrap();
    let kinds = [
        AttributeType::Local,
        AttributeType::AlwaysSensitive,
        AttributeType::NeverExtractable,
        AttributeType::Token,
    ];
    let expected = [
        Attribute::Local(false),
        Attribute::AlwaysSensitive(false),
        Attribute::NeverExtractable(false),
        Attribute::Token(false),
    ];
    assert_eq!(
        agreement.session.get_attributes(key, &kinds).unwrap(),
        expected
    );
}

fn sensitive_or_unextractable_derived_value_cannot_be_read(fixture: &TokenFixture<'_>) {
    let agreement = agreement(fixture);
    for hidden in [
        [Attribute::Sensitive(true), Attribute::Extractable(true)],
        [Attribute::Sensitive(false), Attribute::Extractable(false)],
    ] {
        let template = [&secret(None)[..3], &hidden].concat();
        let key = agreement.derive(EcKdf::null(), &template).unwrap();
        let result = agreement
            .session
            .get_attribute_info(key, &[AttributeType::Value])
            .unwrap();
        assert!(matches!(result[0], AttributeInfo::Sensitive), "{hidden:?}");
    }
}

fn derive_after_logout_returns_key_handle_invalid(fixture: &TokenFixture<'_>) {
    let agreement = agreement(fixture);
    agreement.session.logout().unwrap();
    let result = fixture.silently(|| agreement.derive(EcKdf::null(), &secret(None)).map(drop));
    assert_eq!(result, Err(RvError::KeyHandleInvalid));
}

fn derivation_keeps_the_active_signature_operation(fixture: &TokenFixture<'_>) {
    let agreement = agreement(fixture);
    let session = &agreement.session;
    let key = session.signer();
    assert_eq!(
        session.init(session.list.C_SignInit, session.signing(key), key),
        Ok(())
    );
    assert!(agreement.derive(EcKdf::null(), &secret(None)).is_ok());
    assert!(session.run(session.list.C_Sign, b"message", 600).is_ok());
}

/// Curves of Weierstrass form have cofactor 1 here; X25519 has no such mechanism.
fn cofactor_derivation_equals_plain_ecdh_or_is_rejected(fixture: &TokenFixture<'_>) {
    let mut agreement = agreement(fixture);
    let mut parameter = agreement.parameter();
    let mechanism = with(CKM_ECDH1_COFACTOR_DERIVE, &mut parameter);
    let result = agreement.raw(mechanism, agreement.base.handle());
    if agreement.peer.len() == 32 {
        let refused = [
            Err(RvError::MechanismInvalid),
            Err(RvError::KeyTypeInconsistent),
        ];
        assert!(refused.contains(&result), "{result:?}");
        return;
    }
    assert_eq!(result, Ok(()));
    let found = agreement.session.all(ObjectClass::SECRET_KEY);
    assert_eq!(found.len(), 1);
    let cofactor = value(&agreement.session, found[0]);
    assert_eq!(cofactor, agreement.secret(EcKdf::null(), None));
}
