//! Readers of pcscd, through libpcsclite.
//!
//! Every watch and every connection has a context of its own: calls on one context wait for each other. Cards
//! are connected to shared and always left as they are.
//!
//! What may block longer than its call says: libpcsclite has no timeouts. A pcscd or a driver that hangs hangs
//! the caller of [`Watch::now`], [`Backend::connect`] and of a transmission. While another program is in a
//! transaction, libpcsclite 1.9 to 2.5 tries a connection or a single command every 100 ms until its turn
//! comes, whatever the deadline; only the beginning of a transaction is kept to it here. A caller that must
//! not wait runs these calls where it can leave them behind.

mod cancel;
mod connection;
mod error;
mod session;
mod transport;
mod watch;

use claviger_apdu::{Call, Transport, TransportError};

use self::{transport::PcscTransport, watch::PcscWatch};
use crate::{
    backend::{Backend, Watch},
    reader::ReaderId,
};

/// The backend's name, in the configuration and in [`ReaderId`].
const NAME: &str = "pcsc";

/// The readers of the pcscd that libpcsclite finds: at `PCSCLITE_CSOCK_NAME`, else at its usual place.
#[derive(Clone, Copy, Debug, Default)]
pub struct PcscBackend;

impl PcscBackend {
    /// Asks nothing of pcscd yet.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

impl Backend for PcscBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn watch(&self) -> Box<dyn Watch> {
        Box::new(PcscWatch::new())
    }

    fn connect(&self, reader: &ReaderId, call: Call) -> Result<Box<dyn Transport>, TransportError> {
        Ok(Box::new(PcscTransport::connect(reader, call)?))
    }
}
