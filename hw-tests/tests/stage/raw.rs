//! The module by its bare function list, for calls no safe client makes.

use std::{
    mem::MaybeUninit,
    ptr,
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use claviger_hw_tests::paths;
use cryptoki_sys::{
    CK_C_INITIALIZE_ARGS, CK_FLAGS, CK_FUNCTION_LIST_3_2, CK_INFO, CK_INTERFACE, CK_INVALID_HANDLE,
    CK_RV, CK_SESSION_HANDLE, CK_SLOT_ID, CK_SLOT_INFO, CK_TOKEN_INFO, CK_ULONG, CK_UTF8CHAR,
    CK_VERSION, CKF_DONT_BLOCK, CKF_LIBRARY_CANT_CREATE_OS_THREADS, CKF_OS_LOCKING_OK,
    CKF_SERIAL_SESSION, CKF_TOKEN_PRESENT, CKR_BUFFER_TOO_SMALL, CKR_NO_EVENT, CKR_OK,
};
use libloading::Library;

/// C_Initialize's flags when the module may create threads, and when it may not.
pub const OWN_THREAD: CK_FLAGS = CKF_OS_LOCKING_OK;
pub const NO_THREADS: CK_FLAGS = CKF_OS_LOCKING_OK | CKF_LIBRARY_CANT_CREATE_OS_THREADS;
/// What only an event that never comes exceeds.
pub const HANG: Duration = Duration::from_secs(20);

/// The loaded module: its table of all functions.
#[derive(Clone, Copy)]
pub struct Raw(&'static CK_FUNCTION_LIST_3_2);

/// C_GetInterface.
pub type Door = unsafe extern "C" fn(
    *mut CK_UTF8CHAR,
    *mut CK_VERSION,
    *mut *mut CK_INTERFACE,
    CK_FLAGS,
) -> CK_RV;

// SAFETY: the table is read-only data of a module that is never unmapped, and its functions may be called from
// any thread.
unsafe impl Send for Raw {}
// SAFETY: as above.
unsafe impl Sync for Raw {}

/// Calls a function of the table.
#[macro_export]
macro_rules! ck {
    ($raw:expr, $function:ident $(, $argument:expr)*) => {{
        let function = $raw.list().$function.expect("every slot of the table is filled");
        #[allow(
            clippy::macro_metavars_in_unsafe,
            reason = "arguments are values and pointers that tests make safely"
        )]
        // SAFETY: each test gives the pointers the function asks for, or null where that is its subject.
        unsafe {
            function($($argument),*)
        }
    }};
}

impl Raw {
    /// Loads the module for good.
    pub fn load() -> Self {
        let (raw, library) = Self::load_for_a_while();
        std::mem::forget(library);
        raw
    }

    /// Loads the module until the library is dropped; its table is static data of a library that stays mapped.
    pub fn load_for_a_while() -> (Self, Library) {
        // SAFETY: the module's initialisers only set up its own data.
        let library = unsafe { Library::new(paths::module_path()) }.expect("the module loads");
        // SAFETY: the symbol has the type that the standard gives it.
        let door = unsafe { library.get::<Door>(b"C_GetInterface") }.expect("the module's door");
        let mut version = CK_VERSION { major: 3, minor: 2 };
        let mut interface = ptr::null_mut();
        // SAFETY: the version may be read, and a pointer written to `interface`.
        let code = unsafe { door(ptr::null_mut(), &raw mut version, &raw mut interface, 0) };
        assert_eq!(code, CKR_OK);
        // SAFETY: static data of the module, which is never unmapped.
        let table = unsafe { *interface }.pFunctionList;
        // SAFETY: as above, and of this type by its version.
        (Self(unsafe { &*table.cast() }), library)
    }

    pub fn list(&self) -> &'static CK_FUNCTION_LIST_3_2 {
        self.0
    }

    /// C_Initialize without callbacks.
    pub fn initialize(&self, flags: CK_FLAGS) -> CK_RV {
        let mut arguments = arguments(flags);
        ck!(self, C_Initialize, (&raw mut arguments).cast())
    }

    /// C_Finalize.
    pub fn finalize(&self) -> CK_RV {
        ck!(self, C_Finalize, ptr::null_mut())
    }

    /// C_WaitForSlotEvent: the code and the slot.
    pub fn wait(&self, flags: CK_FLAGS) -> (CK_RV, CK_SLOT_ID) {
        let mut slot = CK_SLOT_ID::MAX;
        let code = ck!(
            self,
            C_WaitForSlotEvent,
            flags,
            &raw mut slot,
            ptr::null_mut()
        );
        (code, slot)
    }

    /// C_WaitForSlotEvent in a thread of its own, which says what became of it.
    pub fn waiter(&self) -> Receiver<(CK_RV, CK_SLOT_ID)> {
        let (told, outcome) = mpsc::channel();
        let raw = *self;
        thread::spawn(move || told.send(raw.wait(0)));
        outcome
    }

    /// The slot a waiter is told of when `work` is done; it has waited for `moment` in vain.
    #[track_caller]
    pub fn told_while(&self, moment: Duration, work: impl FnOnce()) -> CK_SLOT_ID {
        let waiter = self.waiter();
        assert!(waiter.recv_timeout(moment).is_err(), "nothing happened");
        work();
        let (code, slot) = waiter.recv_timeout(HANG).expect("a slot event");
        assert_eq!(code, CKR_OK);
        slot
    }

    /// The slot of the next event, which must come.
    #[track_caller]
    pub fn next_event(&self) -> CK_SLOT_ID {
        let outcome = self.waiter().recv_timeout(HANG);
        let (code, slot) = outcome.expect("a slot event");
        assert_eq!(code, CKR_OK);
        slot
    }

    /// The slots of all events that have not been told yet, sorted.
    #[track_caller]
    pub fn pending(&self) -> Vec<CK_SLOT_ID> {
        let mut slots = Vec::new();
        loop {
            match self.wait(CKF_DONT_BLOCK) {
                (CKR_OK, slot) => slots.push(slot),
                (code, _) => {
                    assert_eq!(code, CKR_NO_EVENT);
                    slots.sort_unstable();
                    return slots;
                }
            }
        }
    }

    /// Waits until a slot has a token, or has none.
    #[track_caller]
    pub fn wait_for_token(&self, slot: CK_SLOT_ID, present: bool) {
        let deadline = Instant::now() + HANG;
        loop {
            let (code, flags) = self.slot_info(slot);
            assert_eq!(code, CKR_OK);
            if (flags & CKF_TOKEN_PRESENT != 0) == present {
                return;
            }
            assert!(Instant::now() < deadline, "slot {slot}: not {present}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// C_GetInfo: the code.
    pub fn info(&self) -> CK_RV {
        let mut info = MaybeUninit::<CK_INFO>::uninit();
        ck!(self, C_GetInfo, info.as_mut_ptr())
    }

    /// C_GetSlotList: the slots, with a token or in all. A new list, as it is asked for without a buffer first.
    #[track_caller]
    pub fn slots(&self, with_token: bool) -> Vec<CK_SLOT_ID> {
        loop {
            let (code, mut count) = self.slot_count(with_token);
            assert_eq!(code, CKR_OK);
            let mut slots = vec![CK_SLOT_ID::MAX; usize::try_from(count).unwrap()];
            let list = slots.as_mut_ptr();
            let with_token = u8::from(with_token);
            match ck!(self, C_GetSlotList, with_token, list, &raw mut count) {
                // A card was put in since.
                CKR_BUFFER_TOO_SMALL => {}
                code => {
                    assert_eq!(code, CKR_OK);
                    slots.truncate(usize::try_from(count).unwrap());
                    return slots;
                }
            }
        }
    }

    /// C_GetSlotInfo: the code and the flags.
    pub fn slot_info(&self, slot: CK_SLOT_ID) -> (CK_RV, CK_FLAGS) {
        let mut info = MaybeUninit::<CK_SLOT_INFO>::zeroed();
        let code = ck!(self, C_GetSlotInfo, slot, info.as_mut_ptr());
        // SAFETY: all zeroes are a value of this type, of numbers and characters.
        (code, unsafe { info.assume_init() }.flags)
    }

    /// C_GetTokenInfo: the code.
    pub fn token_info(&self, slot: CK_SLOT_ID) -> CK_RV {
        let mut info = MaybeUninit::<CK_TOKEN_INFO>::uninit();
        ck!(self, C_GetTokenInfo, slot, info.as_mut_ptr())
    }

    /// C_OpenSession: the code and the session.
    pub fn open(&self, slot: CK_SLOT_ID) -> (CK_RV, CK_SESSION_HANDLE) {
        let mut session = CK_INVALID_HANDLE;
        let code = ck!(
            self,
            C_OpenSession,
            slot,
            CKF_SERIAL_SESSION,
            ptr::null_mut(),
            None,
            &raw mut session
        );
        (code, session)
    }

    /// C_CloseSession: the code.
    pub fn close(&self, session: CK_SESSION_HANDLE) -> CK_RV {
        ck!(self, C_CloseSession, session)
    }

    /// C_GetSlotList: how many slots, with a token or in all.
    pub fn slot_count(&self, with_token: bool) -> (CK_RV, CK_ULONG) {
        let mut count = 0;
        let code = ck!(
            self,
            C_GetSlotList,
            u8::from(with_token),
            ptr::null_mut(),
            &raw mut count
        );
        (code, count)
    }
}

/// CK_C_INITIALIZE_ARGS without callbacks.
pub fn arguments(flags: CK_FLAGS) -> CK_C_INITIALIZE_ARGS {
    CK_C_INITIALIZE_ARGS {
        CreateMutex: None,
        DestroyMutex: None,
        LockMutex: None,
        UnlockMutex: None,
        flags,
        pReserved: ptr::null_mut(),
    }
}
