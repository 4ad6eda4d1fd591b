//! GENERAL AUTHENTICATE (SP 800-73-4 part 2, 3.2.4): signatures, the raw RSA function, key agreement.
//!
//! ```text
//! 00 87 algorithm key   7C { 82 (empty: requests the output)  81 input, or 85 the peer's point }
//!                    →  7C { 82 output }
//! ```

use claviger_apdu::{CommandBudget, Expected, Secret, tlv};
use der::{Decode, Reader, SliceReader, asn1::UintRef};

use crate::{
    algorithm::{Curve, KeyAlgorithm},
    applet::OwnedCommand,
    error::TokenError,
    object::PrivateKey,
    operation::{KeyInput, fit_hash},
    padding,
};

const THING: &str = "response to PIV GENERAL AUTHENTICATE";
/// Longest message for Ed25519. With its template it fills the command buffer of a YubiKey 5.7.
const MAX_MESSAGE: usize = 3 * 1024 - 16;

/// Returns P1 for keys of this algorithm (SP 800-78-4, table 6-2, and Yubico's extensions), or `None` if PIV has no
/// number for it.
pub(super) const fn identifier(algorithm: KeyAlgorithm) -> Option<u8> {
    match algorithm {
        KeyAlgorithm::Rsa { bits: 1024 } => Some(0x06),
        KeyAlgorithm::Rsa { bits: 2048 } => Some(0x07),
        KeyAlgorithm::Rsa { bits: 3072 } => Some(0x05),
        KeyAlgorithm::Rsa { bits: 4096 } => Some(0x16),
        KeyAlgorithm::Ec(Curve::P256) => Some(0x11),
        KeyAlgorithm::Ec(Curve::P384) => Some(0x14),
        KeyAlgorithm::Ed25519 => Some(0xE0),
        KeyAlgorithm::X25519 => Some(0xE1),
        _ => None,
    }
}

/// Returns the command that uses `key` on `input`.
///
/// # Errors
/// [`TokenError::DataLength`] if the input is too long for the card, [`TokenError::KeyFunctionNotPermitted`] if key and
/// input do not fit.
pub(super) fn command(key: &PrivateKey, input: &KeyInput) -> Result<OwnedCommand, TokenError> {
    let identifier = identifier(key.algorithm).ok_or(TokenError::KeyFunctionNotPermitted)?;
    let len = key.algorithm.signature_len();
    let (tag, value, expected) = match (key.algorithm, input) {
        (KeyAlgorithm::Rsa { .. }, KeyInput::Pkcs1(t)) => {
            let block = padding::pkcs1_sign(t.expose(), len);
            let block = block.ok_or_else(|| too_long(t.len(), len.saturating_sub(11)))?;
            (0x81, block, Expected::All)
        }
        (KeyAlgorithm::Rsa { .. }, KeyInput::Block(block) | KeyInput::Cryptogram(block))
            if block.len() == len =>
        {
            (0x81, block.duplicate(), Expected::All)
        }
        (KeyAlgorithm::Ec(curve), KeyInput::Hash(hash)) => {
            let fitted = fit_hash(hash.expose(), curve.field_len());
            (0x81, Secret::new(fitted), Expected::UpTo(256))
        }
        (KeyAlgorithm::Ed25519, KeyInput::Message(message)) => {
            if message.len() > MAX_MESSAGE {
                return Err(too_long(message.len(), MAX_MESSAGE));
            }
            (0x81, message.duplicate(), Expected::UpTo(256))
        }
        (KeyAlgorithm::Ec(_) | KeyAlgorithm::X25519, KeyInput::Point(point)) => {
            (0x85, point.duplicate(), Expected::UpTo(256))
        }
        _ => return Err(TokenError::KeyFunctionNotPermitted),
    };
    let value = Secret::new(tlv::encode(tag, value.expose()));
    let fields = Secret::new([&[0x82, 0x00], value.expose()].concat());
    Ok(OwnedCommand {
        header: [0x00, 0x87, identifier, key.reference],
        data: Secret::new(tlv::encode(0x7C, fields.expose())),
        expected,
        budget: CommandBudget::PrivateKey,
    })
}

const fn too_long(len: usize, max: usize) -> TokenError {
    TokenError::DataLength { len, max }
}

/// Returns the output in a 9000 response, according to `input`: the RSA number at the modulus's length, r and s of the
/// field's length each, the 64 bytes of Ed25519, or the shared secret at the field's length.
///
/// # Errors
/// [`TokenError::Malformed`].
pub(super) fn output(
    algorithm: KeyAlgorithm,
    input: &KeyInput,
    response: &[u8],
) -> Result<Secret, TokenError> {
    let malformed = |fault: &str| TokenError::malformed(THING, fault);
    let fields = tlv::only(response, 0x7C).map_err(TokenError::tlv(THING))?;
    let output = tlv::find(fields, 0x82)
        .map_err(TokenError::tlv(THING))?
        .ok_or_else(|| malformed("no response in it"))?;
    let whole = match (algorithm, input) {
        (KeyAlgorithm::Ec(curve), KeyInput::Point(_)) if output.len() == curve.field_len() => {
            Ok(output.to_vec())
        }
        (KeyAlgorithm::X25519, KeyInput::Point(_)) if output.len() == 32 => Ok(output.to_vec()),
        (_, KeyInput::Point(_)) => Err(malformed("not a shared secret of the curve")),
        // Some cards omit leading zeros.
        (KeyAlgorithm::Rsa { .. }, _) => left_padded(output, algorithm.signature_len())
            .filter(|_| !output.is_empty())
            .ok_or_else(|| malformed("not as long as the modulus")),
        (KeyAlgorithm::Ec(curve), _) => ecdsa(output, curve.field_len())
            .map_err(|fault| TokenError::malformed(THING, fault))?
            .ok_or_else(|| malformed("r or s is zero or larger than the field")),
        (KeyAlgorithm::Ed25519, _) if output.len() == 64 => Ok(output.to_vec()),
        (KeyAlgorithm::Ed25519 | KeyAlgorithm::X25519, _) => Err(malformed("not a signature")),
    };
    whole.map(Secret::new)
}

/// Converts ECDSA-Sig-Value (RFC 3279, 2.2.3) to r and s of `len` bytes each.
fn ecdsa(value: &[u8], len: usize) -> der::Result<Option<Vec<u8>>> {
    let mut reader = SliceReader::new(value)?;
    let (r, s) = reader.sequence(|numbers| {
        der::Result::Ok((UintRef::decode(numbers)?, UintRef::decode(numbers)?))
    })?;
    reader.finish()?;
    let fixed = |number: UintRef<'_>| {
        let zero = number.as_bytes().iter().all(|byte| *byte == 0);
        left_padded(number.as_bytes(), len).filter(|_| !zero)
    };
    Ok(fixed(r)
        .zip(fixed(s))
        .map(|(r, s)| [r.as_slice(), &s].concat()))
}

fn left_padded(number: &[u8], len: usize) -> Option<Vec<u8>> {
    let mut padded = vec![0; len.checked_sub(number.len())?];
    padded.extend_from_slice(number);
    Some(padded)
}

/// Parses arbitrary bytes as the response of every kind of key. This is the entry of the fuzz target.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn fuzz(bytes: &[u8]) {
    for algorithm in [
        KeyAlgorithm::Rsa { bits: 2048 },
        KeyAlgorithm::Ec(Curve::P256),
        KeyAlgorithm::Ec(Curve::P384),
        KeyAlgorithm::Ed25519,
        KeyAlgorithm::X25519,
    ] {
        for input in [
            KeyInput::Hash(Secret::default()),
            KeyInput::Point(Secret::default()),
        ] {
            let Ok(output) = output(algorithm, &input, bytes) else {
                continue;
            };
            match (algorithm, input) {
                (KeyAlgorithm::Ec(curve), KeyInput::Point(_)) => {
                    assert_eq!(output.len(), curve.field_len());
                }
                (KeyAlgorithm::X25519, _) => assert_eq!(output.len(), 32),
                _ => assert_eq!(output.len(), algorithm.signature_len()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{KeyPermissions, PinPolicy};

    const P256: KeyAlgorithm = KeyAlgorithm::Ec(Curve::P256);
    const RSA: KeyAlgorithm = KeyAlgorithm::Rsa { bits: 2048 };

    fn key(algorithm: KeyAlgorithm) -> PrivateKey {
        PrivateKey {
            reference: 0x9A,
            algorithm,
            pin: PinPolicy::Once,
            usage: KeyPermissions::default(),
            raw_rsa: true,
        }
    }

    fn response(output: &[u8]) -> Vec<u8> {
        tlv::encode(0x7C, &tlv::encode(0x82, output))
    }

    fn der(r: &[u8], s: &[u8]) -> Vec<u8> {
        response(&tlv::encode(
            0x30,
            &[tlv::encode(0x02, r), tlv::encode(0x02, s)].concat(),
        ))
    }

    fn signature(algorithm: KeyAlgorithm, response: &[u8]) -> Result<Vec<u8>, TokenError> {
        let input = KeyInput::Hash(Secret::default());
        output(algorithm, &input, response).map(|output| output.expose().to_vec())
    }

    #[test]
    fn key_agreement_sends_the_point_and_takes_a_secret_of_the_field_length() {
        let point = KeyInput::Point(Secret::new([&[4], &[0x11; 64][..]].concat()));
        let command = command(&key(P256), &point).unwrap();
        let start = [0x7C, 0x45, 0x82, 0x00, 0x85, 0x41, 0x04, 0x11];
        assert!(command.data.expose().starts_with(&start));
        let secret = output(P256, &point, &response(&[7; 32])).unwrap();
        assert_eq!(secret.expose(), [7; 32]);
        assert!(output(P256, &point, &response(&[7; 31])).is_err());
        assert!(output(RSA, &point, &response(&[7; 256])).is_err());
    }

    #[test]
    fn p256_signing_command_matches_the_standards_example() {
        let hash = KeyInput::Hash(Secret::new(vec![0xAB; 32]));
        let command = command(&key(P256), &hash).unwrap();
        assert_eq!(command.header, [0x00, 0x87, 0x11, 0x9A]);
        let start = [0x7C, 0x24, 0x82, 0x00, 0x81, 0x20, 0xAB];
        assert!(command.data.expose().starts_with(&start));
        assert_eq!(command.data.len(), 0x26);
    }

    #[test]
    fn hashes_are_fitted_to_the_field() {
        let data = |algorithm, len: usize| {
            let hash = KeyInput::Hash(Secret::new((1..=len).flat_map(u8::try_from).collect()));
            let command = command(&key(algorithm), &hash).unwrap();
            command.data.expose()[6..].to_vec()
        };
        assert_eq!(data(P256, 64), (1..=32).collect::<Vec<u8>>());
        let padded = data(KeyAlgorithm::Ec(Curve::P384), 32);
        assert_eq!(padded[..16], [0; 16]);
        assert_eq!(padded[16..], (1..=32).collect::<Vec<u8>>());
    }

    #[test]
    fn an_rsa_block_is_exactly_as_long_as_the_modulus() {
        let t = KeyInput::Pkcs1(Secret::new(vec![0x55; 51]));
        let made = command(&key(RSA), &t).unwrap();
        let data = made.data.expose();
        assert_eq!(data.len(), 266);
        let start = [0x7C, 0x82, 0x01, 0x06, 0x82, 0x00, 0x81, 0x82, 0x01, 0x00];
        assert_eq!(data[..10], start);
        assert_eq!(data[10..12], [0x00, 0x01]);
        assert_eq!(data[12..214], [0xFF; 202]);
        assert_eq!(data[214], 0x00);
        assert_eq!(data[215..], [0x55; 51]);
        let too_long = KeyInput::Pkcs1(Secret::new(vec![0; 246]));
        assert!(matches!(
            command(&key(RSA), &too_long),
            Err(TokenError::DataLength { len: 246, max: 245 })
        ));
    }

    #[test]
    fn short_r_is_padded_and_the_sign_byte_of_a_high_s_removed() {
        let high = [&[0x00, 0x80], &[0x22; 31][..]].concat();
        let got = signature(P256, &der(&[0x11; 30], &high)).unwrap();
        let expected = [&[0; 2], &[0x11; 30][..], &high[1..]].concat();
        assert_eq!(got, expected);
        let got = signature(P256, &der(&[1], &[2])).unwrap();
        assert_eq!((got.len(), got[31], got[63]), (64, 1, 2));
    }

    #[test]
    fn malformed_signature_is_refused() {
        let refused = |response: &[u8]| signature(P256, response).is_err();
        assert!(refused(&der(&[1; 33], &[1])), "longer than the field");
        assert!(refused(&der(&[0], &[1])), "zero");
        assert!(refused(&der(&[0x80; 32], &[1])), "negative");
        assert!(refused(&der(&[0, 1], &[1])), "not DER");
        assert!(refused(&der(&[], &[1])), "no number");
        assert!(refused(&[&der(&[1], &[1])[..], &[0]].concat()), "trailing");
        assert!(refused(&tlv::encode(0x7C, &tlv::encode(0x81, &[1]))));
        assert!(refused(&[]));
        assert!(signature(KeyAlgorithm::Ed25519, &response(&[0; 63])).is_err());
        assert!(signature(RSA, &response(&[1; 257])).is_err());
        assert!(signature(RSA, &response(&[])).is_err());
    }

    #[test]
    fn rsa_response_without_its_leading_zeros_is_padded() {
        let got = signature(RSA, &response(&[0x77; 255])).unwrap();
        assert_eq!((got.len(), got[0], got[1]), (256, 0x00, 0x77));
    }
}
