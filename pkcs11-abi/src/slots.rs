//! The slot table: a pure function from pictures of readers to slots and their events.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use claviger_driver::{ReaderState, Readers};
use claviger_token::AppletKind;
use cryptoki_sys::CK_SLOT_ID;

use crate::{
    choice::Choice,
    known_reader::{CardCount, KnownReader, Place, ReaderKey},
};

/// How long a reader and its card may take to come into sight again once their service is back, and how long a
/// call waits for a service that is gone: readers power their cards one after the other.
pub(crate) const RETURN: Duration = Duration::from_secs(5);

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
pub(crate) struct Applied {
    /// Some card is not the one it was.
    pub(crate) other_cards: bool,
    /// When a card that has not come into sight again is given up.
    pub(crate) look_again: Option<Instant>,
}

/// All readers seen since C_Initialize and their slots. Nothing is ever removed, so ids stay what they are.
#[derive(Debug, Default)]
pub(crate) struct SlotTable {
    choice: Arc<Choice>,
    readers: Vec<KnownReader>,
    slots: Vec<Slot>,
    /// Which life of each backend's service was seen last.
    services: Vec<(usize, Option<u32>)>,
}

impl SlotTable {
    /// Shows nothing but what `choice` says, from the first picture on.
    pub(crate) fn choose(&mut self, choice: Arc<Choice>) {
        self.choice = choice;
    }

    /// Takes in the picture of one backend. `silent` pictures, the first of each backend, raise no events:
    /// what was there at the beginning did not happen since.
    ///
    /// A service that is lost takes no card with it: tokens are absent until it is back, and a reader that then
    /// holds no card has [`RETURN`] to show one.
    pub(crate) fn apply(
        &mut self,
        backend: usize,
        picture: &Readers,
        silent: bool,
        now: Instant,
    ) -> Applied {
        let before: Vec<CardCount> = self.readers.iter().map(|reader| reader.card).collect();
        if self.is_another_life(backend, picture.service) {
            self.lose_sight(backend, picture.service.map(|_| now + RETURN));
        }
        if picture.service.is_some() {
            for state in &picture.readers {
                if self.choice.shows_reader(&state.name) {
                    self.see(backend, state, picture, silent);
                }
            }
            self.disconnect_missing(backend, picture, silent);
        }
        self.expire(now);
        let is_other = |(reader, before): (&KnownReader, &CardCount)| reader.card != *before;
        Applied {
            other_cards: self.readers.iter().zip(&before).any(is_other),
            look_again: self
                .readers
                .iter()
                .filter_map(KnownReader::given_up_at)
                .min(),
        }
    }

    /// Takes note of the service's life; whether it is not the one seen last.
    fn is_another_life(&mut self, backend: usize, life: Option<u32>) -> bool {
        let seen = self.services.iter_mut().find(|(of, _)| *of == backend);
        match seen {
            Some((_, seen)) => std::mem::replace(seen, life) != life,
            None => {
                self.services.push((backend, life));
                false
            }
        }
    }

    /// The service was lost, or has been and is back.
    fn lose_sight(&mut self, backend: usize, until: Option<Instant>) {
        let mut vanished = Vec::new();
        for reader in &mut self.readers {
            if reader.backend == backend && reader.connected && reader.lose_sight(until) {
                vanished.push(reader.key);
            }
        }
        vanished.into_iter().for_each(|key| self.raise(key));
    }

    fn see(&mut self, backend: usize, state: &ReaderState, picture: &Readers, silent: bool) {
        let index = self.reader_index(backend, state, picture);
        let Some(reader) = self.readers.get_mut(index) else {
            return;
        };
        if reader.see(state) && !silent {
            let key = reader.key;
            self.raise(key);
        }
    }

    fn disconnect_missing(&mut self, backend: usize, picture: &Readers, silent: bool) {
        let mut missing = Vec::new();
        for reader in &mut self.readers {
            let here = picture.readers.iter().any(|state| state.id == reader.id);
            let is_gone = !here && !reader.is_out_of_sight();
            if reader.backend == backend && reader.connected && is_gone {
                reader.leave();
                missing.push(reader.key);
            }
        }
        if !silent {
            missing.into_iter().for_each(|key| self.raise(key));
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
    pub(crate) fn place(&mut self, key: ReaderKey, now: Instant) -> Option<Place> {
        self.expire(now);
        self.reader(key).map(KnownReader::place)
    }

    /// How often a reader has come into sight again.
    pub(crate) fn sighting(&self, key: ReaderKey) -> u32 {
        self.reader(key).map_or(0, KnownReader::sighting)
    }

    /// Notes that a conversation found its card gone before any picture showed it. Sessions of that card are
    /// dead from now on; the event comes with the picture.
    pub(crate) fn lose_card(&mut self, key: ReaderKey, card: CardCount) {
        let reader = self.readers.get_mut(key.0);
        if let Some(reader) = reader.filter(|reader| reader.card == card) {
            reader.lose_card();
        }
    }

    /// The reader's place in the table, made with a slot per applet when it is new.
    fn reader_index(&mut self, backend: usize, state: &ReaderState, picture: &Readers) -> usize {
        if let Some(index) = self.readers.iter().position(|reader| reader.id == state.id) {
            return index;
        }
        let gone = |reader: &KnownReader| {
            !reader.connected || !picture.readers.iter().any(|state| state.id == reader.id)
        };
        let same = |reader: &KnownReader| {
            reader.backend == backend && reader.model == state.model && gone(reader)
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
        for &applet in &self.choice.applets {
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

    fn raise(&mut self, reader: ReaderKey) {
        for slot in self.slots.iter_mut().filter(|slot| slot.reader == reader) {
            slot.pending = true;
        }
    }

    /// Whether some slot has an event.
    pub(crate) fn has_event(&self) -> bool {
        self.slots.iter().any(|slot| slot.pending)
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
mod tests {
    use super::*;
    use claviger_apdu::Atr;
    use claviger_driver::{Presence, ReaderId};

    fn card() -> Presence {
        Presence::Card(Atr::parse(&[0x3B, 0x00]).unwrap())
    }

    fn other_card() -> Presence {
        Presence::Card(Atr::parse(&[0x3B, 0x01, 0x11]).unwrap())
    }

    /// A picture of the service's `life`; a reader's model is the first letter of its name.
    fn picture_of(life: Option<u32>, readers: &[(&str, Presence, u32)]) -> Readers {
        let state = |(name, presence, changes): &(&str, Presence, u32)| ReaderState {
            id: ReaderId::new("test", name),
            name: (*name).to_owned(),
            presence: presence.clone(),
            changes: *changes,
            model: name[..1].to_owned(),
        };
        Readers {
            readers: readers.iter().map(state).collect(),
            trouble: None,
            service: life,
        }
    }

    fn picture(readers: &[(&str, Presence, u32)]) -> Readers {
        picture_of(Some(1), readers)
    }

    fn see(table: &mut SlotTable, picture: &Readers) -> Applied {
        table.apply(0, picture, false, Instant::now())
    }

    fn slot(table: &mut SlotTable, id: CK_SLOT_ID) -> KnownReader {
        table.slot(id, Instant::now()).unwrap().1.clone()
    }

    fn events(table: &mut SlotTable) -> Vec<CK_SLOT_ID> {
        std::iter::from_fn(|| table.take_event()).collect()
    }

    fn table() -> SlotTable {
        let mut table = SlotTable::default();
        table.apply(0, &picture(&[("A", card(), 1)]), true, Instant::now());
        table
    }

    #[test]
    fn cards_present_at_start_raise_none() {
        assert_eq!(events(&mut table()), []);
    }

    #[test]
    fn insert_and_remove_between_two_looks_still_counts() {
        let mut table = table();
        let before = slot(&mut table, 0).card;
        see(&mut table, &picture(&[("A", card(), 3)]));
        assert_eq!(events(&mut table), [0, 1]);
        assert_ne!(
            slot(&mut table, 0).card,
            before,
            "its sessions are of another card"
        );
    }

    #[test]
    fn several_events_on_one_slot_are_one() {
        let mut table = table();
        see(&mut table, &picture(&[("A", Presence::Empty, 2)]));
        see(&mut table, &picture(&[("A", card(), 3)]));
        assert_eq!(events(&mut table), [0, 1]);
        assert_eq!(events(&mut table), []);
    }

    #[test]
    fn the_same_picture_again_is_no_event() {
        let mut table = table();
        see(&mut table, &picture(&[("A", card(), 1)]));
        assert_eq!(events(&mut table), []);
    }

    #[test]
    fn a_reader_that_returns_gets_its_ids_back() {
        let mut table = table();
        see(&mut table, &picture(&[]));
        assert_eq!(events(&mut table), [0, 1]);
        see(&mut table, &picture(&[("B", Presence::Empty, 0)]));
        assert_eq!(events(&mut table), [2, 3]);
        see(
            &mut table,
            &picture(&[("B", Presence::Empty, 0), ("A", card(), 1)]),
        );
        assert_eq!(events(&mut table), [0, 1]);
        assert_eq!(slot(&mut table, 2).name, "B");
    }

    #[test]
    fn a_reader_that_is_not_shown_has_no_slots_and_raises_no_events() {
        let mut table = SlotTable::default();
        let mut choice = Choice::default();
        choice.readers.deny = vec!["b".to_owned()];
        choice.applets = vec![AppletKind::OpenPgp];
        table.choose(Arc::new(choice));
        see(&mut table, &picture(&[("A", card(), 1), ("B", card(), 1)]));
        assert_eq!(events(&mut table), [0], "one applet, one slot");
    }

    #[test]
    fn backends_do_not_see_each_others_readers_leave() {
        let mut table = table();
        table.apply(1, &picture(&[]), false, Instant::now());
        assert_eq!(events(&mut table), []);
    }

    #[test]
    fn a_card_found_gone_ends_its_sessions_and_the_picture_still_raises_the_event() {
        let mut table = table();
        let KnownReader { key, card, .. } = slot(&mut table, 0);
        table.lose_card(key, card);
        let now = slot(&mut table, 0).card;
        assert_ne!(now, card);
        assert_eq!(events(&mut table), []);
        table.lose_card(key, card);
        assert_eq!(slot(&mut table, 0).card, now, "once for each card");
        see(&mut table, &picture(&[("A", Presence::Empty, 2)]));
        assert_eq!(events(&mut table), [0, 1]);
    }

    #[test]
    fn the_list_changes_only_when_it_is_fixed() {
        let mut table = table();
        table.fix_list();
        see(&mut table, &picture(&[("A", card(), 1), ("B", card(), 1)]));
        assert_eq!(table.listed().len(), 2);
        table.fix_list();
        assert_eq!(table.listed().len(), 4);
    }

    #[test]
    fn a_lost_service_hides_tokens_and_takes_no_card_with_it() {
        let mut table = table();
        let before = slot(&mut table, 0);
        see(&mut table, &picture_of(None, &[]));
        let lost = slot(&mut table, 0);
        assert_eq!(lost.presence, Presence::Empty, "the token is absent");
        assert_eq!(lost.card, before.card, "its sessions live");
        assert_eq!(events(&mut table), [0, 1]);
        table.fix_list();
        assert_eq!(table.listed().len(), 2, "its slots stay");
        // Counts begin anew with the service.
        see(&mut table, &picture_of(Some(2), &[("A", card(), 9)]));
        let back = slot(&mut table, 0);
        assert_eq!((&back.presence, back.card), (&card(), before.card));
        assert_ne!(back.sighting(), before.sighting(), "to be recognised first");
        assert_eq!(events(&mut table), [0, 1]);
    }

    #[test]
    fn a_service_that_came_back_unseen_was_lost_too() {
        let mut table = table();
        let before = slot(&mut table, 0);
        see(&mut table, &picture_of(Some(2), &[("A", card(), 1)]));
        let back = slot(&mut table, 0);
        assert_eq!(back.card, before.card);
        assert_ne!(back.sighting(), before.sighting());
    }

    #[test]
    fn a_reader_has_a_moment_to_show_its_card_after_its_service_is_back() {
        let mut table = table();
        let before = slot(&mut table, 0);
        see(&mut table, &picture_of(None, &[]));
        see(&mut table, &picture_of(Some(2), &[]));
        assert!(slot(&mut table, 0).is_out_of_sight());
        let applied = see(
            &mut table,
            &picture_of(Some(2), &[("A", Presence::Empty, 0)]),
        );
        assert!(applied.look_again.is_some());
        assert_eq!(slot(&mut table, 0).card, before.card);
        let later = Instant::now() + RETURN;
        let after = table.slot(0, later).unwrap().1.clone();
        assert_ne!(after.card, before.card, "it had its time");
        assert!(after.connected, "the reader is there");
        let mut table = self::table();
        see(&mut table, &picture_of(None, &[]));
        see(&mut table, &picture_of(Some(2), &[]));
        let later = Instant::now() + RETURN;
        assert!(
            !table.slot(0, later).unwrap().1.connected,
            "the reader is not"
        );
    }

    #[test]
    fn another_card_after_the_service_is_back_is_another_card() {
        let mut table = table();
        let before = slot(&mut table, 0);
        see(&mut table, &picture_of(None, &[]));
        let applied = see(&mut table, &picture_of(Some(2), &[("A", other_card(), 1)]));
        assert!(applied.other_cards);
        assert_ne!(slot(&mut table, 0).card, before.card);
        see(&mut table, &picture_of(None, &[]));
        let applied = see(&mut table, &picture_of(Some(3), &[("A", other_card(), 1)]));
        assert!(!applied.other_cards);
    }

    #[test]
    fn a_reader_that_returns_under_another_number_gets_its_ids_back() {
        let mut table = table();
        see(&mut table, &picture(&[]));
        events(&mut table);
        see(&mut table, &picture(&[("A1", card(), 1)]));
        assert_eq!(events(&mut table), [0, 1]);
        assert_eq!(slot(&mut table, 0).name, "A1");
        see(
            &mut table,
            &picture(&[("A1", card(), 1), ("A2", card(), 1)]),
        );
        assert_eq!(
            events(&mut table),
            [2, 3],
            "one more of its kind is another"
        );
        // Both numbers change at once, with the service.
        see(
            &mut table,
            &picture_of(Some(2), &[("A3", card(), 1), ("A4", card(), 1)]),
        );
        assert_eq!(slot(&mut table, 0).name, "A3");
        assert_eq!(slot(&mut table, 2).name, "A4");
    }
}
