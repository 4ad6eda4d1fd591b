//! Reports and counts the tests that this machine cannot run.

#![allow(clippy::panic, reason = "a harness fails loudly")]

use std::{fs::File, io::Write as _, path::PathBuf};

use crate::paths;

/// If this variable is set, a skipped test fails.
pub const NO_SKIP: &str = "CLAVIGER_NO_SKIP";
/// Path of the file that gets one line for each skipped test. Default: `skipped-tests` in the build's `tmp` folder.
pub const RECORD: &str = "CLAVIGER_SKIPPED_TESTS";

/// Records that the running test is skipped because of `reason`. The caller must then return.
///
/// # Panics
/// If [`NO_SKIP`] is set.
pub fn because(reason: &str) {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    assert!(
        std::env::var_os(NO_SKIP).is_none(),
        "{test} cannot run here: {reason}"
    );
    // The test runner does not capture this.
    let _ = writeln!(std::io::stderr(), "test {test} ... SKIPPED: {reason}");
    let record = std::env::var_os(RECORD)
        .map_or_else(|| paths::scratch().join("skipped-tests"), PathBuf::from);
    if let Ok(mut file) = File::options().create(true).append(true).open(record) {
        let _ = file.write_all(format!("{test}: {reason}\n").as_bytes());
    }
}
