//! The three keys: their key references, permitted functions, commands and responses.

use claviger_apdu::{CommandApdu, CommandBudget, Expected, Limits, Secret, tlv};

use crate::{
    algorithm::{KeyAlgorithm, PublicKey},
    applet::OwnedCommand,
    error::TokenError,
    naming::Naming,
    object::{KeyIdentity, KeyPermissions, PinPolicy},
    openpgp::quirks::Quirks,
    operation::{KeyInput, fit_hash},
};

/// One of the keys of an OpenPGP card, named by the command that uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyRole {
    /// PSO: COMPUTE DIGITAL SIGNATURE.
    Signature,
    /// PSO: DECIPHER.
    Decryption,
    /// INTERNAL AUTHENTICATE.
    Authentication,
}

/// The numbers of a key in the specification, and its names in OpenSC.
struct KeyParameters {
    /// Key reference (7.2.18). It is also the CKA_ID.
    reference: u8,
    /// Control reference template (7.2.14).
    template: [u8; 2],
    /// Tag of the algorithm attributes.
    attributes: u32,
    /// Tag for writing the fingerprint.
    fingerprint: u8,
    /// Tag for writing the time of generation.
    created: u8,
    /// Occurrence of the cardholder certificate (4.4.3.3).
    occurrence: u8,
    name: &'static str,
    label: &'static str,
    certificate_label: &'static str,
}

const SIGNATURE: KeyParameters = KeyParameters {
    reference: 1,
    template: [0xB6, 0x00],
    attributes: 0xC1,
    fingerprint: 0xC7,
    created: 0xCE,
    occurrence: 2,
    name: "OpenPGP signature key",
    label: "Signature key",
    certificate_label: "SIG certificate",
};
const DECRYPTION: KeyParameters = KeyParameters {
    reference: 2,
    template: [0xB8, 0x00],
    attributes: 0xC2,
    fingerprint: 0xC8,
    created: 0xCF,
    occurrence: 1,
    name: "OpenPGP decryption key",
    label: "Encryption key",
    certificate_label: "DEC certificate",
};
const AUTHENTICATION: KeyParameters = KeyParameters {
    reference: 3,
    template: [0xA4, 0x00],
    attributes: 0xC3,
    fingerprint: 0xC9,
    created: 0xD0,
    occurrence: 0,
    name: "OpenPGP authentication key",
    label: "Authentication key",
    certificate_label: "AUT certificate",
};

impl KeyRole {
    /// Every key, in the order of key references, attributes and fingerprints.
    pub(super) const ALL: [Self; 3] = [Self::Signature, Self::Decryption, Self::Authentication];

    const fn parameters(self) -> &'static KeyParameters {
        match self {
            Self::Signature => &SIGNATURE,
            Self::Decryption => &DECRYPTION,
            Self::Authentication => &AUTHENTICATION,
        }
    }

    /// Returns the key with this key reference.
    pub(super) fn from_reference(reference: u8) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|key| key.parameters().reference == reference)
    }

    /// Returns the key whose objects have this CKA_ID.
    pub(super) fn from_id(id: &[u8]) -> Option<Self> {
        match id {
            [reference] => Self::from_reference(*reference),
            _ => None,
        }
    }

    /// Returns the key reference, which is also the CKA_ID of the objects.
    pub(super) const fn reference(self) -> u8 {
        self.parameters().reference
    }

    /// Returns the name for a person.
    pub(super) const fn name(self) -> &'static str {
        self.parameters().name
    }

    /// Returns the tag of the algorithm attributes.
    pub(super) const fn attributes_tag(self) -> u32 {
        self.parameters().attributes
    }

    /// Returns the tags for writing the fingerprint and the time of generation.
    pub(super) const fn tags(self) -> [u8; 2] {
        [self.parameters().fingerprint, self.parameters().created]
    }

    /// Returns the occurrence of the key's cardholder certificate.
    pub(super) const fn occurrence(self) -> u8 {
        self.parameters().occurrence
    }

    /// Returns CKA_ID and labels: those of OpenSC, unless the user has set others.
    pub(super) fn identity(self, naming: &Naming) -> KeyIdentity {
        let row = self.parameters();
        naming.apply(KeyIdentity {
            reference: row.reference,
            id: vec![row.reference],
            certificate_label: row.certificate_label.to_owned(),
            public_label: row.label.to_owned(),
            private_label: row.label.to_owned(),
        })
    }

    /// Returns the permitted functions of a key of this algorithm in this key reference.
    pub(super) const fn usage(self, algorithm: KeyAlgorithm) -> KeyPermissions {
        let rsa = matches!(algorithm, KeyAlgorithm::Rsa { .. });
        let agrees = matches!(algorithm, KeyAlgorithm::Ec(_) | KeyAlgorithm::X25519);
        let decrypts = matches!(self, Self::Decryption);
        KeyPermissions {
            sign: !decrypts && !matches!(algorithm, KeyAlgorithm::X25519),
            decrypt: decrypts && rsa,
            derive: decrypts && agrees,
        }
    }

    /// Returns when the key needs PW1. The PW status bytes determine it for signatures.
    pub(super) const fn pin_policy(self, several_signatures: bool) -> PinPolicy {
        match self {
            Self::Signature if !several_signatures => PinPolicy::Always,
            _ => PinPolicy::Once,
        }
    }

    /// Builds GENERATE ASYMMETRIC KEY PAIR that only reads the public key (7.2.14).
    pub(super) const fn read_public(self, algorithm: Option<KeyAlgorithm>) -> CommandApdu<'static> {
        let short = matches!(algorithm, Some(KeyAlgorithm::Rsa { .. }) | None);
        CommandApdu {
            data: &self.parameters().template,
            expected: if short {
                Expected::All
            } else {
                Expected::UpTo(256)
            },
            ..CommandApdu::header([0x00, 0x47, 0x81, 0x00])
        }
    }

    /// Builds GENERATE ASYMMETRIC KEY PAIR (7.2.14), which replaces the present key.
    pub(super) const fn generate(self) -> CommandApdu<'static> {
        CommandApdu {
            data: &self.parameters().template,
            expected: Expected::All,
            budget: CommandBudget::KeyGeneration,
            ..CommandApdu::header([0x00, 0x47, 0x80, 0x00])
        }
    }

    /// Returns the header of PSO: COMPUTE DIGITAL SIGNATURE (7.2.10) or INTERNAL AUTHENTICATE (7.2.13).
    const fn sign_header(self) -> Option<[u8; 4]> {
        match self {
            Self::Signature => Some([0x00, 0x2A, 0x9E, 0x9A]),
            Self::Authentication => Some([0x00, 0x88, 0x00, 0x00]),
            Self::Decryption => None,
        }
    }

    /// Returns the header of PSO: DECIPHER (7.2.11).
    const fn decipher_header(self) -> Option<[u8; 4]> {
        match self {
            Self::Decryption => Some([0x00, 0x2A, 0x80, 0x86]),
            Self::Signature | Self::Authentication => None,
        }
    }
}

/// One value for each key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PerKey<T>([T; 3]);

impl<T> PerKey<T> {
    /// Returns the value of `key`.
    pub(super) const fn get(&self, key: KeyRole) -> &T {
        let [signature, decryption, authentication] = &self.0;
        match key {
            KeyRole::Signature => signature,
            KeyRole::Decryption => decryption,
            KeyRole::Authentication => authentication,
        }
    }

    /// Returns the value of `key` for a change.
    pub(super) const fn get_mut(&mut self, key: KeyRole) -> &mut T {
        let [signature, decryption, authentication] = &mut self.0;
        match key {
            KeyRole::Signature => signature,
            KeyRole::Decryption => decryption,
            KeyRole::Authentication => authentication,
        }
    }
}

/// The limits of one card for signing commands.
#[derive(Clone, Copy, Debug)]
pub(super) struct SignLimits {
    /// Behaviours outside the specification.
    pub(super) quirks: Quirks,
    /// Longest command frame in bytes, if the card reports it.
    pub(super) max_command: Option<usize>,
}

impl SignLimits {
    /// Overhead of a frame: CLA INS P1 P2, three bytes of Lc, two of Le.
    const FRAME: usize = 9;

    fn max_message(&self) -> usize {
        let frame = self.max_command.map(|len| len.saturating_sub(Self::FRAME));
        let longest = self.quirks.max_message.or(frame);
        longest
            .unwrap_or(Limits::CHAINED_DATA)
            .min(Limits::CHAINED_DATA)
    }
}

/// Builds the command that uses `key` on `input`. To sign, RSA takes the DigestInfo, which the card pads; ECDSA a hash as
/// long as the field; Ed25519 the whole message. To decipher, RSA takes 00 and the cryptogram, a curve the peer's point:
///
/// ```text
/// A6 { 7F49 { 86 point } }
/// ```
pub(super) fn command(
    key: KeyRole,
    algorithm: KeyAlgorithm,
    input: &KeyInput,
    limits: SignLimits,
) -> Result<OwnedCommand, TokenError> {
    let header = match input {
        KeyInput::Cryptogram(_) | KeyInput::Point(_) => key.decipher_header(),
        _ => key.sign_header(),
    };
    let header = header.ok_or(TokenError::KeyFunctionNotPermitted)?;
    let data = match (algorithm, input) {
        (KeyAlgorithm::Rsa { .. }, KeyInput::Pkcs1(info)) => {
            at_most(info, algorithm.signature_len().saturating_sub(11))?
        }
        (KeyAlgorithm::Rsa { .. }, KeyInput::Cryptogram(cryptogram)) => {
            Secret::new([&[0x00], cryptogram.expose()].concat())
        }
        (KeyAlgorithm::Ec(_) | KeyAlgorithm::X25519, KeyInput::Point(point)) => {
            let point = tlv::encode(0x86, point.expose());
            Secret::new(tlv::encode(0xA6, &tlv::encode(0x7F49, &point)))
        }
        (KeyAlgorithm::Ec(curve), KeyInput::Hash(hash)) => {
            let hash = hash.expose();
            let len = match (curve.field_len(), limits.quirks.p521_hash_len) {
                (66, Some(len)) => len,
                (66, None) => hash.len().min(66),
                (len, _) => len,
            };
            Secret::new(fit_hash(hash, len))
        }
        (KeyAlgorithm::Ed25519, KeyInput::Message(message)) => {
            at_most(message, limits.max_message())?
        }
        _ => return Err(TokenError::KeyFunctionNotPermitted),
    };
    Ok(OwnedCommand {
        header,
        data,
        expected: Expected::UpTo(response_len(algorithm)),
        budget: CommandBudget::PrivateKey,
    })
}

/// Returns the Ne of a command. 256 allows the short form; only a longer signature needs the extended form.
fn response_len(algorithm: KeyAlgorithm) -> u32 {
    u32::try_from(algorithm.signature_len())
        .unwrap_or(u32::MAX)
        .max(256)
}

fn at_most(input: &Secret, max: usize) -> Result<Secret, TokenError> {
    if input.len() > max {
        return Err(TokenError::DataLength {
            len: input.len(),
            max,
        });
    }
    Ok(input.duplicate())
}

/// Converts the data of a 9000 response to [`command`] to Cryptoki's form: a signature, the message that the card unpadded,
/// or the shared secret at the field's length.
pub(super) fn output(
    algorithm: KeyAlgorithm,
    input: &KeyInput,
    response: &Secret,
) -> Result<Secret, TokenError> {
    let malformed = |expected: usize| {
        let len = response.len();
        TokenError::malformed(
            "OpenPGP PSO: DECIPHER",
            format!("{len} bytes; {expected} are expected"),
        )
    };
    match (algorithm, input) {
        (KeyAlgorithm::Rsa { .. }, KeyInput::Cryptogram(_)) => {
            let max = algorithm.signature_len().saturating_sub(11);
            (response.len() <= max)
                .then(|| response.duplicate())
                .ok_or_else(|| malformed(max))
        }
        (_, KeyInput::Point(_)) => {
            let len = match algorithm {
                KeyAlgorithm::Ec(curve) => curve.field_len(),
                _ => 32,
            };
            // Some cards send the whole point of the product.
            let x = match response.expose() {
                [0x04, point @ ..] if point.len() == 2 * len => point.get(..len).unwrap_or(point),
                [0x40, x @ ..] if x.len() == len => x,
                x => x,
            };
            (x.len() == len)
                .then(|| Secret::copy_from(x))
                .ok_or_else(|| malformed(len))
        }
        _ => signature(algorithm, response.expose()).map(Secret::new),
    }
}

/// Converts a signature to Cryptoki's form: as long as the modulus, r and s of the field's length, or 64 bytes.
fn signature(algorithm: KeyAlgorithm, response: &[u8]) -> Result<Vec<u8>, TokenError> {
    let len = algorithm.signature_len();
    let halves = match algorithm {
        KeyAlgorithm::Ec(_) if response.len() < len && response.len().is_multiple_of(2) => {
            response.split_at_checked(response.len() / 2)
        }
        _ => None,
    };
    match halves {
        Some((r, s)) if !r.is_empty() => Ok([fit_hash(r, len / 2), fit_hash(s, len / 2)].concat()),
        _ if response.len() == len && len > 0 => Ok(response.to_vec()),
        _ => Err(TokenError::malformed(
            "OpenPGP signature",
            format!("{} bytes; {len} are expected", response.len()),
        )),
    }
}

/// Parses the public key in a response to [`KeyRole::read_public`]: `7F49 { 81 n, 82 e }` or `7F49 { 86 point }`.
/// Only the algorithm attributes show the curve of a point.
pub(super) fn public_key(
    algorithm: Option<KeyAlgorithm>,
    response: &[u8],
) -> Result<PublicKey, TokenError> {
    const THING: &str = "OpenPGP public key 7F49";
    let template = tlv::only(response, 0x7F49).map_err(TokenError::tlv(THING))?;
    let part = |tag| tlv::find(template, tag).map_err(TokenError::tlv(THING));
    let key = match (part(0x81)?, part(0x82)?, part(0x86)?) {
        (Some(modulus), Some(exponent), _) => PublicKey::rsa(modulus, exponent),
        (_, _, Some(point)) => on_curve(algorithm, point),
        _ => None,
    };
    key.ok_or_else(|| TokenError::malformed(THING, "no key of the announced algorithm"))
}

fn on_curve(algorithm: Option<KeyAlgorithm>, point: &[u8]) -> Option<PublicKey> {
    match algorithm? {
        KeyAlgorithm::Ec(curve) => PublicKey::ec(curve, point),
        KeyAlgorithm::Ed25519 => without_prefix(point).map(PublicKey::Ed25519),
        KeyAlgorithm::X25519 => without_prefix(point).map(PublicKey::X25519),
        KeyAlgorithm::Rsa { .. } => None,
    }
}

/// Returns 32 bytes. Some cards send OpenPGP's prefix 40 before the point.
fn without_prefix(point: &[u8]) -> Option<[u8; 32]> {
    match point {
        [0x40, point @ ..] if point.len() == 32 => point.try_into().ok(),
        point => point.try_into().ok(),
    }
}

/// Parses arbitrary bytes as the responses to reading a key and to signing. This is the entry of the fuzz target.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    use crate::algorithm::Curve;
    for algorithm in [
        KeyAlgorithm::Rsa { bits: 2048 },
        KeyAlgorithm::Ec(Curve::P256),
        KeyAlgorithm::Ec(Curve::P521),
        KeyAlgorithm::Ed25519,
        KeyAlgorithm::X25519,
    ] {
        if let Ok(key) = public_key(Some(algorithm), bytes) {
            let rsa = matches!(key, PublicKey::Rsa { .. });
            assert!(
                rsa || key.algorithm() == algorithm,
                "no curve other than the announced one"
            );
        }
        if let Ok(signature) = signature(algorithm, bytes) {
            assert_eq!(signature.len(), algorithm.signature_len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::Curve;

    #[test]
    fn public_key_response_must_be_complete_and_of_the_announced_kind() {
        let rsa = [
            tlv::encode(0x81, &[0xC1; 256]),
            tlv::encode(0x82, &[1, 0, 1]),
        ]
        .concat();
        let rsa = tlv::encode(0x7F49, &rsa);
        let point = tlv::encode(0x86, &[&[4][..], &[0xE1; 64]].concat());
        let point = tlv::encode(0x7F49, &point);
        let p256 = Some(KeyAlgorithm::Ec(Curve::P256));
        assert!(public_key(None, &rsa).is_ok(), "RSA names itself");
        assert!(public_key(p256, &point).is_ok());
        assert!(public_key(None, &point).is_err(), "a point does not");
        assert!(public_key(Some(KeyAlgorithm::Ed25519), &point).is_err());
        for whole in [rsa, point] {
            for len in 0..whole.len() {
                assert!(public_key(p256, &whole[..len]).is_err(), "{len} bytes");
            }
            for bit in 0..whole.len().min(16) * 8 {
                let mut flipped = whole.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                fuzz(&flipped);
            }
            assert!(public_key(p256, &[&whole[..], &[0]].concat()).is_err());
        }
    }

    #[test]
    fn every_key_is_found_by_its_reference() {
        for key in KeyRole::ALL {
            assert_eq!(KeyRole::from_id(&[key.parameters().reference]), Some(key));
            assert_eq!(
                KeyRole::from_reference(key.parameters().reference),
                Some(key)
            );
        }
        assert_eq!(
            KeyRole::from_reference(0x81),
            None,
            "Yubico's attestation key"
        );
    }

    #[test]
    fn the_decryption_key_does_not_sign() {
        let input = KeyInput::Pkcs1(Secret::copy_from(&[7; 51]));
        let limits = SignLimits {
            quirks: Quirks::default(),
            max_command: None,
        };
        let rsa = KeyAlgorithm::Rsa { bits: 4096 };
        let refused = command(KeyRole::Decryption, rsa, &input, limits);
        assert!(matches!(refused, Err(TokenError::KeyFunctionNotPermitted)));
        let command = command(KeyRole::Signature, rsa, &input, limits).unwrap();
        assert_eq!(command.expected, Expected::UpTo(512), "one extended frame");
    }
}
