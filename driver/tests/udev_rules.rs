//! The udev rules in the repository match the table of readers, and udev can parse them.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use std::{fs, path::Path};

use claviger_driver::ccid;

fn udev(file: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../udev");
    fs::read_to_string(folder.join(file)).unwrap()
}

/// Returns the rules, which are the lines that are neither empty nor comments.
fn rules(text: &str) -> Vec<&str> {
    let is_rule = |line: &&str| !line.is_empty() && !line.starts_with('#');
    text.lines().filter(is_rule).collect()
}

/// Splits a rule into parts of key, operator and value.
fn parts(rule: &str) -> Option<Vec<(&str, &str, &str)>> {
    rule.split(", ")
        .map(|part| {
            let at = part.find(['=', '!', '+', ':'])?;
            let (key, rest) = part.split_at(at);
            let quote = rest.find('"')?;
            let (operator, value) = rest.split_at(quote);
            let value = value.strip_prefix('"')?.strip_suffix('"')?;
            (!value.contains('"')).then_some((key, operator, value))
        })
        .collect()
}

#[test]
fn udev_rules_are_those_of_the_quirk_table() {
    let made = ccid::udev_rules();
    assert_eq!(
        udev("70-claviger.rules"),
        made,
        "run `cargo run -p claviger-driver --example udev_rules > udev/70-claviger.rules`"
    );
}

#[test]
fn every_udev_rule_has_valid_syntax() {
    let text = udev("70-claviger.rules");
    let rules = rules(&text);
    assert!(rules.len() > 30, "{} rules", rules.len());
    for rule in &rules {
        let parts = parts(rule).unwrap_or_default();
        assert!(!parts.is_empty(), "{rule}");
        for (key, operator, _) in parts {
            let name = key.split('{').next().unwrap();
            let known = [
                "ACTION",
                "SUBSYSTEM",
                "ENV",
                "ATTR",
                "IMPORT",
                "TAG",
                "TEST",
                "GOTO",
                "LABEL",
            ];
            assert!(known.contains(&name), "{rule}");
            assert_eq!(key.contains('{'), key.ends_with('}'), "{rule}");
            assert!(["==", "!=", "=", "+="].contains(&operator), "{rule}");
        }
    }
}

#[test]
fn every_goto_leads_to_the_end_label() {
    let text = udev("70-claviger.rules");
    let all: Vec<_> = rules(&text)
        .into_iter()
        .filter_map(parts)
        .flatten()
        .collect();
    let values = |wanted: &str| -> Vec<&str> {
        let of = all.iter().filter(|(key, ..)| *key == wanted);
        of.map(|(_, _, value)| *value).collect()
    };
    assert_eq!(values("LABEL"), ["claviger_end"]);
    assert!(values("GOTO").len() >= 4);
    assert!(values("GOTO").iter().all(|label| *label == "claviger_end"));
}

#[test]
fn udev_rules_set_neither_group_nor_mode_nor_pcsclite_ignore() {
    let text = udev("70-claviger.rules");
    for rule in rules(&text) {
        assert!(!rule.contains("GROUP"), "GROUP is pcscd's: {rule}");
        assert!(!rule.contains("MODE"), "{rule}");
        assert!(
            !rule.contains("PCSCLITE_IGNORE"),
            "only as a comment: {rule}"
        );
    }
    assert!(text.contains(
        "\n#ATTR{idVendor}==\"1050\", ATTR{idProduct}==\"0407\", ENV{PCSCLITE_IGNORE}=\"1\"\n"
    ));
}

#[test]
fn udev_rule_matches_readers_of_every_protocol() {
    let text = udev("70-claviger.rules");
    assert!(text.contains(r#"ENV{ID_USB_INTERFACES}=="*:0b????:*""#));
    assert!(text.contains(
        r#"ATTR{idVendor}=="04e6", ATTR{idProduct}=="e003", ENV{ID_SMARTCARD_READER}="1""#
    ));
}
