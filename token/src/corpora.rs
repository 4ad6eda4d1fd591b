//! Feeds the corpora of the fuzz targets, with every truncation and every flipped bit. No input may cause a panic.

#[path = "../../fuzz/corpora.rs"]
mod seeds;

use self::seeds::{EVERY, feed, seeds};
use crate::{certificate, digest, fuzz, host::key_wrap, openpgp, padding, piv};

#[test]
fn certificate() {
    feed("certificate", EVERY, certificate::fuzz);
}

#[test]
fn openpgp_algorithm_information() {
    feed(
        "openpgp_algorithm_information",
        EVERY,
        openpgp::algorithm_information::fuzz,
    );
}

#[test]
fn openpgp_data_object() {
    feed("openpgp_data_object", EVERY, openpgp::data_object::fuzz);
}

#[test]
fn openpgp_kdf() {
    feed("openpgp_kdf", EVERY, openpgp::kdf::fuzz);
}

#[test]
fn openpgp_key() {
    feed("openpgp_key", EVERY, openpgp::key::fuzz);
}

#[test]
fn piv_authenticate() {
    feed("piv_authenticate", EVERY, piv::fuzz::authenticate);
}

#[test]
fn piv_certificate_object() {
    feed(
        "piv_certificate_object",
        EVERY,
        piv::fuzz::certificate_object,
    );
}

#[test]
fn piv_chuid() {
    feed("piv_chuid", EVERY, piv::fuzz::chuid);
}

#[test]
fn piv_discovery() {
    feed("piv_discovery", EVERY, piv::fuzz::discovery);
}

#[test]
fn piv_generation() {
    feed("piv_generation", EVERY, piv::fuzz::generation);
}

#[test]
fn piv_management_key() {
    feed("piv_management_key", EVERY, piv::fuzz::management_key);
}

#[test]
fn piv_metadata() {
    feed("piv_metadata", EVERY, piv::fuzz::metadata);
}

#[test]
fn digest_state() {
    feed_some("digest_state", digest::fuzz);
}

#[test]
fn key_unwrap() {
    feed_some("key_unwrap", key_wrap::fuzz);
}

#[test]
fn oaep_decrypt() {
    feed_some("oaep_decrypt", padding::fuzz::oaep_decrypt);
}

#[test]
fn pkcs1_decrypt() {
    feed_some("pkcs1_decrypt", padding::fuzz::pkcs1_decrypt);
}

#[test]
fn pss_verify() {
    feed_some("pss_verify", padding::fuzz::pss_verify);
}

/// Feeds a corpus of a decoder. The decoder must accept the files whose name begins with "good", and no others.
fn feed_some(corpus: &str, fuzz: impl Fn(&[u8]) -> bool) {
    for (name, seed) in seeds(corpus) {
        assert_eq!(fuzz(&seed), name.starts_with("good"), "{corpus}/{name}");
    }
    feed(corpus, EVERY, |bytes| {
        fuzz(bytes);
    });
}

#[test]
fn card() {
    feed("card", 250, |bytes| {
        fuzz::card(bytes);
    });
}

#[test]
fn administration() {
    for corpus in ["administration", "card"] {
        feed(corpus, 250, |bytes| {
            fuzz::administration(bytes);
        });
    }
}

#[test]
fn administrable_seed_cards_are_administered_completely() {
    let seeds = seeds("administration");
    for (name, logins, keys, written, pins) in [
        ("piv-management-key", 1, 3, 7, 3),
        ("piv-puk", 1, 0, 0, 4),
        ("openpgp", 2, 4, 8, 6),
    ] {
        let (_, seed) = seeds.iter().find(|(seed, _)| seed == name).unwrap();
        let done = fuzz::administration(seed);
        assert_eq!(
            (done.logins, done.keys, done.written, done.pins),
            (logins, keys, written, pins),
            "{name}"
        );
    }
}

/// A corpus of cards on which nothing succeeds would cover little code.
#[test]
fn working_seed_cards_are_used_completely() {
    let seeds = seeds("card");
    for (name, tokens, logins, signatures) in [
        ("both-on-one-card", 2, 2, 5),
        ("openpgp-2-1", 1, 1, 2),
        ("openpgp-kdf", 1, 1, 2),
        ("openpgp-nitrokey", 1, 1, 2),
        ("openpgp-pin-each-time", 1, 1, 2),
        ("piv-get-response", 1, 1, 1),
        ("piv-login-lost", 1, 1, 1),
        ("piv-p256", 1, 1, 1),
        ("piv-pin-changed-meanwhile", 1, 1, 0),
        ("piv-removed-in-signature", 1, 1, 0),
        ("piv-reset-by-others", 1, 1, 1),
        ("piv-wrong-pin", 1, 0, 0),
        ("piv-yubikey", 1, 1, 3),
    ] {
        let (_, seed) = seeds.iter().find(|(seed, _)| seed == name).unwrap();
        let reached = fuzz::card(seed);
        assert_eq!(
            (reached.tokens, reached.logins, reached.signatures),
            (tokens, logins, signatures),
            "{name}"
        );
    }
}
