//! How PIN pads differ from the standard, according to the table of readers.

use super::Digits;

/// How a PIN pad differs from CCID 1.1, 6.1.11. The default is a PIN pad without differences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PadQuirks {
    /// The entry ends only with the OK key (bEntryValidationCondition 02).
    pub key_only: bool,
    /// bNumberMessage must be 00.
    pub no_message: bool,
    /// bNumberMessage of a modification must be 03.
    pub three_messages: bool,
    /// A modification has all three bMsgIndex, whatever bNumberMessage is.
    pub all_indexes: bool,
    /// A modification has bNumberMessage 00, and still three bMsgIndex of 00.
    pub blind_change: bool,
    /// The bytes of wPINMaxExtraDigit are swapped.
    pub swapped: bool,
    /// The reader rejects an entry while the key that started it is pressed.
    pub pause: bool,
    /// The reader appends a PIN of variable length and its Lc to a template of four bytes, after an Escape command.
    pub append: bool,
    /// The PIN must be in a block of fixed length.
    pub fixed: bool,
    /// The shortest and the longest PIN that the PIN pad accepts.
    pub digits: Option<Digits>,
}

impl PadQuirks {
    /// Sets the quirk that a word of the table names. Returns `None` if the word is no PIN pad quirk.
    pub(in crate::ccid) fn set(&mut self, word: &str) -> Option<()> {
        match word {
            "pad-key-only" => self.key_only = true,
            "pad-no-message" => self.no_message = true,
            "pad-three-messages" => self.three_messages = true,
            "pad-all-indexes" => self.all_indexes = true,
            "pad-blind-change" => self.blind_change = true,
            "pad-swapped" => self.swapped = true,
            "pad-pause" => self.pause = true,
            "pad-append" => self.append = true,
            "pad-fixed" => self.fixed = true,
            _ => self.digits = Some(digits(word.strip_prefix("pad-digits=")?)?),
        }
        Some(())
    }
}

/// Parses `min-max`.
fn digits(word: &str) -> Option<Digits> {
    let (min, max) = word.split_once('-')?;
    let digits = Digits {
        min: min.parse().ok()?,
        max: max.parse().ok()?,
    };
    (digits.min > 0 && digits.min <= digits.max).then_some(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pad_quirk_word_sets_one_quirk() {
        let mut quirks = PadQuirks::default();
        assert_eq!(quirks.set("pad-key-only"), Some(()));
        assert_eq!(quirks.set("pad-digits=4-8"), Some(()));
        let digits = Some(Digits { min: 4, max: 8 });
        assert!(quirks.key_only && quirks.digits == digits && !quirks.fixed);
    }

    #[test]
    fn malformed_pad_quirk_words_are_refused() {
        for word in [
            "pad-key",
            "pad-digits",
            "pad-digits=",
            "pad-digits=8",
            "pad-digits=8-4",
            "pad-digits=0-4",
            "pad-digits=4-256",
            "key-only",
        ] {
            assert_eq!(PadQuirks::default().set(word), None, "{word}");
        }
    }
}
