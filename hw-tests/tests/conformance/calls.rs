//! Buffers, lengths and overlapping memory, by the function list.

use std::ptr;

use claviger_hw_tests::{
    ck,
    fixture::{
        function_list::FunctionList,
        module_process::{ModuleProcess, ServiceKind, with_card},
    },
    provision::{CardProfile, PIN},
};
use cryptoki_sys::{
    CK_ATTRIBUTE, CK_MECHANISM, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_SLOT_ID, CK_ULONG,
    CKA_CLASS, CKA_EC_PARAMS, CKA_ID, CKA_LABEL, CKA_MODULUS, CKA_VALUE, CKF_OS_LOCKING_OK,
    CKF_SERIAL_SESSION, CKM_ECDSA, CKM_ECDSA_SHA256, CKO_PRIVATE_KEY, CKR_ARGUMENTS_BAD,
    CKR_ATTRIBUTE_SENSITIVE, CKR_ATTRIBUTE_TYPE_INVALID, CKR_ATTRIBUTE_VALUE_INVALID,
    CKR_BUFFER_TOO_SMALL, CKR_OK, CKR_OPERATION_ACTIVE, CKR_OPERATION_NOT_INITIALIZED,
    CKR_PIN_INCORRECT, CKR_SESSION_HANDLE_INVALID, CKU_USER,
};

const NULL: *mut u8 = ptr::null_mut();

/// A logged-in session on the PIV token and its key 9A.
struct Client {
    raw: FunctionList,
    session: CK_SESSION_HANDLE,
    key: CK_OBJECT_HANDLE,
}

impl Client {
    fn new() -> Self {
        let raw = FunctionList::load();
        assert_eq!(raw.initialize(CKF_OS_LOCKING_OK), CKR_OK);
        let mut slots = [CK_SLOT_ID::MAX; 8];
        let mut count = slots.len() as CK_ULONG;
        assert_eq!(
            ck!(raw, C_GetSlotList, 1, slots.as_mut_ptr(), &raw mut count),
            CKR_OK
        );
        let mut session = 0;
        let opened = ck!(
            raw,
            C_OpenSession,
            slots[0],
            CKF_SERIAL_SESSION,
            ptr::null_mut(),
            None,
            &raw mut session
        );
        assert_eq!(opened, CKR_OK);
        let mut pin = PIN.as_bytes().to_vec();
        let login = ck!(
            raw,
            C_Login,
            session,
            CKU_USER,
            pin.as_mut_ptr(),
            pin.len() as CK_ULONG
        );
        assert_eq!(login, CKR_OK);
        let key = find(raw, session, 1);
        Self { raw, session, key }
    }

    fn sign_init(&self, mechanism: CK_ULONG) -> CK_ULONG {
        let mut mechanism = CK_MECHANISM {
            mechanism,
            pParameter: ptr::null_mut(),
            ulParameterLen: 0,
        };
        ck!(
            self.raw,
            C_SignInit,
            self.session,
            &raw mut mechanism,
            self.key
        )
    }

    fn sign(&self, data: *mut u8, len: usize, out: *mut u8, room: &mut CK_ULONG) -> CK_ULONG {
        ck!(
            self.raw,
            C_Sign,
            self.session,
            data,
            len as CK_ULONG,
            out,
            ptr::from_mut(room)
        )
    }

    fn attributes(&self, entries: &mut [CK_ATTRIBUTE]) -> CK_ULONG {
        let count = entries.len() as CK_ULONG;
        ck!(
            self.raw,
            C_GetAttributeValue,
            self.session,
            self.key,
            entries.as_mut_ptr(),
            count
        )
    }
}

fn find(raw: FunctionList, session: CK_SESSION_HANDLE, id: u8) -> CK_OBJECT_HANDLE {
    let mut class: CK_ULONG = CKO_PRIVATE_KEY;
    let mut id = [id];
    let mut template = [
        entry(CKA_CLASS, (&raw mut class).cast(), size_of::<CK_ULONG>()),
        entry(CKA_ID, id.as_mut_ptr(), 1),
    ];
    assert_eq!(
        ck!(raw, C_FindObjectsInit, session, template.as_mut_ptr(), 2),
        CKR_OK
    );
    let (mut key, mut count) = (0, 0);
    assert_eq!(
        ck!(raw, C_FindObjects, session, &raw mut key, 1, &raw mut count),
        CKR_OK
    );
    assert_eq!(count, 1);
    assert_eq!(ck!(raw, C_FindObjectsFinal, session), CKR_OK);
    key
}

fn entry(kind: CK_ULONG, value: *mut u8, len: usize) -> CK_ATTRIBUTE {
    CK_ATTRIBUTE {
        type_: kind,
        pValue: value.cast(),
        ulValueLen: len as CK_ULONG,
    }
}

fn on_piv(body: impl FnOnce(&ModuleProcess, &Client)) {
    with_card(ServiceKind::Socket, CardProfile::piv4(), |process| {
        body(process, &Client::new());
    });
}

#[test]
fn length_query_and_small_buffer_keep_the_operation_and_send_nothing() {
    on_piv(|process, client| {
        let mut data = [7u8; 32];
        let mut signature = [0u8; 64];
        assert_eq!(client.sign_init(CKM_ECDSA), CKR_OK);
        assert_eq!(client.sign_init(CKM_ECDSA), CKR_OPERATION_ACTIVE);
        let (apdus, ()) = process.apdus(|| {
            let mut len = 0;
            assert_eq!(client.sign(data.as_mut_ptr(), 32, NULL, &mut len), CKR_OK);
            assert_eq!(len, 64);
            let mut len = 63;
            let code = client.sign(data.as_mut_ptr(), 32, signature.as_mut_ptr(), &mut len);
            assert_eq!((code, len), (CKR_BUFFER_TOO_SMALL, 64));
            assert_eq!(signature, [0; 64]);
        });
        assert_eq!(apdus, 0);
        let mut len = 64;
        assert_eq!(
            client.sign(data.as_mut_ptr(), 32, signature.as_mut_ptr(), &mut len),
            CKR_OK
        );
        let again = client.sign(data.as_mut_ptr(), 32, signature.as_mut_ptr(), &mut len);
        assert_eq!(again, CKR_OPERATION_NOT_INITIALIZED);
    });
}

#[test]
fn the_signature_may_be_written_over_the_message() {
    on_piv(|_, client| {
        let mut memory = [9u8; 64];
        assert_eq!(client.sign_init(CKM_ECDSA_SHA256), CKR_OK);
        let mut len = 64;
        let place = memory.as_mut_ptr();
        assert_eq!(client.sign(place, 64, place, &mut len), CKR_OK);
        assert_eq!(len, 64);
        assert_ne!(memory, [9; 64]);
    });
}

#[test]
fn a_bad_message_ends_the_operation_and_touches_no_card() {
    on_piv(|process, client| {
        let mut signature = [0u8; 64];
        let (apdus, ()) = process.apdus(|| {
            for len in [1, usize::MAX] {
                assert_eq!(client.sign_init(CKM_ECDSA), CKR_OK);
                let mut room = 64;
                let code = client.sign(NULL, len, signature.as_mut_ptr(), &mut room);
                assert_eq!(code, CKR_ARGUMENTS_BAD);
            }
        });
        assert_eq!(apdus, 0);
    });
}

#[test]
fn every_template_entry_is_processed_whatever_happens_to_the_others() {
    on_piv(|_, client| {
        let mut label = [0u8; 64];
        let mut id = [0u8; 0];
        let mut entries = [
            entry(CKA_VALUE, NULL, 0),
            entry(CKA_MODULUS, NULL, 0),
            entry(CKA_LABEL, label.as_mut_ptr(), label.len()),
            entry(CKA_ID, id.as_mut_ptr(), 0),
            entry(CKA_EC_PARAMS, NULL, 0),
        ];
        assert_eq!(
            client.attributes(&mut entries[..1]),
            CKR_ATTRIBUTE_SENSITIVE
        );
        assert_eq!(
            client.attributes(&mut entries[1..2]),
            CKR_ATTRIBUTE_TYPE_INVALID
        );
        let code = client.attributes(&mut entries);
        assert!(
            [
                CKR_ATTRIBUTE_SENSITIVE,
                CKR_ATTRIBUTE_TYPE_INVALID,
                CKR_BUFFER_TOO_SMALL
            ]
            .contains(&code)
        );
        let lengths = entries.map(|entry| entry.ulValueLen);
        assert_eq!(
            lengths,
            [CK_ULONG::MAX, CK_ULONG::MAX, 12, CK_ULONG::MAX, 10]
        );
        assert_eq!(&label[..12], b"PIV AUTH key");
        assert_eq!(client.attributes(&mut []), CKR_OK);
        let nowhere = ck!(
            client.raw,
            C_GetAttributeValue,
            client.session,
            client.key,
            ptr::null_mut(),
            1
        );
        assert_eq!(nowhere, CKR_ARGUMENTS_BAD);
        let huge = ck!(
            client.raw,
            C_GetAttributeValue,
            client.session,
            client.key,
            entries.as_mut_ptr(),
            CK_ULONG::MAX
        );
        assert_eq!(huge, CKR_ARGUMENTS_BAD);
    });
}

#[test]
fn absurd_lengths_are_refused_without_copying() {
    on_piv(|process, client| {
        let mut memory = [b'1'; 4096];
        let huge = 1usize << 40;
        let mut template = [entry(CKA_LABEL, memory.as_mut_ptr(), huge)];
        let found = ck!(
            client.raw,
            C_FindObjectsInit,
            client.session,
            template.as_mut_ptr(),
            1
        );
        assert_eq!(found, CKR_ATTRIBUTE_VALUE_INVALID);
        assert_eq!(ck!(client.raw, C_Logout, client.session), CKR_OK);
        let (apdus, login) = process.apdus(|| {
            let pin = memory.as_mut_ptr();
            ck!(
                client.raw,
                C_Login,
                client.session,
                CKU_USER,
                pin,
                huge as CK_ULONG
            )
        });
        assert_eq!((apdus, login), (0, CKR_PIN_INCORRECT));
    });
}

#[test]
fn a_closed_session_is_no_session() {
    on_piv(|_, client| {
        assert_eq!(ck!(client.raw, C_CloseSession, client.session), CKR_OK);
        assert_eq!(
            ck!(client.raw, C_CloseSession, client.session),
            CKR_SESSION_HANDLE_INVALID
        );
        assert_eq!(client.sign_init(CKM_ECDSA), CKR_SESSION_HANDLE_INVALID);
        assert_eq!(
            ck!(client.raw, C_Logout, client.session),
            CKR_SESSION_HANDLE_INVALID
        );
    });
}
