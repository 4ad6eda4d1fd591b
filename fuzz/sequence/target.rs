//! The module within the fuzzer's own process, and a reader for its scripted cards.

use std::{env, ptr, sync::OnceLock};

use claviger_pkcs11 as _;
use cryptoki_sys::{CK_FLAGS, CK_INTERFACE, CK_RV, CK_UTF8CHAR, CK_VERSION, CKR_OK};

use crate::sequence::{SequenceFixture, Reader, scripted};

const SOUND: &[u8] = include_bytes!("../corpus/card/piv-p256");

unsafe extern "C" {
    fn C_GetInterface(
        name: *mut CK_UTF8CHAR,
        version: *mut CK_VERSION,
        interface: *mut *mut CK_INTERFACE,
        flags: CK_FLAGS,
    ) -> CK_RV;
}

/// Plays one input; what is made for all of them lasts as long as the process.
pub(crate) fn fuzz(bytes: &[u8]) {
    static ONCE: OnceLock<(SequenceFixture, Reader)> = OnceLock::new();
    let (fixture, reader) = ONCE.get_or_init(|| (fixture(), reader()));
    scripted(*fixture, reader, SOUND, bytes);
}

fn fixture() -> SequenceFixture {
    let (mut version, mut interface) = (CK_VERSION { major: 3, minor: 2 }, ptr::null_mut());
    // SAFETY: the default name, a version, and where a pointer may be written.
    let code = unsafe { C_GetInterface(ptr::null_mut(), &raw mut version, &raw mut interface, 0) };
    assert_eq!(code, CKR_OK);
    // SAFETY: static data of the module, of this type by its version.
    let list = unsafe { &*(*interface).pFunctionList.cast() };
    let (pin, signs) = (b"123456", false);
    SequenceFixture { list, pin, signs }
}

fn reader() -> Reader {
    let path = env::temp_dir().join(format!("claviger-sequence-{}", std::process::id()));
    let reader = Reader::serve(&path).expect("a socket");
    for (variable, value) in [
        ("CLAVIGER_TRANSPORTS", "socket".as_ref()),
        ("CLAVIGER_SOCKET", path.as_os_str()),
        ("CLAVIGER_CONFIG", "/dev/null".as_ref()),
        ("CLAVIGER_LOG", "off".as_ref()),
    ] {
        // SAFETY: the module, which reads them, has not been called for that yet, and the server's thread reads none.
        unsafe { env::set_var(variable, value) };
    }
    reader
}
