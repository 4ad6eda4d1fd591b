//! A pcscd of a test's own, with vsmartcard's virtual readers and no others.
//!
//! It runs in its own mount namespace, which needs no root where user namespaces are allowed. Its socket is in a folder of
//! the test, and clients find it by `PCSCLITE_CSOCK_NAME`. It does not see the readers of the machine. It ends with the
//! test process, even if that is killed.

#![allow(clippy::expect_used, clippy::panic, reason = "a harness fails loudly")]

mod activation;
mod port;
mod process;

use std::{
    fs,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use self::{
    activation::Activation,
    port::PortPair,
    process::{CurrentProcess, PCSCD_TIMEOUT, Process},
};
use super::{client, paths};

/// The variable from which libpcsclite takes the path of the socket.
pub const SOCKET_VARIABLE: &str = "PCSCLITE_CSOCK_NAME";
/// vsmartcard's reader driver.
const DRIVER: &str = "/usr/lib/pcsc/drivers/serial/libifdvpcd.so";

/// A running pcscd.
#[derive(Debug)]
pub struct Pcscd {
    folder: TempDir,
    ports: Vec<PortPair>,
    running: Arc<CurrentProcess>,
    starter: Starter,
}

/// What starts pcscd.
#[derive(Debug)]
enum Starter {
    /// The test, by [`Pcscd::begin`].
    Test,
    /// A client that connects, as with systemd. `None` while pcscd is stopped.
    Client(Option<Activation>),
}

impl Pcscd {
    /// Why this machine cannot run such a pcscd. Returns `None` if it can.
    #[must_use]
    pub fn obstacle() -> Option<&'static str> {
        static OBSTACLE: OnceLock<Option<String>> = OnceLock::new();
        OBSTACLE.get_or_init(|| find_obstacle().err()).as_deref()
    }

    /// Starts a pcscd with `readers` virtual readers, 8 at most, and waits until clients can connect.
    ///
    /// # Panics
    /// If pcscd does not start. The message contains its log. Also if there is an [`Pcscd::obstacle`].
    #[must_use]
    pub fn start(readers: usize) -> Self {
        Self::started_by(Starter::Test, readers)
    }

    /// As [`Pcscd::start`], with socket activation as systemd does it: the socket always exists, and a client that connects
    /// starts pcscd, also after a crash.
    ///
    /// # Panics
    /// As [`Pcscd::start`].
    #[must_use]
    pub fn start_by_socket(readers: usize) -> Self {
        Self::started_by(Starter::Client(None), readers)
    }

    fn started_by(starter: Starter, readers: usize) -> Self {
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
            running: Arc::default(),
            starter,
        };
        pcscd.begin();
        pcscd
    }

    /// The port for the card of reader `n`.
    ///
    /// # Panics
    /// If there is no such reader.
    #[must_use]
    pub fn port(&self, n: usize) -> u16 {
        self.ports.get(n).expect("a reader of this pcscd").first()
    }

    /// The name of reader `n` at pcscd. vsmartcard adds a second, empty reader `... 01` to each.
    #[must_use]
    pub fn reader_name(&self, n: usize) -> String {
        format!("{} 00 00", friendly_name(n))
    }

    /// The path of the socket, for [`SOCKET_VARIABLE`].
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("run/pcscd.comm")
    }

    /// The log of pcscd.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Ends pcscd and removes its files. Clients lose their connections.
    ///
    /// # Panics
    /// If pcscd does not end.
    pub fn stop(&mut self) {
        if let Starter::Client(activation) = &mut self.starter {
            *activation = None;
        }
        let process = self.running.process().take();
        let ended = process.is_none_or(Process::end);
        let _ = fs::remove_dir_all(self.folder.path().join("run"));
        let _ = fs::create_dir(self.folder.path().join("run"));
        assert!(
            ended || std::thread::panicking(),
            "pcscd had to be killed\n{}",
            self.log()
        );
    }

    /// Kills pcscd, so that its socket and its PID file remain, as after a crash. It runs again after [`Pcscd::begin`], or with
    /// [`Pcscd::start_by_socket`] when a client connects.
    ///
    /// # Panics
    /// If no pcscd runs.
    pub fn crash(&self) {
        let process = self.running.process().take();
        process.expect("a running pcscd").crash();
    }

    /// Suspends the process of pcscd. Clients can still connect, but get no reply.
    ///
    /// # Panics
    /// If no pcscd runs.
    pub fn suspend(&self) {
        let process = self.running.process();
        process.as_ref().expect("a running pcscd").suspend();
    }

    /// Resumes pcscd after [`Pcscd::suspend`].
    ///
    /// # Panics
    /// If no pcscd runs.
    pub fn resume(&self) {
        let process = self.running.process();
        process.as_ref().expect("a running pcscd").resume();
    }

    /// Stops pcscd and starts it with the same readers and the same socket. Waits until clients can connect.
    ///
    /// # Panics
    /// If pcscd does not start. The message contains its log.
    pub fn restart(&mut self) {
        self.stop();
        self.begin();
    }

    /// Starts pcscd where none runs. Does not remove the files of its predecessor. Waits until clients can connect.
    ///
    /// # Panics
    /// If pcscd does not start. The message contains its log.
    pub fn begin(&mut self) {
        let folder = self.folder.path().to_owned();
        let socket = self.socket();
        match &mut self.starter {
            Starter::Test => *self.running.process() = Some(start_in(&folder, None)),
            Starter::Client(activation) => {
                activation.get_or_insert_with(|| {
                    let start = move |socket| start_in(&folder, Some(socket));
                    Activation::start(&socket, Arc::clone(&self.running), start)
                });
            }
        }
        self.wait_for_service();
    }

    fn wait_for_service(&self) {
        let deadline = Instant::now() + PCSCD_TIMEOUT;
        while UnixStream::connect(self.socket()).is_err() || self.running.process().is_none() {
            let gone = self
                .running
                .process()
                .as_ref()
                .is_some_and(|process| !process.is_running());
            assert!(
                !gone && Instant::now() < deadline,
                "pcscd did not start\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until pcscd reports `present` cards.
    ///
    /// # Panics
    /// After a timeout. The message contains the reported readers.
    pub fn wait_for_cards(&self, present: usize) {
        let deadline = Instant::now() + PCSCD_TIMEOUT;
        loop {
            let mut list = Command::new("opensc-tool");
            list.arg("--list-readers")
                .env(SOCKET_VARIABLE, self.socket());
            let output = client::run(&mut list, PCSCD_TIMEOUT);
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
}

impl Drop for Pcscd {
    fn drop(&mut self) {
        self.stop();
    }
}

fn start_in(folder: &Path, socket: Option<OwnedFd>) -> Process {
    let namespace = namespace().expect("mount namespaces are allowed");
    Process::start(folder, namespace, socket)
}

fn friendly_name(n: usize) -> String {
    format!("Claviger virtual reader {n}")
}

/// Writes the configuration of one reader. The driver keeps its state per library, so each reader gets its own copy.
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

/// The `unshare` command with the options that work here: alone for root, with a user namespace for other users. Returns
/// `None` if neither works.
#[must_use]
pub fn namespace() -> Option<Command> {
    const FORMS: [&[&str]; 2] = [&["--mount"], &["--mount", "--map-root-user"]];
    static FORM: OnceLock<Option<&[&str]>> = OnceLock::new();
    let works = |form: &&&[&str]| {
        let mut trial = Command::new("unshare");
        trial
            .args(**form)
            .args(["mount", "-t", "tmpfs", "none", "/run"]);
        client::run(&mut trial, PCSCD_TIMEOUT).success()
    };
    let form = (*FORM.get_or_init(|| FORMS.iter().find(works).copied()))?;
    let mut command = Command::new("unshare");
    command.args(form);
    Some(command)
}
