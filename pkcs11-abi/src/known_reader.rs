//! A reader as the slot table knows it: what it holds, and what it is believed to hold while its service is lost.

use std::time::Instant;

use claviger_driver::{Presence, ReaderId, ReaderState};

/// Counts the cards a reader has held; a session belongs to one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Insertion(pub(crate) u64);

/// Names a reader for the life of the module, whatever its service calls it by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ReaderKey(pub(crate) usize);

/// A reader as the module knows it, whether or not it is plugged in now.
#[derive(Clone, Debug)]
pub(crate) struct KnownReader {
    pub(crate) key: ReaderKey,
    pub(crate) id: ReaderId,
    pub(crate) name: String,
    pub(crate) presence: Presence,
    /// Which card it is: changes when one leaves, comes, or was swapped unseen.
    pub(crate) card: Insertion,
    pub(crate) backend: usize,
    pub(crate) model: String,
    /// Its slots are shown.
    pub(crate) connected: bool,
    changes: u32,
    /// Counts the times its service was lost and it came into sight again.
    reappearances: u32,
    out_of_sight: Option<LostService>,
    /// Its service has shown it since it was last lost.
    seen: bool,
}

/// The service of a reader was lost: what it held is believed to be there still, for a while.
#[derive(Clone, Debug)]
struct LostService {
    held: Presence,
    /// Set when the service is back.
    deadline: Option<Instant>,
}

/// Where a card is to be found.
#[derive(Clone, Debug)]
pub(crate) struct CardLocation {
    pub(crate) reader: ReaderId,
    pub(crate) card: Insertion,
    /// A card seen under another number must be asked whether it is the same.
    pub(crate) reappearances: u32,
    pub(crate) out_of_sight: bool,
}

impl KnownReader {
    /// A reader nobody has seen yet.
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

    /// Takes in what its service says of it; whether something happened.
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

    /// What its service says after it was lost: counts of before mean nothing now.
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

    /// Its service was lost; whether a card vanished with it. It may come into sight again `until` then.
    pub(crate) fn service_lost(&mut self, deadline: Option<Instant>) -> bool {
        let shown = std::mem::replace(&mut self.presence, Presence::Empty);
        let vanished = shown != Presence::Empty;
        let held = self.out_of_sight.take().map_or(shown, |lost| lost.held);
        self.out_of_sight = Some(LostService { held, deadline });
        self.seen = false;
        vanished
    }

    /// It is not there any more.
    pub(crate) fn unplugged(&mut self) {
        self.card_removed();
        self.connected = false;
        self.presence = Presence::Empty;
    }

    /// The card it held, or was believed to hold, is not there any more.
    pub(crate) fn card_removed(&mut self) {
        self.out_of_sight = None;
        self.card.0 += 1;
    }

    /// Gives up a card that had time enough to come into sight again.
    pub(crate) fn expire(&mut self, now: Instant) {
        if self.expires_at().is_some_and(|at| at <= now) {
            self.card_removed();
            self.connected = self.seen;
        }
    }

    /// When a card that is out of sight is given up, once its service is back.
    pub(crate) fn expires_at(&self) -> Option<Instant> {
        self.out_of_sight.as_ref()?.deadline
    }

    /// Whether its service was lost, and what it holds is only believed to be there.
    pub(crate) const fn is_out_of_sight(&self) -> bool {
        self.out_of_sight.is_some()
    }

    /// How often it has come into sight again.
    pub(crate) const fn reappearances(&self) -> u32 {
        self.reappearances
    }

    /// Where its card is to be found.
    pub(crate) fn location(&self) -> CardLocation {
        CardLocation {
            reader: self.id.clone(),
            card: self.card,
            reappearances: self.reappearances,
            out_of_sight: self.out_of_sight.is_some(),
        }
    }
}
