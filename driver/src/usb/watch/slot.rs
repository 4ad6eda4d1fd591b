//! A slot as the watch sees it: what it holds, why that cannot be said, and when to look again.

use std::{
    sync::Arc,
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
    wait::{Pauses, Stop},
};

/// What one look at a slot may take, once the reader has answered.
pub(super) const POLL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a reader that was never seen is waited for while somebody has it.
const FIRST_CLAIM_TIMEOUT: Duration = Duration::from_millis(500);
/// When a reader somebody else has is tried again, where nobody tells that it is free.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The same, where somebody should: in a container the messages may never come.
const REPORTED_RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Between two looks that the reader asks for.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// One slot of a reader on the bus.
pub(super) struct WatchedSlot {
    pub(super) reader: Arc<UsbReader>,
    /// Differs whenever the card may be another one.
    changes: u32,
    /// `None` until the first look succeeded: such a slot is not shown.
    presence: Option<Presence>,
    /// Why the last look, or listening, failed.
    last_error: Option<TransportError>,
    due: Option<Instant>,
    backoff: Pauses,
    /// The reader said that the card is another one than before.
    card_replaced: bool,
    /// The reader was not let go after the last look.
    is_kept_open: bool,
    /// Somebody else has the reader, and is waited for.
    awaits_release: bool,
    /// When it was looked at last.
    last_poll: Option<Instant>,
}

/// Who looks, and how the readers are to be watched.
pub(super) struct PollContext<'a> {
    pub(super) stop: &'a Arc<Stop>,
    pub(super) deadline: Instant,
    /// Somebody is told when a reader becomes free.
    pub(super) reports_release: bool,
    /// What was found is to be told before the reader is let go: [`WatchedSlot::release_idle`] follows.
    pub(super) keep_open: bool,
    /// What the reader's first answer may take.
    pub(super) response_timeout: Duration,
    /// Where numbers for [`ReaderState::changes`] come from.
    pub(super) change_count: &'a mut u32,
}

impl PollContext<'_> {
    /// What is to be done within `limit`.
    fn within(&self, limit: Duration) -> Call {
        let mut call = Call::within(limit);
        call.deadline = call.deadline.min(self.deadline);
        call
    }

    fn next_change(&mut self) -> u32 {
        *self.change_count = self.change_count.wrapping_add(1);
        *self.change_count
    }
}

/// What a look found.
enum SlotContents {
    Empty,
    /// A card; whether it is surely the one that was there.
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
            backoff: Pauses::new(Duration::from_millis(20), Duration::from_secs(2)),
            card_replaced: false,
            is_kept_open: false,
            awaits_release: false,
            last_poll: None,
        }
    }

    /// When it wants to be looked at.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Has it looked at at `due`; `None` for not until something happens.
    pub(super) const fn poll_at(&mut self, due: Option<Instant>) {
        self.due = due;
    }

    /// Whether it is to be looked at when somebody else lets go of the reader.
    pub(super) const fn awaits_release(&self) -> bool {
        self.awaits_release
    }

    /// Waits for somebody else to let go of the reader, of which somebody tells, or not.
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

    /// Has it looked at as soon as possible.
    pub(super) fn poll_now(&mut self) {
        self.due = Some(Instant::now());
        self.backoff.start_over();
    }

    /// Whether the first look is still to succeed.
    pub(super) const fn is_new(&self) -> bool {
        self.presence.is_none()
    }

    pub(super) const fn last_error(&self) -> Option<&TransportError> {
        self.last_error.as_ref()
    }

    /// Whether the last look found that the device has left.
    pub(super) fn is_gone(&self) -> bool {
        self.last_error()
            .is_some_and(|trouble| trouble.kind == TransportErrorKind::NoReader)
    }

    pub(super) fn state(&self) -> Option<ReaderState> {
        let info = &self.reader.info;
        Some(ReaderState {
            id: info.id.clone(),
            name: info.interface.name.clone(),
            presence: self.presence.clone()?,
            changes: self.changes,
            model: info.model.clone(),
        })
    }

    /// Takes in what the interrupt endpoint said of the slot. Of `several` slots, a message about one says something of
    /// all: those that have not changed are left alone.
    pub(super) fn take_notification(&mut self, state: SlotState, several: bool) {
        let was_there = matches!(self.presence, Some(Presence::Card(_) | Presence::Mute));
        self.card_replaced |= state.changed && was_there;
        if state.changed || state.present != was_there || !several {
            self.poll_now();
            // Whatever the reader says, and however often.
            let not_before = self.last_poll.map(|looked| looked + MIN_POLL_INTERVAL);
            self.due = self.due.max(not_before);
        }
    }

    /// Whether its time has come.
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

    /// Looks at the slot; false if the reader did not answer.
    pub(super) fn poll(&mut self, poll: &mut PollContext<'_>) -> bool {
        if self.use_recorded_atr() {
            return true;
        }
        let found = match self.query_slot(poll) {
            Some(Ok(found)) => found,
            Some(Err(error)) => return self.note_error(error, poll),
            None => {
                // Somebody is in the middle of a command.
                self.due = Some(Instant::now() + self.backoff.next_pause());
                return true;
            }
        };
        self.backoff.start_over();
        self.card_replaced = false;
        let (presence, is_same) = match found {
            SlotContents::Empty => (Presence::Empty, true),
            SlotContents::Mute => (Presence::Mute, true),
            SlotContents::Card(atr, is_same) => (Presence::Card(atr), is_same),
        };
        let shown = self.presence.replace(presence);
        if shown != self.presence || !is_same {
            self.changes = poll.next_change();
        }
        true
    }

    /// Of a card that cannot be taken out it is enough that another process has seen it.
    fn use_recorded_atr(&mut self) -> bool {
        if !self.reader.info.is_fixed || self.reader.current_claim().is_some() {
            return false;
        }
        let known = self.reader.recorded_atr();
        if let Some(atr) = known {
            self.presence = Some(Presence::Card(atr));
            return true;
        }
        false
    }

    /// One conversation with the slot; `None` when somebody else of this process is at it.
    fn query_slot(
        &mut self,
        poll: &PollContext<'_>,
    ) -> Option<Result<SlotContents, TransportError>> {
        let mut driver = self.reader.try_idle_driver()?;
        driver.check_resets(&self.reader);
        if self.card_replaced && self.reader.info.interface.class.powers_by_itself() {
            // Its status says nothing of that: the other card is as active as the one before.
            driver.forget_card();
        }
        let found = self.query_card(&mut driver, poll);
        if !poll.keep_open {
            driver.close_if_detached();
        }
        drop(driver);
        self.is_kept_open = poll.keep_open;
        Some(found)
    }

    /// Lets go of a reader that a look left open. Somebody who is at its desk by now has it for a connection.
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
        poll: &PollContext<'_>,
    ) -> Result<SlotContents, TransportError> {
        let (icc, is_known) = self.query_status(driver, poll)?;
        let call = match icc {
            Some(_) => poll.within(POLL_TIMEOUT),
            None => poll.within(poll.response_timeout),
        };
        match icc {
            Some(IccStatus::Absent) => return Ok(SlotContents::Empty),
            // It may have been exchanged unseen. To learn that here would cost the card its state: who connects to it does.
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
                is_known || self.reader.info.is_fixed,
            )),
            Ok(None) => Ok(SlotContents::Empty),
            Err(error) if error.kind == TransportErrorKind::NoCard && driver.is_empty() => {
                Ok(SlotContents::Empty)
            }
            Err(error) if error.kind == TransportErrorKind::NoCard => Ok(SlotContents::Mute),
            Err(error) => Err(error),
        }
    }

    /// What the slot holds, if the reader has said anything so far, and whether it is known which card.
    fn query_status(
        &self,
        driver: &mut ReaderDriver,
        poll: &PollContext<'_>,
    ) -> Result<(Option<IccStatus>, bool), TransportError> {
        let wait = if self.is_new() {
            FIRST_CLAIM_TIMEOUT
        } else {
            Duration::ZERO
        };
        let request = ClaimRequest {
            deadline: Instant::now() + wait,
            request_release: self.is_new(),
            stop: poll.stop,
        };
        let was_open = driver.is_open();
        // A reader in use whose answer does not come in time has its card reset.
        let timeout = if was_open {
            poll.response_timeout.max(budget::STATUS)
        } else {
            poll.response_timeout
        };
        let answer = poll.within(wait + timeout);
        let device = driver.open_slot(&self.reader, request, answer)?;
        if was_open {
            device.status(answer)?;
        }
        Ok((device.icc(), device.atr().is_some()))
    }

    /// Claims the reader, to watch it; nobody is asked or waited for.
    pub(super) fn claim(&mut self, poll: &PollContext<'_>) -> Option<Arc<ReaderClaim>> {
        let request = ClaimRequest {
            deadline: Instant::now(),
            request_release: false,
            stop: poll.stop,
        };
        let claimed = self.reader.claim(request);
        claimed
            .map_err(|error| {
                self.note_error(error, poll);
            })
            .ok()
    }

    /// The reader could not be had, or does not answer; false of the latter.
    fn note_error(&mut self, error: TransportError, poll: &PollContext<'_>) -> bool {
        use TransportErrorKind::{Busy, Cancelled, Denied, NoReader};
        match error.kind {
            // The bus tells when that changes.
            NoReader | Cancelled => self.due = None,
            Busy | Denied => self.await_release(poll.reports_release && !self.is_held_by_us()),
            _ => self.due = Some(Instant::now() + self.backoff.next_pause()),
        }
        tracing::debug!("{error}");
        let has_answered = matches!(error.kind, NoReader | Cancelled | Busy | Denied);
        self.last_error = (error.kind != Cancelled).then_some(error);
        has_answered
    }

    /// Whether it may be another slot, or another reader of the device, that has the turn: nobody tells when that ends.
    fn is_held_by_us(&self) -> bool {
        self.reader.current_claim().is_some() || self.reader.info.device.is_exclusive()
    }
}
