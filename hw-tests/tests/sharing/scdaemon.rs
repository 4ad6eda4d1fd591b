//! GnuPG's scdaemon with exclusive access, alternating with a session of the module on the same card.

use std::{
    env, fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use claviger_hw_tests::{
    client::{self, Output},
    fixture::{
        module_process::{
            Log, ModuleProcess, ServiceKind, code, eventually, in_module_process, key, log_in,
            promptly,
        },
        other_program::OtherProgram,
        piv_session::{HASH, PivSession},
    },
    paths,
    provision::CardProfile,
    skip,
};
use cryptoki::{error::RvError, mechanism::Mechanism};
use pcsc::Disposition;

const LIMIT: Duration = Duration::from_secs(60);

/// A GnuPG of the test's own; dropped, its daemons end.
struct GnuPg {
    home: PathBuf,
}

impl GnuPg {
    /// In the folder of the client's home, which is short enough for the names of its sockets.
    fn new() -> Self {
        let home = Path::new(&env::var_os("HOME").expect("a home")).join("gnupg");
        fs::DirBuilder::new().mode(0o700).create(&home).unwrap();
        // PC/SC instead of its own driver for USB readers; exclusive, as it does by default.
        fs::write(home.join("scdaemon.conf"), "disable-ccid\n").unwrap();
        Self { home }
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.args(arguments).env("GNUPGHOME", &self.home);
        client::run(&mut command, LIMIT)
    }

    /// Has scdaemon open the card and keep it.
    fn takes_the_card(&self) {
        // An agent whose scdaemon was killed takes a while to notice; until then it fails with a broken pipe.
        self.run("gpgconf", &["--kill", "gpg-agent"])
            .expect_success();
        let status = self.run("gpg", &["--batch", "--card-status"]);
        let status = status.expect_success();
        println!("gpg --card-status: {:?}", status.took);
        assert!(status.stdout.contains("D2760001240103040"), "{status}");
        assert!(OtherProgram::exclusive().is_none(), "scdaemon has it");
    }

    fn lets_the_card_go(&self) {
        self.run("gpgconf", &["--kill", "scdaemon"])
            .expect_success();
    }
}

impl Drop for GnuPg {
    fn drop(&mut self) {
        let _ = self.run("gpgconf", &["--kill", "all"]);
    }
}

/// A card with both applets over pcscd, for a client with a GnuPG of its own.
fn beside_scdaemon(body: impl FnOnce(&ModuleProcess, &GnuPg)) -> Option<Log> {
    let needed = [("gpg", "gnupg"), ("gpgconf", "gnupg")];
    for (program, package) in needed {
        if paths::program(program).is_none() {
            skip::because(&format!("{program} is not installed (Debian: {package})"));
            return None;
        }
    }
    if !scdaemon().is_file() {
        skip::because("scdaemon is not installed (Debian: scdaemon)");
        return None;
    }
    in_module_process(
        ServiceKind::Pcscd,
        CardProfile::both(),
        |_, _| {},
        |process| body(process, &GnuPg::new()),
    )
}

/// Where GnuPG has it.
fn scdaemon() -> PathBuf {
    let folder = Command::new("gpgconf")
        .args(["--list-dirs", "libexecdir"])
        .output()
        .expect("gpgconf runs");
    let folder = String::from_utf8(folder.stdout).expect("a path");
    Path::new(folder.trim()).join("scdaemon")
}

/// Waits until our module has let the card go.
fn idle() {
    eventually("the card to be let go", || {
        match OtherProgram::exclusive() {
            Some(other) => {
                other.close(Disposition::LeaveCard);
                true
            }
            None => false,
        }
    });
}

#[test]
fn gnupg_gets_a_card_that_has_no_login() {
    let log = beside_scdaemon(|process, gnupg| {
        let module = process.module();
        let session = process.session(&module);
        let open = key(&session, 4);
        let sign = || session.sign(&Mechanism::Ecdsa, open, &HASH);
        for _ in 0..2 {
            assert_eq!(sign().unwrap().len(), 64);
            idle();
            gnupg.takes_the_card();
            let refused = promptly("C_Sign beside scdaemon", sign);
            assert_eq!(code(refused), RvError::DeviceError);
            gnupg.lets_the_card_go();
            let signature = promptly("C_Sign after scdaemon", sign);
            assert_eq!(signature.unwrap().len(), 64);
        }
        idle();
        gnupg.takes_the_card();
        gnupg.lets_the_card_go();
        assert_eq!(process.pins(), 0);
        PivSession::of(process, module, session).still_works();
    });
    if let Some(log) = log {
        log.line(&["C_Sign", "gpgconf --kill scdaemon"]);
    }
}

#[test]
fn gnupg_gets_an_idle_card_and_the_login_survives() {
    let log = beside_scdaemon(|process, gnupg| {
        let signer = PivSession::new(process);
        for _ in 0..2 {
            idle();
            gnupg.takes_the_card();
            let refused = promptly("C_Sign beside scdaemon", || signer.sign());
            assert_eq!(code(refused), RvError::DeviceError);
            gnupg.lets_the_card_go();
            signer.still_works();
        }
        idle();
        gnupg.takes_the_card();
        gnupg.lets_the_card_go();
        signer.asks_for_each_pin();
    });
    if let Some(log) = log {
        log.line(&["C_Sign", "gpgconf --kill scdaemon"]);
    }
}

/// The applet that both want.
#[test]
fn gnupg_and_a_session_on_the_openpgp_token_take_turns() {
    beside_scdaemon(|process, gnupg| {
        let module = process.module();
        let slot = module.get_slots_with_token().unwrap().remove(1);
        let session = module.open_ro_session(slot).unwrap();
        session.find_objects(&[]).unwrap();
        idle();
        gnupg.takes_the_card();
        gnupg.lets_the_card_go();
        log_in(&session);
        let authentication = key(&session, 3);
        let sign = || session.sign(&Mechanism::Ecdsa, authentication, &HASH);
        assert_eq!(sign().unwrap().len(), 64);
        idle();
        gnupg.takes_the_card();
        gnupg.lets_the_card_go();
        let before = process.pins();
        assert_eq!(promptly("C_Sign", sign).unwrap().len(), 64);
        assert!(process.pins() <= before + 1, "one silent verification");
    });
}
