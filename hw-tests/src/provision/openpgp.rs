//! Provisions the OpenPGP applet: three keys, their fingerprints and times, a certificate (OpenPGP card 3.4).

use std::time::{SystemTime, UNIX_EPOCH};

use x509_cert::ext::pkix::KeyUsages;

use super::{
    ADMIN_PIN, IssuedCertificates, KeyAlgorithm, OpenPgpPlan, ProvisionError, PublicKey,
    applet_channel::AppletChannel, certificate::Issuer, public_key::openpgp_curve_oid,
};
use crate::card::VirtualCard;

/// RID and application (4.2.1).
const AID: [u8; 6] = [0xD2, 0x76, 0x00, 0x01, 0x24, 0x01];

/// The numbers of one of the three keys (4.4).
#[derive(Clone, Copy)]
struct KeyNumbers {
    /// Key reference.
    reference: u8,
    /// Control reference template of GENERATE.
    template: u8,
    /// Data object of the algorithm attributes.
    attributes: u8,
    /// Data object of the fingerprint.
    fingerprint: u8,
    /// Data object of the generation time.
    time: u8,
}

const KEYS: [KeyNumbers; 3] = [
    KeyNumbers {
        reference: 1,
        template: 0xB6,
        attributes: 0xC1,
        fingerprint: 0xC7,
        time: 0xCE,
    },
    KeyNumbers {
        reference: 2,
        template: 0xB8,
        attributes: 0xC2,
        fingerprint: 0xC8,
        time: 0xCF,
    },
    KeyNumbers {
        reference: 3,
        template: 0xA4,
        attributes: 0xC3,
        fingerprint: 0xC9,
        time: 0xD0,
    },
];

pub(super) fn provision(
    card: &VirtualCard,
    profile: &OpenPgpPlan,
    issuer: &Issuer,
    issued: &mut IssuedCertificates,
) -> Result<(), ProvisionError> {
    let Some(algorithms) = profile.keys else {
        return Ok(());
    };
    let mut link = card;
    let mut channel = AppletChannel::open(&mut link, &AID)?;
    channel.exchange("VERIFY PW3", [0x00, 0x20, 0x00, 0x83], ADMIN_PIN.as_bytes())?;
    for (numbers, algorithm) in KEYS.into_iter().zip(algorithms) {
        let key = make_key(&mut channel, numbers, algorithm)?;
        if numbers.reference == 3 && algorithm != KeyAlgorithm::Ed25519 {
            let certificate = issuer.certify(
                "Claviger OpenPGP AUT",
                3,
                &key,
                KeyUsages::DigitalSignature.into(),
            )?;
            put_authentication_certificate(&mut channel, &certificate)?;
            issued.add("openpgp-03", certificate);
        }
    }
    Ok(())
}

fn make_key(
    channel: &mut AppletChannel<'_>,
    numbers: KeyNumbers,
    algorithm: KeyAlgorithm,
) -> Result<PublicKey, ProvisionError> {
    let attributes = attributes(algorithm, numbers.reference)?;
    channel.exchange(
        "PUT DATA, algorithm attributes",
        [0x00, 0xDA, 0x00, numbers.attributes],
        &attributes,
    )?;
    let step = format!(
        "GENERATE ASYMMETRIC KEY PAIR {algorithm:?} as key {}",
        numbers.reference
    );
    let answer = channel.generate(&step, [0x00, 0x47, 0x80, 0x00], &[numbers.template, 0x00])?;
    let key = PublicKey::from_template(algorithm, &answer)?;
    let time = seconds_since_1970();
    let fingerprint = key.openpgp_fingerprint(time)?;
    channel.exchange(
        "PUT DATA, fingerprint",
        [0x00, 0xDA, 0x00, numbers.fingerprint],
        &fingerprint,
    )?;
    channel.exchange(
        "PUT DATA, generation time",
        [0x00, 0xDA, 0x00, numbers.time],
        &time.to_be_bytes(),
    )?;
    Ok(key)
}

/// SELECT DATA (7.2.5): the first occurrence of 7F21 belongs to the authentication key.
fn put_authentication_certificate(
    channel: &mut AppletChannel<'_>,
    der: &[u8],
) -> Result<(), ProvisionError> {
    let select = [0x60, 0x04, 0x5C, 0x02, 0x7F, 0x21];
    channel.exchange("SELECT DATA 7F21", [0x00, 0xA5, 0x00, 0x04], &select)?;
    channel
        .exchange("PUT DATA 7F21", [0x00, 0xDA, 0x7F, 0x21], der)
        .map(drop)
}

/// Algorithm attributes (4.4.3.9).
fn attributes(algorithm: KeyAlgorithm, reference: u8) -> Result<Vec<u8>, ProvisionError> {
    let rsa = |bits: u16| [&[0x01][..], &bits.to_be_bytes(), &[0x00, 0x20, 0x00]].concat();
    match (algorithm, reference) {
        (KeyAlgorithm::Rsa2048, _) => Ok(rsa(2048)),
        (KeyAlgorithm::Rsa3072, _) => Ok(rsa(3072)),
        (KeyAlgorithm::Rsa4096, _) => Ok(rsa(4096)),
        (KeyAlgorithm::Ed25519, 1 | 3) => Ok([&[0x16], openpgp_curve_oid(algorithm)?].concat()),
        (KeyAlgorithm::Ed25519, _) => Err(ProvisionError::Algorithm(algorithm)),
        (curve, 2) => Ok([&[0x12], openpgp_curve_oid(curve)?].concat()),
        (KeyAlgorithm::X25519, _) => Err(ProvisionError::Algorithm(algorithm)),
        (curve, _) => Ok([&[0x13], openpgp_curve_oid(curve)?].concat()),
    }
}

fn seconds_since_1970() -> u32 {
    let elapsed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u32::try_from(elapsed.as_secs()).unwrap_or(u32::MAX)
}
