//! Searches, handles and objects of the card (PKCS #11 3.2, 5.7).

use std::ptr;

use claviger_hw_tests::{
    ck,
    fixture::token_fixture::{TestSession, TokenFixture, answered, checked},
    for_each_card,
};
use cryptoki::{
    error::RvError,
    object::{Attribute, AttributeType, ObjectClass, ObjectHandle},
};
use cryptoki_sys::{
    CK_ATTRIBUTE, CK_OBJECT_HANDLE, CK_ULONG, CKA_CLASS, CKA_ID, CKA_LABEL, CKO_CERTIFICATE,
};

/// An undefined attribute.
const UNKNOWN: CK_ULONG = 0x7FFF_0001;

for_each_card! { [piv openpgp] [
    find_objects_without_init_returns_operation_not_initialized
    one_search_at_a_time_in_a_session
    searches_of_two_sessions_are_independent
    search_in_several_calls_finds_the_same_objects_as_one_call
    exhausted_search_returns_no_object_and_stays_active
    find_objects_with_count_zero_succeeds_and_skips_no_object
    find_objects_with_null_list_or_count_is_rejected_and_continues
    a_template_that_is_not_there_is_a_bad_argument
    an_empty_template_finds_all_that_is_visible
    every_attribute_of_the_template_must_match
    a_value_of_another_length_does_not_match
    search_for_an_unknown_attribute_finds_no_object
    search_for_a_sensitive_attribute_finds_no_object
    search_result_is_fixed_at_find_objects_init
    private_objects_are_invisible_before_login
    an_object_has_one_handle_in_all_sessions
    active_search_allows_signing_and_attribute_reads
    zero_is_no_handle
    object_functions_return_object_handle_invalid_for_unknown_handles
    key_and_certificate_share_their_id
    object_size_is_positive_and_null_size_pointer_is_rejected
    objects_of_the_card_cannot_be_changed_in_a_read_only_session
    objects_of_the_card_cannot_be_changed_by_the_user
] }

fn begin(session: &TestSession, template: &mut [CK_ATTRIBUTE]) -> Result<(), RvError> {
    let function = session.list.C_FindObjectsInit.unwrap();
    // SAFETY: a template with its length.
    checked(unsafe {
        function(
            session.id(),
            template.as_mut_ptr(),
            template.len() as CK_ULONG,
        )
    })
}

fn find(session: &TestSession, max: usize) -> Result<Vec<CK_OBJECT_HANDLE>, RvError> {
    let function = session.list.C_FindObjects.unwrap();
    let (mut found, mut count) = (vec![0; max + 1], CK_ULONG::MAX);
    // SAFETY: the buffer is larger than the length that is passed.
    let code = unsafe {
        function(
            session.id(),
            found.as_mut_ptr(),
            max as CK_ULONG,
            &raw mut count,
        )
    };
    checked(code)?;
    assert!(count as usize <= max);
    assert!(found[count as usize..].iter().all(|handle| *handle == 0));
    found.truncate(count as usize);
    Ok(found)
}

fn end(session: &TestSession) -> Result<(), RvError> {
    let function = session.list.C_FindObjectsFinal.unwrap();
    // SAFETY: no pointer is given.
    checked(unsafe { function(session.id()) })
}

fn entry<T>(kind: CK_ULONG, value: &mut T) -> CK_ATTRIBUTE {
    CK_ATTRIBUTE {
        type_: kind,
        pValue: ptr::from_mut(value).cast(),
        ulValueLen: size_of::<T>() as CK_ULONG,
    }
}

fn find_objects_without_init_returns_operation_not_initialized(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    assert_eq!(find(&session, 5), Err(RvError::OperationNotInitialized));
    assert_eq!(end(&session), Err(RvError::OperationNotInitialized));
    assert_eq!(begin(&session, &mut []), Ok(()));
    assert_eq!(end(&session), Ok(()));
    assert_eq!(end(&session), Err(RvError::OperationNotInitialized));
}

fn one_search_at_a_time_in_a_session(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    let all = session.find_objects(&[]).unwrap().len();
    assert_eq!(begin(&session, &mut []), Ok(()));
    let mut class = CKO_CERTIFICATE;
    let again = begin(&session, &mut [entry(CKA_CLASS, &mut class)]);
    assert_eq!(again, Err(RvError::OperationActive));
    assert_eq!(
        find(&session, 100).unwrap().len(),
        all,
        "the first one goes on"
    );
    assert_eq!(end(&session), Ok(()));
}

fn searches_of_two_sessions_are_independent(fixture: &TokenFixture<'_>) {
    let (one, two) = (fixture.read_only(), fixture.read_only());
    let mut class = CKO_CERTIFICATE;
    assert_eq!(begin(&one, &mut []), Ok(()));
    assert_eq!(begin(&two, &mut [entry(CKA_CLASS, &mut class)]), Ok(()));
    let (all, certificates) = (find(&one, 100).unwrap(), find(&two, 100).unwrap());
    assert!(certificates.len() < all.len());
    assert_eq!((end(&one), end(&two)), (Ok(()), Ok(())));
}

fn search_in_several_calls_finds_the_same_objects_as_one_call(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    assert_eq!(begin(&session, &mut []), Ok(()));
    let whole = find(&session, 100).unwrap();
    assert_eq!(end(&session), Ok(()));
    assert!(whole.len() > 3);
    for piece in [1, 2, whole.len() - 1] {
        assert_eq!(begin(&session, &mut []), Ok(()));
        let mut found = Vec::new();
        while let Some(next) = Some(find(&session, piece).unwrap()).filter(|next| !next.is_empty())
        {
            found.extend(next);
        }
        assert_eq!(found, whole, "in pieces of {piece}");
        assert_eq!(end(&session), Ok(()));
    }
    let mut distinct = whole.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), whole.len(), "none is found twice");
}

fn exhausted_search_returns_no_object_and_stays_active(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    assert_eq!(begin(&session, &mut []), Ok(()));
    find(&session, 100).unwrap();
    for _ in 0..3 {
        assert_eq!(find(&session, 100), Ok(vec![]));
    }
    assert_eq!(begin(&session, &mut []), Err(RvError::OperationActive));
    assert_eq!(end(&session), Ok(()));
}

fn find_objects_with_count_zero_succeeds_and_skips_no_object(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    let all = session.find_objects(&[]).unwrap().len();
    assert_eq!(begin(&session, &mut []), Ok(()));
    assert_eq!(find(&session, 0), Ok(vec![]));
    assert_eq!(find(&session, 100).unwrap().len(), all);
}

fn find_objects_with_null_list_or_count_is_rejected_and_continues(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    let all = session.find_objects(&[]).unwrap().len();
    assert_eq!(begin(&session, &mut []), Ok(()));
    let (mut handle, mut count) = (0, 0);
    let no_list = ck!(
        fixture.raw,
        C_FindObjects,
        session.id(),
        ptr::null_mut(),
        5,
        &raw mut count
    );
    assert_eq!(checked(no_list), Err(RvError::ArgumentsBad));
    let no_count = ck!(
        fixture.raw,
        C_FindObjects,
        session.id(),
        &raw mut handle,
        1,
        ptr::null_mut()
    );
    assert_eq!(checked(no_count), Err(RvError::ArgumentsBad));
    assert_eq!(find(&session, 100).unwrap().len(), all);
}

fn a_template_that_is_not_there_is_a_bad_argument(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    for count in [1, 7, CK_ULONG::MAX] {
        let code = ck!(
            fixture.raw,
            C_FindObjectsInit,
            session.id(),
            ptr::null_mut(),
            count
        );
        assert_eq!(checked(code), Err(RvError::ArgumentsBad));
    }
    let mut nowhere = [CK_ATTRIBUTE {
        type_: CKA_LABEL,
        pValue: ptr::null_mut(),
        ulValueLen: 5,
    }];
    let refused = begin(&session, &mut nowhere);
    let codes = [
        Err(RvError::ArgumentsBad),
        Err(RvError::AttributeValueInvalid),
    ];
    assert!(codes.contains(&refused), "{refused:?}");
    assert_eq!(begin(&session, &mut []), Ok(()), "no search has begun");
}

fn an_empty_template_finds_all_that_is_visible(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let all = session.find_objects(&[]).unwrap();
    for class in [
        ObjectClass::CERTIFICATE,
        ObjectClass::PUBLIC_KEY,
        ObjectClass::PRIVATE_KEY,
    ] {
        let some = session.all(class);
        assert!(!some.is_empty() && some.iter().all(|object| all.contains(object)));
    }
}

fn every_attribute_of_the_template_must_match(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = session.signer();
    let wanted = session
        .get_attributes(key, &[AttributeType::Id, AttributeType::Label])
        .unwrap();
    let class = Attribute::Class(ObjectClass::PRIVATE_KEY);
    let template = [&[class], &wanted[..]].concat();
    assert_eq!(session.find_objects(&template).unwrap(), [key]);
    for other in [
        Attribute::Id(vec![0xEE]),
        Attribute::Label(b"none".to_vec()),
        Attribute::Token(false),
        Attribute::Sign(false),
    ] {
        let template = [&template[..], &[other]].concat();
        assert_eq!(session.find_objects(&template).unwrap(), []);
    }
}

fn a_value_of_another_length_does_not_match(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let mut class = CKO_CERTIFICATE as u32;
    assert_eq!(begin(&session, &mut [entry(CKA_CLASS, &mut class)]), Ok(()));
    assert_eq!(find(&session, 100), Ok(vec![]), "a class of four bytes");
    assert_eq!(end(&session), Ok(()));
    let id = session
        .get_attributes(session.signer(), &[AttributeType::Id])
        .unwrap();
    let [Attribute::Id(id)] = id.as_slice() else {
        panic!("no CKA_ID")
    };
    for other in [[&id[..], &[0]].concat(), vec![]] {
        let found = session.private_with(&[Attribute::Id(other)]);
        assert_eq!(found, [], "the beginning is not enough");
    }
}

fn search_for_an_unknown_attribute_finds_no_object(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let mut value = 1_u8;
    assert_eq!(begin(&session, &mut [entry(UNKNOWN, &mut value)]), Ok(()));
    assert_eq!(find(&session, 100), Ok(vec![]));
    assert_eq!(end(&session), Ok(()));
}

fn search_for_a_sensitive_attribute_finds_no_object(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    for secret in [
        Attribute::PrivateExponent(vec![1]),
        Attribute::PrivateExponent(vec![]),
        Attribute::Value(vec![]),
    ] {
        assert_eq!(session.private_with(&[secret]), []);
    }
}

fn search_result_is_fixed_at_find_objects_init(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let before = session.find_objects(&[]).unwrap();
    assert_eq!(begin(&session, &mut []), Ok(()));
    let template = [
        Attribute::Class(ObjectClass::DATA),
        Attribute::Label(b"later".to_vec()),
    ];
    answered(session.create_object(&template)).expect("C_CreateObject");
    let found = find(&session, 100).unwrap();
    let before: Vec<_> = before.iter().map(ObjectHandle::handle).collect();
    assert_eq!(found, before);
    assert_eq!(end(&session), Ok(()));
    assert_eq!(session.find_objects(&template).unwrap().len(), 1);
}

fn private_objects_are_invisible_before_login(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    let private = [Attribute::Private(true)];
    assert_eq!(
        session.find_objects(&private).unwrap(),
        [],
        "none, and no error"
    );
    let public = session.find_objects(&[]).unwrap();
    assert_eq!(session.login_user(), Ok(()));
    let keys = session.find_objects(&private).unwrap();
    assert!(!keys.is_empty() && keys.iter().all(|key| !public.contains(key)));
    let other = fixture.read_only();
    assert_eq!(other.find_objects(&private).unwrap(), keys);
    other.logout().unwrap();
    assert_eq!(session.find_objects(&private).unwrap(), []);
}

fn an_object_has_one_handle_in_all_sessions(fixture: &TokenFixture<'_>) {
    let (one, two) = (fixture.user(), fixture.read_write());
    let all = one.find_objects(&[]).unwrap();
    assert_eq!(two.find_objects(&[]).unwrap(), all);
    assert_eq!(one.find_objects(&[]).unwrap(), all);
}

fn active_search_allows_signing_and_attribute_reads(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = session.signer();
    assert_eq!(begin(&session, &mut []), Ok(()));
    let id = session.get_attributes(key, &[AttributeType::Id]).unwrap();
    assert_eq!(id.len(), 1);
    assert_eq!(
        session.init(session.list.C_SignInit, session.signing(key), key),
        Ok(())
    );
    assert!(session.run(session.list.C_Sign, b"message", 600).is_ok());
    assert!(!find(&session, 100).unwrap().is_empty());
    assert_eq!(end(&session), Ok(()));
}

fn zero_is_no_handle(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let all = session.find_objects(&[]).unwrap();
    assert!(all.iter().all(|object| object.handle() != 0));
}

fn object_functions_return_object_handle_invalid_for_unknown_handles(fixture: &TokenFixture<'_>) {
    let session = fixture.read_write();
    let (mut size, mut handle) = (0, 0);
    let null = ptr::null_mut();
    for object in [0, 0x00DE_AD00, CK_OBJECT_HANDLE::MAX] {
        for code in [
            ck!(
                fixture.raw,
                C_GetObjectSize,
                session.id(),
                object,
                &raw mut size
            ),
            ck!(
                fixture.raw,
                C_GetAttributeValue,
                session.id(),
                object,
                &mut entry(CKA_ID, &mut size),
                1
            ),
            ck!(
                fixture.raw,
                C_SetAttributeValue,
                session.id(),
                object,
                &mut entry(CKA_ID, &mut size),
                1
            ),
            ck!(
                fixture.raw,
                C_CopyObject,
                session.id(),
                object,
                null,
                0,
                &raw mut handle
            ),
            ck!(fixture.raw, C_DestroyObject, session.id(), object),
        ] {
            assert_eq!(checked(code), Err(RvError::ObjectHandleInvalid));
        }
    }
}

fn key_and_certificate_share_their_id(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    for certificate in session.all(ObjectClass::CERTIFICATE) {
        let id = session
            .get_attributes(certificate, &[AttributeType::Id])
            .unwrap();
        assert_eq!(session.private_with(&id).len(), 1);
        let class = Attribute::Class(ObjectClass::PUBLIC_KEY);
        let public = session.find_objects(&[&[class], &id[..]].concat()).unwrap();
        assert_eq!(public.len(), 1);
    }
}

fn object_size_is_positive_and_null_size_pointer_is_rejected(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    for object in session.find_objects(&[]).unwrap() {
        let mut size = 0;
        let code = ck!(
            fixture.raw,
            C_GetObjectSize,
            session.id(),
            object.handle(),
            &raw mut size
        );
        assert_eq!(checked(code), Ok(()));
        assert!(size > 0);
        let code = ck!(
            fixture.raw,
            C_GetObjectSize,
            session.id(),
            object.handle(),
            ptr::null_mut()
        );
        assert_eq!(checked(code), Err(RvError::ArgumentsBad));
    }
}

/// What C_SetAttributeValue, C_DestroyObject and C_CopyObject (to the card) say to a key and a certificate.
fn changes(session: &TestSession) -> Vec<(&'static str, Result<(), RvError>)> {
    let label = [Attribute::Label(b"mine".to_vec())];
    let of_the_card = [Attribute::Token(true)];
    let mut result = Vec::new();
    for object in [session.signer(), session.all(ObjectClass::CERTIFICATE)[0]] {
        result.push(("set", answered(session.update_attributes(object, &label))));
        result.push(("destroy", answered(session.destroy_object(object))));
        let copied = answered(session.copy_object(object, &of_the_card));
        result.push(("copy", copied.map(drop)));
        let id = session.get_attributes(object, &[AttributeType::Id]);
        assert_eq!(id.expect("it is still there").len(), 1);
    }
    result
}

fn objects_of_the_card_cannot_be_changed_in_a_read_only_session(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    assert_eq!(session.login_user(), Ok(()));
    session
        .find_objects(&[])
        .expect("what is read is known from now on");
    for (change, result) in fixture.silently(|| changes(&session)) {
        let mut codes = vec![
            Err(RvError::SessionReadOnly),
            Err(RvError::TokenWriteProtected),
        ];
        if change == "copy" {
            codes.push(Err(RvError::ActionProhibited));
        }
        assert!(codes.contains(&result), "{change}: {result:?}");
    }
}

fn objects_of_the_card_cannot_be_changed_by_the_user(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    session
        .find_objects(&[])
        .expect("what is read is known from now on");
    let codes = [
        Err(RvError::ActionProhibited),
        Err(RvError::AttributeReadOnly),
        Err(RvError::TemplateInconsistent),
        Err(RvError::TokenWriteProtected),
        Err(RvError::UserNotLoggedIn),
    ];
    for (change, result) in fixture.silently(|| changes(&session)) {
        assert!(codes.contains(&result), "{change}: {result:?}");
    }
}
