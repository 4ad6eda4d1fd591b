//! The interfaces: how a client gets each function list, and its content.

use std::{
    ffi::{CStr, c_void},
    fs,
    path::PathBuf,
    ptr, slice,
};

use claviger_hw_tests::{
    ck,
    fixture::{
        function_list::FunctionList,
        module_process::{ServiceKind, with_card},
        null_calls::{self, Table},
    },
    paths,
    provision::CardProfile,
};
use cryptoki_sys::{
    CK_FLAGS, CK_FUNCTION_LIST, CK_FUNCTION_LIST_3_0, CK_FUNCTION_LIST_3_2, CK_INFO, CK_INTERFACE,
    CK_RV, CK_ULONG, CK_VERSION, CKF_INTERFACE_FORK_SAFE, CKF_OS_LOCKING_OK, CKR_ARGUMENTS_BAD,
    CKR_BUFFER_TOO_SMALL, CKR_CRYPTOKI_NOT_INITIALIZED, CKR_OK,
};
use libloading::{Library, os::unix};
use object::Object as _;

const NAME: &CStr = c"PKCS 11";
const VERSIONS: [(u8, u8); 3] = [(3, 2), (3, 0), (2, 40)];
const NOTHING: CK_INTERFACE = CK_INTERFACE {
    pInterfaceName: ptr::null_mut(),
    pFunctionList: ptr::null_mut(),
    flags: 7,
};

/// The module, by its interfaces.
struct Module {
    raw: FunctionList,
    library: Library,
}

impl Module {
    fn load() -> Self {
        let (raw, library) = FunctionList::load_for_a_while();
        Self { raw, library }
    }

    /// Calls C_GetInterface. The interface is null unless the code is CKR_OK.
    fn find(
        &self,
        name: Option<&CStr>,
        version: Option<(u8, u8)>,
        flags: CK_FLAGS,
    ) -> (CK_RV, *mut CK_INTERFACE) {
        let name = name.map_or(ptr::null_mut(), |name| name.as_ptr().cast_mut().cast());
        let mut version = version.map(|(major, minor)| CK_VERSION { major, minor });
        let version = version.as_mut().map_or(ptr::null_mut(), ptr::from_mut);
        let mut found = ptr::null_mut();
        let code = ck!(
            self.raw,
            C_GetInterface,
            name,
            version,
            &raw mut found,
            flags
        );
        assert_eq!(found.is_null(), code != CKR_OK);
        (code, found)
    }

    /// The one interface of a version.
    #[track_caller]
    fn interface(&self, version: (u8, u8)) -> CK_INTERFACE {
        let (code, found) = self.find(Some(NAME), Some(version), 0);
        assert_eq!(code, CKR_OK, "{version:?}");
        // SAFETY: static data of the module.
        unsafe { *found }
    }

    #[track_caller]
    fn table<T: Table>(&self) -> &T {
        let table = self.interface(T::VERSION).pFunctionList;
        // SAFETY: static data of the module, of this type by its version.
        unsafe { &*table.cast() }
    }

    /// C_GetInterfaceList with room for `room`: the code, the count and what was written.
    fn list(&self, room: usize) -> (CK_RV, CK_ULONG, Vec<CK_INTERFACE>) {
        let mut list = vec![NOTHING; room];
        let mut count = CK_ULONG::try_from(room).unwrap();
        let code = ck!(
            self.raw,
            C_GetInterfaceList,
            list.as_mut_ptr(),
            &raw mut count
        );
        list.retain(|interface| !interface.pFunctionList.is_null());
        (code, count, list)
    }

    /// Returns the codes of all functions for null arguments. Checks that each function list and the exported functions give the
    /// same.
    fn answers(&self) -> Vec<(&'static str, CK_RV)> {
        let all = self.table::<CK_FUNCTION_LIST_3_2>().call_each();
        assert_eq!(null_calls::exported(&self.library).call_each(), all);
        assert_eq!(self.table::<CK_FUNCTION_LIST_3_0>().call_each(), all[..87]);
        assert_eq!(self.table::<CK_FUNCTION_LIST>().call_each(), all[..65]);
        all
    }

    /// The list, each interface of it, and the default are told.
    #[track_caller]
    fn check_interface_list(&self) {
        let (code, count, list) = self.list(3);
        assert_eq!((code, count, list.len()), (CKR_OK, 3, 3));
        for (interface, version) in list.iter().zip(VERSIONS) {
            assert_eq!(text(interface), NAME);
            assert_eq!(interface.flags, 0, "a forked child calls C_Initialize anew");
            assert_eq!(table_version(interface.pFunctionList), version);
            let found = self.interface(version);
            assert_eq!(text(&found), NAME);
            assert_eq!(found.pFunctionList, interface.pFunctionList);
        }
        let (code, default) = self.find(None, None, 0);
        // SAFETY: static data of the module.
        let table = unsafe { *default }.pFunctionList;
        assert_eq!((code, table), (CKR_OK, list[0].pFunctionList));
        let mut by_the_old_door = ptr::null_mut();
        let code = ck!(self.raw, C_GetFunctionList, &raw mut by_the_old_door);
        assert_eq!(
            (code, by_the_old_door.cast()),
            (CKR_OK, list[2].pFunctionList)
        );
    }
}

fn text(interface: &CK_INTERFACE) -> &CStr {
    // SAFETY: static data of the module, which ends with NUL.
    unsafe { CStr::from_ptr(interface.pInterfaceName.cast()) }
}

fn table_version(table: *mut c_void) -> (u8, u8) {
    // SAFETY: each table begins with its version.
    let version = unsafe { *table.cast::<CK_VERSION>() };
    (version.major, version.minor)
}

/// The addresses of a table's functions.
fn addresses<T: Table>(table: &T) -> &[usize] {
    let behind_the_version = size_of::<usize>();
    let count = size_of::<T>() / size_of::<usize>() - 1;
    let start = ptr::from_ref(table)
        .cast::<u8>()
        .wrapping_add(behind_the_version);
    // SAFETY: behind the version, a table is an array of pointers to functions or null.
    unsafe { slice::from_raw_parts(start.cast(), count) }
}

#[test]
fn every_function_table_entry_is_filled_and_the_tables_share_functions() {
    let module = Module::load();
    let newest = addresses(module.table::<CK_FUNCTION_LIST_3_2>());
    assert_eq!(newest.len(), 104);
    assert!(!newest.contains(&0));
    assert_eq!(
        addresses(module.table::<CK_FUNCTION_LIST_3_0>()),
        &newest[..92]
    );
    assert_eq!(addresses(module.table::<CK_FUNCTION_LIST>()), &newest[..68]);
}

#[test]
fn interfaces_are_available_before_during_and_after_a_generation() {
    with_card(ServiceKind::Socket, CardProfile::piv4(), |_| {
        let module = Module::load();
        module.check_interface_list();
        assert_eq!(module.raw.initialize(CKF_OS_LOCKING_OK), CKR_OK);
        module.check_interface_list();
        assert_eq!(module.raw.finalize(), CKR_OK);
        module.check_interface_list();
    });
}

#[test]
fn every_function_returns_the_same_by_each_table_and_by_name() {
    with_card(ServiceKind::Socket, CardProfile::piv4(), |_| {
        let module = Module::load();
        let is_not_initialized = |(name, code): &(&str, CK_RV)| {
            assert_eq!(*code, CKR_CRYPTOKI_NOT_INITIALIZED, "{name}");
        };
        module.answers().iter().for_each(is_not_initialized);
        assert_eq!(module.raw.initialize(CKF_OS_LOCKING_OK), CKR_OK);
        for (name, code) in module.answers() {
            // Slot 0 is there once C_OpenSession has looked, and has no session.
            let may_succeed = name == "C_CloseAllSessions";
            assert!(code != CKR_OK || may_succeed, "{name}");
        }
        assert_eq!(module.raw.finalize(), CKR_OK);
        module.answers().iter().for_each(is_not_initialized);
    });
}

#[test]
fn module_reports_cryptoki_version_3_2() {
    with_card(ServiceKind::Socket, CardProfile::piv4(), |_| {
        let raw = FunctionList::load();
        assert_eq!(raw.initialize(CKF_OS_LOCKING_OK), CKR_OK);
        // SAFETY: all zeroes are a value of this type, of numbers and characters.
        let mut info: CK_INFO = unsafe { std::mem::zeroed() };
        assert_eq!(ck!(raw, C_GetInfo, &raw mut info), CKR_OK);
        let version = info.cryptokiVersion;
        assert_eq!((version.major, version.minor, info.flags), (3, 2, 0));
    });
}

#[test]
fn the_list_of_interfaces_follows_the_convention_for_lengths() {
    let module = Module::load();
    let mut count = CK_ULONG::MAX;
    let code = ck!(
        module.raw,
        C_GetInterfaceList,
        ptr::null_mut(),
        &raw mut count
    );
    assert_eq!((code, count), (CKR_OK, 3));
    for room in [0, 1, 2] {
        let (code, count, written) = module.list(room);
        assert_eq!((code, count), (CKR_BUFFER_TOO_SMALL, 3), "{room}");
        assert!(written.is_empty());
    }
    for room in [3, 9] {
        let (code, count, written) = module.list(room);
        assert_eq!((code, count, written.len()), (CKR_OK, 3, 3), "{room}");
    }
    let mut list = [NOTHING; 3];
    let code = ck!(
        module.raw,
        C_GetInterfaceList,
        list.as_mut_ptr(),
        ptr::null_mut()
    );
    assert_eq!(code, CKR_ARGUMENTS_BAD);
    assert!(list[0].pFunctionList.is_null());
}

#[test]
fn no_interface_is_found_by_another_name_version_or_flag() {
    let module = Module::load();
    let other_names = [
        c"",
        c"PKCS 1",
        c"PKCS 11 ",
        c"pkcs 11",
        c"PKCS\xA011",
        c"Vendor claviger",
    ];
    for name in other_names {
        assert_eq!(
            module.find(Some(name), None, 0).0,
            CKR_ARGUMENTS_BAD,
            "{name:?}"
        );
    }
    for version in [(0, 0), (2, 20), (2, 4), (3, 1), (3, 3), (40, 2), (255, 255)] {
        let (code, _) = module.find(None, Some(version), 0);
        assert_eq!(code, CKR_ARGUMENTS_BAD, "{version:?}");
    }
    for flags in [CKF_INTERFACE_FORK_SAFE, 2, CK_FLAGS::MAX] {
        assert_eq!(
            module.find(Some(NAME), None, flags).0,
            CKR_ARGUMENTS_BAD,
            "{flags:#X}"
        );
    }
}

#[test]
fn null_output_pointer_is_refused() {
    let module = Module::load();
    let (name, version, found) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
    let code = ck!(module.raw, C_GetInterface, name, version, found, 0);
    assert_eq!(code, CKR_ARGUMENTS_BAD);
    let code = ck!(module.raw, C_GetFunctionList, ptr::null_mut());
    assert_eq!(code, CKR_ARGUMENTS_BAD);
}

#[test]
fn function_outputs_may_be_unaligned() {
    let module = Module::load();
    let mut memory = [0u8; 1 + size_of::<usize>()];
    let odd = memory.as_mut_ptr().wrapping_add(1);
    let any = ptr::null_mut();
    let code = ck!(
        module.raw,
        C_GetInterface,
        any,
        ptr::null_mut(),
        odd.cast(),
        0
    );
    assert_eq!(code, CKR_OK);
    let found = usize::from_ne_bytes(memory[1..].try_into().unwrap());
    assert_eq!(found, module.find(None, None, 0).1.addr());
    let mut memory = [0u8; 1 + size_of::<CK_ULONG>()];
    let odd = memory.as_mut_ptr().wrapping_add(1);
    let code = ck!(module.raw, C_GetInterfaceList, ptr::null_mut(), odd.cast());
    assert_eq!((code, memory[1]), (CKR_OK, 3));
}

#[test]
fn interface_name_is_read_only_up_to_its_first_difference() {
    let module = Module::load();
    let mut page = Page::before_the_forbidden();
    let last = page.last_byte();
    *last = b'V';
    let mut found = ptr::null_mut();
    let code = ck!(
        module.raw,
        C_GetInterface,
        ptr::from_mut(last),
        ptr::null_mut(),
        &raw mut found,
        0
    );
    assert_eq!(code, CKR_ARGUMENTS_BAD);
}

#[test]
fn exactly_the_functions_of_cryptoki_are_exported() {
    let bytes = fs::read(paths::module_path()).unwrap();
    let module = object::File::parse(bytes.as_slice()).expect("an ELF file");
    let exports = module.exports().unwrap();
    let names = exports
        .iter()
        .map(|export| String::from_utf8_lossy(export.name()));
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    let mut expected = null_calls::NAMES.to_vec();
    expected.sort_unstable();
    assert_eq!(expected.len(), 104);
    assert_eq!(names, expected);
}

/// Other modules export the same names, and a program may load one for all to see.
#[test]
fn tables_hold_the_modules_own_functions_beside_another_module() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("another-module.so");
    fs::copy(paths::module_path(), &other).unwrap();
    let for_all_to_see = libc::RTLD_NOW | libc::RTLD_GLOBAL;
    // SAFETY: the module's initialisers only set up its own data.
    let other = unsafe { unix::Library::open(Some(&other), for_all_to_see) }.unwrap();
    let module = Module::load();
    let own = file_of(addresses(module.raw.list())[0]);
    assert_eq!(own, fs::canonicalize(paths::module_path()).unwrap());
    for address in addresses(module.raw.list()) {
        assert_eq!(file_of(*address), own);
    }
    drop(other);
}

/// The file that the code at an address was loaded from.
fn file_of(address: usize) -> PathBuf {
    // SAFETY: all zeroes are a value of this type, of numbers and pointers.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: the address is only looked up.
    let found = unsafe { libc::dladdr(ptr::without_provenance(address), &raw mut info) };
    assert_ne!(found, 0);
    // SAFETY: a string of the loader, which exists as long as the library.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    fs::canonicalize(name.to_str().unwrap()).unwrap()
}

/// A page of memory with one behind it that may not be touched.
struct Page(*mut u8);

const PAGE: usize = 4096;

impl Page {
    fn before_the_forbidden() -> Self {
        let (access, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: new memory, without another owner.
        let start = unsafe { libc::mmap(ptr::null_mut(), 2 * PAGE, access, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        // SAFETY: the second of the two pages.
        let forbidden =
            unsafe { libc::mprotect(start.wrapping_byte_add(PAGE), PAGE, libc::PROT_NONE) };
        assert_eq!(forbidden, 0);
        Self(start.cast())
    }

    fn last_byte(&mut self) -> &mut u8 {
        // SAFETY: within the page that may be touched.
        unsafe { &mut *self.0.wrapping_add(PAGE - 1) }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the memory was mapped here, and has no other owner.
        unsafe { libc::munmap(self.0.cast(), 2 * PAGE) };
    }
}
