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

use self::{reader_id::NAME, transport::PcscTransport, watch::PcscWatch, watchdog::Keeper};
use crate::{
    backend::{Backend, Watch},
    reader::ReaderId,
};

/// How long a pcscd may take to answer when its backend is wound up, and how long all that is left may take.
const LAST: Duration = Duration::from_secs(1);

/// The readers of the pcscd that libpcsclite finds: at `PCSCLITE_CSOCK_NAME`, else at its usual place.
#[derive(Debug)]
pub struct PcscBackend {
    keeper: Arc<Keeper>,
    may_create_threads: bool,
}

impl PcscBackend {
    /// Asks nothing of pcscd yet. With `may_create_threads`, one thread sees to deadlines while calls run.
    #[must_use]
    pub fn new(may_create_threads: bool) -> Self {
        Self {
            keeper: Arc::new(Keeper::new(may_create_threads)),
            may_create_threads,
        }
    }
}

impl Backend for PcscBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn watch(&self) -> Box<dyn Watch> {
        Box::new(PcscWatch::new(Arc::clone(&self.keeper)))
    }

    fn connect(&self, reader: &ReaderId, call: Call) -> Result<Box<dyn Transport>, TransportError> {
        Ok(Box::new(PcscTransport::connect(
            &self.keeper,
            reader,
            call,
        )?))
    }

    fn cut(&self) {
        self.keeper.cut();
    }

    fn wind_up(&self) {
        if !self.keeper.has_lines() {
            return;
        }
        if self.may_create_threads {
            self.keeper.limit_all(Instant::now() + LAST);
        } else if !daemon::answers(&daemon::socket(), LAST) {
            self.keeper.cut();
        }
    }
}
