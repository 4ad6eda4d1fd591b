//! A pcscd of a test's own, with vsmartcard's virtual readers and no other.
//!
//! It runs in its own mount namespace (no root needed where user namespaces are allowed): its socket lies in a
//! folder of the test, which clients find by `PCSCLITE_CSOCK_NAME`; readers of the machine are out of its sight.
//! It ends with the test process, however that ends.

#![allow(clippy::expect_used, clippy::panic, reason = "a harness fails loudly")]

mod port;

use std::{
    fs,
    os::unix::{net::UnixStream, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use self::port::PortPair;
use super::{client, paths};

/// The variable libpcsclite takes the socket's path from.
pub const SOCKET_VARIABLE: &str = "PCSCLITE_CSOCK_NAME";
/// vsmartcard's reader driver.
const DRIVER: &str = "/usr/lib/pcsc/drivers/serial/libifdvpcd.so";
/// How long pcscd may take to begin or to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// `$1` is the folder, `$2` pcscd. Standard input is a pipe from the test: its end is pcscd's end.
const SCRIPT: &str = r#"
set -e
mount -t tmpfs none /run
mkdir /run/pcscd
mount --bind "$1/run" /run/pcscd
mount -t tmpfs none /usr/lib/pcsc/drivers
"$2" --foreground --config "$1/readers" > "$1/log" 2>&1 &
cat
kill -9 $!
"#;

/// A running pcscd.
#[derive(Debug)]
pub struct Pcscd {
    folder: TempDir,
    ports: Vec<PortPair>,
    process: Option<Child>,
}

impl Pcscd {
    /// Why this machine cannot have one; `None` when it can.
    #[must_use]
    pub fn obstacle() -> Option<&'static str> {
        static OBSTACLE: OnceLock<Option<String>> = OnceLock::new();
        OBSTACLE.get_or_init(|| find_obstacle().err()).as_deref()
    }

    /// Starts a pcscd with `readers` virtual readers, 8 at most, and waits until it serves clients.
    ///
    /// # Panics
    /// With its log when it does not, and where there is an [`Pcscd::obstacle`].
    #[must_use]
    pub fn start(readers: usize) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("pcscd")
            .tempdir()
            .expect("a temporary folder");
        let ports: Vec<PortPair> = (0..readers).map(|_| PortPair::take()).collect();
        fs::create_dir(folder.path().join("run")).expect("a folder");
        fs::create_dir(folder.path().join("readers")).expect("a folder");
        for (n, ports) in ports.iter().enumerate() {
            describe_reader(folder.path(), n, ports.first());
        }
        let mut pcscd = Self {
            folder,
            ports,
            process: None,
        };
        pcscd.restart();
        pcscd
    }

    /// Where the card of reader `n` connects to.
    ///
    /// # Panics
    /// When there is no such reader.
    #[must_use]
    pub fn port(&self, n: usize) -> u16 {
        self.ports.get(n).expect("a reader of this pcscd").first()
    }

    /// What pcscd calls reader `n`, which must be one of [`Pcscd::start`]'s. Each has an empty twin, `... 01`.
    #[must_use]
    pub fn reader_name(&self, n: usize) -> String {
        format!("{} 00 00", friendly_name(n))
    }

    /// The socket, for [`SOCKET_VARIABLE`].
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("run/pcscd.comm")
    }

    /// What pcscd had to say.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Kills pcscd; clients lose their connections.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop(&mut self) {
        let Some(mut process) = self.process.take() else {
            return;
        };
        drop(process.stdin.take());
        let ended = client::exits_within(&process, PATIENCE);
        let _ = kill_process_group(Pid::from_child(&process), Signal::KILL);
        let _ = process.wait();
        let _ = fs::remove_dir_all(self.folder.path().join("run"));
        let _ = fs::create_dir(self.folder.path().join("run"));
        assert!(
            ended || std::thread::panicking(),
            "pcscd had to be killed\n{}",
            self.log()
        );
    }

    /// Starts pcscd again, with the same readers and the same socket, and waits until it serves clients.
    ///
    /// # Panics
    /// With its log when it does not.
    pub fn restart(&mut self) {
        self.stop();
        self.process = Some(self.spawn());
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(self.socket()).is_err() {
            let gone = self
                .process
                .as_ref()
                .is_some_and(|process| client::exits_within(process, Duration::ZERO));
            assert!(
                !gone && Instant::now() < deadline,
                "pcscd did not start\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until pcscd tells its clients of `present` cards in all.
    ///
    /// # Panics
    /// With the readers it tells of, when it takes too long.
    pub fn wait_for_cards(&self, present: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut list = Command::new("opensc-tool");
            list.arg("--list-readers")
                .env(SOCKET_VARIABLE, self.socket());
            let output = client::run(&mut list, PATIENCE);
            if output
                .stdout
                .lines()
                .filter(|line| line.split_whitespace().nth(1) == Some("Yes"))
                .count()
                == present
            {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{present} cards expected\n{output}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn spawn(&self) -> Child {
        let pcscd = paths::program("pcscd").expect("pcscd is installed");
        let mut command = namespace().expect("mount namespaces are allowed");
        command
            .args(["sh", "-c", SCRIPT, "sh"])
            .arg(self.folder.path())
            .arg(pcscd);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.process_group(0).spawn().expect("unshare starts")
    }
}

impl Drop for Pcscd {
    fn drop(&mut self) {
        self.stop();
    }
}

fn friendly_name(n: usize) -> String {
    format!("Claviger virtual reader {n}")
}

/// The driver keeps its state per library, so each reader has a copy of its own.
fn describe_reader(folder: &Path, n: usize, port: u16) {
    let driver = folder.join(format!("driver-{n}.so"));
    fs::copy(DRIVER, &driver).expect("the driver can be copied");
    let entry = format!(
        "FRIENDLYNAME \"{}\"\nDEVICENAME /dev/null:0x{port:X}\nLIBPATH {}\nCHANNELID 0x{port:X}\n",
        friendly_name(n),
        driver.display()
    );
    fs::write(folder.join("readers").join(format!("reader-{n}")), entry).expect("a file");
}

fn find_obstacle() -> Result<(), String> {
    for (program, package) in [
        ("pcscd", "pcscd"),
        ("opensc-tool", "opensc"),
        ("unshare", "util-linux"),
    ] {
        paths::program(program)
            .ok_or_else(|| format!("{program} is not installed (Debian: {package})"))?;
    }
    if !Path::new(DRIVER).exists() {
        return Err(format!(
            "{DRIVER} is not installed (Debian: vsmartcard-vpcd)"
        ));
    }
    namespace()
        .map(drop)
        .ok_or_else(|| "this user may not make mount namespaces (unshare --mount)".to_owned())
}

/// `unshare` with the options that work here: plain for root, with a user namespace for anybody else.
fn namespace() -> Option<Command> {
    const FORMS: [&[&str]; 2] = [&["--mount"], &["--mount", "--map-root-user"]];
    static FORM: OnceLock<Option<&[&str]>> = OnceLock::new();
    let works = |form: &&&[&str]| {
        let mut trial = Command::new("unshare");
        trial
            .args(**form)
            .args(["mount", "-t", "tmpfs", "none", "/run"]);
        client::run(&mut trial, PATIENCE).success()
    };
    let form = (*FORM.get_or_init(|| FORMS.iter().find(works).copied()))?;
    let mut command = Command::new("unshare");
    command.args(form);
    Some(command)
}
