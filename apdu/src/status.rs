//! Status words (ISO 7816-4, 5.6) in one table.

use std::fmt;

/// The two bytes that end every response.
///
/// Unknown values are passed on unchanged and print in hex. The applet interprets them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct StatusWord(pub u16);

macro_rules! status_words {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        impl StatusWord {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// Returns the standard's meaning of this value, or `None` if the standard does not define the value.
            #[must_use]
            pub const fn meaning(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some($text),)*
                    0x6100..=0x61FF => Some("more data available"),
                    0x63C0..=0x63CF => Some("verification failed, tries left in the last digit"),
                    0x6C00..=0x6CFF => Some("wrong Le, the right one in the last byte"),
                    _ => None,
                }
            }
        }
    };
}

status_words! {
    /// 9000: success.
    OK = 0x9000, "success";
    /// 6285: the file is terminated (OpenPGP: initialisation state).
    TERMINATED = 0x6285, "selected file in termination state";
    /// 6300: the comparison failed, and the card does not report the tries left.
    COMPARISON_FAILED = 0x6300, "verification failed";
    /// 6581: memory failure.
    MEMORY_FAILURE = 0x6581, "memory failure";
    /// 6700: wrong length.
    WRONG_LENGTH = 0x6700, "wrong length";
    /// 6881: logical channel not supported.
    CHANNEL_NOT_SUPPORTED = 0x6881, "logical channel not supported";
    /// 6882: secure messaging not supported.
    SECURE_MESSAGING_NOT_SUPPORTED = 0x6882, "secure messaging not supported";
    /// 6883: last command of the chain expected.
    LAST_OF_CHAIN_EXPECTED = 0x6883, "last command of the chain expected";
    /// 6884: command chaining not supported.
    CHAINING_NOT_SUPPORTED = 0x6884, "command chaining not supported";
    /// 6982: security status not satisfied.
    SECURITY_STATUS_NOT_SATISFIED = 0x6982, "security status not satisfied";
    /// 6983: authentication method blocked.
    AUTHENTICATION_BLOCKED = 0x6983, "authentication method blocked";
    /// 6985: conditions of use not satisfied.
    CONDITIONS_NOT_SATISFIED = 0x6985, "conditions of use not satisfied";
    /// 6A80: incorrect parameters in the data field.
    INCORRECT_DATA = 0x6A80, "incorrect data field";
    /// 6A81: function not supported.
    FUNCTION_NOT_SUPPORTED = 0x6A81, "function not supported";
    /// 6A82: file or application not found.
    NOT_FOUND = 0x6A82, "file or application not found";
    /// 6A84: not enough memory.
    NOT_ENOUGH_MEMORY = 0x6A84, "not enough memory";
    /// 6A86: incorrect P1-P2.
    INCORRECT_P1_P2 = 0x6A86, "incorrect parameters P1-P2";
    /// 6A88: referenced data not found.
    REFERENCE_NOT_FOUND = 0x6A88, "referenced data not found";
    /// 6B00: wrong P1-P2.
    WRONG_P1_P2 = 0x6B00, "wrong parameters P1-P2";
    /// 6D00: instruction not supported.
    INSTRUCTION_NOT_SUPPORTED = 0x6D00, "instruction not supported";
    /// 6E00: class not supported.
    CLASS_NOT_SUPPORTED = 0x6E00, "class not supported";
    /// 6F00: no precise diagnosis.
    NO_PRECISE_DIAGNOSIS = 0x6F00, "no precise diagnosis";
}

impl StatusWord {
    /// Returns whether this is 9000.
    #[must_use]
    pub const fn is_ok(self) -> bool {
        self.0 == 0x9000
    }

    /// Returns the first byte, SW1.
    #[must_use]
    pub const fn sw1(self) -> u8 {
        self.0.to_be_bytes()[0]
    }

    /// Returns the second byte, SW2.
    #[must_use]
    pub const fn sw2(self) -> u8 {
        self.0.to_be_bytes()[1]
    }

    /// Returns the tries left if this is 63Cx.
    #[must_use]
    pub const fn tries_left(self) -> Option<u8> {
        match self.0 {
            0x63C0..=0x63CF => Some(self.sw2() & 0x0F),
            _ => None,
        }
    }
}

impl fmt::Display for StatusWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.meaning() {
            Some(meaning) => write!(f, "{:04X} ({meaning})", self.0),
            None => write!(f, "{:04X}", self.0),
        }
    }
}

impl fmt::Debug for StatusWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StatusWord({:04X})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_left_is_the_last_digit_of_63cx_only() {
        assert_eq!(StatusWord(0x63C2).tries_left(), Some(2));
        assert_eq!(StatusWord(0x6302).tries_left(), None);
        assert_eq!(StatusWord::AUTHENTICATION_BLOCKED.tries_left(), None);
    }

    #[test]
    fn an_unknown_status_prints_in_hex() {
        assert_eq!(StatusWord(0x6640).to_string(), "6640");
        assert_eq!(
            StatusWord(0x6982).to_string(),
            "6982 (security status not satisfied)"
        );
    }
}
