//! Tests this machine cannot run: said aloud and counted, never passed over in silence.

#![allow(clippy::panic, reason = "a harness fails loudly")]

use std::{fs::File, io::Write as _, path::PathBuf};

use crate::paths;

/// Set, to any value, where every test must run: a skip is then a failure.
pub const NO_SKIP: &str = "CLAVIGER_NO_SKIP";
/// Names the file that gets one line for each skipped test; without it, `skipped-tests` in the build's `tmp`.
pub const RECORD: &str = "CLAVIGER_SKIPPED_TESTS";

/// Records that the running test is skipped because of `reason`. The caller returns.
///
/// # Panics
/// Where [`NO_SKIP`] is set.
pub fn because(reason: &str) {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    assert!(
        std::env::var_os(NO_SKIP).is_none(),
        "{test} cannot run here: {reason}"
    );
    // Past the capture of the test runner.
    let _ = writeln!(std::io::stderr(), "test {test} ... SKIPPED: {reason}");
    let record = std::env::var_os(RECORD)
        .map_or_else(|| paths::scratch().join("skipped-tests"), PathBuf::from);
    if let Ok(mut file) = File::options().create(true).append(true).open(record) {
        let _ = file.write_all(format!("{test}: {reason}\n").as_bytes());
    }
}
