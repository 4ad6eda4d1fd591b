//! Socket activation, as systemd's pcscd.socket does it: holds the socket, and starts pcscd when a client connects and none
//! runs.

use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt as _, net::UnixListener},
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::process::{CurrentProcess, Process};

/// Interval at which connections and the end of pcscd are polled.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// The socket and the thread that watches it. Dropping it ends the thread. The socket then closes with pcscd.
#[derive(Debug)]
pub(super) struct Activation {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Activation {
    /// Listens at `socket`. `start` starts a pcscd with its descriptor. The process is stored in `running`.
    pub(super) fn start(
        socket: &Path,
        running: Arc<CurrentProcess>,
        start: impl Fn(OwnedFd) -> Process + Send + 'static,
    ) -> Self {
        let listener = UnixListener::bind(socket).expect("a socket");
        fs::set_permissions(socket, fs::Permissions::from_mode(0o666)).expect("a socket's mode");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let watch = move || {
            while !stopped.load(Ordering::Acquire) {
                let mut process = running.process();
                if !process.as_ref().is_some_and(Process::is_running) && is_awaited(&listener) {
                    *process = Some(start(listener.try_clone().expect("a descriptor").into()));
                }
                drop(process);
                std::thread::sleep(POLL_INTERVAL);
            }
        };
        Self {
            stop,
            thread: Some(std::thread::spawn(watch)),
        }
    }
}

impl Drop for Activation {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Returns whether a client waits for its connection to be accepted.
fn is_awaited(listener: &UnixListener) -> bool {
    let mut descriptors = [PollFd::new(listener, PollFlags::IN)];
    matches!(poll(&mut descriptors, Some(&Timespec::default())), Ok(ready) if ready > 0)
}
