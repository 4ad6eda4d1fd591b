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
                Scheme::Hashed(_) => openssl.arg(message),
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

    fn verification(&self, key: &Path, scheme: Scheme<'_>, signature: &Path) -> Command {
        let mut openssl = self.command("openssl");
        match scheme {
            Scheme::Hashed(hash) => openssl
                .arg("dgst")
                .arg(format!("-{hash}"))
                .arg("-verify")
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
