//! Operations of the host with public keys, checked against other implementations and against hostile keys.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use claviger_token::{
    algorithm::{Curve, KeyAlgorithm, PublicKey},
    host::public_key::{is_on_curve, verifiable},
};
use hex_literal::hex;

const CURVES: [(&str, Curve); 7] = [
    ("P256", Curve::P256),
    ("P384", Curve::P384),
    ("P521", Curve::P521),
    ("Secp256k1", Curve::Secp256k1),
    ("BrainpoolP256", Curve::BrainpoolP256),
    ("BrainpoolP384", Curve::BrainpoolP384),
    ("BrainpoolP512", Curve::BrainpoolP512),
];

/// A point, and signatures with its key over digests.
struct Vectors {
    curve: Curve,
    point: Vec<u8>,
    signed: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Vectors {
    fn all() -> Vec<Self> {
        CURVES.map(|(name, curve)| Self::of(name, curve)).into()
    }

    fn of(name: &str, curve: Curve) -> Self {
        let rows: Vec<(&str, Vec<u8>)> = include_str!("data/ecdsa.txt")
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.split_once(' '))
            .map(|(what, hex)| (what, unhex(hex)))
            .collect();
        let signed = rows[1..]
            .iter()
            .map(|(len, r_s)| (digest(len.parse().unwrap()), r_s.clone()));
        Self {
            curve,
            point: rows[0].1.clone(),
            signed: signed.collect(),
        }
    }

    fn key(&self) -> PublicKey {
        PublicKey::ec(self.curve, &self.point).unwrap()
    }
}

fn digest(len: usize) -> Vec<u8> {
    (0..len).map(|i| (0x81 + 7 * i).to_le_bytes()[0]).collect()
}

fn unhex(hex: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
}

#[test]
fn signatures_over_digests_of_any_length_are_verified() {
    for vectors in Vectors::all() {
        let key = vectors.key();
        let can = verifiable(key.algorithm());
        assert_eq!(vectors.signed.len(), 4);
        for (digest, r_s) in &vectors.signed {
            let len = digest.len();
            assert_eq!(
                key.verify_ecdsa(digest, r_s),
                can,
                "{:?} {len}",
                vectors.curve
            );
        }
    }
}

#[test]
fn digest_bits_beyond_the_order_are_ignored_and_all_others_count() {
    for vectors in Vectors::all() {
        let key = vectors.key();
        if !verifiable(key.algorithm()) {
            continue;
        }
        let (digest, r_s) = &vectors.signed[3];
        let bits = usize::from(vectors.curve.bits());
        for bit in 0..digest.len() * 8 {
            if bit % 8 != 0 && bit.abs_diff(bits) > 8 {
                continue;
            }
            let mut other = digest.clone();
            other[bit / 8] ^= 0x80 >> (bit % 8);
            let verified = key.verify_ecdsa(&other, r_s);
            assert_eq!(verified, bit >= bits, "{:?} bit {bit}", vectors.curve);
        }
    }
}

#[test]
fn a_signature_with_another_bit_or_length_is_refused() {
    for vectors in Vectors::all() {
        let key = vectors.key();
        let (digest, r_s) = &vectors.signed[1];
        for bit in (0..r_s.len() * 8).step_by(37) {
            let mut other = r_s.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(!key.verify_ecdsa(digest, &other));
        }
        let longer = [r_s, &[0][..]].concat();
        for other in [&[], &r_s[1..], &r_s[..r_s.len() - 1], &longer] {
            assert!(!key.verify_ecdsa(digest, other));
        }
        let half = r_s.len() / 2;
        for value in [0x00, 0xFF] {
            for part in [0..half, half..2 * half] {
                let mut other = r_s.clone();
                other[part].fill(value);
                assert!(!key.verify_ecdsa(digest, &other), "r or s of {value:02X}");
            }
        }
        assert!(!key.verify_ecdsa(&[], r_s));
    }
}

/// The complementary s is the order of the group less s. SEC 2 lists the orders.
#[test]
fn complementary_s_of_an_ecdsa_signature_is_accepted() {
    let p256 = hex!("FFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551");
    let k256 = hex!("FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141");
    for (name, curve, order) in [
        ("P256", Curve::P256, p256),
        ("Secp256k1", Curve::Secp256k1, k256),
    ] {
        let vectors = Vectors::of(name, curve);
        for (digest, r_s) in &vectors.signed {
            let mut other = r_s.clone();
            let mut borrow = 0;
            for (byte, order) in other[32..].iter_mut().zip(order).rev() {
                let difference = 256 + i32::from(order) - i32::from(*byte) - borrow;
                borrow = i32::from(difference < 256);
                *byte = difference.to_le_bytes()[0];
            }
            assert_ne!(&other, r_s);
            assert!(vectors.key().verify_ecdsa(digest, &other), "{name}");
        }
    }
}

#[test]
fn point_off_the_curve_is_detected_and_verifies_nothing() {
    for vectors in Vectors::all() {
        let (curve, point) = (vectors.curve, &vectors.point);
        let known = verifiable(KeyAlgorithm::Ec(curve)).then_some(true);
        assert_eq!(is_on_curve(curve, point), known);
        let mut off = point.clone();
        *off.last_mut().unwrap() ^= 1;
        let zero = [&[4][..], &vec![0; point.len() - 1]].concat();
        let huge = [&[4][..], &vec![0xFF; point.len() - 1]].concat();
        for other in [&off, &zero, &huge, &vec![0], &vec![], &point[1..].to_vec()] {
            assert_eq!(is_on_curve(curve, other), known.map(|_| false));
            let key = PublicKey::Ec {
                curve,
                point: other.clone(),
            };
            let (digest, r_s) = &vectors.signed[1];
            assert!(!key.verify_ecdsa(digest, r_s));
        }
    }
}

/// RFC 6979, A.2.5, "sample" with SHA-256.
#[test]
fn a_signature_of_rfc_6979_is_verified() {
    let p256 = hex!(
        "04 60FED4BA255A9D31C961EB74C6356D68C049B8923B61FA6CE669622E60F29FB6
            7903FE1008B8BC99A41AE9E95628BC64F2F1B20C2D7E9F5177A3C294D4462299"
    );
    let signature = hex!(
        "EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716
         F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8"
    );
    let digest = hex!("AF2BDBE1AA9B6EC1E2ADE1D694F41FC71A831D0268E9891562113D8A62ADD1BF");
    let key = PublicKey::ec(Curve::P256, &p256).unwrap();
    assert!(key.verify_ecdsa(&digest, &signature));
}

/// RFC 8032, 7.1, tests 1 to 3.
const EDDSA: [([u8; 32], &[u8], [u8; 64]); 3] = [
    (
        hex!("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"),
        &[],
        hex!(
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155
             5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    (
        hex!("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"),
        &hex!("72"),
        hex!(
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da
             085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        ),
    ),
    (
        hex!("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025"),
        &hex!("af82"),
        hex!(
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac
             18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
        ),
    ),
];

#[test]
fn eddsa_accepts_the_signature_of_the_message_only() {
    for (key, message, signature) in EDDSA {
        let key = PublicKey::Ed25519(key);
        assert!(key.verify_eddsa(message, &signature));
        assert!(!key.verify_eddsa(b"another", &signature));
        for bit in 0..512 {
            let mut other = signature;
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(!key.verify_eddsa(message, &other));
        }
        for len in [0, 32, 63] {
            assert!(!key.verify_eddsa(message, &signature[..len]));
        }
    }
}

/// The neutral point as key and as R, with S = 0, would verify every message.
#[test]
fn eddsa_refuses_keys_that_sign_everything() {
    let mut neutral = [0; 32];
    neutral[0] = 1;
    let signature = [neutral, [0; 32]].concat();
    assert!(!PublicKey::Ed25519(neutral).verify_eddsa(b"anything", &signature));
    assert!(!PublicKey::Ed25519([0xFF; 32]).verify_eddsa(b"anything", &signature));
}

#[test]
fn keys_refuse_operations_of_other_key_types() {
    let rsa = PublicKey::rsa(&[0xC1; 256], &[1, 0, 1]).unwrap();
    let ed = PublicKey::Ed25519(EDDSA[0].0);
    let ec = Vectors::of("P256", Curve::P256).key();
    assert!(!rsa.verify_ecdsa(&[1; 32], &[1; 64]) && !ed.verify_ecdsa(&[1; 32], &[1; 64]));
    assert!(!rsa.verify_eddsa(&[], &EDDSA[0].2) && !ec.verify_eddsa(&[], &EDDSA[0].2));
    assert!(ec.rsa_raw(&[1; 64]).is_none() && ed.rsa_raw(&[1; 32]).is_none());
    assert!(verifiable(rsa.algorithm()) && verifiable(ed.algorithm()));
    assert!(!verifiable(KeyAlgorithm::X25519));
    assert!(!verifiable(KeyAlgorithm::Rsa { bits: 256 }));
}

fn rsa(modulus: &[u8], exponent: &[u8]) -> PublicKey {
    PublicKey::Rsa {
        modulus: modulus.to_vec(),
        exponent: exponent.to_vec(),
    }
}

#[test]
fn small_numbers_are_raised_without_wrapping() {
    // 2^3 and 3^17 are below any modulus; 0 and 1 stay unchanged.
    for (exponent, base, power) in [(3, 2, 8u64), (17, 3, 129_140_163), (17, 0, 0), (17, 1, 1)] {
        let key = rsa(&[0xC1; 65], &[exponent]);
        let mut block = [0; 65];
        block[64] = base;
        let raised = key.rsa_raw(&block).unwrap();
        assert_eq!(raised.len(), 65);
        assert_eq!(raised[57..], power.to_be_bytes());
        assert!(raised[..57].iter().all(|byte| *byte == 0));
    }
}

/// n - 1 is -1, which an odd exponent leaves unchanged.
#[test]
fn the_largest_number_below_the_modulus_is_taken_and_the_modulus_is_not() {
    let key = rsa(&[0xC1; 128], &[1, 0, 1]);
    let mut block = [0xC1; 128];
    assert_eq!(key.rsa_raw(&block), None);
    block[127] -= 1;
    assert_eq!(key.rsa_raw(&block).unwrap(), block);
    assert_eq!(key.rsa_raw(&[0xFF; 128]), None);
    assert_eq!(key.rsa_raw(&[0; 127]), None);
    assert_eq!(key.rsa_raw(&[0; 129]), None);
}

#[test]
fn numbers_no_rsa_key_has_are_refused() {
    let good = [0xC1; 64];
    let even = [&[0xC1; 63][..], &[0xC2]].concat();
    let leading = [&[0][..], &good].concat();
    let block = |len: usize| vec![0; len];
    for (modulus, exponent) in [
        (&even[..], &[3][..]),
        (&good, &[]),
        (&good, &[0]),
        (&good, &[1]),
        (&good, &[0, 1]),
        (&good, &[1, 0]),
        (&good, &[1; 9]),
        (&leading, &[3]),
        (&good[..63], &[3]),
        (&[0xC1; 2049], &[3]),
        (&[], &[3]),
    ] {
        assert_eq!(rsa(modulus, exponent).rsa_raw(&block(modulus.len())), None);
    }
    assert!(rsa(&good, &[3]).rsa_raw(&block(64)).is_some());
}

#[test]
fn costliest_rsa_key_is_computed_within_30_seconds() {
    let start = std::time::Instant::now();
    let key = rsa(&[0xFF; 2048], &[0xFF; 8]);
    assert!(key.rsa_raw(&[0x7F; 2048]).is_some());
    println!("16 384 bits, exponent of 64: {:?}", start.elapsed());
    assert!(start.elapsed() < std::time::Duration::from_secs(30));
}
