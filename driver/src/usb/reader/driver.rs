//! Drives one reader for one thread at a time: the claimed CCID slot, and the saved state between two claims.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use claviger_apdu::{Atr, Call, Epoch, Limits, TransportError, TransportErrorKind};

use super::{
    claimable::{ClaimableReader, LossCounts},
    slot::{self, Card, CcidSlot},
};
use crate::{
    ccid::{
        descriptor::{ClassDescriptor, ExchangeLevel},
        message::IccStatus,
    },
    usb::{
        claim::{ClaimRequest, MAX_RETRY_INTERVAL, ReaderClaim},
        discovery::{reader_info::ReaderInfo, suspend::SuspendDetector},
    },
    wait::{StopFlag, wait_readable},
};

/// After yielding the reader to another process, wait at most this long before claiming it again. The wait ends once that
/// process has claimed it. Longer than the longest interval between two tries of that process.
const YIELD_TIMEOUT: Duration = MAX_RETRY_INTERVAL.saturating_add(Duration::from_millis(10));

/// Poll interval of that wait.
const YIELD_POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Drives one reader, for one thread at a time.
#[derive(Debug)]
pub(crate) struct ReaderDriver {
    reader: Arc<ClaimableReader>,
    /// The slot of the claimed reader. Dropped before the claim.
    ccid_slot: Option<CcidSlot>,
    claim: Option<Arc<ReaderClaim>>,
    /// A transport uses the reader.
    is_attached: bool,
    /// The card was powered since the last transport began, and may be another one.
    may_be_another: bool,
    /// Suspends of the machine that this driver has noticed. A token may be exchanged in one without a hotplug event.
    suspend_count: u64,
    /// The suspend count when the last transport began.
    attached_at: u64,
    saved: SavedState,
    suspend: Option<SuspendDetector>,
}

/// The state of the card between two claims.
#[derive(Debug)]
struct SavedState {
    loss_counts: Option<LossCounts>,
    atr: Option<Atr>,
    /// The card that was left powered.
    card: Option<SavedCard>,
    epoch: Epoch,
    synchronized: bool,
    /// The time at which the reader was yielded to another process, and the use count of the claim that ended.
    yielded: Option<(Instant, u64)>,
}

/// A card that was left powered.
#[derive(Debug)]
struct SavedCard {
    /// The card and the parameters agreed with it.
    card: Card,
    /// The claim in which they were agreed.
    claim: Weak<ReaderClaim>,
    /// [`ReaderClaim::monitoring_period`] at that time.
    monitoring_period: Option<u64>,
}

impl Default for SavedState {
    fn default() -> Self {
        Self {
            loss_counts: None,
            atr: None,
            card: None,
            epoch: Epoch::default(),
            synchronized: true,
            yielded: None,
        }
    }
}

impl ReaderDriver {
    pub(super) fn new(reader: Arc<ClaimableReader>) -> Self {
        Self {
            reader,
            ccid_slot: None,
            claim: None,
            is_attached: false,
            may_be_another: false,
            suspend_count: 0,
            attached_at: 0,
            saved: SavedState::default(),
            suspend: None,
        }
    }

    /// Claims the reader and resumes the saved state. Starts a new epoch if another process may have used the card. Powers no
    /// card. Sends nothing yet to a fixed token that no process with this driver has used. A device that does not respond is
    /// reset if the request allows it.
    ///
    /// # Errors
    /// The error of the claim or of a reader that does not respond.
    pub(crate) fn open_slot(
        &mut self,
        request: ClaimRequest<'_>,
        call: Call,
    ) -> Result<&mut CcidSlot, TransportError> {
        let _claim = self.check_suspend();
        if self.ccid_slot.is_none() {
            self.pause_after_yield(request.stop);
            let reader_claim = self.reader.claim(request)?;
            let device = self.resume_slot(&reader_claim, request, call)?;
            self.claim = Some(reader_claim);
            self.ccid_slot = Some(device);
        }
        let device = self.ccid_slot.as_mut().ok_or_else(|| {
            let what = format!("reader {}: not open", self.reader.info.interface.name);
            TransportError::before_card(TransportErrorKind::NoReader, what)
        })?;
        // A call with another stop may have opened it.
        device.set_stop(request.stop);
        Ok(device)
    }

    /// After a suspend the card may have lost power, so its slot is queried again. An active card kept its power, unless
    /// the reader powers cards by itself. Returns the claim, which must outlive the query.
    fn check_suspend(&mut self) -> Option<Arc<ReaderClaim>> {
        let slept = self
            .suspend
            .get_or_insert_with(|| SuspendDetector::new(self.reader.context().bus.clone()));
        if !slept.was_suspended() {
            return None;
        }
        self.suspend_count += 1;
        let reader_claim = self.claim.clone();
        self.close();
        if self.reader.info.interface.class.activates_automatically() {
            // The parameters agreed with the card are lost too.
            self.saved.card = None;
            self.saved.epoch.0 += u64::from(self.saved.atr.take().is_some());
        }
        reader_claim
    }

    /// Gives the process that requested the reader time to claim it. Ends once the use count shows that it has.
    fn pause_after_yield(&mut self, stop: &StopFlag) {
        let Some((yielded, uses)) = self.saved.yielded.take() else {
            return;
        };
        let deadline = yielded + YIELD_TIMEOUT;
        let locks = &self.reader.context().lock_folder;
        loop {
            let record = locks.peek(&self.reader.info.lock_name);
            let now = Instant::now();
            if record.is_some_and(|record| record.use_count != uses)
                || now >= deadline
                || stop.is_set()
            {
                return;
            }
            let _ = wait_readable(&[], stop, Some(deadline.min(now + YIELD_POLL_INTERVAL)));
        }
    }

    fn resume_slot(
        &mut self,
        reader_claim: &Arc<ReaderClaim>,
        request: ClaimRequest<'_>,
        call: Call,
    ) -> Result<CcidSlot, TransportError> {
        let info = &self.reader.info;
        let pipe = reader_claim.pipe(info)?;
        let mut device = slot::new_slot(pipe, info.interface.clone(), info.slot, request.stop);
        let known = &mut self.saved;
        // The card of a fixed token cannot be removed. So power-on would follow whatever the slot status is.
        let is_untouched =
            info.is_fixed && known.loss_counts.is_none() && reader_claim.previous().is_none();
        let mut abandoned = false;
        let atr = known.resume(self.reader.loss_counts(), || {
            abandoned = reader_claim.was_not_released();
            reader_claim.powered_atr(info).cloned()
        });
        known.synchronized &= !abandoned;
        let card = known.card.take();
        let card = card.filter(|left| left.claim.as_ptr() == Arc::as_ptr(reader_claim));
        device.resume(known.epoch, known.synchronized);
        if is_untouched {
            return Ok(device);
        }
        let resets = device.pipe().resets();
        let icc = if request.may_reset {
            device.status_or_reset(call)
        } else {
            device.status(call)
        };
        let was_reset = device.pipe().resets() != resets;
        known.synchronized = device.is_synchronized();
        // Or the reader would have reported a change.
        let monitoring_period = card.as_ref().and_then(|left| left.monitoring_period);
        let stays = info.keeps_card_identity()
            || (monitoring_period.is_some()
                && monitoring_period == reader_claim.monitoring_period());
        let knows = !was_reset
            && ((card.is_some() && stays) || (atr.is_some() && info.keeps_card_between_claims()));
        if knows && matches!(icc, Ok(IccStatus::Active)) {
            match (card, atr) {
                (Some(left), _) => device.restore_card(left.card),
                (None, Some(atr)) => device.assume_powered(atr),
                (None, None) => {}
            }
        } else {
            known.epoch.0 += u64::from(atr.is_some() || was_reset);
            device.resume(known.epoch, known.synchronized);
        }
        icc.map(|_| device)
    }

    /// Powers the card, which resets it, unless the card is powered and known.
    ///
    /// # Errors
    /// NoCard when there is none, or it is mute; else of the reader.
    pub(crate) fn ensure_powered(&mut self, call: Call) -> Result<Option<Atr>, TransportError> {
        let Some(device) = &mut self.ccid_slot else {
            return Ok(None);
        };
        if device.atr().is_none() {
            device.power_on(call)?;
            self.may_be_another = true;
            if let Some(reader_claim) = &self.claim {
                reader_claim.record_atr(self.reader.info.slot, device.atr().cloned());
            }
        }
        Ok(device.atr().cloned())
    }

    /// Returns whether the slot is open and its status was queried.
    pub(crate) const fn is_open(&self) -> bool {
        self.ccid_slot.is_some()
    }

    /// Returns whether the open slot reported no card.
    pub(crate) fn is_empty(&self) -> bool {
        let device = self.ccid_slot.as_ref();
        device.and_then(CcidSlot::icc) == Some(IccStatus::Absent)
    }

    /// The ATR of the powered card.
    pub(crate) fn atr(&self) -> Option<&Atr> {
        self.ccid_slot.as_ref().and_then(CcidSlot::atr)
    }

    /// The frame lengths that reach the powered card.
    pub(crate) fn limits(&self) -> Limits {
        let device = self.ccid_slot.as_ref();
        device.map_or(Limits::SHORT, CcidSlot::limits)
    }

    /// The card's epoch, across claims.
    pub(crate) fn epoch(&self) -> Epoch {
        let device = self.ccid_slot.as_ref().map(CcidSlot::epoch);
        device.unwrap_or(self.saved.epoch)
    }

    /// A transport begins. The claim lasts until the transport ends or another process requests the reader.
    /// Returns whether the card may be another one than that of the last transport.
    pub(crate) const fn attach(&mut self, is_fixed: bool) -> bool {
        self.is_attached = true;
        let was_suspended = self.attached_at != self.suspend_count;
        self.attached_at = self.suspend_count;
        let was_powered = std::mem::replace(&mut self.may_be_another, false);
        was_suspended || (was_powered && !is_fixed)
    }

    /// Returns how many suspends of the machine were noticed so far. The reader's slot is closed after a new one.
    pub(crate) fn suspend_count(&mut self) -> u64 {
        drop(self.check_suspend());
        self.suspend_count
    }

    /// The transport ends.
    pub(crate) fn detach(&mut self) {
        self.is_attached = false;
        self.close();
    }

    /// Releases the reader unless a transport uses it.
    pub(crate) fn close_if_detached(&mut self) {
        if !self.is_attached {
            self.close();
        }
    }

    /// Ends a transaction. Without a watch thread nothing polls release requests, so the reader is released at once if
    /// the next claim recognizes its card.
    pub(crate) fn end_use(&mut self) {
        self.yield_if_requested();
        let context = self.reader.context();
        if !context.has_watch_thread && self.reader.info.keeps_card_between_claims() {
            self.close();
        }
    }

    /// Releases the reader if another process requested it.
    pub(crate) fn yield_if_requested(&mut self) {
        let wanted = self
            .claim
            .as_ref()
            .filter(|reader_claim| reader_claim.release_requested());
        if let Some(uses) = wanted.map(|reader_claim| reader_claim.use_count()) {
            self.close();
            self.saved.yielded = Some((Instant::now(), uses));
        }
    }

    /// The card may be another one, or was reset with its device, without a notification.
    pub(crate) fn forget_card(&mut self) {
        let reader_claim = self.claim.take();
        self.close();
        self.claim = reader_claim;
        self.saved.atr = None;
        self.saved.epoch.0 += 1;
    }

    /// Forgets a card that a reset of the device has reset. Another slot may have caused that.
    pub(crate) fn check_resets(&mut self) {
        let device = self.ccid_slot.as_ref();
        if device.is_some_and(|device| device.pipe().resets() != self.reader.info.device.resets()) {
            self.forget_card();
            self.saved.loss_counts = Some(self.reader.loss_counts());
        }
    }

    fn close(&mut self) {
        if let Some(device) = self.ccid_slot.take() {
            self.saved.atr = device.atr().cloned();
            self.saved.epoch = device.epoch();
            self.saved.synchronized = device.is_synchronized();
            if let Some(reader_claim) = self.claim.as_ref().filter(|_| !self.saved.synchronized) {
                reader_claim.mark_unsynchronized();
            }
            if let Some(seen) = &mut self.saved.loss_counts {
                seen.resets = device.pipe().resets();
            }
            let card = device.into_card().zip(self.claim.as_ref());
            self.saved.card = card.map(|(card, reader_claim)| SavedCard {
                card,
                claim: Arc::downgrade(reader_claim),
                monitoring_period: reader_claim.monitoring_period(),
            });
        }
        self.claim = None;
    }
}

impl SavedState {
    /// Takes in the events since the last claim. Returns the ATR of a powered card that is known, else what `left` returns.
    fn resume(&mut self, now: LossCounts, left: impl FnOnce() -> Option<Atr>) -> Option<Atr> {
        let before = self.loss_counts.replace(now);
        if before == Some(now) {
            return self.atr.take();
        }
        self.atr = None;
        self.epoch.0 += u64::from(before.is_some());
        left()
    }
}

impl ReaderInfo {
    /// Returns whether an active card is the card that was powered before. It cannot be removed, or removal would have
    /// unpowered it because the reader powers no card by itself.
    pub(super) fn keeps_card_identity(&self) -> bool {
        self.is_fixed || !self.interface.class.activates_automatically()
    }

    /// Returns whether the next claim can use the state of the card. The parameters agreed with a TPDU card are known to this
    /// claim only.
    pub(super) fn keeps_card_between_claims(&self) -> bool {
        let class: &ClassDescriptor = &self.interface.class;
        let by_apdu = matches!(
            class.exchange_level(),
            ExchangeLevel::ShortApdu | ExchangeLevel::ExtendedApdu
        );
        by_apdu && self.keeps_card_identity()
    }
}
