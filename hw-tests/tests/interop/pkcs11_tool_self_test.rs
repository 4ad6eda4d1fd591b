//! The self-tests of OpenSC's `pkcs11-tool`, and its operations without a key of the card.

use std::{collections::BTreeSet, fs};

use claviger_hw_tests::{
    client::Output,
    fixture::{
        card_fixture::CardFixture,
        clients::{Clients, Needed, openssl::Padding},
    },
    over_the_socket,
    provision::{CardProfile, OpenPgpPlan, PIN},
};

const NEEDED: [Needed; 2] = [("pkcs11-tool", "opensc"), ("openssl", "openssl")];

over_the_socket! { NEEDED;
    the_self_test_signs_verifies_and_decrypts_with_piv_keys: CardProfile::both();
    the_self_test_finds_no_error_on_openpgp_keys: CardProfile::both();
    the_self_test_signs_verifies_and_decrypts_with_openpgp_rsa_keys: CardProfile::openpgp(OpenPgpPlan::rsa());
    the_test_of_ec_makes_no_key_for_the_user: CardProfile::both();
    the_test_of_ec_signs_with_a_new_piv_key: CardProfile::both();
    a_forked_child_initializes_for_itself: CardProfile::both();
    threads_of_one_process_share_a_token: CardProfile::piv4();
    threads_of_one_process_share_an_openpgp_token: CardProfile::pgp3();
    second_initialization_returns_already_initialized: CardProfile::piv4();
    hashes_are_those_of_openssl: CardProfile::piv4();
    hashes_of_an_openpgp_token_are_those_of_openssl: CardProfile::pgp3();
    random_bytes_differ_each_time: CardProfile::piv4();
    random_bytes_of_an_openpgp_token_differ_each_time: CardProfile::pgp3();
    mechanisms_of_the_cards_keys_carry_the_flag_of_hardware: CardProfile::both();
    no_object_comes_to_stay_by_unwrapping: CardProfile::openpgp(OpenPgpPlan::rsa());
}

fn text(output: &Output) -> String {
    format!("{}{}", output.stdout, output.stderr)
}

/// `pkcs11-tool --test` always exits with 0, so its output is checked.
fn passes(clients: &Clients<'_>, arguments: &[&str]) -> String {
    let output = clients.pkcs11_tool_logged_in(arguments).expect_success();
    let text = text(&output);
    assert!(output.stdout.ends_with("No errors\n"), "{output}");
    assert!(
        !text.contains("ERR") && !text.contains("rv = CKR"),
        "{output}"
    );
    text
}

const TOKENS: [&str; 2] = ["PIV 00000001", "OpenPGP 00000001"];

/// The output of each part that ran and found no error.
fn tests(text: &str, steps: &[&str]) {
    let general = [
        "seems to be OK",
        "all 4 digest functions seem to work",
        "SHA256: OK",
    ];
    for step in general.iter().chain(steps) {
        assert!(text.contains(step), "{step}\n{text}");
    }
}

fn the_self_test_signs_verifies_and_decrypts_with_piv_keys(fixture: &CardFixture) {
    let text = passes(
        &Clients::of(fixture),
        &["--token-label", TOKENS[0], "--test"],
    );
    let steps = [
        "all 4 signature functions seem to work",
        "RSA-X-509: OK",
        "SHA256-RSA-PKCS: OK",
        "Verify (currently only for RSA)",
        "Decryption (currently only for RSA)",
        "mgf not set, defaulting to MGF1-SHA256\nOK",
    ];
    tests(&text, &steps);
}

/// It knows no use for keys that are not RSA.
fn the_self_test_finds_no_error_on_openpgp_keys(fixture: &CardFixture) {
    tests(
        &passes(
            &Clients::of(fixture),
            &["--token-label", TOKENS[1], "--test"],
        ),
        &[],
    );
}

fn the_self_test_signs_verifies_and_decrypts_with_openpgp_rsa_keys(fixture: &CardFixture) {
    let text = passes(&Clients::of(fixture), &["--test"]);
    let steps = [
        "all 4 signature functions seem to work",
        "SHA256-RSA-PKCS: OK",
        "Verify (currently only for RSA)\n  testing key 0 (Signature key)\n    RSA-PKCS: OK",
        "testing key 1 (Encryption key)\n    RSA-PKCS: OK",
    ];
    tests(&text, &steps);
}

/// PIV's management key as the factory made it.
const MANAGEMENT_KEY: &str = "010203040506070801020304050607080102030405060708";

/// Runs the EC test of `pkcs11-tool` with this key id.
fn test_of_ec(clients: &Clients<'_>, login: &[&str], token: &str, id: &str) -> Output {
    let test = ["--session-rw", "--test-ec", "--key-type", "EC:prime256v1"];
    let key = ["--id", id, "--token-label", token];
    clients.pkcs11_tool(&[&["--login"], login, &test, &key].concat())
}

fn the_test_of_ec_makes_no_key_for_the_user(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    for (token, id) in TOKENS.into_iter().zip(["04", "03"]) {
        let output = test_of_ec(&clients, &["--pin", PIN], token, id);
        let refused = "C_GenerateKeyPair failed: rv = CKR_USER_NOT_LOGGED_IN";
        assert!(output.stderr.contains(refused), "{output}");
    }
    let exchanges = fixture.card().exchanges();
    let generated = exchanges
        .iter()
        .any(|exchange| exchange.header()[1] == 0x47);
    assert!(!generated, "a key was made");
}

/// The key for card authentication signs without the user's PIN. It can be neither renamed nor deleted on the card,
/// which is where the test of EC ends.
fn the_test_of_ec_signs_with_a_new_piv_key(fixture: &CardFixture) {
    let so_login = ["--login-type", "so", "--so-pin", MANAGEMENT_KEY];
    let output = test_of_ec(&Clients::of(fixture), &so_login, TOKENS[0], "04");
    for step in [
        "Key pair generated:",
        "*** Doing a signature ***",
        "*** Deleting the private",
    ] {
        assert!(output.stdout.contains(step), "{step}\n{output}");
    }
    let failed = output.stderr.lines().filter(|line| line.contains("failed"));
    for line in failed {
        let of_the_card = line.contains("C_SetAttributeValue") || line.contains("C_DestroyObject");
        assert!(of_the_card && line.ends_with("(0x1b)"), "{line}\n{output}");
    }
}

fn a_forked_child_initializes_for_itself(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    for token in TOKENS {
        let output = clients
            .pkcs11_tool_logged_in(&["--token-label", token, "--test-fork", "--list-objects"])
            .expect_success();
        let child = "Calling C_Initialize in forked child process";
        assert!(output.stdout.contains(child), "{output}");
        assert!(output.stdout.contains("Private Key Object"), "{output}");
        assert!(!text(&output).contains("CKR_"), "{output}");
    }
}

/// Each thread initializes, lists the slots and reads the token's information, while the main thread tests.
fn threads_of_one_process_share_a_token(fixture: &CardFixture) {
    let thread = ["--test-threads", "ILGISLT0"];
    let arguments = [&thread[..], &thread, &thread, &thread, &["--test"]].concat();
    let output = Clients::of(fixture)
        .pkcs11_tool_logged_in(&arguments)
        .expect_success();
    assert!(output.stdout.contains("No errors\n"), "{output}");
    let text = text(&output);
    for thread in 0..4 {
        let started = format!("Test thread {thread} started");
        let ended = format!("Test thread {thread} returning rv = 0");
        let slot_list = format!("Test thread {thread} C_GetSlotList returned CKR_OK");
        for line in [started, ended, slot_list] {
            assert!(text.contains(&line), "{line}\n{output}");
        }
    }
    assert!(!text.contains("some errors"), "{output}");
}

fn threads_of_one_process_share_an_openpgp_token(fixture: &CardFixture) {
    threads_of_one_process_share_a_token(fixture);
}

/// A thread and the main thread initialize. The later call fails.
fn second_initialization_returns_already_initialized(fixture: &CardFixture) {
    let output = Clients::of(fixture)
        .pkcs11_tool_logged_in(&["--test-threads", "IN", "--list-objects"])
        .expect_success();
    assert!(
        text(&output).contains("CKR_CRYPTOKI_ALREADY_INITIALIZED"),
        "{output}"
    );
    assert!(output.stdout.contains("Private Key Object"), "{output}");
}

/// The names of the mechanisms that the token lists with this flag.
fn with_flag(clients: &Clients<'_>, token: &str, flag: &str) -> BTreeSet<String> {
    let output = clients
        .pkcs11_tool(&["--token-label", token, "--list-mechanisms"])
        .expect_success();
    let flagged = |line: &&str| line.split(", ").skip(1).any(|word| word == flag);
    let name = |line: &str| line.trim().split(',').next().unwrap().to_owned();
    output.stdout.lines().filter(flagged).map(name).collect()
}

fn hashes(fixture: &CardFixture, token: &str) {
    let clients = Clients::of(fixture);
    let names = [
        ("SHA-1", "sha1"),
        ("SHA224", "sha224"),
        ("SHA256", "sha256"),
        ("SHA384", "sha384"),
        ("SHA512", "sha512"),
    ];
    let listed = with_flag(&clients, token, "digest");
    // Larger than the pieces in which `pkcs11-tool` gives a file.
    for (n, content) in [Vec::new(), b"abc".to_vec(), vec![0x5A; 100_001]]
        .iter()
        .enumerate()
    {
        let file = clients.file(&format!("message-{n}"), content);
        for (mechanism, name) in names {
            assert!(listed.contains(mechanism), "{mechanism}: {listed:?}");
            let output = clients.path("digest");
            let _ = fs::remove_file(&output);
            let files = [
                "--input-file",
                file.to_str().unwrap(),
                "--output-file",
                output.to_str().unwrap(),
            ];
            clients
                .pkcs11_tool(&[&["--hash", "--mechanism", mechanism][..], &files].concat())
                .expect_success();
            assert_eq!(
                fs::read(&output).unwrap(),
                clients.digest(name, &file),
                "{mechanism}"
            );
        }
    }
}

fn hashes_are_those_of_openssl(fixture: &CardFixture) {
    hashes(fixture, TOKENS[0]);
}

fn hashes_of_an_openpgp_token_are_those_of_openssl(fixture: &CardFixture) {
    hashes(fixture, TOKENS[1]);
}

fn random_bytes_differ_each_time(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    let mut seen = BTreeSet::new();
    for length in [1, 16, 16, 300, 300, 5000, 5000] {
        let file = clients.path("random");
        let _ = fs::remove_file(&file);
        let length_written = length.to_string();
        let what = [
            "--generate-random",
            &length_written,
            "--output-file",
            file.to_str().unwrap(),
        ];
        clients.pkcs11_tool(&what).expect_success();
        let bytes = fs::read(&file).unwrap();
        assert_eq!(bytes.len(), length);
        assert!(
            length < 16 || bytes.iter().any(|byte| *byte != bytes[0]),
            "all are {}",
            bytes[0]
        );
        assert!(seen.insert(bytes), "the same {length} bytes twice");
    }
}

fn random_bytes_of_an_openpgp_token_differ_each_time(fixture: &CardFixture) {
    random_bytes_differ_each_time(fixture);
}

/// Signing and decrypting mechanisms of keys on the card are the card's own: they carry the flag `hw`.
fn mechanisms_of_the_cards_keys_carry_the_flag_of_hardware(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    for token in TOKENS {
        let hardware = with_flag(&clients, token, "hw");
        for name in ["sign", "decrypt", "derive"] {
            for mechanism in with_flag(&clients, token, name) {
                let of_key = ["RSA", "ECDSA", "ECDH", "EDDSA"]
                    .iter()
                    .any(|name| mechanism.contains(name));
                assert!(
                    !of_key || hardware.contains(&mechanism),
                    "{mechanism} of {token}"
                );
            }
        }
        for mechanism in with_flag(&clients, token, "digest") {
            assert!(!hardware.contains(&mechanism), "{mechanism} of {token}");
        }
    }
}

/// `pkcs11-tool` unwraps to an object of the token only, and there is no place for one on the card.
fn no_object_comes_to_stay_by_unwrapping(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    let secret = clients.file("secret", [7; 16]);
    let key = clients.public_key_on_card("02");
    let wrapped = clients.encrypted(&key, Padding::Pkcs1, &secret);
    let what = [
        "--session-rw",
        "--unwrap",
        "--mechanism",
        "RSA-PKCS",
        "--id",
        "02",
    ];
    let new = [
        "--key-type",
        "AES:",
        "--application-id",
        "90",
        "--input-file",
        wrapped.to_str().unwrap(),
    ];
    let output = clients.pkcs11_tool_logged_in(&[&what[..], &new].concat());
    assert!(!output.success(), "{output}");
    assert!(
        output.stderr.contains("C_UnwrapKey failed: rv = CKR_"),
        "{output}"
    );
    for not_meant in [
        "FUNCTION_NOT_SUPPORTED",
        "GENERAL_ERROR",
        "DEVICE_ERROR",
        "FUNCTION_FAILED",
    ] {
        assert!(!output.stderr.contains(not_meant), "{output}");
    }
    let listed = clients
        .pkcs11_tool_logged_in(&["--list-objects"])
        .expect_success();
    assert!(!listed.stdout.contains("Secret Key Object"), "{listed}");
}
