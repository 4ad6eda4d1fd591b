//! The response to GET METADATA (Yubico, F7). Some cards send a part of it, some send nothing.

use claviger_apdu::{CommandApdu, Expected, StatusWord, tlv};

use super::key_reference::KeyReference;
use crate::{
    algorithm::{Curve, PublicKey},
    error::TokenError,
    object::{KeyOrigin, PinPolicy},
};

const THING: &str = "PIV key metadata";

/// The metadata of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    /// When the key needs the PIN. With `None` the rule of the key reference applies.
    pub(super) pin: Option<PinPolicy>,
    /// The origin of the key.
    pub(super) origin: KeyOrigin,
    /// The public key.
    pub(super) public_key: Option<PublicKey>,
}

/// A response to GET METADATA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MetadataAnswer {
    /// The key reference holds a key.
    Key(Metadata),
    /// The key reference holds no key.
    NoKey,
    /// The card has no metadata.
    Unsupported,
}

/// Builds GET METADATA of `key`.
pub(super) const fn command(key: KeyReference) -> CommandApdu<'static> {
    CommandApdu {
        expected: Expected::All,
        ..CommandApdu::header([0x00, 0xF7, 0x00, key.byte()])
    }
}

/// Parses a response with `status` and `data`.
///
/// # Errors
/// [`TokenError::Malformed`].
pub(super) fn parse_answer(status: StatusWord, data: &[u8]) -> Result<MetadataAnswer, TokenError> {
    match status {
        StatusWord::OK if data.is_empty() => Ok(MetadataAnswer::Unsupported),
        StatusWord::OK => Metadata::parse(data).map(MetadataAnswer::Key),
        StatusWord::REFERENCE_NOT_FOUND | StatusWord::NOT_FOUND => Ok(MetadataAnswer::NoKey),
        _ => Ok(MetadataAnswer::Unsupported),
    }
}

impl Metadata {
    fn parse(data: &[u8]) -> Result<Self, TokenError> {
        let field = |tag| tlv::find(data, tag).map_err(TokenError::tlv(THING));
        let key = match (field(0x01)?, field(0x04)?) {
            (Some([algorithm]), Some(key)) => public_key(*algorithm, key)?,
            _ => None,
        };
        Ok(Self {
            pin: match field(0x02)? {
                Some([1, ..]) => Some(PinPolicy::Never),
                // 4 and 5 mean the same with a fingerprint instead of the PIN.
                Some([2 | 4, ..]) => Some(PinPolicy::Once),
                Some([3 | 5, ..]) => Some(PinPolicy::Always),
                _ => None,
            },
            origin: match field(0x03)? {
                Some([1]) => KeyOrigin::Generated,
                Some([2]) => KeyOrigin::Imported,
                _ => KeyOrigin::Unknown,
            },
            public_key: key,
        })
    }
}

/// Returns the key in `template`: 81 modulus and 82 exponent, or 86 point. Returns `None` for unknown algorithms.
pub(super) fn public_key(algorithm: u8, template: &[u8]) -> Result<Option<PublicKey>, TokenError> {
    let field = |tag| {
        let field = tlv::find(template, tag).map_err(TokenError::tlv(THING));
        field.map(Option::unwrap_or_default)
    };
    let point = field(0x86)?;
    Ok(match algorithm {
        0x05 | 0x06 | 0x07 | 0x16 => PublicKey::rsa(field(0x81)?, field(0x82)?),
        0x11 => PublicKey::ec(Curve::P256, point),
        0x14 => PublicKey::ec(Curve::P384, point),
        0xE0 => point.try_into().ok().map(PublicKey::Ed25519),
        0xE1 => point.try_into().ok().map(PublicKey::X25519),
        _ => None,
    })
}

/// Parses arbitrary bytes. This is the entry of the fuzz target.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn fuzz(bytes: &[u8]) {
    if let Ok(MetadataAnswer::Key(Metadata {
        public_key: Some(key),
        ..
    })) = parse_answer(StatusWord::OK, bytes)
    {
        assert!(!key.info().is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(fields: &[(u32, &[u8])]) -> Result<MetadataAnswer, TokenError> {
        let data: Vec<u8> = fields
            .iter()
            .flat_map(|(tag, value)| tlv::encode(*tag, value))
            .collect();
        parse_answer(StatusWord::OK, &data)
    }

    #[test]
    fn yubikey_metadata_gives_pin_policy_origin_and_public_key() {
        let point = [&[4][..], &[7; 64]].concat();
        let key = tlv::encode(0x86, &point);
        let response = parse(&[(1, &[0x11]), (2, &[3, 1]), (3, &[1]), (4, &key)]).unwrap();
        assert_eq!(
            response,
            MetadataAnswer::Key(Metadata {
                pin: Some(PinPolicy::Always),
                origin: KeyOrigin::Generated,
                public_key: PublicKey::ec(Curve::P256, &point),
            })
        );
    }

    #[test]
    fn incomplete_metadata_is_used() {
        let response = parse(&[(2, &[1, 0])]).unwrap();
        assert_eq!(
            response,
            MetadataAnswer::Key(Metadata {
                pin: Some(PinPolicy::Never),
                origin: KeyOrigin::Unknown,
                public_key: None,
            })
        );
    }

    #[test]
    fn missing_key_and_missing_metadata_are_distinguished() {
        let status = |status| parse_answer(StatusWord(status), &[]).unwrap();
        assert_eq!(status(0x6A88), MetadataAnswer::NoKey);
        assert_eq!(status(0x6A82), MetadataAnswer::NoKey);
        assert_eq!(status(0x6D00), MetadataAnswer::Unsupported);
        assert_eq!(status(0x9000), MetadataAnswer::Unsupported);
    }

    #[test]
    fn malformed_metadata_is_refused_and_an_invalid_key_ignored() {
        assert!(parse_answer(StatusWord::OK, &[0x01, 0x05, 0x11]).is_err());
        let short = tlv::encode(0x86, &[4; 64]);
        assert!(matches!(
            parse(&[(1, &[0x11]), (4, &short)]).unwrap(),
            MetadataAnswer::Key(Metadata {
                public_key: None,
                ..
            })
        ));
        assert!(parse(&[(1, &[0x11]), (4, &[0x86, 0x41])]).is_err());
    }
}
