//! The module by its bare function list.

use std::{env, ptr};

use cryptoki_sys::{
    CK_C_INITIALIZE_ARGS, CK_FLAGS, CK_FUNCTION_LIST, CK_RV, CK_SLOT_ID, CK_ULONG,
    CKF_LIBRARY_CANT_CREATE_OS_THREADS, CKF_OS_LOCKING_OK, CKR_OK,
};

/// Threads of the module's own, and none.
pub(crate) const MODES: [CK_FLAGS; 2] = [
    CKF_OS_LOCKING_OK,
    CKF_LIBRARY_CANT_CREATE_OS_THREADS | CKF_OS_LOCKING_OK,
];

/// The loaded module; never unloaded, so that the tools can name its functions at the end.
#[derive(Clone, Copy)]
pub(crate) struct Module(&'static CK_FUNCTION_LIST);

// SAFETY: the table is read-only data of a module that stays, and its functions may be called from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// Calls a function of the table.
macro_rules! ck {
    ($module:expr, $function:ident $(, $argument:expr)* $(,)?) => {{
        let function = $module.list().$function.expect("every place of the table is filled");
        // SAFETY: the arguments are what the function asks for: live memory of the given length, or null.
        unsafe { function($($argument),*) }
    }};
}
pub(crate) use ck;

impl Module {
    /// Loads the module beside this program, or the one `CLAVIGER_MODULE` names.
    pub(crate) fn load() -> Self {
        type Door = unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV;
        let beside = || {
            let program = env::current_exe().expect("the path of this program");
            program.with_file_name("libclaviger_pkcs11.so").into()
        };
        let path = env::var_os("CLAVIGER_MODULE").unwrap_or_else(beside);
        // SAFETY: the module's initialisers only set up its own data.
        let library = unsafe { libloading::Library::new(&path) }.expect("the module loads");
        let mut list = ptr::null_mut();
        {
            // SAFETY: the symbol has the type that the standard gives it.
            let door = unsafe { library.get::<Door>(b"C_GetFunctionList") }.expect("its door");
            // SAFETY: a pointer may be written to `list`.
            assert_eq!(unsafe { door(&raw mut list) }, CKR_OK);
        }
        std::mem::forget(library);
        // SAFETY: static data of the module, which is never unloaded.
        Self(unsafe { &*list })
    }

    pub(crate) const fn list(self) -> &'static CK_FUNCTION_LIST {
        self.0
    }

    pub(crate) fn initialize(self, flags: CK_FLAGS) {
        let mut arguments = CK_C_INITIALIZE_ARGS {
            CreateMutex: None,
            DestroyMutex: None,
            LockMutex: None,
            UnlockMutex: None,
            flags,
            pReserved: ptr::null_mut(),
        };
        let code = ck!(self, C_Initialize, (&raw mut arguments).cast());
        assert_eq!(code, CKR_OK, "C_Initialize");
    }

    pub(crate) fn finalize(self) {
        assert_eq!(ck!(self, C_Finalize, ptr::null_mut()), CKR_OK, "C_Finalize");
    }

    /// C_WaitForSlotEvent: the code.
    pub(crate) fn wait(self, flags: CK_FLAGS) -> CK_RV {
        let mut slot = CK_SLOT_ID::MAX;
        ck!(
            self,
            C_WaitForSlotEvent,
            flags,
            &raw mut slot,
            ptr::null_mut()
        )
    }

    /// C_GetSlotList: the slots with a token, or all.
    pub(crate) fn slots(self, with_token: bool) -> Result<Vec<CK_SLOT_ID>, CK_RV> {
        let mut slots = [0; 16];
        let mut count = slots.len() as CK_ULONG;
        match ck!(
            self,
            C_GetSlotList,
            u8::from(with_token),
            slots.as_mut_ptr(),
            &raw mut count
        ) {
            CKR_OK => Ok(slots.into_iter().take(count as usize).collect()),
            code => Err(code),
        }
    }
}
