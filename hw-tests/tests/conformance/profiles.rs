//! The test flows of Cryptoki Profiles 3.2: Baseline, Extended, Authentication Token, Public Certificates Token.

use std::{fs, mem::MaybeUninit, process::Command, ptr};

use claviger_hw_tests::{
    ck,
    fixture::{
        card_fixture::CardFixture,
        card_profiles,
        function_list::FunctionList,
        module_process::{ModuleProcess, ServiceKind, in_module_process},
        token_fixture::{TokenFixture, plain},
    },
    for_each_card,
    provision::{CardProfile, PIN},
};
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ProfileIdType};
use cryptoki_sys::{
    CK_ATTRIBUTE, CK_FLAGS, CK_INFO, CK_MECHANISM_INFO, CK_OBJECT_HANDLE, CK_SESSION_HANDLE,
    CK_SLOT_ID, CK_ULONG, CKA_CLASS, CKA_LABEL, CKA_MODULUS, CKA_PUBLIC_EXPONENT, CKA_TOKEN,
    CKA_VALUE, CKF_DIGEST, CKF_RW_SESSION, CKF_SERIAL_SESSION, CKM_RSA_PKCS,
    CKM_RSA_PKCS_KEY_PAIR_GEN, CKM_SHA256_RSA_PKCS, CKM_SHA512, CKO_PRIVATE_KEY, CKO_PUBLIC_KEY,
    CKR_MECHANISM_INVALID, CKR_OK, CKU_USER,
};

for_each_card! { [piv openpgp piv_rsa openpgp_rsa] [
    the_profiles_that_are_true_are_claimed
    profile_objects_are_found_without_login
    baseline
    extended
    public_certificates_token
] }

#[test]
fn authentication_token_on_piv() {
    let labels = "\"PIV AUTH pubkey\" = \"testrsa-pub\"\n\"PIV AUTH key\" = \"testrsa-pri\"\n";
    authentication(card_profiles::piv_rsa(), labels);
}

/// Both halves of a key have one label there; the objects are named by CKA_UNIQUE_ID.
#[test]
fn authentication_token_on_openpgp() {
    authentication(
        card_profiles::openpgp_rsa(),
        "\"2-3\" = \"testrsa-pub\"\n\"3-3\" = \"testrsa-pri\"\n",
    );
}

const CLAIMED: [ProfileIdType; 4] = [
    ProfileIdType::BASELINE_PROFIDER,
    ProfileIdType::EXTENDED_PROFIDER,
    ProfileIdType::AUTHENTICATION_TOKEN,
    ProfileIdType::PUBLIC_CERTIFICATES_TOKEN,
];

fn the_profiles_that_are_true_are_claimed(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    for profile in CLAIMED {
        let template = [
            Attribute::Class(ObjectClass::PROFILE),
            Attribute::ProfileId(profile),
        ];
        let found = session.find_objects(&template).expect("a search");
        assert_eq!(found.len(), 1, "{profile:?}");
    }
    let all = session.all(ObjectClass::PROFILE);
    assert_eq!(all.len(), CLAIMED.len(), "and nothing else");
}

/// As NSS asks for them: objects of the token.
fn profile_objects_are_found_without_login(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    let template = [
        Attribute::Token(true),
        Attribute::Class(ObjectClass::PROFILE),
    ];
    let found = fixture.silently(|| session.find_objects(&template).expect("a search"));
    assert_eq!(found.len(), CLAIMED.len());
    for object in found {
        let kinds = [AttributeType::Private, AttributeType::UniqueId];
        let result = session.get_attributes(object, &kinds).unwrap();
        assert_eq!(result[0], Attribute::Private(false));
        assert_eq!(result.len(), 2);
    }
}

/// A flow: what all of them begin and end with.
struct Flow {
    raw: FunctionList,
    slot: CK_SLOT_ID,
}

impl Flow {
    /// C_Initialize without arguments, C_GetInfo, C_GetSlotList twice.
    fn begin(raw: FunctionList) -> Self {
        assert_eq!(ck!(raw, C_Initialize, ptr::null_mut()), CKR_OK);
        let mut info = MaybeUninit::<CK_INFO>::zeroed();
        assert_eq!(ck!(raw, C_GetInfo, info.as_mut_ptr()), CKR_OK);
        // SAFETY: all zeroes are a value of this type, of numbers and characters.
        let info = unsafe { info.assume_init() };
        let version = info.cryptokiVersion;
        assert_eq!((version.major, version.minor, info.flags), (3, 2, 0));
        let slots = raw.slots(true);
        assert!(!slots.is_empty());
        Self {
            raw,
            slot: slots[0],
        }
    }

    /// The module is initialised already: the flow wants it before that.
    fn after(fixture: &TokenFixture<'_>) -> Self {
        assert_eq!(fixture.raw.finalize(), CKR_OK);
        Self::begin(fixture.raw)
    }

    fn open(&self, flags: CK_FLAGS) -> CK_SESSION_HANDLE {
        let (flags, null, mut session) = (flags | CKF_SERIAL_SESSION, ptr::null_mut(), 0);
        let code = ck!(
            self.raw,
            C_OpenSession,
            self.slot,
            flags,
            null,
            None,
            &raw mut session
        );
        assert_eq!(code, CKR_OK);
        session
    }

    fn log_in(&self, session: CK_SESSION_HANDLE) {
        let (pin, len) = (PIN.as_ptr().cast_mut(), PIN.len() as CK_ULONG);
        assert_eq!(ck!(self.raw, C_Login, session, CKU_USER, pin, len), CKR_OK);
    }

    /// C_FindObjectsInit and C_FindObjects; the search stays open.
    fn find(
        &self,
        session: CK_SESSION_HANDLE,
        template: &mut [CK_ATTRIBUTE],
        max: usize,
    ) -> Vec<CK_OBJECT_HANDLE> {
        let (list, len) = (template.as_mut_ptr(), template.len() as CK_ULONG);
        assert_eq!(ck!(self.raw, C_FindObjectsInit, session, list, len), CKR_OK);
        let (mut found, mut count) = (vec![0; max], 0);
        let list = found.as_mut_ptr();
        let code = ck!(
            self.raw,
            C_FindObjects,
            session,
            list,
            max as CK_ULONG,
            &raw mut count
        );
        assert_eq!(code, CKR_OK);
        found.truncate(count as usize);
        found
    }

    fn end_search(&self, session: CK_SESSION_HANDLE) {
        assert_eq!(ck!(self.raw, C_FindObjectsFinal, session), CKR_OK);
    }

    /// C_CloseSession, C_CloseAllSessions with none open, C_Finalize.
    fn end(self, session: CK_SESSION_HANDLE) {
        assert_eq!(ck!(self.raw, C_CloseSession, session), CKR_OK);
        assert_eq!(ck!(self.raw, C_CloseAllSessions, self.slot), CKR_OK);
        assert_eq!(self.raw.finalize(), CKR_OK);
    }
}

fn entry<T: ?Sized>(kind: CK_ULONG, value: &mut T) -> CK_ATTRIBUTE {
    CK_ATTRIBUTE {
        type_: kind,
        ulValueLen: size_of_val(value) as CK_ULONG,
        pValue: ptr::from_mut(value).cast(),
    }
}

/// BL-M-1-32.
fn baseline(fixture: &TokenFixture<'_>) {
    let flow = Flow::after(fixture);
    assert_eq!(flow.raw.slot_info(flow.slot).0, CKR_OK);
    assert_eq!(flow.raw.token_info(flow.slot), CKR_OK);
    let session = flow.open(0);
    let mut yes = 1_u8;
    let found = flow.find(session, &mut [entry(CKA_TOKEN, &mut yes)], 1);
    assert!(found.len() <= 1);
    flow.end_search(session);
    flow.end(session);
}

/// EXT-M-1-32.
fn extended(fixture: &TokenFixture<'_>) {
    let flow = Flow::after(fixture);
    assert_eq!(flow.raw.slot_info(flow.slot).0, CKR_OK);
    assert_eq!(flow.raw.token_info(flow.slot), CKR_OK);
    let (mut list, mut count) = (vec![0; 200], 0);
    let null = ptr::null_mut();
    let code = ck!(
        flow.raw,
        C_GetMechanismList,
        flow.slot,
        null,
        &raw mut count
    );
    assert_eq!(code, CKR_OK);
    let room = list.as_mut_ptr();
    let code = ck!(
        flow.raw,
        C_GetMechanismList,
        flow.slot,
        room,
        &raw mut count
    );
    assert_eq!(code, CKR_OK);
    let info = |mechanism| {
        let mut info = CK_MECHANISM_INFO::default();
        let code = ck!(
            flow.raw,
            C_GetMechanismInfo,
            flow.slot,
            mechanism,
            &raw mut info
        );
        (code, info)
    };
    let (code, sha512) = info(CKM_SHA512);
    assert_eq!(code, CKR_OK);
    assert_eq!(
        (sha512.ulMinKeySize, sha512.ulMaxKeySize, sha512.flags),
        (0, 0, CKF_DIGEST)
    );
    // What the token cannot do is not on its list: number and order of mechanisms may vary.
    assert!([CKR_OK, CKR_MECHANISM_INVALID].contains(&info(CKM_RSA_PKCS_KEY_PAIR_GEN).0));
    assert_eq!(info(CKM_RSA_PKCS).0, CKR_OK);
    let session = flow.open(CKF_RW_SESSION);
    flow.log_in(session);
    let mut yes = 1_u8;
    assert_eq!(
        flow.find(session, &mut [entry(CKA_TOKEN, &mut yes)], 1)
            .len(),
        1
    );
    flow.end_search(session);
    assert_eq!(ck!(flow.raw, C_Logout, session), CKR_OK);
    flow.end(session);
}

/// CERT-M-1-32: lengths and values while the search is open.
fn public_certificates_token(fixture: &TokenFixture<'_>) {
    let flow = Flow::after(fixture);
    let session = flow.open(0);
    let (mut yes, mut certificates) = (1_u8, 0);
    let found = flow.find(session, &mut [entry(CKA_TOKEN, &mut yes)], 5);
    assert!(!found.is_empty());
    for object in found {
        let ask = |kind| CK_ATTRIBUTE {
            type_: kind,
            pValue: ptr::null_mut(),
            ulValueLen: 0,
        };
        let mut template = [ask(CKA_LABEL), ask(CKA_VALUE)];
        let list = template.as_mut_ptr();
        if ck!(flow.raw, C_GetAttributeValue, session, object, list, 2) != CKR_OK {
            continue;
        }
        let mut label = vec![0_u8; template[0].ulValueLen as usize];
        let mut value = vec![0_u8; template[1].ulValueLen as usize];
        template[0].pValue = label.as_mut_ptr().cast();
        template[1].pValue = value.as_mut_ptr().cast();
        let list = template.as_mut_ptr();
        assert_eq!(
            ck!(flow.raw, C_GetAttributeValue, session, object, list, 2),
            CKR_OK
        );
        certificates += usize::from(value.starts_with(&[0x30, 0x82]));
    }
    assert!(certificates > 0, "certificates come first");
    flow.end_search(session);
    flow.end(session);
}

/// AUTH-M-1-32, with the labels of its known keys.
fn authentication(profile: CardProfile, labels: &str) {
    let configure = |fixture: &CardFixture, command: &mut Command| {
        let file = fixture.folder().join("claviger.toml");
        fs::write(&file, format!("[labels]\n{labels}")).expect("a file of the test");
        command.env("CLAVIGER_CONFIG", file);
    };
    let _ = in_module_process(
        ServiceKind::Socket,
        profile,
        configure,
        sign_as_authentication_token,
    );
}

fn sign_as_authentication_token(_: &ModuleProcess) {
    let flow = Flow::begin(FunctionList::load());
    let session = flow.open(CKF_RW_SESSION);
    flow.log_in(session);
    let find = |name: &[u8], mut class: CK_ULONG| {
        let (mut yes, mut name) = (1_u8, name.to_vec());
        let mut template = [
            entry(CKA_TOKEN, &mut yes),
            entry(CKA_LABEL, name.as_mut_slice()),
            entry(CKA_CLASS, &mut class),
        ];
        let found = flow.find(session, &mut template, 1);
        flow.end_search(session);
        assert_eq!(found.len(), 1, "{}", String::from_utf8_lossy(&name));
        found[0]
    };
    let public = find(b"testrsa-pub", CKO_PUBLIC_KEY);
    let (mut modulus, mut exponent) = ([0_u8; 1024], [0_u8; 1024]);
    let mut template = [
        entry(CKA_MODULUS, modulus.as_mut_slice()),
        entry(CKA_PUBLIC_EXPONENT, exponent.as_mut_slice()),
    ];
    let list = template.as_mut_ptr();
    assert_eq!(
        ck!(flow.raw, C_GetAttributeValue, session, public, list, 2),
        CKR_OK
    );
    assert_eq!((template[0].ulValueLen, template[1].ulValueLen), (256, 3));
    let private = find(b"testrsa-pri", CKO_PRIVATE_KEY);
    let mut mechanism = plain(CKM_SHA256_RSA_PKCS);
    assert_eq!(
        ck!(flow.raw, C_SignInit, session, &raw mut mechanism, private),
        CKR_OK
    );
    let (mut message, mut signature, mut len) = ([0x30_u8; 391], [0_u8; 256], 256);
    let (data, out) = (message.as_mut_ptr(), signature.as_mut_ptr());
    assert_eq!(
        ck!(flow.raw, C_Sign, session, data, 391, out, &raw mut len),
        CKR_OK
    );
    assert_eq!(len, 256);
    assert_eq!(
        ck!(flow.raw, C_VerifyInit, session, &raw mut mechanism, public),
        CKR_OK
    );
    assert_eq!(
        ck!(flow.raw, C_Verify, session, data, 391, out, 256),
        CKR_OK,
        "one pair"
    );
    assert_eq!(ck!(flow.raw, C_Logout, session), CKR_OK);
    flow.end(session);
}
