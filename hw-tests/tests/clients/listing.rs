//! What `pkcs11-tool --list-slots` and `--list-objects` print, as data.

use std::collections::BTreeMap;

/// One slot or object: its headline, and the indented lines `name: value` below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub headline: String,
    pub fields: BTreeMap<String, String>,
}

impl Entry {
    /// The value of a field; empty without one.
    pub fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }

    /// `Certificate Object`, `Public Key Object`, `Private Key Object` or `Data object`.
    pub fn class(&self) -> &str {
        let name = self.headline.split(';').next().unwrap_or_default();
        name.trim_end_matches(|c: char| c.is_ascii_digit() || c == ' ')
    }

    /// Class, label and id: what a user tells objects apart by.
    pub fn identity(&self) -> (String, String, String) {
        let class = self.class().to_owned();
        (
            class,
            self.field("label").to_owned(),
            self.field("ID").to_owned(),
        )
    }
}

/// The entries of a listing, in its order.
pub fn entries(text: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        match (line.strip_prefix("  "), entries.last_mut()) {
            (None, _) => entries.push(Entry {
                headline: line.to_owned(),
                fields: BTreeMap::new(),
            }),
            (Some(line), Some(entry)) => {
                let (name, value) = line.split_once(':').unwrap_or((line, ""));
                let value = value.trim().trim_matches('\'');
                entry
                    .fields
                    .insert(name.trim().to_owned(), value.to_owned());
            }
            (Some(_), None) => {}
        }
    }
    entries
}
