//! How PIN pads differ from the standard, as the table of readers says it.

use super::Digits;

/// How a pad differs from CCID 1.1, 6.1.11. The default is one that keeps to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PadQuirks {
    /// The entry ends with the OK key, and with nothing else (bEntryValidationCondition 02).
    pub key_only: bool,
    /// bNumberMessage must be 00.
    pub no_message: bool,
    /// bNumberMessage of a modification must be 03.
    pub three_messages: bool,
    /// A modification has all three bMsgIndex, however many bNumberMessage says.
    pub all_indexes: bool,
    /// A modification has bNumberMessage 00, and three bMsgIndex of 00 all the same.
    pub blind_change: bool,
    /// The bytes of wPINMaxExtraDigit stand the other way round.
    pub swapped: bool,
    /// The reader rejects an entry as long as the key that started it is down.
    pub pause: bool,
    /// A PIN of variable length is appended with its Lc to a template of four bytes, once an escape said so.
    pub append: bool,
    /// The PIN goes into a block of fixed length only.
    pub fixed: bool,
    /// How short and how long a PIN the pad can be asked for.
    pub digits: Option<Digits>,
}

impl PadQuirks {
    /// Takes a word of the table; `None` when it is none about pads.
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

/// Reads `min-max`.
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
