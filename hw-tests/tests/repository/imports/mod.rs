//! Checks the imports between the files of each crate, and that no test code is shipped.

mod graph;
mod modules;
mod tokens;

use std::{fs, path::Path};

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
fn no_files_import_each_other_in_a_circle() {
    let mut found = String::new();
    for root in SHIPPED.into_iter().chain(TOOLS) {
        let of_crate = read(root);
        assert!(of_crate.files().len() > 5, "{root} has too few files");
        for circle in circles(&of_crate.imports()) {
            found.push_str(&format!("{circle}\n"));
        }
    }
    assert!(found.is_empty(), "circles of imports:\n{found}");
}
