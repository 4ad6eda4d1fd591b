//! The responses of a reader.

use std::fmt;

use super::{HEADER, SlotError};

/// The type of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseKind {
    /// An answer to reset, or a block from the card.
    DataBlock,
    /// Only the status of a slot.
    SlotStatus,
    /// Transmission parameters.
    Parameters,
    /// A manufacturer-specific response.
    Escape,
    /// The clock and the data rate that were set.
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

/// The state of the card in a slot (bmICCStatus).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IccStatus {
    /// There is a card with power.
    Active,
    /// There is a card without power.
    Inactive,
    /// There is no card.
    Absent,
}

/// How a command ended (bmCommandStatus).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandStatus {
    /// The command was processed without error.
    Processed,
    /// The command failed.
    Failed(SlotError),
    /// The command takes longer. Another response follows.
    TimeExtension {
        /// bError: the number of waiting times that it will take.
        multiplier: u8,
    },
}

/// A response of a reader.
#[derive(Clone, Copy)]
pub struct CcidResponse<'a> {
    /// The type.
    pub kind: ResponseKind,
    /// bSlot.
    pub slot: u8,
    /// bSeq of the command to which it responds.
    pub sequence: u8,
    /// The state of the card in the slot.
    pub icc: IccStatus,
    /// How the command ended.
    pub outcome: CommandStatus,
    /// bChainParameter, bClockStatus or bProtocolNum, the last byte of the header.
    pub specific: u8,
    /// abData.
    pub data: &'a [u8],
}

impl<'a> CcidResponse<'a> {
    /// Parses a whole message. Its length must be the stated length.
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
        let stated = u32::from_le_bytes([a, b, c, d]);
        if u32::try_from(data.len()) != Ok(stated) {
            let actual = data.len();
            return Err(MessageError::Length { stated, actual });
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

    /// Returns whether this is the response to the command with sequence number `sequence` to `slot`, which expects a
    /// response of type `kind`.
    #[must_use]
    pub fn matches(&self, kind: ResponseKind, slot: u8, sequence: u8) -> bool {
        // A reader that does not support a command may respond with a SlotStatus (CCID 1.1, 6.2.6).
        let refused = self.kind == ResponseKind::SlotStatus
            && matches!(self.outcome, CommandStatus::Failed(_));
        (self.kind == kind || refused) && (self.slot, self.sequence) == (slot, sequence)
    }
}

impl fmt::Debug for CcidResponse<'_> {
    /// Shows everything but the data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CcidResponse")
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

/// A malformed message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The message is shorter than a header.
    #[error("the message has {0} bytes instead of at least {HEADER}")]
    Short(usize),
    /// dwLength differs from the length of the data.
    #[error("the message states {stated} bytes of data and has {actual}")]
    Length {
        /// dwLength.
        stated: u32,
        /// The length of the data.
        actual: usize,
    },
    /// There is no response of this type.
    #[error("the message has the unknown type {0:02X}")]
    Type(u8),
    /// bStatus has a reserved value.
    #[error("the message has the reserved status {0:02X}")]
    Status(u8),
}

/// Parses arbitrary bytes, for the fuzz target `ccid_message`.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    if let Ok(response) = CcidResponse::parse(bytes) {
        assert_eq!(
            response.data.len() + HEADER,
            bytes.len(),
            "all bytes are accounted for"
        );
        assert!(
            response.matches(response.kind, response.slot, response.sequence),
            "it matches itself"
        );
        let other = response.sequence.wrapping_add(1);
        assert!(
            !response.matches(response.kind, response.slot, other),
            "and no other"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(change: impl Fn(&mut Vec<u8>)) -> Result<String, MessageError> {
        let mut bytes = vec![0x80, 2, 0, 0, 0, 0, 7, 0x00, 0x00, 0x00, 0x90, 0x00];
        change(&mut bytes);
        CcidResponse::parse(&bytes)
            .map(|response| format!("{:?} {:?}", response.icc, response.outcome))
    }

    #[test]
    fn response_must_have_the_length_it_states() {
        assert_eq!(response(|_| {}), Ok("Active Processed".to_owned()));
        let length = |stated, actual| Err(MessageError::Length { stated, actual });
        assert_eq!(response(|bytes| bytes.push(0)), length(2, 3));
        assert_eq!(response(|bytes| bytes.truncate(11)), length(2, 1));
        assert_eq!(response(|bytes| bytes[4] = 0xFF), length(0xFF00_0002, 2));
        assert_eq!(
            response(|bytes| bytes.truncate(9)),
            Err(MessageError::Short(9))
        );
    }

    #[test]
    fn status_byte_gives_card_state_and_command_status() {
        let with = |status: u8, error: u8| response(|bytes| (bytes[7], bytes[8]) = (status, error));
        assert_eq!(with(0x01, 0), Ok("Inactive Processed".to_owned()));
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
            response(|bytes| bytes[0] = 0x6F),
            Err(MessageError::Type(0x6F))
        );
    }

    #[test]
    fn response_is_matched_by_type_slot_and_sequence() {
        let bytes = [0x81, 0, 0, 0, 0, 1, 7, 0, 0, 0];
        let response = CcidResponse::parse(&bytes).unwrap();
        assert!(response.matches(ResponseKind::SlotStatus, 1, 7));
        assert!(!response.matches(ResponseKind::DataBlock, 1, 7));
        assert!(!response.matches(ResponseKind::SlotStatus, 0, 7));
        assert!(!response.matches(ResponseKind::SlotStatus, 1, 8));
        // "Command not supported" may be a slot status, whatever response the command expects.
        let refusal = [0x81, 0, 0, 0, 0, 1, 7, 0x40, 0, 0];
        let response = CcidResponse::parse(&refusal).unwrap();
        assert!(response.matches(ResponseKind::Escape, 1, 7));
    }

    #[test]
    fn response_does_not_print_its_data() {
        let bytes = [0x80, 1, 0, 0, 0, 0, 7, 0, 0, 0, 0x31];
        let printed = format!("{:?}", CcidResponse::parse(&bytes).unwrap());
        assert!(printed.ends_with("bytes: 1 }"), "{printed}");
    }
}
