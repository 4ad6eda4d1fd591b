//! A reader that may be asked for a PIN, and what it takes.

use super::{Digits, PadQuirks, PinEntry, PinForm, PinRequest, Purpose, RequestError};
use crate::ccid::quirks::Quirks;

/// What a reader says its pad can do: bPINSupport of its descriptor, or the features PC/SC lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    /// Have a PIN typed and verified.
    pub verify: bool,
    /// Have a new PIN typed and set.
    pub modify: bool,
}

/// On whose word a pad is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The table's: readers with the word `pin-pad`, and no others. The default.
    Table,
    /// The user's, who vouches for the reader in front of them. Readers with the word `no-pin-pad` stay refused.
    User,
}

/// Why a reader's pad is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPinPad {
    /// It announces none.
    #[error("the reader has no PIN pad")]
    NotThere,
    /// The table has the word `no-pin-pad`.
    #[error("the reader's PIN pad does not exist, or tells the host what is typed")]
    Unsafe,
    /// The table has neither word.
    #[error("nobody has vouched for the reader's PIN pad")]
    Unknown,
}

/// A reader whose pad may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinPad {
    operations: Operations,
    quirks: PadQuirks,
    digits: Option<Digits>,
}

impl PinPad {
    /// The pad of a reader that announces `operations` and of which the table knows `quirks`.
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

    /// The same pad, which takes PINs of `digits` only (bMinPINSize and bMaxPINSize of PC/SC part 10).
    #[must_use]
    pub fn limited(self, digits: Digits) -> Self {
        let digits = self.digits.map_or(Some(digits), |known| known.and(digits));
        Self {
            digits: digits.or(self.digits),
            ..self
        }
    }

    /// What it can be asked for.
    #[must_use]
    pub const fn operations(&self) -> Operations {
        self.operations
    }

    /// The request as this reader takes it. A PIN longer than the pad allows cannot be typed at it.
    ///
    /// # Errors
    /// [`RequestError`]; nothing was asked of anybody.
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
