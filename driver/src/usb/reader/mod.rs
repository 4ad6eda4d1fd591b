//! A reader of ours: who has it at the moment, and what is known of the cards in its slots.

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
    claim::{ClaimError, ClaimRequest, ReaderClaim, shared::SharedClaim, wait_for},
    discovery::reader_info::ReaderInfo,
    host::transfer::OpenError,
    pipe::bulk::BulkErrorKind,
};
use crate::wait::Stop;

/// One slot of a reader from one plugging in to the next; of most readers, the only one.
#[derive(Debug)]
pub(crate) struct UsbReader {
    pub(crate) info: ReaderInfo,
    shared_claim: Arc<SharedClaim>,
    access: DriverAccess,
    /// It has left the bus, or is not ours any more.
    retired: AtomicBool,
}

impl UsbReader {
    pub(crate) fn new(info: ReaderInfo, holding: Arc<SharedClaim>) -> Self {
        Self {
            access: DriverAccess::new(ReaderDriver::for_slot(info.slot)),
            info,
            shared_claim: holding,
            retired: AtomicBool::new(false),
        }
    }

    /// The slot's desk, for one conversation. Whoever is at it is waited for until `until` or `stop`.
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
            let what = format!("reader {}: {what}", self.info.interface.name);
            TransportError::before_card(why.transport_kind(), what)
        })
    }

    /// The slot's desk, unless somebody is at it.
    pub(crate) fn try_driver(&self) -> Option<DriverGuard<'_>> {
        self.access.try_acquire()
    }

    /// The connection has ended. Nobody is waited for: whoever is at the desk, or comes next, lets go of the reader.
    pub(crate) fn detach(&self) {
        self.access.detach();
    }

    /// The slot's desk, unless somebody is at it or a command would have to wait for another slot's.
    pub(crate) fn try_idle_driver(&self) -> Option<DriverGuard<'_>> {
        let is_free = self
            .current_claim()
            .is_none_or(|reader_claim| reader_claim.is_free());
        is_free.then(|| self.try_driver()).flatten()
    }

    /// The claim, while somebody in this process has it: not one that is just being made, which wakes the watch when it is.
    pub(crate) fn current_claim(&self) -> Option<Arc<ReaderClaim>> {
        self.shared_claim.current_claim()
    }

    /// The answer to reset of the card that another process of ours has powered, or had, since the reader was plugged in.
    pub(crate) fn recorded_atr(&self) -> Option<Atr> {
        let record = self
            .shared_claim
            .context
            .lock_folder
            .peek(&self.info.lock_name)?;
        let atr = record.atr(self.info.slot).cloned();
        atr.filter(|_| record.instance == self.info.instance)
    }

    /// The device has left, or is not ours any more: no claim is made from now on, and one that lasts ends with the
    /// conversation under way, whoever still has a connection.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
        if let Some(reader_claim) = self.current_claim() {
            reader_claim.request_local_release();
        }
        if let Some(mut driver) = self.try_driver() {
            driver.yield_if_requested();
        }
    }

    /// Claims the reader, or shares in this process's claim.
    ///
    /// # Errors
    /// As [`wait_for`].
    pub(crate) fn claim(
        &self,
        request: ClaimRequest<'_>,
    ) -> Result<Arc<ReaderClaim>, TransportError> {
        wait_for(
            &self.info,
            &*self.shared_claim.context.opener,
            request,
            |request_release| {
                let gone = || Err(ClaimError::Open(OpenError::Disconnected));
                if self.is_retired() {
                    return gone();
                }
                let reader_claim = self.shared_claim.claim(&self.info, request_release)?;
                // Whoever retires it meanwhile has seen the claim, or is seen here.
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

    /// What has happened to the reader so far that its card may not have survived.
    fn loss_counts(&self) -> LossCounts {
        let others = self.info.device.foreign_use.count();
        LossCounts {
            foreign_uses: self.shared_claim.peer_uses().wrapping_add(others),
            resets: self.info.device.resets(),
        }
    }
}

/// How often something happened that the state of no card survives for sure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LossCounts {
    foreign_uses: u64,
    resets: u64,
}
