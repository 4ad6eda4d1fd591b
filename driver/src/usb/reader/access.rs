//! Access to a reader's driver: one thread at a time, in the order of requests. Each waiter has a deadline.

use std::{
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use super::driver::ReaderDriver;
use crate::{
    usb::pipe::{
        bulk::BulkErrorKind,
        fair_queue::{FairQueue, Permit},
    },
    wait::StopFlag,
};

/// See the module.
#[derive(Debug)]
pub(super) struct DriverAccess {
    /// Locked by the thread that has the permit.
    driver: Mutex<ReaderDriver>,
    queue: Arc<FairQueue>,
    /// The transport has ended. The driver is still attached.
    detach_pending: AtomicBool,
}

/// The driver, locked until the guard is dropped.
#[derive(Debug)]
pub(crate) struct DriverGuard<'a> {
    // Dropped in this order: the next thread finds the driver free.
    driver: MutexGuard<'a, ReaderDriver>,
    _permit: Permit,
    _detach: DetachOnDrop<'a>,
}

impl DriverAccess {
    pub(super) fn new(driver: ReaderDriver) -> Self {
        Self {
            driver: Mutex::new(driver),
            queue: FairQueue::new(1),
            detach_pending: AtomicBool::new(false),
        }
    }

    /// Locks the driver. Waits for other threads until `deadline` or `stop`.
    ///
    /// # Errors
    /// [`BulkErrorKind::Busy`] or [`BulkErrorKind::Stopped`].
    pub(super) fn acquire(
        &self,
        deadline: Instant,
        stop: &StopFlag,
    ) -> Result<DriverGuard<'_>, BulkErrorKind> {
        let permit = self.queue.acquire(deadline, stop);
        if permit.is_err() {
            // This waiter may just have been granted the permit and passed it on.
            self.detach_if_pending();
        }
        permit.map(|permit| self.guard(permit))
    }

    /// Locks the driver unless another thread uses it.
    pub(super) fn try_acquire(&self) -> Option<DriverGuard<'_>> {
        self.queue.try_acquire().map(|permit| self.guard(permit))
    }

    fn guard(&self, permit: Permit) -> DriverGuard<'_> {
        let mut driver = self.driver.lock().unwrap_or_else(PoisonError::into_inner);
        if self.detach_pending.swap(false, Ordering::SeqCst) {
            driver.detach();
        }
        DriverGuard {
            driver,
            _permit: permit,
            _detach: DetachOnDrop(self),
        }
    }

    /// Detaches the driver. The thread that uses it, or the next one, does that.
    pub(super) fn detach(&self) {
        self.detach_pending.store(true, Ordering::SeqCst);
        self.detach_if_pending();
    }

    /// Detaches the driver if that is pending, unless another thread uses the driver.
    fn detach_if_pending(&self) {
        if self.detach_pending.load(Ordering::SeqCst) {
            drop(self.try_acquire());
        }
    }
}

impl Deref for DriverGuard<'_> {
    type Target = ReaderDriver;

    fn deref(&self) -> &ReaderDriver {
        &self.driver
    }
}

impl DerefMut for DriverGuard<'_> {
    fn deref_mut(&mut self) -> &mut ReaderDriver {
        &mut self.driver
    }
}

/// Runs [`DriverAccess::detach_if_pending`] after each use.
#[derive(Debug)]
struct DetachOnDrop<'a>(&'a DriverAccess);

impl Drop for DetachOnDrop<'_> {
    fn drop(&mut self) {
        self.0.detach_if_pending();
    }
}
