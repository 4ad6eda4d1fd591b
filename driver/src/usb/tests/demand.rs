//! When readers are claimed to monitor their cards, and which changes of unmonitored cards are detected.

use std::time::Instant;

use super::{
    fixture::{FakeMachine, STEP_TIMEOUT, holds_card, reader, single_reader},
    watch::{WatchThread, wait_until, with_key},
};
use crate::{
    reader::Presence,
    usb::host::fake::{FakeReader, reader::FakeCard},
};

/// A machine with a reader that holds this card. A thread without waiters follows it, after the first snapshot.
fn idle(test: &str, card: Option<FakeCard>) -> (FakeMachine, FakeReader, WatchThread) {
    let machine = FakeMachine::new(test);
    let slot = FakeReader::new(reader());
    if let Some(card) = card {
        slot.put_unseen(0, card);
    }
    machine.plug("3-1", &slot, &reader());
    let followed = WatchThread::without_waiter(&machine.new_backend());
    followed.snapshot();
    (machine, slot, followed)
}

#[test]
fn b11_contact_reader_is_claimed_only_while_there_is_a_waiter() {
    let (_machine, slot, followed) = idle("b11", Some(FakeCard::echo()));
    let demand = followed.demand.clone().unwrap();
    wait_until(|| !slot.device().claimed());
    for _ in 0..2 {
        demand.add_waiter();
        wait_until(|| slot.device().claimed());
        demand.remove_waiter();
        wait_until(|| !slot.device().claimed());
    }
}

#[test]
fn b11_one_of_two_waiters_is_enough_to_keep_the_claim() {
    let (_machine, slot, followed) = idle("b11-two", Some(FakeCard::echo()));
    let demand = followed.demand.clone().unwrap();
    demand.add_waiter();
    demand.add_waiter();
    wait_until(|| slot.device().claimed());
    demand.remove_waiter();
    slot.remove(0);
    assert_eq!(
        single_reader(&followed.snapshot()).presence,
        Presence::Empty
    );
    demand.remove_waiter();
}

#[test]
fn card_inserted_without_a_waiter_is_reported_when_refresh_returns() {
    let (_machine, slot, followed) = idle("unseen", None);
    let demand = followed.demand.clone().unwrap();
    wait_until(|| !slot.device().claimed());
    slot.insert(0, FakeCard::echo());
    demand.refresh(Instant::now() + STEP_TIMEOUT);
    let snapshot = followed.snapshots.try_recv().expect("it was told before");
    assert!(holds_card(single_reader(&snapshot)));
    wait_until(|| !slot.device().claimed());
}

#[test]
fn refresh_of_watched_cards_sends_nothing_to_the_reader() {
    let (_machine, slot, followed) = idle("watched", Some(FakeCard::echo()));
    let demand = followed.demand.clone().unwrap();
    demand.add_waiter();
    demand.refresh(Instant::now() + STEP_TIMEOUT);
    wait_until(|| slot.device().claimed());
    let before = slot.messages().len();
    demand.refresh(Instant::now() + STEP_TIMEOUT);
    assert_eq!(slot.messages().len(), before);
    demand.remove_waiter();
}

#[test]
fn refresh_of_a_token_with_a_fixed_card_sends_nothing() {
    let (machine, token) = with_key("refresh-token");
    let followed = WatchThread::without_waiter(&machine.new_backend());
    assert!(holds_card(single_reader(&followed.snapshot())));
    wait_until(|| !token.device().claimed());
    token.device().forget();
    let demand = followed.demand.clone().unwrap();
    demand.refresh(Instant::now() + STEP_TIMEOUT);
    assert_eq!(token.device().counts(), Default::default());
}

#[test]
fn a_refresh_after_the_watch_has_ended_returns_at_once() {
    let (_machine, _slot, followed) = idle("ended", None);
    let demand = followed.demand.clone().unwrap();
    drop(followed);
    demand.refresh(Instant::now() + std::time::Duration::from_secs(3600));
}
