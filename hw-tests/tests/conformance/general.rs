//! General-purpose functions, and what holds for all functions (PKCS #11 3.2, 5.4).

use std::mem::MaybeUninit;

use claviger_hw_tests::{
    ck,
    fixture::{
        function_list::OWN_THREAD,
        null_calls::Table as _,
        token_fixture::{Bench, answered, checked},
    },
    on_cards,
};
use cryptoki::{context::CInitializeArgs, context::CInitializeFlags, error::RvError};
use cryptoki_sys::{CK_INFO, CKR_OK};

on_cards! { [piv openpgp] [
    info_says_the_highest_version_there_is
    info_is_padded_with_blanks_and_has_no_flags
    info_without_room_is_a_bad_argument
    initialize_twice_is_refused_and_changes_nothing
    finalize_takes_no_argument
    after_finalize_every_function_says_not_initialized
    sessions_and_objects_do_not_outlive_finalize
    parallel_functions_are_of_the_past
    parallel_functions_look_at_the_session_first
] }

fn info(bench: &Bench<'_>) -> CK_INFO {
    let mut info = MaybeUninit::<CK_INFO>::zeroed();
    assert_eq!(ck!(bench.raw, C_GetInfo, info.as_mut_ptr()), CKR_OK);
    // SAFETY: all zeroes are a value of this type, of numbers and characters.
    unsafe { info.assume_init() }
}

fn info_says_the_highest_version_there_is(bench: &Bench<'_>) {
    let version = info(bench).cryptokiVersion;
    assert_eq!((version.major, version.minor), (3, 2));
}

fn info_is_padded_with_blanks_and_has_no_flags(bench: &Bench<'_>) {
    let info = info(bench);
    assert_eq!(info.flags, 0);
    for text in [&info.manufacturerID, &info.libraryDescription] {
        let text = std::str::from_utf8(text).expect("UTF-8");
        assert!(
            !text.contains('\0') && !text.trim_end().is_empty(),
            "{text:?}"
        );
        assert!(!text.starts_with(' '), "{text:?}");
    }
    let told = bench.module.get_library_info().unwrap();
    assert_eq!(told.library_version().major(), info.libraryVersion.major);
}

fn info_without_room_is_a_bad_argument(bench: &Bench<'_>) {
    let code = ck!(bench.raw, C_GetInfo, std::ptr::null_mut());
    assert_eq!(checked(code), Err(RvError::ArgumentsBad));
}

fn initialize_twice_is_refused_and_changes_nothing(bench: &Bench<'_>) {
    let seat = bench.user();
    let again = bench
        .module
        .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
    assert!(again.is_err());
    let code = bench.raw.initialize(OWN_THREAD);
    assert_eq!(checked(code), Err(RvError::CryptokiAlreadyInitialized));
    seat.get_session_info().expect("the session lives on");
}

fn finalize_takes_no_argument(bench: &Bench<'_>) {
    let seat = bench.read_only();
    let mut something = 0_u8;
    let code = ck!(bench.raw, C_Finalize, (&raw mut something).cast());
    assert_eq!(checked(code), Err(RvError::ArgumentsBad));
    seat.get_session_info().expect("nothing has ended");
}

fn after_finalize_every_function_says_not_initialized(bench: &Bench<'_>) {
    let not_initialized = Err(RvError::CryptokiNotInitialized);
    let seat = bench.user();
    assert_eq!(checked(bench.raw.finalize()), Ok(()));
    for (name, code) in bench.raw.list().call_each() {
        assert_eq!(checked(code), not_initialized, "{name}");
    }
    assert_eq!(checked(bench.raw.finalize()), not_initialized);
    assert_eq!(answered(seat.get_session_info()).map(drop), not_initialized);
}

fn sessions_and_objects_do_not_outlive_finalize(bench: &Bench<'_>) {
    let old = bench.user();
    let key = old.all(cryptoki::object::ObjectClass::PRIVATE_KEY)[0];
    assert_eq!(checked(bench.raw.finalize()), Ok(()));
    let code = bench.raw.initialize(OWN_THREAD);
    assert_eq!(checked(code), Ok(()));
    assert_eq!(
        answered(old.get_session_info()).map(drop),
        Err(RvError::SessionHandleInvalid)
    );
    bench.module.get_slots_with_token().expect("C_GetSlotList");
    let new = bench.user();
    assert_ne!(new.id(), old.id(), "a handle is not used again soon");
    let attributes = new.get_attributes(key, &[cryptoki::object::AttributeType::Id]);
    assert_eq!(
        answered(attributes).map(drop),
        Err(RvError::ObjectHandleInvalid)
    );
}

fn parallel_functions_are_of_the_past(bench: &Bench<'_>) {
    let seat = bench.read_only();
    for code in [
        ck!(bench.raw, C_GetFunctionStatus, seat.id()),
        ck!(bench.raw, C_CancelFunction, seat.id()),
    ] {
        assert_eq!(checked(code), Err(RvError::FunctionNotParallel));
    }
}

fn parallel_functions_look_at_the_session_first(bench: &Bench<'_>) {
    for code in [
        ck!(bench.raw, C_GetFunctionStatus, 0),
        ck!(bench.raw, C_CancelFunction, 0xDEAD),
    ] {
        assert_eq!(checked(code), Err(RvError::SessionHandleInvalid));
    }
}
