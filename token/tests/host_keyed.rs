//! Digests, HMAC, key wrap and key derivation on the host, checked against the examples of their standards.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use claviger_apdu::Secret;
use claviger_token::{
    digest::{Hash, Hasher},
    host::{
        kdf::x963,
        key_wrap::{Wrap, unwrap, wrap},
        mac::Mac,
    },
};
use hex_literal::hex;

fn secret(bytes: &[u8]) -> Secret {
    Secret::copy_from(bytes)
}

/// NIST's examples of FIPS 180-4: "abc".
#[test]
fn digests_are_as_in_fips_180_4() {
    for (hash, digest) in [
        (
            Hash::Sha1,
            &hex!("a9993e364706816aba3e25717850c26c9cd0d89d")[..],
        ),
        (
            Hash::Sha224,
            &hex!("23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7"),
        ),
        (
            Hash::Sha256,
            &hex!("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        ),
        (
            Hash::Sha384,
            &hex!(
                "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed"
                "8086072ba1e7cc2358baeca134c825a7"
            ),
        ),
        (
            Hash::Sha512,
            &hex!(
                "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
                "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"
            ),
        ),
    ] {
        assert_eq!(hash.digest(&[b"a", b"", b"bc"]).expose(), digest);
        assert_eq!(digest.len(), hash.len());
    }
}

#[test]
fn each_hash_is_found_by_its_own_numbers() {
    for hash in Hash::ALL {
        assert_eq!(Hash::from_mechanism(hash.mechanism()), Some(hash));
        assert_eq!(Hash::from_mgf(hash.mgf()), Some(hash));
    }
    assert_eq!(Hash::from_mgf(0), None);
    assert_eq!(Hash::from_mechanism(cryptoki_sys::CKM_RSA_PKCS), None);
    assert_eq!(Hash::from_mechanism(cryptoki_sys::CKM_SHA512_256), None);
}

#[test]
fn saved_digest_state_continues_where_it_was() {
    let message: Vec<u8> = (0..300u16).map(|i| i.to_le_bytes()[0]).collect();
    for hash in Hash::ALL {
        let whole = hash.digest(&[&message]);
        for at in 0..=message.len() {
            let (head, tail) = message.split_at(at);
            let mut first = Hasher::new(hash);
            first.update(head);
            let mut second = Hasher::restore(hash, &first.save()).unwrap();
            let mut third = first.duplicate();
            second.update(tail);
            assert_eq!(second.finish().expose(), whole.expose(), "{hash:?} at {at}");
            third.update(b"another");
            first.update(tail);
            assert_eq!(first.finish().expose(), whole.expose());
        }
    }
}

#[test]
fn a_state_of_another_hash_or_length_is_not_restored() {
    for hash in Hash::ALL {
        let mut hasher = Hasher::new(hash);
        hasher.update(b"abc");
        let saved = hasher.save();
        for other in Hash::ALL {
            assert_eq!(Hasher::restore(other, &saved).is_some(), other == hash);
        }
        for len in 0..saved.len() {
            assert!(Hasher::restore(hash, &saved[..len]).is_none());
        }
        let longer = [&saved[..], &[0]].concat();
        assert!(Hasher::restore(hash, &longer).is_none());
    }
}

/// The hash increments the block count without a check for overflow.
#[test]
fn a_state_that_claims_to_have_hashed_everything_is_not_restored() {
    for hash in Hash::ALL {
        let saved = Hasher::new(hash).save();
        let (chaining, width) = match hash {
            Hash::Sha1 => (20, 8),
            Hash::Sha224 | Hash::Sha256 => (32, 8),
            Hash::Sha384 | Hash::Sha512 => (64, 16),
        };
        let count = 1 + chaining..1 + chaining + width;
        assert_eq!(saved[count.clone()], vec![0; width]);
        for (byte, value) in count.clone().flat_map(|at| [(at, 0x01), (at, 0xFF)]) {
            let mut hostile = saved.clone();
            hostile[byte] = value;
            let sane = byte - count.start < 6;
            let restored = Hasher::restore(hash, &hostile);
            assert_eq!(restored.is_some(), sane, "{hash:?} byte {byte}");
            if let Some(mut hasher) = restored {
                hasher.update(&[0; 1000]);
                assert_eq!(hasher.finish().len(), hash.len());
            }
        }
    }
}

/// RFC 2202, 3, and RFC 4231, 4: test cases 1, 2, 5 (truncated) and 6.
#[test]
fn hmac_is_as_in_rfc_2202_and_rfc_4231() {
    let check = |hash, key: &[u8], message: &[u8], tag: &[u8]| {
        let mac = || {
            let mut mac = Mac::new(hash, &secret(key));
            message.chunks(5).for_each(|part| mac.update(part));
            mac
        };
        assert!(mac().matches(tag), "{hash:?}");
        assert_eq!(mac().finish().expose()[..tag.len()], *tag);
    };
    let jefe = b"what do ya want for nothing?";
    check(
        Hash::Sha1,
        &[0x0B; 20],
        b"Hi There",
        &hex!("b617318655057264e28bc0b6fb378c8ef146be00"),
    );
    check(
        Hash::Sha1,
        b"Jefe",
        jefe,
        &hex!("effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"),
    );
    check(
        Hash::Sha224,
        b"Jefe",
        jefe,
        &hex!("a30e01098bc6dbbf45690f3a7e9e6d0f8bbea2a39e6148008fd05e44"),
    );
    check(
        Hash::Sha256,
        &[0x0B; 20],
        b"Hi There",
        &hex!("b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
    );
    check(
        Hash::Sha384,
        b"Jefe",
        jefe,
        &hex!(
            "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e"
            "8e2240ca5e69e2c78b3239ecfab21649"
        ),
    );
    check(
        Hash::Sha512,
        b"Jefe",
        jefe,
        &hex!(
            "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea250554"
            "9758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737"
        ),
    );
    check(
        Hash::Sha256,
        &[0x0C; 20],
        b"Test With Truncation",
        &hex!("a3b6167473100ee06e0c796c2955552b"),
    );
    let long = b"Test Using Larger Than Block-Size Key - Hash Key First";
    check(
        Hash::Sha256,
        &[0xAA; 131],
        long,
        &hex!("60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"),
    );
}

#[test]
fn tag_that_is_empty_too_long_or_different_does_not_match() {
    for hash in Hash::ALL {
        let mac = || Mac::new(hash, &secret(b"key"));
        let tag = mac().finish();
        let longer = [tag.expose(), &[0]].concat();
        assert!(!mac().matches(&[]) && !mac().matches(&longer));
        for len in 1..=tag.len() {
            assert!(mac().matches(&tag.expose()[..len]));
            let mut other = tag.expose()[..len].to_vec();
            other[len - 1] ^= 1;
            assert!(!mac().matches(&other));
        }
    }
}

#[test]
fn hmac_key_of_block_length_is_used_as_is_and_a_longer_one_hashed() {
    for hash in Hash::ALL {
        let tag = |key: &[u8]| Mac::new(hash, &secret(key)).finish().expose().to_vec();
        let key = vec![0x42; hash.block_len() + 1];
        assert_eq!(tag(&key), tag(hash.digest(&[&key]).expose()));
        let block = &key[1..];
        assert_ne!(tag(block), tag(hash.digest(&[block]).expose()));
        assert_eq!(tag(&[]), tag(&[0]));
    }
}

/// RFC 3394, 4.1, 4.3, 4.6, and RFC 5649, 6.
#[test]
fn keys_are_wrapped_as_in_rfc_3394_and_rfc_5649() {
    let kek: Vec<u8> = (0..32).collect();
    let padded = hex!("5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8");
    let key = hex!("00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f");
    for (kind, kek, key, wrapped) in [
        (
            Wrap::Kw,
            &kek[..16],
            &key[..16],
            &hex!("1fa68b0a8112b447aef34bd8fb5a7b829d3e862371d2cfe5")[..],
        ),
        (
            Wrap::Kw,
            &kek[..],
            &key[..16],
            &hex!("64e8c3f9ce0f5ba263e9777905818a2a93c8191e7d6e8ae7"),
        ),
        (
            Wrap::Kw,
            &kek[..],
            &key[..],
            &hex!(
                "28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21"
            ),
        ),
        (
            Wrap::Kwp,
            &padded,
            &hex!("c37b7e6492584340bed12207808941155068f738"),
            &hex!("138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a"),
        ),
        (
            Wrap::Kwp,
            &padded,
            &hex!("466f7250617369"),
            &hex!("afbeb0f07dfbf5419200f2ccb50bb24f"),
        ),
    ] {
        let (kek, key) = (secret(kek), secret(key));
        assert_eq!(wrap(kind, &kek, &key).unwrap().expose(), wrapped);
        assert_eq!(unwrap(kind, &kek, wrapped).unwrap().expose(), key.expose());
    }
}

#[test]
fn every_wrappable_key_length_is_wrapped() {
    for kek in [16, 24, 32].map(|len| secret(&vec![0x4B; len])) {
        for len in 0..=80 {
            let key = secret(&vec![0x77; len]);
            for (kind, can) in [(Wrap::Kw, len >= 16 && len % 8 == 0), (Wrap::Kwp, len >= 1)] {
                let wrapped = wrap(kind, &kek, &key);
                assert_eq!(wrapped.is_some(), can, "{kind:?} {len}");
                let Some(wrapped) = wrapped else { continue };
                assert_eq!(wrapped.len(), len.next_multiple_of(8) + 8);
                let back = unwrap(kind, &kek, wrapped.expose()).unwrap();
                assert_eq!(back.expose(), key.expose());
            }
        }
    }
}

#[test]
fn altered_wrapped_key_or_one_under_another_key_is_refused() {
    let kek = secret(&[0x4B; 32]);
    for (kind, other_kind) in [(Wrap::Kw, Wrap::Kwp), (Wrap::Kwp, Wrap::Kw)] {
        for len in [16, 32] {
            let wrapped = wrap(kind, &kek, &secret(&vec![7; len])).unwrap();
            let wrapped = wrapped.expose();
            for bit in 0..wrapped.len() * 8 {
                let mut touched = wrapped.to_vec();
                touched[bit / 8] ^= 1 << (bit % 8);
                assert!(unwrap(kind, &kek, &touched).is_none());
            }
            for cut in 0..wrapped.len() {
                assert!(unwrap(kind, &kek, &wrapped[..cut]).is_none());
            }
            assert!(unwrap(kind, &secret(&[0x4C; 32]), wrapped).is_none());
            assert!(unwrap(other_kind, &kek, wrapped).is_none());
        }
    }
}

#[test]
fn keys_of_impossible_length_neither_wrap_nor_are_wrapped() {
    let key = secret(&[7; 16]);
    for len in (0..=64).filter(|len| ![16, 24, 32].contains(len)) {
        for kind in [Wrap::Kw, Wrap::Kwp] {
            assert!(wrap(kind, &secret(&vec![0; len]), &key).is_none());
            assert!(unwrap(kind, &secret(&vec![0; len]), &[0; 24]).is_none());
        }
    }
    let kek = secret(&[0x4B; 16]);
    for kind in [Wrap::Kw, Wrap::Kwp] {
        let longest = secret(&vec![7; 64 * 1024]);
        let wrapped = wrap(kind, &kek, &longest).unwrap();
        assert!(unwrap(kind, &kek, wrapped.expose()).is_some());
        assert!(wrap(kind, &kek, &secret(&vec![7; 64 * 1024 + 8])).is_none());
        assert!(unwrap(kind, &kek, &vec![0; 64 * 1024 + 16]).is_none());
    }
}

/// NIST's examples of SP 800-135 (CAVS, ansx963_2001, SHA-256). The other vectors are from OpenSSL.
#[test]
fn keys_are_derived_as_in_x9_63() {
    let nist = hex!("96c05619d56c328ab95fe84b18264b08725b85e33fd34f08");
    let z: Vec<u8> = (1..=32).collect();
    for (hash, z, shared, key) in [
        (
            Hash::Sha256,
            &nist[..],
            &b""[..],
            &hex!("443024c3dae66b95e6f5670601558f71")[..],
        ),
        (
            Hash::Sha1,
            &z,
            b"shared",
            &hex!(
                "5ec5f290e9749c7786f5b11cb3aa98a613a348ae6169884261f3c8d9b6783e01"
                "e5a129e0b119860057757d5aa686239ce85e"
            ),
        ),
        (
            Hash::Sha224,
            &z,
            b"",
            &hex!("d001c4133718ec64e4e460997c74e5bfde5066e24b03852793024b0332"),
        ),
        (
            Hash::Sha384,
            &z,
            b"shared",
            &hex!(
                "670394c1b282baf15c9d95bf1111d5e9c7dd4778ead04295329641f65fef4ee7"
                "e640c7ff0e47e593074015202358448a553eb8e3e2cc4d6ec2daf8c8a5f8d463"
                "badf1dd331f4f5a36096e6f46a4b7466e607c160e3866045911ebb6b042792b3b42e7992"
            ),
        ),
        (
            Hash::Sha512,
            &z,
            b"x",
            &hex!(
                "1fa8ed72f5c723bd1ec2bd456e2a0f74b305b5341a1503202856199d08555a0e"
                "6bb152b520ba42fb775914f6098060f4ec3acec0972687991c14433afc017d9a"
            ),
        ),
    ] {
        let derived = x963(hash, &secret(z), shared, key.len()).unwrap();
        assert_eq!(derived.expose(), key, "{hash:?}");
        for len in 0..key.len() {
            let shorter = x963(hash, &secret(z), shared, len).unwrap();
            assert_eq!(shorter.expose(), &key[..len]);
        }
    }
}

#[test]
fn key_derivation_beyond_its_limit_is_refused() {
    let z = secret(&[1; 32]);
    let longest = x963(Hash::Sha1, &z, &[], 64 * 1024).unwrap();
    assert_eq!(longest.len(), 64 * 1024);
    for len in [64 * 1024 + 1, usize::MAX] {
        assert!(x963(Hash::Sha512, &z, &[], len).is_none());
    }
}
