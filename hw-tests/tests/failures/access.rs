//! A reader whose permissions first deny access and later allow it. Runs as an ordinary user.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use claviger_hw_tests::{
    client,
    fixture::{
        configurations::MOMENT,
        function_list::{FunctionList, HANG, NO_THREADS, OWN_THREAD},
        module_process::{ServiceKind, with_card},
    },
    paths,
    provision::CardProfile,
    skip,
};
use cryptoki_sys::CKR_OK;

const LIMIT: Duration = Duration::from_secs(120);
/// Nobody, in nogroup.
const NOBODY: &str = "65534";

/// Does `test`; where this is root, it runs the running test again as an ordinary user instead.
fn as_an_ordinary_user(test: impl FnOnce()) {
    if !rustix::process::geteuid().is_root() {
        return test();
    }
    let Some(setpriv) = paths::program("setpriv") else {
        return skip::because("setpriv is not installed (Debian: util-linux)");
    };
    // A build folder of that user's own: the real one may be closed to others.
    let build = tempfile::tempdir().unwrap();
    let (test, module) = (build.path().join("test"), build.path().join("module.so"));
    fs::copy(env::current_exe().unwrap(), &test).unwrap();
    fs::copy(paths::module_path(), &module).unwrap();
    for path in [build.path(), &test, &module] {
        permit(path, 0o755);
    }
    let name = thread::current().name().unwrap().to_owned();
    let mut as_user = Command::new(setpriv);
    as_user
        .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
        .args(["--no-new-privs", "--"])
        .arg(&test)
        .args([&name, "--exact", "--nocapture"])
        .current_dir("/")
        .env_remove("TMPDIR")
        .env("CLAVIGER_MODULE", &module);
    let output = client::run(&mut as_user, LIMIT).expect_success();
    assert!(output.stdout.contains("1 passed"), "{output}");
}

fn permit(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// While `obstacle` of the reader's socket denies access there is no reader. When access is allowed, a waiter gets an event.
fn closed_and_opened(obstacle: fn(&Path) -> &Path) {
    with_card(ServiceKind::Socket, CardProfile::factory(), |_| {
        let socket = PathBuf::from(env::var_os("CLAVIGER_SOCKET").unwrap());
        let obstacle = obstacle(&socket);
        let raw = FunctionList::load();
        for flags in [OWN_THREAD, NO_THREADS] {
            permit(obstacle, 0);
            assert_eq!(raw.initialize(flags), CKR_OK);
            assert_eq!(raw.slots(false), []);
            let waiter = raw.waiter();
            assert!(waiter.recv_timeout(MOMENT).is_err());
            permit(obstacle, 0o700);
            let (code, slot) = waiter.recv_timeout(HANG).expect("the reader");
            assert_eq!(code, CKR_OK);
            assert_eq!(raw.open(slot).0, CKR_OK, "the id is good without a list");
            assert_eq!(raw.finalize(), CKR_OK);
        }
    });
}

#[test]
fn race_06_socket_without_access_appears_when_access_is_granted() {
    as_an_ordinary_user(|| closed_and_opened(|socket| socket));
}

#[test]
fn race_06_socket_in_a_closed_folder_appears_when_the_folder_is_opened() {
    as_an_ordinary_user(|| closed_and_opened(|socket| socket.parent().unwrap()));
}
