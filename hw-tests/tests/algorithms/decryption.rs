//! The card decrypts cryptograms of OpenSSL, and OpenSSL decrypts cryptograms of the module.

use claviger_hw_tests::{
    fixture::token_fixture::{TestSession, TokenFixture},
    for_each_card,
};
use cryptoki::{
    mechanism::{
        Mechanism, MechanismType,
        rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource},
    },
    object::{Attribute, ObjectHandle},
};

use crate::openssl::{OpenSsl, attributes_of};

for_each_card! { [piv_rsa_2048 piv_rsa_large openpgp_rsa_2048 openpgp_rsa_large] [
    card_decrypts_cryptograms_of_openssl
    openssl_decrypts_cryptograms_of_the_module
] }

/// Plaintexts: none, some, and what fits 2048 bits with any of these paddings.
const SECRETS: [&[u8]; 3] = [b"", b"a secret", &[0xB3; 126]];

const HASHES: [(&str, MechanismType, PkcsMgfType); 5] = [
    ("sha1", MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
    ("sha224", MechanismType::SHA224, PkcsMgfType::MGF1_SHA224),
    ("sha256", MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
    ("sha384", MechanismType::SHA384, PkcsMgfType::MGF1_SHA384),
    ("sha512", MechanismType::SHA512, PkcsMgfType::MGF1_SHA512),
];

/// Each padding: its name, its options at OpenSSL and its mechanism.
fn paddings() -> Vec<(Vec<String>, Mechanism<'static>)> {
    let options = |list: &[String]| {
        let pair = |option: &String| ["-pkeyopt".to_owned(), option.clone()];
        list.iter().flat_map(pair).collect::<Vec<String>>()
    };
    let mode = |name: &str| format!("rsa_padding_mode:{name}");
    let mut all = vec![(options(&[mode("pkcs1")]), Mechanism::RsaPkcs)];
    for (name, hash, mgf) in HASHES {
        let hashes = [format!("rsa_oaep_md:{name}"), format!("rsa_mgf1_md:{name}")];
        let oaep = [vec![mode("oaep")], hashes.to_vec()].concat();
        let parameters = PkcsOaepParams::new(hash, mgf, PkcsOaepSource::empty());
        all.push((options(&oaep), Mechanism::RsaPkcsOaep(parameters)));
        let label = [oaep, vec!["rsa_oaep_label:6c6162656c".to_owned()]].concat();
        let labelled = PkcsOaepParams::new(hash, mgf, PkcsOaepSource::data_specified(b"label"));
        all.push((options(&label), Mechanism::RsaPkcsOaep(labelled)));
    }
    all
}

fn words<'a>(first: &[&'a str], rest: &'a [String]) -> Vec<&'a str> {
    first
        .iter()
        .copied()
        .chain(rest.iter().map(String::as_str))
        .collect()
}

fn decrypting(fixture: &TokenFixture<'_>) -> (OpenSsl, TestSession, ObjectHandle) {
    let (openssl, session) = (OpenSsl::new(fixture.process), fixture.user());
    let key = *session
        .private_with(&[Attribute::Decrypt(true)])
        .last()
        .expect("a key that decrypts");
    (openssl, session, key)
}

fn card_decrypts_cryptograms_of_openssl(fixture: &TokenFixture<'_>) {
    let (openssl, session, key) = decrypting(fixture);
    let public = openssl.public(&session, key);
    for (options, mechanism) in paddings() {
        if matches!(mechanism, Mechanism::RsaPkcsOaep(_)) && !fixture.is_piv() {
            continue; // An OpenPGP card takes PKCS #1 v1.5 alone.
        }
        for secret in SECRETS {
            let how = words(&["-encrypt", "-pubin"], &options);
            let sealed = openssl.pkeyutl(&how, &public, secret);
            let result = session.decrypt(&mechanism, key, &sealed);
            assert_eq!(result.expect("C_Decrypt"), secret, "{options:?}");
        }
    }
}

fn openssl_decrypts_cryptograms_of_the_module(fixture: &TokenFixture<'_>) {
    let (openssl, session, _) = decrypting(fixture);
    let private = openssl.private("2048");
    let template = [
        attributes_of(&openssl.info_of(&private)),
        vec![Attribute::Encrypt(true)],
    ];
    let public = session
        .create_object(&template.concat())
        .expect("C_CreateObject");
    for (options, mechanism) in paddings() {
        if matches!(mechanism, Mechanism::RsaPkcsOaep(_)) && !fixture.is_piv() {
            // What no key of the token does is not in its list, and does not begin.
            let result = session.encrypt(&mechanism, public, b"a secret");
            assert!(result.is_err(), "{options:?}");
            continue;
        }
        for secret in SECRETS {
            let sealed = session
                .encrypt(&mechanism, public, secret)
                .expect("C_Encrypt");
            let how = words(&["-decrypt"], &options);
            assert_eq!(
                openssl.pkeyutl(&how, &private, &sealed),
                secret,
                "{options:?}"
            );
        }
    }
}
