//! The module in an initramfs without udev, pcscd and libpcsclite: `pkcs11-tool` signs. `make test-usb` boots it. This program
//! runs in it and also provides the reader.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails loudly"
)]

use std::{fs, path::Path, process::Command, sync::mpsc, thread, time::Duration};

use claviger_apdu::Call;
use claviger_driver::{
    Backend as _, Presence, ReaderSnapshot,
    usb::{
        backend::{UsbBackend, UsbOptions},
        host::open::UsbLibrary,
    },
};
use claviger_hw_tests::{
    client::{self, Output},
    fixture::card_fixture::CardFixture,
    paths,
    provision::{CardProfile, KeyAlgorithm, PIN, PivPlan},
    usb::UsbAccess,
};

/// Only a hang takes longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The folders in which the loader searches for libraries.
const LIBRARIES: [&str; 4] = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"];

/// A P-256 key in 9A.
fn profile() -> CardProfile {
    CardProfile::piv(PivPlan::authentication(KeyAlgorithm::P256))
}

/// The card of the initramfs, which need not make it then.
#[test]
fn the_card_of_this_test_can_be_made() {
    let _ = CardFixture::socket(profile());
}

/// Runs a client without this program's environment.
fn run(program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir("/tmp")
        .env_clear()
        .env("PATH", "/bin:/usr/bin")
        .envs(environment.iter().copied());
    client::run(&mut command, PATIENCE)
}

/// pkcs11-tool with the module.
fn pkcs11_tool(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let module = paths::module_path();
    let module = ["--module", module.to_str().unwrap()];
    run(
        "pkcs11-tool",
        &[&module[..], arguments].concat(),
        environment,
    )
}

/// Names of files below `folder`.
fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let named = |entry: fs::DirEntry| {
        if entry.file_type().unwrap().is_dir() {
            files(&entry.path())
        } else {
            vec![entry.file_name().into_string().unwrap()]
        }
    };
    entries.flat_map(named).collect()
}

#[test]
#[ignore = "run by make test-usb"]
fn an_initramfs_without_udev_and_pcscd_signs() {
    for absent in ["/run", "/var", "/etc", "/sbin/udevd", "/usr/sbin/pcscd"] {
        assert!(!fs::exists(absent).unwrap(), "{absent}");
    }
    let libraries: Vec<String> = LIBRARIES
        .map(Path::new)
        .into_iter()
        .flat_map(files)
        .collect();
    let loadable = |name: &str| libraries.iter().any(|library| library.starts_with(name));
    assert!(loadable("libclaviger_pkcs11.so") && loadable("libopensc.so"));
    assert!(!loadable("libpcsclite"), "{libraries:?}");

    let fixture = CardFixture::usb(profile(), UsbAccess::Nusb);
    fs::write("/tmp/message", b"What is signed is what was asked for.").unwrap();
    fs::write("/tmp/certificate", fixture.certificate("piv-9A")).unwrap();
    let public = [
        "x509",
        "-inform",
        "DER",
        "-noout",
        "-pubkey",
        "-in",
        "certificate",
    ];
    let public = run("openssl", &public, &[]).expect_success().stdout;
    fs::write("/tmp/key", public).unwrap();

    let usb = ("CLAVIGER_TRANSPORTS", "usb");
    let nusb = [usb, ("CLAVIGER_USB_BACKEND", "nusb")];
    let rusb = [usb, ("CLAVIGER_USB_BACKEND", "rusb")];
    for environment in [&[][..], &nusb, &rusb] {
        let listed = pkcs11_tool(&["--list-token-slots"], environment).expect_success();
        assert!(listed.stdout.contains("PIV 00000001"), "{listed}");
        let sign = ["--sign", "--id", "01", "--mechanism", "ECDSA-SHA256"];
        let files = ["--input-file", "message", "--output-file", "signature"];
        let login = ["--signature-format", "openssl", "--login", "--pin", PIN];
        let signed = pkcs11_tool(&[&sign[..], &files, &login].concat(), environment);
        let took = signed.expect_success().took;
        println!(
            "{environment:?}: listed in {:.1?}, signed in {took:.1?}",
            listed.took
        );
        let check = [
            "dgst",
            "-sha256",
            "-verify",
            "key",
            "-signature",
            "signature",
            "message",
        ];
        run("openssl", &check, &[]).expect_success();
        fs::remove_file("/tmp/signature").unwrap();
    }
}

/// Only the kernel reports the event.
#[test]
#[ignore = "run by make test-usb"]
fn plugging_and_pulling_a_token_is_reported_without_udev() {
    for (library, access) in [
        (UsbLibrary::Nusb, UsbAccess::Nusb),
        (UsbLibrary::Rusb, UsbAccess::Rusb),
    ] {
        let mut fixture = CardFixture::usb(profile(), access);
        let backend = UsbBackend::new(&UsbOptions {
            library,
            has_watch_thread: true,
            lock_folders: vec![fixture.folder().join("locks")],
        });
        let mut watch = backend.watch();
        assert_eq!(cards(&watch.snapshot(Call::within(PATIENCE))), 1);
        let waker = watch.stop_handle();
        let (sender, snapshots) = mpsc::channel();
        let watching = thread::spawn(move || {
            while let Ok(readers) = watch.next_snapshot() {
                sender.send(cards(&readers)).unwrap();
            }
        });
        let is_reported = |expected: usize| {
            while snapshots.recv_timeout(PATIENCE).expect("a snapshot") != expected {}
        };
        fixture.on_usb().unplug();
        is_reported(0);
        fixture.on_usb().replug().unwrap();
        is_reported(1);
        waker.stop();
        watching.join().unwrap();
    }
}

fn cards(readers: &ReaderSnapshot) -> usize {
    let readers = readers.readers.iter();
    let has_card = |presence: &Presence| matches!(presence, Presence::Card(_));
    readers.filter(|reader| has_card(&reader.presence)).count()
}
