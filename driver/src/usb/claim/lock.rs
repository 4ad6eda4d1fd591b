//! Lock files. A process holds a reader's lock while it claims the reader, and records the state it leaves.
//!
//! One file per reader, locked by flock(2). A process that wants the reader touches the file, and tries again; the holder sees
//! that by inotify. The lock is released explicitly, because a child that is forked meanwhile may have the file open, too. pcscd
//! and scdaemon do not use these locks: the claim of the USB interface excludes them.

use std::{
    io::{Read as _, Seek as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::{
    fs::{FlockOperation, Mode, OFlags, Timestamps, UTIME_NOW},
    io::Errno,
    time::Timespec,
};

pub(crate) use super::release_requests::ReleaseReport;
use super::{
    record::{LockRecord, MAX_RECORD},
    release_requests::{LockWatch, ReleaseRequests},
};
use crate::fork_closed::ForkClosed;

/// The folder with the locks of one user. Without a folder nothing is locked.
#[derive(Debug)]
pub(crate) struct LockFolder {
    folder: Option<PathBuf>,
    /// Receives the release requests for all locks. Made for the first lock.
    release_requests: Mutex<Option<Arc<ReleaseRequests>>>,
}

impl LockFolder {
    /// Opens the first of `folders` that only this user can write to. Makes it if needed.
    pub(crate) fn open_first(folders: &[PathBuf]) -> Self {
        let folder = folders.iter().find(|folder| is_private(folder)).cloned();
        if folder.is_none() {
            tracing::debug!(
                "usb: no folder for lock files among {folders:?}; readers are used without lock files"
            );
        }
        Self {
            folder,
            release_requests: Mutex::default(),
        }
    }

    /// Reads the record of the lock `name` without the lock. Returns `None` for a record that is just being written.
    pub(crate) fn peek(&self, name: &str) -> Option<LockRecord> {
        let path = self.folder.as_ref()?.join(name);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(path, flags, Mode::empty()).ok()?;
        read(&mut std::fs::File::from(file))
    }

    /// Tries the lock `name` once. Grants it if there is no folder, or if files cannot be locked. With `request_release`,
    /// requests that the holder releases the lock.
    pub(crate) fn try_lock(&self, name: &str, request_release: bool) -> Option<ReaderLock> {
        let Some(folder) = &self.folder else {
            return Some(ReaderLock::none());
        };
        self.lock_file(&folder.join(name), request_release)
            .unwrap_or_else(|errno| {
                tracing::warn!(
                    "usb: lock file {name} cannot be used ({errno}); the reader is used without it"
                );
                Some(ReaderLock::none())
            })
    }

    fn lock_file(&self, path: &Path, request_release: bool) -> Result<Option<ReaderLock>, Errno> {
        let Some(file) = try_lock_file(path, request_release)? else {
            return Ok(None);
        };
        // Without a watch, a process that requests the lock waits until it is released for another reason.
        let watch = self
            .release_requests()
            .and_then(|request_release| request_release.watch(path));
        Ok(Some(ReaderLock {
            watch: watch.ok(),
            file: Some(file),
        }))
    }

    fn release_requests(&self) -> Result<Arc<ReleaseRequests>, Errno> {
        let mut request_release: MutexGuard<'_, _> = self
            .release_requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(request_release) = &*request_release {
            return Ok(Arc::clone(request_release));
        }
        Ok(Arc::clone(request_release.insert(ReleaseRequests::new()?)))
    }
}

/// Makes the folder if needed. Returns whether only this user can write to it.
fn is_private(folder: &Path) -> bool {
    let _ = std::fs::DirBuilder::new().mode(0o700).create(folder);
    let user = rustix::process::geteuid().as_raw();
    std::fs::symlink_metadata(folder)
        .is_ok_and(|found| found.is_dir() && found.uid() == user && found.mode() & 0o022 == 0)
}

/// The lock of one reader. Dropping it releases it.
#[derive(Debug)]
pub(crate) struct ReaderLock {
    watch: Option<LockWatch>,
    file: Option<ForkClosed<std::fs::File>>,
}

impl ReaderLock {
    const fn none() -> Self {
        Self {
            watch: None,
            file: None,
        }
    }

    /// Takes the release requests since the last call.
    pub(crate) fn take_release_requests(&self) -> ReleaseReport {
        let nothing = ReleaseReport {
            this_lock: false,
            other_lock: false,
        };
        self.watch
            .as_ref()
            .map_or(nothing, LockWatch::take_release_requests)
    }

    /// Becomes readable when [`ReaderLock::take_release_requests`] may return one.
    pub(crate) fn descriptor(&self) -> Option<Arc<ForkClosed<OwnedFd>>> {
        self.watch.as_ref().map(LockWatch::descriptor)
    }

    /// The record that the last holder left.
    pub(crate) fn record(&mut self) -> Option<LockRecord> {
        read(self.file.as_mut()?)
    }

    /// Writes the record. The record is dropped if it cannot be written.
    pub(crate) fn write(&mut self, record: &LockRecord) {
        let Some(file) = &mut self.file else {
            return;
        };
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(record.encode().as_bytes()));
        if let Err(error) = written {
            tracing::warn!(
                "usb: the state of a reader cannot be written to its lock file: {error}"
            );
            let _ = file.set_len(0);
        }
    }
}

impl Drop for ReaderLock {
    fn drop(&mut self) {
        // Before the next holder can watch it.
        self.watch = None;
        // In a child the lock is the parent's.
        if let Some(file) = self.file.as_ref().filter(|file| !file.is_inherited()) {
            let _ = rustix::fs::flock(file, FlockOperation::Unlock);
        }
    }
}

fn read(file: &mut std::fs::File) -> Option<LockRecord> {
    let mut bytes = Vec::with_capacity(MAX_RECORD);
    file.rewind().ok()?;
    file.take(MAX_RECORD as u64).read_to_end(&mut bytes).ok()?;
    LockRecord::parse(&bytes)
}

const NOW: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: UTIME_NOW,
};

/// Setting both times is an attribute change, which is a release request. Writing the record is none.
const TOUCH: Timestamps = Timestamps {
    last_access: NOW,
    last_modification: NOW,
};

/// Tries once to lock the file `path`.
fn try_lock_file(
    path: &Path,
    request_release: bool,
) -> Result<Option<ForkClosed<std::fs::File>>, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let open = || rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR);
    let file = ForkClosed::open(|| open().map(std::fs::File::from))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => {
            if request_release {
                let _ = rustix::fs::futimens(&file, &TOUCH);
            }
            Ok(None)
        }
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use claviger_apdu::Atr;

    use super::*;
    use crate::fork_closed::tests::{in_child, wait_for};

    /// A folder of its own for a test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str) -> Self {
            let path = std::env::temp_dir().join(format!("{}-lock.{test}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            Self(path)
        }

        fn locks(&self) -> LockFolder {
            LockFolder::open_first(std::slice::from_ref(&self.0))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn lock_has_one_holder_who_receives_release_requests() {
        let folder = Folder::new("one");
        let (mine, theirs) = (folder.locks(), folder.locks());
        let held = mine.try_lock("3-1.0", true).unwrap();
        assert!(!held.take_release_requests().this_lock);
        assert!(theirs.try_lock("3-1.0", false).is_none());
        assert!(
            !held.take_release_requests().this_lock,
            "no release was requested"
        );
        assert!(theirs.try_lock("3-1.0", true).is_none());
        assert!(held.take_release_requests().this_lock);
        assert!(!held.take_release_requests().this_lock, "taken once");
        assert!(theirs.try_lock("3-2.0", true).is_some(), "another reader");
        drop(held);
        assert!(theirs.try_lock("3-1.0", true).is_some());
    }

    #[test]
    fn release_requests_for_all_locks_of_a_process_use_one_descriptor() {
        let folder = Folder::new("several");
        let (mine, theirs) = (folder.locks(), folder.locks());
        let [one, other] = ["3-1.0", "3-2.0"].map(|name| mine.try_lock(name, false).unwrap());
        let same = |lock: &ReaderLock| {
            Arc::ptr_eq(&lock.descriptor().unwrap(), &one.descriptor().unwrap())
        };
        assert!(same(&other));
        assert!(theirs.try_lock("3-2.0", true).is_none());
        let (here, elsewhere) = (true, true);
        // The first caller reads the event from the descriptor and keeps it for the other.
        assert_eq!(
            one.take_release_requests(),
            ReleaseReport {
                this_lock: false,
                other_lock: elsewhere
            }
        );
        assert_eq!(
            other.take_release_requests(),
            ReleaseReport {
                this_lock: here,
                other_lock: false
            }
        );
        assert_eq!(
            other.take_release_requests(),
            ReleaseReport {
                this_lock: false,
                other_lock: false
            }
        );
        drop(other);
        let again = mine.try_lock("3-2.0", false).unwrap();
        assert!(same(&again));
        assert!(
            !again.take_release_requests().this_lock,
            "the earlier requester has had the lock since"
        );
        assert!(theirs.try_lock("3-2.0", true).is_none());
        assert!(again.take_release_requests().this_lock && !one.take_release_requests().this_lock);
    }

    #[test]
    fn next_lock_holder_finds_the_record() {
        let folder = Folder::new("record");
        let locks = folder.locks();
        let mut held = locks.try_lock("3-1.0", true).unwrap();
        assert_eq!(held.record(), None);
        let mut record = LockRecord {
            instance: "1000000 3-117".to_owned(),
            use_count: u64::MAX,
            atrs: vec![Some(Atr::parse(&[0x3B, 0x01, 0x11]).unwrap())],
            sequence: 4,
            last_transfer: Some(7),
            was_released: true,
        };
        held.write(&record);
        assert!(
            !held.take_release_requests().this_lock,
            "writing the record requests nothing"
        );
        drop(held);
        let mut held = locks.try_lock("3-1.0", true).unwrap();
        assert_eq!(held.record().as_ref(), Some(&record));
        record.atrs = vec![None];
        record.use_count = 0;
        held.write(&record);
        assert_eq!(
            held.record(),
            Some(record),
            "nothing of the longer one is left"
        );
    }

    #[test]
    fn lock_folder_that_others_can_write_to_is_not_used() {
        let folder = Folder::new("rights");
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder.0)
            .unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(&folder.0, open).unwrap();
        assert!(folder.locks().folder.is_none());
        let elsewhere = Folder::new("rights.link");
        let target = Folder::new("rights.target");
        assert!(is_private(&target.0));
        std::os::unix::fs::symlink(&target.0, &elsewhere.0).unwrap();
        assert!(!is_private(&elsewhere.0), "a link of whoever made it");
        let _ = std::fs::remove_file(&elsewhere.0);
        let second = LockFolder::open_first(&[folder.0.clone(), target.0.clone()]);
        assert_eq!(second.folder.as_ref(), Some(&target.0));
    }

    #[test]
    fn without_a_folder_every_lock_is_granted_and_nothing_recorded() {
        let locks = LockFolder::open_first(&[PathBuf::from("/nonexistent/claviger")]);
        let mut held = locks.try_lock("3-1.0", true).unwrap();
        held.write(&LockRecord {
            instance: String::new(),
            use_count: 1,
            atrs: Vec::new(),
            sequence: 0,
            last_transfer: None,
            was_released: true,
        });
        assert_eq!(held.record(), None);
        assert!(!held.take_release_requests().this_lock && held.descriptor().is_none());
    }

    #[test]
    fn released_lock_is_free_although_a_child_has_its_file_open() {
        let folder = Folder::new("child");
        let locks = folder.locks();
        let held = locks.try_lock("3-1.0", true).unwrap();
        let child = held.file.as_ref().unwrap().try_clone().unwrap();
        drop(held);
        assert!(locks.try_lock("3-1.0", true).is_some());
        drop(child);
    }

    #[test]
    fn b14_a_child_that_outlives_its_parent_keeps_no_lock() {
        use std::io::{pipe, read_to_string};
        let folder = Folder::new("orphan");
        let (events, mut teller) = pipe().unwrap();
        let parent = in_child(|| {
            let held = folder.locks().try_lock("3-1.0", true);
            let parent = rustix::process::getpid();
            in_child(|| {
                while rustix::process::getppid() == Some(parent) {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                let again = folder.locks().try_lock("3-1.0", true);
                let said = [held.is_some(), again.is_some()];
                let _ = write!(teller, "{said:?}");
            });
            // It ends without letting go of anything.
            std::mem::forget(held);
        });
        wait_for(parent);
        drop(teller);
        assert_eq!(read_to_string(events).unwrap(), "[true, true]");
    }
}
