//! The events that C_WaitForSlotEvent reports. Each event is reported once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails loudly"
)]

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use claviger_hw_tests::{
    fixture::{
        card_fixture::CardFixture,
        configurations::{
            MOMENT, as_it_is, execute_and_settle, for_each_configuration,
            for_each_configuration_of, without_cards,
        },
        function_list::{FunctionList, HANG},
        module_process::ModuleProcess,
        signer::session_info,
        waiter::SlotEventWaiter,
    },
    provision::CardProfile,
};
use cryptoki_sys::{
    CK_SLOT_ID, CKF_DONT_BLOCK, CKR_NO_EVENT, CKR_OK, CKR_SESSION_HANDLE_INVALID,
    CKR_TOKEN_NOT_PRESENT,
};

#[test]
fn a_card_present_at_the_first_wait_raises_no_event() {
    for_each_configuration(&CardProfile::factory(), |process, raw| {
        assert_eq!(raw.wait(CKF_DONT_BLOCK).0, CKR_NO_EVENT);
        let one = raw.event_during(MOMENT, || drop(process.send_command("remove")));
        assert_ne!(raw.next_event(), one, "one event for each applet's slot");
        execute_and_settle(process, &["insert"]);
    });
}

#[test]
fn event_is_not_consumed_by_other_calls() {
    for_each_configuration(&CardProfile::factory(), |process, raw| {
        let slots = raw.slots(true);
        assert_eq!(slots.len(), 2, "one for each applet");
        execute_and_settle(process, &["remove"]);
        for slot in &slots {
            raw.wait_for_token(*slot, false);
            assert_eq!(raw.open(*slot).0, CKR_TOKEN_NOT_PRESENT);
        }
        assert_eq!(raw.slots(true), []);
        assert!(raw.slots(false).len() >= 2);
        assert_eq!(raw.pending(), slots);
        execute_and_settle(process, &["insert"]);
        slots
            .iter()
            .for_each(|slot| raw.wait_for_token(*slot, true));
        assert_eq!(raw.open(slots[0]).0, CKR_OK);
        assert_eq!(raw.pending(), slots);
    });
}

/// Waits, event by event, for a slot with a token, and opens a session there by no other knowledge than its id.
fn first_token_reported(raw: FunctionList, first: CK_SLOT_ID) {
    let mut slot = first;
    while raw.open(slot).0 != CKR_OK {
        slot = raw.next_event();
    }
}

/// Lives that begin without a service, and so without a reader.
fn in_each_configuration_before_the_service(body: fn(&ModuleProcess, FunctionList)) {
    let without_service = |process: &ModuleProcess| drop(process.send_command("service stop"));
    for_each_configuration_of(&[CardProfile::factory()], as_it_is, without_service, body);
}

#[test]
fn race_01_reader_arriving_between_list_and_wait_is_reported() {
    in_each_configuration_before_the_service(|process, raw| {
        assert_eq!(raw.slots(false), []);
        process.send_command("service start");
        first_token_reported(raw, raw.next_event());
    });
}

#[test]
fn race_01_reader_arriving_during_the_wait_is_reported() {
    in_each_configuration_before_the_service(|process, raw| {
        assert_eq!(raw.slots(false), []);
        let result = raw.event_during(MOMENT, || drop(process.send_command("service start")));
        first_token_reported(raw, result);
    });
}

/// Two cards, of which the second is absent. When the module reports its insertion, it has processed all earlier changes.
fn two_cards() -> [CardProfile; 2] {
    [CardProfile::factory(), CardProfile::factory().serial(2)]
}

fn without_the_second(fixture: &CardFixture) {
    fixture.card_at(1).remove();
    fixture.wait_until_seen();
}

/// All slots that have an event by now, the second card's among them.
fn events_until_the_second_card(process: &ModuleProcess, raw: FunctionList) -> Vec<CK_SLOT_ID> {
    process.send_command("card 1 insert");
    let deadline = Instant::now() + HANG;
    while raw.slots(true).len() != 4 {
        assert!(Instant::now() < deadline, "two applets of two cards");
        thread::sleep(Duration::from_millis(1));
    }
    let result = raw.pending();
    execute_and_settle(process, &["card 1 remove"]);
    result
}

#[test]
fn race_03_card_reinserted_without_a_waiter_raises_events_and_ends_sessions() {
    for_each_configuration_of(
        &two_cards(),
        without_the_second,
        |_| (),
        |process, raw| {
            let slots = raw.slots(true);
            let (code, session) = raw.open(slots[0]);
            assert_eq!(code, CKR_OK);
            execute_and_settle(process, &["remove", "insert"]);
            let result = events_until_the_second_card(process, raw);
            assert_eq!(result.len(), 4, "two slots of each card: {result:?}");
            assert!(slots.iter().all(|slot| result.contains(slot)));
            assert_eq!(session_info(raw, session), CKR_SESSION_HANDLE_INVALID);
            assert_eq!(raw.open(slots[0]).0, CKR_OK);
        },
    );
}

#[test]
fn race_03_card_reinserted_at_once_ends_a_wait_and_its_sessions() {
    for_each_configuration(&CardProfile::factory(), |process, raw| {
        let slots = raw.slots(true);
        let (code, session) = raw.open(slots[0]);
        assert_eq!(code, CKR_OK);
        let result = raw.event_during(MOMENT, || process.order(&["remove", "insert"]));
        assert!(slots.contains(&result));
        assert_eq!(session_info(raw, session), CKR_SESSION_HANDLE_INVALID);
        raw.wait_for_token(slots[0], true);
        assert_eq!(raw.open(slots[0]).0, CKR_OK);
        process.send_command("settle");
    });
}

/// Four threads in C_WaitForSlotEvent receive the slots, in any order.
fn events_of_four_waiters(raw: FunctionList, cause: impl FnOnce()) -> BTreeSet<CK_SLOT_ID> {
    let waiters = [(); 4].map(|()| SlotEventWaiter::blocked(raw));
    cause();
    let outcome = |waiter: SlotEventWaiter| {
        let (code, slot) = waiter.outcome();
        assert_eq!(code, CKR_OK);
        slot
    };
    waiters.into_iter().map(outcome).collect()
}

#[test]
fn race_04_two_cards_inserted_at_once_give_each_slots_event_to_one_waiter() {
    let profiles = [CardProfile::factory(), CardProfile::factory().serial(2)];
    for_each_configuration_of(
        &profiles,
        without_cards,
        |_| (),
        |process, raw| {
            assert_eq!(raw.slots(true), []);
            let both = |action: &str| {
                thread::scope(|scope| {
                    for card in 0..2 {
                        scope.spawn(move || process.send_command(&format!("card {card} {action}")));
                    }
                });
            };
            let inserted = events_of_four_waiters(raw, || both("insert"));
            assert_eq!(inserted.len(), 4, "two applets of two cards: {inserted:?}");
            assert_eq!(raw.pending(), []);
            assert_eq!(
                raw.slots(true),
                inserted.iter().copied().collect::<Vec<_>>()
            );
            let removed = events_of_four_waiters(raw, || both("remove"));
            assert_eq!(removed, inserted);
            assert_eq!(raw.pending(), []);
        },
    );
}

#[test]
fn race_17_insertion_removal_and_insertion_are_one_event_for_each_slot() {
    for_each_configuration_of(
        &two_cards(),
        without_cards,
        |_| (),
        |process, raw| {
            assert_eq!(raw.slots(true), []);
            execute_and_settle(process, &["insert", "remove", "insert"]);
            let result = events_until_the_second_card(process, raw);
            let slots: BTreeSet<_> = result.iter().collect();
            assert_eq!(
                (result.len(), slots.len()),
                (4, 4),
                "two slots of each card: {result:?}"
            );
            execute_and_settle(process, &["remove"]);
        },
    );
}
