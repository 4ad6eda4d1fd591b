//! Runs foreign programs with a time limit. A client that hangs gives a result and does not block the test.

#![allow(clippy::expect_used, clippy::panic, reason = "a harness fails loudly")]

use std::{
    fmt,
    io::{Read, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

/// The result of a client.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// The exit code, or `None` if a signal ended the client.
    pub code: Option<i32>,
    /// Whether the client was killed at its time limit.
    pub timed_out: bool,
    /// Standard output. Invalid UTF-8 is replaced.
    pub stdout: String,
    /// Standard error. Invalid UTF-8 is replaced.
    pub stderr: String,
    /// The running time.
    pub took: Duration,
}

impl Output {
    /// Returns whether the client exited with 0 within its time limit.
    #[must_use]
    pub fn success(&self) -> bool {
        self.code == Some(0) && !self.timed_out
    }

    /// Returns the output of a client that must succeed.
    ///
    /// # Panics
    /// If the client failed. The message holds its output.
    pub fn expect_success(self) -> Self {
        assert!(self.success(), "{self}");
        self
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            command,
            code,
            timed_out,
            stdout,
            stderr,
            took,
        } = self;
        let end = match (timed_out, code) {
            (true, _) => "was killed at its time limit".to_owned(),
            (false, Some(code)) => format!("exited with {code}"),
            (false, None) => "was ended by a signal".to_owned(),
        };
        writeln!(f, "{command}\n{end} after {took:?}")?;
        write!(f, "--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}

/// Runs `command` without input. Kills its whole process group when it exits, or after `limit`.
///
/// # Panics
/// If the command cannot be started.
#[must_use]
pub fn run(command: &mut Command, limit: Duration) -> Output {
    run_with_input(command, &[], limit)
}

/// As [`run`], with `input` on standard input.
///
/// # Panics
/// If the command cannot be started.
#[must_use]
pub fn run_with_input(command: &mut Command, input: &[u8], limit: Duration) -> Output {
    let start = Instant::now();
    let line = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap_or_else(|error| panic!("{line}: {error}"));
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let (stdin, input) = (child.stdin.take(), input.to_vec());
    let writer = std::thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(&input)));
    let timed_out = !exits_within(&child, limit);
    let took = start.elapsed();
    // The child is not reaped yet, so its process ID is still its own. Grandchildren would keep the pipes open.
    let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
    let status = child.wait().expect("a child can be waited for");
    let _ = writer.join();
    let text = |pipe: JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&pipe.join().unwrap_or_default()).into_owned()
    };
    Output {
        command: line,
        code: status.code(),
        timed_out,
        stdout: text(stdout),
        stderr: text(stderr),
        took,
    }
}

/// Waits for the exit without reaping the child. Returns whether it exited within `limit`. Does not poll, so it disturbs no
/// measurement.
pub(crate) fn exits_within(child: &Child, limit: Duration) -> bool {
    let exit = pidfd_open(Pid::from_child(child), PidfdFlags::empty());
    let exit = exit.expect("pidfd_open(2) of Linux 5.3");
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).expect("a limit in seconds");
        match poll(&mut [PollFd::new(&exit, PollFlags::IN)], Some(&left)) {
            Ok(exits) => return exits > 0,
            Err(errno) => assert_eq!(errno, Errno::INTR),
        }
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}
