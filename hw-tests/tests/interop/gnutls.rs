//! GnuTLS with this module: objects by URI, certificate requests by `certtool`, a TLS server, random numbers.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    time::Duration,
};

use claviger_hw_tests::{
    client,
    fixture::{
        card_fixture::CardFixture,
        clients::{
            Clients, Needed, OPENPGP_SERIAL, PIV_SERIAL, background::Background, openpgp_with,
            piv_with,
        },
    },
    over_the_socket,
    provision::{CardProfile, KeyAlgorithm, OpenPgpPlan, PIN},
};

const NEEDED: [Needed; 4] = [
    ("p11tool", "gnutls-bin"),
    ("certtool", "gnutls-bin"),
    ("gnutls-serv", "gnutls-bin"),
    ("openssl", "openssl"),
];
const LIMIT: Duration = Duration::from_secs(60);
const BOTH: &[&str] = &["-tls1_2", "-tls1_3"];

over_the_socket! { NEEDED;
    each_part_of_a_uri_finds_the_certificate: CardProfile::both();
    uri_without_a_matching_object_exports_no_certificate: CardProfile::both();
    certtool_requests_certificates_for_piv_keys: CardProfile::piv4();
    certtool_requests_a_certificate_for_a_piv_p384_key: piv_with(KeyAlgorithm::P384);
    certtool_requests_a_certificate_for_an_openpgp_rsa_key: CardProfile::openpgp(OpenPgpPlan::rsa());
    certtool_requests_a_certificate_for_an_openpgp_p256_key: openpgp_with(KeyAlgorithm::P256);
    a_tls_server_has_an_ec_key_on_piv: piv_with(KeyAlgorithm::P256);
    a_tls_server_has_an_rsa_key_on_piv: piv_with(KeyAlgorithm::Rsa2048);
    a_tls_server_has_an_ec_key_on_openpgp: CardProfile::pgp3();
    a_tls_server_has_an_rsa_key_on_openpgp: CardProfile::openpgp(OpenPgpPlan::rsa());
    random_numbers_come_from_a_piv_token: CardProfile::piv4();
    random_numbers_come_from_an_openpgp_token: CardProfile::pgp3();
}

/// A tool of GnuTLS that finds the PIN in its environment.
fn tool(clients: &Clients<'_>, name: &str) -> Command {
    let mut command = clients.command(name);
    command
        .arg("--provider")
        .arg(clients.module())
        .env("GNUTLS_PIN", PIN);
    command
}

fn key(serial: &str, id: &str) -> String {
    format!("pkcs11:serial={serial};id=%{id};type=private")
}

/// The certificate this URI finds.
fn exported(clients: &Clients<'_>, uri: &str) -> Vec<u8> {
    let pem = clients.path("exported.pem");
    let mut export = tool(clients, "p11tool");
    export.args(["--batch", "--export", uri, "--outfile"]);
    clients.run(export.arg(&pem)).expect_success();
    let (mut convert, der) = (clients.command("openssl"), clients.path("exported.der"));
    convert.args(["x509", "-outform", "DER", "-in"]).arg(&pem);
    clients.run(convert.arg("-out").arg(&der)).expect_success();
    fs::read(der).unwrap()
}

fn each_part_of_a_uri_finds_the_certificate(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    let piv = format!("pkcs11:serial={PIV_SERIAL}");
    for (uri, name) in [
        (format!("{piv};id=%01;type=cert"), "piv-9A"),
        (
            format!("{piv};object=Certificate%20for%20Key%20Management;type=cert"),
            "piv-9D",
        ),
        (
            "pkcs11:token=PIV%2000000001;id=%02;type=cert".to_owned(),
            "piv-9C",
        ),
        (
            "pkcs11:model=PIV;manufacturer=piv_II;id=%04;type=cert".to_owned(),
            "piv-9E",
        ),
        (
            format!("pkcs11:serial={OPENPGP_SERIAL};object=AUT%20certificate;type=cert"),
            "openpgp-03",
        ),
        (
            "pkcs11:model=OpenPGP%20card;id=%03;type=cert".to_owned(),
            "openpgp-03",
        ),
        (
            "pkcs11:library-manufacturer=claviger;token=OpenPGP%2000000001;id=%03;type=cert"
                .to_owned(),
            "openpgp-03",
        ),
    ] {
        assert_eq!(exported(&clients, &uri), fixture.certificate(name), "{uri}");
    }
}

fn uri_without_a_matching_object_exports_no_certificate(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    for uri in [
        "pkcs11:serial=2d70697600000002;id=%01;type=cert".to_owned(),
        format!("pkcs11:serial={PIV_SERIAL};id=%05;type=cert"),
        format!("pkcs11:serial={OPENPGP_SERIAL};object=SIG%20certificate;type=cert"),
    ] {
        let mut export = tool(&clients, "p11tool");
        let output = clients.run(export.args(["--batch", "--export", &uri]));
        let found = output.stdout.contains("BEGIN CERTIFICATE");
        assert!(!output.success() && !found, "{output}");
    }
}

/// A request that the key signs; OpenSSL verifies it and finds the public key of `public` in it.
fn requests(clients: &Clients<'_>, key: &str, hash: &str, public: &Path) {
    let template = clients.file("template", "cn = card\n");
    let request = clients.path("request.pem");
    let mut ask = tool(clients, "certtool");
    ask.args([
        "--generate-request",
        "--load-privkey",
        key,
        "--hash",
        hash,
        "--template",
    ]);
    clients
        .run(ask.arg(&template).arg("--outfile").arg(&request))
        .expect_success();
    let mut verify = clients.command("openssl");
    verify
        .args(["req", "-verify", "-noout", "-pubkey", "-in"])
        .arg(&request);
    let output = clients.run(&mut verify).expect_success();
    assert!(output.stderr.contains("verify OK"), "{output}");
    assert_eq!(output.stdout, fs::read_to_string(public).unwrap(), "{key}");
}

fn certtool_requests_certificates_for_piv_keys(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    for (id, hash, name) in [
        ("01", "SHA256", "piv-9A"),
        ("02", "SHA256", "piv-9C"),
        ("02", "SHA512", "piv-9C"),
        ("04", "SHA256", "piv-9E"),
    ] {
        requests(
            &clients,
            &key(PIV_SERIAL, id),
            hash,
            &clients.public_key_of(name),
        );
    }
}

fn certtool_requests_a_certificate_for_a_piv_p384_key(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    requests(
        &clients,
        &key(PIV_SERIAL, "01"),
        "SHA384",
        &clients.public_key_of("piv-9A"),
    );
}

fn certtool_requests_a_certificate_for_an_openpgp_rsa_key(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    for (id, hash) in [("01", "SHA512"), ("03", "SHA256")] {
        requests(
            &clients,
            &key(OPENPGP_SERIAL, id),
            hash,
            &clients.public_key_on_card(id),
        );
    }
}

fn certtool_requests_a_certificate_for_an_openpgp_p256_key(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    requests(
        &clients,
        &key(OPENPGP_SERIAL, "03"),
        "SHA256",
        &clients.public_key_of("openpgp-03"),
    );
}

/// A server whose key is on the card, and a client of OpenSSL.
fn serves(clients: &Clients<'_>, key: &str, certificate: &str, versions: &[&str], signature: &str) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let mut serve = tool(clients, "gnutls-serv");
    serve.args([
        "--echo",
        "--port",
        &port.to_string(),
        "--x509keyfile",
        key,
        "--x509certfile",
    ]);
    serve.arg(clients.certificate_in_pem(certificate));
    let mut server = Background::start(&mut serve, clients.path("server.log"));
    server.wait_for("the server", |_| {
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()
    });
    for version in versions {
        let mut connect = clients.command("openssl");
        connect.args(["s_client", "-verify_return_error", *version]);
        connect.args(["-verify_hostname", "localhost", "-CAfile"]);
        connect.arg(clients.certificate_in_pem("ca"));
        connect.args(["-connect", &format!("127.0.0.1:{port}")]);
        let output = client::run_with_input(&mut connect, b"on the card\n", LIMIT);
        for line in [
            "Verification: OK",
            &format!("Peer signature type: {signature}\n"),
        ] {
            assert!(
                output.stdout.contains(line),
                "{line}\n{output}\n{}",
                server.output()
            );
        }
    }
}

fn a_tls_server_has_an_ec_key_on_piv(fixture: &CardFixture) {
    serves(
        &Clients::of(fixture),
        &key(PIV_SERIAL, "01"),
        "piv-9A",
        BOTH,
        "ECDSA",
    );
}

fn a_tls_server_has_an_rsa_key_on_piv(fixture: &CardFixture) {
    serves(
        &Clients::of(fixture),
        &key(PIV_SERIAL, "01"),
        "piv-9A",
        BOTH,
        "RSA-PSS",
    );
}

fn a_tls_server_has_an_ec_key_on_openpgp(fixture: &CardFixture) {
    serves(
        &Clients::of(fixture),
        &key(OPENPGP_SERIAL, "03"),
        "openpgp-03",
        BOTH,
        "ECDSA",
    );
}

/// The card pads by PKCS #1 v1.5 only, which TLS 1.2 takes and TLS 1.3 does not.
fn a_tls_server_has_an_rsa_key_on_openpgp(fixture: &CardFixture) {
    serves(
        &Clients::of(fixture),
        &key(OPENPGP_SERIAL, "03"),
        "openpgp-03",
        &["-tls1_2"],
        "RSA",
    );
}

fn random_numbers(fixture: &CardFixture, serial: &str) {
    let clients = Clients::of(fixture);
    let take = || {
        let (mut random, file) = (tool(&clients, "p11tool"), clients.path("random"));
        random.args([
            "--batch",
            "--generate-random=48",
            &format!("pkcs11:serial={serial}"),
            "--outfile",
        ]);
        clients.run(random.arg(&file)).expect_success();
        fs::read(file).unwrap()
    };
    let (first, second) = (take(), take());
    assert_eq!((first.len(), second.len()), (48, 48));
    assert_ne!(first, second);
}

fn random_numbers_come_from_a_piv_token(fixture: &CardFixture) {
    random_numbers(fixture, PIV_SERIAL);
}

fn random_numbers_come_from_an_openpgp_token(fixture: &CardFixture) {
    random_numbers(fixture, OPENPGP_SERIAL);
}
