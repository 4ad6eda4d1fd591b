//! OpenSC's `pkcs11-tool` with every mechanism that a key of this module allows. None of them fails.

use std::{
    fs,
    path::{Path, PathBuf},
};

use claviger_hw_tests::{
    client::Output,
    fixture::{
        card_fixture::CardFixture,
        clients::{
            Clients, Needed,
            listing::{Entry, entries},
            openpgp_with,
            openssl::{Padding, Scheme},
            piv_with,
        },
    },
    over_the_socket,
    provision::{CardProfile, KeyAlgorithm, OpenPgpPlan},
};

const NEEDED: [Needed; 2] = [("pkcs11-tool", "opensc"), ("openssl", "openssl")];
const MESSAGE: &[u8] = b"A message for every mechanism.";
/// OpenSSL's names of hashes, and those of `pkcs11-tool`.
const HASHES: [(&str, &str); 5] = [
    ("sha1", "SHA-1"),
    ("sha224", "SHA224"),
    ("sha256", "SHA256"),
    ("sha384", "SHA384"),
    ("sha512", "SHA512"),
];

over_the_socket! { NEEDED;
    each_mechanism_of_each_piv_key_works: CardProfile::piv4();
    each_mechanism_of_a_piv_p384_key_works: piv_with(KeyAlgorithm::P384);
    each_mechanism_of_each_openpgp_key_works: CardProfile::pgp3();
    each_mechanism_of_each_openpgp_p256_key_works: openpgp_with(KeyAlgorithm::P256);
    each_mechanism_of_each_openpgp_p521_key_works: openpgp_with(KeyAlgorithm::P521);
    each_mechanism_of_each_openpgp_rsa_key_works: CardProfile::openpgp(OpenPgpPlan::rsa());
    each_mechanism_of_a_key_is_in_the_list_of_its_token: CardProfile::both();
}

/// A private key of the listing, and its public half as OpenSSL reads it.
struct Key<'a> {
    clients: &'a Clients<'a>,
    id: String,
    mechanisms: Vec<String>,
    usage: String,
    kind: String,
    public: PathBuf,
}

impl<'a> Key<'a> {
    fn all(clients: &'a Clients<'a>) -> Vec<Self> {
        let output = clients
            .pkcs11_tool_logged_in(&["--list-objects"])
            .expect_success();
        let objects = entries(&output.stdout);
        let private = |object: &&Entry| object.class() == "Private Key Object";
        objects
            .iter()
            .filter(private)
            .map(|object| Self::of(clients, object))
            .collect()
    }

    fn of(clients: &'a Clients<'a>, object: &Entry) -> Self {
        let id = object.field("ID").to_owned();
        let allowed = object.field("Allowed mechanisms").split(',');
        Self {
            clients,
            mechanisms: allowed
                .filter(|name| !name.is_empty())
                .map(str::to_owned)
                .collect(),
            usage: object.field("Usage").to_owned(),
            kind: object.headline.split("; ").nth(1).unwrap().to_owned(),
            public: clients.public_key_on_card(&id),
            id,
        }
    }

    /// Returns whether the listing names this usage.
    fn may(&self, what: &str) -> bool {
        self.usage.split(", ").any(|usage| usage == what)
    }

    fn modulus_length(&self) -> usize {
        let mut read = self.clients.command("openssl");
        read.args(["rsa", "-pubin", "-noout", "-modulus", "-in"]);
        let output = self
            .clients
            .run(read.arg(&self.public))
            .expect_success()
            .stdout;
        output
            .trim()
            .strip_prefix("Modulus=")
            .map_or(0, |modulus| modulus.len() / 2)
    }

    /// Runs `pkcs11-tool` with this key, an input and an output.
    fn tool(&self, what: &[&str], mechanism: &str, input: &Path) -> (Output, PathBuf) {
        let output = self.clients.path("output");
        let _ = fs::remove_file(&output);
        let key = ["--id", &self.id, "--mechanism", mechanism];
        let files = [
            "--input-file",
            input.to_str().unwrap(),
            "--output-file",
            output.to_str().unwrap(),
        ];
        let text = self
            .clients
            .pkcs11_tool_logged_in(&[what, &key, &files].concat());
        (text, output)
    }

    /// Signs; OpenSSL judges over `message`, of which `input` is the hash or the whole.
    fn signs(
        &self,
        mechanism: &str,
        more: &[&str],
        scheme: Scheme<'_>,
        input: &Path,
        message: &Path,
    ) {
        let what = [&["--sign", "--signature-format", "openssl"], more].concat();
        let (text, output) = self.tool(&what, mechanism, input);
        let text = text.expect_success();
        assert!(output.is_file(), "{text}");
        let signature = self.clients.path("signature");
        fs::rename(output, &signature).unwrap();
        self.clients
            .check(&self.public, scheme, message, &signature);
        self.verifies(mechanism, more, input, &signature);
    }

    /// The module's own verdict over a signature that OpenSSL has accepted, and over another message.
    fn verifies(&self, mechanism: &str, more: &[&str], input: &Path, signature: &Path) {
        let signature = ["--signature-file", signature.to_str().unwrap()];
        let format = ["--verify", "--signature-format", "openssl"];
        let what = [&format[..], &signature, more].concat();
        let (text, _) = self.tool(&what, mechanism, input);
        let text = text.expect_success();
        assert!(text.stdout.contains("Signature is valid"), "{text}");
        let mut other = fs::read(input).unwrap();
        *other.last_mut().unwrap() ^= 1;
        let (text, _) = self.tool(&what, mechanism, &self.clients.file("other-input", other));
        assert!(text.stdout.contains("Invalid signature"), "{text}");
    }

    fn signs_with_raw_rsa(&self, mechanism: &str) {
        let block: Vec<u8> = (0..self.modulus_length())
            .map(|n| n.to_le_bytes()[0] & 0x7F)
            .collect();
        let input = self.clients.file("block", &block);
        let (text, signature) = self.tool(&["--sign"], mechanism, &input);
        text.expect_success();
        let mut recover = self.clients.command("openssl");
        recover
            .args(["pkeyutl", "-verifyrecover", "-pubin", "-inkey"])
            .arg(&self.public)
            .args(Padding::Raw.options())
            .arg("-in")
            .arg(signature)
            .arg("-out")
            .arg(self.clients.path("recovered"));
        self.clients.run(&mut recover).expect_success();
        assert_eq!(fs::read(self.clients.path("recovered")).unwrap(), block);
    }

    /// Decrypts what OpenSSL encrypted.
    fn decrypts(&self, mechanism: &str, padding: Padding<'_>, more: &[&str]) {
        let message = match padding {
            Padding::Raw => vec![0x41; self.modulus_length()],
            Padding::Pkcs1 | Padding::Oaep(_) => MESSAGE.to_vec(),
        };
        let plaintext = self.clients.file("plaintext", &message);
        let ciphertext = self.clients.encrypted(&self.public, padding, &plaintext);
        self.opens(mechanism, more, &ciphertext, &message);
    }

    fn opens(&self, mechanism: &str, more: &[&str], ciphertext: &Path, message: &[u8]) {
        let what = [&["--decrypt"], more].concat();
        let (text, output) = self.tool(&what, mechanism, ciphertext);
        let text = text.expect_success();
        assert_eq!(fs::read(output).unwrap(), message, "{mechanism} {text}");
    }

    /// Agrees on a secret with a key of OpenSSL. `pkcs11-tool` 0.23 reads no public key of X25519.
    fn derives(&self, mechanism: &str) {
        if self.curve() == "X25519" {
            return;
        }
        let peer = self.clients.peer(&self.curve());
        let (text, output) = self.tool(&["--derive"], mechanism, &peer.public);
        let text = text.expect_success();
        let expected = self.clients.shared_secret(&peer, &self.public);
        assert_eq!(fs::read(output).unwrap(), expected, "{text}");
    }

    fn curve(&self) -> String {
        let mut read = self.clients.command("openssl");
        read.args(["pkey", "-pubin", "-noout", "-text", "-in"]);
        let text = self
            .clients
            .run(read.arg(&self.public))
            .expect_success()
            .stdout;
        let nist = text
            .lines()
            .find_map(|line| line.strip_prefix("NIST CURVE: "));
        nist.unwrap_or("X25519").to_owned()
    }

    /// Uses the key once with this mechanism, and has another program check the result.
    fn works(&self, mechanism: &str) {
        let message = self.clients.file("message", MESSAGE);
        let hash_of = |name: &str| {
            let suffix = |hash: &str| name.ends_with(&hash.to_uppercase());
            HASHES
                .iter()
                .map(|(hash, _)| *hash)
                .find(|hash| suffix(hash))
        };
        match mechanism {
            "RSA-PKCS" if self.may("decrypt") && !self.may("sign") => {
                self.decrypts(mechanism, Padding::Pkcs1, &[]);
            }
            "RSA-PKCS" => {
                self.signs(mechanism, &[], Scheme::Unhashed, &message, &message);
                if self.may("decrypt") {
                    self.decrypts(mechanism, Padding::Pkcs1, &[]);
                }
            }
            "RSA-X-509" => {
                if self.may("sign") {
                    self.signs_with_raw_rsa(mechanism);
                }
                if self.may("decrypt") {
                    self.decrypts(mechanism, Padding::Raw, &[]);
                }
            }
            "RSA-PKCS-PSS" => self.signs_hashes_with_pss(&message),
            "RSA-PKCS-OAEP" => self.decrypts_with_each_hash(),
            "ECDSA" => {
                let digest = self.clients.digest("sha256", &message);
                let digest = self.clients.file("digest", digest);
                self.signs(mechanism, &[], Scheme::Unhashed, &digest, &digest);
            }
            "EDDSA" => self.signs(mechanism, &[], Scheme::EdDsa, &message, &message),
            "ECDH1-DERIVE" | "ECDH1-COFACTOR-DERIVE" => self.derives(mechanism),
            _ => match (
                mechanism.strip_suffix("-RSA-PKCS-PSS"),
                mechanism.strip_suffix("-RSA-PKCS"),
            ) {
                (Some(name), _) => self.signs(
                    mechanism,
                    &[],
                    Scheme::Pss(hash_of(name).unwrap()),
                    &message,
                    &message,
                ),
                (_, Some(name)) => self.signs(
                    mechanism,
                    &[],
                    Scheme::Hashed(hash_of(name).unwrap()),
                    &message,
                    &message,
                ),
                _ => {
                    let hash = mechanism.strip_prefix("ECDSA-").and_then(hash_of);
                    let hash = hash.unwrap_or_else(|| {
                        panic!("{mechanism} of key {} is not checked here", self.id)
                    });
                    self.signs(mechanism, &[], Scheme::Hashed(hash), &message, &message);
                }
            },
        }
    }

    fn signs_hashes_with_pss(&self, message: &Path) {
        for (hash, name) in HASHES {
            let digest = self.clients.digest(hash, message);
            let digest = self.clients.file("digest", digest);
            let mask = format!("MGF1-{}", name.replace("SHA-1", "SHA1"));
            let more = ["--hash-algorithm", name, "--mgf", &mask];
            self.signs("RSA-PKCS-PSS", &more, Scheme::Pss(hash), &digest, message);
        }
    }

    fn decrypts_with_each_hash(&self) {
        for (hash, name) in HASHES {
            let mask = format!("MGF1-{}", name.replace("SHA-1", "SHA1"));
            let more = ["--hash-algorithm", name, "--mgf", &mask];
            self.decrypts("RSA-PKCS-OAEP", Padding::Oaep(hash), &more);
        }
    }
}

/// Every key of the card with every mechanism it lists; `expected` are keys and some that each must list.
fn each_mechanism_works(fixture: &CardFixture, expected: &[(&str, &[&str])]) {
    let clients = Clients::of(fixture);
    let keys = Key::all(&clients);
    let ids: Vec<&str> = keys.iter().map(|key| key.id.as_str()).collect();
    let expected_ids: Vec<&str> = expected.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, expected_ids);
    for (key, (id, least)) in keys.iter().zip(expected) {
        for mechanism in *least {
            let listed = key.mechanisms.iter().any(|name| name == mechanism);
            assert!(
                listed,
                "{mechanism} is not among those of {id} ({}): {:?}",
                key.kind, key.mechanisms
            );
        }
        for mechanism in &key.mechanisms {
            key.works(mechanism);
        }
    }
}

/// Of RSA keys for signatures, at least.
const RSA_SIGNS: &[&str] = &[
    "RSA-PKCS",
    "RSA-PKCS-PSS",
    "SHA256-RSA-PKCS",
    "SHA512-RSA-PKCS",
    "SHA256-RSA-PKCS-PSS",
];
const RSA_DECRYPTS: &[&str] = &["RSA-PKCS", "RSA-PKCS-OAEP"];
const EC_SIGNS: &[&str] = &["ECDSA", "ECDSA-SHA256", "ECDSA-SHA384", "ECDSA-SHA512"];
const EC_DERIVES: &[&str] = &["ECDH1-DERIVE"];

fn each_mechanism_of_each_piv_key_works(fixture: &CardFixture) {
    let expected = [
        ("01", EC_SIGNS),
        ("02", RSA_SIGNS),
        ("03", RSA_DECRYPTS),
        ("04", EC_SIGNS),
    ];
    each_mechanism_works(fixture, &expected);
}

fn each_mechanism_of_a_piv_p384_key_works(fixture: &CardFixture) {
    each_mechanism_works(fixture, &[("01", EC_SIGNS)]);
}

fn each_mechanism_of_each_openpgp_key_works(fixture: &CardFixture) {
    each_mechanism_works(
        fixture,
        &[("01", &["EDDSA"]), ("02", EC_DERIVES), ("03", EC_SIGNS)],
    );
}

fn each_mechanism_of_each_openpgp_p256_key_works(fixture: &CardFixture) {
    each_mechanism_works(
        fixture,
        &[("01", EC_SIGNS), ("02", EC_DERIVES), ("03", EC_SIGNS)],
    );
}

fn each_mechanism_of_each_openpgp_p521_key_works(fixture: &CardFixture) {
    each_mechanism_of_each_openpgp_p256_key_works(fixture);
}

/// The card pads and removes the padding itself, by PKCS #1 v1.5.
fn each_mechanism_of_each_openpgp_rsa_key_works(fixture: &CardFixture) {
    let signs = &["RSA-PKCS", "SHA256-RSA-PKCS", "SHA512-RSA-PKCS"];
    each_mechanism_works(
        fixture,
        &[("01", signs), ("02", &["RSA-PKCS"]), ("03", signs)],
    );
}

fn each_mechanism_of_a_key_is_in_the_list_of_its_token(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    for token in ["PIV 00000001", "OpenPGP 00000001"] {
        let of_token = ["--token-label", token];
        let list = |what: &[&str]| {
            clients
                .pkcs11_tool_logged_in(&[&of_token, what].concat())
                .expect_success()
                .stdout
        };
        let mechanisms = list(&["--list-mechanisms"]);
        let listed: Vec<&str> = mechanisms
            .lines()
            .skip(1)
            .filter_map(|line| line.trim().split(',').next())
            .collect();
        for object in entries(&list(&["--list-objects"])) {
            for allowed in object
                .field("Allowed mechanisms")
                .split(',')
                .filter(|name| !name.is_empty())
            {
                assert!(
                    listed.contains(&allowed),
                    "{allowed} of {object:?}\n{mechanisms}"
                );
            }
        }
    }
}
