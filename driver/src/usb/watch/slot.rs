//! Watch state of one slot: last known card, last error, next poll time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use claviger_apdu::{Atr, Call, TransportError, TransportErrorKind};

use crate::{
    ccid::{budget, message::IccStatus, notification::SlotState},
    reader::{Presence, ReaderState},
    usb::{
        claim::{ClaimRequest, ReaderClaim},
        reader::{UsbReader, driver::ReaderDriver},
    },
    wait::{Backoff, StopFlag},
};

/// Timeout of one poll, once the reader has responded.
pub(super) const POLL_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of the claim of a reader that was never polled.
const FIRST_CLAIM_TIMEOUT: Duration = Duration::from_millis(500);
/// Retry interval for a reader in use elsewhere, where its release is not reported.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The same, where its release is reported. In a container the messages may never come.
const REPORTED_RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Minimum interval between two polls that notifications of the reader cause.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// One slot of a reader on the bus.
pub(super) struct WatchedSlot {
    pub(super) reader: Arc<UsbReader>,
    /// Advances whenever the card may be another one.
    changes: u32,
    /// `None` before the first successful poll. Such a slot is not reported.
    presence: Option<Presence>,
    /// The error of the last poll or of the monitoring.
    last_error: Option<TransportError>,
    due: Option<Instant>,
    backoff: Backoff,
    /// A notification reported that the card was exchanged.
    card_replaced: bool,
    /// The reader was not released after the last poll.
    is_kept_open: bool,
    /// Another program uses the reader. Its release is awaited.
    awaits_release: bool,
    /// The time of the last poll.
    last_poll: Option<Instant>,
}

/// The information that a poll needs from its watch.
#[derive(Clone)]
pub(super) struct PollContext {
    pub(super) stop: Arc<StopFlag>,
    pub(super) deadline: Instant,
    /// The kernel reports the end of another program's claim.
    pub(super) reports_release: bool,
    /// The result is reported before the reader is released. [`WatchedSlot::release_idle`] follows.
    pub(super) keep_open: bool,
    /// The cards are to be monitored.
    pub(super) watching: bool,
    pub(super) changes: ChangeCounter,
}

/// Source of [`ReaderState::change_count`] for all readers of a watch.
#[derive(Clone, Debug, Default)]
pub(super) struct ChangeCounter(Arc<AtomicU32>);

impl ChangeCounter {
    pub(super) fn next(&self) -> u32 {
        self.0.fetch_add(1, Ordering::SeqCst).wrapping_add(1)
    }
}

impl PollContext {
    /// A call of at most `limit`, within the deadline.
    fn within(&self, limit: Duration) -> Call {
        let mut call = Call::within(limit);
        call.deadline = call.deadline.min(self.deadline);
        call
    }
}

/// The result of a poll.
enum SlotContents {
    Empty,
    /// A card, and whether it is surely the card of the last poll.
    Card(Atr, bool),
    Mute,
}

impl WatchedSlot {
    pub(super) fn new(reader: Arc<UsbReader>, changes: u32) -> Self {
        Self {
            reader,
            changes,
            presence: None,
            last_error: None,
            due: Some(Instant::now()),
            backoff: Backoff::new(Duration::from_millis(20), Duration::from_secs(2)),
            card_replaced: false,
            is_kept_open: false,
            awaits_release: false,
            last_poll: None,
        }
    }

    /// The next poll time.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Sets the next poll time. `None` waits for an event.
    pub(super) const fn poll_at(&mut self, due: Option<Instant>) {
        self.due = due;
    }

    /// Returns whether the slot is to be polled once another program releases the reader.
    pub(super) const fn awaits_release(&self) -> bool {
        self.awaits_release
    }

    /// Awaits the release of the reader by another program, which is reported or not.
    pub(super) fn await_release(&mut self, is_told: bool) {
        self.awaits_release = true;
        self.due = Some(
            Instant::now()
                + if is_told {
                    REPORTED_RETRY_INTERVAL
                } else {
                    RETRY_INTERVAL
                },
        );
    }

    /// Schedules a poll at once.
    pub(super) fn poll_now(&mut self) {
        self.due = Some(Instant::now());
        self.backoff.reset();
    }

    /// Returns whether no poll has succeeded yet.
    pub(super) const fn is_new(&self) -> bool {
        self.presence.is_none()
    }

    pub(super) const fn last_error(&self) -> Option<&TransportError> {
        self.last_error.as_ref()
    }

    /// Returns whether the last poll found the device unplugged.
    pub(super) fn is_gone(&self) -> bool {
        self.last_error()
            .is_some_and(|trouble| trouble.kind == TransportErrorKind::NoReader)
    }

    pub(super) fn state(&self) -> Option<ReaderState> {
        let info = self.reader.info();
        Some(ReaderState {
            id: info.id.clone(),
            name: info.interface.name.clone(),
            presence: self.presence.clone()?,
            change_count: self.changes,
            stable_name: info.model.clone(),
        })
    }

    /// Takes in a notification. Where a reader has `several` slots, a notification reports all of them: slots without a change
    /// are not polled.
    pub(super) fn take_notification(&mut self, state: SlotState, several: bool) {
        let was_there = matches!(self.presence, Some(Presence::Card(_) | Presence::Mute));
        self.card_replaced |= state.changed && was_there;
        if state.changed || state.present != was_there || !several {
            self.poll_now();
            // However often the reader sends notifications.
            let not_before = self.last_poll.map(|looked| looked + MIN_POLL_INTERVAL);
            self.due = self.due.max(not_before);
        }
    }

    /// Returns whether the slot is due. Clears the poll time and the last error then.
    pub(super) fn is_due(&mut self) -> bool {
        let is_due = self.due.is_some_and(|due| due <= Instant::now());
        if is_due {
            self.due = None;
            self.last_error = None;
            self.awaits_release = false;
            self.last_poll = Some(Instant::now());
        }
        is_due
    }

    /// Polls the slot. The reader's first response may take `response_timeout`. Returns false if the reader did not respond.
    pub(super) fn poll(&mut self, poll: &PollContext, response_timeout: Duration) -> bool {
        if self.use_recorded_atr() {
            return true;
        }
        let found = match self.query_slot(poll, response_timeout) {
            Some(Ok(found)) => found,
            Some(Err(error)) => return self.note_error(error, poll),
            None => {
                // Another thread uses the slot.
                self.due = Some(Instant::now() + self.backoff.next_delay());
                return true;
            }
        };
        self.backoff.reset();
        self.card_replaced = false;
        let (presence, is_same) = match found {
            SlotContents::Empty => (Presence::Empty, true),
            SlotContents::Mute => (Presence::Mute, true),
            SlotContents::Card(atr, is_same) => (Presence::Card(atr), is_same),
        };
        let shown = self.presence.replace(presence);
        if shown != self.presence || !is_same {
            self.changes = poll.changes.next();
        }
        true
    }

    /// A card that cannot be removed needs no poll once another process has powered it.
    fn use_recorded_atr(&mut self) -> bool {
        if !self.reader.info().is_fixed || self.reader.current_claim().is_some() {
            return false;
        }
        let known = self.reader.recorded_atr();
        if let Some(atr) = known {
            self.presence = Some(Presence::Card(atr));
            return true;
        }
        false
    }

    /// Queries the slot. Returns `None` while another thread uses it.
    fn query_slot(
        &mut self,
        poll: &PollContext,
        response_timeout: Duration,
    ) -> Option<Result<SlotContents, TransportError>> {
        let mut driver = self.reader.try_idle_driver()?;
        driver.check_resets();
        if self.card_replaced && self.reader.info().interface.class.activates_automatically() {
            // The slot status does not show the exchange, because the new card is as active as the previous one.
            driver.forget_card();
        }
        let found = self.query_card(&mut driver, poll, response_timeout);
        if !poll.keep_open {
            driver.close_if_detached();
        }
        drop(driver);
        self.is_kept_open = poll.keep_open;
        Some(found)
    }

    /// Releases a reader that a poll left open. A transport that uses the reader by now releases it itself.
    pub(super) fn release_idle(&mut self) {
        if self.is_kept_open
            && let Some(mut driver) = self.reader.try_driver()
        {
            driver.close_if_detached();
            self.is_kept_open = false;
        }
    }

    fn query_card(
        &self,
        driver: &mut ReaderDriver,
        poll: &PollContext,
        response_timeout: Duration,
    ) -> Result<SlotContents, TransportError> {
        let (icc, is_known) = self.query_status(driver, poll, response_timeout)?;
        let call = match icc {
            Some(_) => poll.within(POLL_TIMEOUT),
            None => poll.within(response_timeout),
        };
        match icc {
            Some(IccStatus::Absent) => return Ok(SlotContents::Empty),
            // The card may have been exchanged unseen. Finding out would cost the card its state, so that is left to the next
            // transport.
            Some(IccStatus::Active) if !self.card_replaced && !is_known => {
                if let Some(Presence::Card(atr)) = &self.presence {
                    return Ok(SlotContents::Card(atr.clone(), true));
                }
            }
            _ => {}
        }
        match driver.ensure_powered(call) {
            Ok(Some(atr)) => Ok(SlotContents::Card(
                atr,
                is_known || self.reader.info().is_fixed,
            )),
            Ok(None) => Ok(SlotContents::Empty),
            Err(error) if error.kind == TransportErrorKind::NoCard && driver.is_empty() => {
                Ok(SlotContents::Empty)
            }
            Err(error) if error.kind == TransportErrorKind::NoCard => Ok(SlotContents::Mute),
            Err(error) => Err(error),
        }
    }

    /// The slot's status, if the reader has reported one, and whether the card is known.
    fn query_status(
        &self,
        driver: &mut ReaderDriver,
        poll: &PollContext,
        response_timeout: Duration,
    ) -> Result<(Option<IccStatus>, bool), TransportError> {
        let wait = if self.is_new() {
            FIRST_CLAIM_TIMEOUT
        } else {
            Duration::ZERO
        };
        let request = ClaimRequest {
            deadline: Instant::now() + wait,
            request_release: self.is_new(),
            may_reset: false,
            stop: &poll.stop,
        };
        let was_open = driver.is_open();
        // A reader in use that does not respond in time has its card reset.
        let timeout = if was_open {
            response_timeout.max(budget::STATUS)
        } else {
            response_timeout
        };
        let answer = poll.within(wait + timeout);
        let device = driver.open_slot(request, answer)?;
        if was_open {
            device.status(answer)?;
        }
        Ok((device.icc(), device.atr().is_some()))
    }

    /// Claims the reader in order to monitor it. Does not wait and requests no release.
    pub(super) fn claim(&mut self, poll: &PollContext) -> Option<Arc<ReaderClaim>> {
        let request = ClaimRequest {
            deadline: Instant::now(),
            request_release: false,
            may_reset: false,
            stop: &poll.stop,
        };
        let claimed = self.reader.claim(request);
        claimed
            .map_err(|error| {
                self.note_error(error, poll);
            })
            .ok()
    }

    /// Notes why the claim or the query failed. Returns false if the reader did not respond.
    fn note_error(&mut self, error: TransportError, poll: &PollContext) -> bool {
        use TransportErrorKind::{Busy, Cancelled, Denied, NoReader};
        match error.kind {
            // A hotplug event reports when that changes.
            NoReader | Cancelled => self.due = None,
            Busy | Denied => self.await_release(poll.reports_release && !self.is_held_by_us()),
            _ => self.due = Some(Instant::now() + self.backoff.next_delay()),
        }
        tracing::debug!("{error}");
        let has_answered = matches!(error.kind, NoReader | Cancelled | Busy | Denied);
        self.last_error = (error.kind != Cancelled).then_some(error);
        has_answered
    }

    /// Returns whether another slot or reader of this process may hold the device. Its release is not reported.
    fn is_held_by_us(&self) -> bool {
        self.reader.current_claim().is_some() || self.reader.info().device.is_exclusive()
    }
}
