//! Duplicates a connection's socket, so that another thread can end a blocked call by shutting the socket down.
//!
//! libpcsclite waits for pcscd without a timeout. SCardCancel ends only one kind of call, and needs pcscd's
//! cooperation. Shutting the socket down ends every kind of call at once, and later calls too.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    net::{Shutdown, SocketAddrUnix},
};

/// The duplicate of a connection's socket.
#[derive(Debug)]
pub(crate) struct ShutdownHandle {
    socket: OwnedFd,
    is_shut_down: AtomicBool,
}

impl ShutdownHandle {
    /// Ends every running and later call on the connection.
    pub(crate) fn shut_down(&self) {
        self.is_shut_down.store(true, Ordering::SeqCst);
        // An error means that the connection is closed already.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }

    /// Returns whether this process shut the connection down.
    pub(crate) fn was_shut_down(&self) -> bool {
        self.is_shut_down.load(Ordering::SeqCst)
    }

    /// Returns whether either side has closed the connection.
    pub(crate) fn is_closed(&self) -> bool {
        let mut polled = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let now = Timespec::default();
        matches!(rustix::event::poll(&mut polled, Some(&now)), Ok(ready) if ready > 0)
    }
}

/// The shutdown handles of all open connections of a backend.
#[derive(Debug, Default)]
pub(crate) struct ShutdownHandles(Mutex<Vec<Weak<ShutdownHandle>>>);

impl ShutdownHandles {
    fn handles(&self) -> MutexGuard<'_, Vec<Weak<ShutdownHandle>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a connection's socket until the returned handle is dropped.
    pub(crate) fn add(&self, socket: OwnedFd) -> Arc<ShutdownHandle> {
        let handle = Arc::new(ShutdownHandle {
            socket,
            is_shut_down: AtomicBool::new(false),
        });
        let mut handles = self.handles();
        handles.retain(|handle| handle.strong_count() > 0);
        handles.push(Arc::downgrade(&handle));
        handle
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self
            .handles()
            .iter()
            .any(|handle| handle.strong_count() > 0)
    }

    /// Shuts every connection down.
    pub(crate) fn shut_down(&self) {
        let handles: Vec<Arc<ShutdownHandle>> =
            self.handles().iter().filter_map(Weak::upgrade).collect();
        handles.iter().for_each(|handle| handle.shut_down());
    }
}

/// The sockets of this process that are connected to a server at some path, at one moment.
///
/// libpcsclite does not tell which socket it opened. A socket that did not exist before the call is that socket.
#[derive(Debug)]
pub(crate) struct KnownSockets {
    server: &'static str,
    /// A descriptor number may be reused. The inode is unique while the socket exists.
    inodes: Vec<u64>,
}

impl KnownSockets {
    /// Lists the sockets to a server whose path ends with `server`.
    pub(crate) fn to(server: &'static str) -> Self {
        let inodes = open_files().filter_map(|fd| inode_of(fd, server)).collect();
        Self { server, inodes }
    }

    /// Returns the only socket that is new since. Returns `None` if several are new, because another thread opened
    /// one of them.
    pub(crate) fn find_new(&self, handles: &ShutdownHandles) -> Option<Arc<ShutdownHandle>> {
        let is_new = |fd: &RawFd| {
            inode_of(*fd, self.server).is_some_and(|inode| !self.inodes.contains(&inode))
        };
        let new: Vec<RawFd> = open_files().filter(is_new).collect();
        let [fd] = new.as_slice() else {
            return None;
        };
        let socket = duplicate(*fd)?;
        // Since the listing, the number may have become another file's.
        let inode = inode_to(socket.as_fd(), self.server)?;
        (!self.inodes.contains(&inode)).then(|| handles.add(socket))
    }
}

fn open_files() -> impl Iterator<Item = RawFd> {
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Returns the inode of `fd` if it is a socket to the server.
fn inode_of(fd: RawFd, server: &str) -> Option<u64> {
    // SAFETY: `fd` is only queried. If it was closed meanwhile, the query fails. If it was reused, the query
    // describes the other file.
    inode_to(unsafe { BorrowedFd::borrow_raw(fd) }, server)
}

fn inode_to(fd: BorrowedFd<'_>, server: &str) -> Option<u64> {
    let peer = rustix::net::getpeername(fd).ok()??;
    let peer = SocketAddrUnix::try_from(peer).ok()?;
    let path = peer.path_bytes()?;
    let path = path.strip_suffix(b"\0").unwrap_or(path);
    if !path.ends_with(server.as_bytes()) {
        return None;
    }
    Some(rustix::fs::fstat(fd).ok()?.st_ino)
}

fn duplicate(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: `fd` is only duplicated, and the duplicate is checked before use.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_dupfd_cloexec(fd, 0).ok()
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        os::unix::net::{UnixListener, UnixStream},
        time::Duration,
    };

    use super::*;

    /// Makes a server at a path that no other test of this process uses.
    fn server(name: &'static str) -> (UnixListener, std::path::PathBuf) {
        let path = std::env::temp_dir().join(format!("{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        (UnixListener::bind(&path).unwrap(), path)
    }

    #[test]
    fn new_socket_to_a_server_is_found_and_its_shutdown_ends_a_wait() {
        let (listener, path) = server("handle.found");
        let _old = UnixStream::connect(&path).unwrap();
        let (_other, elsewhere) = server("handle.else");
        let before = KnownSockets::to("handle.found");
        let _stranger = UnixStream::connect(elsewhere).unwrap();
        let mut ours = UnixStream::connect(&path).unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let handles = ShutdownHandles::default();
        let handle = before.find_new(&handles).unwrap();
        assert!(!handle.is_closed());
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| ours.read(&mut [0]));
            handles.shut_down();
            assert_eq!(waiter.join().unwrap().unwrap(), 0, "the end of the stream");
        });
        assert!(handle.is_closed() && handle.was_shut_down());
        drop(listener);
    }

    #[test]
    fn two_new_sockets_are_ambiguous_and_none_is_taken() {
        let (_listener, path) = server("handle.two");
        let before = KnownSockets::to("handle.two");
        let _one = UnixStream::connect(&path).unwrap();
        let _two = UnixStream::connect(&path).unwrap();
        assert!(before.find_new(&ShutdownHandles::default()).is_none());
    }

    #[test]
    fn connection_closed_by_the_server_is_closed_but_was_not_shut_down() {
        let (listener, path) = server("handle.gone");
        let before = KnownSockets::to("handle.gone");
        let _ours = UnixStream::connect(&path).unwrap();
        let handle = before.find_new(&ShutdownHandles::default()).unwrap();
        assert!(!handle.is_closed());
        drop(listener.accept().unwrap());
        assert!(handle.is_closed() && !handle.was_shut_down());
    }
}
