//! The socket of a connection held a second time, so that a call which waits on it can be ended from outside.
//!
//! libpcsclite waits for pcscd without a limit, and SCardCancel reaches one of its calls only, when pcscd takes
//! part. A socket that was shut down ends each of them at once, stays so, and needs nobody's help.

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

/// A connection's socket.
#[derive(Debug)]
pub(crate) struct ShutdownHandle {
    socket: OwnedFd,
    cut: AtomicBool,
}

impl ShutdownHandle {
    /// Ends whatever waits on the connection, now and later.
    pub(crate) fn shut_down(&self) {
        self.cut.store(true, Ordering::SeqCst);
        // A connection that is over already is none to end.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }

    /// Whether it was ended from this side.
    pub(crate) fn was_shut_down(&self) -> bool {
        self.cut.load(Ordering::SeqCst)
    }

    /// Whether the connection is over, from either side.
    pub(crate) fn is_closed(&self) -> bool {
        let mut polled = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let now = Timespec::default();
        matches!(rustix::event::poll(&mut polled, Some(&now)), Ok(ready) if ready > 0)
    }
}

/// Every open line of a backend.
#[derive(Debug, Default)]
pub(crate) struct ShutdownHandles(Mutex<Vec<Weak<ShutdownHandle>>>);

impl ShutdownHandles {
    fn lines(&self) -> MutexGuard<'_, Vec<Weak<ShutdownHandle>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a connection's socket in sight while the line lives.
    pub(crate) fn add(&self, socket: OwnedFd) -> Arc<ShutdownHandle> {
        let line = Arc::new(ShutdownHandle {
            socket,
            cut: AtomicBool::new(false),
        });
        let mut lines = self.lines();
        lines.retain(|line| line.strong_count() > 0);
        lines.push(Arc::downgrade(&line));
        line
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.lines().iter().any(|line| line.strong_count() > 0)
    }

    /// Ends every call on every connection.
    pub(crate) fn shut_down(&self) {
        let lines: Vec<Arc<ShutdownHandle>> =
            self.lines().iter().filter_map(Weak::upgrade).collect();
        lines.iter().for_each(|line| line.shut_down());
    }
}

/// The sockets of this process that lead to a server at some path, at one moment.
///
/// A library that hides its socket gives itself away: the one that was not there before is its.
#[derive(Debug)]
pub(crate) struct KnownSockets {
    server: &'static str,
    /// A number may be used again; the inode may not while the socket lives.
    inodes: Vec<u64>,
}

impl KnownSockets {
    /// Those to a server whose path ends with `server`.
    pub(crate) fn to(server: &'static str) -> Self {
        let inodes = open_files().filter_map(|fd| leads_to(fd, server)).collect();
        Self { server, inodes }
    }

    /// The one socket that is new since; `None` when there are several, of which one is somebody else's.
    pub(crate) fn find_new(&self, lines: &ShutdownHandles) -> Option<Arc<ShutdownHandle>> {
        let is_new = |fd: &RawFd| {
            leads_to(*fd, self.server).is_some_and(|inode| !self.inodes.contains(&inode))
        };
        let new: Vec<RawFd> = open_files().filter(is_new).collect();
        let [fd] = new.as_slice() else {
            return None;
        };
        let socket = hold(*fd)?;
        // Between the two looks the number may have become another file's.
        let inode = inode_to(socket.as_fd(), self.server)?;
        (!self.inodes.contains(&inode)).then(|| lines.add(socket))
    }
}

fn open_files() -> impl Iterator<Item = RawFd> {
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// The inode of a socket to the server, if that is what `fd` is.
fn leads_to(fd: RawFd, server: &str) -> Option<u64> {
    // SAFETY: only asked about; a number closed meanwhile is answered with an error, one used again with the
    // truth about another file.
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

fn hold(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: only copied; the copy is looked at before it is used.
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

    /// A server's path that no other test of this process uses.
    fn server(name: &'static str) -> (UnixListener, std::path::PathBuf) {
        let path = std::env::temp_dir().join(format!("{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        (UnixListener::bind(&path).unwrap(), path)
    }

    #[test]
    fn new_socket_to_a_server_is_found_and_its_shutdown_ends_a_wait() {
        let (listener, path) = server("line.found");
        let _old = UnixStream::connect(&path).unwrap();
        let (_other, elsewhere) = server("line.else");
        let before = KnownSockets::to("line.found");
        let _stranger = UnixStream::connect(elsewhere).unwrap();
        let mut ours = UnixStream::connect(&path).unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let lines = ShutdownHandles::default();
        let line = before.find_new(&lines).unwrap();
        assert!(!line.is_closed());
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| ours.read(&mut [0]));
            lines.shut_down();
            assert_eq!(waiter.join().unwrap().unwrap(), 0, "the end of the stream");
        });
        assert!(line.is_closed() && line.was_shut_down());
        drop(listener);
    }

    #[test]
    fn two_new_sockets_are_ambiguous_and_none_is_taken() {
        let (_listener, path) = server("line.two");
        let before = KnownSockets::to("line.two");
        let _one = UnixStream::connect(&path).unwrap();
        let _two = UnixStream::connect(&path).unwrap();
        assert!(before.find_new(&ShutdownHandles::default()).is_none());
    }

    #[test]
    fn connection_closed_by_the_server_is_closed_but_was_not_shut_down() {
        let (listener, path) = server("line.gone");
        let before = KnownSockets::to("line.gone");
        let _ours = UnixStream::connect(&path).unwrap();
        let line = before.find_new(&ShutdownHandles::default()).unwrap();
        assert!(!line.is_closed());
        drop(listener.accept().unwrap());
        assert!(line.is_closed() && !line.was_shut_down());
    }
}
