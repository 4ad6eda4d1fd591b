//! General-purpose functions (PKCS #11 2.40, 5.4).

use cryptoki_sys::{
    CK_C_INITIALIZE_ARGS, CK_INFO, CK_VERSION, CK_VOID_PTR, CKF_LIBRARY_CANT_CREATE_OS_THREADS,
    CKF_OS_LOCKING_OK,
};

use super::padded;
use crate::{
    module::{self, Module},
    pointer::{Input, Output},
    rv::{Failure, ReturnCode},
};

/// The manufacturer of this library.
pub(crate) const MANUFACTURER: &str = "claviger";

/// C_Initialize. The result depends on the caller's mutex functions and on CKF_OS_LOCKING_OK:
///
/// | mutex functions | OS_LOCKING_OK | result |
/// |---|---|---|
/// | none | either | OK; operating-system locks are used in any case |
/// | all four | set | OK; operating-system locks |
/// | all four | clear | CANT_LOCK: a lock of the caller could not protect the slot-event threads |
/// | some | either | ARGUMENTS_BAD |
///
/// With CKF_LIBRARY_CANT_CREATE_OS_THREADS, the module creates no thread until C_Finalize.
pub(crate) fn initialize(arguments: Input<'_, CK_C_INITIALIZE_ARGS>) -> Result<(), Failure> {
    let mut may_create_threads = true;
    if !arguments.is_null() {
        let arguments = arguments.get()?;
        if !arguments.pReserved.is_null() {
            return Err(ReturnCode::ARGUMENTS_BAD.into());
        }
        let given = [
            arguments.CreateMutex.is_some(),
            arguments.DestroyMutex.is_some(),
            arguments.LockMutex.is_some(),
            arguments.UnlockMutex.is_some(),
        ];
        match given.iter().filter(|given| **given).count() {
            0 => {}
            4 if arguments.flags & CKF_OS_LOCKING_OK != 0 => {}
            4 => return Err(ReturnCode::CANT_LOCK.into()),
            _ => return Err(ReturnCode::ARGUMENTS_BAD.into()),
        }
        may_create_threads = arguments.flags & CKF_LIBRARY_CANT_CREATE_OS_THREADS == 0;
    }
    module::initialize(may_create_threads)
}

/// C_Finalize.
pub(crate) fn finalize(reserved: CK_VOID_PTR) -> Result<(), Failure> {
    if !reserved.is_null() {
        return Err(ReturnCode::ARGUMENTS_BAD.into());
    }
    if module::lifecycle().finalize() {
        Ok(())
    } else {
        Err(ReturnCode::NOT_INITIALIZED.into())
    }
}

/// C_GetInfo.
pub(crate) fn info(_: &Module, info: Output<'_, CK_INFO>) -> Result<(), Failure> {
    info.write(CK_INFO {
        cryptokiVersion: CK_VERSION { major: 3, minor: 2 },
        manufacturerID: padded(MANUFACTURER),
        flags: 0,
        libraryDescription: padded("claviger PIV and OpenPGP cards"),
        libraryVersion: library_version(),
    })
}

/// Returns the version of this package as a CK_VERSION.
fn library_version() -> CK_VERSION {
    let number = |text: &str| text.parse().unwrap_or(0);
    CK_VERSION {
        major: number(env!("CARGO_PKG_VERSION_MAJOR")),
        minor: number(env!("CARGO_PKG_VERSION_MINOR")),
    }
}
