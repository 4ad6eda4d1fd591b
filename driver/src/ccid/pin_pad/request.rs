//! The PIN entry and the command that an applet needs.

/// A PIN to be typed, and the command that sends it to the card. It is independent of the reader.
///
/// ```
/// use claviger_driver::ccid::pin_pad::{Digits, PinForm, PinRequest, Purpose};
/// // The PIN of a PIV card (SP 800-73-4, part 2, 3.2.1): eight bytes, padded with FF.
/// let request = PinRequest {
///     form: PinForm::Padded { block: 8, padding: 0xFF },
///     ..PinRequest::new([0x00, 0x20, 0x00, 0x80], Purpose::Verify, Digits { min: 6, max: 8 })
/// };
/// assert_eq!(request.check(), Ok(()));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinRequest {
    /// CLA INS P1 P2 of VERIFY, CHANGE REFERENCE DATA or RESET RETRY COUNTER (ISO 7816-4, 7.5.6 to 7.5.10).
    pub header: [u8; 4],
    /// Whether the user verifies the PIN or changes it.
    pub purpose: Purpose,
    /// How the digits are placed in the command. They are always ASCII.
    pub form: PinForm,
    /// How many digits the card accepts.
    pub digits: Digits,
    /// The timeout of the user in seconds. 0 means the reader's own timeout.
    pub timeout: u8,
    /// wLangId, the language of the reader's texts (USB language identifiers).
    pub language: u16,
}

/// Whether the user verifies the PIN or changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The user types the PIN.
    Verify,
    /// The user types a new PIN.
    Change {
        /// Whether the user first types the present PIN or its substitute. It precedes the new PIN in the command.
        old: bool,
        /// Whether the user types the new PIN twice.
        twice: bool,
    },
}

/// How the digits are placed in the command's data field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinForm {
    /// Each PIN is left-justified in its own block.
    Padded {
        /// The length of the block, 1 to 15 bytes.
        block: u8,
        /// The byte that fills the rest of the block.
        padding: u8,
    },
    /// The PIN without padding. The reader sets Lc to its length.
    Variable,
}

/// The shortest and the longest PIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digits {
    /// The minimum number of digits, 1 or more.
    pub min: u8,
    /// The maximum number of digits.
    pub max: u8,
}

impl Digits {
    /// Returns the lengths that both allow, if there are any.
    #[must_use]
    pub fn and(self, other: Self) -> Option<Self> {
        let (min, max) = (self.min.max(other.min), self.max.min(other.max));
        (min <= max).then_some(Self { min, max })
    }
}

/// Why no reader, or not this reader, can carry out a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The shortest PIN has no digit, or is longer than the longest.
    #[error("a PIN of {} to {} digits cannot be typed", .0.min, .0.max)]
    Digits(Digits),
    /// The block does not fit the four bits of bmPINBlockString.
    #[error("a PIN block has 1 to 15 bytes, not {0}")]
    Block(u8),
    /// The longest PIN does not fit its block.
    #[error("a PIN of {max} digits does not fit a block of {block} bytes")]
    Overflow {
        /// Digits of the longest PIN.
        max: u8,
        /// Bytes of the block.
        block: u8,
    },
    /// The longest PINs do not fit a short command.
    #[error("two PINs of {0} digits do not fit a command")]
    CommandTooLong(u8),
    /// The reader does not support this operation.
    #[error("the reader's PIN pad does not support this operation; type the PIN at the computer")]
    NotOffered,
    /// The reader cannot insert the length of a PIN.
    #[error("the reader's PIN pad accepts only PINs of fixed length; type the PIN at the computer")]
    FixedOnly,
    /// No PIN is long enough for the card and short enough for the pad.
    #[error(
        "the card's PINs have {} to {} digits, the reader's PIN pad accepts {} to {}",
        .card.min, .card.max, .pad.min, .pad.max
    )]
    Apart {
        /// The lengths that the card accepts.
        card: Digits,
        /// The lengths that the PIN pad accepts.
        pad: Digits,
    },
}

impl PinRequest {
    /// United States English, which every reader has.
    pub const ENGLISH: u16 = 0x0409;

    /// Makes a request for a PIN of variable length, with the reader's own timeout and in English.
    #[must_use]
    pub const fn new(header: [u8; 4], purpose: Purpose, digits: Digits) -> Self {
        Self {
            header,
            purpose,
            form: PinForm::Variable,
            digits,
            timeout: 0,
            language: Self::ENGLISH,
        }
    }

    /// Checks whether a reader could carry out the request.
    ///
    /// # Errors
    /// The part of the request that is impossible.
    pub fn check(&self) -> Result<(), RequestError> {
        let Digits { min, max } = self.digits;
        if min == 0 || min > max {
            return Err(RequestError::Digits(self.digits));
        }
        match self.form {
            PinForm::Padded { block, .. } if !(1..=15).contains(&block) => {
                Err(RequestError::Block(block))
            }
            PinForm::Padded { block, .. } if max > block => {
                Err(RequestError::Overflow { max, block })
            }
            PinForm::Variable if u16::from(max) * u16::from(self.pins()) > 255 => {
                Err(RequestError::CommandTooLong(max))
            }
            _ => Ok(()),
        }
    }

    /// Returns how many PINs the command carries.
    pub(super) const fn pins(&self) -> u8 {
        match self.purpose {
            Purpose::Change { old: true, .. } => 2,
            _ => 1,
        }
    }

    /// Returns the length of each PIN's block, or 0 for PINs of variable length (bmPINBlockString).
    pub(super) const fn block(&self) -> u8 {
        match self.form {
            PinForm::Padded { block, .. } => block,
            PinForm::Variable => 0,
        }
    }

    /// Returns the command without the PIN. The reader corrects its Lc, which is 0 for PINs of variable length.
    pub(super) fn template(&self) -> Vec<u8> {
        let lc = self.block().saturating_mul(self.pins());
        let mut template = self.header.to_vec();
        template.push(lc);
        if let PinForm::Padded { padding, .. } = self.form {
            template.resize(template.len() + usize::from(lc), padding);
        }
        template
    }
}
