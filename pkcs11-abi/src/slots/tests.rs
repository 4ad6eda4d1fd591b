use super::*;
use claviger_apdu::Atr;
use claviger_driver::{Presence, ReaderId};

fn card() -> Presence {
    Presence::Card(Atr::parse(&[0x3B, 0x00]).unwrap())
}

fn other_card() -> Presence {
    Presence::Card(Atr::parse(&[0x3B, 0x01, 0x11]).unwrap())
}

/// Returns a snapshot of one instance of the service. The stable name of a reader is the first letter of its name.
fn snapshot_of(instance: Option<u32>, readers: &[(&str, Presence, u32)]) -> ReaderSnapshot {
    let state = |(name, presence, changes): &(&str, Presence, u32)| ReaderState {
        id: ReaderId::new("test", name),
        name: (*name).to_owned(),
        presence: presence.clone(),
        change_count: *changes,
        stable_name: name[..1].to_owned(),
    };
    ReaderSnapshot {
        readers: readers.iter().map(state).collect(),
        error: None,
        service_instance: instance,
    }
}

fn snapshot(readers: &[(&str, Presence, u32)]) -> ReaderSnapshot {
    snapshot_of(Some(1), readers)
}

fn update(table: &mut SlotTable, snapshot: &ReaderSnapshot) -> SnapshotEffect {
    table.apply(0, snapshot, false, Instant::now())
}

fn slot(table: &mut SlotTable, id: CK_SLOT_ID) -> KnownReader {
    table.slot(id, Instant::now()).unwrap().1.clone()
}

fn events(table: &mut SlotTable) -> Vec<CK_SLOT_ID> {
    std::iter::from_fn(|| table.take_event()).collect()
}

fn table() -> SlotTable {
    let mut table = SlotTable::default();
    table.apply(0, &snapshot(&[("A", card(), 1)]), true, Instant::now());
    table
}

#[test]
fn cards_present_at_start_raise_no_event() {
    assert_eq!(events(&mut table()), []);
}

#[test]
fn insertion_and_removal_between_two_snapshots_still_count() {
    let mut table = table();
    let before = slot(&mut table, 0).card;
    update(&mut table, &snapshot(&[("A", card(), 3)]));
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
    update(&mut table, &snapshot(&[("A", Presence::Empty, 2)]));
    update(&mut table, &snapshot(&[("A", card(), 3)]));
    assert_eq!(events(&mut table), [0, 1]);
    assert_eq!(events(&mut table), []);
}

#[test]
fn unchanged_snapshot_raises_no_event() {
    let mut table = table();
    update(&mut table, &snapshot(&[("A", card(), 1)]));
    assert_eq!(events(&mut table), []);
}

#[test]
fn returning_reader_gets_its_slot_ids_back() {
    let mut table = table();
    update(&mut table, &snapshot(&[]));
    assert_eq!(events(&mut table), [0, 1]);
    update(&mut table, &snapshot(&[("B", Presence::Empty, 0)]));
    assert_eq!(events(&mut table), [2, 3]);
    update(
        &mut table,
        &snapshot(&[("B", Presence::Empty, 0), ("A", card(), 1)]),
    );
    assert_eq!(events(&mut table), [0, 1]);
    assert_eq!(slot(&mut table, 2).name, "B");
}

#[test]
fn hidden_reader_has_no_slots_and_raises_no_events() {
    let mut table = SlotTable::default();
    let mut visibility = Visibility::default();
    visibility.readers.deny = vec!["b".to_owned()];
    visibility.applets = vec![AppletKind::OpenPgp];
    table.set_visibility(Arc::new(visibility));
    update(&mut table, &snapshot(&[("A", card(), 1), ("B", card(), 1)]));
    assert_eq!(events(&mut table), [0], "one applet, one slot");
}

#[test]
fn empty_snapshot_of_one_backend_removes_no_reader_of_another() {
    let mut table = table();
    table.apply(1, &snapshot(&[]), false, Instant::now());
    assert_eq!(events(&mut table), []);
}

#[test]
fn card_found_removed_changes_insertion_and_next_snapshot_raises_the_event() {
    let mut table = table();
    let KnownReader { key, card, .. } = slot(&mut table, 0);
    table.card_removed(key, card);
    let now = slot(&mut table, 0).card;
    assert_ne!(now, card);
    assert_eq!(events(&mut table), []);
    table.card_removed(key, card);
    assert_eq!(slot(&mut table, 0).card, now, "a card is removed once");
    update(&mut table, &snapshot(&[("A", Presence::Empty, 2)]));
    assert_eq!(events(&mut table), [0, 1]);
}

#[test]
fn slot_list_changes_only_when_it_is_refreshed() {
    let mut table = table();
    table.refresh_list();
    update(&mut table, &snapshot(&[("A", card(), 1), ("B", card(), 1)]));
    assert_eq!(table.listed().len(), 2);
    table.refresh_list();
    assert_eq!(table.listed().len(), 4);
}

#[test]
fn lost_service_hides_tokens_and_keeps_their_insertions() {
    let mut table = table();
    let before = slot(&mut table, 0);
    update(&mut table, &snapshot_of(None, &[]));
    let lost = slot(&mut table, 0);
    assert_eq!(lost.presence, Presence::Empty, "the token is absent");
    assert_eq!(lost.card, before.card, "the sessions stay valid");
    assert_eq!(events(&mut table), [0, 1]);
    table.refresh_list();
    assert_eq!(table.listed().len(), 2, "the slots stay");
    // The change counts of a new instance cannot be compared with the earlier counts.
    update(&mut table, &snapshot_of(Some(2), &[("A", card(), 9)]));
    let back = slot(&mut table, 0);
    assert_eq!((&back.presence, back.card), (&card(), before.card));
    assert_ne!(
        back.reappearances(),
        before.reappearances(),
        "the card must be compared first"
    );
    assert_eq!(events(&mut table), [0, 1]);
}

#[test]
fn lost_service_that_has_expired_removes_its_readers() {
    let mut table = table();
    let before = slot(&mut table, 0);
    table.give_up_lost_services();
    assert!(slot(&mut table, 0).connected, "the service is not lost");
    update(&mut table, &snapshot_of(None, &[]));
    events(&mut table);
    table.give_up_lost_services();
    assert_eq!(events(&mut table), [0, 1]);
    let gone = slot(&mut table, 0);
    assert!(!gone.connected && gone.card != before.card);
    table.give_up_lost_services();
    assert_eq!(events(&mut table), [], "a reader is removed once");
    update(&mut table, &snapshot_of(Some(2), &[("A", card(), 1)]));
    let back = slot(&mut table, 0);
    assert!(back.connected && back.card != before.card);
}

#[test]
fn service_restarted_between_two_snapshots_counts_as_lost() {
    let mut table = table();
    let before = slot(&mut table, 0);
    update(&mut table, &snapshot_of(Some(2), &[("A", card(), 1)]));
    let back = slot(&mut table, 0);
    assert_eq!(back.card, before.card);
    assert_ne!(back.reappearances(), before.reappearances());
}

#[test]
fn reader_may_report_its_card_within_a_timeout_after_its_service_returns() {
    let mut table = table();
    let before = slot(&mut table, 0);
    update(&mut table, &snapshot_of(None, &[]));
    update(&mut table, &snapshot_of(Some(2), &[]));
    assert!(slot(&mut table, 0).is_out_of_sight());
    let applied = update(
        &mut table,
        &snapshot_of(Some(2), &[("A", Presence::Empty, 0)]),
    );
    assert!(applied.next_check.is_some());
    assert_eq!(slot(&mut table, 0).card, before.card);
    let later = Instant::now() + READER_RETURN_TIMEOUT;
    let after = table.slot(0, later).unwrap().1.clone();
    assert_ne!(after.card, before.card, "the deadline has passed");
    assert!(after.connected, "the reader is there");
    let mut table = self::table();
    update(&mut table, &snapshot_of(None, &[]));
    update(&mut table, &snapshot_of(Some(2), &[]));
    let later = Instant::now() + READER_RETURN_TIMEOUT;
    assert!(
        !table.slot(0, later).unwrap().1.connected,
        "the reader has not returned"
    );
}

#[test]
fn other_card_after_a_service_restart_is_another_insertion() {
    let mut table = table();
    let before = slot(&mut table, 0);
    update(&mut table, &snapshot_of(None, &[]));
    let applied = update(&mut table, &snapshot_of(Some(2), &[("A", other_card(), 1)]));
    assert!(applied.other_cards);
    assert_ne!(slot(&mut table, 0).card, before.card);
    update(&mut table, &snapshot_of(None, &[]));
    let applied = update(&mut table, &snapshot_of(Some(3), &[("A", other_card(), 1)]));
    assert!(!applied.other_cards);
}

#[test]
fn renumbered_reader_gets_its_slot_ids_back() {
    let mut table = table();
    update(&mut table, &snapshot(&[]));
    events(&mut table);
    update(&mut table, &snapshot(&[("A1", card(), 1)]));
    assert_eq!(events(&mut table), [0, 1]);
    assert_eq!(slot(&mut table, 0).name, "A1");
    update(
        &mut table,
        &snapshot(&[("A1", card(), 1), ("A2", card(), 1)]),
    );
    assert_eq!(
        events(&mut table),
        [2, 3],
        "a second reader of the same model gets its own slots"
    );
    // A new instance of the service renumbers both readers.
    update(
        &mut table,
        &snapshot_of(Some(2), &[("A3", card(), 1), ("A4", card(), 1)]),
    );
    assert_eq!(slot(&mut table, 0).name, "A3");
    assert_eq!(slot(&mut table, 2).name, "A4");
}
