//! GnuTLS's `p11tool` with this module.

use std::fs;

use claviger_hw_tests::{
    fixture::{
        card_fixture::CardFixture,
        clients::{Clients, Needed, OPENPGP_SERIAL, PIV_SERIAL, openssl::Scheme, piv_with},
    },
    over_both_services,
    provision::{CardProfile, KeyAlgorithm, OpenPgpPlan, PIN},
};

const NEEDED: [Needed; 2] = [("p11tool", "gnutls-bin"), ("openssl", "openssl")];

over_both_services! { NEEDED;
    tokens_of_both_applets_have_urls: CardProfile::both();
    public_objects_are_listed_without_a_login: piv_with(KeyAlgorithm::P256);
    all_objects_are_listed_with_a_login: CardProfile::both();
    certificates_are_exported_as_they_were_issued: CardProfile::both();
    public_keys_are_exported_as_certified: CardProfile::piv4();
    an_ed25519_public_key_is_understood: CardProfile::pgp3();
    piv_keys_pass_the_signature_test: CardProfile::piv4();
    the_openpgp_authentication_key_passes_the_signature_test: CardProfile::pgp3();
    openpgp_rsa_keys_pass_the_signature_test: CardProfile::openpgp(OpenPgpPlan::rsa());
}

/// Type, label and id of one object in p11tool's words.
type Object = [String; 3];

fn objects(text: &str) -> Vec<Object> {
    let field = |object: &str, name: &str| {
        let value = object
            .lines()
            .find_map(|line| line.trim().strip_prefix(name));
        value.unwrap_or_default().trim().to_owned()
    };
    let one = |object| ["Type:", "Label:", "ID:"].map(|name| field(object, name));
    text.split("Object ").skip(1).map(one).collect()
}

fn object(kind: &str, label: &str, id: &str) -> Object {
    [kind, label, id].map(str::to_owned)
}

fn url(serial: &str, rest: &str) -> String {
    format!("pkcs11:serial={serial}{rest}")
}

fn tokens_of_both_applets_have_urls(fixture: &CardFixture) {
    let output = Clients::of(fixture)
        .p11tool(None, &["--list-tokens"])
        .expect_success();
    let urls: Vec<&str> = output
        .stdout
        .lines()
        .filter_map(|line| line.trim().strip_prefix("URL: "))
        .collect();
    let piv =
        format!("pkcs11:model=PIV;manufacturer=piv_II;serial={PIV_SERIAL};token=PIV%2000000001");
    let openpgp = format!(
        "pkcs11:model=OpenPGP%20card;manufacturer=Nitrokey;serial={OPENPGP_SERIAL};token=OpenPGP%2000000001"
    );
    assert_eq!(urls, [piv, openpgp], "{output}");
}

fn public_objects_are_listed_without_a_login(fixture: &CardFixture) {
    let output = Clients::of(fixture)
        .p11tool(None, &["--list-all", &url(PIV_SERIAL, "")])
        .expect_success();
    let objects = objects(&output.stdout);
    let p256 = "EC/ECDSA-SECP256R1";
    for expected in [
        object(
            &format!("X.509 Certificate ({p256})"),
            "Certificate for PIV Authentication",
            "01",
        ),
        object(&format!("Public key ({p256})"), "PIV AUTH pubkey", "01"),
        object("Data", "Card Holder Unique Identifier", ""),
    ] {
        assert!(objects.contains(&expected), "{expected:?}\n{output}");
    }
    assert!(!output.stdout.contains("Private key"), "{output}");
    assert_eq!(
        fixture
            .card()
            .exchanges()
            .iter()
            .filter(|exchange| exchange.header() == [0, 0x20, 0, 0x80])
            .count(),
        0,
        "no VERIFY"
    );
}

fn all_objects_are_listed_with_a_login(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    let list = |serial| {
        let output = clients
            .p11tool(Some(PIN), &["--login", "--list-all", &url(serial, "")])
            .expect_success();
        objects(&output.stdout)
            .into_iter()
            // GnuTLS 3.7 calls profile objects unknown.
            .filter(|[kind, ..]| kind != "Data" && kind != "Unknown")
            .collect::<Vec<_>>()
    };
    let (p256, rsa) = ("EC/ECDSA-SECP256R1", "RSA-2048");
    // The curve of a private key is that of the public key with the same label, which PIV keys have not.
    let without_curve = |kind: &str| kind.trim_end_matches("-SECP256R1").to_owned();
    let mut expected = Vec::new();
    for (kind, place, name, id) in [
        (p256, "PIV Authentication", "PIV AUTH", "01"),
        (rsa, "Digital Signature", "SIGN", "02"),
        (rsa, "Key Management", "KEY MAN", "03"),
        (p256, "Card Authentication", "CARD AUTH", "04"),
    ] {
        expected.push(object(
            &format!("X.509 Certificate ({kind})"),
            &format!("Certificate for {place}"),
            id,
        ));
        expected.push(object(
            &format!("Public key ({kind})"),
            &format!("{name} pubkey"),
            id,
        ));
        expected.push(object(
            &format!("Private key ({})", without_curve(kind)),
            &format!("{name} key"),
            id,
        ));
    }
    let sorted = |mut objects: Vec<Object>| {
        objects.sort();
        objects
    };
    assert_eq!(sorted(list(PIV_SERIAL)), sorted(expected));
    // GnuTLS 3.7 knows no X25519 keys: it names the private one without its kind and leaves the public one out.
    let openpgp = list(OPENPGP_SERIAL);
    for expected in [
        object(
            &format!("X.509 Certificate ({p256})"),
            "AUT certificate",
            "03",
        ),
        object(&format!("Public key ({p256})"), "Authentication key", "03"),
        object(&format!("Private key ({p256})"), "Authentication key", "03"),
        object("Public key (EdDSA (Ed25519))", "Signature key", "01"),
        object("Private key (EdDSA (Ed25519))", "Signature key", "01"),
    ] {
        assert!(openpgp.contains(&expected), "{expected:?}\n{openpgp:?}");
    }
}

/// What p11tool writes to a file, through OpenSSL to DER.
fn exported(clients: &Clients<'_>, pin: Option<&str>, what: &[&str], kind: &str) -> Vec<u8> {
    let (pem, der) = (clients.path("exported.pem"), clients.path("exported.der"));
    let file = ["--outfile", pem.to_str().unwrap()];
    clients
        .p11tool(pin, &[&file, what].concat())
        .expect_success();
    let mut openssl = clients.command("openssl");
    openssl
        .arg(kind)
        .args(if kind == "pkey" { &["-pubin"][..] } else { &[] });
    openssl
        .args(["-outform", "DER", "-in"])
        .arg(pem)
        .arg("-out")
        .arg(&der);
    clients.run(&mut openssl).expect_success();
    fs::read(der).unwrap()
}

fn certificates_are_exported_as_they_were_issued(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    for (serial, id, name) in [
        (PIV_SERIAL, "01", "piv-9A"),
        (PIV_SERIAL, "02", "piv-9C"),
        (PIV_SERIAL, "03", "piv-9D"),
        (PIV_SERIAL, "04", "piv-9E"),
        (OPENPGP_SERIAL, "03", "openpgp-03"),
    ] {
        let url = url(serial, &format!(";id=%{id};type=cert"));
        assert_eq!(
            exported(&clients, None, &["--export", &url], "x509"),
            fixture.certificate(name),
            "{name}"
        );
    }
}

fn public_keys_are_exported_as_certified(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    for (id, name) in [("01", "piv-9A"), ("02", "piv-9C")] {
        let url = url(PIV_SERIAL, &format!(";id=%{id}"));
        let key = exported(
            &clients,
            Some(PIN),
            &["--login", "--export-pubkey", &url],
            "pkey",
        );
        let certified = clients.public_key_of(name);
        let mut openssl = clients.command("openssl");
        openssl
            .args(["pkey", "-pubin", "-outform", "DER", "-in"])
            .arg(certified)
            .arg("-out")
            .arg(clients.path("certified"));
        clients.run(&mut openssl).expect_success();
        assert_eq!(key, fs::read(clients.path("certified")).unwrap(), "{name}");
    }
}

/// GnuTLS 3.7 cannot test a signature with it, because its test hashes first.
fn an_ed25519_public_key_is_understood(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    let url = url(OPENPGP_SERIAL, ";id=%01");
    let key = clients.file(
        "key",
        exported(
            &clients,
            Some(PIN),
            &["--login", "--export-pubkey", &url],
            "pkey",
        ),
    );
    let (message, signature) = (
        clients.file("message", "of no importance"),
        clients.path("signature"),
    );
    let files = [
        "--input-file",
        message.to_str().unwrap(),
        "--output-file",
        signature.to_str().unwrap(),
    ];
    let sign = ["--sign", "--id", "01", "--mechanism", "EDDSA"];
    clients
        .pkcs11_tool_logged_in(&[&sign[..], &files].concat())
        .expect_success();
    clients.check(&key, Scheme::EdDsa, &message, &signature);
}

fn signature_test(fixture: &CardFixture, url: &str) {
    let output = Clients::of(fixture)
        .p11tool(Some(PIN), &["--login", "--test-sign", url])
        .expect_success();
    let text = format!("{}{}", output.stdout, output.stderr);
    for step in [
        "Signing using",
        "Verifying against private key parameters",
        "Verifying against public key in the token",
    ] {
        let passed = text
            .lines()
            .any(|line| line.starts_with(step) && line.ends_with("... ok"));
        assert!(passed, "{step}\n{output}");
    }
}

fn piv_keys_pass_the_signature_test(fixture: &CardFixture) {
    for id in ["01", "02", "04"] {
        signature_test(fixture, &url(PIV_SERIAL, &format!(";id=%{id}")));
    }
}

fn the_openpgp_authentication_key_passes_the_signature_test(fixture: &CardFixture) {
    signature_test(fixture, &url(OPENPGP_SERIAL, ";id=%03"));
}

fn openpgp_rsa_keys_pass_the_signature_test(fixture: &CardFixture) {
    for id in ["01", "03"] {
        signature_test(fixture, &url(OPENPGP_SERIAL, &format!(";id=%{id}")));
    }
}
