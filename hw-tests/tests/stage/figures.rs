//! Figures: how soon, how late, how often. A machine that does other things at the same time has its share in each, so
//! only `make races` holds the module to them, with nothing beside it, and `make test-usb`, in the best of some rounds;
//! elsewhere they are printed.

use std::{env, fs};

/// How many rounds [`hold_in_one_of_the_rounds`] plays at most.
const ROUNDS: usize = 5;

/// Whether figures are held to their limits.
pub fn are_held() -> bool {
    env::var_os("CLAVIGER_ROUNDS").is_some()
}

/// Holds a figure to its limit, where figures are held.
#[track_caller]
pub fn hold(is_kept: bool, what: &str) {
    if is_kept {
        return;
    }
    let text = format!("{what}; load of this machine: {}", load());
    assert!(!are_held(), "{text}");
    println!("no figure to go by, but to see: {text}");
}

/// Plays rounds until the figure of one is within its limit, and fails when that of none is. A machine that does other
/// things makes a figure worse and never better.
#[track_caller]
pub fn hold_in_one_of_the_rounds(what: &str, limit: f64, mut round: impl FnMut() -> f64) {
    let mut figures = Vec::new();
    while figures.len() < ROUNDS {
        let figure = round();
        println!("{what}: {figure:.2} of {limit:.2} allowed");
        if figure <= limit {
            return;
        }
        figures.push(figure);
    }
    panic!(
        "{what}: above {limit:.2} in each of {ROUNDS} rounds: {figures:.2?}; load of this machine: {}",
        load()
    );
}

/// The middle one of some figures.
pub fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.trim().to_owned()
}
