//! C_VerifySignature* (PKCS #11 3.2, 5.16): verification of a signature that is given at the init.

use claviger_hw_tests::{
    fixture::token_fixture::{TestSession, TokenFixture, answered, checked, plain},
    for_each_card,
};
use cryptoki::{error::RvError, object::ObjectHandle};
use cryptoki_sys::{CK_MECHANISM, CK_ULONG, CKM_SHA256};

const MESSAGE: &[u8] = b"what was signed";

for_each_card! { [piv openpgp piv_rsa openpgp_rsa piv_ec openpgp_ec] [
    a_genuine_signature_is_accepted_in_one_part_and_in_many
    a_forged_signature_is_invalid_and_ends_it
    known_signature_of_wrong_length_returns_signature_len_range
    verify_signature_before_init_returns_operation_not_initialized
    one_at_a_time_in_a_session
    it_needs_no_card_and_no_login
    init_wants_a_mechanism_that_verifies
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
    /// C_VerifySignatureInit.
    fn begin(&self, mechanism: CK_MECHANISM, signature: &[u8]) -> Result<(), RvError> {
        let function = self.session.list.C_VerifySignatureInit.unwrap();
        let (bytes, len) = (signature.as_ptr().cast_mut(), signature.len() as CK_ULONG);
        let (session, key, mut mechanism) = (self.session.id(), self.public.handle(), mechanism);
        // SAFETY: a mechanism and a signature with its length.
        checked(unsafe { function(session, &raw mut mechanism, key, bytes, len) })
    }

    #[track_caller]
    fn begun(&self, signature: &[u8]) {
        assert_eq!(self.begin(self.mechanism, signature), Ok(()));
    }

    fn judge(&self, message: &[u8]) -> Result<(), RvError> {
        answered(self.session.verify_signature(message))
    }

    fn is_closed(&self) -> bool {
        self.judge(MESSAGE) == Err(RvError::OperationNotInitialized)
    }
}

fn a_genuine_signature_is_accepted_in_one_part_and_in_many(fixture: &TokenFixture<'_>) {
    let signed = signed(fixture);
    signed.begun(&signed.signature);
    assert_eq!(signed.judge(MESSAGE), Ok(()));
    assert!(signed.is_closed());
    signed.begun(&signed.signature);
    for part in MESSAGE.chunks(4) {
        assert_eq!(
            answered(signed.session.verify_signature_update(part)),
            Ok(())
        );
    }
    assert_eq!(answered(signed.session.verify_signature_final()), Ok(()));
    assert!(signed.is_closed());
}

fn a_forged_signature_is_invalid_and_ends_it(fixture: &TokenFixture<'_>) {
    let signed = signed(fixture);
    let mut forged = signed.signature.clone();
    forged[20] ^= 1;
    signed.begun(&forged);
    assert_eq!(signed.judge(MESSAGE), Err(RvError::SignatureInvalid));
    assert!(signed.is_closed());
    signed.begun(&signed.signature);
    assert_eq!(signed.judge(b"other"), Err(RvError::SignatureInvalid));
    signed.begun(&signed.signature);
    assert_eq!(
        answered(signed.session.verify_signature_update(b"other")),
        Ok(())
    );
    let result = answered(signed.session.verify_signature_final());
    assert_eq!(result, Err(RvError::SignatureInvalid));
    assert!(signed.is_closed());
}

/// The error comes at the init or at the end.
fn known_signature_of_wrong_length_returns_signature_len_range(fixture: &TokenFixture<'_>) {
    let signed = signed(fixture);
    let result = signed.begin(signed.mechanism, &signed.signature[1..]);
    let result = result.and_then(|()| signed.judge(MESSAGE));
    assert_eq!(result, Err(RvError::SignatureLenRange));
    assert!(signed.is_closed());
}

fn verify_signature_before_init_returns_operation_not_initialized(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    let none = Err(RvError::OperationNotInitialized);
    assert_eq!(answered(session.verify_signature(MESSAGE)), none);
    assert_eq!(answered(session.verify_signature_update(MESSAGE)), none);
    assert_eq!(answered(session.verify_signature_final()), none);
}

fn one_at_a_time_in_a_session(fixture: &TokenFixture<'_>) {
    let signed = signed(fixture);
    signed.begun(&signed.signature);
    let again = signed.begin(signed.mechanism, &signed.signature);
    assert_eq!(again, Err(RvError::OperationActive));
    assert_eq!(signed.judge(MESSAGE), Ok(()), "the first one goes on");
}

fn it_needs_no_card_and_no_login(fixture: &TokenFixture<'_>) {
    let signed = signed(fixture);
    fixture.silently(|| {
        signed.begun(&signed.signature);
        assert_eq!(signed.judge(MESSAGE), Ok(()));
    });
}

fn init_wants_a_mechanism_that_verifies(fixture: &TokenFixture<'_>) {
    let signed = signed(fixture);
    let result = signed.begin(plain(CKM_SHA256), &signed.signature);
    assert_eq!(result, Err(RvError::MechanismInvalid));
}
