//! A logged-in session with a key that signs, by the bare function list: each call's own code counts.

use std::ptr;

use claviger_hw_tests::provision::{KeyAlgorithm, PIN, PivPlan, Plan};
use cryptoki_sys::{
    CK_ATTRIBUTE, CK_MECHANISM, CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE, CK_SESSION_INFO,
    CK_SLOT_ID, CK_ULONG, CKA_CLASS, CKM_ECDSA, CKO_PRIVATE_KEY, CKR_OK, CKU_USER,
};

use super::raw::Raw;
use crate::ck;

/// The length of a P-256 signature.
const SIGNATURE: usize = 64;

/// A card for it: one key that signs in milliseconds.
pub fn plan() -> Plan {
    Plan::piv(PivPlan::authentication(KeyAlgorithm::P256))
}

/// A session and the first private key of its token.
#[derive(Clone, Copy)]
pub struct Signer {
    raw: Raw,
    pub session: CK_SESSION_HANDLE,
    key: CK_OBJECT_HANDLE,
}

impl Signer {
    /// Opens a session on `slot`, logs the user in and finds the key.
    #[track_caller]
    pub fn log_in(raw: Raw, slot: CK_SLOT_ID) -> Self {
        let (code, session) = raw.open(slot);
        assert_eq!(code, CKR_OK, "C_OpenSession");
        let pin = PIN.as_ptr().cast_mut();
        let len = PIN.len() as CK_ULONG;
        assert_eq!(ck!(raw, C_Login, session, CKU_USER, pin, len), CKR_OK);
        let key = find(raw, session).expect("C_FindObjects");
        Self { raw, session, key }
    }

    /// C_SignInit and C_Sign: the first code that is not CKR_OK.
    pub fn sign(&self) -> CK_RV {
        let mut mechanism = CK_MECHANISM {
            mechanism: CKM_ECDSA,
            pParameter: ptr::null_mut(),
            ulParameterLen: 0,
        };
        let Self { raw, session, key } = *self;
        match ck!(raw, C_SignInit, session, &raw mut mechanism, key) {
            CKR_OK => self.finish(),
            code => code,
        }
    }

    fn finish(&self) -> CK_RV {
        let (mut hash, mut signature) = ([0x5A_u8; 32], [0_u8; SIGNATURE]);
        let mut len = SIGNATURE as CK_ULONG;
        let (hash, signature) = (&raw mut hash, &raw mut signature);
        let code = ck!(
            self.raw,
            C_Sign,
            self.session,
            hash.cast(),
            32,
            signature.cast(),
            &raw mut len
        );
        assert!(code != CKR_OK || len == SIGNATURE as CK_ULONG);
        code
    }

    /// C_GetSessionInfo: the code.
    pub fn info(&self) -> CK_RV {
        session_info(self.raw, self.session)
    }

    /// A search for the key, from beginning to end: the first code that is not CKR_OK.
    pub fn find(&self) -> CK_RV {
        find(self.raw, self.session).err().unwrap_or(CKR_OK)
    }
}

/// C_GetSessionInfo: the code.
pub fn session_info(raw: Raw, session: CK_SESSION_HANDLE) -> CK_RV {
    let mut info = CK_SESSION_INFO::default();
    ck!(raw, C_GetSessionInfo, session, &raw mut info)
}

/// The first private key, or the code of the call that failed.
fn find(raw: Raw, session: CK_SESSION_HANDLE) -> Result<CK_OBJECT_HANDLE, CK_RV> {
    let mut class = CKO_PRIVATE_KEY;
    let mut template = [CK_ATTRIBUTE {
        type_: CKA_CLASS,
        pValue: (&raw mut class).cast(),
        ulValueLen: size_of_val(&class) as CK_ULONG,
    }];
    let ok = |code| if code == CKR_OK { Ok(()) } else { Err(code) };
    ok(ck!(
        raw,
        C_FindObjectsInit,
        session,
        template.as_mut_ptr(),
        1
    ))?;
    let (mut key, mut count) = (0, 0);
    ok(ck!(
        raw,
        C_FindObjects,
        session,
        &raw mut key,
        1,
        &raw mut count
    ))?;
    ok(ck!(raw, C_FindObjectsFinal, session))?;
    assert_eq!(count, 1, "a private key");
    Ok(key)
}
