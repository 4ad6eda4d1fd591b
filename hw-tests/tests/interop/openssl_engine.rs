//! Operations of `openssl` with keys of the card through the engine of libp11, besides plain signatures.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use claviger_hw_tests::{
    client,
    fixture::{
        card_fixture::CardFixture,
        clients::{
            Clients, Needed, OPENPGP_SERIAL, PIV_SERIAL,
            background::Background,
            openpgp_with,
            openssl::{Padding, Scheme},
            piv_key_management, piv_with,
        },
    },
    over_the_socket,
    provision::{CardProfile, KeyAlgorithm, OpenPgpPlan, PIN},
    skip,
};

const NEEDED: [Needed; 1] = [("openssl", "openssl")];
const LIMIT: Duration = Duration::from_secs(60);
const MESSAGE: &str = "A message for the engine.";

over_the_socket! { NEEDED;
    a_piv_rsa_key_signs_by_pss: piv_with(KeyAlgorithm::Rsa2048);
    piv_keys_sign_a_hash: piv_with(KeyAlgorithm::P256);
    an_openpgp_rsa_key_signs_a_hash: CardProfile::openpgp(OpenPgpPlan::rsa());
    a_piv_rsa_key_decrypts_with_each_padding: CardProfile::piv4();
    an_openpgp_rsa_key_decrypts: CardProfile::openpgp(OpenPgpPlan::rsa());
    a_piv_p256_key_agrees_on_a_secret: piv_key_management(KeyAlgorithm::P256);
    a_piv_p384_key_agrees_on_a_secret: piv_key_management(KeyAlgorithm::P384);
    an_openpgp_p256_key_agrees_on_a_secret: openpgp_with(KeyAlgorithm::P256);
    a_piv_ec_key_signs_cms: piv_with(KeyAlgorithm::P256);
    an_openpgp_rsa_key_signs_cms: CardProfile::openpgp(OpenPgpPlan::rsa());
    a_piv_rsa_key_decrypts_cms: CardProfile::piv4();
    a_piv_rsa_key_issues_certificates: piv_with(KeyAlgorithm::Rsa2048);
    a_tls_server_has_an_rsa_key_on_piv: piv_with(KeyAlgorithm::Rsa2048);
    a_tls_server_has_an_ec_key_on_openpgp: openpgp_with(KeyAlgorithm::P256);
    a_tls_server_has_an_rsa_key_on_openpgp: CardProfile::openpgp(OpenPgpPlan::rsa());
    a_tls_client_has_its_key_on_piv: piv_with(KeyAlgorithm::P256);
    a_tls_client_has_an_rsa_key_on_piv: piv_with(KeyAlgorithm::Rsa2048);
}

/// `openssl` with a configuration that names the module.
struct Engine<'a> {
    clients: Clients<'a>,
    configuration: PathBuf,
}

impl<'a> Engine<'a> {
    /// `None`, and the test counted as skipped, where the engine is not installed.
    fn of(fixture: &'a CardFixture) -> Option<Self> {
        let clients = Clients::of(fixture);
        let mut trial = clients.command("openssl");
        if !clients.run(trial.args(["engine", "pkcs11"])).success() {
            skip::because(
                "OpenSSL's engine pkcs11 is not installed (Debian: libengine-pkcs11-openssl)",
            );
            return None;
        }
        let module = clients.module().display();
        let text = format!(
            "openssl_conf = start\n[start]\nengines = engines\n[engines]\npkcs11 = card\n\
             [card]\nengine_id = pkcs11\nMODULE_PATH = {module}\ninit = 0\n\
             [req]\ndistinguished_name = name\n[name]\n"
        );
        let configuration = clients.file("openssl.cnf", text);
        Some(Self {
            clients,
            configuration,
        })
    }

    fn command(&self, subcommand: &str) -> Command {
        let mut command = self.clients.command("openssl");
        command.args([subcommand, "-engine", "pkcs11"]);
        command.env("OPENSSL_CONF", &self.configuration);
        command
    }

    fn with_key(&self, subcommand: &str, option: &str, key: &str) -> Command {
        let mut command = self.command(subcommand);
        command.args(["-keyform", "engine", option, key]);
        command
    }

    fn run(&self, command: &mut Command) -> String {
        self.clients.run(command).expect_success().stdout
    }

    /// Signs the hash of a message.
    fn signs_a_hash(&self, key: &str, certificate: &str) {
        let message = self.clients.file("message", MESSAGE);
        for hash in ["sha256", "sha384"] {
            let digest = self.clients.digest(hash, &message);
            let digest = self.clients.file("digest", digest);
            let signature = self.clients.path("signature");
            let mut sign = self.with_key("pkeyutl", "-inkey", key);
            sign.args(["-sign", "-pkeyopt", &format!("digest:{hash}"), "-in"])
                .arg(&digest);
            self.run(sign.arg("-out").arg(&signature));
            let public = self.clients.public_key_of(certificate);
            self.clients
                .check(&public, Scheme::Hashed(hash), &message, &signature);
        }
    }

    fn decrypts(&self, key: &str, public: &std::path::Path, padding: Padding<'_>) {
        let message = self.clients.file("message", MESSAGE);
        let ciphertext = self.clients.encrypted(public, padding, &message);
        let mut decrypt = self.with_key("pkeyutl", "-inkey", key);
        decrypt
            .arg("-decrypt")
            .args(padding.options())
            .arg("-in")
            .arg(ciphertext);
        assert_eq!(self.run(&mut decrypt), MESSAGE, "{padding:?}");
    }

    fn agrees(&self, key: &str, public: &std::path::Path, curve: &str) {
        let peer = self.clients.peer(curve);
        let secret = self.clients.path("secret");
        let mut derive = self.with_key("pkeyutl", "-inkey", key);
        derive
            .args(["-derive", "-peerform", "DER", "-peerkey"])
            .arg(&peer.public);
        self.run(derive.arg("-out").arg(&secret));
        let expected = self.clients.shared_secret(&peer, public);
        assert_eq!(fs::read(secret).unwrap(), expected);
    }

    fn signs_cms(&self, key: &str, certificate: &str) {
        let message = self.clients.file("message", MESSAGE);
        let signed = self.clients.path("signed.p7");
        let mut sign = self.with_key("cms", "-inkey", key);
        sign.args([
            "-sign",
            "-binary",
            "-nodetach",
            "-outform",
            "DER",
            "-signer",
        ]);
        sign.arg(self.clients.certificate_in_pem(certificate))
            .arg("-in")
            .arg(&message);
        self.run(sign.arg("-out").arg(&signed));
        let authority = self.clients.certificate_in_pem("ca");
        let verify = |file: PathBuf| {
            let mut verify = self.clients.command("openssl");
            verify.args([
                "cms", "-verify", "-inform", "DER", "-purpose", "any", "-CAfile",
            ]);
            self.clients
                .run(verify.arg(&authority).arg("-in").arg(file))
        };
        assert_eq!(verify(signed.clone()).expect_success().stdout, MESSAGE);
        let mut other = fs::read(signed).unwrap();
        let place = other
            .windows(MESSAGE.len())
            .position(|part| part == MESSAGE.as_bytes());
        other.splice(place.unwrap()..=place.unwrap(), *b"B");
        let output = verify(self.clients.file("other.p7", other));
        assert!(!output.success(), "any message will do\n{output}");
    }

    /// A server whose key is on the card.
    fn serves(&self, key: &str, certificate: &str, client: &[&str], signature: &str) {
        let mut serve = self.with_key("s_server", "-key", key);
        serve.args(["-accept", "127.0.0.1:0", "-rev", "-naccept", "1", "-cert"]);
        serve.arg(self.clients.certificate_in_pem(certificate));
        let mut server = Background::start(&mut serve, self.clients.path("server.log"));
        let mut connect = self.clients.command("openssl");
        connect.args([
            "s_client",
            "-verify_return_error",
            "-verify_hostname",
            "localhost",
        ]);
        connect
            .args(client)
            .arg("-CAfile")
            .arg(self.clients.certificate_in_pem("ca"));
        let text = run_tls_client(connect.args(["-connect", &address(&mut server)]));
        for line in [
            "drac eht no",
            &format!("Peer signature type: {signature}\n"),
        ] {
            assert!(text.contains(line), "{line}\n{text}\n{}", server.output());
        }
    }

    /// A client whose key is on the card, and a server that asks for its certificate.
    fn connects(&self, key: &str, certificate: &str, version: &str, signature: &str) {
        let clients = &self.clients;
        let mut generate = clients.command("openssl");
        generate.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
        ]);
        generate
            .args(["-nodes", "-subj", "/CN=server", "-keyout"])
            .arg(clients.path("server.key"));
        self.run(generate.arg("-out").arg(clients.path("server.pem")));
        let mut serve = clients.command("openssl");
        serve.args([
            "s_server",
            "-accept",
            "127.0.0.1:0",
            "-rev",
            "-naccept",
            "1",
            "-Verify",
            "2",
        ]);
        serve
            .arg("-verify_return_error")
            .arg("-cert")
            .arg(clients.path("server.pem"));
        serve.arg("-key").arg(clients.path("server.key"));
        serve.arg("-CAfile").arg(clients.certificate_in_pem("ca"));
        let mut server = Background::start(&mut serve, clients.path("server.log"));
        let mut connect = self.with_key("s_client", "-key", key);
        connect
            .args([version, "-cert"])
            .arg(clients.certificate_in_pem(certificate));
        let text = run_tls_client(connect.args(["-connect", &address(&mut server)]));
        assert!(text.contains("drac eht no"), "{text}\n{}", server.output());
        for judged in [
            "Verification: OK",
            &format!("Signature type: {signature}\n"),
        ] {
            assert!(
                server.output().contains(judged),
                "{judged}\n{}",
                server.output()
            );
        }
    }
}

/// Skips aloud where there is none.
fn with_engine(fixture: &CardFixture, rule: impl FnOnce(&Engine<'_>)) {
    if let Some(engine) = Engine::of(fixture) {
        rule(&engine);
    }
}

fn address(server: &mut Background) -> String {
    server.wait_for("the server's port", |text| {
        let line = text.lines().find_map(|line| line.strip_prefix("ACCEPT "))?;
        Some(line.trim().to_owned())
    })
}

fn run_tls_client(client: &mut Command) -> String {
    client.arg("-ign_eof");
    client::run_with_input(client, b"on the card\nCLOSE\n", LIMIT).to_string()
}

fn piv_key(id: &str) -> String {
    format!("pkcs11:serial={PIV_SERIAL};id=%{id};type=private;pin-value={PIN}")
}

fn openpgp_key(id: &str) -> String {
    format!("pkcs11:serial={OPENPGP_SERIAL};id=%{id};type=private;pin-value={PIN}")
}

fn a_piv_rsa_key_signs_by_pss(fixture: &CardFixture) {
    with_engine(fixture, |engine| {
        let clients = &engine.clients;
        let (message, signature) = (clients.file("message", MESSAGE), clients.path("signature"));
        for hash in ["sha256", "sha512"] {
            let mut sign = engine.with_key("dgst", "-sign", &piv_key("01"));
            sign.args([&format!("-{hash}"), "-sigopt", "rsa_padding_mode:pss"]);
            sign.args(["-sigopt", "rsa_pss_saltlen:digest", "-out"])
                .arg(&signature);
            engine.run(sign.arg(&message));
            clients.check(
                &clients.public_key_of("piv-9A"),
                Scheme::Pss(hash),
                &message,
                &signature,
            );
        }
    });
}

fn piv_keys_sign_a_hash(fixture: &CardFixture) {
    with_engine(fixture, |engine| {
        engine.signs_a_hash(&piv_key("01"), "piv-9A");
    });
}

fn an_openpgp_rsa_key_signs_a_hash(fixture: &CardFixture) {
    with_engine(fixture, |engine| {
        engine.signs_a_hash(&openpgp_key("03"), "openpgp-03");
    });
}

fn a_piv_rsa_key_decrypts_with_each_padding(fixture: &CardFixture) {
    with_engine(fixture, |engine| {
        let public = engine.clients.public_key_of("piv-9D");
        for padding in [
            Padding::Pkcs1,
            Padding::Oaep("sha1"),
            Padding::Oaep("sha256"),
            Padding::Oaep("sha512"),
        ] {
            engine.decrypts(&piv_key("03"), &public, padding);
        }
    });
}

fn an_openpgp_rsa_key_decrypts(fixture: &CardFixture) {
    with_engine(fixture, |engine| {
        let public = engine.clients.public_key_on_card("02");
        engine.decrypts(&openpgp_key("02"), &public, Padding::Pkcs1);
    });
}

fn a_piv_p256_key_agrees_on_a_secret(fixture: &CardFixture) {
    with_engine(fixture, |engine| {
        engine.agrees(
            &piv_key("03"),
            &engine.clients.public_key_of("piv-9D"),
            "P-256",
        );
    });
}

fn a_piv_p384_key_agrees_on_a_secret(fixture: &CardFixture) {
    with_engine(fixture, |engine| {
        engine.agrees(
            &piv_key("03"),
            &engine.clients.public_key_of("piv-9D"),
            "P-384",
        );
    });
}

fn an_openpgp_p256_key_agrees_on_a_secret(fixture: &CardFixture) {
    with_engine(fixture, |engine| {
        engine.agrees(
            &openpgp_key("02"),
            &engine.clients.public_key_on_card("02"),
            "P-256",
        );
    });
}

fn a_piv_ec_key_signs_cms(fixture: &CardFixture) {
    with_engine(fixture, |engine| engine.signs_cms(&piv_key("01"), "piv-9A"));
}

fn an_openpgp_rsa_key_signs_cms(fixture: &CardFixture) {
    with_engine(fixture, |engine| {
        engine.signs_cms(&openpgp_key("03"), "openpgp-03");
    });
}

fn a_piv_rsa_key_decrypts_cms(fixture: &CardFixture) {
    with_engine(fixture, |engine| {
        let (message, sealed) = (
            engine.clients.file("message", MESSAGE),
            engine.clients.path("sealed.p7"),
        );
        let certificate = engine.clients.certificate_in_pem("piv-9D");
        for padding in [&[][..], &["-keyopt", "rsa_padding_mode:oaep"]] {
            let mut seal = engine.clients.command("openssl");
            seal.args([
                "cms", "-encrypt", "-aes256", "-binary", "-outform", "DER", "-in",
            ]);
            seal.arg(&message)
                .arg("-out")
                .arg(&sealed)
                .arg("-recip")
                .arg(&certificate)
                .args(padding);
            engine.run(&mut seal);
            let mut open = engine.with_key("cms", "-inkey", &piv_key("03"));
            open.args(["-decrypt", "-inform", "DER", "-in"])
                .arg(&sealed)
                .arg("-recip")
                .arg(&certificate);
            assert_eq!(engine.run(&mut open), MESSAGE, "{padding:?}");
        }
    });
}

fn a_piv_rsa_key_issues_certificates(fixture: &CardFixture) {
    with_engine(fixture, |engine| {
        let clients = &engine.clients;
        let [authority, request, certificate] =
            ["authority.pem", "request.pem", "issued.pem"].map(|name| clients.path(name));
        let mut own = engine.with_key("req", "-key", &piv_key("01"));
        own.args([
            "-new",
            "-x509",
            "-days",
            "1",
            "-subj",
            "/CN=card",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
        ]);
        engine.run(own.arg("-out").arg(&authority));
        let mut ask = clients.command("openssl");
        ask.args([
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ]);
        ask.args(["-subj", "/CN=somebody", "-keyout"])
            .arg(clients.path("somebody.key"));
        engine.run(ask.arg("-out").arg(&request));
        let mut issue = engine.command("x509");
        issue.args([
            "-req",
            "-sha256",
            "-days",
            "1",
            "-CAkeyform",
            "engine",
            "-CAkey",
            &piv_key("01"),
            "-CA",
        ]);
        engine.run(
            issue
                .arg(&authority)
                .arg("-in")
                .arg(&request)
                .arg("-out")
                .arg(&certificate),
        );
        let mut verify = clients.command("openssl");
        verify
            .args(["verify", "-check_ss_sig", "-CAfile"])
            .arg(&authority);
        engine.run(verify.arg(&certificate));
        let mut read = clients.command("openssl");
        let pem = engine.run(
            read.args(["x509", "-noout", "-pubkey", "-in"])
                .arg(&authority),
        );
        assert_eq!(
            pem,
            fs::read_to_string(clients.public_key_of("piv-9A")).unwrap()
        );
    });
}

/// TLS 1.3 wants RSASSA-PSS.
fn a_tls_server_has_an_rsa_key_on_piv(fixture: &CardFixture) {
    with_engine(fixture, |engine| {
        for version in ["-tls1_2", "-tls1_3"] {
            engine.serves(&piv_key("01"), "piv-9A", &[version], "RSA-PSS");
        }
    });
}

fn a_tls_server_has_an_ec_key_on_openpgp(fixture: &CardFixture) {
    with_engine(fixture, |engine| {
        for version in ["-tls1_2", "-tls1_3"] {
            engine.serves(&openpgp_key("03"), "openpgp-03", &[version], "ECDSA");
        }
    });
}

/// The card pads by PKCS #1 v1.5 only, so the client has to offer that.
fn a_tls_server_has_an_rsa_key_on_openpgp(fixture: &CardFixture) {
    with_engine(fixture, |engine| {
        let client = ["-tls1_2", "-sigalgs", "RSA+SHA256:ECDSA+SHA256"];
        engine.serves(&openpgp_key("03"), "openpgp-03", &client, "RSA");
    });
}

fn a_tls_client_has_its_key_on_piv(fixture: &CardFixture) {
    with_engine(fixture, |engine| {
        engine.connects(&piv_key("01"), "piv-9A", "-tls1_3", "ECDSA");
    });
}

fn a_tls_client_has_an_rsa_key_on_piv(fixture: &CardFixture) {
    with_engine(fixture, |engine| {
        engine.connects(&piv_key("01"), "piv-9A", "-tls1_3", "RSA-PSS");
    });
}
