//! The keys that the card can generate (FA; OpenPGP card 3.4, 4.4.3.10), given as the algorithm attributes for each key
//! reference.

use claviger_apdu::tlv::Cursor;

use crate::{
    algorithm::{Curve, KeyAlgorithm},
    openpgp::{
        data_object::{self, ApplicationData, ED25519_OLD_OID, X25519_OLD_OID},
        key::KeyRole,
    },
};

/// Tag of the algorithm information.
pub(super) const ALGORITHM_INFORMATION: u8 = 0xFA;

/// Algorithm attributes for a key reference and an algorithm.
#[derive(Clone, Debug, PartialEq, Eq)]
struct AlgorithmAttributes {
    key: KeyRole,
    algorithm: KeyAlgorithm,
    attributes: Vec<u8>,
}

/// The algorithms for which a card can generate keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GenerationAlgorithms(Vec<AlgorithmAttributes>);

impl GenerationAlgorithms {
    /// Returns the algorithms that the application related data shows: the present attributes of each key. If the
    /// attributes can be changed, also RSA of 2048 bits, which every version supports.
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

    /// Adds the algorithms of FA. From a truncated response, adds those before its end. An invalid response adds
    /// nothing.
    #[must_use]
    pub(super) fn with(mut self, response: &[u8]) -> Self {
        let list = data_object::value_of(response, ALGORITHM_INFORMATION.into());
        // Some cards send the tag with a wrong length (YubiKey 5.2 to 5.4).
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
            // Some cards announce X25519 as EdDSA (YubiKey before 5.6.1).
            *first = id;
        }
        self.0.push(AlgorithmAttributes {
            key,
            algorithm,
            attributes,
        });
    }

    /// Returns the algorithm attributes to write for `key` and `algorithm`.
    pub(super) fn attributes(&self, key: KeyRole, algorithm: KeyAlgorithm) -> Option<&[u8]> {
        self.0
            .iter()
            .find(|entry| entry.key == key && entry.algorithm == algorithm)
            .map(|entry| entry.attributes.as_slice())
    }

    /// Returns every algorithm that at least one key reference supports.
    pub(super) fn algorithms(&self) -> Vec<KeyAlgorithm> {
        let mut algorithms = Vec::new();
        for entry in &self.0 {
            if !algorithms.contains(&entry.algorithm) {
                algorithms.push(entry.algorithm);
            }
        }
        algorithms
    }
}

/// Returns whether a key of this algorithm can do the work of its key reference.
const fn is_for(key: KeyRole, algorithm: KeyAlgorithm) -> bool {
    match algorithm {
        KeyAlgorithm::Rsa { bits } => bits >= 1024,
        KeyAlgorithm::Ec(_) => true,
        KeyAlgorithm::Ed25519 => !matches!(key, KeyRole::Decryption),
        KeyAlgorithm::X25519 => matches!(key, KeyRole::Decryption),
    }
}

/// Returns the public-key algorithm number (RFC 4880, 9.1, and RFC 9580) of a key in a key reference.
pub(super) const fn identifier(key: KeyRole, algorithm: KeyAlgorithm) -> Option<u8> {
    match (key, algorithm) {
        (_, KeyAlgorithm::Rsa { .. }) => Some(0x01),
        (KeyRole::Decryption, KeyAlgorithm::Ec(_) | KeyAlgorithm::X25519) => Some(0x12),
        (KeyRole::Signature | KeyRole::Authentication, KeyAlgorithm::Ec(_)) => Some(0x13),
        (KeyRole::Signature | KeyRole::Authentication, KeyAlgorithm::Ed25519) => Some(0x16),
        _ => None,
    }
}

/// Returns the content octets of the curve's object identifier in OpenPGP version 4 keys.
pub(super) fn curve_oid(algorithm: KeyAlgorithm) -> &'static [u8] {
    match algorithm {
        KeyAlgorithm::Ec(curve) => Curve::oid(curve),
        KeyAlgorithm::Ed25519 => ED25519_OLD_OID,
        KeyAlgorithm::X25519 => X25519_OLD_OID,
        KeyAlgorithm::Rsa { .. } => &[],
    }
}

/// Parses arbitrary bytes. This is the entry of the fuzz target.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let algorithms = GenerationAlgorithms(Vec::new()).with(bytes);
    assert!(
        algorithms.0.len() <= bytes.len(),
        "no algorithm that the card does not list"
    );
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
            "the last object belongs to no key"
        );
    }

    #[test]
    fn nonsense_adds_nothing() {
        for nonsense in [&[][..], &[0xFA], &[0xFF; 9], &[0xC1, 0x03, 0x77, 1, 2]] {
            assert_eq!(GenerationAlgorithms(Vec::new()).with(nonsense).0, []);
        }
    }
}
