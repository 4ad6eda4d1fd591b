//! Java's SunPKCS11 with this module: `keytool`, `jarsigner`, and the program in `Card.java`.

use std::{fs, path::PathBuf, process::Command};

use claviger_hw_tests::{
    client::Output,
    fixture::{
        card_fixture::CardFixture,
        clients::{
            Clients, Needed, openpgp_with,
            openssl::{Padding, Scheme},
            piv_key_management, piv_with,
        },
    },
    over_the_socket,
    provision::{CardProfile, KeyAlgorithm, OpenPgpPlan, PIN},
};

const NEEDED: [Needed; 4] = [
    ("java", "openjdk-17-jdk-headless"),
    ("keytool", "openjdk-17-jdk-headless"),
    ("jarsigner", "openjdk-17-jdk-headless"),
    ("openssl", "openssl"),
];
const MESSAGE: &[u8] = b"A message for Java.";
const PROVIDER: &str = "sun.security.pkcs11.SunPKCS11";
/// What Java calls keys: the labels of their certificates.
const PIV_AUTHENTICATION: &str = "Certificate for PIV Authentication";
const PIV_KEY_MANAGEMENT: &str = "Certificate for Key Management";
const OPENPGP_AUTHENTICATION: &str = "AUT certificate";

over_the_socket! { NEEDED;
    keytool_lists_piv_keys_with_their_certificates: CardProfile::piv4();
    keytool_lists_the_openpgp_key_that_has_a_certificate: CardProfile::pgp3();
    a_piv_p256_key_signs: piv_with(KeyAlgorithm::P256);
    a_piv_p384_key_signs: piv_with(KeyAlgorithm::P384);
    a_piv_rsa_key_signs_by_pkcs1_and_pss: piv_with(KeyAlgorithm::Rsa2048);
    an_openpgp_p256_key_signs: openpgp_with(KeyAlgorithm::P256);
    an_openpgp_rsa_key_signs_by_pkcs1: CardProfile::openpgp(OpenPgpPlan::rsa());
    a_piv_rsa_key_decrypts_and_unwraps: CardProfile::piv4();
    a_piv_p256_key_agrees_on_a_secret: piv_key_management(KeyAlgorithm::P256);
    a_piv_p384_key_agrees_on_a_secret: piv_key_management(KeyAlgorithm::P384);
    a_piv_token_digests_and_encrypts: piv_with(KeyAlgorithm::P256);
    an_openpgp_token_digests_and_encrypts: CardProfile::pgp3();
    jarsigner_signs_with_a_piv_key: piv_with(KeyAlgorithm::P256);
    jarsigner_signs_with_an_openpgp_key: CardProfile::openpgp(OpenPgpPlan::rsa());
}

/// Java with a configuration that names the module and the slot of the card's only token.
struct Java<'a> {
    clients: Clients<'a>,
    configuration: PathBuf,
}

impl<'a> Java<'a> {
    fn of(fixture: &'a CardFixture) -> Self {
        let clients = Clients::of(fixture);
        let slot = usize::from(fixture.profile().piv.is_none());
        let module = clients.module().display();
        let text = format!("name = Card\nlibrary = {module}\nslotListIndex = {slot}\n");
        Self {
            configuration: clients.file("card.cfg", text),
            clients,
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.clients.command(program);
        command.current_dir(self.clients.cards.folder());
        command
    }

    /// What `Card.java` checked.
    fn card(&self, arguments: &[&str]) -> Vec<String> {
        let source = self.clients.file("Card.java", include_str!("Card.java"));
        let mut java = self.command("java");
        // One short run among many: the quick compiler alone, and no threads for garbage.
        java.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"])
            .arg(source);
        java.arg(&self.configuration).arg(PIN).args(arguments);
        let output = self.clients.run(&mut java).expect_success();
        let checked = |line: &str| Some(line.strip_prefix("checked: ")?.to_owned());
        output.stdout.lines().filter_map(checked).collect()
    }

    /// Signs with each algorithm; OpenSSL judges by the certificate.
    fn signs(&self, alias: &str, certificate: &str, algorithms: &[(&str, Scheme<'_>)]) {
        let names: Vec<&str> = algorithms.iter().map(|(name, _)| *name).collect();
        let checked = self.card(&[&["sign", alias], &names[..]].concat());
        let expected: Vec<String> = names.iter().map(|name| format!("{alias} {name}")).collect();
        assert_eq!(checked, expected);
        let key = self.clients.public_key_of(certificate);
        for (name, scheme) in algorithms {
            let (message, signature) = (self.clients.path("message"), self.clients.path(name));
            assert_eq!(fs::read(&message).unwrap(), MESSAGE);
            self.clients.check(&key, *scheme, &message, &signature);
        }
    }

    fn agrees(&self, curve: &str) {
        let peer = self.clients.peer(curve);
        let arguments = ["agree", PIV_KEY_MANAGEMENT, peer.public.to_str().unwrap()];
        assert_eq!(
            self.card(&arguments),
            [format!("{PIV_KEY_MANAGEMENT} agrees")]
        );
        let key = self.clients.public_key_of("piv-9D");
        let expected = self.clients.shared_secret(&peer, &key);
        assert_eq!(fs::read(self.clients.path("secret")).unwrap(), expected);
    }

    fn keytool(&self) -> Output {
        let mut keytool = self.command("keytool");
        keytool.args([
            "-J-XX:TieredStopAtLevel=1",
            "-list",
            "-v",
            "-keystore",
            "NONE",
        ]);
        self.store(&mut keytool);
        self.clients.run(&mut keytool).expect_success()
    }

    /// Names the key store that is the card to `keytool` or `jarsigner`.
    fn store(&self, command: &mut Command) {
        command.args(["-storetype", "PKCS11", "-storepass", PIN]);
        command
            .args(["-providerClass", PROVIDER, "-providerArg"])
            .arg(&self.configuration);
    }

    /// A jar signed by a key of the card; Java verifies it without the card, and OpenSSL its signature.
    fn signs_a_jar(&self, alias: &str, block: &str) {
        let content = self.clients.file("content.txt", MESSAGE);
        let mut jar = self.command("jar");
        jar.args(["--create", "--file", "signed.jar"])
            .arg(content.file_name().unwrap());
        self.clients.run(&mut jar).expect_success();
        let mut sign = self.command("jarsigner");
        sign.args([
            "-J-XX:TieredStopAtLevel=1",
            "-keystore",
            "NONE",
            "-sigfile",
            "CARD",
        ]);
        self.store(&mut sign);
        self.clients
            .run(sign.args(["signed.jar", alias]))
            .expect_success();
        let mut verify = self.command("jarsigner");
        let output = self
            .clients
            .run(verify.args(["-verify", "signed.jar"]))
            .expect_success();
        assert!(output.stdout.contains("jar verified."), "{output}");
        let mut unpack = self.command("jar");
        self.clients
            .run(unpack.args(["--extract", "--file", "signed.jar"]))
            .expect_success();
        let mut judge = self.command("openssl");
        judge.args([
            "cms", "-verify", "-inform", "DER", "-purpose", "any", "-binary",
        ]);
        judge.args([
            "-in",
            &format!("META-INF/{block}"),
            "-content",
            "META-INF/CARD.SF",
            "-CAfile",
        ]);
        judge.arg(self.clients.certificate_in_pem("ca"));
        let output = self.clients.run(&mut judge).expect_success();
        assert!(
            output.stdout.contains("SHA-256-Digest-Manifest"),
            "{output}"
        );
    }
}

fn has_entries(output: &Output, expected: &[(&str, &str)]) {
    let entries = format!("Your keystore contains {} entr", expected.len());
    assert!(output.stdout.contains(&entries), "{output}");
    for (alias, owner) in expected {
        let entry = format!("Alias name: {alias}\nEntry type: PrivateKeyEntry");
        assert!(output.stdout.contains(&entry), "{alias}\n{output}");
        assert!(
            output
                .stdout
                .contains(&format!("Owner: O=Claviger, CN=Claviger {owner}\n"))
                || output
                    .stdout
                    .contains(&format!("Owner: CN=Claviger {owner}, O=Claviger\n")),
            "{owner}\n{output}"
        );
    }
}

fn keytool_lists_piv_keys_with_their_certificates(fixture: &CardFixture) {
    let expected = [
        (PIV_AUTHENTICATION, "PIV 9A"),
        ("Certificate for Digital Signature", "PIV 9C"),
        (PIV_KEY_MANAGEMENT, "PIV 9D"),
        ("Certificate for Card Authentication", "PIV 9E"),
    ];
    has_entries(&Java::of(fixture).keytool(), &expected);
}

fn keytool_lists_the_openpgp_key_that_has_a_certificate(fixture: &CardFixture) {
    has_entries(
        &Java::of(fixture).keytool(),
        &[(OPENPGP_AUTHENTICATION, "OpenPGP AUT")],
    );
}

const P256: &[(&str, Scheme<'_>)] = &[
    ("SHA256withECDSA", Scheme::Hashed("sha256")),
    ("SHA1withECDSA", Scheme::Hashed("sha1")),
    ("SHA512withECDSA", Scheme::Hashed("sha512")),
];
const RSA: &[(&str, Scheme<'_>)] = &[
    ("SHA256withRSA", Scheme::Hashed("sha256")),
    ("SHA1withRSA", Scheme::Hashed("sha1")),
    ("SHA512withRSA", Scheme::Hashed("sha512")),
];
const PSS: &[(&str, Scheme<'_>)] = &[("RSASSA-PSS", Scheme::Pss("sha256"))];

fn a_piv_p256_key_signs(fixture: &CardFixture) {
    Java::of(fixture).signs(PIV_AUTHENTICATION, "piv-9A", P256);
}

fn a_piv_p384_key_signs(fixture: &CardFixture) {
    let algorithms = [
        ("SHA384withECDSA", Scheme::Hashed("sha384")),
        ("SHA256withECDSA", Scheme::Hashed("sha256")),
    ];
    Java::of(fixture).signs(PIV_AUTHENTICATION, "piv-9A", &algorithms);
}

fn a_piv_rsa_key_signs_by_pkcs1_and_pss(fixture: &CardFixture) {
    Java::of(fixture).signs(PIV_AUTHENTICATION, "piv-9A", &[RSA, PSS].concat());
}

fn an_openpgp_p256_key_signs(fixture: &CardFixture) {
    Java::of(fixture).signs(OPENPGP_AUTHENTICATION, "openpgp-03", P256);
}

fn an_openpgp_rsa_key_signs_by_pkcs1(fixture: &CardFixture) {
    Java::of(fixture).signs(OPENPGP_AUTHENTICATION, "openpgp-03", RSA);
}

fn a_piv_rsa_key_decrypts_and_unwraps(fixture: &CardFixture) {
    let java = Java::of(fixture);
    let key = java.clients.public_key_of("piv-9D");
    let message = java.clients.file("message", MESSAGE);
    let ciphertext = java.clients.encrypted(&key, Padding::Pkcs1, &message);
    let checked = java.card(&["decrypt", PIV_KEY_MANAGEMENT, ciphertext.to_str().unwrap()]);
    assert_eq!(
        checked,
        [format!("{PIV_KEY_MANAGEMENT} decrypts and unwraps")]
    );
    assert_eq!(fs::read(java.clients.path("plaintext")).unwrap(), MESSAGE);
}

fn a_piv_p256_key_agrees_on_a_secret(fixture: &CardFixture) {
    Java::of(fixture).agrees("P-256");
}

fn a_piv_p384_key_agrees_on_a_secret(fixture: &CardFixture) {
    Java::of(fixture).agrees("P-384");
}

fn a_piv_token_digests_and_encrypts(fixture: &CardFixture) {
    let expected = [
        "SHA-1",
        "SHA-224",
        "SHA-256",
        "SHA-384",
        "SHA-512",
        "AES/CBC",
        "HmacSHA256",
    ];
    assert_eq!(Java::of(fixture).card(&["software"]), expected);
}

fn an_openpgp_token_digests_and_encrypts(fixture: &CardFixture) {
    a_piv_token_digests_and_encrypts(fixture);
}

fn jarsigner_signs_with_a_piv_key(fixture: &CardFixture) {
    Java::of(fixture).signs_a_jar(PIV_AUTHENTICATION, "CARD.EC");
}

fn jarsigner_signs_with_an_openpgp_key(fixture: &CardFixture) {
    Java::of(fixture).signs_a_jar(OPENPGP_AUTHENTICATION, "CARD.RSA");
}
