//! The traits that every backend implements.

use std::{fmt, sync::Arc, time::Instant};

use claviger_apdu::{Call, Transport, TransportError};

use crate::{
    pollable::Pollable,
    reader::{ReaderId, ReaderSnapshot},
    stop::{StopHandle, Stopped},
};

/// One way to readers: PC/SC, a socket or raw USB.
///
/// A backend works without its service. It then reports no readers, and [`ReaderSnapshot::error`] says why. The
/// readers appear when the service does.
pub trait Backend: fmt::Debug + Send + Sync {
    /// Returns the backend's short name, as the configuration spells it.
    fn name(&self) -> &'static str;

    /// Makes a watch. The watch sends nothing to the service before its first query.
    fn watch(&self) -> Box<dyn Watch>;

    /// Connects to the card in `reader` and powers the card up if necessary. Other users of the card stay connected.
    /// A card that is powered and known is not reset.
    ///
    /// # Errors
    /// [`TransportError`], always with [`claviger_apdu::Sent::No`].
    fn connect(&self, reader: &ReaderId, call: Call) -> Result<Box<dyn Transport>, TransportError>;

    /// Aborts every running and later call. No transport can be made afterwards. Does not wait.
    fn abort_calls(&self);

    /// Begins the shutdown: all remaining calls together (logout, disconnect) get one second, whatever state the
    /// service is in.
    fn begin_shutdown(&self);
}

/// Follows the readers of one backend.
pub trait Watch: Send {
    /// Queries the readers and returns them, without waiting for a change. A service that does not respond costs at
    /// most the time of `call`.
    fn snapshot(&mut self, call: Call) -> ReaderSnapshot;

    /// Waits until the readers differ from the snapshot that the watch last returned, then returns the new snapshot.
    /// The first call returns at once if there was no snapshot before. The wait is idle: the watch polls only where
    /// the source cannot wake it.
    ///
    /// # Errors
    /// [`Stopped`], from now on, after [`StopHandle::stop`].
    fn next_snapshot(&mut self) -> Result<ReaderSnapshot, Stopped>;

    /// Returns the steps of [`Watch::next_snapshot`], so that one thread can wait for several watches at once.
    /// Returns `None` while the wait has to happen inside another library.
    fn pollable(&mut self) -> Option<&mut dyn Pollable> {
        None
    }

    /// Returns the handle with which another thread ends [`Watch::next_snapshot`].
    fn stop_handle(&self) -> Arc<dyn StopHandle>;

    /// Returns the handle that counts the callers which want card events. `None` where the watch monitors cards in
    /// any case. Without a waiter, a watch that returns a handle detects card changes only at a [`Demand::refresh`].
    fn demand(&self) -> Option<Arc<dyn Demand>> {
        None
    }
}

/// Informs a [`Watch`] from other threads whether a caller wants card events. To monitor the cards of some readers, a
/// backend has to exclude all other programs from them.
pub trait Demand: Send + Sync {
    /// Adds a thread that waits for events.
    fn add_waiter(&self);

    /// Removes a thread that waited for events.
    fn remove_waiter(&self);

    /// Polls the cards unless they are monitored. Waits until the result is reported, or until `deadline`. The cards
    /// are monitored for a short time afterwards.
    fn refresh(&self, deadline: Instant);

    /// Ends every running and later [`Demand::refresh`], even if the watch never ran.
    fn stop(&self);
}
