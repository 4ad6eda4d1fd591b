//! The `usb` backend: readers on the USB, without pcscd.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use claviger_apdu::{Call, Transport, TransportError, TransportErrorKind};

use super::{
    claim::{BackendContext, DeviceOpener, lock::LockFolder},
    discovery::{precedence::PcscdPrecedence, reader_info::NAME, sysfs::UsbBus},
    host::{event_fd::EventFd, open::UsbLibrary},
    reader::registry::ReaderRegistry,
    transport::{ShutdownControl, UsbTransport},
    watch::UsbWatch,
};
use crate::{
    backend::{Backend, Watch},
    reader::ReaderId,
    stop::StopHandle as _,
};

/// Time for all remaining calls together once the shutdown has begun.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// The options of the backend.
#[derive(Clone, Debug)]
pub struct UsbOptions {
    /// Moves the transfers. Without threads and after a fork: [`UsbLibrary::Rusb`].
    pub library: UsbLibrary,
    /// Whether a thread always follows the watch. [`Watch::demand`] then decides whether cards are monitored. Otherwise, cards
    /// are monitored while a caller is in [`Watch::next_snapshot`].
    pub has_watch_thread: bool,
    /// Folders for lock files, best first. A folder is made if its parent exists. See `docs/raw-usb.md`.
    pub lock_folders: Vec<PathBuf>,
}

/// The readers on the USB.
#[derive(Debug)]
pub struct UsbBackend {
    bus: UsbBus,
    context: Arc<BackendContext>,
    registry: Arc<ReaderRegistry>,
    shutdown: Arc<ShutdownControl>,
    has_watch_thread: bool,
    precedence: Option<Arc<PcscdPrecedence>>,
}

impl UsbBackend {
    /// Makes the backend. No device is opened yet.
    #[must_use]
    pub fn new(options: &UsbOptions) -> Self {
        Self::with_bus(UsbBus::system(), Box::new(options.library), options)
    }

    pub(crate) fn with_bus(
        bus: UsbBus,
        opener: Box<dyn DeviceOpener>,
        options: &UsbOptions,
    ) -> Self {
        Self {
            context: Arc::new(BackendContext {
                bus: bus.clone(),
                opener,
                lock_folder: LockFolder::open_first(&options.lock_folders),
                has_watch_thread: options.has_watch_thread,
                watch_event: EventFd::new().ok(),
            }),
            bus,
            registry: Arc::default(),
            shutdown: Arc::default(),
            has_watch_thread: options.has_watch_thread,
            precedence: None,
        }
    }

    /// Reports and claims only the readers that `precedence` allows. Without it, all readers are allowed.
    #[must_use]
    pub fn with_precedence(self, precedence: Arc<PcscdPrecedence>) -> Self {
        Self {
            precedence: Some(precedence),
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
            Arc::clone(&self.context),
            Arc::clone(&self.registry),
            self.precedence.clone(),
            self.has_watch_thread,
        ))
    }

    fn connect(&self, reader: &ReaderId, call: Call) -> Result<Box<dyn Transport>, TransportError> {
        if self.shutdown.stop.is_set() {
            let what = format!("{reader}: the module is being finalised");
            let kind = TransportErrorKind::Cancelled;
            return Err(TransportError::before_card(kind, what));
        }
        let Some(station) = self.registry.find(reader) else {
            let what = format!("{reader}: no such reader on the USB");
            let kind = TransportErrorKind::NoReader;
            return Err(TransportError::before_card(kind, what));
        };
        let connection = UsbTransport::connect(station, &self.shutdown, call)?;
        Ok(Box::new(connection))
    }

    fn abort_calls(&self) {
        let _ = self.shutdown.deadline.set(Instant::now());
        self.shutdown.stop.stop();
    }

    fn begin_shutdown(&self) {
        let _ = self
            .shutdown
            .deadline
            .set(Instant::now() + SHUTDOWN_TIMEOUT);
    }
}
