//! Claims of one reader by this process, and counts of the events that may have cost its card the state.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use claviger_apdu::{Atr, TransportError};

use crate::usb::{
    claim::{BackendContext, ClaimError, ClaimRequest, ReaderClaim, shared::SharedClaim, wait_for},
    discovery::reader_info::ReaderInfo,
    host::transfer::OpenError,
};

/// One CCID slot of a reader, which can be claimed until it is retired.
#[derive(Debug)]
pub(super) struct ClaimableReader {
    pub(super) info: ReaderInfo,
    shared_claim: Arc<SharedClaim>,
    /// The device was unplugged, or left to pcscd.
    retired: AtomicBool,
}

impl ClaimableReader {
    pub(super) fn new(info: ReaderInfo, shared_claim: Arc<SharedClaim>) -> Self {
        Self {
            info,
            shared_claim,
            retired: AtomicBool::new(false),
        }
    }

    /// Returns the state that all readers of the backend share.
    pub(super) fn context(&self) -> &BackendContext {
        &self.shared_claim.context
    }

    /// This process's claim, if there is one. A claim in progress does not count: it wakes the watch when it is made.
    pub(super) fn current_claim(&self) -> Option<Arc<ReaderClaim>> {
        self.shared_claim.current_claim()
    }

    /// The ATR of the card that another process powered within this device instance.
    pub(super) fn recorded_atr(&self) -> Option<Atr> {
        let record = self.context().lock_folder.peek(&self.info.lock_name)?;
        let atr = record.atr(self.info.slot).cloned();
        atr.filter(|_| record.instance == self.info.instance)
    }

    /// No claim is made from now on. A claim ends with the running transaction.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
        if let Some(reader_claim) = self.current_claim() {
            reader_claim.request_local_release();
        }
    }

    /// Claims the reader, or joins this process's claim.
    ///
    /// # Errors
    /// The errors of [`wait_for`].
    pub(super) fn claim(
        &self,
        request: ClaimRequest<'_>,
    ) -> Result<Arc<ReaderClaim>, TransportError> {
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
    pub(super) fn loss_counts(&self) -> LossCounts {
        let others = self.info.device.foreign_use.count();
        LossCounts {
            foreign_uses: self.shared_claim.peer_uses().wrapping_add(others),
            resets: self.info.device.resets(),
        }
    }
}

/// Counts the events that a card's state does not surely survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LossCounts {
    foreign_uses: u64,
    pub(super) resets: u64,
}
