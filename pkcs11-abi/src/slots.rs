//! The slot table: a pure function from snapshots of readers to slots and their events.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use claviger_driver::{ReaderSnapshot, ReaderState};
use claviger_token::AppletKind;
use cryptoki_sys::CK_SLOT_ID;

use crate::{
    known_reader::{CardLocation, Insertion, KnownReader, ReaderKey},
    visibility::Visibility,
};

/// Once its service is back, a reader has this long to report its card. A call waits this long for a lost service. Readers
/// power their cards one after the other.
pub(crate) const READER_RETURN_TIMEOUT: Duration = Duration::from_secs(5);

/// One reader and one applet.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) id: CK_SLOT_ID,
    pub(crate) reader: ReaderKey,
    pub(crate) applet: AppletKind,
    /// The slot is in the list that C_GetSlotList last fixed.
    listed: bool,
    /// An event is pending for C_WaitForSlotEvent.
    pending: bool,
}

/// The effect of a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SnapshotEffect {
    /// An insertion has changed.
    pub(crate) other_cards: bool,
    /// The instant at which the next missing card is given up.
    pub(crate) next_check: Option<Instant>,
}

/// All readers reported since C_Initialize, and their slots. No entry is ever removed, so slot IDs stay valid.
#[derive(Debug, Default)]
pub(crate) struct SlotTable {
    visibility: Arc<Visibility>,
    readers: Vec<KnownReader>,
    slots: Vec<Slot>,
    /// The last instance of each backend's service.
    services: Vec<(usize, Option<u32>)>,
}

impl SlotTable {
    /// Sets which readers and applets get slots. Call this before the first snapshot.
    pub(crate) fn set_visibility(&mut self, visibility: Arc<Visibility>) {
        self.visibility = visibility;
    }

    /// Applies the snapshot of one backend. An `initial` snapshot, which is the first one of a backend, raises no events.
    ///
    /// Losing the service removes no card. Tokens read as absent; then a reader has [`READER_RETURN_TIMEOUT`] to report its
    /// card.
    pub(crate) fn apply(
        &mut self,
        backend: usize,
        snapshot: &ReaderSnapshot,
        initial: bool,
        now: Instant,
    ) -> SnapshotEffect {
        let before: Vec<Insertion> = self.readers.iter().map(|reader| reader.card).collect();
        if self.service_restarted(backend, snapshot.service_instance) {
            self.lose_service(
                backend,
                snapshot
                    .service_instance
                    .map(|_| now + READER_RETURN_TIMEOUT),
            );
        }
        if snapshot.service_instance.is_some() {
            for state in &snapshot.readers {
                if self.visibility.shows_reader(&state.name) {
                    self.update_reader(backend, state, snapshot, initial);
                }
            }
            self.disconnect_missing(backend, snapshot, initial);
        }
        self.expire(now);
        let is_other = |(reader, before): (&KnownReader, &Insertion)| reader.card != *before;
        SnapshotEffect {
            other_cards: self.readers.iter().zip(&before).any(is_other),
            next_check: self
                .readers
                .iter()
                .filter_map(KnownReader::expires_at)
                .min(),
        }
    }

    /// Records the instance of the service. Returns whether it differs from the last instance.
    fn service_restarted(&mut self, backend: usize, instance: Option<u32>) -> bool {
        let seen = self.services.iter_mut().find(|(of, _)| *of == backend);
        match seen {
            Some((_, seen)) => std::mem::replace(seen, instance) != instance,
            None => {
                self.services.push((backend, instance));
                false
            }
        }
    }

    /// Records that the service was lost. `deadline` is set if a new instance is there already.
    fn lose_service(&mut self, backend: usize, deadline: Option<Instant>) {
        let mut vanished = Vec::new();
        for reader in &mut self.readers {
            if reader.backend == backend && reader.connected && reader.service_lost(deadline) {
                vanished.push(reader.key);
            }
        }
        vanished.into_iter().for_each(|key| self.mark_pending(key));
    }

    /// Removes the readers of a lost service, and their cards. Another backend reports these readers from now on.
    pub(crate) fn give_up_lost_services(&mut self) {
        let is_lost = |of: usize, services: &[(usize, Option<u32>)]| services.contains(&(of, None));
        let mut gone = Vec::new();
        for reader in &mut self.readers {
            if reader.connected && is_lost(reader.backend, &self.services) {
                reader.unplugged();
                gone.push(reader.key);
            }
        }
        gone.into_iter().for_each(|key| self.mark_pending(key));
    }

    fn update_reader(
        &mut self,
        backend: usize,
        state: &ReaderState,
        snapshot: &ReaderSnapshot,
        initial: bool,
    ) {
        let index = self.reader_index(backend, state, snapshot);
        let Some(reader) = self.readers.get_mut(index) else {
            return;
        };
        if reader.update(state) && !initial {
            let key = reader.key;
            self.mark_pending(key);
        }
    }

    fn disconnect_missing(&mut self, backend: usize, snapshot: &ReaderSnapshot, initial: bool) {
        let mut missing = Vec::new();
        for reader in &mut self.readers {
            let here = snapshot.readers.iter().any(|state| state.id == reader.id);
            let is_gone = !here && !reader.is_out_of_sight();
            if reader.backend == backend && reader.connected && is_gone {
                reader.unplugged();
                missing.push(reader.key);
            }
        }
        if !initial {
            missing.into_iter().for_each(|key| self.mark_pending(key));
        }
    }

    /// Gives up the cards that have not returned before their deadline.
    fn expire(&mut self, now: Instant) {
        self.readers
            .iter_mut()
            .for_each(|reader| reader.expire(now));
    }

    fn reader(&self, key: ReaderKey) -> Option<&KnownReader> {
        self.readers.get(key.0)
    }

    /// Returns the location of the card in a reader, or of the card assumed to be there while the service is lost.
    pub(crate) fn card_location(&mut self, key: ReaderKey, now: Instant) -> Option<CardLocation> {
        self.expire(now);
        self.reader(key).map(KnownReader::location)
    }

    /// Returns how often a reader has returned after a loss of its service.
    pub(crate) fn reappearances(&self, key: ReaderKey) -> u32 {
        self.reader(key).map_or(0, KnownReader::reappearances)
    }

    /// Records that a use of the card found the card removed, before a snapshot reports it. Its sessions are invalid from now
    /// on. The event follows with the snapshot.
    pub(crate) fn card_removed(&mut self, key: ReaderKey, card: Insertion) {
        let reader = self.readers.get_mut(key.0);
        if let Some(reader) = reader.filter(|reader| reader.card == card) {
            reader.card_removed();
        }
    }

    /// Returns the index of the reader. A new reader is added with one slot for each visible applet. A reader of the same
    /// model whose earlier name is gone is the same reader, renumbered.
    fn reader_index(
        &mut self,
        backend: usize,
        state: &ReaderState,
        snapshot: &ReaderSnapshot,
    ) -> usize {
        if let Some(index) = self.readers.iter().position(|reader| reader.id == state.id) {
            return index;
        }
        let gone = |reader: &KnownReader| {
            !reader.connected || !snapshot.readers.iter().any(|state| state.id == reader.id)
        };
        let same = |reader: &KnownReader| {
            reader.backend == backend && reader.model == state.stable_name && gone(reader)
        };
        let index = self.readers.iter().position(same);
        let index = index.unwrap_or_else(|| self.add_reader(backend, state));
        if let Some(reader) = self.readers.get_mut(index) {
            reader.id = state.id.clone();
            reader.name.clone_from(&state.name);
        }
        index
    }

    fn add_reader(&mut self, backend: usize, state: &ReaderState) -> usize {
        let index = self.readers.len();
        self.readers
            .push(KnownReader::new(ReaderKey(index), backend, state));
        for &applet in &self.visibility.applets {
            let id = CK_SLOT_ID::try_from(self.slots.len()).unwrap_or(CK_SLOT_ID::MAX);
            self.slots.push(Slot {
                id,
                reader: ReaderKey(index),
                applet,
                listed: false,
                pending: false,
            });
        }
        index
    }

    fn mark_pending(&mut self, reader: ReaderKey) {
        for slot in self.slots.iter_mut().filter(|slot| slot.reader == reader) {
            slot.pending = true;
        }
    }

    /// Takes one pending event.
    pub(crate) fn take_event(&mut self) -> Option<CK_SLOT_ID> {
        let slot = self.slots.iter_mut().find(|slot| slot.pending)?;
        slot.pending = false;
        // The caller may use the slot ID at once, without a new list.
        slot.listed = true;
        Some(slot.id)
    }

    /// Fixes a new list of slots: the slots of the connected readers.
    pub(crate) fn refresh_list(&mut self) {
        for slot in &mut self.slots {
            let reader = self.readers.get(slot.reader.0);
            slot.listed = reader.is_some_and(|reader| reader.connected);
        }
    }

    /// Returns whether the fixed list has any slot.
    pub(crate) fn has_list(&self) -> bool {
        self.slots.iter().any(|slot| slot.listed)
    }

    /// Returns the slots of the fixed list.
    pub(crate) fn listed(&self) -> Vec<Slot> {
        self.slots
            .iter()
            .filter(|slot| slot.listed)
            .cloned()
            .collect()
    }

    /// Returns a slot by its ID. An ID stays valid for the whole generation.
    pub(crate) fn slot(&mut self, id: CK_SLOT_ID, now: Instant) -> Option<(&Slot, &KnownReader)> {
        self.expire(now);
        let slot = self.slots.iter().find(|slot| slot.id == id)?;
        Some((slot, self.readers.get(slot.reader.0)?))
    }
}

#[cfg(test)]
mod tests;
