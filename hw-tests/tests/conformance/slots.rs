//! Slots and tokens (PKCS #11 3.2, 5.5).

use std::{mem::MaybeUninit, ptr};

use claviger_hw_tests::{
    ck,
    fixture::{
        module_process::code,
        token_fixture::{TokenFixture, checked},
    },
    for_each_card,
};
use cryptoki::{error::RvError, session::UserType, types::AuthPin};
use cryptoki_sys::{
    CK_MECHANISM_INFO, CK_SLOT_ID, CK_SLOT_INFO, CK_TOKEN_INFO, CK_ULONG, CKF_CLOCK_ON_TOKEN,
    CKF_HW_SLOT, CKF_LOGIN_REQUIRED, CKF_PROTECTED_AUTHENTICATION_PATH, CKF_REMOVABLE_DEVICE,
    CKF_SECONDARY_AUTHENTICATION, CKF_TOKEN_INITIALIZED, CKF_TOKEN_PRESENT, CKF_USER_PIN_COUNT_LOW,
    CKF_USER_PIN_FINAL_TRY, CKF_USER_PIN_INITIALIZED, CKF_USER_PIN_LOCKED, CKF_WRITE_PROTECTED,
};

/// No slot has this number.
const NOWHERE: CK_SLOT_ID = 0x7FFF_FFF0;
const UNAVAILABLE: CK_ULONG = CK_ULONG::MAX;

for_each_card! { [piv openpgp] [
    slot_list_with_null_count_pointer_is_rejected
    slot_list_in_a_small_buffer_returns_the_count_and_no_slots
    slot_list_in_a_large_buffer_returns_the_count_and_writes_no_more
    slots_with_a_token_are_some_of_all_slots
    slot_info_of_an_unknown_slot_is_refused
    slot_info_describes_a_reader
    token_info_of_an_unknown_slot_is_refused
    token_info_has_padded_texts_and_expected_flags_and_limits
    token_info_counts_sessions
    token_info_and_slot_info_cost_no_command
    pin_flags_follow_each_attempt_without_a_command
    mechanism_list_counts_and_fills
    mechanism_info_exists_for_listed_mechanisms_only
    init_token_returns_function_not_supported_and_changes_nothing
    pins_are_not_set_in_the_wrong_state
] }

fn slot_list_with_null_count_pointer_is_rejected(fixture: &TokenFixture<'_>) {
    let code = ck!(
        fixture.raw,
        C_GetSlotList,
        1,
        ptr::null_mut(),
        ptr::null_mut()
    );
    assert_eq!(checked(code), Err(RvError::ArgumentsBad));
}

fn slot_list_in_a_small_buffer_returns_the_count_and_no_slots(fixture: &TokenFixture<'_>) {
    let (_, all) = fixture.raw.slot_count(false);
    assert!(all >= 1);
    let (mut slots, mut count) = ([NOWHERE; 1], all - 1);
    let code = ck!(
        fixture.raw,
        C_GetSlotList,
        0,
        slots.as_mut_ptr(),
        &raw mut count
    );
    assert_eq!(checked(code), Err(RvError::BufferTooSmall));
    assert_eq!((count, slots), (all, [NOWHERE]), "nothing is written");
}

fn slot_list_in_a_large_buffer_returns_the_count_and_writes_no_more(fixture: &TokenFixture<'_>) {
    let (mut slots, mut count) = ([NOWHERE; 16], 16);
    let code = ck!(
        fixture.raw,
        C_GetSlotList,
        1,
        slots.as_mut_ptr(),
        &raw mut count
    );
    assert_eq!((checked(code), count), (Ok(()), 1));
    assert_eq!(slots[0], fixture.slot_id());
    assert_eq!(
        slots[1..],
        [NOWHERE; 15],
        "nothing is written past the list"
    );
}

fn slots_with_a_token_are_some_of_all_slots(fixture: &TokenFixture<'_>) {
    let all = fixture.raw.slots(false);
    let with_token = fixture.raw.slots(true);
    assert!(with_token.iter().all(|slot| all.contains(slot)));
    assert_eq!(with_token, [fixture.slot_id()], "a slot for each applet");
}

fn slot_info_of_an_unknown_slot_is_refused(fixture: &TokenFixture<'_>) {
    let (code, _) = fixture.raw.slot_info(NOWHERE);
    assert_eq!(checked(code), Err(RvError::SlotIdInvalid));
    let code = ck!(
        fixture.raw,
        C_GetSlotInfo,
        fixture.slot_id(),
        ptr::null_mut()
    );
    assert_eq!(checked(code), Err(RvError::ArgumentsBad));
}

fn slot_info_describes_a_reader(fixture: &TokenFixture<'_>) {
    let mut info = MaybeUninit::<CK_SLOT_INFO>::zeroed();
    let code = ck!(
        fixture.raw,
        C_GetSlotInfo,
        fixture.slot_id(),
        info.as_mut_ptr()
    );
    assert_eq!(checked(code), Ok(()));
    // SAFETY: all zeroes are a value of this type, of numbers and characters.
    let info = unsafe { info.assume_init() };
    let expected = CKF_TOKEN_PRESENT | CKF_REMOVABLE_DEVICE | CKF_HW_SLOT;
    assert_eq!(info.flags, expected);
    assert!(is_padded(&info.slotDescription) && is_padded(&info.manufacturerID));
}

/// UTF-8 that ends in blanks, never in NUL.
fn is_padded(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|text| !text.contains('\0'))
}

fn token_info_of_an_unknown_slot_is_refused(fixture: &TokenFixture<'_>) {
    assert_eq!(
        checked(fixture.raw.token_info(NOWHERE)),
        Err(RvError::SlotIdInvalid)
    );
    let code = ck!(
        fixture.raw,
        C_GetTokenInfo,
        fixture.slot_id(),
        ptr::null_mut()
    );
    assert_eq!(checked(code), Err(RvError::ArgumentsBad));
}

fn token_info(fixture: &TokenFixture<'_>) -> CK_TOKEN_INFO {
    let mut info = MaybeUninit::<CK_TOKEN_INFO>::zeroed();
    let code = ck!(
        fixture.raw,
        C_GetTokenInfo,
        fixture.slot_id(),
        info.as_mut_ptr()
    );
    assert_eq!(checked(code), Ok(()));
    // SAFETY: all zeroes are a value of this type, of numbers and characters.
    unsafe { info.assume_init() }
}

fn token_info_has_padded_texts_and_expected_flags_and_limits(fixture: &TokenFixture<'_>) {
    let info = token_info(fixture);
    let texts: [&[u8]; 4] = [
        &info.label,
        &info.manufacturerID,
        &info.model,
        &info.serialNumber,
    ];
    for text in texts {
        assert!(is_padded(text) && text[0] != b' ', "{text:?}");
    }
    let set = CKF_LOGIN_REQUIRED | CKF_USER_PIN_INITIALIZED | CKF_TOKEN_INITIALIZED;
    assert_eq!(info.flags & set, set);
    let clear = CKF_CLOCK_ON_TOKEN
        | CKF_SECONDARY_AUTHENTICATION
        | CKF_PROTECTED_AUTHENTICATION_PATH
        | CKF_USER_PIN_COUNT_LOW
        | CKF_USER_PIN_FINAL_TRY
        | CKF_USER_PIN_LOCKED;
    assert_eq!(info.flags & clear, 0);
    assert_eq!(info.ulMinPinLen, 6);
    assert!(info.ulMaxPinLen >= 8 && info.ulMaxPinLen <= 127);
    let memory = [
        info.ulTotalPublicMemory,
        info.ulFreePublicMemory,
        info.ulTotalPrivateMemory,
        info.ulFreePrivateMemory,
    ];
    assert_eq!(memory, [UNAVAILABLE; 4]);
}

fn token_info_counts_sessions(fixture: &TokenFixture<'_>) {
    let counts = || {
        let info = token_info(fixture);
        assert!(info.ulMaxSessionCount == 0 && info.ulMaxRwSessionCount == 0);
        (info.ulSessionCount, info.ulRwSessionCount)
    };
    assert_eq!(counts(), (0, 0));
    let (one, two) = (fixture.read_only(), fixture.read_write());
    assert_eq!(counts(), (2, 1));
    two.end_session();
    assert_eq!(counts(), (1, 0));
    one.end_session();
    assert_eq!(counts(), (0, 0));
}

fn token_info_and_slot_info_cost_no_command(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    fixture.silently(|| {
        let _ = token_info(fixture);
        assert_eq!(checked(fixture.raw.slot_info(fixture.slot_id()).0), Ok(()));
        session.get_session_info().unwrap();
    });
}

fn pin_flags_follow_each_attempt_without_a_command(fixture: &TokenFixture<'_>) {
    const ALL: u64 = CKF_USER_PIN_COUNT_LOW | CKF_USER_PIN_FINAL_TRY | CKF_USER_PIN_LOCKED;
    let flags = || fixture.silently(|| token_info(fixture).flags & ALL);
    let session = fixture.read_only();
    let wrong = AuthPin::new("654321".into());
    let attempt = || code(session.login(UserType::User, Some(&wrong)));
    assert_eq!(flags(), 0);
    assert_eq!(attempt(), RvError::PinIncorrect);
    assert_eq!(flags(), CKF_USER_PIN_COUNT_LOW);
    assert_eq!(attempt(), RvError::PinIncorrect);
    assert_eq!(flags(), CKF_USER_PIN_COUNT_LOW | CKF_USER_PIN_FINAL_TRY);
    assert_eq!(session.login_user(), Ok(()));
    assert_eq!(flags(), 0);
    session.logout().unwrap();
    for _ in 0..3 {
        assert!([RvError::PinIncorrect, RvError::PinLocked].contains(&attempt()));
    }
    assert_eq!(flags() & CKF_USER_PIN_LOCKED, CKF_USER_PIN_LOCKED);
    assert_eq!(session.login_user(), Err(RvError::PinLocked));
}

fn mechanism_list_counts_and_fills(fixture: &TokenFixture<'_>) {
    let list = fixture.raw.list().C_GetMechanismList.unwrap();
    let (slot, mut count) = (fixture.slot_id(), 0);
    let null = ptr::null_mut();
    // SAFETY: where the count may be written, or nowhere.
    let code = unsafe { list(slot, null, &raw mut count) };
    assert_eq!(checked(code), Ok(()));
    assert_eq!(count as usize, fixture.mechanisms().len());
    let (mut buffer, mut little) = (vec![UNAVAILABLE; count as usize], count - 1);
    // SAFETY: the buffer is larger than the length that is passed.
    let code = unsafe { list(slot, buffer.as_mut_ptr(), &raw mut little) };
    assert_eq!(checked(code), Err(RvError::BufferTooSmall));
    assert_eq!(little, count);
    // SAFETY: no place for the count.
    let code = unsafe { list(slot, null, null) };
    assert_eq!(checked(code), Err(RvError::ArgumentsBad));
    // SAFETY: as the first call.
    let code = unsafe { list(NOWHERE, null, &raw mut count) };
    assert_eq!(checked(code), Err(RvError::SlotIdInvalid));
}

fn mechanism_info_exists_for_listed_mechanisms_only(fixture: &TokenFixture<'_>) {
    let info = |mechanism| {
        let mut info = MaybeUninit::<CK_MECHANISM_INFO>::zeroed();
        let slot = fixture.slot_id();
        let code = ck!(
            fixture.raw,
            C_GetMechanismInfo,
            slot,
            mechanism,
            info.as_mut_ptr()
        );
        // SAFETY: all zeroes are a value of this type, of numbers.
        checked(code).map(|()| unsafe { info.assume_init() })
    };
    let offered = fixture.mechanisms();
    let mut distinct = offered.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(
        distinct.len(),
        offered.len(),
        "no mechanism is listed twice"
    );
    for mechanism in &offered {
        let info = info(*mechanism).unwrap();
        assert_ne!(info.flags, 0, "{mechanism:#x} does nothing");
        assert!(info.ulMinKeySize <= info.ulMaxKeySize, "{mechanism:#x}");
    }
    for mechanism in (0..0x4100).filter(|mechanism| !offered.contains(mechanism)) {
        let refused = info(mechanism).map(drop);
        assert_eq!(refused, Err(RvError::MechanismInvalid), "{mechanism:#x}");
    }
    let code = ck!(
        fixture.raw,
        C_GetMechanismInfo,
        fixture.slot_id(),
        offered[0],
        ptr::null_mut()
    );
    assert_eq!(checked(code), Err(RvError::ArgumentsBad));
}

fn init_token_returns_function_not_supported_and_changes_nothing(fixture: &TokenFixture<'_>) {
    let (mut pin, mut label) = (*b"12345678", [b' '; 32]);
    let mut attempt = |slot| {
        let (pin, label) = (pin.as_mut_ptr(), label.as_mut_ptr());
        checked(ck!(fixture.raw, C_InitToken, slot, pin, 8, label))
    };
    let unsupported = Err(RvError::FunctionNotSupported);
    assert_eq!(attempt(NOWHERE), unsupported, "whatever the arguments");
    let session = fixture.read_only();
    assert_eq!(fixture.silently(|| attempt(fixture.slot_id())), unsupported);
    assert_eq!(session.login_user(), Ok(()), "the PIN is what it was");
}

fn pins_are_not_set_in_the_wrong_state(fixture: &TokenFixture<'_>) {
    let (mut pin, reader) = (*b"123456", fixture.read_only());
    let pin = pin.as_mut_ptr();
    let set = |session| checked(ck!(fixture.raw, C_SetPIN, session, pin, 6, pin, 6));
    let init = |session| checked(ck!(fixture.raw, C_InitPIN, session, pin, 6));
    for session in [0, NOWHERE] {
        let none = Err(RvError::SessionHandleInvalid);
        assert_eq!((set(session), init(session)), (none, none));
    }
    let codes = |session| fixture.silently(|| (set(session), init(session)));
    let read_only = Err(RvError::SessionReadOnly);
    assert_eq!(codes(reader.id()), (read_only, read_only));
    let writer = fixture.read_write();
    let not_logged_in = Err(RvError::UserNotLoggedIn);
    assert_eq!(fixture.silently(|| init(writer.id())), not_logged_in);
    assert_eq!(writer.login_user(), Ok(()));
    assert_eq!(fixture.silently(|| init(writer.id())), not_logged_in);
    assert_eq!(
        codes(reader.id()),
        (read_only, read_only),
        "whoever is logged in"
    );
    let writable = token_info(fixture).flags & CKF_WRITE_PROTECTED == 0;
    assert!(writable, "a session may write");
}
