//! Objects of sessions (PKCS #11 3.2, 5.7.1 to 5.7.6): made, copied, changed, destroyed, and gone with their session.

use std::ptr;

use cryptoki::{
    error::RvError,
    object::{
        Attribute, AttributeInfo, AttributeType, CertificateType, KeyType, ObjectClass,
        ObjectHandle,
    },
};
use cryptoki_sys::{
    CK_ATTRIBUTE, CK_ULONG, CKA_CLASS, CKA_LABEL, CKA_SENSITIVE, CKA_VALUE, CKO_DATA,
};

use crate::{
    Bench, Seat,
    bench::{answered, checked},
    ck,
};

on_cards! { [piv openpgp] [
    objects_of_each_class_are_made_and_found
    a_made_object_has_the_defaults_of_its_class
    a_template_without_what_is_needed_is_incomplete
    an_unknown_attribute_is_refused
    a_value_of_the_wrong_form_is_refused
    what_only_the_token_sets_is_read_only
    contradictions_are_inconsistent
    a_refused_template_makes_nothing
    a_null_template_or_place_is_a_bad_argument
    nothing_is_made_on_the_card
    a_private_object_needs_a_login
    private_objects_die_with_the_login_and_public_ones_do_not
    objects_die_with_their_session_and_with_no_other
    all_sessions_see_an_object
    a_copy_is_an_object_of_its_own
    a_copy_may_become_stricter_and_not_laxer
    what_may_not_be_copied_changed_or_destroyed_is_not
    an_object_changes_in_all_or_in_nothing
    sensitive_is_for_ever
    a_secret_comes_out_only_if_it_may
    a_destroyed_object_is_gone_everywhere
    values_of_any_size_come_back
    many_objects_live_side_by_side
] }

const SECRET: [u8; 32] = [0x42; 32];

fn class(class: ObjectClass) -> Attribute {
    Attribute::Class(class)
}

fn data(label: &str) -> Vec<Attribute> {
    vec![
        class(ObjectClass::DATA),
        Attribute::Label(label.as_bytes().to_vec()),
        Attribute::Application(b"claviger".to_vec()),
        Attribute::Value(b"content".to_vec()),
    ]
}

/// An extractable secret key of 32 bytes.
fn secret(kind: KeyType) -> Vec<Attribute> {
    vec![
        class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(kind),
        Attribute::Value(SECRET.to_vec()),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ]
}

/// The certificate on the card, as somebody else's.
fn certificate(seat: &Seat) -> Vec<Attribute> {
    let known = seat.all(ObjectClass::CERTIFICATE)[0];
    let kinds = [AttributeType::Value, AttributeType::Subject];
    let fixed = [
        class(ObjectClass::CERTIFICATE),
        Attribute::CertificateType(CertificateType::X_509),
        Attribute::Id(vec![0x77]),
    ];
    [&fixed[..], &seat.get_attributes(known, &kinds).unwrap()].concat()
}

fn rsa() -> Vec<Attribute> {
    vec![
        class(ObjectClass::PUBLIC_KEY),
        Attribute::KeyType(KeyType::RSA),
        Attribute::Modulus(vec![0xC5; 256]),
        Attribute::PublicExponent(vec![1, 0, 1]),
    ]
}

fn make(seat: &Seat, template: &[Attribute]) -> Result<ObjectHandle, RvError> {
    answered(seat.create_object(template))
}

fn value(seat: &Seat, object: ObjectHandle) -> Vec<u8> {
    let got = seat
        .get_attributes(object, &[AttributeType::Value])
        .unwrap();
    match got.as_slice() {
        [Attribute::Value(value)] => value.clone(),
        other => panic!("{other:?}"),
    }
}

fn objects_of_each_class_are_made_and_found(bench: &Bench<'_>) {
    let seat = bench.user();
    let templates = [
        data("data"),
        certificate(&seat),
        rsa(),
        secret(KeyType::GENERIC_SECRET),
        secret(KeyType::AES),
    ];
    for template in templates {
        let object = make(&seat, &template).expect("C_CreateObject");
        let fixed = [
            Attribute::Token(false),
            template[0].clone(),
            template[1].clone(),
        ];
        let found = seat.find_objects(&fixed).unwrap();
        assert!(found.contains(&object), "{template:?}");
        let token = seat.get_attributes(object, &[AttributeType::Token]);
        assert_eq!(token.unwrap(), [Attribute::Token(false)]);
    }
}

fn a_made_object_has_the_defaults_of_its_class(bench: &Bench<'_>) {
    let seat = bench.user();
    let object = make(&seat, &data("data")).unwrap();
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
    assert_eq!(seat.get_attributes(object, &kinds).unwrap(), expected);
    let id = seat
        .get_attributes(object, &[AttributeType::UniqueId])
        .unwrap();
    assert_eq!(id.len(), 1);
    let key = make(&seat, &secret(KeyType::GENERIC_SECRET)).unwrap();
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
    assert_eq!(seat.get_attributes(key, &kinds).unwrap(), expected);
}

fn a_template_without_what_is_needed_is_incomplete(bench: &Bench<'_>) {
    let seat = bench.user();
    let needed: [(Vec<Attribute>, &[usize]); 4] = [
        (data("data"), &[0]),
        (certificate(&seat), &[0, 1, 3]),
        (rsa(), &[0, 1, 2, 3]),
        (secret(KeyType::AES), &[0, 1, 2]),
    ];
    for (template, needed) in needed {
        for missing in needed {
            let mut template = template.clone();
            let left_out = template.remove(*missing);
            let told = make(&seat, &template).map(drop);
            assert_eq!(told, Err(RvError::TemplateIncomplete), "{left_out:?}");
        }
    }
}

fn an_unknown_attribute_is_refused(bench: &Bench<'_>) {
    let seat = bench.user();
    let unknown = AttributeType::VendorDefined(0x8000_4321);
    let odd = Attribute::VendorDefined((unknown, vec![1]));
    let told = make(&seat, &[data("data"), vec![odd]].concat()).map(drop);
    assert_eq!(told, Err(RvError::AttributeTypeInvalid));
    let foreign = Attribute::Modulus(vec![1]);
    let told = make(&seat, &[data("data"), vec![foreign]].concat()).map(drop);
    let refused = [
        Err(RvError::AttributeTypeInvalid),
        Err(RvError::TemplateInconsistent),
    ];
    assert!(refused.contains(&told), "{told:?}");
}

fn a_value_of_the_wrong_form_is_refused(bench: &Bench<'_>) {
    let seat = bench.user();
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
            bench.raw,
            C_CreateObject,
            seat.id(),
            list,
            len,
            &raw mut object
        );
        // Any byte but 0 may pass for TRUE.
        let told = checked(code);
        assert!(told == Err(RvError::AttributeValueInvalid) || two_is_true(&bad, told));
    }
    for bad in [
        Attribute::Value(vec![1; 15]),
        Attribute::Value(vec![]),
        Attribute::Value(vec![1; 33]),
    ] {
        let mut template = secret(KeyType::AES);
        template[2] = bad.clone();
        let told = make(&seat, &template).map(drop);
        let refused = [
            Err(RvError::AttributeValueInvalid),
            Err(RvError::KeySizeRange),
        ];
        assert!(refused.contains(&told), "{bad:?}: {told:?}");
    }
    let strange = [ObjectClass::HARDWARE_FEATURE, ObjectClass::MECHANISM];
    for class in strange {
        let told = make(&seat, &[Attribute::Class(class)]).map(drop);
        let refused = [
            Err(RvError::AttributeValueInvalid),
            Err(RvError::TemplateInconsistent),
        ];
        assert!(refused.contains(&told), "{class:?}: {told:?}");
    }
}

fn two_is_true(template: &[CK_ATTRIBUTE], told: Result<(), RvError>) -> bool {
    template.len() == 2 && template[1].ulValueLen == 1 && told.is_ok()
}

fn what_only_the_token_sets_is_read_only(bench: &Bench<'_>) {
    let seat = bench.user();
    let told = make(
        &seat,
        &[data("data"), vec![Attribute::UniqueId(b"x".to_vec())]].concat(),
    );
    assert_eq!(told.map(drop), Err(RvError::AttributeReadOnly));
    for only in [
        Attribute::Local(true),
        Attribute::AlwaysSensitive(true),
        Attribute::NeverExtractable(true),
    ] {
        let told = make(&seat, &[secret(KeyType::AES), vec![only.clone()]].concat()).map(drop);
        let refused = [
            Err(RvError::AttributeReadOnly),
            Err(RvError::TemplateInconsistent),
        ];
        assert!(refused.contains(&told), "{only:?}: {told:?}");
    }
    let trusted = [certificate(&seat), vec![Attribute::Trusted(true)]].concat();
    let told = make(&seat, &trusted).map(drop);
    assert_eq!(
        told,
        Err(RvError::AttributeReadOnly),
        "for the security officer"
    );
}

fn contradictions_are_inconsistent(bench: &Bench<'_>) {
    let seat = bench.user();
    let twice = Attribute::Label(b"another".to_vec());
    let told = make(&seat, &[data("data"), vec![twice]].concat()).map(drop);
    assert_eq!(told, Err(RvError::TemplateInconsistent), "two labels");
    let again = Attribute::Label(b"data".to_vec());
    assert!(
        make(&seat, &[data("data"), vec![again]].concat()).is_ok(),
        "the same label twice"
    );
    let length = Attribute::ValueLen(16.into());
    let told = make(&seat, &[secret(KeyType::AES), vec![length]].concat()).map(drop);
    let refused = [
        Err(RvError::TemplateInconsistent),
        Err(RvError::AttributeReadOnly),
        Err(RvError::AttributeTypeInvalid),
    ];
    assert!(refused.contains(&told), "{told:?}");
}

fn a_refused_template_makes_nothing(bench: &Bench<'_>) {
    let seat = bench.user();
    let before = seat.find_objects(&[]).unwrap();
    let unique = Attribute::UniqueId(b"x".to_vec());
    assert!(make(&seat, &[data("data"), vec![unique]].concat()).is_err());
    assert_eq!(seat.find_objects(&[]).unwrap(), before);
}

fn a_null_template_or_place_is_a_bad_argument(bench: &Bench<'_>) {
    let seat = bench.user();
    let (null, mut object, mut class) = (ptr::null_mut(), 0, CKO_DATA);
    let mut template = [CK_ATTRIBUTE {
        type_: CKA_CLASS,
        pValue: (&raw mut class).cast(),
        ulValueLen: 8,
    }];
    let list = template.as_mut_ptr();
    for code in [
        ck!(
            bench.raw,
            C_CreateObject,
            seat.id(),
            null,
            1,
            &raw mut object
        ),
        ck!(
            bench.raw,
            C_CreateObject,
            seat.id(),
            list,
            1,
            ptr::null_mut()
        ),
        ck!(
            bench.raw,
            C_CreateObject,
            seat.id(),
            list,
            CK_ULONG::MAX,
            &raw mut object
        ),
        ck!(bench.raw, C_SetAttributeValue, seat.id(), 1, null, 1),
    ] {
        let refused = [
            Err(RvError::ArgumentsBad),
            Err(RvError::ObjectHandleInvalid),
        ];
        assert!(refused.contains(&checked(code)), "{code:#x}");
    }
    let code = ck!(
        bench.raw,
        C_CreateObject,
        seat.id(),
        null,
        0,
        &raw mut object
    );
    let refused = [Err(RvError::TemplateIncomplete), Err(RvError::ArgumentsBad)];
    assert!(refused.contains(&checked(code)), "{code:#x}");
}

fn nothing_is_made_on_the_card(bench: &Bench<'_>) {
    let template = [data("data"), vec![Attribute::Token(true)]].concat();
    let reader = bench.read_only();
    let told = bench.silently(|| make(&reader, &template).map(drop));
    let refused = [
        Err(RvError::SessionReadOnly),
        Err(RvError::TokenWriteProtected),
    ];
    assert!(refused.contains(&told), "{told:?}");
    let seat = bench.user();
    let told = bench.silently(|| make(&seat, &template).map(drop));
    let refused = [
        Err(RvError::UserNotLoggedIn),
        Err(RvError::TemplateInconsistent),
        Err(RvError::AttributeValueInvalid),
        Err(RvError::TokenWriteProtected),
    ];
    assert!(refused.contains(&told), "{told:?}");
}

fn a_private_object_needs_a_login(bench: &Bench<'_>) {
    let seat = bench.read_only();
    let template = [data("mine"), vec![Attribute::Private(true)]].concat();
    let told = make(&seat, &template).map(drop);
    assert_eq!(told, Err(RvError::UserNotLoggedIn));
    assert_eq!(seat.enter_user(), Ok(()));
    assert!(make(&seat, &template).is_ok(), "in a read-only session too");
}

fn private_objects_die_with_the_login_and_public_ones_do_not(bench: &Bench<'_>) {
    let seat = bench.user();
    let private = [data("mine"), vec![Attribute::Private(true)]].concat();
    let public = [data("ours"), vec![Attribute::Private(false)]].concat();
    let (private, public) = (
        make(&seat, &private).unwrap(),
        make(&seat, &public).unwrap(),
    );
    seat.logout().unwrap();
    assert_eq!(value(&seat, public), b"content");
    assert_eq!(seat.enter_user(), Ok(()));
    let told = answered(seat.get_attributes(private, &[AttributeType::Value]));
    assert_eq!(told.map(drop), Err(RvError::ObjectHandleInvalid));
    let mine = seat.find_objects(&[Attribute::Label(b"mine".to_vec())]);
    assert_eq!(mine.unwrap(), [], "destroyed, not hidden");
}

fn objects_die_with_their_session_and_with_no_other(bench: &Bench<'_>) {
    let (one, two) = (bench.user(), bench.read_only());
    let (first, second) = (
        make(&one, &data("1")).unwrap(),
        make(&two, &data("2")).unwrap(),
    );
    one.leave();
    let told = answered(two.get_attributes(first, &[AttributeType::Value]));
    assert_eq!(told.map(drop), Err(RvError::ObjectHandleInvalid));
    assert_eq!(value(&two, second), b"content");
}

fn all_sessions_see_an_object(bench: &Bench<'_>) {
    let (one, two) = (bench.user(), bench.read_only());
    let object = make(&one, &data("shared")).unwrap();
    let found = two
        .find_objects(&[Attribute::Label(b"shared".to_vec())])
        .unwrap();
    assert_eq!(found, [object]);
    assert_eq!(value(&two, object), b"content");
}

fn a_copy_is_an_object_of_its_own(bench: &Bench<'_>) {
    let seat = bench.user();
    let object = make(&seat, &data("first")).unwrap();
    let changes = [Attribute::Label(b"second".to_vec())];
    let copy = answered(seat.copy_object(object, &changes)).expect("C_CopyObject");
    assert_ne!(copy, object);
    assert_eq!(value(&seat, copy), value(&seat, object));
    let kinds = [AttributeType::Label];
    assert_eq!(seat.get_attributes(copy, &kinds).unwrap(), changes);
    let unique = |object| {
        seat.get_attributes(object, &[AttributeType::UniqueId])
            .unwrap()
    };
    assert_ne!(unique(copy), unique(object));
    seat.destroy_object(object).expect("C_DestroyObject");
    assert_eq!(value(&seat, copy), b"content");
}

fn a_copy_may_become_stricter_and_not_laxer(bench: &Bench<'_>) {
    let seat = bench.user();
    let key = make(&seat, &secret(KeyType::AES)).unwrap();
    let stricter = [Attribute::Sensitive(true), Attribute::Extractable(false)];
    let strict = answered(seat.copy_object(key, &stricter)).expect("C_CopyObject");
    for laxer in [Attribute::Sensitive(false), Attribute::Extractable(true)] {
        let told = answered(seat.copy_object(strict, std::slice::from_ref(&laxer))).map(drop);
        let refused = [
            Err(RvError::AttributeReadOnly),
            Err(RvError::TemplateInconsistent),
        ];
        assert!(refused.contains(&told), "{laxer:?}: {told:?}");
    }
    let told = answered(seat.copy_object(key, &[Attribute::Value(vec![1; 32])])).map(drop);
    let refused = [
        Err(RvError::AttributeReadOnly),
        Err(RvError::TemplateInconsistent),
    ];
    assert!(refused.contains(&told), "another value: {told:?}");
}

fn what_may_not_be_copied_changed_or_destroyed_is_not(bench: &Bench<'_>) {
    let seat = bench.user();
    let label = Attribute::Label(b"new".to_vec());
    let fixed = |attribute| make(&seat, &[data("fixed"), vec![attribute]].concat()).unwrap();
    let prohibited = Err(RvError::ActionProhibited);
    let object = fixed(Attribute::Modifiable(false));
    let told = answered(seat.update_attributes(object, std::slice::from_ref(&label)));
    assert_eq!(told, prohibited);
    let object = fixed(Attribute::Copyable(false));
    assert_eq!(
        answered(seat.copy_object(object, &[])).map(drop),
        prohibited
    );
    let object = fixed(Attribute::Destroyable(false));
    assert_eq!(answered(seat.destroy_object(object)), prohibited);
    assert_eq!(value(&seat, object), b"content");
}

fn an_object_changes_in_all_or_in_nothing(bench: &Bench<'_>) {
    let seat = bench.user();
    let object = make(&seat, &data("before")).unwrap();
    let after = Attribute::Label(b"after".to_vec());
    let bad = [after.clone(), Attribute::UniqueId(b"x".to_vec())];
    let told = answered(seat.update_attributes(object, &bad));
    assert_eq!(told, Err(RvError::AttributeReadOnly));
    let label = || {
        seat.get_attributes(object, &[AttributeType::Label])
            .unwrap()
    };
    assert_eq!(label(), [Attribute::Label(b"before".to_vec())]);
    assert_eq!(
        answered(seat.update_attributes(object, std::slice::from_ref(&after))),
        Ok(())
    );
    assert_eq!(label(), [after]);
}

fn sensitive_is_for_ever(bench: &Bench<'_>) {
    let seat = bench.user();
    let key = make(&seat, &secret(KeyType::GENERIC_SECRET)).unwrap();
    let set = |attribute| answered(seat.update_attributes(key, &[attribute]));
    assert_eq!(set(Attribute::Sensitive(true)), Ok(()));
    assert_eq!(set(Attribute::Extractable(false)), Ok(()));
    let read_only = Err(RvError::AttributeReadOnly);
    assert_eq!(set(Attribute::Sensitive(false)), read_only);
    assert_eq!(set(Attribute::Extractable(true)), read_only);
}

fn a_secret_comes_out_only_if_it_may(bench: &Bench<'_>) {
    let seat = bench.user();
    for (sensitive, extractable) in [(false, true), (true, true), (false, false), (true, false)] {
        let mut template = secret(KeyType::GENERIC_SECRET);
        template[3] = Attribute::Sensitive(sensitive);
        template[4] = Attribute::Extractable(extractable);
        let key = make(&seat, &template).unwrap();
        if !sensitive && extractable {
            assert_eq!(value(&seat, key), SECRET);
            continue;
        }
        let told = seat
            .get_attribute_info(key, &[AttributeType::Value])
            .unwrap();
        assert!(
            matches!(told[0], AttributeInfo::Sensitive),
            "{sensitive} {extractable}"
        );
        let hidden = [
            class(ObjectClass::SECRET_KEY),
            Attribute::Value(SECRET.to_vec()),
        ];
        assert!(
            !seat.find_objects(&hidden).unwrap().contains(&key),
            "nor by a search"
        );
    }
}

fn a_destroyed_object_is_gone_everywhere(bench: &Bench<'_>) {
    let (one, two) = (bench.user(), bench.read_only());
    let object = make(&one, &data("gone")).unwrap();
    assert_eq!(
        answered(two.destroy_object(object)),
        Ok(()),
        "a session's object, in any session"
    );
    for seat in [&one, &two] {
        let told = answered(seat.get_attributes(object, &[AttributeType::Value]));
        assert_eq!(told.map(drop), Err(RvError::ObjectHandleInvalid));
        assert_eq!(
            answered(seat.destroy_object(object)),
            Err(RvError::ObjectHandleInvalid)
        );
    }
}

fn values_of_any_size_come_back(bench: &Bench<'_>) {
    let seat = bench.user();
    for len in [0, 1, 4096, 100_000] {
        let mut template = data("sized");
        template[3] = Attribute::Value(vec![0x5C; len]);
        let object = make(&seat, &template).expect("C_CreateObject");
        assert_eq!(value(&seat, object), vec![0x5C; len]);
    }
    let (mut entry, object) = (
        CK_ATTRIBUTE {
            type_: CKA_LABEL,
            pValue: ptr::null_mut(),
            ulValueLen: 0,
        },
        make(&seat, &data("named")).unwrap(),
    );
    let code = ck!(
        bench.raw,
        C_SetAttributeValue,
        seat.id(),
        object.handle(),
        &raw mut entry,
        1
    );
    assert_eq!(checked(code), Ok(()), "an empty label");
    for kind in [CKA_VALUE, CKA_SENSITIVE] {
        entry.type_ = kind;
        entry.ulValueLen = CK_ULONG::MAX;
        let code = ck!(
            bench.raw,
            C_SetAttributeValue,
            seat.id(),
            object.handle(),
            &raw mut entry,
            1
        );
        assert_ne!(checked(code), Ok(()), "no value can be that long");
    }
}

fn many_objects_live_side_by_side(bench: &Bench<'_>) {
    let seat = bench.user();
    let names: Vec<String> = (0..500).map(|n| format!("object {n}")).collect();
    let made: Vec<_> = names
        .iter()
        .map(|name| make(&seat, &data(name)).unwrap())
        .collect();
    let label = Attribute::Label(b"object 321".to_vec());
    assert_eq!(seat.find_objects(&[label]).unwrap(), [made[321]]);
    for object in made {
        seat.destroy_object(object).expect("C_DestroyObject");
    }
    let fixed = [class(ObjectClass::DATA), Attribute::Token(false)];
    assert_eq!(seat.find_objects(&fixed).unwrap(), []);
}
