//! OpenSC's `pkcs11-tool` with this module: listings, signatures that OpenSSL verifies, and its self-test.

use std::{fs, path::Path};

use claviger_hw_tests::{
    fixture::{
        card_fixture::CardFixture,
        clients::{
            Clients, Needed, OPENPGP_SERIAL, PIV_SERIAL,
            listing::{Entry, entries},
            openpgp_with,
            openssl::Scheme,
            piv_with,
        },
    },
    over_both_services,
    provision::{CardProfile, KeyAlgorithm, OpenPgpPlan},
};

const NEEDED: [Needed; 2] = [("pkcs11-tool", "opensc"), ("openssl", "openssl")];
/// 32 bytes: a message, and as long as a hash of SHA-256.
const MESSAGE: &[u8; 32] = b"What is signed is what was read.";

over_both_services! { NEEDED;
    a_card_with_two_applets_is_two_tokens: CardProfile::both();
    objects_of_each_token_are_listed: CardProfile::both();
    private_objects_appear_with_the_login: CardProfile::both();
    mechanisms_are_those_of_the_tokens_keys: CardProfile::both();
    certificates_are_read_as_they_were_issued: CardProfile::both();
    a_piv_p256_key_signs: CardProfile::piv4();
    a_piv_key_that_always_wants_its_pin_signs: CardProfile::piv4();
    a_piv_p384_key_signs: piv_with(KeyAlgorithm::P384);
    a_piv_rsa_key_signs: piv_with(KeyAlgorithm::Rsa2048);
    openpgp_ed25519_and_p256_keys_sign: CardProfile::pgp3();
    openpgp_rsa_keys_sign: CardProfile::openpgp(OpenPgpPlan::rsa());
    a_wrong_pin_reaches_the_piv_card_once: CardProfile::piv4();
    the_last_try_shows_in_the_flags_of_openpgp: CardProfile::pgp3();
    the_self_test_finds_no_error_on_piv: CardProfile::piv4();
    the_self_test_finds_no_error_on_piv_with_rsa_for_authentication: piv_with(KeyAlgorithm::Rsa2048);
    the_self_test_finds_no_error_on_openpgp: CardProfile::pgp3();
    the_self_test_finds_no_error_on_openpgp_with_p256: openpgp_with(KeyAlgorithm::P256);
    the_self_test_finds_no_error_on_openpgp_with_rsa: CardProfile::openpgp(OpenPgpPlan::rsa());
}

fn a_card_with_two_applets_is_two_tokens(fixture: &CardFixture) {
    let output = Clients::of(fixture)
        .pkcs11_tool(&["--list-slots"])
        .expect_success();
    let slots = entries(&output.stdout);
    let tokens: Vec<&Entry> = slots
        .iter()
        .filter(|slot| !slot.field("token label").is_empty())
        .collect();
    let about = |slot: &Entry| {
        [
            "token label",
            "serial num",
            "token manufacturer",
            "token model",
        ]
        .map(|name| slot.field(name).to_owned())
    };
    assert_eq!(tokens.len(), 2, "{output}");
    assert_eq!(
        about(tokens[0]),
        ["PIV 00000001", PIV_SERIAL, "piv_II", "PIV"],
        "{output}"
    );
    assert_eq!(
        about(tokens[1]),
        [
            "OpenPGP 00000001",
            OPENPGP_SERIAL,
            "Nitrokey",
            "OpenPGP card"
        ],
        "{output}"
    );
    for (slot, applet) in tokens.iter().zip(["PIV", "OpenPGP"]) {
        let name = format!("{} {applet}", fixture.card().name());
        assert!(slot.headline.ends_with(&name), "{name}\n{output}");
        assert!(
            slot.field("token flags").starts_with("login required"),
            "{output}"
        );
    }
}

/// The objects of the token with this label, logged in to or not.
fn objects(clients: &Clients<'_>, token: &str, arguments: &[&str]) -> Vec<Entry> {
    let list = ["--list-objects", "--token-label", token];
    entries(
        &clients
            .pkcs11_tool(&[&list, arguments].concat())
            .expect_success()
            .stdout,
    )
}

fn ids(objects: &[Entry], class: &str) -> Vec<String> {
    let of_class = objects.iter().filter(|object| object.class() == class);
    of_class
        .map(|object| object.field("ID").to_owned())
        .collect()
}

fn objects_of_each_token_are_listed(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    let piv = objects(&clients, "PIV 00000001", &[]);
    assert_eq!(ids(&piv, "Certificate Object"), ["01", "02", "03", "04"]);
    assert_eq!(ids(&piv, "Public Key Object"), ["01", "02", "03", "04"]);
    let subjects: Vec<&str> = piv
        .iter()
        .map(|object| object.field("subject"))
        .filter(|name| !name.is_empty())
        .collect();
    let expected =
        ["9A", "9C", "9D", "9E"].map(|key| format!("DN: O=Claviger, CN=Claviger PIV {key}"));
    assert_eq!(subjects, expected);
    let openpgp = objects(&clients, "OpenPGP 00000001", &[]);
    assert_eq!(ids(&openpgp, "Certificate Object"), ["03"]);
    assert_eq!(ids(&openpgp, "Public Key Object"), ["01", "02", "03"]);
}

fn private_objects_appear_with_the_login(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    let private =
        |token, arguments: &[&str]| ids(&objects(&clients, token, arguments), "Private Key Object");
    let login = ["--login", "--pin", "123456"];
    assert_eq!(
        private("PIV 00000001", &[]),
        ["04"],
        "card authentication wants no PIN"
    );
    assert_eq!(private("PIV 00000001", &login), ["01", "02", "03", "04"]);
    assert!(private("OpenPGP 00000001", &[]).is_empty());
    assert_eq!(private("OpenPGP 00000001", &login), ["01", "02", "03"]);
}

fn mechanisms_are_those_of_the_tokens_keys(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    let mechanisms = |token| {
        let output = clients
            .pkcs11_tool(&["--list-mechanisms", "--token-label", token])
            .expect_success();
        let name = |line: &str| line.trim().split(',').next().unwrap().to_owned();
        output.stdout.lines().skip(1).map(name).collect::<Vec<_>>()
    };
    let (piv, openpgp) = (mechanisms("PIV 00000001"), mechanisms("OpenPGP 00000001"));
    let has = |list: &[String], name: &str| list.iter().any(|mechanism| mechanism == name);
    for name in ["RSA-PKCS", "SHA256-RSA-PKCS", "ECDSA", "ECDSA-SHA256"] {
        assert!(has(&piv, name), "{name}: {piv:?}");
    }
    assert!(!has(&piv, "EDDSA"), "{piv:?}");
    for name in ["EDDSA", "ECDSA", "ECDSA-SHA256"] {
        assert!(has(&openpgp, name), "{name}: {openpgp:?}");
    }
    assert!(
        has(&openpgp, "RSA-PKCS"),
        "it can make such keys: {openpgp:?}"
    );
    for name in ["RSA-PKCS-PSS", "RSA-PKCS-OAEP", "RSA-X-509"] {
        assert!(
            !has(&openpgp, name),
            "{name}: it pads by itself: {openpgp:?}"
        );
    }
}

fn certificates_are_read_as_they_were_issued(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    let read = |token, id: &str| {
        let file = clients.path("read");
        let file = file.to_str().unwrap();
        let what = [
            "--read-object",
            "--type",
            "cert",
            "--id",
            id,
            "--output-file",
            file,
        ];
        clients
            .pkcs11_tool(&[&["--token-label", token][..], &what].concat())
            .expect_success();
        fs::read(file).unwrap()
    };
    for (id, name) in [
        ("01", "piv-9A"),
        ("02", "piv-9C"),
        ("03", "piv-9D"),
        ("04", "piv-9E"),
    ] {
        assert_eq!(
            read("PIV 00000001", id),
            fixture.certificate(name),
            "{name}"
        );
    }
    assert_eq!(
        read("OpenPGP 00000001", "03"),
        fixture.certificate("openpgp-03")
    );
}

/// Signs with the key of this id and lets OpenSSL verify.
fn sign(fixture: &CardFixture, id: &str, mechanism: &str, key: &Path, scheme: Scheme<'_>) {
    let clients = Clients::of(fixture);
    let (message, signature) = (clients.file("message", MESSAGE), clients.path("signature"));
    let _ = fs::remove_file(&signature);
    let what = [
        "--sign",
        "--id",
        id,
        "--mechanism",
        mechanism,
        "--signature-format",
        "openssl",
    ];
    let files = [
        "--input-file",
        message.to_str().unwrap(),
        "--output-file",
        signature.to_str().unwrap(),
    ];
    clients
        .pkcs11_tool_logged_in(&[&what[..], &files].concat())
        .expect_success();
    clients.check(key, scheme, &message, &signature);
}

fn a_piv_p256_key_signs(fixture: &CardFixture) {
    let key = Clients::of(fixture).public_key_of("piv-9A");
    sign(
        fixture,
        "01",
        "ECDSA-SHA256",
        &key,
        Scheme::Hashed("sha256"),
    );
    sign(
        fixture,
        "01",
        "ECDSA-SHA512",
        &key,
        Scheme::Hashed("sha512"),
    );
    sign(fixture, "01", "ECDSA", &key, Scheme::Unhashed);
}

/// 9C is refused by the card unless VERIFY is the command right before: the PIN is given twice.
fn a_piv_key_that_always_wants_its_pin_signs(fixture: &CardFixture) {
    let key = Clients::of(fixture).public_key_of("piv-9C");
    sign(
        fixture,
        "02",
        "SHA256-RSA-PKCS",
        &key,
        Scheme::Hashed("sha256"),
    );
    sign(fixture, "02", "RSA-PKCS", &key, Scheme::Unhashed);
}

fn a_piv_p384_key_signs(fixture: &CardFixture) {
    let key = Clients::of(fixture).public_key_of("piv-9A");
    sign(
        fixture,
        "01",
        "ECDSA-SHA384",
        &key,
        Scheme::Hashed("sha384"),
    );
    sign(
        fixture,
        "01",
        "ECDSA-SHA256",
        &key,
        Scheme::Hashed("sha256"),
    );
}

fn a_piv_rsa_key_signs(fixture: &CardFixture) {
    let key = Clients::of(fixture).public_key_of("piv-9A");
    sign(fixture, "01", "RSA-PKCS", &key, Scheme::Unhashed);
    sign(
        fixture,
        "01",
        "SHA256-RSA-PKCS",
        &key,
        Scheme::Hashed("sha256"),
    );
    sign(
        fixture,
        "01",
        "SHA512-RSA-PKCS",
        &key,
        Scheme::Hashed("sha512"),
    );
}

fn openpgp_ed25519_and_p256_keys_sign(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    let ed25519 = clients.path("ed25519.pem");
    let what = [
        "--read-object",
        "--type",
        "pubkey",
        "--id",
        "01",
        "--output-file",
        ed25519.to_str().unwrap(),
    ];
    clients.pkcs11_tool(&what).expect_success();
    sign(fixture, "01", "EDDSA", &ed25519, Scheme::EdDsa);
    let p256 = clients.public_key_of("openpgp-03");
    sign(
        fixture,
        "03",
        "ECDSA-SHA256",
        &p256,
        Scheme::Hashed("sha256"),
    );
    sign(fixture, "03", "ECDSA", &p256, Scheme::Unhashed);
}

fn openpgp_rsa_keys_sign(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    let authentication = clients.public_key_of("openpgp-03");
    sign(
        fixture,
        "03",
        "SHA256-RSA-PKCS",
        &authentication,
        Scheme::Hashed("sha256"),
    );
    let signature = clients.path("signature-key.der");
    let what = [
        "--read-object",
        "--type",
        "pubkey",
        "--id",
        "01",
        "--output-file",
        signature.to_str().unwrap(),
    ];
    clients.pkcs11_tool(&what).expect_success();
    sign(
        fixture,
        "01",
        "SHA256-RSA-PKCS",
        &signature,
        Scheme::Hashed("sha256"),
    );
    sign(
        fixture,
        "01",
        "SHA512-RSA-PKCS",
        &signature,
        Scheme::Hashed("sha512"),
    );
}

fn try_a_wrong_pin(clients: &Clients<'_>) {
    let wrong = clients.pkcs11_tool(&["--list-objects", "--login", "--pin", "654321"]);
    assert!(
        !wrong.success() && wrong.stderr.contains("CKR_PIN_INCORRECT"),
        "{wrong}"
    );
}

fn a_wrong_pin_reaches_the_piv_card_once(fixture: &CardFixture) {
    fixture.card().zero();
    try_a_wrong_pin(&Clients::of(fixture));
    let with_a_pin = |command: &[u8]| matches!(command, [0, 0x20, 0, 0x80, 8, ..]);
    let answers: Vec<_> = fixture
        .card()
        .exchanges()
        .into_iter()
        .filter(|exchange| with_a_pin(&exchange.command))
        .collect();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].response, [0x63, 0xC2]);
}

fn the_last_try_shows_in_the_flags_of_openpgp(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    let flags = || {
        let slots = entries(
            &clients
                .pkcs11_tool(&["--list-slots"])
                .expect_success()
                .stdout,
        );
        let token = slots
            .into_iter()
            .find(|slot| !slot.field("token label").is_empty());
        token.unwrap().field("token flags").to_owned()
    };
    let last = "final user PIN try";
    try_a_wrong_pin(&clients);
    assert!(!flags().contains(last), "one try was spent, two are left");
    try_a_wrong_pin(&clients);
    assert!(flags().contains(last));
    clients
        .pkcs11_tool_logged_in(&["--list-objects"])
        .expect_success();
    assert!(
        !flags().contains(last),
        "the right PIN gives all tries back"
    );
}

/// `pkcs11-tool --test` always exits with 0, so its output is checked.
fn self_test(fixture: &CardFixture) -> String {
    let output = Clients::of(fixture)
        .pkcs11_tool_logged_in(&["--test"])
        .expect_success();
    let text = format!("{}{}", output.stdout, output.stderr);
    assert!(output.stdout.ends_with("No errors\n"), "{output}");
    assert!(!text.contains("ERR"), "{output}");
    text
}

fn the_self_test_finds_no_error_on_piv(fixture: &CardFixture) {
    let text = self_test(fixture);
    assert!(
        text.contains("all 4 signature functions seem to work"),
        "{text}"
    );
    assert!(text.contains("SHA256-RSA-PKCS: OK"), "{text}");
}

fn the_self_test_finds_no_error_on_piv_with_rsa_for_authentication(fixture: &CardFixture) {
    the_self_test_finds_no_error_on_piv(fixture);
}

/// `pkcs11-tool` tests signatures of RSA keys only.
fn the_self_test_finds_no_error_on_openpgp(fixture: &CardFixture) {
    self_test(fixture);
}

fn the_self_test_finds_no_error_on_openpgp_with_p256(fixture: &CardFixture) {
    self_test(fixture);
}

fn the_self_test_finds_no_error_on_openpgp_with_rsa(fixture: &CardFixture) {
    the_self_test_finds_no_error_on_piv(fixture);
}
