//! What a reader says.

use std::fmt;

use super::{HEADER, SlotError};

/// The messages a reader gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseKind {
    /// An answer to reset, a block of the card's.
    DataBlock,
    /// The status of a slot alone.
    SlotStatus,
    /// Transmission parameters.
    Parameters,
    /// Something of the manufacturer's.
    Escape,
    /// What was set.
    DataRateAndClockFrequency,
}

impl ResponseKind {
    const fn from_type(message_type: u8) -> Option<Self> {
        match message_type {
            0x80 => Some(Self::DataBlock),
            0x81 => Some(Self::SlotStatus),
            0x82 => Some(Self::Parameters),
            0x83 => Some(Self::Escape),
            0x84 => Some(Self::DataRateAndClockFrequency),
            _ => None,
        }
    }
}

/// What a slot holds (bmICCStatus).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IccStatus {
    /// A card with power.
    Active,
    /// A card without.
    Inactive,
    /// None.
    Absent,
}

/// How a command ended (bmCommandStatus).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandStatus {
    /// As asked.
    Processed,
    /// It could not be done.
    Failed(SlotError),
    /// It goes on: another answer follows.
    TimeExtension {
        /// bError: how many waiting times it will take.
        multiplier: u8,
    },
}

/// A message from a reader.
#[derive(Clone, Copy)]
pub struct CcidResponse<'a> {
    /// Which one.
    pub kind: ResponseKind,
    /// bSlot.
    pub slot: u8,
    /// bSeq of the command it answers.
    pub sequence: u8,
    /// What the slot holds.
    pub icc: IccStatus,
    /// How the command ended.
    pub outcome: CommandStatus,
    /// bChainParameter, bClockStatus, bProtocolNum: the last byte of the header.
    pub specific: u8,
    /// abData.
    pub data: &'a [u8],
}

impl<'a> CcidResponse<'a> {
    /// Reads a whole message, which must be as long as it says.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, MessageError> {
        let Some((header, data)) = bytes.split_first_chunk::<HEADER>() else {
            return Err(MessageError::Short(bytes.len()));
        };
        let [
            message_type,
            a,
            b,
            c,
            d,
            slot,
            sequence,
            status,
            error,
            specific,
        ] = *header;
        let said = u32::from_le_bytes([a, b, c, d]);
        if u32::try_from(data.len()) != Ok(said) {
            let got = data.len();
            return Err(MessageError::Length { said, got });
        }
        let kind = ResponseKind::from_type(message_type).ok_or(MessageError::Type(message_type))?;
        let icc = match status & 0x03 {
            0 => IccStatus::Active,
            1 => IccStatus::Inactive,
            2 => IccStatus::Absent,
            _ => return Err(MessageError::Status(status)),
        };
        let outcome = match status >> 6 {
            0 => CommandStatus::Processed,
            1 => CommandStatus::Failed(SlotError::from_code(error)),
            2 => CommandStatus::TimeExtension { multiplier: error },
            _ => return Err(MessageError::Status(status)),
        };
        Ok(Self {
            kind,
            slot,
            sequence,
            icc,
            outcome,
            specific,
            data,
        })
    }

    /// Whether it answers the command that expects `kind`, to `slot`, sent as the `sequence`-th.
    #[must_use]
    pub fn matches(&self, kind: ResponseKind, slot: u8, sequence: u8) -> bool {
        // A reader that does not know a command may say so in a SlotStatus (CCID 1.1, 6.2.6).
        let refused = self.kind == ResponseKind::SlotStatus
            && matches!(self.outcome, CommandStatus::Failed(_));
        (self.kind == kind || refused) && (self.slot, self.sequence) == (slot, sequence)
    }
}

impl fmt::Debug for CcidResponse<'_> {
    /// Everything but the data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("kind", &self.kind)
            .field("slot", &self.slot)
            .field("sequence", &self.sequence)
            .field("icc", &self.icc)
            .field("outcome", &self.outcome)
            .field("specific", &self.specific)
            .field("bytes", &self.data.len())
            .finish()
    }
}

/// Bytes that are no message of a reader's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Less than a header.
    #[error("a message of {0} bytes; {HEADER} at least expected")]
    Short(usize),
    /// dwLength is not what came.
    #[error("a message that says {said} bytes of data and has {got}")]
    Length {
        /// dwLength.
        said: u32,
        /// What there is.
        got: usize,
    },
    /// No answer of this type exists.
    #[error("a message of type {0:02X}")]
    Type(u8),
    /// bStatus has a value that is reserved.
    #[error("a message with status {0:02X}")]
    Status(u8),
}

/// Reads arbitrary bytes; for the fuzz target beside this file.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    if let Ok(answer) = CcidResponse::parse(bytes) {
        assert_eq!(
            answer.data.len() + HEADER,
            bytes.len(),
            "all bytes are accounted for"
        );
        assert!(
            answer.matches(answer.kind, answer.slot, answer.sequence),
            "it matches itself"
        );
        let other = answer.sequence.wrapping_add(1);
        assert!(
            !answer.matches(answer.kind, answer.slot, other),
            "and no other"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(change: impl Fn(&mut Vec<u8>)) -> Result<String, MessageError> {
        let mut bytes = vec![0x80, 2, 0, 0, 0, 0, 7, 0x00, 0x00, 0x00, 0x90, 0x00];
        change(&mut bytes);
        CcidResponse::parse(&bytes).map(|answer| format!("{:?} {:?}", answer.icc, answer.outcome))
    }

    #[test]
    fn response_must_have_the_length_it_states() {
        assert_eq!(answer(|_| {}), Ok("Active Done".to_owned()));
        let length = |said, got| Err(MessageError::Length { said, got });
        assert_eq!(answer(|bytes| bytes.push(0)), length(2, 3));
        assert_eq!(answer(|bytes| bytes.truncate(11)), length(2, 1));
        assert_eq!(answer(|bytes| bytes[4] = 0xFF), length(0xFF00_0002, 2));
        assert_eq!(
            answer(|bytes| bytes.truncate(9)),
            Err(MessageError::Short(9))
        );
    }

    #[test]
    fn status_byte_gives_card_state_and_command_status() {
        let with = |status: u8, error: u8| answer(|bytes| (bytes[7], bytes[8]) = (status, error));
        assert_eq!(with(0x01, 0), Ok("Inactive Done".to_owned()));
        assert_eq!(with(0x42, 0xFE), Ok("Absent Failed(IccMute)".to_owned()));
        assert_eq!(
            with(0x40, 10),
            Ok("Active Failed(Parameter(10))".to_owned())
        );
        assert_eq!(with(0x40, 0xC0), Ok("Active Failed(Other(192))".to_owned()));
        assert_eq!(
            with(0x80, 4),
            Ok("Active TimeExtension { multiplier: 4 }".to_owned())
        );
        assert_eq!(with(0x03, 0), Err(MessageError::Status(0x03)));
        assert_eq!(with(0xC0, 0), Err(MessageError::Status(0xC0)));
    }

    #[test]
    fn a_type_that_no_reader_sends_is_refused() {
        assert_eq!(
            answer(|bytes| bytes[0] = 0x6F),
            Err(MessageError::Type(0x6F))
        );
    }

    #[test]
    fn response_is_matched_by_type_slot_and_sequence() {
        let bytes = [0x81, 0, 0, 0, 0, 1, 7, 0, 0, 0];
        let answer = CcidResponse::parse(&bytes).unwrap();
        assert!(answer.matches(ResponseKind::SlotStatus, 1, 7));
        assert!(!answer.matches(ResponseKind::DataBlock, 1, 7));
        assert!(!answer.matches(ResponseKind::SlotStatus, 0, 7));
        assert!(!answer.matches(ResponseKind::SlotStatus, 1, 8));
        // "Command not supported" may come as a slot status, whatever was asked.
        let refusal = [0x81, 0, 0, 0, 0, 1, 7, 0x40, 0, 0];
        let answer = CcidResponse::parse(&refusal).unwrap();
        assert!(answer.matches(ResponseKind::Escape, 1, 7));
    }

    #[test]
    fn response_does_not_print_its_data() {
        let bytes = [0x80, 1, 0, 0, 0, 0, 7, 0, 0, 0, 0x31];
        let printed = format!("{:?}", CcidResponse::parse(&bytes).unwrap());
        assert!(printed.ends_with("bytes: 1 }"), "{printed}");
    }
}
