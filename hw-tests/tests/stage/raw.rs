//! The module by its bare function list, for calls no safe client makes.

use std::{mem::MaybeUninit, ptr};

use claviger_hw_tests::paths;
use cryptoki_sys::{
    CK_C_INITIALIZE_ARGS, CK_FLAGS, CK_FUNCTION_LIST, CK_INFO, CK_RV, CK_SLOT_ID, CK_ULONG, CKR_OK,
};
use libloading::Library;

/// The loaded module.
#[derive(Clone, Copy)]
pub struct Raw(&'static CK_FUNCTION_LIST);

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
        // SAFETY: each test gives the pointers the function asks for, or null where that is its subject.
        unsafe { function($($argument),*) }
    }};
}

impl Raw {
    /// Loads the module for good.
    pub fn load() -> Self {
        let (raw, library) = Self::open();
        std::mem::forget(library);
        raw
    }

    /// Loads the module until the library is dropped; its table is static data of a library that stays mapped.
    pub fn open() -> (Self, Library) {
        // SAFETY: the module's initialisers only set up its own data.
        let library = unsafe { Library::new(paths::module_path()) }.expect("the module loads");
        type Door = unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV;
        // SAFETY: the symbol has the type that the standard gives it.
        let door = unsafe { library.get::<Door>(b"C_GetFunctionList") }.expect("the module's door");
        let mut list = ptr::null_mut();
        // SAFETY: `list` is where a pointer may be written.
        let code = unsafe { door(&raw mut list) };
        assert_eq!(code, CKR_OK);
        // SAFETY: static data of the module, which is never unmapped.
        (Self(unsafe { &*list }), library)
    }

    pub fn list(&self) -> &'static CK_FUNCTION_LIST {
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

    /// C_GetInfo: the code.
    pub fn info(&self) -> CK_RV {
        let mut info = MaybeUninit::<CK_INFO>::uninit();
        ck!(self, C_GetInfo, info.as_mut_ptr())
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
