//! A reader on the bus as the watch sees it: its slots, and how it is learnt that a card came or went.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use claviger_apdu::TransportError;

use super::{
    interrupt::InterruptListener,
    slot::{POLL_TIMEOUT, PollContext, WatchedSlot},
};
use crate::{
    reader::ReaderState,
    usb::{claim::ReaderClaim, discovery::reader_info::ReaderInfo, reader::UsbReader},
    wait::earliest,
};

/// How often a reader without an interrupt endpoint is looked at while somebody waits for a card.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// What the first answer of a reader may take, until it has failed to give one: the others wait meanwhile.
const FIRST_RESPONSE_TIMEOUT: Duration = Duration::from_millis(500);
/// A reader that did not answer is left alone so many times as long as it was waited for.
const BACKOFF_FACTOR: u32 = 4;

/// One reader on the bus; it has a slot at least.
pub(super) struct WatchedReader {
    slots: Vec<WatchedSlot>,
    monitor: CardMonitor,
    /// What its next answer may take: longer each time that none came.
    response_timeout: Duration,
    /// It did not answer, and is left alone until then unless it says something.
    backoff_until: Option<Instant>,
}

/// How it is learnt that a card came or went.
enum CardMonitor {
    Off,
    Interrupt(InterruptListener),
    /// It is looked at from time to time, and claimed meanwhile.
    Polled {
        _claim: Arc<ReaderClaim>,
    },
}

impl WatchedReader {
    /// A reader with these slots; `count` gives each its first number of changes.
    pub(super) fn new(readers: Vec<Arc<UsbReader>>, mut count: impl FnMut() -> u32) -> Self {
        let views = readers.into_iter();
        Self {
            slots: views
                .map(|reader| WatchedSlot::new(reader, count()))
                .collect(),
            monitor: CardMonitor::Off,
            response_timeout: FIRST_RESPONSE_TIMEOUT,
            backoff_until: None,
        }
    }

    /// Whether these are its slots.
    pub(super) fn is_same(&self, infos: &[ReaderInfo]) -> bool {
        let ours = self.readers().map(|reader| &reader.info);
        self.slots.len() == infos.len()
            && ours
                .zip(infos)
                .all(|(ours, info)| ours.is_same_instance(info))
    }

    pub(super) fn readers(&self) -> impl Iterator<Item = &Arc<UsbReader>> {
        self.slots.iter().map(|slot| &slot.reader)
    }

    /// When it wants to be looked at.
    pub(super) fn due(&self) -> Option<Instant> {
        let due = self
            .slots
            .iter()
            .map(WatchedSlot::due)
            .fold(None, earliest)?;
        Some(self.backoff_until.map_or(due, |rests| rests.max(due)))
    }

    /// Whether that time has come.
    pub(super) fn is_due(&self) -> bool {
        self.due().is_some_and(|due| due <= Instant::now())
    }

    /// What the reader's next answer may take.
    pub(super) const fn response_timeout(&self) -> Duration {
        self.response_timeout
    }

    /// Has it looked at as soon as possible.
    pub(super) fn poll_now(&mut self) {
        self.backoff_until = None;
        self.slots.iter_mut().for_each(WatchedSlot::poll_now);
    }

    /// Something may have changed that kept it from being looked at; whether something did.
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

    /// Has it looked at, unless its cards are watched or cannot change.
    pub(super) fn poll_if_unmonitored(&mut self) {
        let may_change = self.needs_monitoring() && !self.is_monitored();
        let views = self.slots.iter_mut();
        views
            .filter(|slot| slot.is_new() || may_change)
            .for_each(WatchedSlot::poll_now);
    }

    /// Whoever had it has let go: it is tried again if that was waited for. The end of a claim of ours says so as well, and
    /// nobody waits for that.
    pub(super) fn claim_released(&mut self) {
        let views = self.slots.iter_mut();
        views
            .filter(|slot| slot.awaits_release())
            .for_each(WatchedSlot::poll_now);
    }

    /// Whether its cards can be exchanged unseen while nobody has it claimed.
    pub(super) fn needs_monitoring(&self) -> bool {
        self.readers().any(|reader| !reader.info.is_fixed)
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

    /// The claim, while somebody in this process has it.
    pub(super) fn current_claim(&self) -> Option<Arc<ReaderClaim>> {
        self.readers().next()?.current_claim()
    }

    /// What keeps it, or a slot of it, from being seen.
    pub(super) fn last_error(&self) -> Option<&TransportError> {
        self.slots.iter().find_map(WatchedSlot::last_error)
    }

    /// What is known of each slot.
    pub(super) fn states(&self) -> impl Iterator<Item = ReaderState> {
        self.slots.iter().filter_map(WatchedSlot::state)
    }

    /// The device has left.
    pub(super) fn retire(&self) {
        self.readers().for_each(|reader| reader.retire());
    }

    /// Stops watching the cards; the claim ends unless a connection lasts.
    pub(super) fn stop_monitoring(&mut self) {
        if let Some(claim) = self.current_claim() {
            claim.set_monitored(false);
        }
        self.monitor = CardMonitor::Off;
    }

    /// Lets go of the reader after a look whose result has been told.
    pub(super) fn release_idle(&mut self) {
        self.slots.iter_mut().for_each(WatchedSlot::release_idle);
    }

    /// Lets go of the reader if another process has asked for it.
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
            // A desk somebody is at yields when he is done.
            if let Some(mut driver) = slot.reader.try_driver() {
                driver.yield_if_requested();
            }
            if needs_watching {
                slot.await_release(is_told);
            }
        }
    }

    /// Takes in what the interrupt endpoint said.
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
            // What was lost may have been anything.
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

    /// Looks at each slot whose time has come, while there is time. With `watching`, begins to watch the cards first.
    pub(super) fn poll(&mut self, watching: bool, poll: &mut PollContext<'_>) {
        for at in 0..self.slots.len() {
            let now = Instant::now();
            // Who is not looked at in time is due as before.
            if now >= poll.deadline || self.backoff_until.is_some_and(|rests| rests > now) {
                return;
            }
            if self.slots.get_mut(at).is_some_and(WatchedSlot::is_due) {
                self.poll_slot(at, watching, poll);
            }
            if poll.stop.is_set() {
                return;
            }
        }
    }

    fn poll_slot(&mut self, at: usize, watching: bool, poll: &mut PollContext<'_>) {
        let start = Instant::now();
        if watching && self.needs_monitoring() {
            self.start_monitoring(at, poll);
        }
        let is_polled = matches!(self.monitor, CardMonitor::Polled { .. });
        let Some(slot) = self.slots.get_mut(at) else {
            return;
        };
        let has_answered = slot.poll(poll);
        if is_polled && slot.due().is_none() {
            slot.poll_at(Some(Instant::now() + POLL_INTERVAL));
        }
        if slot.is_gone() {
            self.stop_monitoring();
        }
        self.adapt_timeout(has_answered, start);
    }

    /// Waits longer for a reader that did not answer, and the less often.
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

    fn start_monitoring(&mut self, at: usize, poll: &PollContext<'_>) {
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
        let info = &slot.reader.info;
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
                tracing::warn!("reader {name}: cannot be listened to ({error}); it is looked at");
                CardMonitor::Polled {
                    _claim: reader_claim,
                }
            }
        };
    }
}
