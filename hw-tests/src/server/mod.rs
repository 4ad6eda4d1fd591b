//! The server of the socket reader: a [`Reader`] on a Unix socket, as `docs/socket-reader.md` specifies it.
//!
//! ```no_run
//! use claviger_hw_tests::{card::{CardConfig, VirtualCard}, reader::Reader, server::SocketServer};
//! let reader = Reader::new("Virtual reader", VirtualCard::power_up(CardConfig::default())?);
//! let server = SocketServer::start("/tmp/reader.sock", &reader)?;
//! reader.remove();
//! drop(server);
//! # Ok::<(), std::io::Error>(())
//! ```

mod connection;

use std::{
    fs, io,
    net::Shutdown,
    os::unix::{
        fs::FileTypeExt as _,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    thread::JoinHandle,
};

use self::connection::Connection;
use crate::reader::{Reader, Stop};

/// Serves until it is dropped. Then the socket is removed, its connections are closed, and its threads have ended.
#[derive(Debug)]
pub struct SocketServer {
    path: PathBuf,
    reader: Reader,
    stop: Stop,
    listener: UnixListener,
    acceptor: Option<JoinHandle<()>>,
}

impl SocketServer {
    /// Listens at `path`. Replaces a socket at which no server listens.
    ///
    /// # Errors
    /// If the socket cannot be made, or if another server listens there.
    pub fn start(path: impl Into<PathBuf>, reader: &Reader) -> io::Result<Self> {
        let path = path.into();
        remove_stale(&path)?;
        let listener = UnixListener::bind(&path)?;
        let stop = Stop::default();
        let acceptor = Acceptor {
            listener: listener.try_clone()?,
            reader: reader.clone(),
            stop: stop.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("socket-reader".into())
            .spawn(move || acceptor.run())?;
        Ok(Self {
            path,
            reader: reader.clone(),
            stop,
            listener,
            acceptor: Some(thread),
        })
    }

    /// Path of the socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketServer {
    fn drop(&mut self) {
        self.reader.stop(&self.stop);
        // Wakes the acceptor, even if the path was removed.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.acceptor.take() {
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.path);
    }
}

fn remove_stale(path: &Path) -> io::Result<()> {
    if !path
        .symlink_metadata()
        .is_ok_and(|found| found.file_type().is_socket())
    {
        return Ok(());
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Ok(()),
    }
}

struct Acceptor {
    listener: UnixListener,
    reader: Reader,
    stop: Stop,
}

impl Acceptor {
    fn run(self) {
        let mut connections: Vec<(UnixStream, JoinHandle<()>)> = Vec::new();
        while let Ok((stream, _)) = self.listener.accept() {
            if self.stop.is_set() {
                break;
            }
            connections.retain(|(_, thread)| !thread.is_finished());
            if let Ok(connection) = self.serve(stream) {
                connections.push(connection);
            }
        }
        for (stream, thread) in connections {
            let _ = stream.shutdown(Shutdown::Both);
            let _ = thread.join();
        }
    }

    fn serve(&self, stream: UnixStream) -> io::Result<(UnixStream, JoinHandle<()>)> {
        let control = stream.try_clone()?;
        let connection = Connection::new(stream, self.reader.clone(), self.stop.clone())?;
        let thread = std::thread::Builder::new()
            .name("socket-user".into())
            .spawn(move || connection.run())?;
        Ok((control, thread))
    }
}
