//! Public keys as the card says they are, for OpenSSL.

use std::{fs, path::PathBuf};

use super::{
    Clients,
    listing::{Entry, entries},
};

/// `id-ecPublicKey` (RFC 5480, 2.1.1).
const EC_PUBLIC_KEY: &str = "06072a8648ce3d0201";

impl Clients<'_> {
    /// The public key with this id, in PEM.
    ///
    /// `pkcs11-tool` 0.23 can export neither P-384 nor X25519 keys, with any module, so what it lists is put together here.
    pub fn public_key_on_card(&self, id: &str) -> PathBuf {
        let output = self
            .pkcs11_tool(&["--list-objects", "--type", "pubkey"])
            .expect_success();
        let object = entries(&output.stdout)
            .into_iter()
            .find(|object| object.field("ID") == id)
            .unwrap_or_else(|| panic!("no public key {id}\n{output}"));
        let der = self.path(&format!("key-{id}.der"));
        match object.field("EC_POINT") {
            "" => self.read_public_key(id, &der.to_string_lossy()),
            point => fs::write(&der, spki(&object, point)).expect("a file of the test"),
        }
        let pem = self.path(&format!("key-{id}.pem"));
        let mut convert = self.command("openssl");
        convert.args(["pkey", "-pubin", "-in"]).arg(der);
        self.run(convert.arg("-out").arg(&pem)).expect_success();
        pem
    }

    fn read_public_key(&self, id: &str, file: &str) {
        let what = ["--read-object", "--type", "pubkey", "--id", id];
        self.pkcs11_tool(&[&what[..], &["--output-file", file]].concat())
            .expect_success();
    }
}

/// A SubjectPublicKeyInfo.
fn spki(object: &Entry, point: &str) -> Vec<u8> {
    let parameters = object.field("EC_PARAMS").split(' ').next();
    let parameters = bytes(parameters.unwrap_or_default());
    let algorithm = match object.headline.split("; ").nth(1) {
        Some(kind) if kind.starts_with("EC_") => parameters,
        _ => [bytes(EC_PUBLIC_KEY), parameters].concat(),
    };
    let key = [&[0], content(&bytes(point))].concat();
    tlv(0x30, &[tlv(0x30, &algorithm), tlv(0x03, &key)].concat())
}

fn bytes(hex: &str) -> Vec<u8> {
    let byte = |n: usize| hex.get(2 * n..2 * n + 2).expect("pairs of digits");
    (0..hex.len() / 2)
        .map(|n| u8::from_str_radix(byte(n), 16).expect("hexadecimal"))
        .collect()
}

/// What is in a data object of DER.
fn content(der: &[u8]) -> &[u8] {
    let header = match der.get(1) {
        Some(0x81) => 3,
        _ => 2,
    };
    &der[header..]
}

fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).expect("a key of a curve");
    let header = if length < 0x80 {
        vec![tag, length]
    } else {
        vec![tag, 0x81, length]
    };
    [&header, value].concat()
}
