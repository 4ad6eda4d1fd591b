//! Plays with the module for runs under a sanitizer; `docs/sanitizers.md` says what for.
//!
//! Without an argument, every play that suits the sanitizer in this program is run, each in a process of its own.
//! The reader is played by the first process, so that the tool sees nothing but the module and its callers.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test client fails loudly, and its figures are small"
)]

mod calls;
mod card;
mod cycles;
mod harness;
mod module;
mod planted;
mod reader;
mod runner;
mod scenarios;
mod tool;
mod vpcd;
mod waits;

use std::process::ExitCode;

use crate::scenarios::PLAYS;

fn main() -> ExitCode {
    let Some(name) = std::env::args().nth(1) else {
        return runner::run_all();
    };
    let Some(play) = PLAYS.iter().find(|play| play.name == name) else {
        let names: Vec<_> = PLAYS.iter().map(|play| play.name).collect();
        eprintln!("{name:?} is no play; these are: {}", names.join(", "));
        return ExitCode::from(2);
    };
    fail_at_once();
    play.play();
    ExitCode::SUCCESS
}

/// A thread that panics is the end of the play; the others would wait for it.
fn fail_at_once() {
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        say(panic);
        // SAFETY: ends the process and touches nothing of it.
        unsafe { libc::_exit(101) };
    }));
}
