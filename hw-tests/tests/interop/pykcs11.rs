//! PyKCS11, a PKCS #11 wrapper for Python, with this module. The client is `pykcs11.py`.

use std::{collections::BTreeSet, path::Path};

use claviger_hw_tests::{
    fixture::{
        card_fixture::CardFixture,
        clients::{Clients, Needed, openpgp_with, piv_key_management, piv_with},
    },
    over_the_socket,
    provision::{CardProfile, KeyAlgorithm, OpenPgpPlan, PIN},
    skip,
};

/// Debian's own, for which its packages are.
const PYTHON: &str = "/usr/bin/python3";
const NEEDED: [Needed; 1] = [("openssl", "openssl")];

over_the_socket! { NEEDED;
    piv_keys_sign_with_each_mechanism_they_allow: CardProfile::piv4();
    a_piv_p384_key_signs_with_each_mechanism_it_allows: piv_with(KeyAlgorithm::P384);
    openpgp_keys_sign_with_each_mechanism_they_allow: CardProfile::pgp3();
    openpgp_rsa_keys_sign_with_each_mechanism_they_allow: CardProfile::openpgp(OpenPgpPlan::rsa());
    openpgp_p521_keys_sign_with_each_mechanism_they_allow: openpgp_with(KeyAlgorithm::P521);
    a_piv_rsa_key_decrypts_what_was_encrypted_in_software: CardProfile::piv4();
    an_openpgp_rsa_key_decrypts_what_was_encrypted_in_software: CardProfile::openpgp(OpenPgpPlan::rsa());
    an_openpgp_x25519_key_agrees_on_a_secret: CardProfile::pgp3();
    an_openpgp_p256_key_agrees_on_a_secret: openpgp_with(KeyAlgorithm::P256);
    an_openpgp_p521_key_agrees_on_a_secret: openpgp_with(KeyAlgorithm::P521);
    a_piv_p256_key_agrees_on_a_secret: piv_key_management(KeyAlgorithm::P256);
    a_piv_p384_key_agrees_on_a_secret: piv_key_management(KeyAlgorithm::P384);
    a_secret_key_unwrapped_by_piv_encrypts: CardProfile::piv4();
    a_secret_key_unwrapped_by_openpgp_encrypts: CardProfile::openpgp(OpenPgpPlan::rsa());
    digests_are_those_of_openssl: CardProfile::piv4();
    digests_of_an_openpgp_token_are_those_of_openssl: CardProfile::pgp3();
    pykcs11_reads_all_attributes_of_piv_objects: CardProfile::piv4();
    pykcs11_reads_all_attributes_of_openpgp_objects: CardProfile::pgp3();
    sessions_of_a_piv_token_follow_the_login: piv_with(KeyAlgorithm::P256);
    sessions_of_an_openpgp_token_follow_the_login: CardProfile::pgp3();
    objects_of_a_piv_session_are_made_and_used: CardProfile::piv4();
    objects_of_an_openpgp_session_are_made_and_used: CardProfile::pgp3();
}

/// Runs a rule; what it checked must contain all of `expected`.
fn checks(fixture: &CardFixture, rule: &str, expected: &[&str]) {
    let clients = Clients::of(fixture);
    let mut trial = clients.command(PYTHON);
    if !Path::new(PYTHON).is_file() || !clients.run(trial.args(["-c", "import PyKCS11"])).success()
    {
        skip::because("PyKCS11 is not installed (Debian: python3-pykcs11)");
        return;
    }
    let script = clients.file("rules.py", include_str!("pykcs11.py"));
    let mut python = clients.command(PYTHON);
    python
        .current_dir(fixture.folder())
        .arg(script)
        .arg(clients.module())
        .args([PIN, rule]);
    let output = clients.run(&mut python).expect_success();
    let checked: BTreeSet<&str> = output
        .stdout
        .lines()
        .filter_map(|line| line.strip_prefix("checked: "))
        .collect();
    for thing in expected {
        assert!(checked.contains(thing), "{thing} was not checked\n{output}");
    }
}

fn piv_keys_sign_with_each_mechanism_they_allow(fixture: &CardFixture) {
    let expected = [
        "PIV AUTH key CKM_ECDSA sha256",
        "PIV AUTH key CKM_ECDSA_SHA256 sha256",
        "PIV AUTH key CKM_ECDSA_SHA512 sha512",
        "SIGN key CKM_SHA1_RSA_PKCS sha1",
        "SIGN key CKM_SHA256_RSA_PKCS sha256",
        "SIGN key CKM_SHA384_RSA_PKCS_PSS sha384",
        "SIGN key CKM_RSA_PKCS_PSS sha512",
        "CARD AUTH key CKM_ECDSA sha384",
    ];
    checks(fixture, "signatures", &expected);
}

fn a_piv_p384_key_signs_with_each_mechanism_it_allows(fixture: &CardFixture) {
    let each = ["sha1", "sha224", "sha256", "sha384", "sha512"];
    let expected = each.map(|hash| format!("PIV AUTH key CKM_ECDSA {hash}"));
    checks(
        fixture,
        "signatures",
        &expected.each_ref().map(String::as_str),
    );
}

fn openpgp_keys_sign_with_each_mechanism_they_allow(fixture: &CardFixture) {
    let expected = [
        "Signature key CKM_EDDSA",
        "Authentication key CKM_ECDSA sha256",
    ];
    checks(fixture, "signatures", &expected);
}

fn openpgp_rsa_keys_sign_with_each_mechanism_they_allow(fixture: &CardFixture) {
    let expected = [
        "Signature key CKM_SHA256_RSA_PKCS sha256",
        "Authentication key CKM_SHA512_RSA_PKCS sha512",
    ];
    checks(fixture, "signatures", &expected);
}

fn openpgp_p521_keys_sign_with_each_mechanism_they_allow(fixture: &CardFixture) {
    let expected = [
        "Signature key CKM_ECDSA sha512",
        "Authentication key CKM_ECDSA_SHA256 sha256",
    ];
    checks(fixture, "signatures", &expected);
}

fn a_piv_rsa_key_decrypts_what_was_encrypted_in_software(fixture: &CardFixture) {
    let oaep = |hash| format!("KEY MAN key oaep rsa_oaep_md:{hash} rsa_mgf1_md:{hash}");
    let with_label = format!("{} rsa_oaep_label:61206c6162656c", oaep("sha256"));
    let pkcs1 = "KEY MAN key pkcs1".to_owned();
    let expected = [pkcs1, oaep("sha1"), oaep("sha512"), with_label];
    checks(fixture, "ciphers", &expected.each_ref().map(String::as_str));
}

/// The card removes the padding itself, by PKCS #1 v1.5.
fn an_openpgp_rsa_key_decrypts_what_was_encrypted_in_software(fixture: &CardFixture) {
    checks(fixture, "ciphers", &["Encryption key pkcs1"]);
}

fn agrees(fixture: &CardFixture, key: &str, curve: bool) {
    let of_key = |what: &str| format!("{key} {what}");
    let mut expected = vec![
        of_key("whole"),
        of_key("CKD_SHA256_KDF"),
        of_key("a sensitive value stays inside"),
    ];
    if curve {
        expected.push(of_key("a point beside the curve is refused"));
    }
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    checks(fixture, "derivations", &expected);
}

fn an_openpgp_x25519_key_agrees_on_a_secret(fixture: &CardFixture) {
    agrees(fixture, "Encryption key", false);
}

fn an_openpgp_p256_key_agrees_on_a_secret(fixture: &CardFixture) {
    agrees(fixture, "Encryption key", true);
}

fn an_openpgp_p521_key_agrees_on_a_secret(fixture: &CardFixture) {
    agrees(fixture, "Encryption key", true);
}

fn a_piv_p256_key_agrees_on_a_secret(fixture: &CardFixture) {
    agrees(fixture, "KEY MAN key", true);
}

fn a_piv_p384_key_agrees_on_a_secret(fixture: &CardFixture) {
    agrees(fixture, "KEY MAN key", true);
}

fn a_secret_key_unwrapped_by_piv_encrypts(fixture: &CardFixture) {
    checks(fixture, "wrapping", &["KEY MAN key CKM_AES_CBC_PAD"]);
}

fn a_secret_key_unwrapped_by_openpgp_encrypts(fixture: &CardFixture) {
    checks(fixture, "wrapping", &["Encryption key CKM_AES_CBC_PAD"]);
}

fn digests_are_those_of_openssl(fixture: &CardFixture) {
    checks(
        fixture,
        "digests",
        &["sha1", "sha224", "sha256", "sha384", "sha512"],
    );
}

fn digests_of_an_openpgp_token_are_those_of_openssl(fixture: &CardFixture) {
    digests_are_those_of_openssl(fixture);
}

fn pykcs11_reads_all_attributes_of_piv_objects(fixture: &CardFixture) {
    let expected = [
        "CKO_CERTIFICATE Certificate for PIV Authentication",
        "CKO_CERTIFICATE Certificate for Key Management",
        "CKO_PUBLIC_KEY SIGN pubkey",
        "CKO_PRIVATE_KEY PIV AUTH key",
        "CKO_PRIVATE_KEY KEY MAN key",
        "CKO_DATA Card Holder Unique Identifier",
    ];
    checks(fixture, "attributes", &expected);
}

fn pykcs11_reads_all_attributes_of_openpgp_objects(fixture: &CardFixture) {
    let expected = [
        "CKO_CERTIFICATE AUT certificate",
        "CKO_PUBLIC_KEY Encryption key",
        "CKO_PRIVATE_KEY Signature key",
        "CKO_PRIVATE_KEY Authentication key",
    ];
    checks(fixture, "attributes", &expected);
}

fn sessions_of_a_piv_token_follow_the_login(fixture: &CardFixture) {
    let expected = [
        "a login is of all sessions",
        "handles of private objects end with the login",
        "closed sessions are gone",
        "nothing happens in the slot",
        "an unknown slot",
    ];
    checks(fixture, "sessions", &expected);
}

fn sessions_of_an_openpgp_token_follow_the_login(fixture: &CardFixture) {
    sessions_of_a_piv_token_follow_the_login(fixture);
}

fn objects_of_a_piv_session_are_made_and_used(fixture: &CardFixture) {
    let expected = [
        "a data object comes, changes and goes",
        "CKM_SHA256_HMAC",
        "random numbers",
    ];
    checks(fixture, "session_objects", &expected);
}

fn objects_of_an_openpgp_session_are_made_and_used(fixture: &CardFixture) {
    objects_of_a_piv_session_are_made_and_used(fixture);
}
