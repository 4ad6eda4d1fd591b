//! Receives the release requests for all locks of a process over one inotify group. Closing a group takes the kernel milliseconds,
//! for which the next user of the reader would wait. Removing a watch takes microseconds.

use std::{
    collections::BTreeMap,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    io::Errno,
};

use crate::fork_closed::ForkClosed;

/// The inotify group.
#[derive(Debug)]
pub(super) struct ReleaseRequests {
    inotify: Arc<ForkClosed<OwnedFd>>,
    /// By watch descriptor: whether the release of the lock was requested since the last query of its holder.
    requested: Mutex<BTreeMap<i32, bool>>,
}

/// The watch of one lock. Dropping it removes the watch.
#[derive(Debug)]
pub(super) struct LockWatch {
    requests: Arc<ReleaseRequests>,
    watch: i32,
}

/// Which locks were requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReleaseReport {
    /// This lock was requested.
    pub(crate) this_lock: bool,
    /// A request for another lock of the process was read, so that the descriptor is no longer readable for it.
    pub(crate) other_lock: bool,
}

impl ReleaseRequests {
    pub(super) fn new() -> Result<Arc<Self>, Errno> {
        let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
        let inotify = ForkClosed::open(|| inotify::init(flags))?;
        Ok(Arc::new(Self {
            inotify: Arc::new(inotify),
            requested: Mutex::default(),
        }))
    }

    fn requested(&self) -> MutexGuard<'_, BTreeMap<i32, bool>> {
        self.requested
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches the lock in the file `path`. No other watch of this process has it.
    pub(super) fn watch(self: &Arc<Self>, path: &Path) -> Result<LockWatch, Errno> {
        // The mutex is held, so that the first request is not attributed to a removed lock.
        let mut report = self.requested();
        let watch = inotify::add_watch(&self.inotify, path, WatchFlags::ATTRIB)?;
        report.insert(watch, false);
        Ok(LockWatch {
            requests: Arc::clone(self),
            watch,
        })
    }
}

impl LockWatch {
    /// Takes the requests since the last call.
    pub(super) fn take_release_requests(&self) -> ReleaseReport {
        let mut report = self.requests.requested();
        let mut elsewhere = false;
        let mut buffer = [MaybeUninit::uninit(); 1024];
        let mut events = inotify::Reader::new(&self.requests.inotify, &mut buffer);
        // The kernel merges requests that were not read yet.
        while let Ok(event) = events.next() {
            let is_lost = event.events().contains(ReadFlags::QUEUE_OVERFLOW);
            let is_knock = event.events().contains(ReadFlags::ATTRIB);
            for (watch, knocked) in report.iter_mut() {
                if is_lost || (is_knock && *watch == event.wd()) {
                    *knocked = true;
                    elsewhere |= *watch != self.watch;
                }
            }
        }
        let here = report.get_mut(&self.watch).map(std::mem::take);
        ReleaseReport {
            this_lock: here.unwrap_or(false),
            other_lock: elsewhere,
        }
    }

    /// Becomes readable when any lock of the process is requested.
    pub(super) fn descriptor(&self) -> Arc<ForkClosed<OwnedFd>> {
        Arc::clone(&self.requests.inotify)
    }
}

impl Drop for LockWatch {
    fn drop(&mut self) {
        // In a child the group is the parent's.
        if self.requests.inotify.is_inherited() {
            return;
        }
        let mut report = self.requests.requested();
        report.remove(&self.watch);
        // The file, and the watch with it, may have been removed.
        let _ = inotify::remove_watch(&self.requests.inotify, self.watch);
    }
}
