//! C_WrapKey and C_UnwrapKey (PKCS #11 3.2, 5.18.3 and 5.18.4): secret session keys, wrapped with RSA and AES keys.

use claviger_hw_tests::{
    fixture::token_fixture::{TestSession, TokenFixture, answered, checked, plain},
    for_each_card,
};
use cryptoki::{
    error::RvError,
    mechanism::{
        Mechanism, MechanismType,
        rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource},
    },
    object::{Attribute, AttributeInfo, AttributeType, KeyType, ObjectClass, ObjectHandle},
};
use cryptoki_sys::{
    CK_ATTRIBUTE, CK_MECHANISM, CK_OBJECT_HANDLE, CK_ULONG, CKM_AES_KEY_WRAP, CKM_RSA_PKCS,
    CKM_SHA256,
};

for_each_card! { [piv piv_rsa openpgp_rsa] [
    a_secret_under_a_public_key_is_unwrapped_on_the_card
    an_unwrapped_key_is_not_local_and_obeys_its_template
    wrapped_key_of_wrong_length_returns_wrapped_key_len_range
    a_wrong_padding_is_no_error_where_the_length_is_given
    a_key_of_the_card_is_not_wrapped
    an_unextractable_secret_is_not_wrapped
    a_secret_too_long_for_the_modulus_is_not_wrapped
    keys_that_may_not_wrap_or_unwrap_do_not
    wrap_and_unwrap_return_the_code_of_the_invalid_handle
    wrapping_has_room_like_any_output
    unwrap_rejects_templates_of_other_than_session_secrets
    a_key_that_trusts_only_trusted_wrappers_is_not_wrapped_by_others
] }

pub const SECRET: [u8; 32] = [0x42; 32];

pub fn template(kind: KeyType, extractable: bool) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(kind),
        Attribute::Token(false),
        Attribute::Sensitive(false),
        Attribute::Extractable(extractable),
    ]
}

pub fn secret(session: &TestSession, value: &[u8]) -> ObjectHandle {
    let value = [Attribute::Value(value.to_vec())];
    let template = [&template(KeyType::GENERIC_SECRET, true)[..], &value].concat();
    answered(session.create_object(&template)).expect("C_CreateObject")
}

pub fn wrapper(session: &TestSession, value: &[u8], may: bool) -> ObjectHandle {
    let own = [
        Attribute::Value(value.to_vec()),
        Attribute::Wrap(may),
        Attribute::Unwrap(may),
    ];
    let template = [&template(KeyType::AES, false)[..], &own].concat();
    answered(session.create_object(&template)).expect("C_CreateObject")
}

pub fn value(session: &TestSession, key: ObjectHandle) -> Vec<u8> {
    match session
        .get_attributes(key, &[AttributeType::Value])
        .unwrap()
        .as_slice()
    {
        [Attribute::Value(value)] => value.clone(),
        other => panic!("{other:?}"),
    }
}

/// A session of the user, the public key that wraps and the private key that unwraps.
pub fn pair(fixture: &TokenFixture<'_>) -> (TestSession, ObjectHandle, ObjectHandle) {
    let session = fixture.user();
    let wanted = [
        Attribute::Unwrap(true),
        Attribute::AlwaysAuthenticate(false),
    ];
    let private = *session
        .private_with(&wanted)
        .last()
        .expect("a key that unwraps");
    let public = session.public_of(private);
    (session, public, private)
}

/// C_WrapKey: the code and the wrapped key.
pub fn wrap(
    session: &TestSession,
    mechanism: CK_MECHANISM,
    wrapper: CK_OBJECT_HANDLE,
    key: CK_OBJECT_HANDLE,
    room: usize,
) -> Result<Vec<u8>, RvError> {
    let function = session.list.C_WrapKey.unwrap();
    let (mut mechanism, mut made, mut len) = (mechanism, vec![0; room], room as CK_ULONG);
    let out = made.as_mut_ptr();
    // SAFETY: a mechanism, and a buffer of the length that is passed.
    checked(unsafe {
        function(
            session.id(),
            &raw mut mechanism,
            wrapper,
            key,
            out,
            &raw mut len,
        )
    })?;
    made.truncate(len as usize);
    Ok(made)
}

/// C_UnwrapKey.
pub fn unwrap(
    session: &TestSession,
    mechanism: CK_MECHANISM,
    unwrapper: CK_OBJECT_HANDLE,
    wrapped: &[u8],
    template: &[Attribute],
) -> Result<ObjectHandle, RvError> {
    let function = session.list.C_UnwrapKey.unwrap();
    let mut entries: Vec<CK_ATTRIBUTE> = template.iter().map(Into::into).collect();
    let (list, count) = (entries.as_mut_ptr(), entries.len() as CK_ULONG);
    let (bytes, len) = (wrapped.as_ptr().cast_mut(), wrapped.len() as CK_ULONG);
    let (mut mechanism, mut key) = (mechanism, 0);
    let (mechanism, made) = (&raw mut mechanism, &raw mut key);
    // SAFETY: a mechanism, a wrapped key and a template with their lengths, and where a handle may be written.
    let code = unsafe {
        function(
            session.id(),
            mechanism,
            unwrapper,
            bytes,
            len,
            list,
            count,
            made,
        )
    };
    // SAFETY: the handle is the module's.
    checked(code).map(|()| unsafe { ObjectHandle::new_from_raw(key) })
}

fn a_secret_under_a_public_key_is_unwrapped_on_the_card(fixture: &TokenFixture<'_>) {
    let (session, public, private) = pair(fixture);
    let mut mechanisms = vec![Mechanism::RsaPkcs];
    let source = PkcsOaepSource::data_specified(b"label");
    let oaep = PkcsOaepParams::new(MechanismType::SHA256, PkcsMgfType::MGF1_SHA256, source);
    if fixture
        .mechanisms()
        .contains(&cryptoki_sys::CKM_RSA_PKCS_OAEP)
        && fixture.is_piv()
    {
        mechanisms.push(Mechanism::RsaPkcsOaep(oaep));
    }
    for mechanism in mechanisms {
        let key = secret(&session, &SECRET);
        let wrapped = session
            .wrap_key(&mechanism, public, key)
            .expect("C_WrapKey");
        assert_eq!(wrapped.len(), 256);
        let kind = template(KeyType::AES, true);
        let again = session
            .unwrap_key(&mechanism, private, &wrapped, &kind)
            .expect("C_UnwrapKey");
        assert_eq!(value(&session, again), SECRET);
    }
}

fn an_unwrapped_key_is_not_local_and_obeys_its_template(fixture: &TokenFixture<'_>) {
    let (session, public, private) = pair(fixture);
    let wrapped = wrap(
        &session,
        plain(CKM_RSA_PKCS),
        public.handle(),
        secret(&session, &SECRET).handle(),
        256,
    );
    let mut hidden = template(KeyType::GENERIC_SECRET, false);
    hidden[3] = Attribute::Sensitive(true);
    hidden.push(Attribute::Label(b"unwrapped".to_vec()));
    let key = unwrap(
        &session,
        plain(CKM_RSA_PKCS),
        private.handle(),
        &wrapped.unwrap(),
        &hidden,
    )
    .unwrap();
    let result = session
        .get_attribute_info(key, &[AttributeType::Value])
        .unwrap();
    assert!(matches!(result[0], AttributeInfo::Sensitive));
    let kinds = [
        AttributeType::Local,
        AttributeType::AlwaysSensitive,
        AttributeType::NeverExtractable,
        AttributeType::Label,
    ];
    let expected = [
        Attribute::Local(false),
        Attribute::AlwaysSensitive(false),
        Attribute::NeverExtractable(false),
        Attribute::Label(b"unwrapped".to_vec()),
    ];
    assert_eq!(session.get_attributes(key, &kinds).unwrap(), expected);
}

fn wrapped_key_of_wrong_length_returns_wrapped_key_len_range(fixture: &TokenFixture<'_>) {
    let (session, _, private) = pair(fixture);
    for len in [0, 255, 257] {
        let kind = template(KeyType::GENERIC_SECRET, true);
        let result = fixture.silently(|| {
            unwrap(
                &session,
                plain(CKM_RSA_PKCS),
                private.handle(),
                &vec![1; len],
                &kind,
            )
            .map(drop)
        });
        assert_eq!(result, Err(RvError::WrappedKeyLenRange), "{len}");
    }
}

/// Implicit rejection, as for decryption. The length in the template makes it possible.
fn a_wrong_padding_is_no_error_where_the_length_is_given(fixture: &TokenFixture<'_>) {
    let (session, _, private) = pair(fixture);
    let kind = [
        &template(KeyType::GENERIC_SECRET, true)[..],
        &[Attribute::ValueLen(32.into())],
    ]
    .concat();
    let result = unwrap(
        &session,
        plain(CKM_RSA_PKCS),
        private.handle(),
        &[0x17; 256],
        &kind,
    );
    match result {
        Ok(key) => assert_eq!(value(&session, key).len(), 32),
        Err(code) => assert_eq!(code, RvError::WrappedKeyInvalid),
    }
}

fn a_key_of_the_card_is_not_wrapped(fixture: &TokenFixture<'_>) {
    let (session, public, _) = pair(fixture);
    for key in session.all(ObjectClass::PRIVATE_KEY) {
        let result = wrap(
            &session,
            plain(CKM_RSA_PKCS),
            public.handle(),
            key.handle(),
            256,
        );
        let refused = [
            Err(RvError::KeyUnextractable),
            Err(RvError::KeyNotWrappable),
        ];
        assert!(refused.contains(&result), "{result:?}");
    }
}

fn an_unextractable_secret_is_not_wrapped(fixture: &TokenFixture<'_>) {
    let (session, public, _) = pair(fixture);
    let own = [Attribute::Value(SECRET.to_vec())];
    let fixed = [&template(KeyType::GENERIC_SECRET, false)[..], &own].concat();
    let key = session.create_object(&fixed).expect("C_CreateObject");
    let result = wrap(
        &session,
        plain(CKM_RSA_PKCS),
        public.handle(),
        key.handle(),
        256,
    );
    assert_eq!(result, Err(RvError::KeyUnextractable));
}

fn a_secret_too_long_for_the_modulus_is_not_wrapped(fixture: &TokenFixture<'_>) {
    let (session, public, _) = pair(fixture);
    let key = secret(&session, &[5; 246]);
    let result = wrap(
        &session,
        plain(CKM_RSA_PKCS),
        public.handle(),
        key.handle(),
        256,
    );
    let refused = [
        Err(RvError::KeySizeRange),
        Err(RvError::WrappingKeySizeRange),
    ];
    assert!(refused.contains(&result), "{result:?}");
}

fn keys_that_may_not_wrap_or_unwrap_do_not(fixture: &TokenFixture<'_>) {
    let (session, ..) = pair(fixture);
    let key = secret(&session, &SECRET);
    let idle = wrapper(&session, &[1; 16], false);
    let result = wrap(
        &session,
        plain(CKM_AES_KEY_WRAP),
        idle.handle(),
        key.handle(),
        256,
    );
    assert_eq!(result, Err(RvError::KeyFunctionNotPermitted));
    let kind = template(KeyType::GENERIC_SECRET, true);
    let result = unwrap(
        &session,
        plain(CKM_AES_KEY_WRAP),
        idle.handle(),
        &[1; 40],
        &kind,
    );
    assert_eq!(result.map(drop), Err(RvError::KeyFunctionNotPermitted));
    for other in session.private_with(&[Attribute::Unwrap(false)]) {
        let result = unwrap(
            &session,
            plain(CKM_RSA_PKCS),
            other.handle(),
            &[1; 256],
            &kind,
        );
        let refused = [
            Err(RvError::KeyFunctionNotPermitted),
            Err(RvError::UnwrappingKeyTypeInconsistent),
            Err(RvError::MechanismInvalid),
        ];
        assert!(refused.contains(&result.map(drop)));
    }
}

fn wrap_and_unwrap_return_the_code_of_the_invalid_handle(fixture: &TokenFixture<'_>) {
    let (session, public, private) = pair(fixture);
    let key = secret(&session, &SECRET);
    let rsa = plain(CKM_RSA_PKCS);
    let kind = template(KeyType::GENERIC_SECRET, true);
    for none in [0, 0x00DE_AD00] {
        let result = wrap(&session, rsa, none, key.handle(), 256);
        assert_eq!(result, Err(RvError::WrappingKeyHandleInvalid));
        let result = wrap(&session, rsa, public.handle(), none, 256);
        assert_eq!(result, Err(RvError::KeyHandleInvalid));
        let result = unwrap(&session, rsa, none, &[1; 256], &kind).map(drop);
        assert_eq!(result, Err(RvError::UnwrappingKeyHandleInvalid));
    }
    let result = wrap(
        &session,
        plain(CKM_SHA256),
        public.handle(),
        key.handle(),
        256,
    );
    assert_eq!(result, Err(RvError::MechanismInvalid));
    let result = unwrap(
        &session,
        plain(CKM_SHA256),
        private.handle(),
        &[1; 256],
        &kind,
    );
    assert_eq!(result.map(drop), Err(RvError::MechanismInvalid));
}

fn wrapping_has_room_like_any_output(fixture: &TokenFixture<'_>) {
    let (session, public, _) = pair(fixture);
    let key = secret(&session, &SECRET);
    let function = session.list.C_WrapKey.unwrap();
    let (mut mechanism, mut len) = (plain(CKM_RSA_PKCS), 0);
    let (wrapper, key) = (public.handle(), key.handle());
    let null = std::ptr::null_mut();
    // SAFETY: a mechanism, no buffer, and where the length may be written.
    let code = unsafe {
        function(
            session.id(),
            &raw mut mechanism,
            wrapper,
            key,
            null,
            &raw mut len,
        )
    };
    assert_eq!((checked(code), len), (Ok(()), 256));
    let result = wrap(&session, mechanism, wrapper, key, 255);
    assert_eq!(result, Err(RvError::BufferTooSmall));
    assert!(wrap(&session, mechanism, wrapper, key, 256).is_ok());
}

fn unwrap_rejects_templates_of_other_than_session_secrets(fixture: &TokenFixture<'_>) {
    let (session, public, private) = pair(fixture);
    let key = secret(&session, &SECRET);
    let rsa = plain(CKM_RSA_PKCS);
    let wrapped = wrap(&session, rsa, public.handle(), key.handle(), 256).unwrap();
    let before = session.all(ObjectClass::SECRET_KEY).len();
    let good = template(KeyType::GENERIC_SECRET, true);
    let with = |at: usize, attribute| {
        let mut template = good.clone();
        template[at] = attribute;
        template
    };
    for bad in [
        with(0, Attribute::Class(ObjectClass::CERTIFICATE)),
        with(1, Attribute::KeyType(KeyType::EC)),
        with(2, Attribute::Token(true)),
        [&good[..], &[Attribute::UniqueId(b"x".to_vec())]].concat(),
        [&good[..], &[Attribute::Value(b"mine".to_vec())]].concat(),
    ] {
        let result = unwrap(&session, rsa, private.handle(), &wrapped, &bad).map(drop);
        let refused = [
            Err(RvError::TemplateInconsistent),
            Err(RvError::AttributeValueInvalid),
            Err(RvError::AttributeReadOnly),
            Err(RvError::TokenWriteProtected),
        ];
        assert!(refused.contains(&result), "{bad:?}: {result:?}");
    }
    assert_eq!(
        session.all(ObjectClass::SECRET_KEY).len(),
        before,
        "nothing was made"
    );
}

fn a_key_that_trusts_only_trusted_wrappers_is_not_wrapped_by_others(fixture: &TokenFixture<'_>) {
    let (session, public, _) = pair(fixture);
    let own = [
        Attribute::Value(SECRET.to_vec()),
        Attribute::WrapWithTrusted(true),
    ];
    let careful = [&template(KeyType::GENERIC_SECRET, true)[..], &own].concat();
    let key = session.create_object(&careful).expect("C_CreateObject");
    let result = wrap(
        &session,
        plain(CKM_RSA_PKCS),
        public.handle(),
        key.handle(),
        256,
    );
    let refused = [
        Err(RvError::KeyNotWrappable),
        Err(RvError::KeyUnextractable),
    ];
    assert!(refused.contains(&result), "{result:?}");
}
