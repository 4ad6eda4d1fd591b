//! Reports changes at the paths of some files, without polling.

use std::{
    ffi::{OsStr, OsString},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    io::Errno,
};

/// Attempts to find the nearest existing folder while other programs make and remove folders.
const MAX_ROUNDS: usize = 32;

/// Watches the names of some files in their folders, or in the nearest existing folder above.
///
/// A `PathWatch` reports one change. After the change, or when the set of files differs, make a new one. It reports
/// every change after [`PathWatch::new`], so open the files after that call.
#[derive(Debug)]
pub(crate) struct PathWatch {
    inotify: Option<OwnedFd>,
    awaited: Vec<(i32, OsString)>,
    needs_polling: bool,
}

impl PathWatch {
    pub(crate) fn new<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Self {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok();
        let mut watch = Self {
            needs_polling: inotify.is_none(),
            inotify,
            awaited: Vec::new(),
        };
        for path in paths {
            watch.add(path);
        }
        watch
    }

    /// Returns whether some path cannot be watched (no descriptor left, no permission to read its folder). The caller
    /// must then check that path from time to time.
    pub(crate) fn needs_polling(&self) -> bool {
        self.needs_polling
    }

    /// Returns a descriptor that becomes readable when [`PathWatch::changed`] may return true.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(AsFd::as_fd)
    }

    /// Reads the pending events. Returns whether one of them concerns a watched path.
    pub(crate) fn changed(&self) -> bool {
        let Some(inotify) = &self.inotify else {
            return false;
        };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(inotify, &mut buffer);
        let mut changed = false;
        // Other files of the folder cause events too. The kernel's queue bounds their number.
        loop {
            match events.next() {
                Ok(event) => {
                    changed |= self.concerns(event.wd(), event.events(), event.file_name());
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return changed,
                Err(_) => return true,
            }
        }
    }

    fn concerns(&self, watch: i32, what: ReadFlags, name: Option<&std::ffi::CStr>) -> bool {
        let lost = ReadFlags::DELETE_SELF
            | ReadFlags::MOVE_SELF
            | ReadFlags::UNMOUNT
            | ReadFlags::IGNORED
            | ReadFlags::QUEUE_OVERFLOW;
        let named = |(awaited, file): &(i32, OsString)| {
            *awaited == watch && name.is_some_and(|name| OsStr::from_bytes(name.to_bytes()) == file)
        };
        what.intersects(lost) || self.awaited.iter().any(named)
    }

    fn add(&mut self, path: &Path) {
        let Some(inotify) = &self.inotify else {
            return;
        };
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        for _ in 0..MAX_ROUNDS {
            let Some(found) = nearest(inotify, &path) else {
                self.needs_polling = true;
                return;
            };
            self.awaited.push((found.watch, found.name));
            self.needs_polling |= found.unreadable;
            // A folder that was made after the search but before the watch on its parent would be missed.
            if found.folder_complete || found.unreadable || !found.below.is_dir() {
                return;
            }
        }
        self.needs_polling = true;
    }
}

/// The nearest folder above a path that can be watched.
struct WatchedFolder {
    watch: i32,
    /// The name to watch for in the folder.
    name: OsString,
    /// The path of that name.
    below: PathBuf,
    /// Whether the folder is the one that directly contains the path.
    folder_complete: bool,
    /// Whether a nearer folder exists that this process may not read.
    unreadable: bool,
}

fn nearest(inotify: &OwnedFd, path: &Path) -> Option<WatchedFolder> {
    let flags = WatchFlags::CREATE
        | WatchFlags::MOVED_TO
        | WatchFlags::ATTRIB
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR;
    let mut unreadable = false;
    let mut below = path;
    while let (Some(folder), Some(name)) = (below.parent(), below.file_name()) {
        match inotify::add_watch(inotify, folder, flags) {
            Ok(watch) => {
                let folder_complete = below == path;
                let (name, below) = (name.to_owned(), below.to_owned());
                return Some(WatchedFolder {
                    watch,
                    name,
                    below,
                    folder_complete,
                    unreadable,
                });
            }
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(Errno::ACCESS) => unreadable = true,
            Err(_) => return None,
        }
        below = folder;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;
    use crate::wait::{StopFlag, wait_readable};

    fn folder(name: &str) -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("claviger-path-watch-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn is_reported(watch: &PathWatch) -> bool {
        let deadline = std::time::Instant::now() + Duration::from_millis(200);
        let descriptor = watch.descriptor().unwrap();
        wait_readable(&[descriptor], &StopFlag::new(), Some(deadline)).unwrap()[0]
            && watch.changed()
    }

    #[test]
    fn file_created_or_moved_in_is_reported() {
        let folder = folder("appears");
        let path = folder.join("socket");
        let watch = PathWatch::new([path.as_path()]);
        assert!(!watch.needs_polling());
        fs::write(&path, "").unwrap();
        assert!(is_reported(&watch));
        fs::rename(&path, folder.join("other")).unwrap();
        let watch = PathWatch::new([path.as_path()]);
        fs::rename(folder.join("other"), &path).unwrap();
        assert!(is_reported(&watch));
    }

    #[test]
    fn other_files_are_not_reported() {
        let folder = folder("others");
        let watch = PathWatch::new([folder.join("socket").as_path()]);
        fs::write(folder.join("another"), "").unwrap();
        assert!(!is_reported(&watch));
    }

    #[test]
    fn missing_folders_are_watched_one_by_one_as_they_appear() {
        let folder = folder("missing");
        let path = folder.join("one/two/socket");
        let watch = PathWatch::new([path.as_path()]);
        fs::create_dir(folder.join("one")).unwrap();
        assert!(is_reported(&watch));
        let watch = PathWatch::new([path.as_path()]);
        fs::create_dir(folder.join("one/two")).unwrap();
        assert!(is_reported(&watch));
        let watch = PathWatch::new([path.as_path()]);
        fs::write(&path, "").unwrap();
        assert!(is_reported(&watch));
    }

    #[test]
    fn removed_folder_is_reported() {
        let folder = folder("goes");
        let watch = PathWatch::new([folder.join("socket").as_path()]);
        fs::remove_dir(&folder).unwrap();
        assert!(is_reported(&watch));
    }

    #[test]
    fn second_of_two_files_in_one_folder_is_reported() {
        let folder = folder("two");
        let (one, two) = (folder.join("one"), folder.join("two"));
        let watch = PathWatch::new([one.as_path(), two.as_path()]);
        fs::write(&two, "").unwrap();
        assert!(is_reported(&watch));
    }
}
