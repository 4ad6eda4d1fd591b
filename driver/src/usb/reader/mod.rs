//! One USB reader: the claim, if this process holds it, and the saved state of the card.

pub(crate) mod access;
mod claimable;
pub(crate) mod driver;
pub(crate) mod registry;
pub(crate) mod slot;

use std::{sync::Arc, time::Instant};

use claviger_apdu::{Atr, TransportError};

use self::{
    access::{DriverAccess, DriverGuard},
    claimable::ClaimableReader,
    driver::ReaderDriver,
};
use super::{
    claim::{ClaimRequest, ReaderClaim, shared::SharedClaim},
    discovery::reader_info::ReaderInfo,
    pipe::bulk::BulkErrorKind,
};
use crate::wait::StopFlag;

/// One CCID slot of a reader, within one device instance. Most readers have one slot.
#[derive(Debug)]
pub(crate) struct UsbReader {
    claimable: Arc<ClaimableReader>,
    access: DriverAccess,
}

impl UsbReader {
    pub(crate) fn new(info: ReaderInfo, shared_claim: Arc<SharedClaim>) -> Self {
        let claimable = Arc::new(ClaimableReader::new(info, shared_claim));
        Self {
            access: DriverAccess::new(ReaderDriver::new(Arc::clone(&claimable))),
            claimable,
        }
    }

    /// Returns the description of the reader.
    pub(crate) fn info(&self) -> &ReaderInfo {
        &self.claimable.info
    }

    /// Locks the driver for one transaction. Waits for another thread until `deadline` or `stop`.
    ///
    /// # Errors
    /// Busy or Cancelled, with nothing sent.
    pub(crate) fn driver_within(
        &self,
        deadline: Instant,
        stop: &StopFlag,
    ) -> Result<DriverGuard<'_>, TransportError> {
        self.access.acquire(deadline, stop).map_err(|why| {
            let what = match why {
                BulkErrorKind::Stopped => "the call was aborted",
                _ => "another call is at it",
            };
            let what = format!("reader {}: {what}", self.info().interface.name);
            TransportError::before_card(why.transport_kind(), what)
        })
    }

    /// Locks the driver unless another thread uses it.
    pub(crate) fn try_driver(&self) -> Option<DriverGuard<'_>> {
        self.access.try_acquire()
    }

    /// The transport has ended. Does not wait: the thread that uses the driver, or the next one, releases the reader.
    pub(crate) fn detach(&self) {
        self.access.detach();
    }

    /// Locks the driver unless another thread uses it, or a command would wait for another slot.
    pub(crate) fn try_idle_driver(&self) -> Option<DriverGuard<'_>> {
        let is_free = self
            .current_claim()
            .is_none_or(|reader_claim| reader_claim.is_free());
        is_free.then(|| self.try_driver()).flatten()
    }

    /// See [`ClaimableReader::current_claim`].
    pub(crate) fn current_claim(&self) -> Option<Arc<ReaderClaim>> {
        self.claimable.current_claim()
    }

    /// See [`ClaimableReader::recorded_atr`].
    pub(crate) fn recorded_atr(&self) -> Option<Atr> {
        self.claimable.recorded_atr()
    }

    /// The device was unplugged, or left to pcscd. No claim is made from now on. A claim ends with the running transaction.
    pub(crate) fn retire(&self) {
        self.claimable.retire();
        if let Some(mut driver) = self.try_driver() {
            driver.yield_if_requested();
        }
    }

    /// See [`ClaimableReader::claim`].
    ///
    /// # Errors
    /// The errors of [`ClaimableReader::claim`].
    pub(crate) fn claim(
        &self,
        request: ClaimRequest<'_>,
    ) -> Result<Arc<ReaderClaim>, TransportError> {
        self.claimable.claim(request)
    }
}
