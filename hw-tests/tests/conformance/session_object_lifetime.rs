//! Session objects after their creation (PKCS #11 3.2, 5.7.2 to 5.7.6): visibility, copies, changes, destruction, and the end
//! of their session.

use claviger_hw_tests::{
    fixture::token_fixture::{TokenFixture, answered},
    for_each_card,
};
use cryptoki::{
    error::RvError,
    object::{Attribute, AttributeInfo, AttributeType, KeyType, ObjectClass},
};

use crate::session_objects::{SECRET, class, data, make, secret, value};

for_each_card! { [piv openpgp] [
    a_private_object_needs_a_login
    private_objects_die_with_the_login_and_public_ones_do_not
    objects_die_with_their_session_and_with_no_other
    all_sessions_see_an_object
    a_copy_is_an_object_of_its_own
    a_copy_may_become_stricter_and_not_laxer
    object_attributes_prohibit_modification_copy_and_destruction
    rejected_attribute_change_leaves_the_whole_object_unchanged
    sensitive_is_for_ever
    secret_value_is_readable_only_if_extractable_and_not_sensitive
    destroyed_session_object_is_invalid_in_every_session
    many_objects_live_side_by_side
] }

fn a_private_object_needs_a_login(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    let template = [data("mine"), vec![Attribute::Private(true)]].concat();
    let result = make(&session, &template).map(drop);
    assert_eq!(result, Err(RvError::UserNotLoggedIn));
    assert_eq!(session.login_user(), Ok(()));
    assert!(
        make(&session, &template).is_ok(),
        "in a read-only session too"
    );
}

fn private_objects_die_with_the_login_and_public_ones_do_not(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let private = [data("mine"), vec![Attribute::Private(true)]].concat();
    let public = [data("ours"), vec![Attribute::Private(false)]].concat();
    let (private, public) = (
        make(&session, &private).unwrap(),
        make(&session, &public).unwrap(),
    );
    session.logout().unwrap();
    assert_eq!(value(&session, public), b"content");
    assert_eq!(session.login_user(), Ok(()));
    let result = answered(session.get_attributes(private, &[AttributeType::Value]));
    assert_eq!(result.map(drop), Err(RvError::ObjectHandleInvalid));
    let mine = session.find_objects(&[Attribute::Label(b"mine".to_vec())]);
    assert_eq!(mine.unwrap(), [], "destroyed, not hidden");
}

fn objects_die_with_their_session_and_with_no_other(fixture: &TokenFixture<'_>) {
    let (one, two) = (fixture.user(), fixture.read_only());
    let (first, second) = (
        make(&one, &data("1")).unwrap(),
        make(&two, &data("2")).unwrap(),
    );
    one.end_session();
    let result = answered(two.get_attributes(first, &[AttributeType::Value]));
    assert_eq!(result.map(drop), Err(RvError::ObjectHandleInvalid));
    assert_eq!(value(&two, second), b"content");
}

fn all_sessions_see_an_object(fixture: &TokenFixture<'_>) {
    let (one, two) = (fixture.user(), fixture.read_only());
    let object = make(&one, &data("shared")).unwrap();
    let found = two
        .find_objects(&[Attribute::Label(b"shared".to_vec())])
        .unwrap();
    assert_eq!(found, [object]);
    assert_eq!(value(&two, object), b"content");
}

fn a_copy_is_an_object_of_its_own(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let object = make(&session, &data("first")).unwrap();
    let changes = [Attribute::Label(b"second".to_vec())];
    let copy = answered(session.copy_object(object, &changes)).expect("C_CopyObject");
    assert_ne!(copy, object);
    assert_eq!(value(&session, copy), value(&session, object));
    let kinds = [AttributeType::Label];
    assert_eq!(session.get_attributes(copy, &kinds).unwrap(), changes);
    let unique = |object| {
        session
            .get_attributes(object, &[AttributeType::UniqueId])
            .unwrap()
    };
    assert_ne!(unique(copy), unique(object));
    session.destroy_object(object).expect("C_DestroyObject");
    assert_eq!(value(&session, copy), b"content");
}

fn a_copy_may_become_stricter_and_not_laxer(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = make(&session, &secret(KeyType::AES)).unwrap();
    let stricter = [Attribute::Sensitive(true), Attribute::Extractable(false)];
    let strict = answered(session.copy_object(key, &stricter)).expect("C_CopyObject");
    for laxer in [Attribute::Sensitive(false), Attribute::Extractable(true)] {
        let result = answered(session.copy_object(strict, std::slice::from_ref(&laxer))).map(drop);
        let refused = [
            Err(RvError::AttributeReadOnly),
            Err(RvError::TemplateInconsistent),
        ];
        assert!(refused.contains(&result), "{laxer:?}: {result:?}");
    }
    let result = answered(session.copy_object(key, &[Attribute::Value(vec![1; 32])])).map(drop);
    let refused = [
        Err(RvError::AttributeReadOnly),
        Err(RvError::TemplateInconsistent),
    ];
    assert!(refused.contains(&result), "another value: {result:?}");
}

fn object_attributes_prohibit_modification_copy_and_destruction(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let label = Attribute::Label(b"new".to_vec());
    let fixed = |attribute| make(&session, &[data("fixed"), vec![attribute]].concat()).unwrap();
    let prohibited = Err(RvError::ActionProhibited);
    let object = fixed(Attribute::Modifiable(false));
    let result = answered(session.update_attributes(object, std::slice::from_ref(&label)));
    assert_eq!(result, prohibited);
    let object = fixed(Attribute::Copyable(false));
    assert_eq!(
        answered(session.copy_object(object, &[])).map(drop),
        prohibited
    );
    let object = fixed(Attribute::Destroyable(false));
    assert_eq!(answered(session.destroy_object(object)), prohibited);
    assert_eq!(value(&session, object), b"content");
}

fn rejected_attribute_change_leaves_the_whole_object_unchanged(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let object = make(&session, &data("before")).unwrap();
    let after = Attribute::Label(b"after".to_vec());
    let bad = [after.clone(), Attribute::UniqueId(b"x".to_vec())];
    let result = answered(session.update_attributes(object, &bad));
    assert_eq!(result, Err(RvError::AttributeReadOnly));
    let label = || {
        session
            .get_attributes(object, &[AttributeType::Label])
            .unwrap()
    };
    assert_eq!(label(), [Attribute::Label(b"before".to_vec())]);
    assert_eq!(
        answered(session.update_attributes(object, std::slice::from_ref(&after))),
        Ok(())
    );
    assert_eq!(label(), [after]);
}

fn sensitive_is_for_ever(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = make(&session, &secret(KeyType::GENERIC_SECRET)).unwrap();
    let set = |attribute| answered(session.update_attributes(key, &[attribute]));
    assert_eq!(set(Attribute::Sensitive(true)), Ok(()));
    assert_eq!(set(Attribute::Extractable(false)), Ok(()));
    let read_only = Err(RvError::AttributeReadOnly);
    assert_eq!(set(Attribute::Sensitive(false)), read_only);
    assert_eq!(set(Attribute::Extractable(true)), read_only);
}

fn secret_value_is_readable_only_if_extractable_and_not_sensitive(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    for (sensitive, extractable) in [(false, true), (true, true), (false, false), (true, false)] {
        let mut template = secret(KeyType::GENERIC_SECRET);
        template[3] = Attribute::Sensitive(sensitive);
        template[4] = Attribute::Extractable(extractable);
        let key = make(&session, &template).unwrap();
        if !sensitive && extractable {
            assert_eq!(value(&session, key), SECRET);
            continue;
        }
        let result = session
            .get_attribute_info(key, &[AttributeType::Value])
            .unwrap();
        assert!(
            matches!(result[0], AttributeInfo::Sensitive),
            "{sensitive} {extractable}"
        );
        let hidden = [
            class(ObjectClass::SECRET_KEY),
            Attribute::Value(SECRET.to_vec()),
        ];
        assert!(
            !session.find_objects(&hidden).unwrap().contains(&key),
            "nor by a search"
        );
    }
}

fn destroyed_session_object_is_invalid_in_every_session(fixture: &TokenFixture<'_>) {
    let (one, two) = (fixture.user(), fixture.read_only());
    let object = make(&one, &data("gone")).unwrap();
    assert_eq!(
        answered(two.destroy_object(object)),
        Ok(()),
        "a session's object, in any session"
    );
    for session in [&one, &two] {
        let result = answered(session.get_attributes(object, &[AttributeType::Value]));
        assert_eq!(result.map(drop), Err(RvError::ObjectHandleInvalid));
        assert_eq!(
            answered(session.destroy_object(object)),
            Err(RvError::ObjectHandleInvalid)
        );
    }
}

fn many_objects_live_side_by_side(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let names: Vec<String> = (0..500).map(|n| format!("object {n}")).collect();
    let made: Vec<_> = names
        .iter()
        .map(|name| make(&session, &data(name)).unwrap())
        .collect();
    let label = Attribute::Label(b"object 321".to_vec());
    assert_eq!(session.find_objects(&[label]).unwrap(), [made[321]]);
    for object in made {
        session.destroy_object(object).expect("C_DestroyObject");
    }
    let fixed = [class(ObjectClass::DATA), Attribute::Token(false)];
    assert_eq!(session.find_objects(&fixed).unwrap(), []);
}
