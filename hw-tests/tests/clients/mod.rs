//! What the tests of foreign clients share: a rule is stated once and holds over both transports.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "shared by several test programs; helpers of a test fail loudly"
)]

pub mod background;
pub mod listing;
pub mod openssl;
pub mod public_key;

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use claviger_hw_tests::{
    client::Output,
    paths,
    provision::{KeyAlgorithm, OpenPgpPlan, PIN, PivKey, PivPlan, Plan},
    rig::Rig,
    skip,
};

/// A program and the Debian package that has it.
pub type Needed = (&'static str, &'static str);

/// Two tests of each rule: `over_the_socket_reader::RULE` and `over_pcscd::RULE`.
#[macro_export]
macro_rules! over_both_transports {
    ($needed:expr; $($rule:ident: $plan:expr;)*) => {
        mod over_the_socket_reader {
            #[allow(unused_imports, reason = "not every list names a plan of its own")]
            use super::*;
            $(
                #[test]
                fn $rule() {
                    if clients::all_installed(&$needed) {
                        super::$rule(&claviger_hw_tests::rig::Rig::socket($plan));
                    }
                }
            )*
        }

        mod over_pcscd {
            #[allow(unused_imports, reason = "not every list names a plan of its own")]
            use super::*;
            $(
                #[test]
                fn $rule() {
                    if clients::all_installed(&$needed) {
                        if let Some(rig) = claviger_hw_tests::rig::Rig::pcscd($plan) {
                            super::$rule(&rig);
                        }
                    }
                }
            )*
        }
    };
}

/// One test of each rule, over the socket reader: for rules in which the transport has no part.
#[macro_export]
macro_rules! over_the_socket {
    ($needed:expr; $($rule:ident: $plan:expr;)*) => {
        mod over_the_socket_reader {
            #[allow(unused_imports, reason = "not every list names a plan of its own")]
            use super::*;
            $(
                #[test]
                fn $rule() {
                    if clients::all_installed(&$needed) {
                        super::$rule(&claviger_hw_tests::rig::Rig::socket($plan));
                    }
                }
            )*
        }
    };
}

/// Whether the programs are here; without one of them the running test is recorded as skipped.
pub fn all_installed(needed: &[Needed]) -> bool {
    let missing = needed
        .iter()
        .find(|(program, _)| paths::program(program).is_none());
    if let Some((program, package)) = missing {
        skip::because(&format!("{program} is not installed (Debian: {package})"));
    }
    missing.is_none()
}

/// A PIV card with one key, in 9A.
pub fn piv_with(algorithm: KeyAlgorithm) -> Plan {
    Plan::piv(PivPlan::authentication(algorithm))
}

/// A PIV card with one key, in 9D.
pub fn piv_key_management(algorithm: KeyAlgorithm) -> Plan {
    let keys = vec![PivKey::new(0x9D, algorithm)];
    Plan::piv(PivPlan { keys })
}

/// An OpenPGP card with three keys of one kind.
pub fn openpgp_with(algorithm: KeyAlgorithm) -> Plan {
    Plan::openpgp(OpenPgpPlan {
        keys: Some([algorithm; 3]),
    })
}

/// The serial numbers of the tokens of a card with serial number 1: part of the CHUID's GUID, and manufacturer
/// and serial number of the OpenPGP application identifier.
pub const PIV_SERIAL: &str = "2d70697600000001";
/// See [`PIV_SERIAL`].
pub const OPENPGP_SERIAL: &str = "000f00000001";

/// The module under test in a client of the rig's card.
pub struct Clients<'a> {
    /// The card and the way to it.
    pub rig: &'a Rig,
    module: PathBuf,
    /// The module's settings, instead of none.
    settings: Option<PathBuf>,
}

impl<'a> Clients<'a> {
    pub fn of(rig: &'a Rig) -> Self {
        Self {
            rig,
            module: paths::module_path(),
            settings: None,
        }
    }

    /// The same clients with another module.
    pub fn with_module(rig: &'a Rig, module: PathBuf) -> Self {
        Self {
            rig,
            module,
            settings: None,
        }
    }

    /// Clients of the rig's card whose module has these settings, in `claviger.toml`.
    pub fn with_settings(rig: &'a Rig, settings: &str) -> Self {
        let clients = Self::of(rig);
        Self {
            settings: Some(clients.file("claviger.toml", settings)),
            ..clients
        }
    }

    pub fn module(&self) -> &Path {
        &self.module
    }

    /// A file of the test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.rig.folder().join(name)
    }

    /// A file of the test with this content.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).expect("a file of the test");
        path
    }

    pub fn run(&self, command: &mut Command) -> Output {
        self.rig.run(command)
    }

    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.rig.command(program);
        if let Some(settings) = &self.settings {
            command.env("CLAVIGER_CONFIG", settings);
        }
        command
    }

    pub fn pkcs11_tool<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Output {
        let mut tool = self.command("pkcs11-tool");
        tool.arg("--module").arg(&self.module).args(arguments);
        self.run(&mut tool)
    }

    /// The same, logged in.
    pub fn pkcs11_tool_logged_in(&self, arguments: &[&str]) -> Output {
        self.pkcs11_tool(&[&["--login", "--pin", PIN], arguments].concat())
    }

    /// `p11tool`, which never asks: the PIN is in its environment, or nowhere.
    pub fn p11tool(&self, pin: Option<&str>, arguments: &[&str]) -> Output {
        let mut tool = self.command("p11tool");
        tool.arg("--provider").arg(&self.module).arg("--batch");
        tool.args(arguments).env_remove("GNUTLS_PIN");
        if let Some(pin) = pin {
            tool.env("GNUTLS_PIN", pin);
        }
        self.run(&mut tool)
    }
}
