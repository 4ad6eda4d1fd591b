//! What is played, by which way to the readers, and what the tool has to say of it.

use std::time::Duration;

use crate::{calls, cycles, module::Module, planted, tool::Tool, waits};

/// One play, alone in its process.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) tools: &'static [Tool],
    pub(crate) way: BackendKind,
    pub(crate) outcome: Outcome,
    body: Body,
}

/// What is done in a play.
#[derive(Clone, Copy)]
enum Body {
    Planted(fn()),
    Waits,
    Calls(calls::Work),
    /// With so many slots.
    Cycles(usize),
}

impl Scenario {
    /// What a play says last.
    pub(crate) const THROUGH: &'static str = "through";

    /// Plays it in this process.
    pub(crate) fn play(&self) {
        match self.body {
            Body::Planted(body) => body(),
            Body::Waits => waits::play(Module::load()),
            Body::Calls(work) => calls::play(Module::load(), work),
            Body::Cycles(slots) => cycles::play(Module::load(), slots),
        }
        println!("{}", Self::THROUGH);
    }
}

/// The readers of a play.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BackendKind {
    /// The module is not used.
    None,
    /// A socket reader with a moving card.
    Socket(CardMoves),
    /// pcscd is configured, and none is there.
    Absent,
    /// Both of these.
    Two(CardMoves),
    /// A pcscd with a moving card.
    Pcscd(CardMoves),
}

/// How long the card is in the reader and out of it, in turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CardMoves {
    pub(crate) present: Duration,
    pub(crate) absent: Duration,
}

/// What a play has to lead to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    /// Nothing to report.
    Silence,
    /// A report with these words: the fault was put there.
    Report(&'static str),
}

/// Quick enough for events within a generation of milliseconds.
const QUICK: CardMoves = moves(2, 1);
/// Long enough for several calls.
const CALM: CardMoves = moves(60, 7);
/// pcscd looks for vsmartcard's cards a few times a second.
const PCSCD: CardMoves = moves(2000, 700);

const BOTH: &[Tool] = &[Tool::Address, Tool::Thread];

pub(crate) const PLAYS: [Scenario; 14] = [
    planted("planted-race", Tool::Thread, RACE, planted::race),
    planted(
        "planted-order",
        Tool::Thread,
        Outcome::Silence,
        planted::order,
    ),
    planted(
        "planted-use-after-free",
        Tool::Address,
        USE_AFTER_FREE,
        planted::use_after_free,
    ),
    planted("planted-leak", Tool::Address, LEAK, planted::leak),
    play("waits", BackendKind::Socket(QUICK), Body::Waits),
    play("waits-no-pcscd", BackendKind::Absent, Body::Waits),
    play("waits-two-transports", BackendKind::Two(QUICK), Body::Waits),
    play("waits-pcscd", BackendKind::Pcscd(PCSCD), Body::Waits),
    play("calls", BackendKind::Socket(CALM), Body::Calls(calls::MANY)),
    play(
        "calls-pcscd",
        BackendKind::Pcscd(PCSCD),
        Body::Calls(calls::FEW),
    ),
    play("cycles", BackendKind::Socket(QUICK), Body::Cycles(2)),
    play("cycles-no-pcscd", BackendKind::Absent, Body::Cycles(0)),
    play(
        "cycles-two-transports",
        BackendKind::Two(QUICK),
        Body::Cycles(2),
    ),
    play("cycles-pcscd", BackendKind::Pcscd(PCSCD), Body::Cycles(4)),
];

const RACE: Outcome = Outcome::Report("data race");
const USE_AFTER_FREE: Outcome = Outcome::Report("heap-use-after-free");
const LEAK: Outcome = Outcome::Report("LeakSanitizer");

const fn moves(present: u64, absent: u64) -> CardMoves {
    CardMoves {
        present: Duration::from_millis(present),
        absent: Duration::from_millis(absent),
    }
}

const fn play(name: &'static str, way: BackendKind, body: Body) -> Scenario {
    Scenario {
        name,
        tools: BOTH,
        way,
        outcome: Outcome::Silence,
        body,
    }
}

const fn planted(name: &'static str, tool: Tool, outcome: Outcome, body: fn()) -> Scenario {
    Scenario {
        name,
        tools: match tool {
            Tool::Address => &[Tool::Address],
            Tool::Thread => &[Tool::Thread],
        },
        way: BackendKind::None,
        outcome,
        body: Body::Planted(body),
    }
}
