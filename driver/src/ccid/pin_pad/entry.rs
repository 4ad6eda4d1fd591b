//! Encodes a request for one reader.
//!
//! ```text
//! verification   op 00 | time | format block length |                  | min max |         | end | n lang | 1       | prologue | APDU
//! modification   op 01 | time | format block length | old at, new at   | min max | confirm | end | n lang | 1 (2(3)) | prologue | APDU
//! ```
//!
//! The structures of PC/SC part 10 differ: they have no operation, a second timeout after the first, all three
//! message indexes, and the length of the APDU after the prologue.

use std::time::Duration;

use super::{Digits, PadQuirks, PinForm, PinRequest, Purpose};

/// bmFormatString: offsets in bytes, the PIN at offset 0, left-justified, in ASCII.
const FORMAT: u8 = 0x82;
/// bmPINLengthFormat: no length except Lc is inserted.
const LENGTH_FORMAT: u8 = 0x00;
/// bEntryValidationCondition: the entry ends after the longest PIN.
const MAX_REACHED: u8 = 0x01;
/// bEntryValidationCondition: the entry ends with the OK key.
const KEY_PRESSED: u8 = 0x02;
/// Message indexes of the reader's own texts: "PIN", "new PIN", "new PIN again".
const PROMPTS: [u8; 3] = [0, 1, 2];
/// The Escape command that makes the SPR532 append the PIN with its length.
const APPEND: &[u8] = &[0x80, 0x02, 0x00];
/// How long a key stays pressed.
const KEY_DOWN: Duration = Duration::from_millis(250);
/// The shortest timeout of the entry in seconds, whatever the reader's own timeout is.
const SHORTEST: u64 = 90;
/// The additional time in seconds for the card and the transfer.
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
    /// Encodes `request`, which the caller has checked.
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

    /// Returns abData of a Secure command to a reader of the APDU levels, or of the TPDU level for T=0 (CCID 1.1,
    /// 6.1.11). Its bBWI and wLevelParameter are 0.
    #[must_use]
    pub fn ccid(&self) -> Vec<u8> {
        self.with_prologue([0; 3])
    }

    /// Does the same with bTeoPrologue, the first three bytes of a T=1 block.
    pub(super) fn with_prologue(&self, prologue: [u8; 3]) -> Vec<u8> {
        let operation = u8::from(self.is_change());
        let mut data = vec![operation, self.request.timeout];
        data.extend(self.format_and_offsets());
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

    /// Returns PIN_VERIFY_STRUCTURE or PIN_MODIFY_STRUCTURE (PC/SC part 10, 2.5.2 and 2.5.3) for SCardControl. The
    /// reader's driver handles the reader's quirks, except those of the template and of the end of the entry.
    #[must_use]
    pub fn part10(&self) -> Vec<u8> {
        let mut data = vec![self.request.timeout, self.request.timeout];
        data.extend(self.format_and_offsets());
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

    /// Returns the command without the PIN.
    #[must_use]
    pub fn template(&self) -> &[u8] {
        &self.template
    }

    /// Returns the data of an Escape command that must be sent before the entry.
    #[must_use]
    pub fn escape(&self) -> Option<&'static [u8]> {
        let appends = self.quirks.append && self.request.form == PinForm::Variable;
        appends.then_some(APPEND)
    }

    /// Returns how long to wait before the Secure command, so that the user has released the key that started the
    /// operation.
    #[must_use]
    pub const fn pause(&self) -> Duration {
        if self.quirks.pause {
            KEY_DOWN
        } else {
            Duration::ZERO
        }
    }

    /// Returns the timeout of the reader's response.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(SHORTEST.max(u64::from(self.request.timeout) + MARGIN))
    }

    const fn is_change(&self) -> bool {
        matches!(self.request.purpose, Purpose::Change { .. })
    }

    /// Returns bmFormatString, bmPINBlockString and bmPINLengthFormat. For a modification, the offsets of both PINs
    /// follow.
    fn format_and_offsets(&self) -> Vec<u8> {
        let block = self.request.block();
        let mut format_and_offsets = vec![FORMAT, block, LENGTH_FORMAT];
        match self.request.purpose {
            Purpose::Verify => {}
            Purpose::Change { old: true, .. } => format_and_offsets.extend([0, block]),
            Purpose::Change { old: false, .. } => format_and_offsets.extend([0, 0]),
        }
        format_and_offsets
    }

    /// Returns wPINMaxExtraDigit: the maximum in the low byte, the minimum in the high byte.
    const fn digits(&self) -> [u8; 2] {
        let Digits { min, max } = self.request.digits;
        [max, min]
    }

    /// Returns bConfirmPIN.
    fn confirmation(&self) -> Option<u8> {
        match self.request.purpose {
            Purpose::Verify => None,
            Purpose::Change { old, twice } => Some(u8::from(old) << 1 | u8::from(twice)),
        }
    }

    /// Returns bEntryValidationCondition. It is never 0 or above 7, because these values crash the Cherry XX44.
    const fn end_of_entry(&self) -> u8 {
        let Digits { min, max } = self.request.digits;
        if min == max && !self.quirks.key_only {
            KEY_PRESSED | MAX_REACHED
        } else {
            KEY_PRESSED
        }
    }

    /// Returns how many message indexes the structure of PC/SC part 10 has.
    const fn indexes(&self) -> usize {
        if self.is_change() { 3 } else { 1 }
    }

    /// Returns one message for each prompt.
    fn messages(&self) -> Messages {
        let [pin, new, again] = PROMPTS;
        let indexes = match self.request.purpose {
            Purpose::Verify => vec![pin],
            Purpose::Change { old, twice } => {
                let prompts = [(old, pin), (true, new), (twice, again)];
                let shown = prompts.iter().filter(|(shown, _)| *shown);
                shown.map(|(_, index)| *index).collect()
            }
        };
        Messages {
            number: u8::try_from(indexes.len()).unwrap_or(3),
            indexes,
        }
    }

    /// Returns the messages for this reader, with the number of indexes that bNumberMessage implies. A modification
    /// has two indexes, one if bNumberMessage is 0, and three if it is 3.
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
