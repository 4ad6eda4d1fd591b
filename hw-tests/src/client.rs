//! Foreign programs, each with a time limit: a client that hangs is a result, not a hung test.

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

/// What became of a client.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Whether it was killed at its time limit.
    pub timed_out: bool,
    /// Standard output, lossily.
    pub stdout: String,
    /// Standard error, lossily.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

impl Output {
    /// Whether it exited by itself with 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.code == Some(0) && !self.timed_out
    }

    /// The output of a client that must succeed.
    ///
    /// # Panics
    /// With everything it said, when it did not.
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

/// Runs `command` without input, for `limit` at most; then it and all it started is killed.
///
/// # Panics
/// When it cannot be started.
#[must_use]
pub fn run(command: &mut Command, limit: Duration) -> Output {
    run_with_input(command, &[], limit)
}

/// As [`run`], with `input` on standard input.
///
/// # Panics
/// When it cannot be started.
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
    // Before the child is reaped, so that its number is still its own; grandchildren hold the pipes.
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

/// Waits without reaping, and without waking before the exit: what is measured beside it is not disturbed.
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
