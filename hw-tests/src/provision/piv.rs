//! A PIV card: management key, keys, certificates, CHUID and CCC (SP 800-73-4).

use std::io::Write as _;

use claviger_apdu::tlv;
use des::{
    TdesEde3,
    cipher::{BlockEncrypt as _, KeyInit as _, generic_array::GenericArray},
};
use flate2::{Compression, write::GzEncoder};
use x509_cert::{der::flagset::FlagSet, ext::pkix::KeyUsages};

use super::{
    CertificateForm, IssuedCertificates, KeyAlgorithm, PivKey, PivPlan, ProvisionError, PublicKey,
    applet_channel::AppletChannel, certificate::Issuer,
};
use crate::card::VirtualCard;

/// The management key (9B) of the factory, 3DES.
pub const MANAGEMENT_KEY: [u8; 24] = [
    1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8,
];

/// The application identifier without its version (part 1, 2.2).
const AID: [u8; 9] = [0xA0, 0, 0, 0x03, 0x08, 0, 0, 0x10, 0x00];
const TDES: u8 = 0x03;
const CHUID: u32 = 0x5F_C102;
const CCC: u32 = 0x5F_C107;
/// A FASC-N of agency 9999: not a federal card.
const FASC_N: [u8; 25] = [
    0xD4, 0xE7, 0x39, 0xDA, 0x73, 0x9C, 0xED, 0x39, 0xCE, 0x73, 0x9D, 0x83, 0x68, 0x58, 0x21, 0x08,
    0x42, 0x10, 0x84, 0x21, 0xC8, 0x42, 0x10, 0xC3, 0xEB,
];

pub(super) fn provision(
    card: &VirtualCard,
    profile: &PivPlan,
    issuer: &Issuer,
    issued: &mut IssuedCertificates,
) -> Result<(), ProvisionError> {
    if profile.keys.is_empty() {
        return Ok(());
    }
    let mut link = card;
    let mut channel = AppletChannel::open(&mut link, &AID)?;
    authenticate(&mut channel)?;
    put(&mut channel, CHUID, &chuid(card.config().guid()))?;
    put(
        &mut channel,
        CCC,
        &card_capability_container(card.config().guid()),
    )?;
    for key in &profile.keys {
        let name = format!("piv-{:02X}", key.reference);
        if let Some(certificate) = make_key(&mut channel, *key, issuer)? {
            issued.add(name, certificate);
        }
    }
    Ok(())
}

/// External authentication with the management key (part 2, appendix A.1).
fn authenticate(channel: &mut AppletChannel<'_>) -> Result<(), ProvisionError> {
    let header = [0x00, 0x87, TDES, 0x9B];
    let answer = channel.exchange(
        "GENERAL AUTHENTICATE, challenge",
        header,
        &[0x7C, 0x02, 0x81, 0x00],
    )?;
    let challenge = tlv::only(tlv::only(&answer, 0x7C)?, 0x81)?;
    let mut block: [u8; 8] = challenge
        .try_into()
        .map_err(|_| ProvisionError::Form("challenge is not 8 bytes"))?;
    let cipher = TdesEde3::new(GenericArray::from_slice(&MANAGEMENT_KEY));
    cipher.encrypt_block(GenericArray::from_mut_slice(&mut block));
    let response = tlv::encode(0x7C, &tlv::encode(0x82, &block));
    channel
        .exchange("GENERAL AUTHENTICATE, response", header, &response)
        .map(drop)
}

/// Generates the key and stores its certificate, if it shall have one.
fn make_key(
    channel: &mut AppletChannel<'_>,
    key: PivKey,
    issuer: &Issuer,
) -> Result<Option<Vec<u8>>, ProvisionError> {
    let PivKey {
        reference,
        algorithm,
        certificate,
    } = key;
    let step = format!("GENERATE ASYMMETRIC KEY PAIR {algorithm:?} in {reference:02X}");
    let template = tlv::encode(0xAC, &tlv::encode(0x80, &[algorithm_id(algorithm)?]));
    let answer = channel.generate(&step, [0x00, 0x47, 0x00, reference], &template)?;
    let public_key = PublicKey::from_template(algorithm, &answer)?;
    if certificate == CertificateForm::Absent {
        return Ok(None);
    }
    let name = format!("Claviger PIV {reference:02X}");
    let der = issuer.certify(
        &name,
        reference.into(),
        &public_key,
        usage(reference, algorithm),
    )?;
    put(
        channel,
        certificate_object(reference)?,
        &certificate_data(&der, certificate)?,
    )?;
    Ok(Some(der))
}

fn put(channel: &mut AppletChannel<'_>, tag: u32, content: &[u8]) -> Result<(), ProvisionError> {
    let tag_list: Vec<u8> = tag
        .to_be_bytes()
        .into_iter()
        .skip_while(|byte| *byte == 0)
        .collect();
    let data = [tlv::encode(0x5C, &tag_list), tlv::encode(0x53, content)].concat();
    channel
        .exchange(
            &format!("PUT DATA {tag:X}"),
            [0x00, 0xDB, 0x3F, 0xFF],
            &data,
        )
        .map(drop)
}

/// SP 800-78-4, table 6-2, and the common extension 16 for RSA-4096.
const fn algorithm_id(algorithm: KeyAlgorithm) -> Result<u8, ProvisionError> {
    match algorithm {
        KeyAlgorithm::Rsa2048 => Ok(0x07),
        KeyAlgorithm::Rsa3072 => Ok(0x05),
        KeyAlgorithm::Rsa4096 => Ok(0x16),
        KeyAlgorithm::P256 => Ok(0x11),
        KeyAlgorithm::P384 => Ok(0x14),
        other => Err(ProvisionError::Algorithm(other)),
    }
}

/// Part 1, table 3.
const fn certificate_object(reference: u8) -> Result<u32, ProvisionError> {
    match reference {
        0x9A => Ok(0x5F_C105),
        0x9C => Ok(0x5F_C10A),
        0x9D => Ok(0x5F_C10B),
        0x9E => Ok(0x5F_C101),
        0x82..=0x95 => Ok(0x5F_C10D + reference as u32 - 0x82),
        _ => Err(ProvisionError::Form("no such key reference")),
    }
}

fn usage(reference: u8, algorithm: KeyAlgorithm) -> FlagSet<KeyUsages> {
    let agreement = matches!(algorithm, KeyAlgorithm::P256 | KeyAlgorithm::P384);
    match reference {
        0x9A | 0x9E => KeyUsages::DigitalSignature.into(),
        0x9C => KeyUsages::DigitalSignature | KeyUsages::NonRepudiation,
        _ if agreement => KeyUsages::KeyAgreement.into(),
        _ => KeyUsages::KeyEncipherment.into(),
    }
}

/// 70 certificate, 71 CertInfo, FE (part 1, table 10).
fn certificate_data(der: &[u8], form: CertificateForm) -> Result<Vec<u8>, ProvisionError> {
    let (bytes, info) = match form {
        CertificateForm::Gzip => (gzip(der)?, 0x01),
        CertificateForm::Plain | CertificateForm::Absent => (der.to_vec(), 0x00),
    };
    Ok([
        tlv::encode(0x70, &bytes),
        tlv::encode(0x71, &[info]),
        tlv::encode(0xFE, &[]),
    ]
    .concat())
}

fn gzip(der: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(der)?;
    encoder.finish()
}

/// Part 1, table 9, unsigned.
fn chuid(guid: [u8; 16]) -> Vec<u8> {
    [
        tlv::encode(0x30, &FASC_N),
        tlv::encode(0x34, &guid),
        tlv::encode(0x35, b"20401231"),
        tlv::encode(0x3E, &[]),
        tlv::encode(0xFE, &[]),
    ]
    .concat()
}

/// Part 1, table 8: what only old middleware reads, as YubiKeys have it.
fn card_capability_container(guid: [u8; 16]) -> Vec<u8> {
    let identifier = [
        &[0xA0, 0x00, 0x00, 0x01, 0x16, 0xFF, 0x02][..],
        guid.get(2..).unwrap_or(&[]),
    ]
    .concat();
    let mut container = tlv::encode(0xF0, &identifier);
    let empty = |tag| tlv::encode(tag, &[]);
    container.extend([tlv::encode(0xF1, &[0x21]), tlv::encode(0xF2, &[0x21])].concat());
    container.extend(
        [
            empty(0xF3),
            tlv::encode(0xF4, &[0x00]),
            tlv::encode(0xF5, &[0x10]),
        ]
        .concat(),
    );
    container.extend(
        [0xF6, 0xF7, 0xFA, 0xFB, 0xFC, 0xFD, 0xFE]
            .into_iter()
            .flat_map(empty),
    );
    container
}
