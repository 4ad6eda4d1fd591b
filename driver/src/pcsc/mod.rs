//! The readers of pcscd, through libpcsclite. The library is loaded when the first context is made.
//!
//! Every watch and every transport has a context of its own, because calls on one context wait for each other.
//! Transports share the card with other programs. Disconnecting never resets the card.
//!
//! libpcsclite has no timeouts. While another program is in a transaction, libpcsclite retries a connection or a
//! single command every 100 ms until the transaction ends, whatever the deadline. Where the caller allows threads, a
//! watchdog thread ends each call at its deadline ([`PcscBackend::new`]). Without threads, a call lasts until pcscd
//! responds or until [`Backend::abort_calls`].

mod cancel;
mod daemon;
mod error;
pub mod features;
mod handle;
mod library;
mod reader_id;
mod status;
mod transport;
mod watch;
mod watchdog;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use claviger_apdu::{Call, Transport, TransportError};

use self::{reader_id::NAME, transport::PcscTransport, watch::PcscWatch, watchdog::CallWatchdog};
use crate::{
    backend::{Backend, Watch},
    reader::ReaderId,
};

/// How long pcscd may take to respond when the shutdown begins, and how long the remaining calls may take together.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// The readers of the pcscd at `PCSCLITE_CSOCK_NAME`, or at libpcsclite's default path.
#[derive(Debug)]
pub struct PcscBackend {
    watchdog: Arc<CallWatchdog>,
    may_create_threads: bool,
}

impl PcscBackend {
    /// Makes the backend without contacting pcscd. With `may_create_threads`, a watchdog thread enforces the
    /// deadlines of running calls.
    #[must_use]
    pub fn new(may_create_threads: bool) -> Self {
        Self {
            watchdog: Arc::new(CallWatchdog::new(may_create_threads)),
            may_create_threads,
        }
    }
}

impl Backend for PcscBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn watch(&self) -> Box<dyn Watch> {
        Box::new(PcscWatch::new(Arc::clone(&self.watchdog)))
    }

    fn connect(&self, reader: &ReaderId, call: Call) -> Result<Box<dyn Transport>, TransportError> {
        Ok(Box::new(PcscTransport::connect(
            &self.watchdog,
            reader,
            call,
        )?))
    }

    fn abort_calls(&self) {
        self.watchdog.abort_all();
    }

    fn begin_shutdown(&self) {
        if !self.watchdog.has_contexts() {
            return;
        }
        if self.may_create_threads {
            self.watchdog
                .cap_deadlines(Instant::now() + SHUTDOWN_TIMEOUT);
        } else if !daemon::is_responsive(&daemon::socket(), SHUTDOWN_TIMEOUT) {
            self.watchdog.abort_all();
        }
    }
}
