//! NSS with this module: its command line tools use keys of the card, and OpenSSL verifies the results.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::PathBuf,
    time::Duration,
};

use claviger_hw_tests::{
    client::{self, Output},
    fixture::{
        card_fixture::CardFixture,
        clients::{Clients, Needed, PIV_SERIAL, background::Background, piv_with},
    },
    over_both_services,
    provision::{CardProfile, KeyAlgorithm, OpenPgpPlan, PIN},
};

const NEEDED: [Needed; 5] = [
    ("certutil", "libnss3-tools"),
    ("modutil", "libnss3-tools"),
    ("cmsutil", "libnss3-tools"),
    ("selfserv", "libnss3-tools"),
    ("openssl", "openssl"),
];
const LIMIT: Duration = Duration::from_secs(60);
const PIV: &str = "PIV 00000001";
const OPENPGP: &str = "OpenPGP 00000001";
const BOTH: &[&str] = &["-tls1_2", "-tls1_3"];
const MESSAGE: &str = "A message for NSS.\n";

over_both_services! { NEEDED;
    modutil_adds_and_lists_the_module: CardProfile::both();
    certutil_lists_certificates_and_keys_of_piv: CardProfile::piv4();
    certutil_lists_the_certificate_and_keys_of_openpgp: CardProfile::openpgp(OpenPgpPlan::rsa());
    certutil_requests_certificates_for_piv_keys: CardProfile::piv4();
    certutil_requests_a_certificate_for_a_piv_p384_key: piv_with(KeyAlgorithm::P384);
    certutil_requests_certificates_for_openpgp_keys: CardProfile::openpgp(OpenPgpPlan::rsa());
    cmsutil_signs_with_piv_keys: CardProfile::piv4();
    cmsutil_signs_with_the_openpgp_authentication_key: CardProfile::openpgp(OpenPgpPlan::rsa());
    cmsutil_decrypts_with_the_piv_key_management_key: CardProfile::piv4();
    tls_servers_have_their_keys_on_piv: CardProfile::piv4();
    a_tls_server_has_an_rsa_key_on_openpgp: CardProfile::openpgp(OpenPgpPlan::rsa());
    a_tls_server_has_an_ec_key_on_openpgp: CardProfile::pgp3();
    a_wrong_pin_costs_one_try: CardProfile::piv4();
}

/// A folder of NSS with a database, the module and the authority of the card's certificates.
struct Nss<'a> {
    clients: Clients<'a>,
    folder: String,
    pin: PathBuf,
}

impl<'a> Nss<'a> {
    fn of(fixture: &'a CardFixture) -> Self {
        let clients = Clients::of(fixture);
        let folder = clients.path("nss");
        fs::create_dir(&folder).unwrap();
        let nss = Self {
            folder: format!("sql:{}", folder.display()),
            pin: clients.file("pin", format!("{PIN}\n")),
            clients,
        };
        nss.run("certutil", &["-N", "--empty-password"]);
        let module = nss.clients.module().to_owned();
        let add = [
            "-add",
            "claviger",
            "-force",
            "-libfile",
            module.to_str().unwrap(),
        ];
        nss.modutil(&add).expect_success();
        let authority = nss.clients.file("ca.der", fixture.certificate("ca"));
        let trust = [
            "-A",
            "-n",
            "authority",
            "-t",
            "CT,C,C",
            "-i",
            authority.to_str().unwrap(),
        ];
        nss.run("certutil", &trust);
        nss
    }

    fn modutil(&self, arguments: &[&str]) -> Output {
        let mut modutil = self.clients.command("modutil");
        modutil.args(["-dbdir", &self.folder]).args(arguments);
        self.clients.run(&mut modutil)
    }

    fn try_to_run(&self, tool: &str, arguments: &[&str]) -> Output {
        let mut tool = self.clients.command(tool);
        tool.args(arguments)
            .args(["-d", &self.folder, "-f"])
            .arg(&self.pin);
        self.clients.run(&mut tool)
    }

    fn run(&self, tool: &str, arguments: &[&str]) -> Output {
        self.try_to_run(tool, arguments).expect_success()
    }

    /// A request for a certificate of a key of the card, which signs it; the key must be that of `public`.
    fn requests(&self, token: &str, id: &str, hash: &str, public: PathBuf) {
        let request = self.clients.path("request.pem");
        let what = [
            "-R", "-h", token, "-k", id, "-Z", hash, "-s", "CN=card", "-a", "-o",
        ];
        self.run(
            "certutil",
            &[&what[..], &[request.to_str().unwrap()]].concat(),
        );
        let mut verify = self.clients.command("openssl");
        verify
            .args(["req", "-verify", "-noout", "-pubkey", "-in"])
            .arg(&request);
        let output = self.clients.run(&mut verify).expect_success();
        assert!(output.stderr.contains("verify OK"), "{output}");
        assert_eq!(
            output.stdout,
            fs::read_to_string(public).unwrap(),
            "{token} {id}"
        );
    }

    /// A message signed by the certificate of this name, judged by OpenSSL and by NSS.
    fn signs(&self, certificate: &str) {
        let message = self.clients.file("message", MESSAGE);
        let signed = self.clients.path("signed.p7");
        // The signing time is an attribute, and attributes make NSS write ECDSA signatures as DER.
        let what = [
            "-S",
            "-G",
            "-H",
            "SHA256",
            "-Y",
            "NONE",
            "-N",
            certificate,
            "-i",
        ];
        let files = [message.to_str().unwrap(), "-o", signed.to_str().unwrap()];
        self.run("cmsutil", &[&what[..], &files].concat());
        let authority = self.clients.certificate_in_pem("ca");
        let verify = |content: &[u8]| {
            let mut verify = self.clients.command("openssl");
            verify
                .args(["cms", "-verify", "-inform", "DER", "-purpose", "any", "-in"])
                .arg(self.clients.file("judged.p7", content))
                .arg("-CAfile")
                .arg(&authority);
            self.clients.run(&mut verify)
        };
        let content = fs::read(&signed).unwrap();
        assert_eq!(verify(&content).expect_success().stdout, MESSAGE);
        let place = content
            .windows(MESSAGE.len())
            .position(|part| part == MESSAGE.as_bytes());
        let mut other = content.clone();
        other.splice(place.unwrap()..=place.unwrap(), *b"B");
        let output = verify(&other);
        assert!(!output.success(), "any message will do\n{output}");
        let own = self.run("cmsutil", &["-D", "-i", signed.to_str().unwrap()]);
        assert_eq!(own.stdout, MESSAGE);
    }

    /// A server of NSS with this certificate, whose key is on the card, and a client of OpenSSL.
    fn serves(&self, versions: &[&str], certificate: &str, signature: &str) {
        let port = free_port();
        let mut serve = self.clients.command("selfserv");
        serve.args(["-d", &self.folder, "-f"]).arg(&self.pin);
        serve.args([
            "-n",
            certificate,
            "-p",
            &port.to_string(),
            "-V",
            "tls1.2:tls1.3",
        ]);
        let mut server = Background::start(&mut serve, self.clients.path("server.log"));
        server.wait_for("the server", |_| {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()
        });
        for version in versions {
            let mut connect = self.clients.command("openssl");
            connect.args(["s_client", "-ign_eof", "-verify_return_error", *version]);
            connect.args(["-verify_hostname", "localhost", "-connect"]);
            connect.arg(format!("127.0.0.1:{port}")).arg("-CAfile");
            connect.arg(self.clients.certificate_in_pem("ca"));
            let output = client::run_with_input(&mut connect, b"GET / HTTP/1.0\r\n\r\n", LIMIT);
            for line in [
                "HTTP/1.0 200 OK",
                "Verification: OK",
                &format!("Peer signature type: {signature}"),
            ] {
                assert!(
                    output.stdout.contains(line),
                    "{line}\n{output}\n{}",
                    server.output()
                );
            }
        }
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// It exits with an error where a slot is empty, as readers of pcscd are here.
fn modutil_adds_and_lists_the_module(fixture: &CardFixture) {
    let output = Nss::of(fixture).modutil(&["-list", "claviger"]);
    for line in [
        format!("Token Name: {PIV}"),
        format!("Token Name: {OPENPGP}"),
        format!("Token Serial Number: {PIV_SERIAL}"),
        "Login Type: Login required".to_owned(),
        "User Pin: Initialized".to_owned(),
    ] {
        assert!(output.stdout.contains(&line), "{line}\n{output}");
    }
}

/// Kind and id of each key that `certutil` lists.
fn keys(nss: &Nss<'_>, token: &str) -> Vec<(String, String)> {
    let output = nss.run("certutil", &["-K", "-h", token]);
    let key = |line: &str| {
        let mut words = line
            .split("> ")
            .nth(1)?
            .split_whitespace()
            .map(str::to_owned);
        Some((words.next()?, words.next()?))
    };
    output.stdout.lines().filter_map(key).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(kind, id): &(&str, &str)| ((*kind).to_owned(), (*id).to_owned());
    expected.iter().map(owned).collect()
}

/// `u`: there is a private key.
fn has_certificate(listing: &Output, name: &str) {
    let line = listing.stdout.lines().find(|line| line.starts_with(name));
    let trusted = line.is_some_and(|line| line.ends_with("u,u,u"));
    assert!(trusted, "{name}\n{listing}");
}

fn certutil_lists_certificates_and_keys_of_piv(fixture: &CardFixture) {
    let nss = Nss::of(fixture);
    assert_eq!(
        keys(&nss, PIV),
        pairs(&[("ec", "01"), ("rsa", "02"), ("rsa", "03"), ("ec", "04")])
    );
    let listing = nss.run("certutil", &["-L", "-h", PIV]);
    for place in [
        "PIV Authentication",
        "Digital Signature",
        "Key Management",
        "Card Authentication",
    ] {
        has_certificate(&listing, &format!("{PIV}:Certificate for {place}"));
    }
    let one = ["-L", "-h", PIV, "-a", "-n"];
    let name = format!("{PIV}:Certificate for Key Management");
    let pem = nss
        .run("certutil", &[&one[..], &[&name]].concat())
        .stdout
        .replace('\r', "");
    let issued = nss.clients.certificate_in_pem("piv-9D");
    assert_eq!(pem, fs::read_to_string(issued).unwrap());
}

fn certutil_lists_the_certificate_and_keys_of_openpgp(fixture: &CardFixture) {
    let nss = Nss::of(fixture);
    assert_eq!(
        keys(&nss, OPENPGP),
        pairs(&[("rsa", "01"), ("rsa", "02"), ("rsa", "03")])
    );
    let listing = nss.run("certutil", &["-L", "-h", OPENPGP]);
    has_certificate(&listing, &format!("{OPENPGP}:AUT certificate"));
}

fn certutil_requests_certificates_for_piv_keys(fixture: &CardFixture) {
    let nss = Nss::of(fixture);
    for (id, hash, name) in [
        ("01", "SHA256", "piv-9A"),
        ("01", "SHA512", "piv-9A"),
        ("02", "SHA256", "piv-9C"),
        ("02", "SHA384", "piv-9C"),
        ("04", "SHA1", "piv-9E"),
    ] {
        nss.requests(PIV, id, hash, nss.clients.public_key_of(name));
    }
}

fn certutil_requests_a_certificate_for_a_piv_p384_key(fixture: &CardFixture) {
    let nss = Nss::of(fixture);
    nss.requests(PIV, "01", "SHA384", nss.clients.public_key_of("piv-9A"));
}

fn certutil_requests_certificates_for_openpgp_keys(fixture: &CardFixture) {
    let nss = Nss::of(fixture);
    nss.requests(
        OPENPGP,
        "03",
        "SHA256",
        nss.clients.public_key_of("openpgp-03"),
    );
    nss.requests(
        OPENPGP,
        "01",
        "SHA512",
        nss.clients.public_key_on_card("01"),
    );
}

fn cmsutil_signs_with_piv_keys(fixture: &CardFixture) {
    let nss = Nss::of(fixture);
    nss.signs(&format!("{PIV}:Certificate for PIV Authentication"));
    nss.signs(&format!("{PIV}:Certificate for Digital Signature"));
}

fn cmsutil_signs_with_the_openpgp_authentication_key(fixture: &CardFixture) {
    Nss::of(fixture).signs(&format!("{OPENPGP}:AUT certificate"));
}

fn cmsutil_decrypts_with_the_piv_key_management_key(fixture: &CardFixture) {
    let nss = Nss::of(fixture);
    let message = nss.clients.file("message", MESSAGE);
    let sealed = nss.clients.path("sealed.p7");
    let mut seal = nss.clients.command("openssl");
    seal.args([
        "cms", "-encrypt", "-aes256", "-binary", "-outform", "DER", "-in",
    ]);
    seal.arg(&message)
        .arg("-out")
        .arg(&sealed)
        .arg(nss.clients.certificate_in_pem("piv-9D"));
    nss.clients.run(&mut seal).expect_success();
    let opened = nss.run("cmsutil", &["-D", "-i", sealed.to_str().unwrap()]);
    assert_eq!(opened.stdout, MESSAGE);
    let recipient = format!("{PIV}:Certificate for Key Management");
    let what = [
        "-E",
        "-r",
        &recipient,
        "-i",
        message.to_str().unwrap(),
        "-o",
    ];
    nss.run(
        "cmsutil",
        &[&what[..], &[sealed.to_str().unwrap()]].concat(),
    );
    let opened = nss.run("cmsutil", &["-D", "-i", sealed.to_str().unwrap()]);
    assert_eq!(opened.stdout, MESSAGE);
}

/// RSA at TLS 1.2 and 1.3 is RSASSA-PSS; 9C wants its PIN for each of the two connections.
fn tls_servers_have_their_keys_on_piv(fixture: &CardFixture) {
    let nss = Nss::of(fixture);
    nss.serves(
        BOTH,
        &format!("{PIV}:Certificate for PIV Authentication"),
        "ECDSA",
    );
    nss.serves(
        BOTH,
        &format!("{PIV}:Certificate for Digital Signature"),
        "RSA-PSS",
    );
}

/// The card pads by PKCS #1 v1.5 only, which TLS 1.2 takes and TLS 1.3 does not. NSS signs by RSASSA-PSS wherever
/// the token lists it, for whatever use.
fn a_tls_server_has_an_rsa_key_on_openpgp(fixture: &CardFixture) {
    let nss = Nss::of(fixture);
    nss.serves(&["-tls1_2"], &format!("{OPENPGP}:AUT certificate"), "RSA");
}

fn a_tls_server_has_an_ec_key_on_openpgp(fixture: &CardFixture) {
    Nss::of(fixture).serves(BOTH, &format!("{OPENPGP}:AUT certificate"), "ECDSA");
}

fn a_wrong_pin_costs_one_try(fixture: &CardFixture) {
    let nss = Nss::of(fixture);
    fs::write(&nss.pin, "654321\n").unwrap();
    fixture.card().zero();
    let output = nss.try_to_run("certutil", &["-K", "-h", PIV]);
    assert!(!output.success(), "{output}");
    let with_a_pin = |command: &[u8]| matches!(command, [0, 0x20, 0, 0x80, 8, ..]);
    let exchanges = fixture.card().exchanges();
    let tries: Vec<_> = exchanges
        .iter()
        .filter(|one| with_a_pin(&one.command))
        .collect();
    assert_eq!(tries.len(), 1, "{output}");
}
