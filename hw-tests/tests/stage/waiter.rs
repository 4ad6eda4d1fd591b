//! A thread that is blocked in C_WaitForSlotEvent.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::Duration,
};

use cryptoki_sys::{CK_RV, CK_SLOT_ID};

use super::raw::Raw;

pub struct Waiter {
    thread: JoinHandle<(CK_RV, CK_SLOT_ID)>,
    task: PathBuf,
}

impl Waiter {
    /// Begins to wait, and returns once the thread is blocked.
    pub fn blocked(raw: Raw) -> Self {
        let (sender, receiver) = mpsc::channel();
        let thread = thread::spawn(move || {
            sender.send(this_task()).unwrap();
            raw.wait(0)
        });
        let task = receiver.recv().unwrap();
        until_asleep(&task);
        Self { thread, task }
    }

    /// Whether it sleeps, and not because it has come back; it may be awake for a moment to look at what changed.
    pub fn is_blocked(&self) -> bool {
        until_asleep(&self.task);
        !self.thread.is_finished()
    }

    /// What it came back with.
    pub fn outcome(self) -> (CK_RV, CK_SLOT_ID) {
        self.thread.join().unwrap()
    }
}

/// The calling thread, for [`until_asleep`].
pub fn this_task() -> PathBuf {
    Path::new("/proc").join(fs::read_link("/proc/thread-self").unwrap())
}

/// Returns when a thread sleeps at two looks a moment apart: blocked, not merely waiting for a lock on its way
/// in. One that has ended sleeps as well.
pub fn until_asleep(task: &Path) {
    while !(is_asleep(task) && {
        thread::sleep(Duration::from_millis(1));
        is_asleep(task)
    }) {
        thread::sleep(Duration::from_micros(100));
    }
}

fn is_asleep(task: &Path) -> bool {
    let stat = fs::read_to_string(task.join("stat"));
    stat.is_ok_and(|stat| stat.contains(") S ")) || !task.exists()
}
