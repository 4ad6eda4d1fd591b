//! A reader of the slot table: the card in it, and the card assumed to be in it while its service is lost.

use std::time::Instant;

use claviger_driver::{Presence, ReaderId, ReaderState};

/// The number of a card in its reader. A session belongs to one insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Insertion(pub(crate) u64);

/// Identifies a reader for a whole generation, also if its service renames it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ReaderKey(pub(crate) usize);

/// A reader that was reported once. It may be unplugged now.
#[derive(Clone, Debug)]
pub(crate) struct KnownReader {
    pub(crate) key: ReaderKey,
    pub(crate) id: ReaderId,
    pub(crate) name: String,
    pub(crate) presence: Presence,
    /// The current insertion. It changes when a card is inserted, removed, or replaced unnoticed.
    pub(crate) card: Insertion,
    pub(crate) backend: usize,
    pub(crate) model: String,
    /// The reader is there, so its slots are listed.
    pub(crate) connected: bool,
    changes: u32,
    /// Counts the returns of the reader with the same contents after a loss of its service.
    reappearances: u32,
    out_of_sight: Option<LostService>,
    /// The service has reported the reader since the last loss of the service.
    seen: bool,
}

/// The service of a reader was lost. Until the deadline, the reader is assumed to hold the same card.
#[derive(Clone, Debug)]
struct LostService {
    held: Presence,
    /// `None` until the service is back.
    deadline: Option<Instant>,
}

/// The location of a card.
#[derive(Clone, Debug)]
pub(crate) struct CardLocation {
    pub(crate) reader: ReaderId,
    pub(crate) card: Insertion,
    /// The reader's count of returns. If it has changed, the card must be compared with the earlier card.
    pub(crate) reappearances: u32,
    pub(crate) out_of_sight: bool,
}

impl KnownReader {
    /// Returns a reader that is not connected yet and holds no card.
    pub(crate) fn new(key: ReaderKey, backend: usize, state: &ReaderState) -> Self {
        Self {
            key,
            id: state.id.clone(),
            name: state.name.clone(),
            presence: Presence::Empty,
            card: Insertion::default(),
            backend,
            model: state.stable_name.clone(),
            connected: false,
            changes: 0,
            reappearances: 0,
            out_of_sight: None,
            seen: false,
        }
    }

    /// Applies the state that the service reports. Returns whether this is an event.
    pub(crate) fn update(&mut self, state: &ReaderState) -> bool {
        let happened = match self.out_of_sight.take() {
            Some(lost) => self.update_after_return(state, lost),
            None => self.see_change(state),
        };
        self.presence = state.presence.clone();
        self.changes = state.change_count;
        self.connected = true;
        self.seen = true;
        happened
    }

    fn see_change(&mut self, state: &ReaderState) -> bool {
        let card_changed = state.presence != self.presence || state.change_count != self.changes;
        if card_changed {
            self.card.0 += 1;
        }
        card_changed || !self.connected
    }

    /// Applies the first states after a loss of the service. The change counts from before the loss are worthless.
    fn update_after_return(&mut self, state: &ReaderState, lost: LostService) -> bool {
        if state.presence == lost.held {
            self.reappearances = self.reappearances.wrapping_add(1);
            return state.presence != Presence::Empty;
        }
        if state.presence == Presence::Empty {
            self.out_of_sight = Some(lost);
            return false;
        }
        self.card.0 += 1;
        true
    }

    /// Records the loss of the service. The card has until `deadline` to return. Returns whether a card was reported until
    /// now.
    pub(crate) fn service_lost(&mut self, deadline: Option<Instant>) -> bool {
        let shown = std::mem::replace(&mut self.presence, Presence::Empty);
        let vanished = shown != Presence::Empty;
        let held = self.out_of_sight.take().map_or(shown, |lost| lost.held);
        self.out_of_sight = Some(LostService { held, deadline });
        self.seen = false;
        vanished
    }

    /// Records that the reader was unplugged.
    pub(crate) fn unplugged(&mut self) {
        self.card_removed();
        self.connected = false;
        self.presence = Presence::Empty;
    }

    /// Records that the card of the reader was removed, or has not returned with the service.
    pub(crate) fn card_removed(&mut self) {
        self.out_of_sight = None;
        self.card.0 += 1;
    }

    /// Gives up a card that has not returned before the deadline.
    pub(crate) fn expire(&mut self, now: Instant) {
        if self.expires_at().is_some_and(|at| at <= now) {
            self.card_removed();
            self.connected = self.seen;
        }
    }

    /// Returns when the missing card is given up. Returns `None` while the service is lost, or if no card is missing.
    pub(crate) fn expires_at(&self) -> Option<Instant> {
        self.out_of_sight.as_ref()?.deadline
    }

    /// Returns whether the service was lost and the card has not returned since.
    pub(crate) const fn is_out_of_sight(&self) -> bool {
        self.out_of_sight.is_some()
    }

    /// Returns how often the reader has returned after a loss of its service.
    pub(crate) const fn reappearances(&self) -> u32 {
        self.reappearances
    }

    /// Returns the location of the reader's card.
    pub(crate) fn location(&self) -> CardLocation {
        CardLocation {
            reader: self.id.clone(),
            card: self.card,
            reappearances: self.reappearances,
            out_of_sight: self.out_of_sight.is_some(),
        }
    }
}
