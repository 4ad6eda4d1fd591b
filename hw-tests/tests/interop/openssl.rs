//! OpenSSL 3 with this module: through the engine of libp11, and through pkcs11-provider where it is installed.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use claviger_hw_tests::{
    client::{self, Output},
    fixture::{
        card_fixture::CardFixture,
        clients::{
            Clients, Needed, OPENPGP_SERIAL, PIV_SERIAL, background::Background, openpgp_with,
            openssl::Scheme, piv_with,
        },
    },
    over_both_services,
    provision::{CardProfile, KeyAlgorithm, OpenPgpPlan, PIN},
    skip,
};

const NEEDED: [Needed; 3] = [
    ("openssl", "openssl"),
    ("setsid", "util-linux"),
    ("timeout", "coreutils"),
];
const LIMIT: Duration = Duration::from_secs(60);
const MESSAGE: &str = "A message for the engine.";
const SHA256: Scheme<'_> = Scheme::Hashed("sha256");

over_both_services! { NEEDED;
    the_engine_signs_with_a_piv_p256_key: piv_with(KeyAlgorithm::P256);
    the_engine_signs_with_a_piv_rsa_key: piv_with(KeyAlgorithm::Rsa2048);
    the_engine_asks_again_for_the_pin_of_9c: CardProfile::piv4();
    the_engine_signs_with_an_openpgp_p256_key: openpgp_with(KeyAlgorithm::P256);
    the_engine_signs_with_an_openpgp_rsa_key: CardProfile::openpgp(OpenPgpPlan::rsa());
    the_engine_reads_the_certified_public_key: CardProfile::piv4();
    the_engine_makes_a_certificate_that_verifies: piv_with(KeyAlgorithm::P256);
    a_tls_server_has_its_key_on_the_card: piv_with(KeyAlgorithm::P256);
    the_provider_signs_with_piv_keys: CardProfile::piv4();
    the_provider_signs_with_a_piv_rsa_key: piv_with(KeyAlgorithm::Rsa2048);
    the_provider_signs_with_openpgp_keys: CardProfile::pgp3();
}

/// How `openssl` reaches the module.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bridge {
    Engine,
    Provider,
}

/// `openssl` with a configuration that names the module.
struct OpenSsl<'a> {
    clients: Clients<'a>,
    bridge: Bridge,
    configuration: PathBuf,
}

impl<'a> OpenSsl<'a> {
    /// `None`, and the test counted as skipped, where this bridge is not installed.
    fn with(bridge: Bridge, fixture: &'a CardFixture) -> Option<Self> {
        let clients = Clients::of(fixture);
        let (trial, missing): (&[&str], _) = match bridge {
            Bridge::Engine => (
                &["engine", "pkcs11"],
                "OpenSSL's engine pkcs11 is not installed (Debian: libengine-pkcs11-openssl)",
            ),
            Bridge::Provider => (
                &["list", "-providers", "-provider", "pkcs11"],
                "OpenSSL's provider pkcs11 is not installed (Debian 13: pkcs11-provider)",
            ),
        };
        if !clients
            .run(clients.command("openssl").args(trial))
            .success()
        {
            skip::because(missing);
            return None;
        }
        let module = clients.module().display();
        let text = match bridge {
            Bridge::Engine => format!(
                "openssl_conf = start\n[start]\nengines = engines\n[engines]\npkcs11 = card\n\
                 [card]\nengine_id = pkcs11\nMODULE_PATH = {module}\ninit = 0\n"
            ),
            Bridge::Provider => format!(
                "openssl_conf = start\n[start]\nproviders = providers\n[providers]\ndefault = software\n\
                 pkcs11 = card\n[software]\nactivate = 1\n[card]\nactivate = 1\n\
                 pkcs11-module-path = {module}\npkcs11-module-token-pin = {PIN}\n"
            ),
        };
        // For `openssl req`, which has a section of its own.
        let text = text + "[req]\ndistinguished_name = name\nprompt = no\n[name]\nCN = card\n";
        let configuration = clients.file("openssl.cnf", text);
        Some(Self {
            clients,
            bridge,
            configuration,
        })
    }

    fn engine(fixture: &'a CardFixture) -> Option<Self> {
        Self::with(Bridge::Engine, fixture)
    }

    fn provider(fixture: &'a CardFixture) -> Option<Self> {
        Self::with(Bridge::Provider, fixture)
    }

    fn command(&self, subcommand: &str) -> Command {
        self.finish(self.clients.command("openssl"), subcommand)
    }

    /// `openssl` in a session without a terminal: a PIN it asks for comes from standard input.
    fn command_without_terminal(&self, subcommand: &str) -> Command {
        let mut command = self.clients.command("setsid");
        // The client's own time limit does not reach into another session.
        command.args(["--wait", "timeout", "--kill-after=1", "45", "openssl"]);
        self.finish(command, subcommand)
    }

    fn finish(&self, mut command: Command, subcommand: &str) -> Command {
        command
            .arg(subcommand)
            .env("OPENSSL_CONF", &self.configuration);
        if self.bridge == Bridge::Engine {
            command.args(["-engine", "pkcs11"]);
        }
        command
    }

    /// The form of a key that is an URL.
    fn form(&self, option: &str) -> Vec<String> {
        match self.bridge {
            Bridge::Engine => vec![option.to_owned(), "engine".to_owned()],
            Bridge::Provider => Vec::new(),
        }
    }

    /// A private key; the engine finds the PIN in its URL.
    fn private_key(&self, serial: &str, id: &str) -> String {
        let pin = match self.bridge {
            Bridge::Engine => format!(";pin-value={PIN}"),
            Bridge::Provider => String::new(),
        };
        format!("pkcs11:serial={serial};id=%{id};type=private{pin}")
    }

    /// Signs with a key, typing `input` when asked, and checks with the key in this certificate.
    fn sign(&self, serial: &str, id: &str, certificate: &str, input: &str) -> Output {
        let message = self.clients.file("message", MESSAGE);
        let signature = self.clients.path("signature");
        let mut sign = self.command_without_terminal("dgst");
        sign.arg("-sha256").args(self.form("-keyform"));
        sign.arg("-sign")
            .arg(self.private_key(serial, id))
            .arg("-out")
            .arg(&signature)
            .arg(&message);
        let output = client::run_with_input(&mut sign, input.as_bytes(), LIMIT).expect_success();
        let key = self.clients.public_key_of(certificate);
        self.clients.check(&key, SHA256, &message, &signature);
        output
    }
}

fn the_engine_signs_with_a_piv_p256_key(fixture: &CardFixture) {
    let Some(openssl) = OpenSsl::engine(fixture) else {
        return;
    };
    openssl.sign(PIV_SERIAL, "01", "piv-9A", "");
}

fn the_engine_signs_with_a_piv_rsa_key(fixture: &CardFixture) {
    let Some(openssl) = OpenSsl::engine(fixture) else {
        return;
    };
    openssl.sign(PIV_SERIAL, "01", "piv-9A", "");
}

fn the_engine_asks_again_for_the_pin_of_9c(fixture: &CardFixture) {
    let Some(openssl) = OpenSsl::engine(fixture) else {
        return;
    };
    let output = openssl.sign(PIV_SERIAL, "02", "piv-9C", &format!("{PIN}\n"));
    let text = format!("{}{}", output.stdout, output.stderr);
    assert!(text.contains("PIN for SIGN key"), "{output}");
}

/// The engine of libp11 0.4.12 stops at the first key whose type it does not know, so a card that also has
/// Ed25519 or X25519 keys is beyond it, with any module.
fn the_engine_signs_with_an_openpgp_p256_key(fixture: &CardFixture) {
    let Some(openssl) = OpenSsl::engine(fixture) else {
        return;
    };
    openssl.sign(OPENPGP_SERIAL, "03", "openpgp-03", "");
}

fn the_engine_signs_with_an_openpgp_rsa_key(fixture: &CardFixture) {
    let Some(openssl) = OpenSsl::engine(fixture) else {
        return;
    };
    openssl.sign(OPENPGP_SERIAL, "03", "openpgp-03", "");
}

fn the_engine_reads_the_certified_public_key(fixture: &CardFixture) {
    let Some(openssl) = OpenSsl::engine(fixture) else {
        return;
    };
    for (id, certificate) in [
        ("01", "piv-9A"),
        ("02", "piv-9C"),
        ("03", "piv-9D"),
        ("04", "piv-9E"),
    ] {
        let mut read = openssl.command("pkey");
        read.args(openssl.form("-inform")).args(["-pubin", "-in"]);
        read.arg(format!("pkcs11:serial={PIV_SERIAL};id=%{id};type=public"));
        let pem = openssl.clients.run(&mut read).expect_success().stdout;
        let certified = openssl.clients.public_key_of(certificate);
        assert_eq!(pem, fs::read_to_string(certified).unwrap(), "{certificate}");
    }
}

fn the_engine_makes_a_certificate_that_verifies(fixture: &CardFixture) {
    let Some(openssl) = OpenSsl::engine(fixture) else {
        return;
    };
    let clients = &openssl.clients;
    let certificate = clients.path("self-signed.pem");
    let mut request = openssl.command("req");
    request
        .args(["-new", "-x509", "-sha256", "-days", "1"])
        .args(openssl.form("-keyform"));
    request
        .arg("-key")
        .arg(openssl.private_key(PIV_SERIAL, "01"))
        .arg("-out")
        .arg(&certificate);
    clients.run(&mut request).expect_success();
    let mut verify = clients.command("openssl");
    verify
        .args(["verify", "-check_ss_sig", "-CAfile"])
        .arg(&certificate)
        .arg(&certificate);
    clients.run(&mut verify).expect_success();
    let mut read = clients.command("openssl");
    let pem = clients
        .run(
            read.args(["x509", "-noout", "-pubkey", "-in"])
                .arg(&certificate),
        )
        .expect_success()
        .stdout;
    assert_eq!(
        pem,
        fs::read_to_string(clients.public_key_of("piv-9A")).unwrap()
    );
}

fn a_tls_server_has_its_key_on_the_card(fixture: &CardFixture) {
    let Some(openssl) = OpenSsl::engine(fixture) else {
        return;
    };
    let clients = &openssl.clients;
    let mut serve = openssl.command("s_server");
    serve
        .args(["-accept", "127.0.0.1:0", "-rev", "-naccept", "1"])
        .args(openssl.form("-keyform"));
    serve
        .arg("-key")
        .arg(openssl.private_key(PIV_SERIAL, "01"))
        .arg("-cert")
        .arg(clients.certificate_in_pem("piv-9A"));
    let mut server = Background::start(&mut serve, clients.path("server.log"));
    let address = server.wait_for("the server's port", |text| {
        let line = text.lines().find_map(|line| line.strip_prefix("ACCEPT "))?;
        Some(line.trim().to_owned())
    });
    let mut connect = clients.command("openssl");
    connect.args([
        "s_client",
        "-quiet",
        "-verify_return_error",
        "-verify_hostname",
        "localhost",
        "-connect",
        &address,
    ]);
    connect.arg("-CAfile").arg(clients.certificate_in_pem("ca"));
    let output = client::run_with_input(&mut connect, b"on the card\nCLOSE\n", LIMIT);
    assert!(
        output.stdout.contains("drac eht no"),
        "{output}\n{}",
        server.output()
    );
}

fn the_provider_signs_with_piv_keys(fixture: &CardFixture) {
    let Some(openssl) = OpenSsl::provider(fixture) else {
        return;
    };
    openssl.sign(PIV_SERIAL, "01", "piv-9A", "");
    openssl.sign(PIV_SERIAL, "02", "piv-9C", "");
    openssl.sign(PIV_SERIAL, "04", "piv-9E", "");
}

fn the_provider_signs_with_a_piv_rsa_key(fixture: &CardFixture) {
    let Some(openssl) = OpenSsl::provider(fixture) else {
        return;
    };
    openssl.sign(PIV_SERIAL, "01", "piv-9A", "");
}

fn the_provider_signs_with_openpgp_keys(fixture: &CardFixture) {
    let Some(openssl) = OpenSsl::provider(fixture) else {
        return;
    };
    openssl.sign(OPENPGP_SERIAL, "03", "openpgp-03", "");
    let clients = &openssl.clients;
    let (message, signature) = (clients.file("message", MESSAGE), clients.path("signature"));
    let mut sign = openssl.command("pkeyutl");
    sign.args(["-sign", "-rawin", "-inkey"])
        .arg(openssl.private_key(OPENPGP_SERIAL, "01"));
    clients
        .run(sign.arg("-in").arg(&message).arg("-out").arg(&signature))
        .expect_success();
    let key = clients.path("ed25519.pem");
    let mut read = openssl.command("pkey");
    read.args([
        "-pubin",
        "-in",
        &format!("pkcs11:serial={OPENPGP_SERIAL};id=%01;type=public"),
        "-pubout",
        "-out",
    ]);
    clients.run(read.arg(&key)).expect_success();
    clients.check(&key, Scheme::EdDsa, &message, &signature);
}
