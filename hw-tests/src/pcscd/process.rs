//! One pcscd as a process, from its start in a mount namespace to its end, be that a crash.

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

/// `$1` is the folder, `$2` pcscd. Standard input is a pipe from the test: its end is pcscd's end, and the script's
/// comes when the ports are free again. Standard output is the socket to listen at, if there is a `$3`: then pcscd
/// is started as systemd does it (sd_listen_fds(3)).
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

/// How long pcscd may take to begin or to end.
pub(super) const PCSCD_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for the kernel to tell what a signal did.
const POLL: Duration = Duration::from_millis(1);

/// The pcscd that runs now, if one does.
#[derive(Debug, Default)]
pub(super) struct CurrentProcess(Mutex<Option<Process>>);

impl CurrentProcess {
    pub(super) fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pcscd and the shell that started it. It ends with the test process, however that ends.
#[derive(Debug)]
pub(super) struct Process {
    shell: Child,
    pid_file: PathBuf,
}

impl Process {
    /// Starts pcscd in `folder`; `namespace` is `unshare` with its options, `socket` what pcscd shall listen at
    /// instead of a socket that it makes.
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

    /// Whether pcscd is there, frozen or not. Its shell outlives it.
    pub(super) fn is_running(&self) -> bool {
        !client::exits_within(&self.shell, Duration::ZERO)
            && self
                .pid()
                .is_some_and(|pid| state(pid).is_some_and(|state| state != 'Z'))
    }

    /// Ends pcscd; `false` when it had to be killed with its shell.
    pub(super) fn end(mut self) -> bool {
        drop(self.shell.stdin.take());
        client::exits_within(&self.shell, PCSCD_TIMEOUT)
    }

    /// Kills pcscd alone, as a crash does: its socket and its pid file stay behind.
    ///
    /// The next pcscd refuses to start while the process of that file is there, were it a zombie, so the shell is
    /// waited for to reap it.
    pub(super) fn crash(self) {
        let pid = self.signal(Signal::KILL);
        await_state(pid, |state| state.is_none());
    }

    /// Stops pcscd in its tracks: its socket still takes connections, and nobody answers.
    pub(super) fn suspend(&self) {
        let pid = self.signal(Signal::STOP);
        await_state(pid, |state| state == Some('T'));
    }

    /// Lets a frozen pcscd go on.
    pub(super) fn resume(&self) {
        let pid = self.signal(Signal::CONT);
        await_state(pid, |state| state != Some('T'));
    }

    fn signal(&self, signal: Signal) -> Pid {
        let pid = self.pid().expect("pcscd was started");
        kill_process(pid, signal).expect("pcscd is there");
        pid
    }

    /// pcscd's own number, as its shell writes it down in a moment.
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

/// A process's state as proc(5) has it; `None` when it is gone.
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
