//! General-purpose functions, and what holds for all functions (PKCS #11 3.2, 5.4).

use std::mem::MaybeUninit;

use claviger_hw_tests::{
    ck,
    fixture::{
        function_list::OWN_THREAD,
        null_calls::Table as _,
        token_fixture::{TokenFixture, answered, checked},
    },
    for_each_card,
};
use cryptoki::{context::CInitializeArgs, context::CInitializeFlags, error::RvError};
use cryptoki_sys::{CK_INFO, CKR_OK};

for_each_card! { [piv openpgp] [
    get_info_reports_cryptoki_version_3_2
    info_is_padded_with_blanks_and_has_no_flags
    info_without_room_is_a_bad_argument
    second_initialize_is_rejected_and_keeps_the_session
    finalize_takes_no_argument
    every_function_returns_not_initialized_after_finalize
    sessions_and_objects_do_not_outlive_finalize
    parallel_functions_are_of_the_past
    parallel_functions_reject_invalid_session_handles
] }

fn info(fixture: &TokenFixture<'_>) -> CK_INFO {
    let mut info = MaybeUninit::<CK_INFO>::zeroed();
    assert_eq!(ck!(fixture.raw, C_GetInfo, info.as_mut_ptr()), CKR_OK);
    // SAFETY: all zeroes are a value of this type, of numbers and characters.
    unsafe { info.assume_init() }
}

fn get_info_reports_cryptoki_version_3_2(fixture: &TokenFixture<'_>) {
    let version = info(fixture).cryptokiVersion;
    assert_eq!((version.major, version.minor), (3, 2));
}

fn info_is_padded_with_blanks_and_has_no_flags(fixture: &TokenFixture<'_>) {
    let info = info(fixture);
    assert_eq!(info.flags, 0);
    for text in [&info.manufacturerID, &info.libraryDescription] {
        let text = std::str::from_utf8(text).expect("UTF-8");
        assert!(
            !text.contains('\0') && !text.trim_end().is_empty(),
            "{text:?}"
        );
        assert!(!text.starts_with(' '), "{text:?}");
    }
    let result = fixture.module.get_library_info().unwrap();
    assert_eq!(result.library_version().major(), info.libraryVersion.major);
}

fn info_without_room_is_a_bad_argument(fixture: &TokenFixture<'_>) {
    let code = ck!(fixture.raw, C_GetInfo, std::ptr::null_mut());
    assert_eq!(checked(code), Err(RvError::ArgumentsBad));
}

fn second_initialize_is_rejected_and_keeps_the_session(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let again = fixture
        .module
        .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
    assert!(again.is_err());
    let code = fixture.raw.initialize(OWN_THREAD);
    assert_eq!(checked(code), Err(RvError::CryptokiAlreadyInitialized));
    session.get_session_info().expect("the session lives on");
}

fn finalize_takes_no_argument(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    let mut something = 0_u8;
    let code = ck!(fixture.raw, C_Finalize, (&raw mut something).cast());
    assert_eq!(checked(code), Err(RvError::ArgumentsBad));
    session.get_session_info().expect("nothing has ended");
}

fn every_function_returns_not_initialized_after_finalize(fixture: &TokenFixture<'_>) {
    let not_initialized = Err(RvError::CryptokiNotInitialized);
    let session = fixture.user();
    assert_eq!(checked(fixture.raw.finalize()), Ok(()));
    for (name, code) in fixture.raw.list().call_each() {
        assert_eq!(checked(code), not_initialized, "{name}");
    }
    assert_eq!(checked(fixture.raw.finalize()), not_initialized);
    assert_eq!(
        answered(session.get_session_info()).map(drop),
        not_initialized
    );
}

fn sessions_and_objects_do_not_outlive_finalize(fixture: &TokenFixture<'_>) {
    let old = fixture.user();
    let key = old.all(cryptoki::object::ObjectClass::PRIVATE_KEY)[0];
    assert_eq!(checked(fixture.raw.finalize()), Ok(()));
    let code = fixture.raw.initialize(OWN_THREAD);
    assert_eq!(checked(code), Ok(()));
    assert_eq!(
        answered(old.get_session_info()).map(drop),
        Err(RvError::SessionHandleInvalid)
    );
    fixture
        .module
        .get_slots_with_token()
        .expect("C_GetSlotList");
    let new = fixture.user();
    assert_ne!(new.id(), old.id(), "a handle is not used again soon");
    let attributes = new.get_attributes(key, &[cryptoki::object::AttributeType::Id]);
    assert_eq!(
        answered(attributes).map(drop),
        Err(RvError::ObjectHandleInvalid)
    );
}

fn parallel_functions_are_of_the_past(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    for code in [
        ck!(fixture.raw, C_GetFunctionStatus, session.id()),
        ck!(fixture.raw, C_CancelFunction, session.id()),
    ] {
        assert_eq!(checked(code), Err(RvError::FunctionNotParallel));
    }
}

fn parallel_functions_reject_invalid_session_handles(fixture: &TokenFixture<'_>) {
    for code in [
        ck!(fixture.raw, C_GetFunctionStatus, 0),
        ck!(fixture.raw, C_CancelFunction, 0xDEAD),
    ] {
        assert_eq!(checked(code), Err(RvError::SessionHandleInvalid));
    }
}
