//! Signatures of the card, verified by OpenSSL.

use claviger_hw_tests::{
    fixture::token_fixture::{TestSession, TokenFixture, plain, with},
    for_each_card,
};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectHandle};
use cryptoki_sys::{
    CK_MECHANISM, CK_MECHANISM_TYPE, CK_RSA_PKCS_PSS_PARAMS, CKG_MGF1_SHA1, CKG_MGF1_SHA224,
    CKG_MGF1_SHA256, CKG_MGF1_SHA384, CKG_MGF1_SHA512, CKM_ECDSA, CKM_ECDSA_SHA1, CKM_ECDSA_SHA224,
    CKM_ECDSA_SHA256, CKM_ECDSA_SHA384, CKM_ECDSA_SHA512, CKM_EDDSA, CKM_RSA_PKCS,
    CKM_RSA_PKCS_PSS, CKM_RSA_X_509, CKM_SHA_1, CKM_SHA1_RSA_PKCS, CKM_SHA1_RSA_PKCS_PSS,
    CKM_SHA224, CKM_SHA224_RSA_PKCS, CKM_SHA224_RSA_PKCS_PSS, CKM_SHA256, CKM_SHA256_RSA_PKCS,
    CKM_SHA256_RSA_PKCS_PSS, CKM_SHA384, CKM_SHA384_RSA_PKCS, CKM_SHA384_RSA_PKCS_PSS, CKM_SHA512,
    CKM_SHA512_RSA_PKCS, CKM_SHA512_RSA_PKCS_PSS,
};

use crate::openssl::{OpenSsl, to_der};

for_each_card! { [
    piv_rsa_2048 piv_rsa_large piv_p256 piv_p384
    openpgp_rsa_2048 openpgp_rsa_large openpgp_p256 openpgp_p384 openpgp_p521 openpgp_25519
] [
    openssl_accepts_signatures_by_every_mechanism
    openssl_accepts_signatures_over_nothing_and_over_a_megabyte
    openssl_accepts_signatures_over_hashes_of_any_length
    openssl_accepts_signatures_with_leading_zeros
] }

/// A hash: its OpenSSL name, its mechanism, its MGF, its length, and the mechanisms that have it.
type Hash = (&'static str, u64, u64, usize, [CK_MECHANISM_TYPE; 3]);

const HASHES: [Hash; 5] = [
    (
        "sha1",
        CKM_SHA_1,
        CKG_MGF1_SHA1,
        20,
        [CKM_SHA1_RSA_PKCS, CKM_SHA1_RSA_PKCS_PSS, CKM_ECDSA_SHA1],
    ),
    (
        "sha224",
        CKM_SHA224,
        CKG_MGF1_SHA224,
        28,
        [
            CKM_SHA224_RSA_PKCS,
            CKM_SHA224_RSA_PKCS_PSS,
            CKM_ECDSA_SHA224,
        ],
    ),
    (
        "sha256",
        CKM_SHA256,
        CKG_MGF1_SHA256,
        32,
        [
            CKM_SHA256_RSA_PKCS,
            CKM_SHA256_RSA_PKCS_PSS,
            CKM_ECDSA_SHA256,
        ],
    ),
    (
        "sha384",
        CKM_SHA384,
        CKG_MGF1_SHA384,
        48,
        [
            CKM_SHA384_RSA_PKCS,
            CKM_SHA384_RSA_PKCS_PSS,
            CKM_ECDSA_SHA384,
        ],
    ),
    (
        "sha512",
        CKM_SHA512,
        CKG_MGF1_SHA512,
        64,
        [
            CKM_SHA512_RSA_PKCS,
            CKM_SHA512_RSA_PKCS_PSS,
            CKM_ECDSA_SHA512,
        ],
    ),
];

/// What a signature is tried with: a session, a key, and its public half for OpenSSL.
struct Trial<'a> {
    fixture: &'a TokenFixture<'a>,
    openssl: OpenSsl,
    session: TestSession,
    key: ObjectHandle,
    kind: KeyType,
    public: std::path::PathBuf,
}

impl<'a> Trial<'a> {
    fn of(fixture: &'a TokenFixture<'a>) -> Self {
        let session = fixture.user();
        let openssl = OpenSsl::new(fixture.process);
        let key = session.signer();
        let result = session.get_attributes(key, &[AttributeType::KeyType]);
        let Ok([Attribute::KeyType(kind)]) = result.as_deref() else {
            panic!("no CKA_KEY_TYPE: {result:?}")
        };
        Self {
            fixture,
            public: openssl.public(&session, key),
            kind: *kind,
            openssl,
            session,
            key,
        }
    }

    /// One signature; `parts` is the size of each part, or all at once.
    #[track_caller]
    fn sign(&self, mechanism: CK_MECHANISM, data: &[u8], parts: Option<usize>) -> Vec<u8> {
        let (session, list) = (&self.session, self.session.list);
        assert_eq!(session.init(list.C_SignInit, mechanism, self.key), Ok(()));
        let made = match parts {
            None => session.run(list.C_Sign, data, 600),
            Some(size) => {
                for part in data.chunks(size) {
                    assert_eq!(session.update(list.C_SignUpdate, part), Ok(()));
                }
                session.final_part(list.C_SignFinal, 600)
            }
        };
        let made = made.unwrap_or_else(|code| panic!("{:#x}: {code:?}", mechanism.mechanism));
        if self.kind == KeyType::EC {
            to_der(&made)
        } else {
            made
        }
    }

    #[track_caller]
    fn judge(&self, how: &[&str], data: &[u8], signature: &[u8]) {
        self.openssl.judge(how, &self.public, data, signature);
    }

    fn has_padding(&self) -> bool {
        self.kind == KeyType::RSA && self.fixture.is_piv()
    }

    /// A message by every mechanism that hashes it, in one and in parts.
    fn message(&self, message: &[u8]) {
        for (name, hash, mgf, len, [pkcs, pss, ecdsa]) in HASHES {
            let name = format!("-{name}");
            let dgst = ["dgst", name.as_str()];
            for parts in [None, Some(message.len() / 3 + 1)] {
                if self.kind == KeyType::RSA {
                    let made = self.sign(plain(pkcs), message, parts);
                    self.judge(&dgst, message, &made);
                } else if self.kind == KeyType::EC {
                    let made = self.sign(plain(ecdsa), message, parts);
                    self.judge(&dgst, message, &made);
                }
                if self.has_padding() {
                    let mut parameter = parameter(hash, mgf, len);
                    let made = self.sign(with(pss, &mut parameter), message, parts);
                    let salt = format!("rsa_pss_saltlen:{len}");
                    let padding = ["-sigopt", "rsa_padding_mode:pss", "-sigopt", &salt];
                    let how = [&dgst[..], &padding].concat();
                    self.judge(&how, message, &made);
                }
            }
        }
        if self.kind == KeyType::EC_EDWARDS {
            for parts in [None, Some(message.len() / 3 + 1)] {
                let made = self.sign(plain(CKM_EDDSA), message, parts);
                self.judge(&["pkeyutl", "-rawin"], message, &made);
            }
        }
    }
}

const fn parameter(hash: u64, mgf: u64, salt: usize) -> CK_RSA_PKCS_PSS_PARAMS {
    CK_RSA_PKCS_PSS_PARAMS {
        hashAlg: hash,
        mgf,
        sLen: salt as u64,
    }
}

fn openssl_accepts_signatures_by_every_mechanism(fixture: &TokenFixture<'_>) {
    let trial = Trial::of(fixture);
    trial.message(b"a message of ordinary length");
    if trial.kind == KeyType::RSA {
        let made = trial.sign(plain(CKM_RSA_PKCS), b"any data", None);
        trial.judge(
            &["pkeyutl", "-pkeyopt", "rsa_padding_mode:pkcs1"],
            b"any data",
            &made,
        );
    }
    if trial.has_padding() {
        for (name, hash, mgf, len, _) in HASHES {
            let data = vec![0x9D; len];
            let mut parameter = parameter(hash, mgf, 17);
            let made = trial.sign(with(CKM_RSA_PKCS_PSS, &mut parameter), &data, None);
            let digest = format!("digest:{name}");
            let how = [
                "pkeyutl",
                "-pkeyopt",
                "rsa_padding_mode:pss",
                "-pkeyopt",
                "rsa_pss_saltlen:17",
                "-pkeyopt",
                &digest,
            ];
            trial.judge(&how, &data, &made);
        }
        let made = trial.sign(plain(CKM_RSA_X_509), b"a bare block", None);
        let how = [
            "-verifyrecover",
            "-pubin",
            "-pkeyopt",
            "rsa_padding_mode:none",
        ];
        let block = trial.openssl.pkeyutl(&how, &trial.public, &made);
        assert!(block.ends_with(b"\0a bare block") && block.len() == made.len());
    }
}

fn openssl_accepts_signatures_over_nothing_and_over_a_megabyte(fixture: &TokenFixture<'_>) {
    let trial = Trial::of(fixture);
    let megabyte: Vec<u8> = (0..1_u32 << 20).map(|n| (n % 253) as u8).collect();
    if trial.kind == KeyType::EC_EDWARDS {
        // The card signs the whole message and has little memory. It may reject a long one.
        let list = trial.session.list;
        let begun = trial
            .session
            .init(list.C_SignInit, plain(CKM_EDDSA), trial.key);
        assert_eq!(begun, Ok(()));
        match trial.session.run(list.C_Sign, &megabyte, 64) {
            Ok(made) => trial.judge(&["pkeyutl", "-rawin"], &megabyte, &made),
            Err(code) => {
                println!("a megabyte is too much: {code:?}");
                let text = format!("{code:?}");
                let known = ["DataLenRange", "DeviceMemory", "UnknownErrorCode(513)"];
                assert!(known.contains(&text.as_str()), "{text}");
            }
        }
        let made = trial.sign(plain(CKM_EDDSA), &megabyte[..1000], Some(7));
        trial.judge(&["pkeyutl", "-rawin"], &megabyte[..1000], &made);
        // OpenSSL 3.0 reads no empty file; its signatures are right for the module's own verification elsewhere.
        let made = trial.sign(plain(CKM_EDDSA), b"", None);
        let (session, public) = (&trial.session, trial.session.public_of(trial.key));
        assert_eq!(
            session.init(list.C_VerifyInit, plain(CKM_EDDSA), public),
            Ok(())
        );
        assert_eq!(session.check_signature(b"", &made), Ok(()));
        return;
    }
    trial.message(b"");
    let (mechanism, how) = match trial.kind {
        KeyType::RSA => (CKM_SHA256_RSA_PKCS, ["dgst", "-sha256"]),
        _ => (CKM_ECDSA_SHA512, ["dgst", "-sha512"]),
    };
    for parts in [None, Some(65_521)] {
        let made = trial.sign(plain(mechanism), &megabyte, parts);
        trial.judge(&how, &megabyte, &made);
    }
}

/// Longer than the order of the curve and shorter: P-384 with SHA-256 and SHA-512, and lengths no hash has.
fn openssl_accepts_signatures_over_hashes_of_any_length(fixture: &TokenFixture<'_>) {
    let trial = Trial::of(fixture);
    if trial.kind == KeyType::EC {
        for len in [1, 16, 20, 28, 31, 32, 33, 47, 48, 49, 63, 64] {
            let hash = vec![0xE4; len];
            let made = trial.sign(plain(CKM_ECDSA), &hash, None);
            trial.judge(&["pkeyutl"], &hash, &made);
        }
    } else if trial.kind == KeyType::RSA {
        // -verify accepts no input longer than a hash.
        for len in [1, 19, 35, 51, 83, 100] {
            let data = vec![0xE4; len];
            let made = trial.sign(plain(CKM_RSA_PKCS), &data, None);
            let how = [
                "-verifyrecover",
                "-pubin",
                "-pkeyopt",
                "rsa_padding_mode:pkcs1",
            ];
            assert_eq!(trial.openssl.pkeyutl(&how, &trial.public, &made), data);
        }
    } else {
        for len in [1, 31, 32, 33, 64, 128] {
            let message = vec![0xE4; len];
            let made = trial.sign(plain(CKM_EDDSA), &message, None);
            trial.judge(&["pkeyutl", "-rawin"], &message, &made);
        }
    }
}

/// One in 128 has them where the number fills its bytes; RSA signatures are as long as the modulus whatever they begin with.
fn openssl_accepts_signatures_with_leading_zeros(fixture: &TokenFixture<'_>) {
    const TRIES: u32 = 3000;
    let trial = Trial::of(fixture);
    if trial.kind != KeyType::EC {
        return none_is_ever_shorter(&trial);
    }
    let mechanism = plain(CKM_ECDSA);
    let (session, list) = (&trial.session, trial.session.list);
    for tries in 1..=TRIES {
        let hash = [[0x33; 28].as_slice(), &tries.to_be_bytes()].concat();
        assert_eq!(session.init(list.C_SignInit, mechanism, trial.key), Ok(()));
        let made = session.run(list.C_Sign, &hash, 600).expect("C_Sign");
        if made[0] == 0 || made[made.len() / 2] == 0 {
            println!("after {tries} signatures");
            return trial.judge(&["pkeyutl"], &hash, &to_der(&made));
        }
    }
    panic!("none of {TRIES} signatures has a leading zero");
}

fn none_is_ever_shorter(trial: &Trial<'_>) {
    let mechanism = trial.session.signing(trial.key);
    let len = trial.sign(mechanism, b"0", None).len();
    for n in 0..8_u8 {
        assert_eq!(trial.sign(mechanism, &[n], None).len(), len);
    }
}
