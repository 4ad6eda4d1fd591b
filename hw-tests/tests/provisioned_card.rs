//! A provisioned card holds what its plan says, and its certificates are of its own keys.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "helpers of a test fail loudly"
)]

use std::io::Read as _;

use claviger_apdu::{CommandApdu, Expected, Limits, Transaction, tlv};
use claviger_hw_tests::{
    card::{State, VirtualCard},
    provision::{
        CertificateForm, Issued, KeyAlgorithm, OpenPgpPlan, PivKey, PivPlan, Plan, ProvisionError,
        PublicKey, provision,
    },
};
use p256::ecdsa::{Signature, VerifyingKey, signature::hazmat::PrehashVerifier as _};
use x509_cert::{
    Certificate,
    der::{Decode as _, Encode as _},
};

const PIV: [u8; 9] = [0xA0, 0, 0, 0x03, 0x08, 0, 0, 0x10, 0x00];
const OPENPGP: [u8; 6] = [0xD2, 0x76, 0x00, 0x01, 0x24, 0x01];

fn issue(plan: &Plan) -> (VirtualCard, Issued) {
    let card = VirtualCard::power_up(plan.card(State::Fresh)).expect("a card in RAM needs nothing");
    let issued = provision(&card, plan).expect("the card takes the plan");
    (card, issued)
}

fn say(card: &VirtualCard, header: [u8; 4], data: &[u8]) -> Vec<u8> {
    let mut link = card;
    let command = CommandApdu {
        data,
        expected: Expected::All,
        ..CommandApdu::header(header)
    };
    let answer = Transaction::new(&mut link, Limits::SHORT)
        .exchange(&command)
        .expect("the card answers");
    answer.ok().expect("the card does it").expose().to_vec()
}

fn select_and_verify(card: &VirtualCard, aid: &[u8], reference: u8, pin: &[u8]) {
    say(card, [0x00, 0xA4, 0x04, 0x00], aid);
    say(card, [0x00, 0x20, 0x00, reference], pin);
}

fn object(card: &VirtualCard, tag: &[u8]) -> Vec<u8> {
    let answer = say(card, [0x00, 0xCB, 0x3F, 0xFF], &tlv::encode(0x5C, tag));
    tlv::only(&answer, 0x53).expect("a data object").to_vec()
}

fn certificate_in(object: &[u8]) -> Vec<u8> {
    let bytes = tlv::find(object, 0x70)
        .expect("TLV")
        .expect("a certificate");
    match tlv::find(object, 0x71).expect("TLV").expect("CertInfo") {
        [0x00] => bytes.to_vec(),
        [0x01] => {
            let mut der = Vec::new();
            flate2::read::GzDecoder::new(bytes)
                .read_to_end(&mut der)
                .expect("gzip");
            der
        }
        other => unreachable!("CertInfo {other:02X?}"),
    }
}

/// What the private key makes of `input`, by GENERAL AUTHENTICATE.
fn piv_private_key(card: &VirtualCard, algorithm: u8, reference: u8, input: &[u8]) -> Vec<u8> {
    select_and_verify(card, &PIV, 0x80, b"123456\xFF\xFF");
    let template = tlv::encode(
        0x7C,
        &[tlv::encode(0x82, &[]), tlv::encode(0x81, input)].concat(),
    );
    let answer = say(card, [0x00, 0x87, algorithm, reference], &template);
    tlv::only(tlv::only(&answer, 0x7C).expect("7C"), 0x82)
        .expect("82")
        .to_vec()
}

fn public_key_bytes(certificate: &Certificate) -> Vec<u8> {
    certificate
        .tbs_certificate()
        .subject_public_key_info()
        .subject_public_key
        .raw_bytes()
        .to_vec()
}

fn verifies_p256(certificate: &Certificate, digest: &[u8], signature: &Signature) {
    let key = VerifyingKey::from_sec1_bytes(&public_key_bytes(certificate)).expect("a point");
    key.verify_prehash(digest, signature)
        .expect("the certificate's key made the signature");
}

fn verifies_rsa(certificate: &Certificate, input: &[u8], output: &[u8]) {
    use rsa::{BigUint, RsaPublicKey, hazmat::rsa_encrypt, pkcs1::DecodeRsaPublicKey as _};
    let key = RsaPublicKey::from_pkcs1_der(&public_key_bytes(certificate)).expect("PKCS#1");
    let back = rsa_encrypt(&key, &BigUint::from_bytes_be(output)).expect("in range");
    assert_eq!(
        back,
        BigUint::from_bytes_be(input),
        "the certificate's key undoes the card's"
    );
}

#[test]
fn the_four_key_piv_card_holds_certificates_of_its_own_keys() {
    let (card, issued) = issue(&Plan::piv4());
    assert_eq!(
        issued.names().collect::<Vec<_>>(),
        ["ca", "piv-9A", "piv-9C", "piv-9D", "piv-9E"]
    );
    let ca = Certificate::from_der(issued.certificate("ca").unwrap()).unwrap();
    for (name, tag, reference, algorithm) in [
        ("piv-9A", [0x5F, 0xC1, 0x05], 0x9A, 0x11),
        ("piv-9C", [0x5F, 0xC1, 0x0A], 0x9C, 0x07),
        ("piv-9D", [0x5F, 0xC1, 0x0B], 0x9D, 0x07),
        ("piv-9E", [0x5F, 0xC1, 0x01], 0x9E, 0x11),
    ] {
        say(&card, [0x00, 0xA4, 0x04, 0x00], &PIV);
        let stored = object(&card, &tag);
        assert_eq!(
            tlv::find(&stored, 0x71).unwrap(),
            Some(&[u8::from(reference == 0x9D)][..]),
            "only 9D is compressed"
        );
        let der = certificate_in(&stored);
        assert_eq!(Some(&der[..]), issued.certificate(name));
        let certificate = Certificate::from_der(&der).unwrap();
        assert_eq!(
            certificate.tbs_certificate().issuer(),
            ca.tbs_certificate().subject()
        );
        if algorithm == 0x11 {
            let signature = piv_private_key(&card, algorithm, reference, &[7; 32]);
            verifies_p256(
                &certificate,
                &[7; 32],
                &Signature::from_der(&signature).unwrap(),
            );
        } else {
            let input = [&[0x00][..], &[7; 255]].concat();
            verifies_rsa(
                &certificate,
                &input,
                &piv_private_key(&card, algorithm, reference, &input),
            );
        }
    }
}

#[test]
fn the_authority_signed_every_certificate() {
    use sha2::{Digest as _, Sha256};
    let (_, issued) = issue(&Plan::piv(PivPlan::authentication(KeyAlgorithm::P256)));
    let ca = Certificate::from_der(issued.certificate("ca").unwrap()).unwrap();
    for name in ["ca", "piv-9A"] {
        let certificate = Certificate::from_der(issued.certificate(name).unwrap()).unwrap();
        let signature = Signature::from_der(certificate.signature().raw_bytes()).unwrap();
        let signed = certificate.tbs_certificate().to_der().unwrap();
        verifies_p256(&ca, &Sha256::digest(signed), &signature);
    }
}

#[test]
fn chuid_follows_the_serial_number_and_the_container_parses() {
    let guid = |serial| {
        let (card, _) =
            issue(&Plan::piv(PivPlan::authentication(KeyAlgorithm::P256)).serial(serial));
        say(&card, [0x00, 0xA4, 0x04, 0x00], &PIV);
        assert!(
            tlv::find(&object(&card, &[0x5F, 0xC1, 0x07]), 0xF0)
                .unwrap()
                .is_some()
        );
        tlv::find(&object(&card, &[0x5F, 0xC1, 0x02]), 0x34)
            .unwrap()
            .unwrap()
            .to_vec()
    };
    assert_eq!(guid(1), *b"claviger-piv\0\0\0\x01");
    assert_eq!(guid(0x0102_0304), *b"claviger-piv\x01\x02\x03\x04");
}

#[test]
fn a_plan_names_other_algorithms_and_keys_without_certificates() {
    let plan = PivPlan {
        keys: vec![
            PivKey::new(0x9A, KeyAlgorithm::P384),
            PivKey {
                certificate: CertificateForm::Absent,
                ..PivKey::new(0x9E, KeyAlgorithm::P256)
            },
            PivKey::new(0x82, KeyAlgorithm::P256),
        ],
    };
    let (card, issued) = issue(&Plan::piv(plan));
    assert_eq!(
        issued.names().collect::<Vec<_>>(),
        ["ca", "piv-82", "piv-9A"]
    );
    let certificate = Certificate::from_der(issued.certificate("piv-9A").unwrap()).unwrap();
    assert_eq!(public_key_bytes(&certificate).len(), 1 + 48 + 48);
    assert!(
        !piv_private_key(&card, 0x11, 0x9E, &[7; 32]).is_empty(),
        "the key without certificate signs"
    );
}

#[test]
fn a_plan_the_applet_cannot_hold_says_why() {
    let plan = Plan::piv(PivPlan::authentication(KeyAlgorithm::Ed25519));
    let card = VirtualCard::power_up(plan.card(State::Fresh)).unwrap();
    let error = provision(&card, &plan).unwrap_err();
    assert!(
        matches!(error, ProvisionError::Algorithm(KeyAlgorithm::Ed25519)),
        "{error}"
    );
}

#[test]
fn the_openpgp_card_names_its_keys_by_their_fingerprints() {
    let (card, issued) = issue(&Plan::pgp3());
    select_and_verify(&card, &OPENPGP, 0x82, b"123456");
    let related = say(&card, [0x00, 0xCA, 0x00, 0x6E], &[]);
    let discretionary = tlv::find(&related, 0x73).unwrap().unwrap().to_vec();
    let part = |tag| tlv::find(&discretionary, tag).unwrap().unwrap();
    let keys = [
        (0xB6, KeyAlgorithm::Ed25519),
        (0xB8, KeyAlgorithm::X25519),
        (0xA4, KeyAlgorithm::P256),
    ];
    for (n, (template, algorithm)) in keys.into_iter().enumerate() {
        let answer = say(&card, [0x00, 0x47, 0x81, 0x00], &[template, 0x00]);
        let key = PublicKey::from_template(algorithm, &answer).unwrap();
        let time = u32::from_be_bytes(part(0xCD)[4 * n..4 * n + 4].try_into().unwrap());
        assert_eq!(
            part(0xC5)[20 * n..20 * n + 20],
            key.openpgp_fingerprint(time).unwrap()
        );
    }
    let der = issued.certificate("openpgp-03").unwrap();
    assert_eq!(say(&card, [0x00, 0xCA, 0x7F, 0x21], &[]), der);
    let signature = say(&card, [0x00, 0x88, 0x00, 0x00], &[7; 32]);
    verifies_p256(
        &Certificate::from_der(der).unwrap(),
        &[7; 32],
        &Signature::from_slice(&signature).unwrap(),
    );
}

#[test]
fn the_openpgp_card_can_be_all_rsa() {
    let (card, issued) = issue(&Plan::openpgp(OpenPgpPlan::rsa()));
    say(&card, [0x00, 0xA4, 0x04, 0x00], &OPENPGP);
    assert_eq!(
        say(&card, [0x00, 0xCA, 0x7F, 0x21], &[]),
        issued.certificate("openpgp-03").unwrap()
    );
}

#[test]
fn plans_of_the_same_card_share_a_folder_name() {
    assert_eq!(
        Plan::piv4().folder_name(),
        Plan::piv4().yubi().folder_name()
    );
    assert_ne!(
        Plan::piv4().folder_name(),
        Plan::piv4().serial(2).folder_name()
    );
    assert_ne!(Plan::piv4().folder_name(), Plan::both().folder_name());
}
