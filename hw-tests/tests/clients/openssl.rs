//! The `openssl` command as the judge of signatures, and as a user of the module.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::Clients;

/// How a signature is checked.
#[derive(Clone, Copy, Debug)]
pub enum Scheme<'a> {
    /// ECDSA or RSASSA-PKCS1-v1_5 over the message, hashed with this.
    Hashed(&'a str),
    /// ECDSA over the message as it is, or RSA with PKCS #1 padding around it.
    Bare,
    /// Pure Ed25519.
    EdDsa,
    /// RSASSA-PSS over the message, hashed with this, which the mask uses too; the salt is as long as the hash.
    Pss(&'a str),
}

/// How an RSA key encrypts.
#[derive(Clone, Copy, Debug)]
pub enum Padding<'a> {
    /// RSAES-PKCS1-v1_5.
    Pkcs1,
    /// RSAES-OAEP with this hash, for the mask too.
    Oaep(&'a str),
    /// None: the message is as long as the modulus.
    Raw,
}

impl Padding<'_> {
    /// As options of `openssl pkeyutl`.
    pub fn options(self) -> Vec<String> {
        let mode = |name: &str| vec!["-pkeyopt".to_owned(), format!("rsa_padding_mode:{name}")];
        match self {
            Self::Pkcs1 => mode("pkcs1"),
            Self::Raw => mode("none"),
            Self::Oaep(hash) => {
                let mut options = mode("oaep");
                for name in ["rsa_oaep_md", "rsa_mgf1_md"] {
                    options.extend(["-pkeyopt".to_owned(), format!("{name}:{hash}")]);
                }
                options
            }
        }
    }
}

/// A key pair in software, to agree on a secret with.
pub struct Peer {
    /// In PEM.
    pub private: PathBuf,
    /// A SubjectPublicKeyInfo in DER.
    pub public: PathBuf,
}

impl Clients<'_> {
    /// The public key of a certificate, in PEM.
    pub fn public_key_of(&self, certificate: &str) -> PathBuf {
        let der = self.file(certificate, self.rig.certificate(certificate));
        let pem = self.path(&format!("{certificate}.pub.pem"));
        let mut openssl = self.command("openssl");
        openssl
            .args(["x509", "-inform", "DER", "-noout", "-pubkey", "-in"])
            .arg(der);
        fs::write(&pem, self.run(&mut openssl).expect_success().stdout)
            .expect("a file of the test");
        pem
    }

    /// A certificate in PEM.
    pub fn certificate_in_pem(&self, certificate: &str) -> PathBuf {
        let der = self.file(certificate, self.rig.certificate(certificate));
        let pem = self.path(&format!("{certificate}.pem"));
        let mut openssl = self.command("openssl");
        openssl
            .args(["x509", "-inform", "DER", "-in"])
            .arg(der)
            .arg("-out")
            .arg(&pem);
        self.run(&mut openssl).expect_success();
        pem
    }

    /// Fails unless OpenSSL accepts `signature` over `message`, and refuses it over another.
    pub fn check(&self, key: &Path, scheme: Scheme<'_>, message: &Path, signature: &Path) {
        let verdict = |message: &Path| {
            let mut openssl = self.verification(key, scheme, signature);
            match scheme {
                Scheme::Hashed(_) | Scheme::Pss(_) => openssl.arg(message),
                Scheme::Bare | Scheme::EdDsa => openssl.arg("-in").arg(message),
            };
            self.run(&mut openssl)
        };
        verdict(message).expect_success();
        let mut other = fs::read(message).expect("the message");
        if let Some(byte) = other.first_mut() {
            *byte ^= 1;
        }
        let output = verdict(&self.file("another-message", other));
        assert!(
            !output.success(),
            "any message will do for this check\n{output}"
        );
    }

    /// `message` encrypted for `key`.
    pub fn encrypted(&self, key: &Path, padding: Padding<'_>, message: &Path) -> PathBuf {
        let ciphertext = self.path("ciphertext");
        let mut openssl = self.command("openssl");
        openssl
            .args(["pkeyutl", "-encrypt", "-pubin", "-inkey"])
            .arg(key)
            .args(padding.options())
            .arg("-in")
            .arg(message)
            .arg("-out")
            .arg(&ciphertext);
        self.run(&mut openssl).expect_success();
        ciphertext
    }

    /// A new key pair; `algorithm` as `openssl genpkey` has it: `P-256`, `X25519` and the like.
    pub fn peer(&self, algorithm: &str) -> Peer {
        let peer = Peer {
            private: self.path("peer.pem"),
            public: self.path("peer.der"),
        };
        let curve = format!("ec_paramgen_curve:{algorithm}");
        let what: &[&str] = if algorithm.starts_with('X') {
            &["-algorithm", algorithm]
        } else {
            &["-algorithm", "EC", "-pkeyopt", &curve]
        };
        let mut generate = self.command("openssl");
        generate.arg("genpkey").args(what).arg("-out");
        self.run(generate.arg(&peer.private)).expect_success();
        let mut convert = self.command("openssl");
        convert.args(["pkey", "-pubout", "-outform", "DER", "-in"]);
        self.run(convert.arg(&peer.private).arg("-out").arg(&peer.public))
            .expect_success();
        peer
    }

    /// What `peer` and the holder of the public key in `key` have in common.
    pub fn shared_secret(&self, peer: &Peer, key: &Path) -> Vec<u8> {
        let secret = self.path("expected-secret");
        let mut derive = self.command("openssl");
        derive
            .args(["pkeyutl", "-derive", "-inkey"])
            .arg(&peer.private)
            .arg("-peerkey")
            .arg(key)
            .arg("-out");
        self.run(derive.arg(&secret)).expect_success();
        fs::read(secret).expect("a file of the test")
    }

    /// The hash of a file.
    pub fn digest(&self, hash: &str, file: &Path) -> Vec<u8> {
        let digest = self.path("expected-digest");
        let mut openssl = self.command("openssl");
        openssl.args(["dgst", &format!("-{hash}"), "-binary", "-out"]);
        self.run(openssl.arg(&digest).arg(file)).expect_success();
        fs::read(digest).expect("a file of the test")
    }

    fn verification(&self, key: &Path, scheme: Scheme<'_>, signature: &Path) -> Command {
        let mut openssl = self.command("openssl");
        match scheme {
            Scheme::Hashed(hash) => openssl
                .arg("dgst")
                .arg(format!("-{hash}"))
                .arg("-verify")
                .arg(key)
                .arg("-signature"),
            Scheme::Pss(hash) => openssl
                .args(["dgst", &format!("-{hash}")])
                .args(["-sigopt", "rsa_padding_mode:pss"])
                .args(["-sigopt", "rsa_pss_saltlen:digest", "-verify"])
                .arg(key)
                .arg("-signature"),
            Scheme::Bare => openssl
                .args(["pkeyutl", "-verify", "-pubin", "-inkey"])
                .arg(key)
                .arg("-sigfile"),
            Scheme::EdDsa => openssl
                .args(["pkeyutl", "-verify", "-rawin", "-pubin", "-inkey"])
                .arg(key)
                .arg("-sigfile"),
        };
        openssl.arg(signature);
        openssl
    }
}
