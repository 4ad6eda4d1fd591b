//! Tests this machine cannot run: said aloud and counted, never passed over in silence.

#![allow(clippy::panic, reason = "a harness fails loudly")]

use std::{fs::File, io::Write as _};

use crate::paths;

/// Set, to any value, where every test must run: a skip is then a failure.
pub const NO_SKIP: &str = "CLAVIGER_NO_SKIP";
/// The file, in the build's `tmp` folder, that gets one line for each skipped test.
pub const RECORD: &str = "skipped-tests";

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
    let record = paths::scratch().join(RECORD);
    if let Ok(mut file) = File::options().create(true).append(true).open(record) {
        let _ = file.write_all(format!("{test}: {reason}\n").as_bytes());
    }
}
