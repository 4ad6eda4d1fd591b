//! The interfaces that give a caller the tables (PKCS #11 3.2, C_GetFunctionList to C_GetInterface).
//!
//! These functions work at any time: before C_Initialize, after C_Finalize, in a forked child.

use std::ffi::CStr;

use cryptoki_sys::{
    CK_FLAGS, CK_FUNCTION_LIST, CK_FUNCTION_LIST_PTR, CK_INTERFACE, CK_INTERFACE_PTR, CK_ULONG,
    CK_UTF8CHAR, CK_VERSION,
};

use crate::{
    pointer::{Input, Output},
    rv::{Failure, ReturnCode},
};

/// The name of the standard's own functions. Names of vendors begin with "Vendor ".
const NAME: &CStr = c"PKCS 11";
/// Without CKF_INTERFACE_FORK_SAFE: a forked child must call C_Initialize again.
const FLAGS: CK_FLAGS = 0;

/// One version of the standard and its table.
pub(super) struct Interface {
    version: CK_VERSION,
    structure: CK_INTERFACE,
}

// SAFETY: one pointer is to a static table that threads may share, the other to a constant. Neither is written through.
unsafe impl Sync for Interface {}

impl Interface {
    /// Returns an interface with a static table. The types of the standard have no const. The name and the table are never
    /// written.
    pub(super) const fn new<T: Sync>(version: CK_VERSION, table: &'static T) -> Self {
        let structure = CK_INTERFACE {
            pInterfaceName: NAME.as_ptr().cast_mut().cast(),
            pFunctionList: (&raw const *table).cast_mut().cast(),
            flags: FLAGS,
        };
        Self { version, structure }
    }
}

/// C_GetFunctionList. Returns the table of version 2.40, as the standard requires.
pub(super) fn function_list(
    table: &'static CK_FUNCTION_LIST,
    list: Output<'_, CK_FUNCTION_LIST_PTR>,
) -> Result<(), Failure> {
    list.write((&raw const *table).cast_mut())
}

/// C_GetInterfaceList.
pub(super) fn list(
    interfaces: &'static [Interface; 3],
    list: Output<'_, CK_INTERFACE>,
    count: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let structures = interfaces.each_ref().map(|interface| interface.structure);
    list.write_counted(count, &structures)
}

/// C_GetInterface. Returns the first interface whose name and version equal the given ones and which has all the given flags.
/// A null name or version matches every interface. If no interface matches, the code is CKR_ARGUMENTS_BAD; the standard names
/// none.
pub(super) fn find(
    interfaces: &'static [Interface; 3],
    name: Input<'_, CK_UTF8CHAR>,
    version: Input<'_, CK_VERSION>,
    found: Output<'_, CK_INTERFACE_PTR>,
    flags: CK_FLAGS,
) -> Result<(), Failure> {
    let found = found.check()?;
    if !(name.is_null() || name.is_text(NAME)) || flags & !FLAGS != 0 {
        return Err(ReturnCode::ARGUMENTS_BAD.into());
    }
    let wanted = (!version.is_null()).then(|| version.get()).transpose()?;
    let interface = interfaces
        .iter()
        .find(|interface| wanted.is_none_or(|wanted| same(wanted, interface.version)))
        .ok_or(ReturnCode::ARGUMENTS_BAD)?;
    found.write((&raw const interface.structure).cast_mut())
}

const fn same(one: CK_VERSION, other: CK_VERSION) -> bool {
    one.major == other.major && one.minor == other.minor
}
