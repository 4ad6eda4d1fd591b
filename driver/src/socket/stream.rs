//! A connection to a socket reader's server. It sends and receives whole frames, each with a deadline.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::Instant,
};

use claviger_apdu::{TransportError, TransportErrorKind};
use rustix::{
    event::PollFlags,
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType},
};

use super::{
    frame::{FrameError, Reply, Request, VERSION},
    frame_buffer::FrameBuffer,
};
use crate::wait::wait_one;

/// The longest name or refusal of a server that is shown to a person.
const MAX_TEXT: usize = 200;

/// The most reads in a row, so that a server which sends without end cannot block the watch.
const MAX_READS: usize = 64;

/// Why a connection is unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum StreamError {
    #[error("the server did not reply in time")]
    TimedOut,
    #[error("the server closed the connection")]
    Closed,
    #[error("the server sent a malformed frame: {0}")]
    Frame(#[from] FrameError),
    #[error("the server sent a reply out of order")]
    OutOfOrder,
    #[error("the server uses protocol version {0}, this driver uses version {VERSION}")]
    Version(u8),
    #[error("no server listens there ({0})")]
    NoServer(Errno),
    #[error("access to the socket was denied ({0})")]
    Denied(Errno),
    #[error("{0}")]
    Os(Errno),
}

impl StreamError {
    pub(super) const fn kind(self) -> TransportErrorKind {
        match self {
            Self::TimedOut => TransportErrorKind::TimedOut,
            Self::Closed | Self::NoServer(_) | Self::Os(_) => TransportErrorKind::NoService,
            Self::Frame(_) | Self::OutOfOrder | Self::Version(_) => TransportErrorKind::Protocol,
            Self::Denied(_) => TransportErrorKind::Denied,
        }
    }

    /// Returns the error of the reader at `path`. The command has not been sent.
    pub(super) fn about(self, path: &Path) -> TransportError {
        TransportError::before_card(
            self.kind(),
            format!("socket reader {}: {self}", path.display()),
        )
    }
}

impl From<Errno> for StreamError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::PIPE | Errno::CONNRESET => Self::Closed,
            Errno::NOENT | Errno::NOTDIR | Errno::CONNREFUSED => Self::NoServer(errno),
            Errno::ACCESS | Errno::PERM => Self::Denied(errno),
            other => Self::Os(other),
        }
    }
}

/// A connected socket that does not block, does not raise SIGPIPE, and is closed on exec.
pub(super) struct Stream {
    fd: OwnedFd,
    frames: FrameBuffer,
}

impl Stream {
    /// Connects without waiting. A Unix socket accepts the connection at once, unless its queue is full.
    pub(super) fn connect(path: &Path) -> Result<Self, StreamError> {
        let address = SocketAddrUnix::new(path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::io::retry_on_intr(|| rustix::net::connect(&fd, &address))?;
        Ok(Self {
            fd,
            frames: FrameBuffer::new(),
        })
    }

    /// Duplicates the socket.
    pub(super) fn duplicate(&self) -> Option<OwnedFd> {
        rustix::io::fcntl_dupfd_cloexec(&self.fd, 0).ok()
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Sends one request. After an error, the server cannot have received the whole request.
    pub(super) fn send(&mut self, request: &Request, deadline: Instant) -> Result<(), StreamError> {
        let frame = request.encode();
        let mut rest = frame.expose();
        while !rest.is_empty() {
            match rustix::net::send(&self.fd, rest, SendFlags::NOSIGNAL) {
                Ok(sent) => rest = rest.get(sent..).unwrap_or(&[]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if wait_one(&self.fd, PollFlags::OUT, deadline)? => {}
                Err(Errno::AGAIN) => return Err(StreamError::TimedOut),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Waits for the reply to a request. Further bytes after the reply are an error.
    pub(super) fn receive(&mut self, deadline: Instant) -> Result<Reply, StreamError> {
        loop {
            if !wait_one(&self.fd, PollFlags::IN, deadline)? {
                return Err(StreamError::TimedOut);
            }
            self.fetch()?;
            if let Some(reply) = self.frames.next_reply()? {
                return if self.frames.is_empty() {
                    Ok(reply)
                } else {
                    Err(StreamError::OutOfOrder)
                };
            }
        }
    }

    /// Returns all whole frames received so far, without waiting.
    pub(super) fn received(&mut self) -> Result<Vec<Reply>, StreamError> {
        let mut replies = Vec::new();
        for _ in 0..MAX_READS {
            if !self.fetch()? {
                break;
            }
            while let Some(reply) = self.frames.next_reply()? {
                replies.push(reply);
            }
        }
        Ok(replies)
    }

    /// Reads once. Returns whether there was anything to read.
    fn fetch(&mut self) -> Result<bool, StreamError> {
        let spare = self.frames.spare()?;
        match rustix::net::recv(&self.fd, spare, RecvFlags::empty()) {
            Ok((0, _)) => Err(StreamError::Closed),
            Ok((len, _)) => {
                self.frames.received(len);
                Ok(true)
            }
            Err(Errno::INTR | Errno::AGAIN) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Drop for Stream {
    /// Shuts the connection down, even if a forked child still has the socket open. This gives the card back.
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Both);
    }
}

/// Returns a server's text in a form to show to a person: one line, no control characters, bounded length.
pub(super) fn sanitized(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(MAX_TEXT)
        .collect::<String>()
        .trim()
        .to_owned()
}
