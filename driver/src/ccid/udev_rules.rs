//! Generates the udev rules of raw USB from the table of readers.

use std::fmt::Write;

use super::quirks::{Row, rows};

const HEAD: &str = r#"# Access to smart-card readers over raw USB. Generated from udev/readers.txt by
# `cargo run -p claviger-driver --example udev_rules`; a test fails if this file differs.
#
# `uaccess` gives the user at the seat access to a reader. A service without a seat needs SupplementaryGroups=pcscd, or
# its own group in a rule of the administrator. This file does not set GROUP, because pcscd's rules set it.
# The number of this file must stay below 73, because the rules of number 73 grant the access.

ACTION=="remove", GOTO="claviger_end"
SUBSYSTEM!="usb", GOTO="claviger_end"
ENV{DEVTYPE}!="usb_device", GOTO="claviger_end"

# Readers of the smart-card class, with any protocol.
ENV{ID_USB_INTERFACES}=="", IMPORT{builtin}="usb_id"
ENV{ID_USB_INTERFACES}=="*:0b????:*", ENV{ID_SMARTCARD_READER}="1"

# Readers of vendor class.
"#;

const ACCESS: &str = r#"
ENV{ID_SMARTCARD_READER}!="?*", GOTO="claviger_end"
TAG+="uaccess", TAG+="security-device"

# After a suspend, another token in the same port must not be taken for the previous one.
TEST=="power/persist", ATTR{power/persist}="0"
TEST=="power/control", ATTR{power/control}="auto"
"#;

const OPT_IN: &str = r#"
# To reserve a token for raw USB, so that pcscd (2.3.2 and later) ignores it, remove the # from its line.
"#;

const TAIL: &str = r#"
LABEL="claviger_end"
"#;

/// Returns the content of `udev/70-claviger.rules`.
#[must_use]
pub fn udev_rules() -> String {
    let mut rules = HEAD.to_owned();
    for row in rows().iter().filter(|row| row.quirks.vendor_class) {
        line(&mut rules, row, r#"ENV{ID_SMARTCARD_READER}="1""#, "");
    }
    rules.push_str(ACCESS);
    for row in rows().iter().filter(|row| row.quirks.awake) {
        let awake = r#"TEST=="power/control", ATTR{power/control}="on""#;
        line(&mut rules, row, awake, "");
    }
    rules.push_str(OPT_IN);
    for row in rows().iter().filter(|row| row.quirks.card_fixed) {
        line(&mut rules, row, r#"ENV{PCSCLITE_IGNORE}="1""#, "#");
    }
    rules.push_str(TAIL);
    rules
}

/// Writes a comment with the reader's name, then the rule. The name has its own line, because a comment cannot follow
/// a rule.
fn line(rules: &mut String, row: &Row, what: &str, mark: &str) {
    let Row {
        vendor,
        product,
        name,
        ..
    } = row;
    // Writing to a string cannot fail.
    let _ = writeln!(
        rules,
        "# {name}\n{mark}ATTR{{idVendor}}==\"{vendor:04x}\", ATTR{{idProduct}}==\"{product:04x}\", {what}"
    );
}
