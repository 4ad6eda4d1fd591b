//! Verification by the module of signatures that OpenSSL made, also with kinds of keys that no card here has.

use claviger_hw_tests::{
    fixture::token_fixture::{TokenFixture, plain},
    for_each_card,
};
use cryptoki::{error::RvError, object::Attribute};
use cryptoki_sys::{
    CKM_ECDSA, CKM_ECDSA_SHA1, CKM_ECDSA_SHA256, CKM_ECDSA_SHA384, CKM_ECDSA_SHA512, CKM_EDDSA,
    CKM_SHA1_RSA_PKCS, CKM_SHA256_RSA_PKCS, CKM_SHA384_RSA_PKCS, CKM_SHA512_RSA_PKCS,
};

use crate::openssl::{OpenSsl, attributes_of, from_der};

for_each_card! { [piv_p256 openpgp_p256] [
    the_module_accepts_rsa_signatures_of_openssl
    the_module_accepts_ecdsa_signatures_of_openssl
] }

for_each_card! { [openpgp_25519] [
    the_module_accepts_eddsa_signatures_of_openssl
] }

/// A kind of key, the width of a number of its signatures (0: they are bytes), and each way to sign.
fn judged(fixture: &TokenFixture<'_>, kind: &str, width: usize, mechanisms: &[(&[&str], u64)]) {
    let (openssl, session) = (OpenSsl::new(fixture.process), fixture.read_only());
    let private = openssl.private(kind);
    let verify = [Attribute::Verify(true), Attribute::Private(false)];
    let template = [&attributes_of(&openssl.info_of(&private))[..], &verify].concat();
    let key = session.create_object(&template).expect("C_CreateObject");
    for (how, mechanism) in mechanisms {
        for message in [&b"0123456789abcdef0123456789abcdef"[..], &[7; 64]] {
            let made = openssl.sign(how, &private, message);
            let made = if width > 0 {
                from_der(&made, width)
            } else {
                made
            };
            let judge = |message: &[u8], signature: &[u8]| {
                let begun = session.init(session.list.C_VerifyInit, plain(*mechanism), key);
                assert_eq!(begun, Ok(()), "{kind} {mechanism:#x}");
                session.check_signature(message, signature)
            };
            assert_eq!(judge(message, &made), Ok(()), "{kind} {mechanism:#x}");
            let mut other = message.to_vec();
            other[0] ^= 1;
            assert_eq!(judge(&other, &made), Err(RvError::SignatureInvalid));
            let mut forged = made.clone();
            forged[made.len() - 1] ^= 1;
            assert_eq!(judge(message, &forged), Err(RvError::SignatureInvalid));
        }
    }
}

fn the_module_accepts_rsa_signatures_of_openssl(fixture: &TokenFixture<'_>) {
    let mechanisms: [(&[&str], u64); 4] = [
        (&["dgst", "-sha1"], CKM_SHA1_RSA_PKCS),
        (&["dgst", "-sha256"], CKM_SHA256_RSA_PKCS),
        (&["dgst", "-sha384"], CKM_SHA384_RSA_PKCS),
        (&["dgst", "-sha512"], CKM_SHA512_RSA_PKCS),
    ];
    for bits in ["1024", "2048", "3072"] {
        judged(fixture, bits, 0, &mechanisms);
    }
}

fn the_module_accepts_ecdsa_signatures_of_openssl(fixture: &TokenFixture<'_>) {
    let mechanisms: [(&[&str], u64); 5] = [
        (&["dgst", "-sha1"], CKM_ECDSA_SHA1),
        (&["dgst", "-sha256"], CKM_ECDSA_SHA256),
        (&["dgst", "-sha384"], CKM_ECDSA_SHA384),
        (&["dgst", "-sha512"], CKM_ECDSA_SHA512),
        (&["pkeyutl"], CKM_ECDSA),
    ];
    for (curve, width) in [
        ("P-256", 32),
        ("P-384", 48),
        ("P-521", 66),
        ("secp256k1", 32),
        ("brainpoolP256r1", 32),
        ("brainpoolP384r1", 48),
    ] {
        judged(fixture, curve, width, &mechanisms);
    }
}

fn the_module_accepts_eddsa_signatures_of_openssl(fixture: &TokenFixture<'_>) {
    judged(
        fixture,
        "ED25519",
        0,
        &[(&["pkeyutl", "-rawin"], CKM_EDDSA)],
    );
}
