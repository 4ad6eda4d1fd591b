//! The knocks at all locks of a process, heard over one inotify group: the end of a group takes the kernel milliseconds, which
//! the next user of a reader would wait for; the end of a watch, microseconds.

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

/// The group.
#[derive(Debug)]
pub(super) struct ReleaseRequests {
    inotify: Arc<ForkClosed<OwnedFd>>,
    /// By watch descriptor: whether somebody has knocked at that lock since its holder last asked.
    requested: Mutex<BTreeMap<i32, bool>>,
}

/// One lock's watch, until it is dropped.
#[derive(Debug)]
pub(super) struct LockWatch {
    requests: Arc<ReleaseRequests>,
    watch: i32,
}

/// What was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReleaseReport {
    /// Somebody knocked at this lock.
    pub(crate) this_lock: bool,
    /// A knock at another lock of the process was taken from the descriptor, so that nobody is woken by it any more.
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

    /// Listens at the lock in the file `path`, which is listened at by nobody else of this process.
    pub(super) fn watch(self: &Arc<Self>, path: &Path) -> Result<LockWatch, Errno> {
        // Nobody takes its first knock for one of a lock that is gone.
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
    /// Whether somebody has knocked since it was last asked.
    pub(super) fn take_release_requests(&self) -> ReleaseReport {
        let mut report = self.requests.requested();
        let mut elsewhere = false;
        let mut buffer = [MaybeUninit::uninit(); 1024];
        let mut events = inotify::Reader::new(&self.requests.inotify, &mut buffer);
        // The kernel merges knocks that nobody has heard yet.
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

    /// Becomes readable when somebody knocks, at whichever lock of the process.
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
        // The file may be gone, and the watch with it.
        let _ = inotify::remove_watch(&self.requests.inotify, self.watch);
    }
}
