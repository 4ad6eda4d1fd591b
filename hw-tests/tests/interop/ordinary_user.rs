//! The module needs no special rights: an ordinary user signs, over the socket reader and over pcscd.

use std::{env, fs, os::unix::fs::PermissionsExt as _, process::Command, time::Duration};

use claviger_hw_tests::{
    client,
    fixture::{
        card_fixture::CardFixture,
        clients::{Clients, Needed, all_installed, openssl::Scheme, piv_with},
    },
    paths,
    pcscd::Pcscd,
    provision::KeyAlgorithm,
    skip,
};

const NEEDED: [Needed; 3] = [
    ("pkcs11-tool", "opensc"),
    ("openssl", "openssl"),
    ("setpriv", "util-linux"),
];
const LIMIT: Duration = Duration::from_secs(90);
/// Nobody, in nogroup.
const NOBODY: &str = "65534";

fn list_and_sign(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    let slots = clients.pkcs11_tool(&["--list-slots"]).expect_success();
    assert!(slots.stdout.contains("PIV 00000001"), "{slots}");
    let (message, signature) = (
        clients.file("message", "as anybody"),
        clients.path("signature"),
    );
    let sign = [
        "--sign",
        "--id",
        "01",
        "--mechanism",
        "ECDSA-SHA256",
        "--signature-format",
        "openssl",
    ];
    let files = [
        "--input-file",
        message.to_str().unwrap(),
        "--output-file",
        signature.to_str().unwrap(),
    ];
    clients
        .pkcs11_tool_logged_in(&[&sign[..], &files].concat())
        .expect_success();
    let key = clients.public_key_of("piv-9A");
    clients.check(&key, Scheme::Hashed("sha256"), &message, &signature);
}

/// Run by [`ordinary_user_signs_over_both_services`] as that user.
#[test]
#[ignore = "runs as another user, from the test below"]
fn as_this_user() {
    assert!(!rustix::process::geteuid().is_root());
    let profile = || piv_with(KeyAlgorithm::P256);
    list_and_sign(&CardFixture::socket(profile()));
    if let Some(fixture) = CardFixture::pcscd(profile()) {
        list_and_sign(&fixture);
    }
}

#[test]
fn ordinary_user_signs_over_both_services() {
    if !all_installed(&NEEDED) {
        return;
    }
    if let Some(obstacle) = Pcscd::obstacle() {
        return skip::because(obstacle);
    }
    if !rustix::process::geteuid().is_root() {
        return as_this_user();
    }
    // A build folder of that user's own: the real one may be closed to others.
    let build = tempfile::tempdir().unwrap();
    let release = build.path().join("release");
    fs::create_dir(&release).unwrap();
    let (test, module) = (release.join("test"), release.join("module.so"));
    fs::copy(env::current_exe().unwrap(), &test).unwrap();
    fs::copy(paths::module_path(), &module).unwrap();
    fs::set_permissions(build.path(), fs::Permissions::from_mode(0o777)).unwrap();
    for path in [&release, &test, &module] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut as_user = Command::new("setpriv");
    as_user.args([
        "--reuid",
        NOBODY,
        "--regid",
        NOBODY,
        "--clear-groups",
        "--no-new-privs",
        "--",
    ]);
    as_user
        .arg(&test)
        .args(["--ignored", "--exact", "ordinary_user::as_this_user"]);
    as_user
        .current_dir("/")
        .env_remove("TMPDIR")
        .env("CLAVIGER_MODULE", &module);
    let output = client::run(&mut as_user, LIMIT);
    if output.stderr.contains("may not make mount namespaces") {
        return skip::because("ordinary users may not make user namespaces here");
    }
    assert!(output.expect_success().stdout.contains("1 passed"));
}
