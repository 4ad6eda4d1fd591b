//! The slot table: a pure function from pictures of readers to slots and their events.

use claviger_driver::{Presence, ReaderId, Readers};
use claviger_token::AppletKind;
use cryptoki_sys::CK_SLOT_ID;

/// Counts the cards a reader has held; a session belongs to one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct CardCount(pub(crate) u64);

/// A reader as the module knows it, whether or not it is plugged in now.
#[derive(Clone, Debug)]
pub(crate) struct KnownReader {
    pub(crate) id: ReaderId,
    pub(crate) name: String,
    pub(crate) presence: Presence,
    /// Which card it is: changes when one leaves, comes, or was swapped unseen.
    pub(crate) card: CardCount,
    backend: usize,
    connected: bool,
    changes: u32,
}

/// One reader and one applet.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) id: CK_SLOT_ID,
    pub(crate) reader: usize,
    pub(crate) applet: AppletKind,
    /// In the list that C_GetSlotList last fixed.
    listed: bool,
    /// Something happened that C_WaitForSlotEvent has not told yet.
    pending: bool,
}

/// All readers seen since C_Initialize and their slots. Nothing is ever removed, so ids stay what they are.
#[derive(Debug, Default)]
pub(crate) struct SlotTable {
    readers: Vec<KnownReader>,
    slots: Vec<Slot>,
}

impl SlotTable {
    /// Takes in the picture of one backend. `silent` pictures, the first of each backend, raise no events:
    /// what was there at the beginning did not happen since. True when some card is not the one it was.
    pub(crate) fn apply(&mut self, backend: usize, picture: &Readers, silent: bool) -> bool {
        let mut other_cards = false;
        for state in &picture.readers {
            let index = self.reader_index(backend, &state.id, &state.name);
            let Some(reader) = self.readers.get_mut(index) else {
                continue;
            };
            let card_changed = state.presence != reader.presence || state.changes != reader.changes;
            let happened = card_changed || !reader.connected;
            if card_changed {
                reader.card.0 += 1;
                other_cards = true;
            }
            reader.presence = state.presence.clone();
            reader.changes = state.changes;
            reader.connected = true;
            self.raise(index, happened && !silent);
        }
        self.disconnect_missing(backend, picture, silent) || other_cards
    }

    fn disconnect_missing(&mut self, backend: usize, picture: &Readers, silent: bool) -> bool {
        let is_missing = |reader: &KnownReader| {
            reader.backend == backend
                && reader.connected
                && !picture.readers.iter().any(|state| state.id == reader.id)
        };
        let missing: Vec<usize> = self
            .readers
            .iter()
            .enumerate()
            .filter(|(_, reader)| is_missing(reader))
            .map(|(index, _)| index)
            .collect();
        for index in &missing {
            let index = *index;
            if let Some(reader) = self.readers.get_mut(index) {
                reader.connected = false;
                reader.presence = Presence::Empty;
                reader.card.0 += 1;
            }
            self.raise(index, !silent);
        }
        !missing.is_empty()
    }

    /// Which card a reader holds.
    pub(crate) fn card(&self, id: &ReaderId) -> Option<CardCount> {
        self.readers
            .iter()
            .find(|reader| reader.id == *id)
            .map(|reader| reader.card)
    }

    /// Notes that a conversation found its card gone before any picture showed it. Sessions of that card are
    /// dead from now on; the event comes with the picture.
    pub(crate) fn lose_card(&mut self, id: &ReaderId, card: CardCount) {
        let lost = |reader: &&mut KnownReader| reader.id == *id && reader.card == card;
        if let Some(reader) = self.readers.iter_mut().find(lost) {
            reader.card.0 += 1;
        }
    }

    /// The reader's place in the table, made with a slot per applet when it is new.
    fn reader_index(&mut self, backend: usize, id: &ReaderId, name: &str) -> usize {
        if let Some(index) = self.readers.iter().position(|reader| reader.id == *id) {
            return index;
        }
        let index = self.readers.len();
        self.readers.push(KnownReader {
            id: id.clone(),
            name: name.to_owned(),
            presence: Presence::Empty,
            card: CardCount::default(),
            backend,
            connected: false,
            changes: 0,
        });
        for applet in AppletKind::ALL {
            let id = CK_SLOT_ID::try_from(self.slots.len()).unwrap_or(CK_SLOT_ID::MAX);
            self.slots.push(Slot {
                id,
                reader: index,
                applet,
                listed: false,
                pending: false,
            });
        }
        index
    }

    fn raise(&mut self, reader: usize, happened: bool) {
        for slot in self.slots.iter_mut().filter(|slot| slot.reader == reader) {
            slot.pending |= happened;
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
    pub(crate) fn fix_list(&mut self) {
        for slot in &mut self.slots {
            slot.listed = self
                .readers
                .get(slot.reader)
                .is_some_and(|reader| reader.connected);
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
    pub(crate) fn slot(&self, id: CK_SLOT_ID) -> Option<(&Slot, &KnownReader)> {
        let slot = self.slots.iter().find(|slot| slot.id == id)?;
        Some((slot, self.readers.get(slot.reader)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_apdu::Atr;
    use claviger_driver::ReaderState;

    fn card() -> Presence {
        Presence::Card(Atr::parse(&[0x3B, 0x00]).unwrap())
    }

    fn picture(readers: &[(&str, Presence, u32)]) -> Readers {
        let state = |(name, presence, changes): &(&str, Presence, u32)| ReaderState {
            id: ReaderId::new("test", name),
            name: (*name).to_owned(),
            presence: presence.clone(),
            changes: *changes,
        };
        Readers {
            readers: readers.iter().map(state).collect(),
            trouble: None,
        }
    }

    fn events(table: &mut SlotTable) -> Vec<CK_SLOT_ID> {
        std::iter::from_fn(|| table.take_event()).collect()
    }

    fn table() -> SlotTable {
        let mut table = SlotTable::default();
        table.apply(0, &picture(&[("A", card(), 1)]), true);
        table
    }

    #[test]
    fn cards_present_at_start_raise_none() {
        assert_eq!(events(&mut table()), []);
    }

    #[test]
    fn insert_and_remove_between_two_looks_still_counts() {
        let mut table = table();
        let before = table.slot(0).unwrap().1.card;
        table.apply(0, &picture(&[("A", card(), 3)]), false);
        assert_eq!(events(&mut table), [0, 1]);
        assert_ne!(
            table.slot(0).unwrap().1.card,
            before,
            "its sessions are of another card"
        );
    }

    #[test]
    fn several_events_on_one_slot_are_one() {
        let mut table = table();
        table.apply(0, &picture(&[("A", Presence::Empty, 2)]), false);
        table.apply(0, &picture(&[("A", card(), 3)]), false);
        assert_eq!(events(&mut table), [0, 1]);
        assert_eq!(events(&mut table), []);
    }

    #[test]
    fn the_same_picture_again_is_no_event() {
        let mut table = table();
        table.apply(0, &picture(&[("A", card(), 1)]), false);
        assert_eq!(events(&mut table), []);
    }

    #[test]
    fn a_reader_that_returns_gets_its_ids_back() {
        let mut table = table();
        table.apply(0, &picture(&[]), false);
        assert_eq!(events(&mut table), [0, 1]);
        table.apply(0, &picture(&[("B", Presence::Empty, 0)]), false);
        assert_eq!(events(&mut table), [2, 3]);
        table.apply(
            0,
            &picture(&[("B", Presence::Empty, 0), ("A", card(), 1)]),
            false,
        );
        assert_eq!(events(&mut table), [0, 1]);
        assert_eq!(table.slot(2).unwrap().1.name, "B");
    }

    #[test]
    fn backends_do_not_see_each_others_readers_leave() {
        let mut table = table();
        table.apply(1, &picture(&[]), false);
        assert_eq!(events(&mut table), []);
    }

    #[test]
    fn a_card_found_gone_ends_its_sessions_and_the_picture_still_raises_the_event() {
        let mut table = table();
        let (id, card) = (ReaderId::new("test", "A"), table.slot(0).unwrap().1.card);
        table.lose_card(&id, card);
        assert_ne!(table.card(&id), Some(card));
        assert_eq!(events(&mut table), []);
        let now = table.card(&id);
        table.lose_card(&id, card);
        assert_eq!(table.card(&id), now, "once for each card");
        table.apply(0, &picture(&[("A", Presence::Empty, 2)]), false);
        assert_eq!(events(&mut table), [0, 1]);
    }

    #[test]
    fn the_list_changes_only_when_it_is_fixed() {
        let mut table = table();
        table.fix_list();
        table.apply(0, &picture(&[("A", card(), 1), ("B", card(), 1)]), false);
        assert_eq!(table.listed().len(), 2);
        table.fix_list();
        assert_eq!(table.listed().len(), 4);
    }
}
