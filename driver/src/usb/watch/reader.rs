//! Watch state of one reader: its slots, how card changes are detected, last error, next poll time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use claviger_apdu::TransportError;

use super::{
    interrupt::InterruptListener,
    slot::{ChangeCounter, POLL_TIMEOUT, PollContext, WatchedSlot},
};
use crate::{
    reader::ReaderState,
    usb::{claim::ReaderClaim, reader::UsbReader},
    wait::earliest,
};

/// Poll interval of a reader without an interrupt endpoint, while a caller waits for a card.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Timeout of the first response. It doubles after each failure. Without threads, the other readers wait meanwhile.
const FIRST_RESPONSE_TIMEOUT: Duration = Duration::from_millis(500);
/// A reader that did not respond is not polled for this many times the timeout.
const BACKOFF_FACTOR: u32 = 4;

/// One reader on the bus. It has at least one slot.
pub(super) struct WatchedReader {
    slots: Vec<WatchedSlot>,
    monitor: CardMonitor,
    /// Timeout of the next response.
    response_timeout: Duration,
    /// The reader did not respond. It is not polled before this instant unless it sends a notification.
    backoff_until: Option<Instant>,
}

/// How card changes are detected.
enum CardMonitor {
    Off,
    Interrupt(InterruptListener),
    /// The reader stays claimed and is polled.
    Polled {
        _claim: Arc<ReaderClaim>,
    },
}

impl WatchedReader {
    /// A reader with these slots.
    pub(super) fn new(readers: Vec<Arc<UsbReader>>, changes: &ChangeCounter) -> Self {
        let views = readers.into_iter();
        Self {
            slots: views
                .map(|reader| WatchedSlot::new(reader, changes.next()))
                .collect(),
            monitor: CardMonitor::Off,
            response_timeout: FIRST_RESPONSE_TIMEOUT,
            backoff_until: None,
        }
    }

    pub(super) fn readers(&self) -> impl Iterator<Item = &Arc<UsbReader>> {
        self.slots.iter().map(|slot| &slot.reader)
    }

    /// The next poll time.
    pub(super) fn due(&self) -> Option<Instant> {
        let due = self
            .slots
            .iter()
            .map(WatchedSlot::due)
            .fold(None, earliest)?;
        Some(self.backoff_until.map_or(due, |rests| rests.max(due)))
    }

    /// Returns whether the poll time has come.
    pub(super) fn is_due(&self) -> bool {
        self.due().is_some_and(|due| due <= Instant::now())
    }

    /// Returns whether the reader responded to the last poll, or was never polled.
    pub(super) fn is_responsive(&self) -> bool {
        self.response_timeout == FIRST_RESPONSE_TIMEOUT
    }

    /// Schedules a poll at once.
    pub(super) fn poll_now(&mut self) {
        self.backoff_until = None;
        self.slots.iter_mut().for_each(WatchedSlot::poll_now);
    }

    /// Polls the slots again whose last poll failed. Returns whether there were any.
    pub(super) fn retry_failed(&mut self) -> bool {
        let mut is_troubled = false;
        for slot in &mut self.slots {
            if slot.last_error().is_some() {
                slot.poll_now();
                is_troubled = true;
            }
        }
        is_troubled
    }

    /// Schedules a poll, unless the cards are monitored or cannot be exchanged.
    pub(super) fn poll_if_unmonitored(&mut self) {
        let may_change = self.needs_monitoring() && !self.is_monitored();
        let views = self.slots.iter_mut();
        views
            .filter(|slot| slot.is_new() || may_change)
            .for_each(WatchedSlot::poll_now);
    }

    /// The reader was released. Polls it at once if that is awaited. The release of a claim of this process is reported, too, and
    /// is not awaited.
    pub(super) fn claim_released(&mut self) {
        let views = self.slots.iter_mut();
        views
            .filter(|slot| slot.awaits_release())
            .for_each(WatchedSlot::poll_now);
    }

    /// Returns whether a card can be exchanged unseen while the reader is not claimed.
    pub(super) fn needs_monitoring(&self) -> bool {
        self.readers().any(|reader| !reader.info().is_fixed)
    }

    pub(super) const fn is_monitored(&self) -> bool {
        !matches!(self.monitor, CardMonitor::Off)
    }

    pub(super) const fn interrupt(&self) -> Option<&InterruptListener> {
        match &self.monitor {
            CardMonitor::Interrupt(listener) => Some(listener),
            _ => None,
        }
    }

    /// This process's claim of the reader, if there is one.
    pub(super) fn current_claim(&self) -> Option<Arc<ReaderClaim>> {
        self.readers().next()?.current_claim()
    }

    /// Returns why the reader, or a slot of it, is not reported.
    pub(super) fn last_error(&self) -> Option<&TransportError> {
        self.slots.iter().find_map(WatchedSlot::last_error)
    }

    /// The state of each slot that was polled successfully.
    pub(super) fn states(&self) -> impl Iterator<Item = ReaderState> {
        self.slots.iter().filter_map(WatchedSlot::state)
    }

    /// Stops monitoring the cards. The claim ends unless a transport holds it.
    pub(super) fn stop_monitoring(&mut self) {
        if let Some(claim) = self.current_claim() {
            claim.set_monitored(false);
        }
        self.monitor = CardMonitor::Off;
    }

    /// Releases the reader after a poll whose result has been reported.
    pub(super) fn release_idle(&mut self) {
        self.slots.iter_mut().for_each(WatchedSlot::release_idle);
    }

    /// Releases the reader if another process requested it.
    pub(super) fn yield_if_requested(&mut self, is_told: bool) {
        if !self
            .current_claim()
            .is_some_and(|reader_claim| reader_claim.release_requested())
        {
            return;
        }
        self.stop_monitoring();
        let needs_watching = self.needs_monitoring();
        for slot in &mut self.slots {
            // A driver in use yields at the end of its transaction.
            if let Some(mut driver) = slot.reader.try_driver() {
                driver.yield_if_requested();
            }
            if needs_watching {
                slot.await_release(is_told);
            }
        }
    }

    /// Takes in the notifications of the interrupt endpoint.
    pub(super) fn take_notifications(&mut self) {
        let CardMonitor::Interrupt(listener) = &mut self.monitor else {
            return;
        };
        let report = listener.take_notifications();
        if report.is_closed {
            // A pipe that always fails is as good as none.
            let claim = self
                .current_claim()
                .inspect(|claim| claim.set_monitored(false));
            self.monitor = claim.map_or(CardMonitor::Off, |_claim| CardMonitor::Polled { _claim });
        }
        if report.is_closed || report.has_gap {
            // The lost notifications may have reported anything.
            self.poll_now();
        }
        if !report.slots.is_empty() {
            self.backoff_until = None;
        }
        let several = self.slots.len() > 1;
        for (slot, state) in self.slots.iter_mut().zip(report.slots) {
            if let Some(state) = state {
                slot.take_notification(state, several);
            }
        }
    }

    /// Polls each slot that is due, until the deadline. Starts to monitor the cards first, if the watch does.
    pub(super) fn poll(&mut self, poll: &PollContext) {
        for at in 0..self.slots.len() {
            let now = Instant::now();
            // A slot that is not polled in time stays due.
            if now >= poll.deadline || self.backoff_until.is_some_and(|rests| rests > now) {
                return;
            }
            if self.slots.get_mut(at).is_some_and(WatchedSlot::is_due) {
                self.poll_slot(at, poll);
            }
            if poll.stop.is_set() {
                return;
            }
        }
    }

    fn poll_slot(&mut self, at: usize, poll: &PollContext) {
        let start = Instant::now();
        if poll.watching && self.needs_monitoring() {
            self.start_monitoring(at, poll);
        }
        let is_polled = matches!(self.monitor, CardMonitor::Polled { .. });
        let Some(slot) = self.slots.get_mut(at) else {
            return;
        };
        let has_answered = slot.poll(poll, self.response_timeout);
        if is_polled && slot.due().is_none() {
            slot.poll_at(Some(Instant::now() + POLL_INTERVAL));
        }
        if slot.is_gone() {
            self.stop_monitoring();
        }
        self.adapt_timeout(has_answered, start);
    }

    /// Doubles the timeout of a reader that did not respond, and polls it less often.
    fn adapt_timeout(&mut self, has_answered: bool, start: Instant) {
        if has_answered {
            self.response_timeout = FIRST_RESPONSE_TIMEOUT;
            self.backoff_until = None;
        } else {
            let now = Instant::now();
            self.backoff_until =
                Some(now + now.duration_since(start).saturating_mul(BACKOFF_FACTOR));
            self.response_timeout = self.response_timeout.saturating_mul(2).min(POLL_TIMEOUT);
        }
    }

    fn start_monitoring(&mut self, at: usize, poll: &PollContext) {
        if self.is_monitored() {
            return;
        }
        let slots = self.slots.len();
        let Some(slot) = self.slots.get_mut(at) else {
            return;
        };
        let Some(reader_claim) = slot.claim(poll) else {
            return;
        };
        let info = slot.reader.info();
        self.monitor = match InterruptListener::new(info, Arc::clone(&reader_claim), slots) {
            Ok(Some(listener)) => {
                reader_claim.set_monitored(true);
                CardMonitor::Interrupt(listener)
            }
            Ok(None) => CardMonitor::Polled {
                _claim: reader_claim,
            },
            Err(error) => {
                let name = &info.interface.name;
                tracing::warn!(
                    "reader {name}: its interrupt endpoint cannot be read ({error}); the reader is polled instead"
                );
                CardMonitor::Polled {
                    _claim: reader_claim,
                }
            }
        };
    }
}
