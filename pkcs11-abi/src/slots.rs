//! The slot table: a pure function from pictures of readers to slots and their events.

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

/// How long a reader and its card may take to come into sight again once their service is back, and how long a
/// call waits for a service that is gone: readers power their cards one after the other.
pub(crate) const READER_RETURN_TIMEOUT: Duration = Duration::from_secs(5);

/// One reader and one applet.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) id: CK_SLOT_ID,
    pub(crate) reader: ReaderKey,
    pub(crate) applet: AppletKind,
    /// In the list that C_GetSlotList last fixed.
    listed: bool,
    /// Something happened that C_WaitForSlotEvent has not told yet.
    pending: bool,
}

/// What a picture has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SnapshotEffect {
    /// Some card is not the one it was.
    pub(crate) other_cards: bool,
    /// When a card that has not come into sight again is given up.
    pub(crate) next_check: Option<Instant>,
}

/// All readers seen since C_Initialize and their slots. Nothing is ever removed, so ids stay what they are.
#[derive(Debug, Default)]
pub(crate) struct SlotTable {
    visibility: Arc<Visibility>,
    readers: Vec<KnownReader>,
    slots: Vec<Slot>,
    /// Which life of each backend's service was seen last.
    services: Vec<(usize, Option<u32>)>,
}

impl SlotTable {
    /// Shows nothing but what `choice` says, from the first picture on.
    pub(crate) fn set_visibility(&mut self, visibility: Arc<Visibility>) {
        self.visibility = visibility;
    }

    /// Takes in the picture of one backend. `silent` pictures, the first of each backend, raise no events:
    /// what was there at the beginning did not happen since.
    ///
    /// A service that is lost takes no card with it: tokens are absent until it is back, and a reader that then
    /// holds no card has [`RETURN`] to show one.
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

    /// Takes note of the service's life; whether it is not the one seen last.
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

    /// The service was lost, or has been and is back.
    fn lose_service(&mut self, backend: usize, deadline: Option<Instant>) {
        let mut vanished = Vec::new();
        for reader in &mut self.readers {
            if reader.backend == backend && reader.connected && reader.service_lost(deadline) {
                vanished.push(reader.key);
            }
        }
        vanished.into_iter().for_each(|key| self.mark_pending(key));
    }

    /// Takes the readers whose service is lost for gone, and their cards with them: they are looked for elsewhere.
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

    /// Gives up the cards that had time enough to come into sight again.
    fn expire(&mut self, now: Instant) {
        self.readers
            .iter_mut()
            .for_each(|reader| reader.expire(now));
    }

    fn reader(&self, key: ReaderKey) -> Option<&KnownReader> {
        self.readers.get(key.0)
    }

    /// Which card a reader holds, or is believed to hold, at the moment.
    pub(crate) fn card_location(&mut self, key: ReaderKey, now: Instant) -> Option<CardLocation> {
        self.expire(now);
        self.reader(key).map(KnownReader::location)
    }

    /// How often a reader has come into sight again.
    pub(crate) fn reappearances(&self, key: ReaderKey) -> u32 {
        self.reader(key).map_or(0, KnownReader::reappearances)
    }

    /// Notes that a conversation found its card gone before any picture showed it. Sessions of that card are
    /// dead from now on; the event comes with the picture.
    pub(crate) fn card_removed(&mut self, key: ReaderKey, card: Insertion) {
        let reader = self.readers.get_mut(key.0);
        if let Some(reader) = reader.filter(|reader| reader.card == card) {
            reader.card_removed();
        }
    }

    /// The reader's place in the table, made with a slot per applet when it is new.
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
        // The caller may use the id at once, without a new list.
        slot.listed = true;
        Some(slot.id)
    }

    /// Fixes the list of slots anew: the readers that are plugged in now.
    pub(crate) fn refresh_list(&mut self) {
        for slot in &mut self.slots {
            let reader = self.readers.get(slot.reader.0);
            slot.listed = reader.is_some_and(|reader| reader.connected);
        }
    }

    /// Whether a list was ever fixed.
    pub(crate) fn has_list(&self) -> bool {
        self.slots.iter().any(|slot| slot.listed)
    }

    /// The slots of the list last fixed.
    pub(crate) fn listed(&self) -> Vec<Slot> {
        self.slots
            .iter()
            .filter(|slot| slot.listed)
            .cloned()
            .collect()
    }

    /// A slot by its id; every id ever given stays good.
    pub(crate) fn slot(&mut self, id: CK_SLOT_ID, now: Instant) -> Option<(&Slot, &KnownReader)> {
        self.expire(now);
        let slot = self.slots.iter().find(|slot| slot.id == id)?;
        Some((slot, self.readers.get(slot.reader.0)?))
    }
}

#[cfg(test)]
mod tests;
