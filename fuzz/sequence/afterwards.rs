//! What must work after every sequence, and what is asked of the module beside it; nothing here is hostile.

use std::ptr;

use cryptoki_sys::*;

use super::SequenceFixture;

/// Calls a function of the table.
macro_rules! ck {
    ($fixture:expr, $function:ident $(, $argument:expr)*) => {{
        let function = $fixture.list.$function.expect("every slot of the table is filled");
        // SAFETY: each pointer is null or to live memory of the length that is said with it.
        unsafe { function($($argument),*) }
    }};
}

const MESSAGE: [u8; 32] = [0x3C; 32];
const ROOM: usize = 512;

#[track_caller]
fn ok(function: &str, code: CK_RV) {
    assert_eq!(code, CKR_OK, "{function} after a sequence");
}

fn entry<T>(kind: CK_ATTRIBUTE_TYPE, value: &mut T) -> CK_ATTRIBUTE {
    CK_ATTRIBUTE {
        type_: kind,
        pValue: ptr::from_mut(value).cast(),
        ulValueLen: size_of::<T>() as CK_ULONG,
    }
}

impl SequenceFixture {
    /// C_Finalize, if it was not called yet.
    pub(crate) fn finalize(self) {
        let code = ck!(self, C_Finalize, ptr::null_mut());
        let ends = [CKR_OK, CKR_CRYPTOKI_NOT_INITIALIZED].contains(&code);
        assert!(ends, "C_Finalize: {code:#X}");
    }

    /// A new generation of the module on cards that respond correctly: search, login, signature.
    pub(crate) fn works_afterwards(self) {
        ok("C_Initialize", ck!(self, C_Initialize, ptr::null_mut()));
        let (mut slots, mut count) = ([0; 8], 8);
        ok(
            "C_GetSlotList",
            ck!(self, C_GetSlotList, 1, slots.as_mut_ptr(), &raw mut count),
        );
        assert!(count > 0, "no token after a sequence");
        for slot in &slots[..count as usize] {
            self.visit(*slot);
        }
        ok("C_Finalize", ck!(self, C_Finalize, ptr::null_mut()));
    }

    fn visit(self, slot: CK_SLOT_ID) {
        let session = self.open(slot).expect("C_OpenSession after a sequence");
        let (pin, len) = (self.pin.as_ptr().cast_mut(), self.pin.len() as CK_ULONG);
        ok("C_Login", ck!(self, C_Login, session, CKU_USER, pin, len));
        assert!(
            !self.all(session, &mut []).is_empty(),
            "no objects after a sequence"
        );
        let (mut class, mut yes, mut no) = (CKO_PRIVATE_KEY, CK_TRUE, CK_FALSE);
        let mut signers = [
            entry(CKA_CLASS, &mut class),
            entry(CKA_SIGN, &mut yes),
            entry(CKA_ALWAYS_AUTHENTICATE, &mut no),
        ];
        let signers = self.all(session, &mut signers);
        let key = *signers.first().expect("a key that signs");
        self.sign(session, key);
        ok("C_Logout", ck!(self, C_Logout, session));
        ok("C_CloseSession", ck!(self, C_CloseSession, session));
    }

    fn sign(self, session: CK_SESSION_HANDLE, key: CK_OBJECT_HANDLE) {
        let mut mechanism = CK_MECHANISM {
            mechanism: match self.nature(session as usize, key as usize).1 {
                CKK_RSA => CKM_SHA256_RSA_PKCS,
                CKK_EC => CKM_ECDSA_SHA256,
                _ => CKM_EDDSA,
            },
            pParameter: ptr::null_mut(),
            ulParameterLen: 0,
        };
        let message = MESSAGE.as_ptr().cast_mut();
        let (mut signature, mut len) = ([0_u8; ROOM], ROOM as CK_ULONG);
        ok(
            "C_SignInit",
            ck!(self, C_SignInit, session, &raw mut mechanism, key),
        );
        let place = signature.as_mut_ptr();
        ok(
            "C_Sign",
            ck!(self, C_Sign, session, message, 32, place, &raw mut len),
        );
        if let Some(public) = self.public_of(session, key) {
            ok(
                "C_VerifyInit",
                ck!(self, C_VerifyInit, session, &raw mut mechanism, public),
            );
            let code = ck!(self, C_Verify, session, message, 32, place, len);
            assert_eq!(
                code == CKR_OK,
                self.signs,
                "C_Verify after a sequence: {code:#X}"
            );
        }
    }

    fn public_of(
        self,
        session: CK_SESSION_HANDLE,
        key: CK_OBJECT_HANDLE,
    ) -> Option<CK_OBJECT_HANDLE> {
        let (mut class, mut id) = (CKO_PUBLIC_KEY, [0_u8; 64]);
        let mut asked = entry(CKA_ID, &mut id);
        ok(
            "C_GetAttributeValue",
            ck!(self, C_GetAttributeValue, session, key, &raw mut asked, 1),
        );
        let found = self.all(session, &mut [entry(CKA_CLASS, &mut class), asked]);
        found.first().copied()
    }

    fn open(self, slot: CK_SLOT_ID) -> Option<CK_SESSION_HANDLE> {
        let (mut session, nobody) = (0, ptr::null_mut());
        let flags = CKF_SERIAL_SESSION | CKF_RW_SESSION;
        let code = ck!(
            self,
            C_OpenSession,
            slot,
            flags,
            nobody,
            None,
            &raw mut session
        );
        (code == CKR_OK).then_some(session)
    }

    fn all(self, session: CK_SESSION_HANDLE, wanted: &mut [CK_ATTRIBUTE]) -> Vec<CK_OBJECT_HANDLE> {
        let (mut found, mut count) = ([0; 128], 0);
        let number = wanted.len() as CK_ULONG;
        let code = ck!(
            self,
            C_FindObjectsInit,
            session,
            wanted.as_mut_ptr(),
            number
        );
        if code != CKR_OK {
            return Vec::new();
        }
        let list = found.as_mut_ptr();
        ok(
            "C_FindObjects",
            ck!(self, C_FindObjects, session, list, 128, &raw mut count),
        );
        ok("C_FindObjectsFinal", ck!(self, C_FindObjectsFinal, session));
        found[..count as usize].to_vec()
    }

    /// CKA_CLASS and CKA_KEY_TYPE of an object; what it has not is the largest number.
    pub(crate) fn nature(self, session: usize, object: usize) -> (CK_OBJECT_CLASS, CK_KEY_TYPE) {
        let (mut class, mut key_type) = (CK_ULONG::MAX, CK_ULONG::MAX);
        let mut template = [
            entry(CKA_CLASS, &mut class),
            entry(CKA_KEY_TYPE, &mut key_type),
        ];
        let (session, object) = (session as CK_SESSION_HANDLE, object as CK_OBJECT_HANDLE);
        let list = template.as_mut_ptr();
        let _ = ck!(self, C_GetAttributeValue, session, object, list, 2);
        (class, key_type)
    }

    /// All objects of a token that are seen now, each with its handle, label, flags and size; `None` without a session.
    pub(crate) fn census(self, slot: usize) -> Option<Vec<Vec<u8>>> {
        let session = self.open(slot as CK_SLOT_ID)?;
        let mut objects: Vec<Vec<u8>> = self
            .all(session, &mut [])
            .into_iter()
            .map(|object| self.portrait(session, object))
            .collect();
        objects.sort();
        ok("C_CloseSession", ck!(self, C_CloseSession, session));
        Some(objects)
    }

    fn portrait(self, session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE) -> Vec<u8> {
        let (mut label, mut size) = ([0_u8; 256], 0);
        let mut asked = entry(CKA_LABEL, &mut label);
        let _ = ck!(
            self,
            C_GetAttributeValue,
            session,
            object,
            &raw mut asked,
            1
        );
        let _ = ck!(self, C_GetObjectSize, session, object, &raw mut size);
        [
            &object.to_ne_bytes()[..],
            &size.to_ne_bytes()[..],
            &label[..],
        ]
        .concat()
    }
}
