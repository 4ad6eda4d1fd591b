//! The library's functions, behind functions of the same names.

use std::{
    ffi::{c_char, c_void},
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

use libloading::{
    Error,
    os::unix::{Library, RTLD_LOCAL, RTLD_NOW},
};

use crate::values::{
    DWORD, LONG, SCARD_E_NO_SERVICE, SCARD_IO_REQUEST, SCARD_PROTOCOL_RAW, SCARD_PROTOCOL_T0,
    SCARD_PROTOCOL_T1, SCARD_READERSTATE, SCARDCONTEXT, SCARDHANDLE,
};

/// The library, whose name is looked up as the system's loader does it, and nowhere else.
pub const LIBRARY: &str = "libpcsclite.so.1";

/// The functions, once they were found: never taken back, and never the same memory again.
///
/// Not a lock: a child that was forked while another thread had it would wait for ever.
static FUNCTIONS: AtomicPtr<Functions> = AtomicPtr::new(ptr::null_mut());

/// Loads the library, if it is not; asks the system anew each time until it was found.
///
/// # Errors
/// Why it cannot be loaded, in the loader's words.
pub fn load() -> Result<(), Error> {
    functions().map(drop)
}

/// Whether the library was found.
#[must_use]
pub fn is_loaded() -> bool {
    found().is_some()
}

fn found() -> Option<&'static Functions> {
    // SAFETY: null, or what `functions` leaked after it was complete.
    unsafe { FUNCTIONS.load(Ordering::Acquire).as_ref() }
}

fn functions() -> Result<&'static Functions, Error> {
    if let Some(found) = found() {
        return Ok(found);
    }
    // SAFETY: the initialisers of pcsc-lite's library set up its own data only.
    let library = unsafe { Library::open(Some(LIBRARY), RTLD_NOW | RTLD_LOCAL) }?;
    let functions = Box::new(Functions::of(&library)?);
    // It stays loaded: another thread, or this one's caller, may be inside until the process ends.
    std::mem::forget(library);
    let functions = Box::leak(functions);
    // Of two threads that came here at once, the second finds the same library.
    FUNCTIONS.store(functions, Ordering::Release);
    Ok(functions)
}

/// One field and one function for each function of the library.
macro_rules! functions {
    ($(fn $name:ident($($parameter:ident: $type:ty),* $(,)?);)*) => {
        struct Functions {
            $($name: unsafe extern "C" fn($($type),*) -> LONG,)*
        }

        impl Functions {
            fn of(library: &Library) -> Result<Self, Error> {
                Ok(Self {
                    $($name: {
                        let name = concat!(stringify!($name), "\0").as_bytes();
                        // SAFETY: the type is the one that winscard.h declares; null is none of its values.
                        let symbol = unsafe { library.get(name) }?;
                        let function: Option<unsafe extern "C" fn($($type),*) -> LONG> = *symbol;
                        function.ok_or(Error::DlSymUnknown)?
                    },)*
                })
            }
        }

        $(
            /// See PC/SC.
            ///
            /// # Safety
            /// As PC/SC demands of its caller.
            pub unsafe fn $name($($parameter: $type),*) -> LONG {
                match functions() {
                    // SAFETY: the caller's promise is the one that the library's function asks for.
                    Ok(functions) => unsafe { (functions.$name)($($parameter),*) },
                    Err(_) => SCARD_E_NO_SERVICE,
                }
            }
        )*
    };
}

functions! {
    fn SCardEstablishContext(
        dwScope: DWORD,
        pvReserved1: *const c_void,
        pvReserved2: *const c_void,
        phContext: *mut SCARDCONTEXT,
    );
    fn SCardReleaseContext(hContext: SCARDCONTEXT);
    fn SCardIsValidContext(hContext: SCARDCONTEXT);
    fn SCardCancel(hContext: SCARDCONTEXT);
    fn SCardConnect(
        hContext: SCARDCONTEXT,
        szReader: *const c_char,
        dwShareMode: DWORD,
        dwPreferredProtocols: DWORD,
        phCard: *mut SCARDHANDLE,
        pdwActiveProtocol: *mut DWORD,
    );
    fn SCardReconnect(
        hCard: SCARDHANDLE,
        dwShareMode: DWORD,
        dwPreferredProtocols: DWORD,
        dwInitialization: DWORD,
        pdwActiveProtocol: *mut DWORD,
    );
    fn SCardDisconnect(hCard: SCARDHANDLE, dwDisposition: DWORD);
    fn SCardGetStatusChange(
        hContext: SCARDCONTEXT,
        dwTimeout: DWORD,
        rgReaderStates: *mut SCARD_READERSTATE,
        cReaders: DWORD,
    );
    fn SCardListReaders(
        hContext: SCARDCONTEXT,
        mszGroups: *const c_char,
        mszReaders: *mut c_char,
        pcchReaders: *mut DWORD,
    );
    fn SCardBeginTransaction(hCard: SCARDHANDLE);
    fn SCardEndTransaction(hCard: SCARDHANDLE, dwDisposition: DWORD);
    fn SCardStatus(
        hCard: SCARDHANDLE,
        szReaderName: *mut c_char,
        pcchReaderLen: *mut DWORD,
        pdwState: *mut DWORD,
        pdwProtocol: *mut DWORD,
        pbAtr: *mut u8,
        pcbAtrLen: *mut DWORD,
    );
    fn SCardGetAttrib(
        hCard: SCARDHANDLE,
        dwAttrId: DWORD,
        pbAttr: *mut u8,
        pcbAttrLen: *mut DWORD,
    );
    fn SCardSetAttrib(
        hCard: SCARDHANDLE,
        dwAttrId: DWORD,
        pbAttr: *const u8,
        pcbAttrLen: DWORD,
    );
    fn SCardTransmit(
        hCard: SCARDHANDLE,
        pioSendPci: *const SCARD_IO_REQUEST,
        pbSendBuffer: *const u8,
        cbSendLength: DWORD,
        pioRecvPci: *mut SCARD_IO_REQUEST,
        pbRecvBuffer: *mut u8,
        pcbRecvLength: *mut DWORD,
    );
    fn SCardControl(
        hCard: SCARDHANDLE,
        dwControlCode: DWORD,
        pbSendBuffer: *const u8,
        cbSendLength: DWORD,
        pbRecvBuffer: *mut u8,
        cbRecvLength: DWORD,
        lpBytesReturned: *mut DWORD,
    );
}

/// What pcsc-lite's constant of this name holds: the library looks at the values, not at the address.
pub static g_rgSCardT0Pci: SCARD_IO_REQUEST = pci(SCARD_PROTOCOL_T0);
/// As [`g_rgSCardT0Pci`].
pub static g_rgSCardT1Pci: SCARD_IO_REQUEST = pci(SCARD_PROTOCOL_T1);
/// As [`g_rgSCardT0Pci`].
pub static g_rgSCardRawPci: SCARD_IO_REQUEST = pci(SCARD_PROTOCOL_RAW);

#[allow(clippy::cast_possible_truncation, reason = "two numbers' size")]
const fn pci(protocol: DWORD) -> SCARD_IO_REQUEST {
    SCARD_IO_REQUEST {
        dwProtocol: protocol,
        cbPciLength: size_of::<SCARD_IO_REQUEST>() as DWORD,
    }
}
