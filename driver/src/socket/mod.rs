//! A reader behind a Unix socket: the card may be a test firmware, or lent to a container.
//!
//! `docs/socket-reader.md` describes the protocol. One path is one reader; its server may come, go and come
//! again. A path without a server costs nothing: the folder tells when a socket appears in it.

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

/// How long all that is left may take when the backend is wound up.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// The readers behind some socket paths, in the order given.
#[derive(Clone, Debug)]
pub struct SocketBackend {
    paths: Vec<PathBuf>,
    ends: Arc<ShutdownControl>,
}

impl SocketBackend {
    /// One reader for each of `paths`, whether a server listens there yet or not.
    #[must_use]
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self {
            paths,
            ends: Arc::default(),
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
        Ok(Box::new(SocketTransport::connect(&self.ends, path, call)?))
    }

    fn abort_calls(&self) {
        let _ = self.ends.shutdown_deadline.set(Instant::now());
        self.ends.lines.shut_down();
    }

    fn begin_shutdown(&self) {
        let _ = self
            .ends
            .shutdown_deadline
            .set(Instant::now() + SHUTDOWN_TIMEOUT);
    }
}

/// Feeds arbitrary bytes to the frame collector; for the fuzz target beside this file.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz_inbox(bytes: &[u8]) {
    frame_buffer::fuzz(bytes);
}
