//! The driver and the module on a reader from another project: QEMU's `usb-ccid`, which exchanges TPDUs of T=0. Its card is
//! `virtual-card --vscard` on the host of the guest. `make test-usb` runs these tests in a boot of their own, as a user whose
//! rights come only from our udev rules.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails loudly"
)]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use claviger_apdu::{Call, Limits, ResponseBuffer, Transport};
use claviger_driver::{
    Backend as _, Presence, Watch,
    ccid::{configuration::InterfaceProtocol, descriptor::ExchangeLevel},
    usb::{
        backend::{UsbBackend, UsbOptions},
        discovery::sysfs::{UsbBus, UsbDevice},
        host::open::UsbLibrary,
    },
};
use claviger_hw_tests::{
    client::{self, Output},
    paths,
    provision::{IssuedCertificates, PIN},
    vscard::T0_ATR,
};
use tempfile::TempDir;

/// Where the card's certificates are, which were written when its keys were made.
const CERTIFICATES: &str = "CLAVIGER_VSCARD_CERTIFICATES";
/// Only a hang takes longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Commands whose times are compared.
const COMMANDS: usize = 100;
/// SELECT of the PIV applet, case 4.
const SELECT: &[u8] = b"\x00\xA4\x04\x00\x09\xA0\x00\x00\x03\x08\x00\x00\x10\x00\x00";
/// VERIFY, which asks whether the PIN is verified, case 1.
const VERIFY_STATUS: &[u8] = &[0x00, 0x20, 0x00, 0x80];
/// GET DATA of the certificate in 9C, case 4.
const GET_CERTIFICATE: &[u8] = b"\x00\xCB\x3F\xFF\x05\x5C\x03\x5F\xC1\x0A\x00";

macro_rules! on_each_usb_library {
    ($($rule:ident)*) => {
        mod nusb { $(
            #[test]
            #[ignore = "run by make test-usb"]
            fn $rule() { super::$rule(super::UsbLibrary::Nusb) }
        )* }
        mod rusb { $(
            #[test]
            #[ignore = "run by make test-usb"]
            fn $rule() { super::$rule(super::UsbLibrary::Rusb) }
        )* }
    };
}

on_each_usb_library! {
    the_reader_takes_tpdus_of_t0
    qemu_reader_exchanges_tpdus_and_leaves_get_response_to_the_host
    tokens_of_both_applets_are_listed
    certificates_longer_than_a_block_are_read_as_they_were_issued
    piv_and_openpgp_keys_sign_after_user_login
    a_wrong_pin_is_refused
}

/// The one reader there is.
fn reader() -> UsbDevice {
    let mut found = UsbBus::system().list(&[]).devices;
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn the_reader_takes_tpdus_of_t0(library: UsbLibrary) {
    let found = reader();
    assert_eq!(found.readers.len(), 1, "{found:?}");
    let interface = &found.readers[0];
    println!(
        "{library:?}: {}, {:?}: {}",
        found.name, found.model, interface.class
    );
    println!("{interface:?}");
    assert_eq!(interface.way, InterfaceProtocol::Bulk);
    assert_eq!(interface.class.exchange_level(), ExchangeLevel::Tpdu);
    assert!(interface.class.supports_protocol(0) && !interface.class.supports_protocol(1));
    let (_watch, card) = connect(library);
    assert_eq!(card.atr().bytes(), T0_ATR);
    assert_eq!(card.limits(), Limits::SHORT);
}

/// The card, and the watch that has reported it.
fn connect(library: UsbLibrary) -> (Box<dyn Watch>, Box<dyn Transport>) {
    let backend = UsbBackend::new(&UsbOptions {
        library,
        has_watch_thread: true,
        lock_folders: Vec::new(),
    });
    let mut watch = backend.watch();
    let readers = watch.snapshot(Call::within(PATIENCE));
    assert!(readers.error.is_none(), "{:?}", readers.error);
    let [reader] = readers.readers.as_slice() else {
        unreachable!("one reader: {readers:?}");
    };
    assert!(matches!(reader.presence, Presence::Card(_)), "{reader:?}");
    let card = backend.connect(&reader.id, Call::within(PATIENCE)).unwrap();
    (watch, card)
}

fn transmit(card: &mut dyn Transport, frame: &[u8]) -> Vec<u8> {
    let mut response = ResponseBuffer::new();
    card.transmit(frame, &mut response, Call::within(PATIENCE))
        .unwrap();
    response.frame().to_vec()
}

/// A reader at APDU level handles these itself: 61xx, GET RESPONSE, 6Cxx and the corrected length.
fn qemu_reader_exchanges_tpdus_and_leaves_get_response_to_the_host(library: UsbLibrary) {
    let (_watch, mut card) = connect(library);
    let selected = transmit(&mut *card, SELECT);
    assert_eq!((selected.len(), selected[0]), (2, 0x61), "{selected:02X?}");
    let length = selected[1];
    assert_eq!(
        transmit(&mut *card, &[0x00, 0xC0, 0x00, 0x00, 0x00]),
        [0x6C, length]
    );
    let answer = transmit(&mut *card, &[0x00, 0xC0, 0x00, 0x00, length]);
    assert_eq!(answer.len(), usize::from(length) + 2);
    assert_eq!(answer[0], 0x61, "an application property template");
    assert!(answer.ends_with(&[0x90, 0x00]), "{answer:02X?}");
    assert_eq!(transmit(&mut *card, VERIFY_STATUS), [0x63, 0xC3]);
    assert_eq!(transmit(&mut *card, GET_CERTIFICATE), [0x61, 0x00]);
    let block = transmit(&mut *card, &[0x00, 0xC0, 0x00, 0x00, 0x00]);
    assert_eq!(
        (block.len(), block[256]),
        (258, 0x61),
        "a whole block, and more"
    );
    println!(
        "{library:?}: {:.3} ms for a TPDU",
        pace(&mut *card).as_secs_f64() * 1e3
    );
}

/// Median time of a TPDU without data.
fn pace(card: &mut dyn Transport) -> Duration {
    let timed = |_| {
        let begin = Instant::now();
        assert_eq!(transmit(card, VERIFY_STATUS), [0x63, 0xC3]);
        begin.elapsed()
    };
    let mut times: Vec<Duration> = (0..COMMANDS).map(timed).collect();
    times.sort();
    times[COMMANDS / 2]
}

/// OpenSC's and OpenSSL's programs, with the module on one USB library.
struct Clients {
    library: UsbLibrary,
    issued: IssuedCertificates,
    folder: TempDir,
}

impl Clients {
    fn on(library: UsbLibrary) -> Self {
        let issued = env::var_os(CERTIFICATES).expect(CERTIFICATES);
        Self {
            library,
            issued: IssuedCertificates::read(Path::new(&issued)).unwrap(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn pkcs11_tool(&self, arguments: &[&str]) -> Output {
        let backend = match self.library {
            UsbLibrary::Nusb => "nusb",
            UsbLibrary::Rusb => "rusb",
        };
        let mut command = Command::new("pkcs11-tool");
        command
            .arg("--module")
            .arg(paths::module_path())
            .args(arguments)
            .current_dir(self.folder.path())
            .env("CLAVIGER_TRANSPORTS", "usb")
            .env("CLAVIGER_USB_BACKEND", backend)
            .env("CLAVIGER_CONFIG", "/dev/null");
        client::run(&mut command, PATIENCE)
    }

    fn openssl(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("openssl");
        command.args(arguments).current_dir(self.folder.path());
        client::run(&mut command, PATIENCE)
    }

    fn certificate(&self, name: &str) -> &[u8] {
        self.issued.certificate(name).expect(name)
    }

    /// A signature over a hash of SHA-256, and OpenSSL's verdict by the certificate that was issued for the key.
    fn sign(&self, token: &str, key: &str, mechanism: &str, certificate: &str) {
        fs::write(self.path("message"), b"What is signed is what was read.").unwrap();
        fs::write(self.path("certificate"), self.certificate(certificate)).unwrap();
        let public = ["x509", "-inform", "DER", "-noout", "-pubkey", "-in"];
        let public = self.openssl(&[&public[..], &["certificate"]].concat());
        fs::write(self.path("key"), public.expect_success().stdout).unwrap();
        let what = ["--sign", "--token-label", token, "--id", key];
        let how = ["--mechanism", mechanism, "--signature-format", "openssl"];
        let files = ["--input-file", "message", "--output-file", "signature"];
        let login = ["--login", "--pin", PIN];
        let signed = self.pkcs11_tool(&[&what[..], &how, &files, &login].concat());
        let took = signed.expect_success().took;
        println!("{:?}: {mechanism} by {token}: {took:.1?}", self.library);
        let check = [
            "dgst",
            "-sha256",
            "-verify",
            "key",
            "-signature",
            "signature",
        ];
        self.openssl(&[&check[..], &["message"]].concat())
            .expect_success();
        let other = self.openssl(&[&check[..], &["certificate"]].concat());
        assert!(!other.success(), "{other}");
    }
}

fn tokens_of_both_applets_are_listed(library: UsbLibrary) {
    let listed = Clients::on(library)
        .pkcs11_tool(&["--list-token-slots"])
        .expect_success();
    for token in ["PIV 00000001", "OpenPGP 00000001"] {
        assert!(listed.stdout.contains(token), "{listed}");
    }
    println!("{library:?}: two tokens listed in {:.1?}", listed.took);
}

fn certificates_longer_than_a_block_are_read_as_they_were_issued(library: UsbLibrary) {
    let clients = Clients::on(library);
    for (token, id, name) in [
        ("PIV 00000001", "02", "piv-9C"),
        ("PIV 00000001", "03", "piv-9D"),
        ("OpenPGP 00000001", "03", "openpgp-03"),
    ] {
        let what = ["--read-object", "--type", "cert", "--token-label", token];
        let which = ["--id", id, "--output-file", name];
        clients
            .pkcs11_tool(&[&what[..], &which].concat())
            .expect_success();
        let issued = clients.certificate(name);
        assert!(issued.len() > 256, "{name} fits in a block");
        assert_eq!(fs::read(clients.path(name)).unwrap(), issued, "{name}");
    }
}

fn piv_and_openpgp_keys_sign_after_user_login(library: UsbLibrary) {
    let clients = Clients::on(library);
    for (token, key, mechanism, certificate) in [
        ("PIV 00000001", "01", "ECDSA-SHA256", "piv-9A"),
        ("PIV 00000001", "02", "SHA256-RSA-PKCS", "piv-9C"),
        ("OpenPGP 00000001", "03", "ECDSA-SHA256", "openpgp-03"),
    ] {
        clients.sign(token, key, mechanism, certificate);
    }
}

fn a_wrong_pin_is_refused(library: UsbLibrary) {
    let clients = Clients::on(library);
    let log_in = |pin| {
        let token = ["--token-label", "PIV 00000001", "--login", "--pin", pin];
        clients.pkcs11_tool(&[&token[..], &["--list-objects"]].concat())
    };
    let refused = log_in("654321");
    assert!(!refused.success(), "{refused}");
    assert!(refused.stderr.contains("CKR_PIN_INCORRECT"), "{refused}");
    // It gives the card its tries back.
    log_in(PIN).expect_success();
}
