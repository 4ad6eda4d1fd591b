//! The `openssl` command: it verifies signatures, makes keys, and is the peer of the card's operations.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use claviger_apdu::tlv;
use claviger_hw_tests::{
    client::{self, Output},
    fixture::{module_process::ModuleProcess, token_fixture::TestSession},
};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};

const LIMIT: Duration = Duration::from_secs(60);

/// A folder for what goes to and fro.
pub struct OpenSsl {
    folder: PathBuf,
}

impl OpenSsl {
    pub fn new(process: &ModuleProcess) -> Self {
        Self {
            folder: process.folder().to_owned(),
        }
    }

    /// A new file with this content.
    pub fn file(&self, content: impl AsRef<[u8]>) -> PathBuf {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("file-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let path = self.folder.join(name);
        fs::write(&path, content).expect("a file of the test");
        path
    }

    fn run(arguments: &[&str], files: &[(&str, &Path)]) -> Output {
        let mut openssl = Command::new("openssl");
        openssl.args(arguments);
        for (option, file) in files {
            openssl.args([option.as_ref(), file.as_os_str()]);
        }
        client::run(&mut openssl, LIMIT)
    }

    /// Runs it with `-out` as the last option. Returns the output file.
    fn output(&self, arguments: &[&str], files: &[(&str, &Path)]) -> Vec<u8> {
        let out = self.file(b"");
        let files = [files, &[("-out", out.as_path())]].concat();
        Self::run(arguments, &files).expect_success();
        fs::read(out).expect("a file of the test")
    }

    /// The public half of a key on the card, in PEM.
    pub fn public(&self, session: &TestSession, key: ObjectHandle) -> PathBuf {
        let result = session.get_attributes(key, &[AttributeType::PublicKeyInfo]);
        let Ok([Attribute::PublicKeyInfo(info)]) = result.as_deref() else {
            panic!("no CKA_PUBLIC_KEY_INFO: {result:?}")
        };
        let der = self.file(info);
        self.file(self.output(&["pkey", "-pubin", "-inform", "DER"], &[("-in", &der)]))
    }

    /// A new private key, in PEM: RSA with these bits, a curve, or an algorithm with one curve.
    pub fn private(&self, kind: &str) -> PathBuf {
        let (bits, curve) = (
            format!("rsa_keygen_bits:{kind}"),
            format!("ec_paramgen_curve:{kind}"),
        );
        let arguments: Vec<&str> = if kind.parse::<u32>().is_ok() {
            vec!["genpkey", "-algorithm", "RSA", "-pkeyopt", &bits]
        } else if kind.ends_with("25519") {
            vec!["genpkey", "-algorithm", kind]
        } else {
            vec!["genpkey", "-algorithm", "EC", "-pkeyopt", &curve]
        };
        self.file(self.output(&arguments, &[]))
    }

    /// The public half of a private key as a certificate holds it.
    pub fn info_of(&self, private: &Path) -> Vec<u8> {
        self.output(&["pkey", "-pubout", "-outform", "DER"], &[("-in", private)])
    }

    /// `openssl dgst -verify` or `pkeyutl -verify`, whichever the arguments begin.
    pub fn accepts(&self, how: &[&str], key: &Path, message: &[u8], signature: &[u8]) -> Output {
        let (message, signature) = (self.file(message), self.file(signature));
        if how[0] == "dgst" {
            let mut openssl = Command::new("openssl");
            openssl.args(how).arg("-verify").arg(key);
            openssl.arg("-signature").arg(signature).arg(message);
            return client::run(&mut openssl, LIMIT);
        }
        let files = [
            ("-inkey", key),
            ("-in", message.as_path()),
            ("-sigfile", signature.as_path()),
        ];
        Self::run(&[how, &["-verify", "-pubin"]].concat(), &files)
    }

    /// Fails unless OpenSSL accepts this signature, and refuses it over another message.
    #[track_caller]
    pub fn judge(&self, how: &[&str], key: &Path, message: &[u8], signature: &[u8]) {
        self.accepts(how, key, message, signature).expect_success();
        let mut other = message.to_vec();
        match other.first_mut() {
            Some(byte) => *byte ^= 1,
            None => other.push(1),
        }
        let result = self.accepts(how, key, &other, signature);
        assert!(!result.success(), "any message will do\n{result}");
    }

    /// A signature with a private key of its own.
    pub fn sign(&self, how: &[&str], key: &Path, message: &[u8]) -> Vec<u8> {
        let message = self.file(message);
        if how[0] == "dgst" {
            let out = self.file(b"");
            let mut openssl = Command::new("openssl");
            openssl.args(how).arg("-sign").arg(key);
            openssl.arg("-out").arg(&out).arg(message);
            client::run(&mut openssl, LIMIT).expect_success();
            return fs::read(out).expect("a file of the test");
        }
        let files = [("-inkey", key), ("-in", message.as_path())];
        self.output(&[how, &["-sign"]].concat(), &files)
    }

    /// `pkeyutl` with data: `-encrypt`, `-decrypt`, `-verifyrecover`.
    pub fn pkeyutl(&self, how: &[&str], key: &Path, data: &[u8]) -> Vec<u8> {
        let data = self.file(data);
        let arguments = [&["pkeyutl"], how].concat();
        self.output(&arguments, &[("-inkey", key), ("-in", &data)])
    }

    /// `pkeyutl -derive`.
    pub fn derive(&self, private: &Path, peer: &Path) -> Vec<u8> {
        let files = [("-inkey", private), ("-peerkey", peer)];
        self.output(&["pkeyutl", "-derive"], &files)
    }
}

/// The attributes of the public key in a SubjectPublicKeyInfo.
pub fn attributes_of(info: &[u8]) -> Vec<Attribute> {
    let content = tlv::only(info, 0x30).expect("a SubjectPublicKeyInfo");
    let algorithm = tlv::find(content, 0x30).unwrap().expect("an algorithm");
    let key = tlv::find(content, 0x03).unwrap().expect("a key");
    let key = &key[1..];
    let oid = tlv::find(algorithm, 0x06).unwrap().expect("an identifier");
    let parameters = &algorithm[2 + oid.len()..];
    let class = Attribute::Class(ObjectClass::PUBLIC_KEY);
    let point = |kind, parameters: &[u8], point: Vec<u8>| {
        let parameters = Attribute::EcParams(parameters.to_vec());
        vec![
            class.clone(),
            Attribute::KeyType(kind),
            parameters,
            Attribute::EcPoint(point),
        ]
    };
    match oid {
        // 1.2.840.113549.1.1.1
        [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x01] => {
            let numbers = tlv::only(key, 0x30).expect("two numbers");
            let modulus = tlv::find(numbers, 0x02).unwrap().expect("a modulus");
            // 65537, as openssl genpkey has it.
            assert_eq!(numbers[numbers.len() - 3..], [1, 0, 1]);
            vec![
                class,
                Attribute::KeyType(KeyType::RSA),
                Attribute::Modulus(modulus[1..].to_vec()),
                Attribute::PublicExponent(vec![1, 0, 1]),
            ]
        }
        // 1.2.840.10045.2.1
        [0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x02, 0x01] => {
            point(KeyType::EC, parameters, tlv::encode(0x04, key))
        }
        _ => point(
            KeyType::EC_EDWARDS,
            &algorithm[..2 + oid.len()],
            key.to_vec(),
        ),
    }
}

/// The point of a SubjectPublicKeyInfo.
pub fn point_of(info: &[u8]) -> Vec<u8> {
    let content = tlv::only(info, 0x30).expect("a SubjectPublicKeyInfo");
    let key = tlv::find(content, 0x03).unwrap().expect("a key");
    key[1..].to_vec()
}

/// Two numbers of fixed width as the DER that OpenSSL wants.
pub fn to_der(signature: &[u8]) -> Vec<u8> {
    let number = |bytes: &[u8]| {
        let digits: Vec<u8> = bytes
            .iter()
            .copied()
            .skip_while(|byte| *byte == 0)
            .collect();
        let sign = digits.first().is_none_or(|byte| byte & 0x80 != 0);
        tlv::encode(
            0x02,
            &[if sign { vec![0] } else { vec![] }, digits].concat(),
        )
    };
    let (r, s) = signature.split_at(signature.len() / 2);
    tlv::encode(0x30, &[number(r), number(s)].concat())
}

/// The DER of OpenSSL as two numbers of this width.
pub fn from_der(der: &[u8], width: usize) -> Vec<u8> {
    let content = tlv::only(der, 0x30).expect("a signature");
    let r = tlv::find(content, 0x02).unwrap().expect("r");
    let rest = &content[2 + r.len()..];
    let s = tlv::only(rest, 0x02).expect("s");
    let fixed = |number: &[u8]| {
        let digits: Vec<u8> = number
            .iter()
            .copied()
            .skip_while(|byte| *byte == 0)
            .collect();
        [vec![0; width - digits.len()], digits].concat()
    };
    [fixed(r), fixed(s)].concat()
}
