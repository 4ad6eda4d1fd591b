//! Verification with public keys (PKCS #11 3.2, 5.15): the host's work, without card and login.

use std::ptr;

use claviger_hw_tests::{
    ck,
    fixture::token_fixture::{Bench, Seat, checked, plain},
    on_cards,
};
use cryptoki::{
    error::RvError,
    object::{Attribute, ObjectClass, ObjectHandle},
};
use cryptoki_sys::{CK_MECHANISM, CK_ULONG, CKM_AES_CBC, CKM_SHA256};

const MESSAGE: &[u8] = b"what was signed";

on_cards! { [piv openpgp piv_rsa openpgp_rsa piv_ec openpgp_ec] [
    a_genuine_signature_is_accepted_once
    a_forged_signature_is_invalid_and_ends_the_operation
    a_signature_of_another_length_is_told_apart
    verification_needs_no_login_and_no_card
    nothing_is_verified_before_init
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
    seat: Seat,
    public: ObjectHandle,
    mechanism: CK_MECHANISM,
    signature: Vec<u8>,
}

fn signed(bench: &Bench<'_>) -> Signed {
    let seat = bench.user();
    let key = seat.signer();
    let mechanism = seat.signing(key);
    assert_eq!(seat.init(seat.list.C_SignInit, mechanism, key), Ok(()));
    let signature = seat.run(seat.list.C_Sign, MESSAGE, 600).unwrap();
    let public = seat.public_of(key);
    seat.logout().unwrap();
    Signed {
        seat,
        public,
        mechanism,
        signature,
    }
}

impl Signed {
    #[track_caller]
    fn begin(&self) {
        let begun = self
            .seat
            .init(self.seat.list.C_VerifyInit, self.mechanism, self.public);
        assert_eq!(begun, Ok(()));
    }

    fn judge(&self, message: &[u8], signature: &[u8]) -> Result<(), RvError> {
        self.begin();
        self.seat.judge(message, signature)
    }

    fn is_over(&self) -> bool {
        self.seat.judge(MESSAGE, &self.signature) == Err(RvError::OperationNotInitialized)
    }
}

fn a_genuine_signature_is_accepted_once(bench: &Bench<'_>) {
    let signed = signed(bench);
    assert_eq!(signed.judge(MESSAGE, &signed.signature), Ok(()));
    assert!(signed.is_over());
}

fn a_forged_signature_is_invalid_and_ends_the_operation(bench: &Bench<'_>) {
    let signed = signed(bench);
    let len = signed.signature.len();
    let mut forged = signed.signature.clone();
    forged[len / 2] ^= 1;
    for forged in [forged, vec![0; len], vec![0xFF; len]] {
        let told = signed.judge(MESSAGE, &forged);
        assert_eq!(told, Err(RvError::SignatureInvalid));
        assert!(signed.is_over());
    }
    let told = signed.judge(b"what was not signed", &signed.signature);
    assert_eq!(told, Err(RvError::SignatureInvalid));
}

fn a_signature_of_another_length_is_told_apart(bench: &Bench<'_>) {
    let signed = signed(bench);
    let long = [&signed.signature[..], &[0]].concat();
    for other in [&long[..], &signed.signature[1..], &[]] {
        let told = signed.judge(MESSAGE, other);
        assert_eq!(told, Err(RvError::SignatureLenRange), "{}", other.len());
        assert!(signed.is_over());
    }
}

fn verification_needs_no_login_and_no_card(bench: &Bench<'_>) {
    let signed = signed(bench);
    bench.silently(|| {
        assert_eq!(signed.judge(MESSAGE, &signed.signature), Ok(()));
        let told = signed.judge(b"other", &signed.signature);
        assert_eq!(told, Err(RvError::SignatureInvalid));
    });
}

fn nothing_is_verified_before_init(bench: &Bench<'_>) {
    let Signed { seat, .. } = signed(bench);
    let none = Err(RvError::OperationNotInitialized);
    assert_eq!(seat.judge(MESSAGE, b"signature"), none);
    assert_eq!(seat.part(seat.list.C_VerifyUpdate, MESSAGE), none);
    assert_eq!(seat.part(seat.list.C_VerifyFinal, b"signature"), none);
}

fn one_verification_at_a_time_in_a_session(bench: &Bench<'_>) {
    let signed = signed(bench);
    signed.begin();
    let seat = &signed.seat;
    let again = seat.init(seat.list.C_VerifyInit, signed.mechanism, signed.public);
    assert_eq!(again, Err(RvError::OperationActive));
    assert_eq!(
        seat.judge(MESSAGE, &signed.signature),
        Ok(()),
        "the first one goes on"
    );
}

fn a_signature_that_is_not_there_is_a_bad_argument(bench: &Bench<'_>) {
    let signed = signed(bench);
    signed.begin();
    let mut message = MESSAGE.to_vec();
    let (session, null) = (signed.seat.id(), ptr::null_mut());
    let (data, len) = (message.as_mut_ptr(), message.len() as CK_ULONG);
    let code = ck!(bench.raw, C_Verify, session, data, len, null, 64);
    assert_eq!(checked(code), Err(RvError::ArgumentsBad));
    let signed = self::signed(bench);
    signed.begin();
    let code = ck!(bench.raw, C_VerifyUpdate, signed.seat.id(), null, 8);
    assert_eq!(checked(code), Err(RvError::ArgumentsBad));
}

fn parts_are_verified_as_one_message(bench: &Bench<'_>) {
    let signed = signed(bench);
    let Signed {
        seat, signature, ..
    } = &signed;
    for (message, expected) in [
        (MESSAGE, Ok(())),
        (&MESSAGE[1..], Err(RvError::SignatureInvalid)),
    ] {
        signed.begin();
        for part in message.chunks(4) {
            assert_eq!(seat.part(seat.list.C_VerifyUpdate, part), Ok(()));
        }
        assert_eq!(seat.part(seat.list.C_VerifyFinal, signature), expected);
        assert!(signed.is_over());
    }
}

fn one_part_after_parts_is_refused(bench: &Bench<'_>) {
    let signed = signed(bench);
    let seat = &signed.seat;
    signed.begin();
    assert_eq!(seat.part(seat.list.C_VerifyUpdate, MESSAGE), Ok(()));
    let told = seat.judge(MESSAGE, &signed.signature);
    let refused = [Err(RvError::OperationActive), Err(RvError::FunctionFailed)];
    assert!(refused.contains(&told), "{told:?}");
}

fn init_wants_a_public_key_that_may_verify(bench: &Bench<'_>) {
    let seat = bench.user();
    let key = seat.signer();
    let mechanism = seat.signing(key);
    for handle in [0, 0x00DE_AD00] {
        let code = ck!(
            bench.raw,
            C_VerifyInit,
            seat.id(),
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
    let mut others = vec![key, seat.all(ObjectClass::CERTIFICATE)[0]];
    let public = Attribute::Class(ObjectClass::PUBLIC_KEY);
    others.extend(
        seat.find_objects(&[public, Attribute::Verify(false)])
            .unwrap(),
    );
    assert!(others.len() > 2, "a key to encrypt or to agree");
    for other in others {
        let told = seat.init(seat.list.C_VerifyInit, mechanism, other);
        assert!(refused.contains(&told), "{told:?}");
    }
}

fn init_wants_a_mechanism_that_verifies(bench: &Bench<'_>) {
    let Signed { seat, public, .. } = signed(bench);
    for mechanism in [CKM_SHA256, CKM_AES_CBC, CK_ULONG::MAX] {
        let told = seat.init(seat.list.C_VerifyInit, plain(mechanism), public);
        assert_eq!(told, Err(RvError::MechanismInvalid), "{mechanism:#x}");
    }
}

fn a_public_key_made_of_the_cards_numbers_verifies_too(bench: &Bench<'_>) {
    let signed = signed(bench);
    let template = seat_template(&signed.seat, signed.public);
    let made = signed
        .seat
        .create_object(&template)
        .expect("C_CreateObject");
    let signed = Signed {
        public: made,
        ..signed
    };
    assert_eq!(signed.judge(MESSAGE, &signed.signature), Ok(()));
    let told = signed.judge(b"other", &signed.signature);
    assert_eq!(told, Err(RvError::SignatureInvalid));
}

/// A session's public key with the numbers of one on the card.
fn seat_template(seat: &Seat, public: ObjectHandle) -> Vec<Attribute> {
    let numbers = crate::attributes::numbers_of(seat, public);
    let fixed = [
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::Token(false),
        Attribute::Verify(true),
    ];
    [&fixed[..], &numbers].concat()
}
