//! Rules for the tree: dependencies between the crates, files with unsafe code, and the length of a file.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Longest allowed file.
const MAX_LINES: usize = 500;
const CRATES: [&str; 7] = [
    "apdu",
    "driver",
    "pcsc-sys",
    "token",
    "pkcs11-abi",
    "hw-tests",
    "sanitize",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// The Rust files below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

fn manifest(name: &str) -> String {
    fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap()
}

#[test]
fn driver_and_token_are_independent_and_apdu_depends_on_no_other_crate() {
    assert!(!manifest("driver").contains("claviger-token"));
    assert!(!manifest("token").contains("claviger-driver"));
    for (name, others) in [
        (
            "apdu",
            ["claviger-driver", "claviger-token", "claviger-pkcs11"],
        ),
        ("driver", ["claviger-token", "claviger-pkcs11", "cryptoki"]),
        ("token", ["claviger-driver", "claviger-pkcs11", "pcsc"]),
    ] {
        for other in others {
            let line = manifest(name)
                .lines()
                .any(|line| line.starts_with(other) && !line.starts_with("cryptoki-sys"));
            assert!(!line, "{name} depends on {other}");
        }
    }
}

#[test]
fn apdu_and_token_forbid_unsafe_code() {
    for name in ["apdu", "token"] {
        let lib = fs::read_to_string(root().join(name).join("src/lib.rs")).unwrap();
        assert!(lib.contains("#![forbid(unsafe_code)]"), "{name}");
    }
}

#[test]
fn unsafe_code_is_only_in_a_few_listed_files() {
    let allowed = [
        "driver/src/fork_closed.rs",
        "driver/src/socket_shutdown.rs",
        "driver/src/usb/discovery/udev_filter.rs",
        "driver/src/usb/host/rusb/transfers.rs",
        "pcsc-sys/src/functions.rs",
        "driver/src/usb/host/usbfs.rs",
        "pkcs11-abi/src/pointer.rs",
        "pkcs11-abi/src/fork.rs",
        "pkcs11-abi/src/function_list/entry_points.rs",
        "pkcs11-abi/src/privilege.rs",
    ];
    for name in ["driver", "pcsc-sys", "pkcs11-abi"] {
        for file in sources(&root().join(name).join("src")) {
            let text = fs::read_to_string(&file).unwrap();
            let relative = file
                .strip_prefix(root())
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            assert!(
                !text.contains("unsafe {") || allowed.contains(&relative.as_str()),
                "{relative} has an unsafe block"
            );
        }
    }
}

#[test]
fn usb_fake_is_compiled_for_tests_only() {
    let host = fs::read_to_string(root().join("driver/src/usb/host/mod.rs")).unwrap();
    assert!(host.contains("#[cfg(test)]\npub mod fake;"));
    assert_eq!(host.matches("mod fake").count(), 1);
}

#[test]
fn no_file_is_longer_than_500_lines() {
    let mut seen = 0;
    for name in CRATES {
        for file in sources(&root().join(name))
            .into_iter()
            .filter(|file| !file.components().any(|part| part.as_os_str() == "target"))
        {
            let lines = fs::read_to_string(&file).unwrap().lines().count();
            assert!(lines <= MAX_LINES, "{} has {lines} lines", file.display());
            seen += 1;
        }
    }
    assert!(seen > 50, "only {seen} files were looked at");
}
