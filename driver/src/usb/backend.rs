//! The readers on the USB, without pcscd.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use claviger_apdu::{Call, Transport, TransportError, TransportErrorKind};

use super::{
    claim::{Means, Opener, lock::Locks},
    discovery::{precedence::Gate, reader_info::NAME, sysfs::Bus},
    host::{event_fd::Signal, open::Stack},
    reader::registry::Registry,
    transport::{Ends, UsbConnection},
    watch::UsbWatch,
};
use crate::{
    backend::{Backend, Wake as _, Watch},
    reader::ReaderId,
};

/// How long all that is left may take when the backend is wound up.
const LAST: Duration = Duration::from_secs(1);

/// How the readers are reached.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who moves the transfers. Under CKF_LIBRARY_CANT_CREATE_OS_THREADS and after a fork: [`Stack::Rusb`].
    pub stack: Stack,
    /// Whether a thread follows the watch all the time, and [`Watch::demand`] says whether cards are watched; else they are
    /// while somebody is in [`Watch::next`].
    pub is_followed: bool,
    /// Where locks may be kept, the best place first; each is made if its parent is there. See `docs/raw-usb.md`.
    pub locks: Vec<PathBuf>,
}

/// The readers on the USB.
#[derive(Debug)]
pub struct UsbBackend {
    bus: Bus,
    means: Arc<Means>,
    registry: Arc<Registry>,
    ends: Arc<Ends>,
    is_followed: bool,
    gate: Option<Arc<Gate>>,
}

impl UsbBackend {
    /// Asks nothing of any device yet.
    #[must_use]
    pub fn new(options: &Options) -> Self {
        Self::over(Bus::system(), Box::new(options.stack), options)
    }

    pub(crate) fn over(bus: Bus, opener: Box<dyn Opener>, options: &Options) -> Self {
        Self {
            means: Arc::new(Means {
                bus: bus.clone(),
                opener,
                locks: Locks::in_first_of(&options.locks),
                is_followed: options.is_followed,
                stir: Signal::new().ok(),
            }),
            bus,
            registry: Arc::default(),
            ends: Arc::default(),
            is_followed: options.is_followed,
            gate: None,
        }
    }

    /// Shows and touches only the readers that `gate` says are ours; else all are.
    #[must_use]
    pub fn behind(self, gate: Arc<Gate>) -> Self {
        Self {
            gate: Some(gate),
            ..self
        }
    }
}

impl Backend for UsbBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn watch(&self) -> Box<dyn Watch> {
        Box::new(UsbWatch::new(
            self.bus.clone(),
            Arc::clone(&self.means),
            Arc::clone(&self.registry),
            self.gate.clone(),
            self.is_followed,
        ))
    }

    fn connect(&self, reader: &ReaderId, call: Call) -> Result<Box<dyn Transport>, TransportError> {
        if self.ends.stop.is_set() {
            let what = format!("{reader}: the module is being finalised");
            let kind = TransportErrorKind::Cancelled;
            return Err(TransportError::before_card(kind, what));
        }
        let Some(station) = self.registry.station(reader) else {
            let what = format!("{reader}: no such reader on the USB");
            let kind = TransportErrorKind::NoReader;
            return Err(TransportError::before_card(kind, what));
        };
        let connection = UsbConnection::connect(station, &self.ends, call)?;
        Ok(Box::new(connection))
    }

    fn cut(&self) {
        let _ = self.ends.last.set(Instant::now());
        self.ends.stop.stop();
    }

    fn wind_up(&self) {
        let _ = self.ends.last.set(Instant::now() + LAST);
    }
}
