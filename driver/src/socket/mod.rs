//! Readers behind Unix sockets. The server may be a test firmware, or a program that lends a card to a container.
//!
//! `docs/socket-reader.md` describes the protocol. One path is one reader. Its server may start, stop and start
//! again. A path without a server costs nothing: a watch on its folder reports when a socket appears.

mod channel;
pub mod frame;
mod frame_buffer;
mod reader_id;
mod stream;
mod transport;
mod watch;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use claviger_apdu::{Call, Transport, TransportError, TransportErrorKind};

use self::{
    channel::ShutdownControl,
    reader_id::{NAME, id},
    transport::SocketTransport,
    watch::SocketWatch,
};
use crate::{
    backend::{Backend, Watch},
    reader::ReaderId,
};

/// How long the remaining calls may take together when the shutdown begins.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// The readers behind some socket paths, in the given order.
#[derive(Clone, Debug)]
pub struct SocketBackend {
    paths: Vec<PathBuf>,
    control: Arc<ShutdownControl>,
}

impl SocketBackend {
    /// Makes a backend with one reader for each of `paths`. A server need not listen there yet.
    #[must_use]
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self {
            paths,
            control: Arc::default(),
        }
    }
}

impl Backend for SocketBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn watch(&self) -> Box<dyn Watch> {
        Box::new(SocketWatch::new(&self.paths))
    }

    fn connect(&self, reader: &ReaderId, call: Call) -> Result<Box<dyn Transport>, TransportError> {
        let Some(path) = self.paths.iter().find(|path| id(path) == *reader) else {
            let what = format!("{reader}: no such socket reader is configured");
            return Err(TransportError::before_card(
                TransportErrorKind::NoReader,
                what,
            ));
        };
        Ok(Box::new(SocketTransport::connect(
            &self.control,
            path,
            call,
        )?))
    }

    fn abort_calls(&self) {
        let _ = self.control.shutdown_deadline.set(Instant::now());
        self.control.handles.shut_down();
    }

    fn begin_shutdown(&self) {
        let _ = self
            .control
            .shutdown_deadline
            .set(Instant::now() + SHUTDOWN_TIMEOUT);
    }
}

/// Feeds arbitrary bytes to the frame buffer, for the fuzz target `socket_inbox`.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz_inbox(bytes: &[u8]) {
    frame_buffer::fuzz(bytes);
}
