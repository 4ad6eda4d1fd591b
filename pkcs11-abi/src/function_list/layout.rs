//! Checks the binary layout of the structures that a caller and this module exchange, at compile time.
//!
//! Unix aligns each field naturally. Windows packs the fields, and has a CK_ULONG of 4 bytes beside pointers of 8. Each
//! offset is compared with the structure of the target platform. The size on 64-bit Windows is computed from the same fields
//! on every platform.

use std::mem::offset_of;

use cryptoki_sys::{
    CK_ASYNC_DATA, CK_ATTRIBUTE, CK_C_INITIALIZE_ARGS, CK_DATE, CK_ECDH1_DERIVE_PARAMS,
    CK_EDDSA_PARAMS, CK_GCM_PARAMS, CK_INFO, CK_INTERFACE, CK_MECHANISM, CK_MECHANISM_INFO,
    CK_RSA_PKCS_OAEP_PARAMS, CK_RSA_PKCS_PSS_PARAMS, CK_SESSION_INFO, CK_SLOT_INFO, CK_TOKEN_INFO,
    CK_ULONG, CK_VERSION,
};

#[derive(Clone, Copy)]
enum Field {
    Bytes(usize),
    Ulong,
    Pointer,
}

use Field::{Bytes, Pointer, Ulong};

/// The sizes on the target platform.
const HERE: Platform = Platform {
    ulong: size_of::<CK_ULONG>(),
    pointer: size_of::<usize>(),
};
const WINDOWS_64: Platform = Platform {
    ulong: 4,
    pointer: 8,
};
const PACKED: bool = cfg!(windows);
const IS_LP64: bool = cfg!(all(unix, target_pointer_width = "64"));

struct Platform {
    ulong: usize,
    pointer: usize,
}

impl Platform {
    const fn size(&self, field: Field) -> usize {
        match field {
            Bytes(count) => count,
            Ulong => self.ulong,
            Pointer => self.pointer,
        }
    }
}

/// Returns the offset of a field on the target platform. `end` is the end of the field before it.
const fn field_offset(end: usize, field: Field) -> usize {
    match field {
        Bytes(_) => end,
        Ulong | Pointer if PACKED => end,
        Ulong | Pointer => end.next_multiple_of(HERE.size(field)),
    }
}

macro_rules! layouts {
    ($($structure:ident, $lp64:literal, $windows:literal: $($field:ident $kind:expr),*;)*) => {
        $(const _: () = {
            let mut end = 0;
            $(
                let at = field_offset(end, $kind);
                assert!(offset_of!($structure, $field) == at, stringify!($structure.$field));
                end = at + HERE.size($kind);
            )*
            let size = end.next_multiple_of(align_of::<$structure>());
            assert!(size_of::<$structure>() == size, stringify!($structure));
            assert!(!IS_LP64 || size == $lp64, stringify!($structure));
            assert!(0 $(+ WINDOWS_64.size($kind))* == $windows, stringify!($structure));
        };)*
    };
}

layouts! {
    CK_VERSION, 2, 2: major Bytes(1), minor Bytes(1);
    CK_INFO, 88, 72: cryptokiVersion Bytes(2), manufacturerID Bytes(32), flags Ulong, libraryDescription Bytes(32), libraryVersion Bytes(2);
    CK_SLOT_INFO, 112, 104: slotDescription Bytes(64), manufacturerID Bytes(32), flags Ulong, hardwareVersion Bytes(2), firmwareVersion Bytes(2);
    CK_TOKEN_INFO, 208, 160: label Bytes(32), manufacturerID Bytes(32), model Bytes(16), serialNumber Bytes(16), flags Ulong,
        ulMaxSessionCount Ulong, ulSessionCount Ulong, ulMaxRwSessionCount Ulong, ulRwSessionCount Ulong, ulMaxPinLen Ulong, ulMinPinLen Ulong,
        ulTotalPublicMemory Ulong, ulFreePublicMemory Ulong, ulTotalPrivateMemory Ulong, ulFreePrivateMemory Ulong,
        hardwareVersion Bytes(2), firmwareVersion Bytes(2), utcTime Bytes(16);
    CK_SESSION_INFO, 32, 16: slotID Ulong, state Ulong, flags Ulong, ulDeviceError Ulong;
    CK_ATTRIBUTE, 24, 16: type_ Ulong, pValue Pointer, ulValueLen Ulong;
    CK_MECHANISM, 24, 16: mechanism Ulong, pParameter Pointer, ulParameterLen Ulong;
    CK_MECHANISM_INFO, 24, 12: ulMinKeySize Ulong, ulMaxKeySize Ulong, flags Ulong;
    CK_DATE, 8, 8: year Bytes(4), month Bytes(2), day Bytes(2);
    CK_C_INITIALIZE_ARGS, 48, 44: CreateMutex Pointer, DestroyMutex Pointer, LockMutex Pointer, UnlockMutex Pointer, flags Ulong, pReserved Pointer;
    CK_INTERFACE, 24, 20: pInterfaceName Pointer, pFunctionList Pointer, flags Ulong;
    CK_ASYNC_DATA, 40, 24: ulVersion Ulong, pValue Pointer, ulValue Ulong, hObject Ulong, hAdditionalObject Ulong;
    CK_RSA_PKCS_OAEP_PARAMS, 40, 24: hashAlg Ulong, mgf Ulong, source Ulong, pSourceData Pointer, ulSourceDataLen Ulong;
    CK_RSA_PKCS_PSS_PARAMS, 24, 12: hashAlg Ulong, mgf Ulong, sLen Ulong;
    CK_ECDH1_DERIVE_PARAMS, 40, 28: kdf Ulong, ulSharedDataLen Ulong, pSharedData Pointer, ulPublicDataLen Ulong, pPublicData Pointer;
    CK_EDDSA_PARAMS, 24, 13: phFlag Bytes(1), ulContextDataLen Ulong, pContextData Pointer;
    CK_GCM_PARAMS, 48, 32: pIv Pointer, ulIvLen Ulong, ulIvBits Ulong, pAAD Pointer, ulAADLen Ulong, ulTagBits Ulong;
}

/// Asserts the layout of a function table: the version, then one pointer after the other at `offsets`, and nothing after
/// them.
pub(super) const fn assert_table(size: usize, sizes: &Sizes, mut offsets: &[usize]) {
    let count = offsets.len();
    assert!(count == sizes.functions, "the standard's number");
    let mut end = size_of::<CK_VERSION>();
    while let [offset, rest @ ..] = offsets {
        let at = field_offset(end, Pointer);
        assert!(*offset == at, "the standard's order");
        end = at + HERE.size(Pointer);
        offsets = rest;
    }
    assert!(size == end, "nothing behind the last function");
    assert!(!IS_LP64 || size == sizes.lp64);
    assert!(size_of::<CK_VERSION>() + count * WINDOWS_64.pointer == sizes.windows);
}

/// The number of functions in a table, and the table's size in bytes on 64-bit Unix and on 64-bit Windows.
pub(super) struct Sizes {
    pub(super) functions: usize,
    pub(super) lp64: usize,
    pub(super) windows: usize,
}
