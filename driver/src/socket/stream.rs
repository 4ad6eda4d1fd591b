//! One connection to a socket reader: whole frames out and in, each with a deadline.

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

/// Longest name or refusal of a server that is shown to a person.
const MAX_TEXT: usize = 200;

/// Reads at one time, so that a server that talks without end cannot hold the watch.
const MAX_READS: usize = 64;

/// Why a connection is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum StreamError {
    #[error("no answer in time")]
    TimedOut,
    #[error("the server closed the connection")]
    Closed,
    #[error("not a frame of the socket reader: {0}")]
    Frame(#[from] FrameError),
    #[error("an answer out of order")]
    OutOfOrder,
    #[error("the server speaks version {0}, this driver {VERSION}")]
    Version(u8),
    #[error("no server there ({0})")]
    NoServer(Errno),
    #[error("access refused ({0})")]
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

    /// The error about the reader at `path`, the command not having been sent.
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

/// A connected socket that never blocks, never raises SIGPIPE and is closed on exec.
pub(super) struct Stream {
    fd: OwnedFd,
    frames: FrameBuffer,
}

impl Stream {
    /// Connects without waiting: a Unix socket takes the connection at once, or its queue is full.
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

    /// The same socket once more.
    pub(super) fn duplicate(&self) -> Option<OwnedFd> {
        rustix::io::fcntl_dupfd_cloexec(&self.fd, 0).ok()
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Sends one request. After an error the server cannot have got the whole of it.
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

    /// Waits for the one answer to a request; anything after it is out of order.
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

    /// The whole frames that have come, without waiting.
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

    /// Reads once; `false` when there was nothing to read.
    fn fetch(&mut self) -> Result<bool, StreamError> {
        let room = self.frames.spare()?;
        match rustix::net::recv(&self.fd, room, RecvFlags::empty()) {
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
    /// Ends the connection although a forked child may still have the socket open: the card is given back.
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Both);
    }
}

/// Text of a server for a person: one line, no control characters, bounded.
pub(super) fn sanitized(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(MAX_TEXT)
        .collect::<String>()
        .trim()
        .to_owned()
}
