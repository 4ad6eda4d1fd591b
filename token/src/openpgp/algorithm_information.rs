//! Which keys the card can make (FA; OpenPGP card 3.4, 4.4.3.10), as the algorithm attributes it wants for each.

use claviger_apdu::tlv::Cursor;

use crate::{
    algorithm::{Curve, KeyAlgorithm},
    openpgp::{
        data_object::{self, ApplicationData, ED25519_OLD_OID, X25519_OLD_OID},
        key::KeyRole,
    },
};

/// Algorithm information.
pub(super) const ALGORITHM_INFORMATION: u8 = 0xFA;

/// Algorithm attributes that make a place one for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
struct AlgorithmAttributes {
    key: KeyRole,
    algorithm: KeyAlgorithm,
    attributes: Vec<u8>,
}

/// What a card can make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GenerationAlgorithms(Vec<AlgorithmAttributes>);

impl GenerationAlgorithms {
    /// As far as the application related data tells: the keys its places are for now and, on a card whose places
    /// can be for others, RSA of the length every version makes.
    pub(super) fn of(data: &ApplicationData) -> Self {
        let mut algorithms = Self(Vec::new());
        for key in KeyRole::ALL {
            let record = data.keys.get(key);
            algorithms.add(key, &record.attributes);
        }
        if data.changeable {
            for key in KeyRole::ALL {
                let form = match data.keys.get(key).attributes.as_slice() {
                    [0x01, _, _, e1, e2, form, ..] => [*e1, *e2, *form],
                    _ => [0x00, 0x20, 0x00],
                };
                algorithms.add(key, &[&[0x01, 0x08, 0x00][..], &form].concat());
            }
        }
        algorithms
    }

    /// What FA adds. An answer that ends in the middle counts as far as it goes; one of nonsense adds nothing.
    #[must_use]
    pub(super) fn with(mut self, response: &[u8]) -> Self {
        let list = data_object::value_of(response, ALGORITHM_INFORMATION.into());
        // Some cards give the tag with a length that does not fit (YubiKey 5.2 to 5.4).
        let list = match list {
            [0xFA, 0x82, _, _, rest @ ..]
            | [0xFA, 0x81, _, rest @ ..]
            | [0xFA, 0x00..=0x7F, rest @ ..] => rest,
            list => list,
        };
        let mut cursor = Cursor::new(list);
        while let Ok(Some((tag, attributes))) = cursor.next_object() {
            if let Some(key) = KeyRole::ALL
                .into_iter()
                .find(|key| key.attributes_tag() == tag)
            {
                self.add(key, attributes);
            }
        }
        self
    }

    fn add(&mut self, key: KeyRole, attributes: &[u8]) {
        let Some(algorithm) = data_object::algorithm(attributes) else {
            return;
        };
        if !is_for(key, algorithm) || self.attributes(key, algorithm).is_some() {
            return;
        }
        let mut attributes = attributes.to_vec();
        if let (Some(first), Some(id)) = (attributes.first_mut(), identifier(key, algorithm)) {
            // X25519 is announced as EdDSA by some cards (YubiKey before 5.6.1).
            *first = id;
        }
        self.0.push(AlgorithmAttributes {
            key,
            algorithm,
            attributes,
        });
    }

    /// The attributes that make the place of `key` one for `algorithm`.
    pub(super) fn attributes(&self, key: KeyRole, algorithm: KeyAlgorithm) -> Option<&[u8]> {
        self.0
            .iter()
            .find(|offer| offer.key == key && offer.algorithm == algorithm)
            .map(|offer| offer.attributes.as_slice())
    }

    /// Every algorithm that is for one place or another.
    pub(super) fn algorithms(&self) -> Vec<KeyAlgorithm> {
        let mut algorithms = Vec::new();
        for offer in &self.0 {
            if !algorithms.contains(&offer.algorithm) {
                algorithms.push(offer.algorithm);
            }
        }
        algorithms
    }
}

/// Whether a key of this algorithm can do what its place is for.
const fn is_for(key: KeyRole, algorithm: KeyAlgorithm) -> bool {
    match algorithm {
        KeyAlgorithm::Rsa { bits } => bits >= 1024,
        KeyAlgorithm::Ec(_) => true,
        KeyAlgorithm::Ed25519 => !matches!(key, KeyRole::Decryption),
        KeyAlgorithm::X25519 => matches!(key, KeyRole::Decryption),
    }
}

/// The public-key algorithm (RFC 4880, 9.1, and RFC 9580) of a key in a place.
pub(super) const fn identifier(key: KeyRole, algorithm: KeyAlgorithm) -> Option<u8> {
    match (key, algorithm) {
        (_, KeyAlgorithm::Rsa { .. }) => Some(0x01),
        (KeyRole::Decryption, KeyAlgorithm::Ec(_) | KeyAlgorithm::X25519) => Some(0x12),
        (KeyRole::Signature | KeyRole::Authentication, KeyAlgorithm::Ec(_)) => Some(0x13),
        (KeyRole::Signature | KeyRole::Authentication, KeyAlgorithm::Ed25519) => Some(0x16),
        _ => None,
    }
}

/// Content octets of the curve's identifier as OpenPGP version 4 keys have it.
pub(super) fn curve_oid(algorithm: KeyAlgorithm) -> &'static [u8] {
    match algorithm {
        KeyAlgorithm::Ec(curve) => Curve::oid(curve),
        KeyAlgorithm::Ed25519 => ED25519_OLD_OID,
        KeyAlgorithm::X25519 => X25519_OLD_OID,
        KeyAlgorithm::Rsa { .. } => &[],
    }
}

/// Parses arbitrary bytes; for the fuzz target beside this file.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let algorithms = GenerationAlgorithms(Vec::new()).with(bytes);
    assert!(algorithms.0.len() <= bytes.len(), "no offer but the card's");
    for AlgorithmAttributes {
        key,
        algorithm,
        attributes,
    } in &algorithms.0
    {
        assert_eq!(data_object::algorithm(attributes), Some(*algorithm));
        assert_eq!(attributes.first().copied(), identifier(*key, *algorithm));
    }
}

#[cfg(test)]
mod tests {
    use claviger_apdu::tlv;

    use super::*;
    use crate::algorithm::ED25519_OID;

    const P256: KeyAlgorithm = KeyAlgorithm::Ec(Curve::P256);

    fn list() -> Vec<u8> {
        let oid = |id: u8, oid: &[u8]| [&[id][..], oid].concat();
        [
            tlv::encode(0xC1, &[1, 0x08, 0, 0, 0x11, 3]),
            tlv::encode(0xC1, &oid(0x13, Curve::P256.oid())),
            tlv::encode(0xC1, &oid(0x16, ED25519_OLD_OID)),
            tlv::encode(0xC1, &oid(0x16, X25519_OLD_OID)),
            tlv::encode(0xC2, &oid(0x16, X25519_OLD_OID)),
            tlv::encode(0xC2, &oid(0x12, Curve::P256.oid())),
            tlv::encode(0xC3, &oid(0x16, ED25519_OID)),
            tlv::encode(0xDA, &[1, 0x08, 0, 0, 0x11, 3]),
        ]
        .concat()
    }

    #[test]
    fn key_reference_accepts_listed_algorithms_with_the_cards_attributes() {
        let algorithms = GenerationAlgorithms(Vec::new()).with(&tlv::encode(0xFA, &list()));
        let rsa = KeyAlgorithm::Rsa { bits: 2048 };
        assert_eq!(
            algorithms.attributes(KeyRole::Signature, rsa),
            Some(&[1, 0x08, 0, 0, 0x11, 3][..])
        );
        assert_eq!(algorithms.attributes(KeyRole::Decryption, rsa), None);
        assert!(
            algorithms
                .attributes(KeyRole::Signature, KeyAlgorithm::X25519)
                .is_none()
        );
        let x25519 = algorithms.attributes(KeyRole::Decryption, KeyAlgorithm::X25519);
        assert_eq!(x25519.unwrap()[0], 0x12, "announced as 16");
        let modern = algorithms.attributes(KeyRole::Authentication, KeyAlgorithm::Ed25519);
        assert_eq!(modern, Some(&[&[0x16], ED25519_OID].concat()[..]));
        assert_eq!(
            algorithms.algorithms(),
            [rsa, P256, KeyAlgorithm::Ed25519, KeyAlgorithm::X25519]
        );
    }

    #[test]
    fn the_outer_tag_may_be_missing_and_its_length_wrong() {
        let bare = GenerationAlgorithms(Vec::new()).with(&list());
        assert_eq!(bare.0.len(), 6);
        let tagged = tlv::encode(0xFA, &list());
        assert_eq!(GenerationAlgorithms(Vec::new()).with(&tagged), bare);
        let short = &tagged[..tagged.len() - 2];
        assert_eq!(
            GenerationAlgorithms(Vec::new()).with(short),
            bare,
            "the last is no key's"
        );
    }

    #[test]
    fn nonsense_adds_nothing() {
        for nonsense in [&[][..], &[0xFA], &[0xFF; 9], &[0xC1, 0x03, 0x77, 1, 2]] {
            assert_eq!(GenerationAlgorithms(Vec::new()).with(nonsense).0, []);
        }
    }
}
