//! What one user of a reader leaves for the next, in the file that is their lock.

use claviger_apdu::Atr;

/// The first line, with the version of what follows.
const TITLE: &str = "claviger 1";
/// No record is longer.
pub(super) const LONGEST: usize = 512;

/// The state in which a reader was left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which plugging in it is about; whoever reads it compares.
    pub life: String,
    /// How often the reader has been claimed. Who finds another number than it left knows that somebody
    /// has used the card since.
    pub uses: u64,
    /// The answer to reset of the card that was left powered.
    pub atr: Option<Atr>,
}

impl Record {
    /// Reads a record; `None` of anything that is none.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut lines = text.split('\n');
        if lines.next() != Some(TITLE) {
            return None;
        }
        let life = lines.next()?.to_owned();
        let uses = lines.next()?.parse().ok()?;
        let atr = match lines.next()? {
            "" => None,
            digits => Some(Atr::parse(&bytes_of(digits)?).ok()?),
        };
        // The last line has its end: a record cut short is none.
        (lines.next() == Some("") && lines.next().is_none()).then_some(Self { life, uses, atr })
    }

    /// The record as it is kept.
    #[must_use]
    pub fn text(&self) -> String {
        let digits: String = self.atr.iter().map(|atr| digits_of(atr.bytes())).collect();
        format!("{TITLE}\n{}\n{}\n{digits}\n", self.life, self.uses)
    }
}

fn digits_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

fn bytes_of(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    let byte = |pair: &[u8]| match pair {
        [high, low] => {
            let digit = |digit: &u8| char::from(*digit).to_digit(16);
            u8::try_from(digit(high)? * 16 + digit(low)?).ok()
        }
        _ => None,
    };
    pairs.map(byte).collect()
}

/// Reads arbitrary bytes; what is a record says the same once written.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let bytes = bytes.get(..LONGEST).unwrap_or(bytes);
    if let Some(record) = Record::parse(bytes) {
        assert_eq!(Record::parse(record.text().as_bytes()), Some(record));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            life: "812 3-7".to_owned(),
            uses: 41,
            atr: Some(Atr::parse(&[0x3B, 0x01, 0x11]).unwrap()),
        }
    }

    #[test]
    fn a_record_says_what_was_written() {
        for record in [
            record(),
            Record {
                atr: None,
                ..record()
            },
        ] {
            let text = record.text();
            assert!(text.len() < LONGEST);
            assert_eq!(Record::parse(text.as_bytes()), Some(record));
        }
    }

    #[test]
    fn a_record_cut_short_or_of_another_version_is_none() {
        let text = record().text();
        for end in 0..text.len() {
            assert_eq!(Record::parse(&text.as_bytes()[..end]), None, "{end}");
        }
        for bad in [
            text.replace("claviger 1", "claviger 2"),
            text.replace("41", "-41"),
            text.replace("3B", "3"),
            text.replace("3B", "xx"),
            text.replace("3B", "00"),
            format!("{text}more"),
        ] {
            assert_eq!(Record::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
