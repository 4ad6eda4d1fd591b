//! One USB reader: the claim, if this process holds it, and the saved state of the card.

pub(crate) mod access;
pub(crate) mod driver;
pub(crate) mod registry;
pub(crate) mod slot;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use claviger_apdu::{Atr, TransportError};

use self::{
    access::{DriverAccess, DriverGuard},
    driver::ReaderDriver,
};
use super::{
    claim::{BackendContext, ClaimError, ClaimRequest, ReaderClaim, shared::SharedClaim, wait_for},
    discovery::reader_info::ReaderInfo,
    host::transfer::OpenError,
    pipe::bulk::BulkErrorKind,
};
use crate::wait::Stop;

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

    /// What identifies the reader and how it is reached.
    pub(crate) fn info(&self) -> &ReaderInfo {
        &self.claimable.info
    }

    /// Locks the driver for one transaction. Waits for another thread until `until` or `stop`.
    ///
    /// # Errors
    /// Busy or Cancelled, with nothing sent.
    pub(crate) fn driver_within(
        &self,
        until: Instant,
        stop: &Stop,
    ) -> Result<DriverGuard<'_>, TransportError> {
        self.access.acquire(until, stop).map_err(|why| {
            let what = match why {
                BulkErrorKind::Stopped => "the call was ended",
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
    /// As [`ClaimableReader::claim`].
    pub(crate) fn claim(
        &self,
        request: ClaimRequest<'_>,
    ) -> Result<Arc<ReaderClaim>, TransportError> {
        self.claimable.claim(request)
    }
}

/// One CCID slot of a reader, which can be claimed until it is retired.
#[derive(Debug)]
struct ClaimableReader {
    info: ReaderInfo,
    shared_claim: Arc<SharedClaim>,
    /// The device was unplugged, or left to pcscd.
    retired: AtomicBool,
}

impl ClaimableReader {
    fn new(info: ReaderInfo, shared_claim: Arc<SharedClaim>) -> Self {
        Self {
            info,
            shared_claim,
            retired: AtomicBool::new(false),
        }
    }

    /// What all readers of the backend share.
    fn context(&self) -> &BackendContext {
        &self.shared_claim.context
    }

    /// This process's claim, if there is one. A claim in progress does not count: it wakes the watch when it is made.
    fn current_claim(&self) -> Option<Arc<ReaderClaim>> {
        self.shared_claim.current_claim()
    }

    /// The ATR of the card that another process powered within this device instance.
    fn recorded_atr(&self) -> Option<Atr> {
        let record = self.context().lock_folder.peek(&self.info.lock_name)?;
        let atr = record.atr(self.info.slot).cloned();
        atr.filter(|_| record.instance == self.info.instance)
    }

    /// No claim is made from now on. A claim ends with the running transaction.
    fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
        if let Some(reader_claim) = self.current_claim() {
            reader_claim.request_local_release();
        }
    }

    /// Claims the reader, or joins this process's claim.
    ///
    /// # Errors
    /// As [`wait_for`].
    fn claim(&self, request: ClaimRequest<'_>) -> Result<Arc<ReaderClaim>, TransportError> {
        wait_for(
            &self.info,
            &*self.context().opener,
            request,
            |request_release| {
                let gone = || Err(ClaimError::Open(OpenError::Disconnected));
                if self.is_retired() {
                    return gone();
                }
                let reader_claim = self.shared_claim.claim(&self.info, request_release)?;
                // A concurrent `retire` has seen the claim, or is seen here.
                if self.is_retired() {
                    gone()
                } else {
                    Ok(reader_claim)
                }
            },
        )
    }

    fn is_retired(&self) -> bool {
        self.retired.load(Ordering::SeqCst)
    }

    /// Counts the events that may have cost the card its state.
    fn loss_counts(&self) -> LossCounts {
        let others = self.info.device.foreign_use.count();
        LossCounts {
            foreign_uses: self.shared_claim.peer_uses().wrapping_add(others),
            resets: self.info.device.resets(),
        }
    }
}

/// Counts the events that a card's state does not surely survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LossCounts {
    foreign_uses: u64,
    resets: u64,
}
