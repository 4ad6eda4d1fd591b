//! The interfaces by which a caller gets the tables (PKCS #11 3.2, C_GetFunctionList to C_GetInterface).
//!
//! All of it works at any time: before C_Initialize, after C_Finalize, in a forked child.

use std::ffi::{CStr, c_void};

use cryptoki_sys::{
    CK_FLAGS, CK_FUNCTION_LIST_PTR, CK_INTERFACE, CK_INTERFACE_PTR, CK_ULONG, CK_UTF8CHAR,
    CK_VERSION,
};

use super::function_table::{V2_40, V3_0, V3_2};
use crate::{
    pointer::{Input, Output},
    rv::{Failure, ReturnCode},
};

/// The standard's own functions; names of vendors begin with "Vendor ".
const NAME: &CStr = c"PKCS 11";
/// Not CKF_INTERFACE_FORK_SAFE: a forked child calls C_Initialize anew.
const FLAGS: CK_FLAGS = 0;

struct Interface {
    version: CK_VERSION,
    face: CK_INTERFACE,
}

struct Interfaces([Interface; 3]);

// SAFETY: the pointers are to static data that nobody writes.
unsafe impl Sync for Interfaces {}

/// The default first.
static INTERFACES: Interfaces = Interfaces([
    Interface::new(V3_2.version, (&raw const V3_2).cast()),
    Interface::new(V3_0.version, (&raw const V3_0).cast()),
    Interface::new(V2_40.version, (&raw const V2_40).cast()),
]);

impl Interface {
    /// The types of the standard have no const; the name and the table are never written.
    const fn new(version: CK_VERSION, table: *const c_void) -> Self {
        let face = CK_INTERFACE {
            pInterfaceName: NAME.as_ptr().cast_mut().cast(),
            pFunctionList: table.cast_mut(),
            flags: FLAGS,
        };
        Self { version, face }
    }
}

/// C_GetFunctionList: the table of version 2.40, to which the standard pins it.
pub(super) fn function_list(list: Output<'_, CK_FUNCTION_LIST_PTR>) -> Result<(), Failure> {
    list.write((&raw const V2_40).cast_mut())
}

/// C_GetInterfaceList.
pub(super) fn list(
    list: Output<'_, CK_INTERFACE>,
    count: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let faces = INTERFACES.0.each_ref().map(|interface| interface.face);
    list.write_counted(count, &faces)
}

/// C_GetInterface. A name, a version and flags that are given must be an interface's own, each to the last bit;
/// among those that fit, the first is told. The standard names no code for none: it is CKR_ARGUMENTS_BAD.
pub(super) fn find(
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
    let interface = INTERFACES
        .0
        .iter()
        .find(|interface| wanted.is_none_or(|wanted| same(wanted, interface.version)))
        .ok_or(ReturnCode::ARGUMENTS_BAD)?;
    found.write((&raw const interface.face).cast_mut())
}

const fn same(one: CK_VERSION, other: CK_VERSION) -> bool {
    one.major == other.major && one.minor == other.minor
}
