//! A logged-in session with a key that signs, by the bare function list: each call's own code counts.

use std::ptr;

use claviger_hw_tests::provision::{KeyAlgorithm, PIN, PivPlan, Plan};
use cryptoki_sys::{
    CK_ATTRIBUTE, CK_MECHANISM, CK_MECHANISM_TYPE, CK_OBJECT_CLASS, CK_OBJECT_HANDLE, CK_RV,
    CK_SESSION_HANDLE, CK_SESSION_INFO, CK_SLOT_ID, CK_ULONG, CKA_CLASS, CKM_ECDSA, CKM_RSA_PKCS,
    CKO_PRIVATE_KEY, CKR_OK, CKU_USER,
};

use super::raw::Raw;
use crate::ck;

/// Longest signature: RSA-2048.
const SIGNATURE: usize = 256;

/// A card for it: one key that signs in milliseconds.
pub fn plan() -> Plan {
    Plan::piv(PivPlan::authentication(KeyAlgorithm::P256))
}

/// A card whose key takes a command of two frames, and answers in two.
pub fn chaining_plan() -> Plan {
    Plan::piv(PivPlan::authentication(KeyAlgorithm::Rsa2048)).plain()
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
        assert_eq!(log_in(raw, session), CKR_OK, "C_Login");
        let key = find(raw, session, CKO_PRIVATE_KEY).expect("C_FindObjects");
        Self { raw, session, key }
    }

    /// C_SignInit and C_Sign with ECDSA: the first code that is not CKR_OK.
    pub fn sign(&self) -> CK_RV {
        self.sign_by(CKM_ECDSA)
    }

    /// The same with PKCS #1 v1.5.
    pub fn sign_by_rsa(&self) -> CK_RV {
        self.sign_by(CKM_RSA_PKCS)
    }

    fn sign_by(&self, mechanism: CK_MECHANISM_TYPE) -> CK_RV {
        let mut mechanism = CK_MECHANISM {
            mechanism,
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
        assert!(code != CKR_OK || [64, 256].contains(&len));
        code
    }

    /// C_GetSessionInfo: the code.
    pub fn info(&self) -> CK_RV {
        session_info(self.raw, self.session)
    }

    /// A search for the key, from beginning to end: the first code that is not CKR_OK.
    pub fn find(&self) -> CK_RV {
        let found = find(self.raw, self.session, CKO_PRIVATE_KEY);
        found.err().unwrap_or(CKR_OK)
    }
}

/// C_GetSessionInfo: the code.
pub fn session_info(raw: Raw, session: CK_SESSION_HANDLE) -> CK_RV {
    let mut info = CK_SESSION_INFO::default();
    ck!(raw, C_GetSessionInfo, session, &raw mut info)
}

/// C_Login of the user: the code.
pub fn log_in(raw: Raw, session: CK_SESSION_HANDLE) -> CK_RV {
    let len = PIN.len() as CK_ULONG;
    ck!(
        raw,
        C_Login,
        session,
        CKU_USER,
        PIN.as_ptr().cast_mut(),
        len
    )
}

/// The first object of a class, or the code of the call that failed.
pub fn find(
    raw: Raw,
    session: CK_SESSION_HANDLE,
    mut class: CK_OBJECT_CLASS,
) -> Result<CK_OBJECT_HANDLE, CK_RV> {
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
    assert_eq!(count, 1, "one of that class");
    Ok(key)
}
