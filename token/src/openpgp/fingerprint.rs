//! The fingerprint that identifies a key in OpenPGP (RFC 4880, 12.2; ECC after RFC 6637 and RFC 9580).

use sha1::{Digest, Sha1};

use crate::{
    algorithm::{Curve, KeyAlgorithm, PublicKey},
    openpgp::{
        algorithm_information::{curve_oid, identifier},
        key::KeyRole,
    },
};

/// Returns the fingerprint of `public` as `key`, generated `created` seconds after 1970. Returns `None` if OpenPGP has
/// no such key.
pub(super) fn fingerprint(key: KeyRole, public: &PublicKey, created: u32) -> Option<[u8; 20]> {
    let algorithm = public.algorithm();
    let mut packet = vec![0x04];
    packet.extend(created.to_be_bytes());
    packet.push(identifier(key, algorithm)?);
    packet.extend(material(key, public)?);
    let len = u16::try_from(packet.len()).ok()?;
    let mut hash = Sha1::new();
    hash.update([0x99]);
    hash.update(len.to_be_bytes());
    hash.update(&packet);
    Some(hash.finalize().into())
}

/// Returns the key material: the RSA numbers, or curve and point. An ECDH key also has the parameters of its key
/// derivation.
fn material(key: KeyRole, public: &PublicKey) -> Option<Vec<u8>> {
    let prefixed = |point: &[u8; 32]| [&[0x40][..], point].concat();
    let point = match public {
        PublicKey::Rsa { modulus, exponent } => {
            return Some([integer(modulus)?, integer(exponent)?].concat());
        }
        PublicKey::Ec { point, .. } => point.clone(),
        PublicKey::Ed25519(point) | PublicKey::X25519(point) => prefixed(point),
    };
    let oid = curve_oid(public.algorithm());
    let mut material = vec![u8::try_from(oid.len()).ok()?];
    material.extend(oid);
    material.extend(integer(&point)?);
    if matches!(key, KeyRole::Decryption) {
        material.extend(derivation(public.algorithm()));
    }
    Some(material)
}

/// Returns length, 01, hash and cipher of the key derivation (RFC 6637, 9 and 13).
const fn derivation(algorithm: KeyAlgorithm) -> [u8; 4] {
    let (hash, cipher) = match algorithm {
        KeyAlgorithm::Ec(Curve::P384 | Curve::BrainpoolP384) => (9, 8),
        KeyAlgorithm::Ec(Curve::P521 | Curve::BrainpoolP512) => (10, 9),
        _ => (8, 7),
    };
    [3, 1, hash, cipher]
}

/// Encodes a multiprecision integer (RFC 4880, 3.2): its length in bits and its bytes.
fn integer(number: &[u8]) -> Option<Vec<u8>> {
    let zeros = number.first()?.leading_zeros();
    let bits = (8 * number.len()).checked_sub(usize::try_from(zeros).ok()?)?;
    Some([&u16::try_from(bits).ok()?.to_be_bytes()[..], number].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex::hex;

    #[test]
    fn the_fingerprint_of_rfc_9580_appendix_a_is_found() {
        // A.1: an Ed25519 key of version 4, and its fingerprint as GnuPG prints it.
        let point = hex("3f098994bdd916ed4053197934e4a87c80733a1280d62f8010992e43ee3b2406");
        let public = PublicKey::Ed25519(point.try_into().unwrap());
        let found = fingerprint(KeyRole::Signature, &public, 0x53F3_5F0B).unwrap();
        assert_eq!(
            found.to_vec(),
            hex("c959bdbafa32a2f89a153b678cfde12197965a9a")
        );
    }

    #[test]
    fn decryption_key_fingerprint_differs_from_a_signing_keys() {
        let point = [&[4][..], &[0xE1; 64]].concat();
        let public = PublicKey::ec(Curve::P256, &point).unwrap();
        let of = |key| fingerprint(key, &public, 1).unwrap();
        assert_ne!(of(KeyRole::Signature), of(KeyRole::Decryption));
        assert_eq!(of(KeyRole::Signature), of(KeyRole::Authentication));
        assert_ne!(
            of(KeyRole::Signature),
            fingerprint(KeyRole::Signature, &public, 2).unwrap()
        );
        let x25519 = PublicKey::X25519([7; 32]);
        assert!(fingerprint(KeyRole::Signature, &x25519, 1).is_none());
    }

    #[test]
    fn openpgp_integer_begins_with_its_bit_count() {
        assert_eq!(integer(&[1, 0, 1]), Some(vec![0, 17, 1, 0, 1]));
        assert_eq!(integer(&[0x40]), Some(vec![0, 7, 0x40]));
        assert_eq!(integer(&[]), None);
    }
}
