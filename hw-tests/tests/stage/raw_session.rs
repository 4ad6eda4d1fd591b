//! One session by the bare function list: login, search, signature.

use std::ptr;

use claviger_hw_tests::provision::PIN;
use cryptoki_sys::{
    CK_ATTRIBUTE, CK_MECHANISM, CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE, CK_SLOT_ID, CK_ULONG,
    CKA_CLASS, CKA_ID, CKF_SERIAL_SESSION, CKM_ECDSA, CKO_PRIVATE_KEY, CKR_OK, CKU_USER,
};

use super::raw::Raw;
use crate::ck;

/// What is signed.
const HASH: [u8; 32] = [0x5F; 32];

#[derive(Clone, Copy)]
pub struct RawSession {
    pub raw: Raw,
    pub handle: CK_SESSION_HANDLE,
}

impl RawSession {
    /// On the first token there is.
    #[track_caller]
    pub fn open(raw: Raw) -> Self {
        let mut slots = [CK_SLOT_ID::MAX; 8];
        let mut count = slots.len() as CK_ULONG;
        let listed = ck!(raw, C_GetSlotList, 1, slots.as_mut_ptr(), &raw mut count);
        assert_eq!(listed, CKR_OK, "C_GetSlotList");
        assert!(count > 0, "no token");
        let mut handle = 0;
        let nobody = ptr::null_mut();
        let flags = CKF_SERIAL_SESSION;
        let opened = ck!(
            raw,
            C_OpenSession,
            slots[0],
            flags,
            nobody,
            None,
            &raw mut handle
        );
        assert_eq!(opened, CKR_OK, "C_OpenSession");
        Self { raw, handle }
    }

    /// As [`RawSession::open`], with the user logged in.
    #[track_caller]
    pub fn logged_in(raw: Raw) -> Self {
        let session = Self::open(raw);
        assert_eq!(session.log_in(), CKR_OK, "C_Login");
        session
    }

    pub fn log_in(&self) -> CK_RV {
        let mut pin = PIN.as_bytes().to_vec();
        let len = pin.len() as CK_ULONG;
        ck!(
            self.raw,
            C_Login,
            self.handle,
            CKU_USER,
            pin.as_mut_ptr(),
            len
        )
    }

    #[track_caller]
    pub fn close(self) {
        let closed = ck!(self.raw, C_CloseSession, self.handle);
        assert_eq!(closed, CKR_OK, "C_CloseSession");
    }

    /// Begins a search for the private key with this id.
    #[track_caller]
    pub fn begin_search(&self, id: u8) {
        let (mut class, mut id): (CK_ULONG, u8) = (CKO_PRIVATE_KEY, id);
        let mut template = [attribute(CKA_CLASS, &mut class), attribute(CKA_ID, &mut id)];
        let begun = ck!(
            self.raw,
            C_FindObjectsInit,
            self.handle,
            template.as_mut_ptr(),
            2
        );
        assert_eq!(begun, CKR_OK, "C_FindObjectsInit");
    }

    /// What the search found; it is over then.
    #[track_caller]
    pub fn end_search(&self) -> Option<CK_OBJECT_HANDLE> {
        let (mut object, mut count) = (0, 0);
        let found = ck!(
            self.raw,
            C_FindObjects,
            self.handle,
            &raw mut object,
            1,
            &raw mut count
        );
        assert_eq!(found, CKR_OK, "C_FindObjects");
        let ended = ck!(self.raw, C_FindObjectsFinal, self.handle);
        assert_eq!(ended, CKR_OK, "C_FindObjectsFinal");
        (count == 1).then_some(object)
    }

    /// The private key with this id.
    #[track_caller]
    pub fn key(&self, id: u8) -> CK_OBJECT_HANDLE {
        self.begin_search(id);
        self.end_search().expect("a private key")
    }

    #[track_caller]
    pub fn begin_signature(&self, key: CK_OBJECT_HANDLE) {
        let mut mechanism = CK_MECHANISM {
            mechanism: CKM_ECDSA,
            pParameter: ptr::null_mut(),
            ulParameterLen: 0,
        };
        let begun = ck!(self.raw, C_SignInit, self.handle, &raw mut mechanism, key);
        assert_eq!(begun, CKR_OK, "C_SignInit");
    }

    /// The signature is one of P-256.
    #[track_caller]
    pub fn end_signature(&self) {
        let (mut hash, mut signature, mut len) = (HASH, [0; 64], 64);
        let signed = ck!(
            self.raw,
            C_Sign,
            self.handle,
            hash.as_mut_ptr(),
            32,
            signature.as_mut_ptr(),
            &raw mut len
        );
        assert_eq!((signed, len), (CKR_OK, 64), "C_Sign");
        assert_ne!(signature, [0; 64]);
    }

    #[track_caller]
    pub fn sign(&self, key: CK_OBJECT_HANDLE) {
        self.begin_signature(key);
        self.end_signature();
    }
}

fn attribute<T>(kind: CK_ULONG, value: &mut T) -> CK_ATTRIBUTE {
    CK_ATTRIBUTE {
        type_: kind,
        pValue: ptr::from_mut(value).cast(),
        ulValueLen: size_of::<T>() as CK_ULONG,
    }
}
