//! Readers of pcscd, through libpcsclite, which is loaded when the first context is made.
//!
//! Every watch and every connection has a context of its own: calls on one context wait for each other. Cards
//! are connected to shared and always left as they are.
//!
//! libpcsclite has no timeouts, and while another program is in a transaction it tries a connection or a single
//! command every 100 ms until its turn comes, whatever the deadline. Where threads are allowed, one of ours ends
//! each call that is not through by its deadline ([`PcscBackend::new`]); where they are not, a call lasts as long
//! as pcscd takes, or until [`Backend::cut`].

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

/// How long a pcscd may take to answer when its backend is wound up, and how long all that is left may take.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// The readers of the pcscd that libpcsclite finds: at `PCSCLITE_CSOCK_NAME`, else at its usual place.
#[derive(Debug)]
pub struct PcscBackend {
    watchdog: Arc<CallWatchdog>,
    may_create_threads: bool,
}

impl PcscBackend {
    /// Asks nothing of pcscd yet. With `may_create_threads`, one thread sees to deadlines while calls run.
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
