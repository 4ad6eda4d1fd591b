//! A request as one reader takes it, in bytes.
//!
//! ```text
//! verification   op 00 | time | format block length |                  | min max |         | end | n lang | 1       | prologue | APDU
//! modification   op 01 | time | format block length | old at, new at   | min max | confirm | end | n lang | 1 (2(3)) | prologue | APDU
//! ```
//!
//! The structures of PC/SC part 10 have no operation, a second time after the first, all three message indexes, and
//! the length of the APDU after the prologue.

use std::time::Duration;

use super::{Digits, PadQuirks, PinForm, PinRequest, Purpose};

/// bmFormatString: positions in bytes, the PIN at the first, on the left, in ASCII.
const FORMAT: u8 = 0x82;
/// bmPINLengthFormat: no length is inserted but Lc.
const LENGTH_FORMAT: u8 = 0x00;
/// bEntryValidationCondition: the longest PIN was typed.
const MAX_REACHED: u8 = 0x01;
/// bEntryValidationCondition: the OK key was pressed.
const KEY_PRESSED: u8 = 0x02;
/// Message indexes of the reader's own texts: "PIN", "new PIN", "new PIN again".
const PROMPTS: [u8; 3] = [0, 1, 2];
/// What makes the SPR532 append the PIN with its length.
const APPEND: &[u8] = &[0x80, 0x02, 0x00];
/// How long a key stays down.
const KEY_DOWN: Duration = Duration::from_millis(250);
/// What users are given at least, whatever the reader's own timeout is.
const SHORTEST: u64 = 90;
/// What the card and the way to it may take on top.
const MARGIN: u64 = 10;

/// A request that a reader can carry out, encoded for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinEntry {
    request: PinRequest,
    quirks: PadQuirks,
    template: Vec<u8>,
}

/// bNumberMessage and the indexes that stand after it.
struct Messages {
    number: u8,
    indexes: Vec<u8>,
}

impl PinEntry {
    /// `request` has been checked.
    pub(super) fn new(request: PinRequest, quirks: PadQuirks) -> Self {
        let mut template = request.template();
        if request.form == PinForm::Variable && quirks.append {
            template.truncate(4);
        }
        Self {
            request,
            quirks,
            template,
        }
    }

    /// abData of a Secure command to a reader of the APDU levels, or at the TPDU level for T=0 (CCID 1.1, 6.1.11).
    /// Its bBWI and wLevelParameter are 0.
    #[must_use]
    pub fn ccid(&self) -> Vec<u8> {
        self.with_prologue([0; 3])
    }

    /// The same with bTeoPrologue, the first three bytes of a T=1 block.
    pub(super) fn with_prologue(&self, prologue: [u8; 3]) -> Vec<u8> {
        let operation = u8::from(self.is_change());
        let mut data = vec![operation, self.request.timeout];
        data.extend(self.places());
        let mut digits = self.digits();
        if self.quirks.swapped {
            digits.reverse();
        }
        data.extend(digits);
        data.extend(self.confirmation());
        let messages = self.ccid_messages();
        data.extend([self.end_of_entry(), messages.number]);
        data.extend(self.request.language.to_le_bytes());
        data.extend(messages.indexes);
        data.extend(prologue);
        data.extend_from_slice(&self.template);
        data
    }

    /// PIN_VERIFY_STRUCTURE or PIN_MODIFY_STRUCTURE (PC/SC part 10, 2.5.2 and 2.5.3), as it is sent by SCardControl.
    /// The reader's peculiarities are its driver's business, but for what the template and the entry must be.
    #[must_use]
    pub fn part10(&self) -> Vec<u8> {
        let mut data = vec![self.request.timeout, self.request.timeout];
        data.extend(self.places());
        data.extend(self.digits());
        data.extend(self.confirmation());
        let mut messages = self.messages();
        messages.indexes.resize(self.indexes(), 0);
        data.extend([self.end_of_entry(), messages.number]);
        data.extend(self.request.language.to_le_bytes());
        data.extend(messages.indexes);
        data.extend([0; 3]);
        let length = u32::try_from(self.template.len()).unwrap_or(u32::MAX);
        data.extend(length.to_le_bytes());
        data.extend_from_slice(&self.template);
        data
    }

    /// The command before the PIN is in it.
    #[must_use]
    pub fn template(&self) -> &[u8] {
        &self.template
    }

    /// What an Escape command must tell the reader first.
    #[must_use]
    pub fn escape(&self) -> Option<&'static [u8]> {
        let appends = self.quirks.append && self.request.form == PinForm::Variable;
        appends.then_some(APPEND)
    }

    /// How long to wait before the Secure command, for the key to come up by which the user began all this.
    #[must_use]
    pub const fn pause(&self) -> Duration {
        if self.quirks.pause {
            KEY_DOWN
        } else {
            Duration::ZERO
        }
    }

    /// How long the reader's answer may take.
    #[must_use]
    pub fn patience(&self) -> Duration {
        Duration::from_secs(SHORTEST.max(u64::from(self.request.timeout) + MARGIN))
    }

    const fn is_change(&self) -> bool {
        matches!(self.request.purpose, Purpose::Change { .. })
    }

    /// bmFormatString, bmPINBlockString, bmPINLengthFormat; of a modification, where both PINs go.
    fn places(&self) -> Vec<u8> {
        let block = self.request.block();
        let mut places = vec![FORMAT, block, LENGTH_FORMAT];
        match self.request.purpose {
            Purpose::Verify => {}
            Purpose::Change { old: true, .. } => places.extend([0, block]),
            Purpose::Change { old: false, .. } => places.extend([0, 0]),
        }
        places
    }

    /// wPINMaxExtraDigit: the longest in the low byte, the shortest in the high byte.
    const fn digits(&self) -> [u8; 2] {
        let Digits { min, max } = self.request.digits;
        [max, min]
    }

    /// bConfirmPIN.
    fn confirmation(&self) -> Option<u8> {
        match self.request.purpose {
            Purpose::Verify => None,
            Purpose::Change { old, twice } => Some(u8::from(old) << 1 | u8::from(twice)),
        }
    }

    /// bEntryValidationCondition. It is never 0 or above 7, at which the Cherry XX44 crashes.
    const fn end_of_entry(&self) -> u8 {
        let Digits { min, max } = self.request.digits;
        if min == max && !self.quirks.key_only {
            KEY_PRESSED | MAX_REACHED
        } else {
            KEY_PRESSED
        }
    }

    /// How many message indexes a structure has room for.
    const fn indexes(&self) -> usize {
        if self.is_change() { 3 } else { 1 }
    }

    /// One message a prompt.
    fn messages(&self) -> Messages {
        let [pin, new, again] = PROMPTS;
        let indexes = match self.request.purpose {
            Purpose::Verify => vec![pin],
            Purpose::Change { old, twice } => {
                let prompts = [(old, pin), (true, new), (twice, again)];
                let asked = prompts.iter().filter(|(asked, _)| *asked);
                asked.map(|(_, index)| *index).collect()
            }
        };
        Messages {
            number: u8::try_from(indexes.len()).unwrap_or(3),
            indexes,
        }
    }

    /// The messages as this reader wants them, with as many indexes as bNumberMessage brings: in a modification two, but
    /// one when it is 0, and three when it is 3.
    fn ccid_messages(&self) -> Messages {
        let (change, quirks) = (self.is_change(), self.quirks);
        let mut messages = self.messages();
        if change && quirks.three_messages {
            (messages.number, messages.indexes) = (3, PROMPTS.to_vec());
        }
        if change && quirks.blind_change {
            (messages.number, messages.indexes) = (0, vec![0; 3]);
        }
        if quirks.no_message {
            messages.number = 0;
        }
        let present = match messages.number {
            _ if !change => 1,
            _ if quirks.all_indexes || quirks.blind_change => 3,
            0 => 1,
            1 | 2 => 2,
            _ => 3,
        };
        messages.indexes.resize(present, 0);
        messages
    }
}
