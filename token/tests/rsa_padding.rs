//! The paddings of RSA, checked against another implementation in both directions, with keys of several lengths.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use claviger_apdu::Secret;
use claviger_token::{
    algorithm::PublicKey,
    digest::Hash,
    padding::{
        ImplicitRejection, Oaep, PaddingError, Pss, digest_info, oaep_decrypt, oaep_encrypt,
        pkcs1_decrypt, pkcs1_encrypt, pkcs1_recover, pkcs1_sign, pss_encode, pss_verify,
    },
};
use getrandom::SysRng;
use hex_literal::hex;
use rsa::{
    BoxedUint, PrivateKey,
    hazmat::rsa_decrypt,
    pss::{Signature, SigningKey, VerifyingKey},
    signature::{
        SignatureEncoding,
        hazmat::{PrehashSigner, PrehashVerifier},
    },
    traits::PublicKeyParts,
};
use sha1::Sha1;
use sha2::{
    Digest, Sha224, Sha256, Sha384, Sha512,
    digest::{FixedOutputReset, const_oid::AssociatedOid},
};

/// Primes with a product of 2048 bits.
const P_2048: [u8; 128] = hex!(
    "cc1e604e138cddbaca71ec4e8e3bcacd400fa617d2aade2b7f749371ae4634345a9c75e7b9fac0ad
     66b5583b62b46eaa6bfd0abe1eb01fb12609d24ce5ce9ba337c8979105a0c8ae6c6ab0d5cee3e205
     8b19f8142697748f3d880179b3956f036e7ec07f4e4e72b6f6c0c58416713ac5e42e46edc9c7a578
     0762ce40f2029d2d"
);
const Q_2048: [u8; 128] = hex!(
    "c37f67d137f1380c7d34c8d09992e26dfd0ebef74ab309d89933f40d7e7aa6b7c7438f6cdcec2299
     d335fadaa1e6b7a164a1612f80031423ab7913ec2d19b89e91138709667cbb89110689ccdd3ce7ab
     796ebcd8c9e138ba94c12e1cf06c3c6b6a131d63074d7dc395b1c204eabc8f6d2045fdb9bc32762b
     0f8fe020118cc2c7"
);
/// Primes with a product of 1025 bits. A block has one byte with only one used bit, and one byte more than PSS fills.
const P_1025: [u8; 65] = hex!(
    "01b8f20eedccb551bcb35e2ad4478959ae3ca54d1d2f880f9a539b6160ab5bfa95db1cb9799d0a33
     9cb217187a3b9d20170533a2d634ae907d80c83e1247684e8d"
);
const Q_1025: [u8; 64] = hex!(
    "c5fc4414fb4ceeb7c638fc9ba3c6c5b77efb747b6fb3a7a215cbb5c94d1fd06a2208c75b08fd5ce6
     10a82053ef9a448e426111715ac7e6bfbec999fd9e38488f"
);

/// A key for both implementations.
struct Peer {
    private: PrivateKey,
    public: PublicKey,
    bits: usize,
    len: usize,
}

impl Peer {
    fn all() -> [Self; 2] {
        [Self::new(&P_2048, &Q_2048), Self::new(&P_1025, &Q_1025)]
    }

    fn new(p: &[u8], q: &[u8]) -> Self {
        let number = BoxedUint::from_be_slice_vartime;
        let primes = [number(p), number(q)];
        let private =
            PrivateKey::from_p_q(primes[0].clone(), primes[1].clone(), number(&[1, 0, 1]));
        let private = private.unwrap();
        let modulus = private.n().as_ref().to_be_bytes();
        let public = PublicKey::rsa(&modulus, &[1, 0, 1]).unwrap();
        let bits = usize::try_from(private.n().as_ref().bit_width()).unwrap();
        Self {
            private,
            public,
            bits,
            len: bits.div_ceil(8),
        }
    }

    /// Computes the private RSA operation, as a card does.
    fn apply(&self, block: &[u8]) -> Secret {
        let precision = self.private.n().bits_precision();
        let block = BoxedUint::from_be_slice(block, precision).unwrap();
        let raw = rsa_decrypt(None::<&mut SysRng>, &self.private, &block);
        let raw = raw.unwrap().to_be_bytes();
        Secret::copy_from(&raw[raw.len() - self.len..])
    }
}

/// Runs the same expression for each hash, with its number and its type.
macro_rules! each_hash {
    ($call:ident) => {
        $call::<Sha1>(Hash::Sha1);
        $call::<Sha224>(Hash::Sha224);
        $call::<Sha256>(Hash::Sha256);
        $call::<Sha384>(Hash::Sha384);
        $call::<Sha512>(Hash::Sha512);
    };
}

fn digest(hash: Hash) -> Secret {
    hash.digest(&[b"message"])
}

#[test]
fn pkcs1_v1_5_signatures_agree_with_another_implementation() {
    for key in Peer::all() {
        for hash in Hash::ALL {
            let t = digest_info(hash, digest(hash).expose());
            let unprefixed = rsa::Pkcs1v15Sign::new_unprefixed;
            let block = pkcs1_sign(t.expose(), key.len).unwrap();
            let ours = key.apply(block.expose());
            let verified = key
                .private
                .as_ref()
                .verify(unprefixed(), t.expose(), ours.expose());
            assert_eq!(verified, Ok(()));
            let theirs = key.private.sign(unprefixed(), t.expose()).unwrap();
            assert_eq!(theirs, ours.expose());
            let block = key.public.rsa_raw(&theirs).unwrap();
            assert_eq!(pkcs1_recover(&block), Some(t.expose()));
        }
    }
}

#[test]
fn digest_infos_agree() {
    fn check<D: Digest + AssociatedOid>(hash: Hash) {
        let [key, _] = Peer::all();
        let theirs = key
            .private
            .sign(rsa::Pkcs1v15Sign::new::<D>(), digest(hash).expose());
        let block = key.public.rsa_raw(&theirs.unwrap()).unwrap();
        let ours = digest_info(hash, digest(hash).expose());
        assert_eq!(pkcs1_recover(&block), Some(ours.expose()));
    }
    each_hash!(check);
}

#[test]
fn pss_signatures_agree_with_another_implementation_for_any_salt() {
    fn check<D: Digest + FixedOutputReset>(hash: Hash) {
        for key in Peer::all() {
            let longest = (key.bits - 1).div_ceil(8) - hash.len() - 2;
            for salt_len in [0, 1, hash.len(), longest]
                .into_iter()
                .filter(|len| *len <= longest)
            {
                let pss = Pss {
                    hash,
                    mgf: hash,
                    salt_len,
                };
                let digest = digest(hash);
                let block = pss_encode(digest.expose(), pss, key.bits).unwrap();
                assert_eq!(block.len(), key.len);
                let ours = key.apply(block.expose());
                let verifier =
                    VerifyingKey::<D>::new_with_salt_len(key.private.as_ref().clone(), salt_len);
                let signature = Signature::try_from(ours.expose()).unwrap();
                assert!(verifier.verify_prehash(digest.expose(), &signature).is_ok());
                let signer = SigningKey::<D>::new_with_salt_len(key.private.clone(), salt_len);
                let theirs = signer.sign_prehash(digest.expose()).unwrap().to_vec();
                let block = key.public.rsa_raw(&theirs).unwrap();
                assert!(pss_verify(digest.expose(), &block, pss, key.bits));
            }
        }
    }
    each_hash!(check);
}

/// Made by OpenSSL 4.0: SHA-256 of "message", MGF1 with SHA-1, 11 bytes of salt, 1025 bits.
#[test]
fn pss_with_another_hash_in_its_mask_is_verified() {
    let modulus = hex!(
        "016948bd0047f81db6fd992c9dd4108b4b2e0c936bda7c2901275a78a93eace75348b6ef20a4ea7a
     1e7b3841190aa4e886d8656e64cce035cd2d36f42e8e2ebacc1c9c020dec1383e0e81899e90ffab2
     6b7393d755c4eda1bc982138c8f7e37a73a4c1cb72396b6ee61ec6865211212ba4ca7c88326febb0
     a15ef570782e5224c1"
    );
    let signature = hex!(
        "00c2dcd555e13317614b299d34190f7fbdaba1f2fd9fe5a30c3e015f93ab283dcc0895305ea67cbf
     2d344d9072437f45e2f59ffc6ba35ecdf29e9552d03fc6dc215bdfc3b4d2c49db8c96390c19f0c90
     dcb1e20929428abd9a162e1399fe0952b835335be47aedbadf1e8214d1afe0d478f8eb3869540a2f
     25f9fbb1be87873e5b"
    );
    let key = PublicKey::rsa(&modulus, &[1, 0, 1]).unwrap();
    let block = key.rsa_raw(&signature).unwrap();
    let digest = digest(Hash::Sha256);
    let verify = |mgf, salt_len| {
        let pss = Pss {
            hash: Hash::Sha256,
            mgf,
            salt_len,
        };
        pss_verify(digest.expose(), &block, pss, 1025)
    };
    assert!(verify(Hash::Sha1, 11));
    assert!(!verify(Hash::Sha256, 11));
    assert!((0..=100).filter(|len| verify(Hash::Sha1, *len)).eq([11]));
}

#[test]
fn a_block_of_pss_with_another_bit_or_size_is_refused() {
    for bits in [1024, 1025, 1026, 1031] {
        let pss = Pss {
            hash: Hash::Sha256,
            mgf: Hash::Sha256,
            salt_len: 20,
        };
        let digest = digest(Hash::Sha256);
        let block = pss_encode(digest.expose(), pss, bits).unwrap();
        let block = block.expose();
        let verify = |block: &[u8]| pss_verify(digest.expose(), block, pss, bits);
        assert!(verify(block));
        for bit in 0..block.len() * 8 {
            let mut other = block.to_vec();
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(!verify(&other), "bit {bit} of {bits}");
        }
        assert!(!verify(&block[1..]) && !verify(&[]) && !verify(&[block, &[0xBC]].concat()));
        assert!(!pss_verify(&digest.expose()[1..], block, pss, bits));
        assert!(!pss_verify(digest.expose(), block, pss, bits + 8));
        assert!(!pss_verify(digest.expose(), block, pss, 0));
    }
}

#[test]
fn salt_or_hash_that_does_not_fit_is_refused_with_the_maximum() {
    let encode = |hash: Hash, salt_len, bits| {
        let pss = Pss {
            hash,
            mgf: hash,
            salt_len,
        };
        pss_encode(digest(hash).expose(), pss, bits).map(|block| block.len())
    };
    assert_eq!(encode(Hash::Sha512, 62, 1024), Ok(128));
    let max = |max| Err(PaddingError::TooLong { max });
    assert_eq!(encode(Hash::Sha512, 63, 1024), max(62));
    assert_eq!(encode(Hash::Sha512, usize::MAX, 1025), max(62));
    assert_eq!(encode(Hash::Sha512, 0, 528), Ok(66));
    assert_eq!(encode(Hash::Sha512, 0, 521), max(0));
    assert_eq!(encode(Hash::Sha1, 0, 0), max(0));
}

#[test]
fn oaep_agrees_with_another_implementation_for_any_hash_mask_and_label() {
    fn check<D: Digest + FixedOutputReset>(hash: Hash) {
        let mgf = Hash::Sha1;
        for (key, label) in Peer::all().into_iter().zip([&b""[..], b"label"]) {
            let oaep = Oaep { hash, mgf, label };
            let Some(longest) = key.len.checked_sub(2 * hash.len() + 2) else {
                continue;
            };
            let scheme = || rsa::Oaep::<D, Sha1>::new_with_mgf_hash_and_label(label);
            for len in [0, 1, longest] {
                let message = vec![0x4D; len];
                let block = oaep_encrypt(&message, &oaep, key.len).unwrap();
                let ours = key.public.rsa_raw(block.expose()).unwrap();
                assert_eq!(key.private.decrypt(scheme(), &ours).as_ref(), Ok(&message));
                let theirs = key
                    .private
                    .as_ref()
                    .encrypt(&mut SysRng, scheme(), &message);
                let block = key.apply(&theirs.unwrap());
                assert_eq!(oaep_decrypt(&block, &oaep).unwrap().expose(), message);
            }
            let longer = oaep_encrypt(&vec![0; longest + 1], &oaep, key.len);
            assert_eq!(longer.unwrap_err(), PaddingError::TooLong { max: longest });
        }
    }
    each_hash!(check);
}

#[test]
fn a_block_of_oaep_with_another_bit_label_or_length_is_refused() {
    let oaep = Oaep {
        hash: Hash::Sha256,
        mgf: Hash::Sha1,
        label: b"label",
    };
    let block = oaep_encrypt(b"message", &oaep, 128).unwrap();
    for bit in 0..block.len() * 8 {
        let mut other = block.expose().to_vec();
        other[bit / 8] ^= 1 << (bit % 8);
        assert!(oaep_decrypt(&other.into(), &oaep).is_none(), "bit {bit}");
    }
    let refused =
        |block: &[u8], oaep: &Oaep<'_>| oaep_decrypt(&Secret::copy_from(block), oaep).is_none();
    for other in [
        Oaep {
            label: b"labem",
            ..oaep
        },
        Oaep { label: b"", ..oaep },
        Oaep {
            mgf: Hash::Sha256,
            ..oaep
        },
        Oaep {
            hash: Hash::Sha384,
            ..oaep
        },
    ] {
        assert!(refused(block.expose(), &other));
    }
    assert!((0..block.len()).all(|len| refused(&block.expose()[..len], &oaep)));
    let none = oaep_encrypt(&[], &oaep, 65).unwrap_err();
    assert_eq!(none, PaddingError::TooLong { max: 0 });
}

#[test]
fn pkcs1_v1_5_encryption_agrees_with_another_implementation() {
    for key in Peer::all() {
        for len in [0, 1, 48, key.len - 11] {
            let message = vec![0x4D; len];
            let block = pkcs1_encrypt(&message, key.len).unwrap();
            assert!(
                block.expose()[2..key.len - len - 1]
                    .iter()
                    .all(|byte| *byte != 0)
            );
            let ours = key.public.rsa_raw(block.expose()).unwrap();
            let decrypted = key.private.decrypt(rsa::Pkcs1v15Encrypt, &ours);
            assert_eq!(decrypted.as_ref(), Ok(&message));
            let theirs = key.private.as_ref().pkcs1v15_encrypt(&message).unwrap();
            let rejection = ImplicitRejection::new(&[0xC1], &theirs).unwrap();
            let decrypted = pkcs1_decrypt(&key.apply(&theirs), &rejection);
            assert_eq!(decrypted.expose(), message);
        }
        let longer = pkcs1_encrypt(&vec![0; key.len - 10], key.len).unwrap_err();
        assert_eq!(longer, PaddingError::TooLong { max: key.len - 11 });
    }
    assert_eq!(
        pkcs1_encrypt(&[], 10).unwrap_err(),
        PaddingError::TooLong { max: 0 }
    );
}
