//! The program `virtual-card`, from outside.

#![allow(clippy::expect_used, reason = "helpers of a test fail loudly")]

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use claviger_hw_tests::provision::Issued;

struct Program(Child);

impl Program {
    /// Starts it and waits for its one line.
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_virtual-card"))
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n");
        Self(child)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Control(BufReader<UnixStream>);

impl Control {
    fn open(path: &Path) -> Self {
        Self(BufReader::new(
            UnixStream::connect(path).expect("the program listens"),
        ))
    }

    fn ask(&mut self, line: &str) -> String {
        writeln!(self.0.get_mut(), "{line}").expect("the program reads");
        let mut answer = String::new();
        self.0.read_line(&mut answer).expect("the program answers");
        answer.trim_end().to_owned()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of this test")
}

#[test]
fn its_control_socket_moves_the_card_counts_and_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (socket, control, log) = (path("reader"), path("control"), path("log"));
    let mut program = Program::start(&[
        "--socket",
        text(&socket),
        "--control",
        text(&control),
        "--log",
        text(&log),
        "--absent",
    ]);
    let mut control = Control::open(&control);
    assert!(control.ask("zero").starts_with("ok"));
    assert!(control.ask("insert").starts_with("ok 1"));
    assert!(control.ask("remove").starts_with("ok 1"));
    assert!(control.ask("reset").starts_with("ok 1"));
    assert_eq!(control.ask("mark half way"), "ok");
    let counts = control.ask("counts");
    assert!(counts.starts_with("apdus=0 command_bytes=0 "), "{counts}");
    assert!(
        counts.contains(" resets=1 ") && counts.contains(" insertions=1 removals=1 "),
        "{counts}"
    );
    assert_eq!(control.ask("jump"), "error \"jump\" is no command");
    assert!(
        std::fs::read_to_string(&log)
            .unwrap()
            .contains("# half way")
    );
    assert_eq!(control.ask("quit"), "ok");
    assert!(program.0.wait().unwrap().success());
    assert!(!socket.exists(), "it leaves no socket behind");
}

#[test]
fn a_card_kept_in_a_folder_is_provisioned_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let issue = |certificates: &str| {
        let certificates = path(certificates);
        let _program = Program::start(&[
            "--socket",
            text(&path("reader")),
            "--state",
            text(&path("card")),
            "--provision",
            "pgp3",
            "--certificates",
            text(&certificates),
        ]);
        Issued::read(&certificates).unwrap()
    };
    let first = issue("first");
    assert_eq!(first.names().collect::<Vec<_>>(), ["ca", "openpgp-03"]);
    assert_eq!(issue("second"), first);
}

#[test]
fn a_wrong_option_is_named_and_nothing_starts() {
    for (arguments, complaint) in [
        (&["--socket"][..], "--socket"),
        (&[][..], "--vpcd"),
        (
            &["--socket", "/nowhere/at/all", "--provision", "piv5"],
            "piv5",
        ),
        (&["--socket", "/nowhere/at/all", "--apps", "pvi"], "pvi"),
        (
            &[
                "--socket",
                "/nowhere/at/all",
                "--apps",
                "piv",
                "--provision",
                "both",
            ],
            "--apps",
        ),
        (&["--socket", "/nowhere/at/all"], "No such file"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_virtual-card"))
            .args(arguments)
            .output()
            .unwrap();
        assert!(!output.status.success());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(complaint), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}
