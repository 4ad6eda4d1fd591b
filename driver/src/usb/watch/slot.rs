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
        claim::{Grip, Wish},
        reader::{Station, driver::Desk},
    },
    wait::{Pauses, Stop},
};

/// What one look at a slot may take, once the reader has answered.
pub(super) const LOOK: Duration = Duration::from_secs(5);
/// How long a reader that was never seen is waited for while somebody has it.
const FIRST: Duration = Duration::from_millis(500);
/// When a reader somebody else has is tried again, where nobody tells that it is free.
const UNTOLD: Duration = Duration::from_secs(1);
/// The same, where somebody should: in a container the messages may never come.
const TOLD: Duration = Duration::from_secs(5);
/// Between two looks that the reader asks for.
const NOT_BEFORE: Duration = Duration::from_millis(20);

/// One slot of a reader on the bus.
pub(super) struct View {
    pub(super) station: Arc<Station>,
    /// Differs whenever the card may be another one.
    changes: u32,
    /// `None` until the first look succeeded: such a slot is not shown.
    presence: Option<Presence>,
    /// Why the last look, or listening, failed.
    trouble: Option<TransportError>,
    due: Option<Instant>,
    pauses: Pauses,
    /// The reader said that the card is another one than before.
    is_other: bool,
    /// The reader was not let go after the last look.
    lingers: bool,
    /// Somebody else has the reader, and is waited for.
    awaits_release: bool,
    /// When it was looked at last.
    looked: Option<Instant>,
}

/// Who looks, and how the readers are to be watched.
pub(super) struct Look<'a> {
    pub(super) stop: &'a Arc<Stop>,
    pub(super) until: Instant,
    /// Somebody is told when a reader becomes free.
    pub(super) is_told: bool,
    /// What was found is to be told before the reader is let go: [`View::settle`] follows.
    pub(super) lingers: bool,
    /// What the reader's first answer may take.
    pub(super) patience: Duration,
    /// Where numbers for [`ReaderState::changes`] come from.
    pub(super) count: &'a mut u32,
}

impl Look<'_> {
    /// What is to be done within `limit`.
    fn within(&self, limit: Duration) -> Call {
        let mut call = Call::within(limit);
        call.deadline = call.deadline.min(self.until);
        call
    }

    fn next_change(&mut self) -> u32 {
        *self.count = self.count.wrapping_add(1);
        *self.count
    }
}

/// What a look found.
enum Found {
    Empty,
    /// A card; whether it is surely the one that was there.
    Card(Atr, bool),
    Mute,
}

impl View {
    pub(super) fn new(station: Arc<Station>, changes: u32) -> Self {
        Self {
            station,
            changes,
            presence: None,
            trouble: None,
            due: Some(Instant::now()),
            pauses: Pauses::new(Duration::from_millis(20), Duration::from_secs(2)),
            is_other: false,
            lingers: false,
            awaits_release: false,
            looked: None,
        }
    }

    /// When it wants to be looked at.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Has it looked at at `due`; `None` for not until something happens.
    pub(super) const fn look_at(&mut self, due: Option<Instant>) {
        self.due = due;
    }

    /// Whether it is to be looked at when somebody else lets go of the reader.
    pub(super) const fn awaits_release(&self) -> bool {
        self.awaits_release
    }

    /// Waits for somebody else to let go of the reader, of which somebody tells, or not.
    pub(super) fn await_release(&mut self, is_told: bool) {
        self.awaits_release = true;
        self.due = Some(Instant::now() + if is_told { TOLD } else { UNTOLD });
    }

    /// Has it looked at as soon as possible.
    pub(super) fn look_soon(&mut self) {
        self.due = Some(Instant::now());
        self.pauses.start_over();
    }

    /// Whether the first look is still to succeed.
    pub(super) const fn is_new(&self) -> bool {
        self.presence.is_none()
    }

    pub(super) const fn trouble(&self) -> Option<&TransportError> {
        self.trouble.as_ref()
    }

    /// Whether the last look found that the device has left.
    pub(super) fn is_gone(&self) -> bool {
        self.trouble()
            .is_some_and(|trouble| trouble.kind == TransportErrorKind::NoReader)
    }

    pub(super) fn state(&self) -> Option<ReaderState> {
        let site = &self.station.site;
        Some(ReaderState {
            id: site.id.clone(),
            name: site.interface.name.clone(),
            presence: self.presence.clone()?,
            changes: self.changes,
            model: site.model.clone(),
        })
    }

    /// Takes in what the interrupt endpoint said of the slot. Of `several` slots, a message about one says something of
    /// all: those that have not changed are left alone.
    pub(super) fn hear(&mut self, state: SlotState, several: bool) {
        let was_there = matches!(self.presence, Some(Presence::Card(_) | Presence::Mute));
        self.is_other |= state.changed && was_there;
        if state.changed || state.present != was_there || !several {
            self.look_soon();
            // Whatever the reader says, and however often.
            let not_before = self.looked.map(|looked| looked + NOT_BEFORE);
            self.due = self.due.max(not_before);
        }
    }

    /// Whether its time has come.
    pub(super) fn is_due(&mut self) -> bool {
        let is_due = self.due.is_some_and(|due| due <= Instant::now());
        if is_due {
            self.due = None;
            self.trouble = None;
            self.awaits_release = false;
            self.looked = Some(Instant::now());
        }
        is_due
    }

    /// Looks at the slot; false if the reader did not answer.
    pub(super) fn look(&mut self, look: &mut Look<'_>) -> bool {
        if self.is_known_by_others() {
            return true;
        }
        let found = match self.find(look) {
            Some(Ok(found)) => found,
            Some(Err(error)) => return self.failed(error, look),
            None => {
                // Somebody is in the middle of a command.
                self.due = Some(Instant::now() + self.pauses.next_pause());
                return true;
            }
        };
        self.pauses.start_over();
        self.is_other = false;
        let (presence, is_same) = match found {
            Found::Empty => (Presence::Empty, true),
            Found::Mute => (Presence::Mute, true),
            Found::Card(atr, is_same) => (Presence::Card(atr), is_same),
        };
        let shown = self.presence.replace(presence);
        if shown != self.presence || !is_same {
            self.changes = look.next_change();
        }
        true
    }

    /// Of a card that cannot be taken out it is enough that another process has seen it.
    fn is_known_by_others(&mut self) -> bool {
        if !self.station.site.is_fixed || self.station.held().is_some() {
            return false;
        }
        let known = self.station.told();
        if let Some(atr) = known {
            self.presence = Some(Presence::Card(atr));
            return true;
        }
        false
    }

    /// One conversation with the slot; `None` when somebody else of this process is at it.
    fn find(&mut self, look: &Look<'_>) -> Option<Result<Found, TransportError>> {
        let mut desk = self.station.free_desk()?;
        desk.notice_resets(&self.station);
        if self.is_other && self.station.site.interface.class.powers_by_itself() {
            // Its status says nothing of that: the other card is as active as the one before.
            desk.forget_card();
        }
        let found = self.ask(&mut desk, look);
        if !look.lingers {
            desk.leave();
        }
        drop(desk);
        self.lingers = look.lingers;
        Some(found)
    }

    /// Lets go of a reader that a look left open. Somebody who is at its desk by now has it for a connection.
    pub(super) fn settle(&mut self) {
        if self.lingers
            && let Some(mut desk) = self.station.try_desk()
        {
            desk.leave();
            self.lingers = false;
        }
    }

    fn ask(&self, desk: &mut Desk, look: &Look<'_>) -> Result<Found, TransportError> {
        let (icc, is_known) = self.ask_for_status(desk, look)?;
        let call = match icc {
            Some(_) => look.within(LOOK),
            None => look.within(look.patience),
        };
        match icc {
            Some(IccStatus::Absent) => return Ok(Found::Empty),
            // It may have been exchanged unseen. To learn that here would cost the card its state: who connects to it does.
            Some(IccStatus::Active) if !self.is_other && !is_known => {
                if let Some(Presence::Card(atr)) = &self.presence {
                    return Ok(Found::Card(atr.clone(), true));
                }
            }
            _ => {}
        }
        match desk.power(call) {
            Ok(Some(atr)) => Ok(Found::Card(atr, is_known || self.station.site.is_fixed)),
            Ok(None) => Ok(Found::Empty),
            Err(error) if error.kind == TransportErrorKind::NoCard && desk.is_empty() => {
                Ok(Found::Empty)
            }
            Err(error) if error.kind == TransportErrorKind::NoCard => Ok(Found::Mute),
            Err(error) => Err(error),
        }
    }

    /// What the slot holds, if the reader has said anything so far, and whether it is known which card.
    fn ask_for_status(
        &self,
        desk: &mut Desk,
        look: &Look<'_>,
    ) -> Result<(Option<IccStatus>, bool), TransportError> {
        let wait = if self.is_new() { FIRST } else { Duration::ZERO };
        let wish = Wish {
            until: Instant::now() + wait,
            knocks: self.is_new(),
            stop: look.stop,
        };
        let was_open = desk.is_open();
        // A reader in use whose answer does not come in time has its card reset.
        let patience = if was_open {
            look.patience.max(budget::STATUS)
        } else {
            look.patience
        };
        let answer = look.within(wait + patience);
        let device = desk.open(&self.station, wish, answer)?;
        if was_open {
            device.status(answer)?;
        }
        Ok((device.icc(), device.atr().is_some()))
    }

    /// Claims the reader, to watch it; nobody is asked or waited for.
    pub(super) fn claim(&mut self, look: &Look<'_>) -> Option<Arc<Grip>> {
        let wish = Wish {
            until: Instant::now(),
            knocks: false,
            stop: look.stop,
        };
        let claimed = self.station.claim(wish);
        claimed
            .map_err(|error| {
                self.failed(error, look);
            })
            .ok()
    }

    /// The reader could not be had, or does not answer; false of the latter.
    fn failed(&mut self, error: TransportError, look: &Look<'_>) -> bool {
        use TransportErrorKind::{Busy, Cancelled, Denied, NoReader};
        match error.kind {
            // The bus tells when that changes.
            NoReader | Cancelled => self.due = None,
            Busy | Denied => self.await_release(look.is_told && !self.is_taken_by_ours()),
            _ => self.due = Some(Instant::now() + self.pauses.next_pause()),
        }
        tracing::debug!("{error}");
        let has_answered = matches!(error.kind, NoReader | Cancelled | Busy | Denied);
        self.trouble = (error.kind != Cancelled).then_some(error);
        has_answered
    }

    /// Whether it may be another slot, or another reader of the device, that has the turn: nobody tells when that ends.
    fn is_taken_by_ours(&self) -> bool {
        self.station.held().is_some() || self.station.site.common.takes_turns()
    }
}
