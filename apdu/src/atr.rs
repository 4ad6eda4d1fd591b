//! The answer to reset (ISO 7816-3, 8.2). It is parsed once, and all its bytes are kept.

use std::fmt;

/// Longest answer to reset, in bytes.
const MAX: usize = 33;

/// An answer to reset as the reader gave it, with the properties of the card that it states.
///
/// The parser tolerates the faults of real cards. A wrong check byte or a truncated structure leaves the fields found
/// so far and a [`Atr::defect`].
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Atr {
    bytes: Vec<u8>,
    historical: std::ops::Range<usize>,
    defect: Option<&'static str>,
}

/// The bytes are not an answer to reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AtrError {
    /// Fewer than 2 or more than 33 bytes.
    #[error("the answer to reset has {0} bytes; 2 to 33 are expected")]
    Length(usize),
    /// The first byte is neither 3B nor 3F. 03 is accepted too: it is 3F as sent on the wire.
    #[error("the answer to reset begins with {0:02X}; 3B or 3F is expected")]
    InitialCharacter(u8),
}

impl Atr {
    /// Parses `bytes`.
    ///
    /// # Errors
    /// [`AtrError`] if the length or the first byte is wrong. Any other fault becomes a [`Atr::defect`].
    pub fn parse(bytes: &[u8]) -> Result<Self, AtrError> {
        let [ts, t0, rest @ ..] = bytes else {
            return Err(AtrError::Length(bytes.len()));
        };
        if bytes.len() > MAX {
            return Err(AtrError::Length(bytes.len()));
        }
        if !matches!(ts, 0x3B | 0x3F | 0x03) {
            return Err(AtrError::InitialCharacter(*ts));
        }
        let interface = Interface::read(*t0, rest);
        let start = 2 + interface.len;
        let end = start + usize::from(t0 & 0x0F);
        let defect = interface
            .defect
            .or_else(|| check_end(bytes, end, interface.check_byte));
        let historical = start.min(bytes.len())..end.min(bytes.len());
        Ok(Self {
            bytes: bytes.to_vec(),
            historical,
            defect,
        })
    }

    /// Returns all bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the historical bytes (ISO 7816-4, 12.1.1), which name the product or its capabilities.
    #[must_use]
    pub fn historical(&self) -> &[u8] {
        self.bytes.get(self.historical.clone()).unwrap_or(&[])
    }

    /// Returns the first fault of the structure, or `None` if the structure is correct.
    #[must_use]
    pub const fn defect(&self) -> Option<&'static str> {
        self.defect
    }

    /// Returns whether the card capabilities (compact-TLV 73, third byte) announce extended Lc and Le fields.
    #[must_use]
    pub fn announces_extended_length(&self) -> bool {
        let [0x00 | 0x80, objects @ ..] = self.historical() else {
            return false;
        };
        let mut rest = objects;
        while let [tag_and_len, after @ ..] = rest {
            let Some((value, next)) = after.split_at_checked(usize::from(tag_and_len & 0x0F))
            else {
                return false;
            };
            if let (0x73, [_, _, third]) = (*tag_and_len, value) {
                return third & 0x40 != 0;
            }
            rest = next;
        }
        false
    }
}

/// Length and faults of the interface characters TA1, TB1 … TDn.
struct Interface {
    len: usize,
    check_byte: bool,
    defect: Option<&'static str>,
}

impl Interface {
    fn read(t0: u8, mut rest: &[u8]) -> Self {
        let mut interface = Self {
            len: 0,
            check_byte: false,
            defect: None,
        };
        let mut indicator = t0;
        // Four groups fill the 33 bytes, so a fifth TD cannot be right.
        for _ in 0..4 {
            let count = (indicator >> 4).count_ones() as usize;
            let Some((characters, after)) = rest.split_at_checked(count) else {
                interface.defect = Some("interface characters truncated");
                return interface;
            };
            interface.len += count;
            rest = after;
            if indicator & 0x80 == 0 {
                return interface;
            }
            indicator = characters.last().copied().unwrap_or(0);
            // TCK is absent only when T=0 is the only protocol (ISO 7816-3, 8.2.5).
            interface.check_byte |= indicator & 0x0F != 0;
        }
        interface.defect = Some("more than four groups of interface characters");
        interface
    }
}

fn check_end(bytes: &[u8], end: usize, check_byte: bool) -> Option<&'static str> {
    let expected = end + usize::from(check_byte);
    if bytes.len() < expected {
        return Some("shorter than its own count");
    }
    if bytes.len() > expected {
        return Some("longer than its own count");
    }
    let sum = bytes.iter().skip(1).fold(0, |sum, byte| sum ^ byte);
    (check_byte && sum != 0).then_some("check byte is wrong")
}

impl fmt::Display for Atr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02X}"))
    }
}

impl fmt::Debug for Atr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Atr({self})")
    }
}

/// Parses arbitrary bytes. This is the entry of the fuzz target.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    if let Ok(atr) = Atr::parse(bytes) {
        assert!(atr.historical().len() <= 15, "at most 15 historical bytes");
        assert_eq!(atr.bytes(), bytes);
        let _ = atr.announces_extended_length();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NITROKEY_3: [u8; 19] = [
        0x3B, 0x8F, 0x01, 0x80, 0x5D, 0x4E, 0x69, 0x74, 0x72, 0x6F, 0x6B, 0x65, 0x79, 0, 0, 0, 0,
        0, 0x6A,
    ];
    const YUBIKEY_5: [u8; 23] = [
        0x3B, 0xFD, 0x13, 0x00, 0x00, 0x81, 0x31, 0xFE, 0x15, 0x80, 0x73, 0xC0, 0x21, 0xC0, 0x57,
        0x59, 0x75, 0x62, 0x69, 0x4B, 0x65, 0x79, 0x40,
    ];

    #[test]
    fn historical_bytes_of_real_tokens() {
        let atr = Atr::parse(&NITROKEY_3).unwrap();
        assert_eq!(atr.defect(), None);
        assert_eq!(&atr.historical()[1..10], b"\x5DNitrokey");
        assert!(!atr.announces_extended_length());
        let atr = Atr::parse(&YUBIKEY_5).unwrap();
        assert_eq!(atr.defect(), None);
        assert!(atr.historical().ends_with(b"YubiKey"));
        assert!(atr.announces_extended_length());
    }

    #[test]
    fn every_truncation_and_bit_flip_is_survived() {
        for atr in [&NITROKEY_3[..], &YUBIKEY_5[..]] {
            for len in 0..atr.len() {
                if let Ok(cut) = Atr::parse(&atr[..len]) {
                    assert!(cut.defect().is_some(), "{len} bytes pass as whole");
                }
            }
            for bit in 0..atr.len() * 8 {
                let mut flipped = atr.to_vec();
                flipped[bit / 8] ^= 1 << (bit % 8);
                fuzz(&flipped);
            }
        }
    }

    #[test]
    fn garbage_is_refused() {
        assert_eq!(Atr::parse(&[]), Err(AtrError::Length(0)));
        assert_eq!(Atr::parse(&[0x3B; 34]), Err(AtrError::Length(34)));
        assert_eq!(
            Atr::parse(&[0x00, 0x00]),
            Err(AtrError::InitialCharacter(0))
        );
    }
}
