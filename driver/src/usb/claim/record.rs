//! The record in a lock file: the state in which a claim left the reader.

use claviger_apdu::Atr;

/// The first line: format and version.
const TITLE: &str = "claviger 2";
/// The last line: whether the claim was released.
const HELD: &str = "held";
const LEFT: &str = "left";
/// Maximum length. The ATRs of all slots need about 1200 bytes.
pub(crate) const MAX_RECORD: usize = 2048;

/// The state in which a claim left the reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockRecord {
    /// The device instance. The reader of the record compares it.
    pub instance: String,
    /// How often the reader was claimed. A process that finds another count than it wrote knows that another process used the
    /// card.
    pub use_count: u64,
    /// ATRs of the cards that were left powered, by slot. There is at least one entry.
    pub atrs: Vec<Option<Atr>>,
    /// The sequence number (bSeq) of the last command. If the claim was not released: the one before its first.
    pub sequence: u8,
    /// When the last transfer to the device was begun, as of the release. `None` if unknown.
    pub last_transfer: Option<u64>,
    /// The claim ended in good order. Otherwise the state of reader and cards is unknown.
    pub was_released: bool,
}

impl LockRecord {
    /// Parses a record. Returns `None` for anything else.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut lines = text.split('\n');
        if lines.next() != Some(TITLE) {
            return None;
        }
        let instance = lines.next()?.to_owned();
        let uses = lines.next()?.parse().ok()?;
        let atrs = lines.next()?.split(',').map(atr_of);
        let atrs = atrs.collect::<Option<Vec<_>>>()?;
        let sequence = lines.next()?.parse().ok()?;
        let last_transfer = match lines.next()? {
            "" => None,
            number => Some(number.parse().ok()?),
        };
        let is_left = match lines.next()? {
            HELD => false,
            LEFT => true,
            _ => return None,
        };
        // A record must end with a line feed. A truncated record is invalid.
        let is_whole = lines.next() == Some("") && lines.next().is_none();
        is_whole.then_some(Self {
            instance,
            use_count: uses,
            atrs,
            sequence,
            last_transfer,
            was_released: is_left,
        })
    }

    /// The ATR of the card in `slot`, if the card was left powered.
    #[must_use]
    pub fn atr(&self, slot: u8) -> Option<&Atr> {
        self.atrs.get(usize::from(slot))?.as_ref()
    }

    /// The record as text.
    #[must_use]
    pub fn encode(&self) -> String {
        let digits = |atr: &Option<Atr>| {
            atr.as_ref()
                .map_or_else(String::new, |atr| digits_of(atr.bytes()))
        };
        let atrs: Vec<String> = self.atrs.iter().map(digits).collect();
        let last = self
            .last_transfer
            .map_or_else(String::new, |last| last.to_string());
        format!(
            "{TITLE}\n{}\n{}\n{}\n{}\n{last}\n{}\n",
            self.instance,
            self.use_count,
            atrs.join(","),
            self.sequence,
            if self.was_released { LEFT } else { HELD }
        )
    }
}

/// An answer to reset, or that there is none.
#[allow(
    clippy::option_option,
    reason = "digits that are none are something else than no digits"
)]
/// Parses an ATR, or its absence.
fn atr_of(digits: &str) -> Option<Option<Atr>> {
    if digits.is_empty() {
        return Some(None);
    }
    Some(Some(Atr::parse(&bytes_of(digits)?).ok()?))
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

/// Parses arbitrary bytes, for the fuzz target `usb_record`. A valid record stays the same when encoded.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let bytes = bytes.get(..MAX_RECORD).unwrap_or(bytes);
    if let Some(record) = LockRecord::parse(bytes) {
        assert_eq!(LockRecord::parse(record.encode().as_bytes()), Some(record));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> LockRecord {
        LockRecord {
            instance: "812 3-7".to_owned(),
            use_count: 41,
            atrs: vec![Some(Atr::parse(&[0x3B, 0x01, 0x11]).unwrap())],
            sequence: 200,
            last_transfer: Some(1_700_000_000_123_456_789),
            was_released: true,
        }
    }

    #[test]
    fn record_reads_back_as_written() {
        for record in [
            record(),
            LockRecord {
                atrs: vec![None],
                ..record()
            },
            LockRecord {
                was_released: false,
                ..record()
            },
            LockRecord {
                atrs: vec![None, record().atrs[0].clone(), None],
                ..record()
            },
        ] {
            let text = record.encode();
            assert!(text.len() < MAX_RECORD);
            assert_eq!(LockRecord::parse(text.as_bytes()), Some(record));
        }
    }

    #[test]
    fn record_names_the_atr_of_each_slot_and_none_for_unknown_slots() {
        let card = record().atrs[0].clone();
        let record = LockRecord {
            atrs: vec![None, card.clone()],
            ..record()
        };
        assert_eq!(
            record.encode(),
            "claviger 2\n812 3-7\n41\n,3B0111\n200\n1700000000123456789\nleft\n"
        );
        assert_eq!(
            [0, 1, 2].map(|slot| record.atr(slot)),
            [None, card.as_ref(), None]
        );
    }

    #[test]
    fn atrs_of_all_slots_fit_into_a_record() {
        let digits = 2 * 33 * usize::from(crate::ccid::budget::SLOTS);
        assert!(
            record().encode().len() + digits + usize::from(crate::ccid::budget::SLOTS) < MAX_RECORD
        );
    }

    #[test]
    fn truncated_record_or_one_of_another_version_is_ignored() {
        let text = record().encode();
        for end in 0..text.len() {
            assert_eq!(LockRecord::parse(&text.as_bytes()[..end]), None, "{end}");
        }
        for bad in [
            text.replace("claviger 2", "claviger 1"),
            text.replace("41", "-41"),
            text.replace("\n17", "\n-17"),
            text.replace("\n200", "\n256"),
            text.replace("\n200", "\n"),
            text.replace("3B", "3"),
            text.replace("3B", "xx"),
            text.replace("3B", "00"),
            text.replace("left", ""),
            format!("{text}more"),
        ] {
            assert_eq!(LockRecord::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
