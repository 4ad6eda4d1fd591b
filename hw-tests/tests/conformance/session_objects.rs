//! Creation of session objects, and their templates (PKCS #11 3.2, 5.7.1).

use std::ptr;

use claviger_hw_tests::{
    ck,
    fixture::token_fixture::{TestSession, TokenFixture, answered, checked},
    for_each_card,
};
use cryptoki::{
    error::RvError,
    object::{Attribute, AttributeType, CertificateType, KeyType, ObjectClass, ObjectHandle},
};
use cryptoki_sys::{
    CK_ATTRIBUTE, CK_ULONG, CKA_CLASS, CKA_LABEL, CKA_SENSITIVE, CKA_VALUE, CKO_DATA,
};

for_each_card! { [piv openpgp] [
    objects_of_each_class_are_made_and_found
    created_object_has_the_default_attributes_of_its_class
    template_lacking_a_required_attribute_is_incomplete
    an_unknown_attribute_is_refused
    a_value_of_the_wrong_form_is_refused
    attributes_set_by_the_token_are_read_only_in_templates
    contradictions_are_inconsistent
    rejected_template_creates_no_object
    object_creation_with_null_template_or_handle_pointer_is_rejected
    token_object_creation_without_so_login_is_rejected
    values_of_any_size_come_back
] }

pub const SECRET: [u8; 32] = [0x42; 32];

pub fn class(class: ObjectClass) -> Attribute {
    Attribute::Class(class)
}

pub fn data(label: &str) -> Vec<Attribute> {
    vec![
        class(ObjectClass::DATA),
        Attribute::Label(label.as_bytes().to_vec()),
        Attribute::Application(b"claviger".to_vec()),
        Attribute::Value(b"content".to_vec()),
    ]
}

/// An extractable secret key of 32 bytes.
pub fn secret(kind: KeyType) -> Vec<Attribute> {
    vec![
        class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(kind),
        Attribute::Value(SECRET.to_vec()),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ]
}

/// The certificate on the card, as somebody else's.
fn certificate(session: &TestSession) -> Vec<Attribute> {
    let known = session.all(ObjectClass::CERTIFICATE)[0];
    let kinds = [AttributeType::Value, AttributeType::Subject];
    let fixed = [
        class(ObjectClass::CERTIFICATE),
        Attribute::CertificateType(CertificateType::X_509),
        Attribute::Id(vec![0x77]),
    ];
    [&fixed[..], &session.get_attributes(known, &kinds).unwrap()].concat()
}

fn rsa() -> Vec<Attribute> {
    vec![
        class(ObjectClass::PUBLIC_KEY),
        Attribute::KeyType(KeyType::RSA),
        Attribute::Modulus(vec![0xC5; 256]),
        Attribute::PublicExponent(vec![1, 0, 1]),
    ]
}

pub fn make(session: &TestSession, template: &[Attribute]) -> Result<ObjectHandle, RvError> {
    answered(session.create_object(template))
}

pub fn value(session: &TestSession, object: ObjectHandle) -> Vec<u8> {
    let got = session
        .get_attributes(object, &[AttributeType::Value])
        .unwrap();
    match got.as_slice() {
        [Attribute::Value(value)] => value.clone(),
        other => panic!("{other:?}"),
    }
}

fn objects_of_each_class_are_made_and_found(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let templates = [
        data("data"),
        certificate(&session),
        rsa(),
        secret(KeyType::GENERIC_SECRET),
        secret(KeyType::AES),
    ];
    for template in templates {
        let object = make(&session, &template).expect("C_CreateObject");
        let fixed = [
            Attribute::Token(false),
            template[0].clone(),
            template[1].clone(),
        ];
        let found = session.find_objects(&fixed).unwrap();
        assert!(found.contains(&object), "{template:?}");
        let token = session.get_attributes(object, &[AttributeType::Token]);
        assert_eq!(token.unwrap(), [Attribute::Token(false)]);
    }
}

fn created_object_has_the_default_attributes_of_its_class(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let object = make(&session, &data("data")).unwrap();
    let kinds = [
        AttributeType::Modifiable,
        AttributeType::Copyable,
        AttributeType::Destroyable,
    ];
    let expected = [
        Attribute::Modifiable(true),
        Attribute::Copyable(true),
        Attribute::Destroyable(true),
    ];
    assert_eq!(session.get_attributes(object, &kinds).unwrap(), expected);
    let id = session
        .get_attributes(object, &[AttributeType::UniqueId])
        .unwrap();
    assert_eq!(id.len(), 1);
    let key = make(&session, &secret(KeyType::GENERIC_SECRET)).unwrap();
    let kinds = [
        AttributeType::Local,
        AttributeType::AlwaysSensitive,
        AttributeType::NeverExtractable,
        AttributeType::ValueLen,
    ];
    let expected = [
        Attribute::Local(false),
        Attribute::AlwaysSensitive(false),
        Attribute::NeverExtractable(false),
        Attribute::ValueLen(32.into()),
    ];
    assert_eq!(session.get_attributes(key, &kinds).unwrap(), expected);
}

fn template_lacking_a_required_attribute_is_incomplete(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let needed: [(Vec<Attribute>, &[usize]); 4] = [
        (data("data"), &[0]),
        (certificate(&session), &[0, 1, 3]),
        (rsa(), &[0, 1, 2, 3]),
        (secret(KeyType::AES), &[0, 1, 2]),
    ];
    for (template, needed) in needed {
        for missing in needed {
            let mut template = template.clone();
            let left_out = template.remove(*missing);
            let result = make(&session, &template).map(drop);
            assert_eq!(result, Err(RvError::TemplateIncomplete), "{left_out:?}");
        }
    }
}

fn an_unknown_attribute_is_refused(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let unknown = AttributeType::VendorDefined(0x8000_4321);
    let odd = Attribute::VendorDefined((unknown, vec![1]));
    let result = make(&session, &[data("data"), vec![odd]].concat()).map(drop);
    assert_eq!(result, Err(RvError::AttributeTypeInvalid));
    let foreign = Attribute::Modulus(vec![1]);
    let result = make(&session, &[data("data"), vec![foreign]].concat()).map(drop);
    let refused = [
        Err(RvError::AttributeTypeInvalid),
        Err(RvError::TemplateInconsistent),
    ];
    assert!(refused.contains(&result), "{result:?}");
}

fn a_value_of_the_wrong_form_is_refused(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let (mut class, mut two, mut flag) = (CKO_DATA, 2_u8, [1_u8; 2]);
    let entry = |kind, value: *mut u8, len| CK_ATTRIBUTE {
        type_: kind,
        pValue: value.cast(),
        ulValueLen: len,
    };
    let class = (&raw mut class).cast::<u8>();
    let private = cryptoki_sys::CKA_PRIVATE;
    for mut bad in [
        vec![entry(CKA_CLASS, class, 4)],
        vec![entry(CKA_CLASS, class, 8), entry(private, &raw mut two, 1)],
        vec![
            entry(CKA_CLASS, class, 8),
            entry(private, flag.as_mut_ptr(), 2),
        ],
        vec![
            entry(CKA_CLASS, class, 8),
            entry(private, flag.as_mut_ptr(), 0),
        ],
    ] {
        let (list, len, mut object) = (bad.as_mut_ptr(), bad.len() as CK_ULONG, 0);
        let code = ck!(
            fixture.raw,
            C_CreateObject,
            session.id(),
            list,
            len,
            &raw mut object
        );
        // Any byte but 0 may pass for TRUE.
        let result = checked(code);
        assert!(result == Err(RvError::AttributeValueInvalid) || two_is_true(&bad, result));
    }
    for bad in [
        Attribute::Value(vec![1; 15]),
        Attribute::Value(vec![]),
        Attribute::Value(vec![1; 33]),
    ] {
        let mut template = secret(KeyType::AES);
        template[2] = bad.clone();
        let result = make(&session, &template).map(drop);
        let refused = [
            Err(RvError::AttributeValueInvalid),
            Err(RvError::KeySizeRange),
        ];
        assert!(refused.contains(&result), "{bad:?}: {result:?}");
    }
    let strange = [ObjectClass::HARDWARE_FEATURE, ObjectClass::MECHANISM];
    for class in strange {
        let result = make(&session, &[Attribute::Class(class)]).map(drop);
        let refused = [
            Err(RvError::AttributeValueInvalid),
            Err(RvError::TemplateInconsistent),
        ];
        assert!(refused.contains(&result), "{class:?}: {result:?}");
    }
}

fn two_is_true(template: &[CK_ATTRIBUTE], result: Result<(), RvError>) -> bool {
    template.len() == 2 && template[1].ulValueLen == 1 && result.is_ok()
}

fn attributes_set_by_the_token_are_read_only_in_templates(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let result = make(
        &session,
        &[data("data"), vec![Attribute::UniqueId(b"x".to_vec())]].concat(),
    );
    assert_eq!(result.map(drop), Err(RvError::AttributeReadOnly));
    for only in [
        Attribute::Local(true),
        Attribute::AlwaysSensitive(true),
        Attribute::NeverExtractable(true),
    ] {
        let result = make(
            &session,
            &[secret(KeyType::AES), vec![only.clone()]].concat(),
        )
        .map(drop);
        let refused = [
            Err(RvError::AttributeReadOnly),
            Err(RvError::TemplateInconsistent),
        ];
        assert!(refused.contains(&result), "{only:?}: {result:?}");
    }
    let trusted = [certificate(&session), vec![Attribute::Trusted(true)]].concat();
    let result = make(&session, &trusted).map(drop);
    assert_eq!(
        result,
        Err(RvError::AttributeReadOnly),
        "for the security officer"
    );
}

fn contradictions_are_inconsistent(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let twice = Attribute::Label(b"another".to_vec());
    let result = make(&session, &[data("data"), vec![twice]].concat()).map(drop);
    assert_eq!(result, Err(RvError::TemplateInconsistent), "two labels");
    let again = Attribute::Label(b"data".to_vec());
    assert!(
        make(&session, &[data("data"), vec![again]].concat()).is_ok(),
        "the same label twice"
    );
    let length = Attribute::ValueLen(16.into());
    let result = make(&session, &[secret(KeyType::AES), vec![length]].concat()).map(drop);
    let refused = [
        Err(RvError::TemplateInconsistent),
        Err(RvError::AttributeReadOnly),
        Err(RvError::AttributeTypeInvalid),
    ];
    assert!(refused.contains(&result), "{result:?}");
}

fn rejected_template_creates_no_object(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let before = session.find_objects(&[]).unwrap();
    let unique = Attribute::UniqueId(b"x".to_vec());
    assert!(make(&session, &[data("data"), vec![unique]].concat()).is_err());
    assert_eq!(session.find_objects(&[]).unwrap(), before);
}

fn object_creation_with_null_template_or_handle_pointer_is_rejected(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let (null, mut object, mut class) = (ptr::null_mut(), 0, CKO_DATA);
    let mut template = [CK_ATTRIBUTE {
        type_: CKA_CLASS,
        pValue: (&raw mut class).cast(),
        ulValueLen: 8,
    }];
    let list = template.as_mut_ptr();
    for code in [
        ck!(
            fixture.raw,
            C_CreateObject,
            session.id(),
            null,
            1,
            &raw mut object
        ),
        ck!(
            fixture.raw,
            C_CreateObject,
            session.id(),
            list,
            1,
            ptr::null_mut()
        ),
        ck!(
            fixture.raw,
            C_CreateObject,
            session.id(),
            list,
            CK_ULONG::MAX,
            &raw mut object
        ),
        ck!(fixture.raw, C_SetAttributeValue, session.id(), 1, null, 1),
    ] {
        let refused = [
            Err(RvError::ArgumentsBad),
            Err(RvError::ObjectHandleInvalid),
        ];
        assert!(refused.contains(&checked(code)), "{code:#x}");
    }
    let code = ck!(
        fixture.raw,
        C_CreateObject,
        session.id(),
        null,
        0,
        &raw mut object
    );
    let refused = [Err(RvError::TemplateIncomplete), Err(RvError::ArgumentsBad)];
    assert!(refused.contains(&checked(code)), "{code:#x}");
}

fn token_object_creation_without_so_login_is_rejected(fixture: &TokenFixture<'_>) {
    let template = [data("data"), vec![Attribute::Token(true)]].concat();
    let reader = fixture.read_only();
    let result = fixture.silently(|| make(&reader, &template).map(drop));
    let refused = [
        Err(RvError::SessionReadOnly),
        Err(RvError::TokenWriteProtected),
    ];
    assert!(refused.contains(&result), "{result:?}");
    let session = fixture.user();
    let result = fixture.silently(|| make(&session, &template).map(drop));
    let refused = [
        Err(RvError::UserNotLoggedIn),
        Err(RvError::TemplateInconsistent),
        Err(RvError::AttributeValueInvalid),
        Err(RvError::TokenWriteProtected),
    ];
    assert!(refused.contains(&result), "{result:?}");
}

fn values_of_any_size_come_back(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    for len in [0, 1, 4096, 100_000] {
        let mut template = data("sized");
        template[3] = Attribute::Value(vec![0x5C; len]);
        let object = make(&session, &template).expect("C_CreateObject");
        assert_eq!(value(&session, object), vec![0x5C; len]);
    }
    let (mut entry, object) = (
        CK_ATTRIBUTE {
            type_: CKA_LABEL,
            pValue: ptr::null_mut(),
            ulValueLen: 0,
        },
        make(&session, &data("named")).unwrap(),
    );
    let code = ck!(
        fixture.raw,
        C_SetAttributeValue,
        session.id(),
        object.handle(),
        &raw mut entry,
        1
    );
    assert_eq!(checked(code), Ok(()), "an empty label");
    for kind in [CKA_VALUE, CKA_SENSITIVE] {
        entry.type_ = kind;
        entry.ulValueLen = CK_ULONG::MAX;
        let code = ck!(
            fixture.raw,
            C_SetAttributeValue,
            session.id(),
            object.handle(),
            &raw mut entry,
            1
        );
        assert_ne!(checked(code), Ok(()), "no value can be that long");
    }
}
