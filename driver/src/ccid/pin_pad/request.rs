//! What an applet wants typed, and sent to the card.

/// A PIN to be typed and the command that takes it to the card. It says nothing of any reader.
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
    /// What is asked of the user.
    pub purpose: Purpose,
    /// How the digits stand in the command; ASCII always.
    pub form: PinForm,
    /// How many of them the card takes.
    pub digits: Digits,
    /// Seconds the user has; 0 leaves it to the reader.
    pub timeout: u8,
    /// wLangId, the language of what the reader shows (USB language identifiers).
    pub language: u16,
}

/// What is asked of the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The PIN.
    Verify,
    /// A new PIN.
    Change {
        /// Whether the present one, or what stands in for it, is asked for first and stands before the new one.
        old: bool,
        /// Whether the new one is asked for twice.
        twice: bool,
    },
}

/// How the digits stand in the command's data field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinForm {
    /// Each PIN at the left of a block of its own.
    Padded {
        /// Bytes of the block, 1 to 15.
        block: u8,
        /// What the rest of it is filled with.
        padding: u8,
    },
    /// As long as it is; the reader says in Lc how long that was.
    Variable,
}

/// How short and how long a PIN may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digits {
    /// At least as many digits, 1 or more.
    pub min: u8,
    /// At most.
    pub max: u8,
}

impl Digits {
    /// What both allow, if there is anything.
    #[must_use]
    pub fn and(self, other: Self) -> Option<Self> {
        let (min, max) = (self.min.max(other.min), self.max.min(other.max));
        (min <= max).then_some(Self { min, max })
    }
}

/// A request that no reader could carry out, or not this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The shortest PIN has no digit, or is longer than the longest.
    #[error("a PIN of {} to {} digits cannot be typed", .0.min, .0.max)]
    Digits(Digits),
    /// bmPINBlockString has four bits for it.
    #[error("a PIN block of {0} bytes; 1 to 15 are possible")]
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
    /// The reader does one of verification and modification only.
    #[error("the reader's pad does not do this; the PIN must be typed at the computer")]
    NotOffered,
    /// The reader has no way to put a length in.
    #[error(
        "the reader's pad takes PINs of fixed length only; the PIN must be typed at the computer"
    )]
    FixedOnly,
    /// No PIN is long enough for the card and short enough for the pad.
    #[error(
        "the card's PINs have {} to {} digits, the reader's pad takes {} to {}",
        .card.min, .card.max, .pad.min, .pad.max
    )]
    Apart {
        /// What the card takes.
        card: Digits,
        /// What the pad takes.
        pad: Digits,
    },
}

impl PinRequest {
    /// United States English, which every reader has.
    pub const ENGLISH: u16 = 0x0409;

    /// A PIN of variable length, with the reader's own timeout and in English.
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

    /// Whether any reader could do it.
    ///
    /// # Errors
    /// The part of it that is impossible.
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

    /// How many PINs the command carries.
    pub(super) const fn pins(&self) -> u8 {
        match self.purpose {
            Purpose::Change { old: true, .. } => 2,
            _ => 1,
        }
    }

    /// Bytes of each PIN's block; 0 when they are as long as the PIN (bmPINBlockString).
    pub(super) const fn block(&self) -> u8 {
        match self.form {
            PinForm::Padded { block, .. } => block,
            PinForm::Variable => 0,
        }
    }

    /// The command before the PIN is in it. The reader corrects its Lc, which is 0 for PINs of variable length.
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
