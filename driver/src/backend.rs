//! What every way to readers can do.

use std::{fmt, sync::Arc, time::Instant};

use claviger_apdu::{Call, Transport, TransportError};

use crate::{
    pollable::Pollable,
    reader::{ReaderId, ReaderSnapshot},
    stop::{StopHandle, Stopped},
};

/// One way to readers: PC/SC, a socket, raw USB.
///
/// A backend whose service is missing is still a backend: it shows no readers, says why in
/// [`ReaderSnapshot::error`], and shows them when the service comes.
pub trait Backend: fmt::Debug + Send + Sync {
    /// Short name, as the configuration spells it.
    fn name(&self) -> &'static str;

    /// Begins to watch; nothing is asked of the service yet.
    fn watch(&self) -> Box<dyn Watch>;

    /// Connects to the card in `reader`, shared with every other user of it, powering it up if need be.
    /// A card that is powered and known is not reset by this.
    ///
    /// # Errors
    /// [`TransportError`], always with [`claviger_apdu::Sent::No`].
    fn connect(&self, reader: &ReaderId, call: Call) -> Result<Box<dyn Transport>, TransportError>;

    /// Ends every call on every connection, now and later: for the end of the backend's life, when somebody does
    /// not come back. No connection is made afterwards. Does not wait.
    fn abort_calls(&self);

    /// Says that what comes now is the last: cards are told goodbye and let go. Makes sure that this takes a
    /// moment at most, whatever state the service is in.
    fn begin_shutdown(&self);
}

/// Follows the readers of one backend.
pub trait Watch: Send {
    /// The readers as they are now, without waiting for a change. A service that does not answer costs at
    /// most the time of `call`.
    fn snapshot(&mut self, call: Call) -> ReaderSnapshot;

    /// Waits until the readers differ from the picture last returned by [`Watch::snapshot`] or `next`, and
    /// returns them as they are then. Without an earlier picture it returns at once. Costs nothing while it
    /// waits: no polling where the source can wake it.
    ///
    /// # Errors
    /// [`Stopped`] once the watch was woken by [`StopHandle::stop`], for good.
    fn next_snapshot(&mut self) -> Result<ReaderSnapshot, Stopped>;

    /// The parts of [`Watch::next_snapshot`], for a wait on several watches at once; `None` while nothing but `next` itself can
    /// wait, inside somebody else's library.
    fn pollable(&mut self) -> Option<&mut dyn Pollable> {
        None
    }

    /// What ends [`Watch::next_snapshot`] from another thread.
    fn stop_handle(&self) -> Arc<dyn StopHandle>;

    /// Tells a watch with a thread of its own whether a caller wants card events. `None` where that makes no difference. Without a
    /// waiter such a watch notices card changes only at a [`Demand::refresh`].
    fn demand(&self) -> Option<Arc<dyn Demand>> {
        None
    }
}

/// Tells a [`Watch`] from other threads whether a caller wants card events. To monitor the cards of some readers, a backend has to
/// exclude all other programs from them.
pub trait Demand: Send + Sync {
    /// One more thread waits for events.
    fn add_waiter(&self);

    /// One thread no longer waits.
    fn remove_waiter(&self);

    /// Polls the cards unless they are monitored. Waits until the result is reported, or until `until`. The cards are monitored for
    /// a short time afterwards.
    fn refresh(&self, deadline: Instant);

    /// Ends each [`Demand::refresh`], running and later, also if the watch never ran.
    fn stop(&self);
}
