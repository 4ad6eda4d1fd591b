//! Verification with public keys (PKCS #11 3.2, 5.15), on the host, without card and login.

use std::ptr;

use claviger_hw_tests::{
    ck,
    fixture::token_fixture::{TestSession, TokenFixture, checked, plain},
    for_each_card,
};
use cryptoki::{
    error::RvError,
    object::{Attribute, ObjectClass, ObjectHandle},
};
use cryptoki_sys::{CK_MECHANISM, CK_ULONG, CKM_AES_CBC, CKM_SHA256};

const MESSAGE: &[u8] = b"what was signed";

for_each_card! { [piv openpgp piv_rsa openpgp_rsa piv_ec openpgp_ec] [
    a_genuine_signature_is_accepted_once
    a_forged_signature_is_invalid_and_ends_the_operation
    signature_of_wrong_length_returns_signature_len_range
    verification_needs_no_login_and_no_card
    verify_before_init_returns_operation_not_initialized
    one_verification_at_a_time_in_a_session
    a_signature_that_is_not_there_is_a_bad_argument
    parts_are_verified_as_one_message
    one_part_after_parts_is_refused
    init_wants_a_public_key_that_may_verify
    init_wants_a_mechanism_that_verifies
    a_public_key_made_of_the_cards_numbers_verifies_too
] }

/// A signature, its public key and the mechanism of both; the user has left.
struct Signed {
    session: TestSession,
    public: ObjectHandle,
    mechanism: CK_MECHANISM,
    signature: Vec<u8>,
}

fn signed(fixture: &TokenFixture<'_>) -> Signed {
    let session = fixture.user();
    let key = session.signer();
    let mechanism = session.signing(key);
    assert_eq!(
        session.init(session.list.C_SignInit, mechanism, key),
        Ok(())
    );
    let signature = session.run(session.list.C_Sign, MESSAGE, 600).unwrap();
    let public = session.public_of(key);
    session.logout().unwrap();
    Signed {
        session,
        public,
        mechanism,
        signature,
    }
}

impl Signed {
    #[track_caller]
    fn begin(&self) {
        let begun = self
            .session
            .init(self.session.list.C_VerifyInit, self.mechanism, self.public);
        assert_eq!(begun, Ok(()));
    }

    fn judge(&self, message: &[u8], signature: &[u8]) -> Result<(), RvError> {
        self.begin();
        self.session.check_signature(message, signature)
    }

    fn is_closed(&self) -> bool {
        self.session.check_signature(MESSAGE, &self.signature)
            == Err(RvError::OperationNotInitialized)
    }
}

fn a_genuine_signature_is_accepted_once(fixture: &TokenFixture<'_>) {
    let signed = signed(fixture);
    assert_eq!(signed.judge(MESSAGE, &signed.signature), Ok(()));
    assert!(signed.is_closed());
}

fn a_forged_signature_is_invalid_and_ends_the_operation(fixture: &TokenFixture<'_>) {
    let signed = signed(fixture);
    let len = signed.signature.len();
    let mut forged = signed.signature.clone();
    forged[len / 2] ^= 1;
    for forged in [forged, vec![0; len], vec![0xFF; len]] {
        let result = signed.judge(MESSAGE, &forged);
        assert_eq!(result, Err(RvError::SignatureInvalid));
        assert!(signed.is_closed());
    }
    let result = signed.judge(b"what was not signed", &signed.signature);
    assert_eq!(result, Err(RvError::SignatureInvalid));
}

fn signature_of_wrong_length_returns_signature_len_range(fixture: &TokenFixture<'_>) {
    let signed = signed(fixture);
    let long = [&signed.signature[..], &[0]].concat();
    for other in [&long[..], &signed.signature[1..], &[]] {
        let result = signed.judge(MESSAGE, other);
        assert_eq!(result, Err(RvError::SignatureLenRange), "{}", other.len());
        assert!(signed.is_closed());
    }
}

fn verification_needs_no_login_and_no_card(fixture: &TokenFixture<'_>) {
    let signed = signed(fixture);
    fixture.silently(|| {
        assert_eq!(signed.judge(MESSAGE, &signed.signature), Ok(()));
        let result = signed.judge(b"other", &signed.signature);
        assert_eq!(result, Err(RvError::SignatureInvalid));
    });
}

fn verify_before_init_returns_operation_not_initialized(fixture: &TokenFixture<'_>) {
    let Signed { session, .. } = signed(fixture);
    let none = Err(RvError::OperationNotInitialized);
    assert_eq!(session.check_signature(MESSAGE, b"signature"), none);
    assert_eq!(session.update(session.list.C_VerifyUpdate, MESSAGE), none);
    assert_eq!(
        session.update(session.list.C_VerifyFinal, b"signature"),
        none
    );
}

fn one_verification_at_a_time_in_a_session(fixture: &TokenFixture<'_>) {
    let signed = signed(fixture);
    signed.begin();
    let session = &signed.session;
    let again = session.init(session.list.C_VerifyInit, signed.mechanism, signed.public);
    assert_eq!(again, Err(RvError::OperationActive));
    assert_eq!(
        session.check_signature(MESSAGE, &signed.signature),
        Ok(()),
        "the first one goes on"
    );
}

fn a_signature_that_is_not_there_is_a_bad_argument(fixture: &TokenFixture<'_>) {
    let signed = signed(fixture);
    signed.begin();
    let mut message = MESSAGE.to_vec();
    let (session, null) = (signed.session.id(), ptr::null_mut());
    let (data, len) = (message.as_mut_ptr(), message.len() as CK_ULONG);
    let code = ck!(fixture.raw, C_Verify, session, data, len, null, 64);
    assert_eq!(checked(code), Err(RvError::ArgumentsBad));
    let signed = self::signed(fixture);
    signed.begin();
    let code = ck!(fixture.raw, C_VerifyUpdate, signed.session.id(), null, 8);
    assert_eq!(checked(code), Err(RvError::ArgumentsBad));
}

fn parts_are_verified_as_one_message(fixture: &TokenFixture<'_>) {
    let signed = signed(fixture);
    let Signed {
        session, signature, ..
    } = &signed;
    for (message, expected) in [
        (MESSAGE, Ok(())),
        (&MESSAGE[1..], Err(RvError::SignatureInvalid)),
    ] {
        signed.begin();
        for part in message.chunks(4) {
            assert_eq!(session.update(session.list.C_VerifyUpdate, part), Ok(()));
        }
        assert_eq!(
            session.update(session.list.C_VerifyFinal, signature),
            expected
        );
        assert!(signed.is_closed());
    }
}

fn one_part_after_parts_is_refused(fixture: &TokenFixture<'_>) {
    let signed = signed(fixture);
    let session = &signed.session;
    signed.begin();
    assert_eq!(session.update(session.list.C_VerifyUpdate, MESSAGE), Ok(()));
    let result = session.check_signature(MESSAGE, &signed.signature);
    let refused = [Err(RvError::OperationActive), Err(RvError::FunctionFailed)];
    assert!(refused.contains(&result), "{result:?}");
}

fn init_wants_a_public_key_that_may_verify(fixture: &TokenFixture<'_>) {
    let session = fixture.user();
    let key = session.signer();
    let mechanism = session.signing(key);
    for handle in [0, 0x00DE_AD00] {
        let code = ck!(
            fixture.raw,
            C_VerifyInit,
            session.id(),
            &mut { mechanism },
            handle
        );
        assert_eq!(checked(code), Err(RvError::KeyHandleInvalid));
    }
    let refused = [
        Err(RvError::KeyHandleInvalid),
        Err(RvError::KeyTypeInconsistent),
        Err(RvError::KeyFunctionNotPermitted),
        Err(RvError::MechanismInvalid),
    ];
    let mut others = vec![key, session.all(ObjectClass::CERTIFICATE)[0]];
    let public = Attribute::Class(ObjectClass::PUBLIC_KEY);
    others.extend(
        session
            .find_objects(&[public, Attribute::Verify(false)])
            .unwrap(),
    );
    assert!(others.len() > 2, "a key to encrypt or to agree");
    for other in others {
        let result = session.init(session.list.C_VerifyInit, mechanism, other);
        assert!(refused.contains(&result), "{result:?}");
    }
}

fn init_wants_a_mechanism_that_verifies(fixture: &TokenFixture<'_>) {
    let Signed {
        session, public, ..
    } = signed(fixture);
    for mechanism in [CKM_SHA256, CKM_AES_CBC, CK_ULONG::MAX] {
        let result = session.init(session.list.C_VerifyInit, plain(mechanism), public);
        assert_eq!(result, Err(RvError::MechanismInvalid), "{mechanism:#x}");
    }
}

fn a_public_key_made_of_the_cards_numbers_verifies_too(fixture: &TokenFixture<'_>) {
    let signed = signed(fixture);
    let template = session_key_template(&signed.session, signed.public);
    let made = signed
        .session
        .create_object(&template)
        .expect("C_CreateObject");
    let signed = Signed {
        public: made,
        ..signed
    };
    assert_eq!(signed.judge(MESSAGE, &signed.signature), Ok(()));
    let result = signed.judge(b"other", &signed.signature);
    assert_eq!(result, Err(RvError::SignatureInvalid));
}

/// A session's public key with the numbers of one on the card.
fn session_key_template(session: &TestSession, public: ObjectHandle) -> Vec<Attribute> {
    let numbers = crate::attributes::numbers_of(session, public);
    let fixed = [
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::Token(false),
        Attribute::Verify(true),
    ];
    [&fixed[..], &numbers].concat()
}
