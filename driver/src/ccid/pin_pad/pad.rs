//! The PIN pad of a reader, and the entries that it accepts.

use super::{Digits, PadQuirks, PinEntry, PinForm, PinRequest, Purpose, RequestError};
use crate::ccid::quirks::Quirks;

/// The operations that a reader announces: bPINSupport of its descriptor, or the features that PC/SC lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    /// The PIN pad can verify a PIN.
    pub verify: bool,
    /// The PIN pad can set a new PIN.
    pub modify: bool,
}

/// Which PIN pads are trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Only readers with the word `pin-pad` in the table. The default.
    Table,
    /// All readers, because the user has confirmed that the reader is safe. Readers with the word `no-pin-pad` are
    /// still rejected.
    User,
}

/// Why a reader's PIN pad is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPinPad {
    /// The reader announces none.
    #[error("the reader has no PIN pad")]
    NotThere,
    /// The table has the word `no-pin-pad`.
    #[error("the reader's PIN pad does not exist, or reveals the PIN to the host")]
    Unsafe,
    /// The table has neither word.
    #[error("the reader's PIN pad is not in the table of trusted ones")]
    Unknown,
}

/// A PIN pad that may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinPad {
    operations: Operations,
    quirks: PadQuirks,
    digits: Option<Digits>,
}

impl PinPad {
    /// Makes the PIN pad of a reader that announces `operations` and has `quirks`.
    ///
    /// # Errors
    /// [`NoPinPad`]: the PIN must be typed at the computer.
    pub fn new(operations: Operations, quirks: &Quirks, trust: Trust) -> Result<Self, NoPinPad> {
        match (quirks.no_pin_pad, quirks.pin_pad, trust) {
            (true, ..) => Err(NoPinPad::Unsafe),
            _ if operations == Operations::default() => Err(NoPinPad::NotThere),
            (_, false, Trust::Table) => Err(NoPinPad::Unknown),
            _ => Ok(Self {
                operations,
                quirks: quirks.pad,
                digits: quirks.pad.digits,
            }),
        }
    }

    /// Limits the PIN pad to PINs of `digits` (bMinPINSize and bMaxPINSize of PC/SC part 10).
    #[must_use]
    pub fn limited(self, digits: Digits) -> Self {
        let digits = self.digits.map_or(Some(digits), |known| known.and(digits));
        Self {
            digits: digits.or(self.digits),
            ..self
        }
    }

    /// Returns the supported operations.
    #[must_use]
    pub const fn operations(&self) -> Operations {
        self.operations
    }

    /// Encodes the request for this reader. A PIN that is longer than the PIN pad allows cannot be typed.
    ///
    /// # Errors
    /// [`RequestError`]. No PIN entry was started.
    pub fn entry(&self, request: &PinRequest) -> Result<PinEntry, RequestError> {
        request.check()?;
        let offered = match request.purpose {
            Purpose::Verify => self.operations.verify,
            Purpose::Change { .. } => self.operations.modify,
        };
        if !offered {
            return Err(RequestError::NotOffered);
        }
        if self.quirks.fixed && request.form == PinForm::Variable {
            return Err(RequestError::FixedOnly);
        }
        let (card, pad) = (request.digits, self.digits.unwrap_or(request.digits));
        let digits = card.and(pad).ok_or(RequestError::Apart { card, pad })?;
        Ok(PinEntry::new(
            PinRequest { digits, ..*request },
            self.quirks,
        ))
    }
}
