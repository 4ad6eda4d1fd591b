//! GENERATE ASYMMETRIC KEY PAIR (SP 800-73-4 part 2, 3.3.2), and which keys a card can make.
//!
//! ```text
//! 00 47 00 key   AC { 80 algorithm }   →   7F49 { 81 modulus  82 exponent }   or   7F49 { 86 point }
//! ```

use claviger_apdu::{
    CommandApdu, CommandBudget, Expected, Secret, StatusWord,
    tlv::{self, Cursor},
};

use super::{authenticate, key_reference::KeyReference, metadata};
use crate::{
    algorithm::{Curve, KeyAlgorithm, PublicKey},
    applet::OwnedCommand,
    error::TokenError,
};

const THING: &str = "answer to PIV GENERATE ASYMMETRIC KEY PAIR";

/// What SP 800-78-4 has every card make.
const STANDARD: [KeyAlgorithm; 3] = [
    KeyAlgorithm::Rsa { bits: 2048 },
    KeyAlgorithm::Ec(Curve::P256),
    KeyAlgorithm::Ec(Curve::P384),
];
/// What the standard left out or added later, and Yubico's extensions.
const OTHERS: [KeyAlgorithm; 5] = [
    KeyAlgorithm::Rsa { bits: 1024 },
    KeyAlgorithm::Rsa { bits: 3072 },
    KeyAlgorithm::Rsa { bits: 4096 },
    KeyAlgorithm::Ed25519,
    KeyAlgorithm::X25519,
];

/// The keys a card can make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GenerationAlgorithms(Vec<KeyAlgorithm>);

impl GenerationAlgorithms {
    /// As the card lists them in its answer to SELECT (part 2, table 3: `AC { 80 algorithm … }`); what the
    /// standard demands when it lists none.
    pub(super) fn of(select_answer: &[u8]) -> Self {
        let listed = listed(select_answer).unwrap_or_default();
        if listed.is_empty() {
            Self(STANDARD.to_vec())
        } else {
            Self(listed)
        }
    }

    /// As YubiKeys of this version do, which list none.
    pub(super) fn of_yubikey(version: [u8; 3]) -> Self {
        let mut keys = STANDARD.to_vec();
        // Their RSA keys can be factored, and the firmware makes none any more (CVE-2017-15361).
        if ([4, 2, 0]..[4, 3, 5]).contains(&version) {
            keys.retain(|key| !matches!(key, KeyAlgorithm::Rsa { .. }));
        }
        if version < [4, 0, 0] {
            keys.retain(|key| *key != KeyAlgorithm::Ec(Curve::P384));
        }
        if version >= [5, 7, 0] {
            keys.extend(OTHERS.into_iter().skip(1));
        }
        Self(keys)
    }

    /// All of them.
    pub(super) fn keys(&self) -> &[KeyAlgorithm] {
        &self.0
    }
}

fn listed(select_answer: &[u8]) -> Option<Vec<KeyAlgorithm>> {
    let template = tlv::only(select_answer, 0x61).ok()?;
    let mut identifiers = Vec::new();
    let mut properties = Cursor::new(template);
    while let Some((tag, value)) = properties.next_object().ok()? {
        if tag != 0xAC {
            continue;
        }
        let mut algorithms = Cursor::new(value);
        while let Some((tag, value)) = algorithms.next_object().ok()? {
            if tag == 0x80 {
                identifiers.extend(value);
            }
        }
    }
    let is_listed = |key: &KeyAlgorithm| {
        authenticate::identifier(*key).is_some_and(|id| identifiers.contains(&id))
    };
    let keys = STANDARD.into_iter().chain(OTHERS);
    Some(keys.filter(is_listed).collect())
}

/// GET VERSION (Yubico, FD).
pub(super) const GET_VERSION: CommandApdu<'static> = CommandApdu {
    expected: Expected::UpTo(256),
    ..CommandApdu::header([0x00, 0xFD, 0x00, 0x00])
};

/// The command that makes a key, and the algorithm's number in it; `None` when PIV has none.
pub(super) fn command(key: KeyReference, algorithm: KeyAlgorithm) -> Option<OwnedCommand> {
    let identifier = authenticate::identifier(algorithm)?;
    let parameters = tlv::encode(0x80, &[identifier]);
    Some(OwnedCommand {
        header: [0x00, 0x47, 0x00, key.byte()],
        data: Secret::new(tlv::encode(0xAC, &parameters)),
        expected: Expected::All,
        budget: CommandBudget::KeyGeneration,
    })
}

/// The key in an answer to [`command`].
///
/// # Errors
/// [`TokenError::Malformed`], also when it is of another algorithm than was asked for.
pub(super) fn public_key(
    algorithm: KeyAlgorithm,
    response: &[u8],
) -> Result<PublicKey, TokenError> {
    let template = tlv::only(response, 0x7F49).map_err(TokenError::tlv(THING))?;
    let identifier = authenticate::identifier(algorithm).unwrap_or_default();
    metadata::public_key(identifier, template)?
        .filter(|key| key.algorithm() == algorithm)
        .ok_or_else(|| TokenError::malformed(THING, "no key of the kind that was asked for"))
}

/// What a refusal to make a key means.
pub(super) fn refusal(
    key: KeyReference,
    algorithm: KeyAlgorithm,
    status: StatusWord,
) -> TokenError {
    match status {
        StatusWord::INCORRECT_DATA | StatusWord::FUNCTION_NOT_SUPPORTED => {
            TokenError::KeyNotGenerable(algorithm)
        }
        _ => {
            let operation = format!("PIV GENERATE ASYMMETRIC KEY PAIR in {:02X}", key.byte());
            TokenError::not_written(operation, status)
        }
    }
}

/// Reads arbitrary bytes as answers to SELECT and to making each kind of key; for the fuzz target beside this file.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn fuzz(bytes: &[u8]) {
    let generable = GenerationAlgorithms::of(bytes);
    assert!(!generable.keys().is_empty());
    for algorithm in STANDARD.into_iter().chain(OTHERS) {
        if let Ok(key) = public_key(algorithm, bytes) {
            assert_eq!(key.algorithm(), algorithm, "no key but the one asked for");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RSA_2048: KeyAlgorithm = KeyAlgorithm::Rsa { bits: 2048 };

    fn select_answer(identifiers: &[u8]) -> Vec<u8> {
        let mut list: Vec<u8> = identifiers
            .iter()
            .flat_map(|identifier| tlv::encode(0x80, &[*identifier]))
            .collect();
        list.extend(tlv::encode(0x06, &[0]));
        let aid = tlv::encode(0x4F, &[0, 0, 0x10, 0, 1, 0]);
        tlv::encode(0x61, &[aid, tlv::encode(0xAC, &list)].concat())
    }

    #[test]
    fn generatable_algorithms_are_the_standard_ones_and_those_the_card_lists() {
        // The Nitrokey 3: 3DES and AES-256 stand among them.
        let generable =
            GenerationAlgorithms::of(&select_answer(&[0x03, 0x0C, 0x11, 0x07, 0x05, 0x16, 0x14]));
        let other = |bits| KeyAlgorithm::Rsa { bits };
        let expected = [&STANDARD[..], &[other(3072), other(4096)]].concat();
        assert_eq!(generable.keys(), expected);
        assert_eq!(
            GenerationAlgorithms::of(&select_answer(&[0x03])).keys(),
            STANDARD
        );
        assert_eq!(
            GenerationAlgorithms::of(&[0x61, 0x05, 0x4F]).keys(),
            STANDARD
        );
    }

    #[test]
    fn yubikey_generates_what_its_version_supports() {
        let has = |version, key| {
            GenerationAlgorithms::of_yubikey(version)
                .keys()
                .contains(&key)
        };
        assert!(has([5, 7, 1], KeyAlgorithm::Ed25519));
        assert!(!has([5, 7, 1], KeyAlgorithm::Rsa { bits: 1024 }));
        assert!(!has([5, 4, 3], KeyAlgorithm::Rsa { bits: 3072 }));
        assert!(!has([4, 3, 4], RSA_2048));
        assert!(has([4, 3, 5], RSA_2048));
        assert!(!has([3, 4, 0], KeyAlgorithm::Ec(Curve::P384)));
    }

    #[test]
    fn generated_key_response_must_be_complete_and_of_the_requested_type() {
        let p256 = KeyAlgorithm::Ec(Curve::P256);
        let point = tlv::encode(0x86, &[&[4][..], &[0xE1; 64]].concat());
        let response = tlv::encode(0x7F49, &point);
        assert_eq!(public_key(p256, &response).unwrap().algorithm(), p256);
        let ed25519 = tlv::encode(0x7F49, &tlv::encode(0x86, &[7; 32]));
        assert!(public_key(KeyAlgorithm::Ed25519, &ed25519).is_ok());
        assert!(public_key(p256, &ed25519).is_err());
        let small = [
            tlv::encode(0x81, &[0xC1; 128]),
            tlv::encode(0x82, &[1, 0, 1]),
        ]
        .concat();
        assert!(public_key(RSA_2048, &tlv::encode(0x7F49, &small)).is_err());
        for len in 0..response.len() {
            assert!(public_key(p256, &response[..len]).is_err(), "{len} bytes");
        }
        assert!(public_key(p256, &[&response[..], &[0]].concat()).is_err());
    }
}
