//! Figures: how soon, how late, how often. A machine that does other things at the same time has its share in each, so
//! only `make races` holds the module to them, with nothing beside it; elsewhere they are printed.

use std::{env, fs};

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
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let text = format!("{what}; load of this machine: {}", load.trim());
    assert!(!are_held(), "{text}");
    println!("no figure to go by, but to see: {text}");
}
