//! One body, several lives of the module: each transport, with and without a thread of its own.

use std::{slice, time::Duration};

use claviger_hw_tests::{provision::Plan, rig::Rig};
use cryptoki_sys::{CK_FLAGS, CKR_OK};

use super::{
    Stage, Way, play_cards,
    raw::{NO_THREADS, OWN_THREAD, Raw},
};

/// Long enough for a thread to be inside its wait.
pub const MOMENT: Duration = Duration::from_millis(100);

/// Plays `body` in four lives with a card of `plan`.
pub fn each_life(plan: &Plan, body: fn(&Stage, Raw)) {
    each_life_of(slice::from_ref(plan), as_it_is, |_| (), body);
}

/// Plays `body` in four lives with these cards: two for each transport in one process, one with threads and one
/// without. `prepare` works on the rig first, `before` goes before each C_Initialize.
pub fn each_life_of(plans: &[Plan], prepare: fn(&Rig), before: fn(&Stage), body: fn(&Stage, Raw)) {
    for way in [Way::Socket, Way::Pcscd] {
        lives_by(way, plans, prepare, before, body);
    }
}

/// The two lives of one transport.
pub fn lives_by(
    way: Way,
    plans: &[Plan],
    prepare: fn(&Rig),
    before: fn(&Stage),
    body: fn(&Stage, Raw),
) {
    let play = |stage: &Stage| {
        let raw = Raw::load();
        for flags in [OWN_THREAD, NO_THREADS] {
            before(stage);
            println!("{way:?}, {}", kind(flags));
            assert_eq!(raw.initialize(flags), CKR_OK);
            body(stage, raw);
            assert_eq!(raw.finalize(), CKR_OK);
        }
    };
    let _ = play_cards(way, plans, |rig, _| prepare(rig), play);
}

const fn kind(flags: CK_FLAGS) -> &'static str {
    if flags == NO_THREADS {
        "no threads"
    } else {
        "own thread"
    }
}

/// Nothing to prepare.
pub fn as_it_is(_: &Rig) {}

/// Begins without any card.
pub fn without_cards(rig: &Rig) {
    rig.cards().for_each(|card| card.remove());
    rig.settle();
}

/// Says lines that insert or remove, each when the one before has reached the clients of pcscd, which looks twice a
/// second.
pub fn do_and_settle(stage: &Stage, lines: &[&str]) {
    for line in lines {
        stage.say(line);
        stage.say("settle");
    }
}
