//! Access to a slot's desk: by one thread at a time, in the order of asking, and nobody waits longer than it wants to.

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
    wait::Stop,
};

/// See the module.
#[derive(Debug)]
pub(super) struct DriverAccess {
    /// Locked by whose turn it is.
    driver: Mutex<ReaderDriver>,
    queue: Arc<FairQueue>,
    /// The connection has ended, which the desk does not know yet.
    detach_pending: AtomicBool,
}

/// A slot's desk, for as long as the value lives.
#[derive(Debug)]
pub(crate) struct DriverGuard<'a> {
    // In this order: whoever comes next finds the desk free.
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

    /// The desk; whoever is at it is waited for until `until` or `stop`.
    ///
    /// # Errors
    /// [`BulkErrorKind::Busy`] or [`BulkErrorKind::Stopped`].
    pub(super) fn acquire(
        &self,
        until: Instant,
        stop: &Stop,
    ) -> Result<DriverGuard<'_>, BulkErrorKind> {
        let permit = self.queue.acquire(until, stop);
        if permit.is_err() {
            // It may just have been passed on from here.
            self.detach_if_pending();
        }
        permit.map(|permit| self.guard(permit))
    }

    /// The desk, unless somebody is at it.
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

    /// Ends the connection, by whoever is at the desk or comes next.
    pub(super) fn detach(&self) {
        self.detach_pending.store(true, Ordering::SeqCst);
        self.detach_if_pending();
    }

    /// Does what was left to whoever is at the desk, unless somebody is.
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

/// What is done after a turn at the desk.
#[derive(Debug)]
struct DetachOnDrop<'a>(&'a DriverAccess);

impl Drop for DetachOnDrop<'_> {
    fn drop(&mut self) {
        self.0.detach_if_pending();
    }
}
