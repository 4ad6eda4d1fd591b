//! Checks the imports between the files of each crate, and that no test code is shipped.

mod graph;
mod modules;
mod tokens;

use std::{collections::BTreeSet, fs, path::Path};

use graph::{Crate, circles};

/// The crates that are built into the module.
const SHIPPED: [&str; 4] = [
    "apdu/src/lib.rs",
    "driver/src/lib.rs",
    "token/src/lib.rs",
    "pkcs11-abi/src/lib.rs",
];
const TOOLS: [&str; 3] = [
    "hw-tests/src/lib.rs",
    "fuzz/sequence/mod.rs",
    "sanitize/src/main.rs",
];

/// The known circles of imports: their folder, their files, and the reason. All are to be cut. A circle that no longer
/// exists must leave this list.
const CIRCLES: [(&str, &str, &str); 0] = [
];

fn read(root: &str) -> Crate {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    Crate::read(root, &|file| fs::read_to_string(tree.join(file)).ok())
}

#[test]
fn no_fuzz_function_and_no_fake_is_shipped() {
    let is_meant = |name: &str| name.split('_').any(|word| matches!(word, "fuzz" | "fake"));
    let found: Vec<String> = SHIPPED
        .iter()
        .flat_map(|root| read(root).names(is_meant))
        .collect();
    assert!(found.is_empty(), "not for tests only: {found:#?}");
}

#[test]
fn every_import_cycle_is_known() {
    let known = CIRCLES.map(|(folder, files, _)| {
        let files = files.split_whitespace();
        files.map(|file| format!("{folder}/{file}.rs")).collect()
    });
    let mut known: BTreeSet<BTreeSet<String>> = known.into();
    let mut new = String::new();
    for root in SHIPPED.into_iter().chain(TOOLS) {
        let of_crate = read(root);
        assert!(of_crate.files().len() > 5, "{root} has too few files");
        for circle in circles(&of_crate.imports()) {
            if !known.remove(&circle.files) {
                new.push_str(&format!("{circle}\n"));
            }
        }
    }
    assert!(new.is_empty(), "new circles of imports:\n{new}");
    assert!(known.is_empty(), "circles that no longer exist: {known:#?}");
}
