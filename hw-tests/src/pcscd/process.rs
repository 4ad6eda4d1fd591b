//! The process of a pcscd in a mount namespace.

use std::{
    fs,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::super::{client, paths};

/// The script that runs pcscd. `$1` is the folder, `$2` is pcscd. Standard input is a pipe from the test: when it closes, the
/// script kills pcscd and ends after it, when the ports are free again. With a `$3`, standard output is the socket at which
/// pcscd listens, as systemd passes it (sd_listen_fds(3)).
const SCRIPT: &str = r#"
set -e
mount -t tmpfs none /run
mkdir /run/pcscd
mount --bind "$1/run" /run/pcscd
mount -t tmpfs none /usr/lib/pcsc/drivers
if [ $# -gt 2 ]; then
    sh -c 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"' sh \
        "$2" --foreground --auto-exit --config "$1/readers" 3>&1 >> "$1/log" 2>&1 &
else
    "$2" --foreground --config "$1/readers" >> "$1/log" 2>&1 &
fi
echo $! > "$1/pid"
cat
kill -9 $!
wait $! || true
"#;

/// Timeout for pcscd to start or to end.
pub(super) const PCSCD_TIMEOUT: Duration = Duration::from_secs(20);
/// Interval at which the state of the process is polled.
const POLL: Duration = Duration::from_millis(1);

/// The pcscd that runs now, if there is one.
#[derive(Debug, Default)]
pub(super) struct CurrentProcess(Mutex<Option<Process>>);

impl CurrentProcess {
    pub(super) fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pcscd and the shell that started it. Both end with the test process, even if that is killed.
#[derive(Debug)]
pub(super) struct Process {
    shell: Child,
    pid_file: PathBuf,
}

impl Process {
    /// Starts pcscd in `folder`. `namespace` is `unshare` with its options. If there is a `socket`, pcscd listens at it and
    /// makes none.
    pub(super) fn start(folder: &Path, mut namespace: Command, socket: Option<OwnedFd>) -> Self {
        let pid_file = folder.join("pid");
        let _ = fs::remove_file(&pid_file);
        let pcscd = paths::program("pcscd").expect("pcscd is installed");
        namespace
            .args(["sh", "-c", SCRIPT, "sh"])
            .arg(folder)
            .arg(pcscd)
            .args(socket.as_ref().map(|_| "activated"));
        let shell = namespace
            .stdin(Stdio::piped())
            .stdout(socket.map_or_else(Stdio::null, Stdio::from))
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("unshare starts");
        Self { shell, pid_file }
    }

    /// Returns whether pcscd runs or is suspended. Its shell lives longer.
    pub(super) fn is_running(&self) -> bool {
        !client::exits_within(&self.shell, Duration::ZERO)
            && self
                .pid()
                .is_some_and(|pid| state(pid).is_some_and(|state| state != 'Z'))
    }

    /// Ends pcscd. Returns false if it had to be killed with its shell.
    pub(super) fn end(mut self) -> bool {
        drop(self.shell.stdin.take());
        client::exits_within(&self.shell, PCSCD_TIMEOUT)
    }

    /// Kills pcscd, so that its socket and its PID file remain, as after a crash.
    ///
    /// The next pcscd does not start while the process of the PID file exists, even as a zombie. So this waits until the shell
    /// has reaped it.
    pub(super) fn crash(self) {
        let pid = self.signal(Signal::KILL);
        await_state(pid, |state| state.is_none());
    }

    /// Suspends pcscd. Its socket still accepts connections, but clients get no reply.
    pub(super) fn suspend(&self) {
        let pid = self.signal(Signal::STOP);
        await_state(pid, |state| state == Some('T'));
    }

    /// Resumes a suspended pcscd.
    pub(super) fn resume(&self) {
        let pid = self.signal(Signal::CONT);
        await_state(pid, |state| state != Some('T'));
    }

    fn signal(&self, signal: Signal) -> Pid {
        let pid = self.pid().expect("pcscd was started");
        kill_process(pid, signal).expect("pcscd is there");
        pid
    }

    /// The process ID of pcscd. Waits until the shell has written it.
    fn pid(&self) -> Option<Pid> {
        let deadline = Instant::now() + PCSCD_TIMEOUT;
        loop {
            let text = fs::read_to_string(&self.pid_file).unwrap_or_default();
            if let Some(line) = text.strip_suffix('\n') {
                return line.parse().ok().and_then(Pid::from_raw);
            }
            if client::exits_within(&self.shell, POLL) || Instant::now() > deadline {
                return None;
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.shell), Signal::KILL);
        let _ = self.shell.wait();
    }
}

/// The state of a process (proc(5)). Returns `None` if there is no such process.
fn state(pid: Pid) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn await_state(pid: Pid, wanted: impl Fn(Option<char>) -> bool) {
    let deadline = Instant::now() + PCSCD_TIMEOUT;
    while !wanted(state(pid)) {
        assert!(Instant::now() < deadline, "a signal had no effect on pcscd");
        std::thread::sleep(POLL);
    }
}
