//! The commands to a reader.

use std::fmt;

use claviger_apdu::Secret;

use super::{HEADER, ResponseKind};

/// A supply voltage, as IccPowerOn encodes it (CCID 1.1, 6.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Voltage {
    /// The reader chooses.
    Automatic,
    /// 5.0 V, class A.
    V5,
    /// 3.0 V, class B.
    V3,
    /// 1.8 V, class C.
    V18,
}

/// A command for one slot of a reader.
#[derive(Clone, Copy)]
pub enum Command<'a> {
    /// Powers the card up, or resets a card that has power.
    IccPowerOn {
        /// The voltage.
        voltage: Voltage,
    },
    /// Powers the card down.
    IccPowerOff,
    /// Queries the state of the slot.
    GetSlotStatus,
    /// Sends a block to the card.
    XfrBlock {
        /// bBWI: the multiple of the block waiting time that this block may take. 0 means the usual time.
        bwi: u8,
        /// wLevelParameter. Its meaning depends on the exchange level.
        level_parameter: u16,
        /// abData.
        data: &'a [u8],
    },
    /// Queries the transmission parameters.
    GetParameters,
    /// Resets the transmission parameters.
    ResetParameters,
    /// Sets the transmission parameters.
    SetParameters {
        /// bProtocolNum: 0 or 1.
        protocol: u8,
        /// abProtocolDataStructure: 5 bytes for T=0, 7 for T=1.
        data: &'a [u8],
    },
    /// A manufacturer-specific command.
    Escape(&'a [u8]),
    /// Stops or restarts the card's clock.
    IccClock {
        /// Whether to stop the clock.
        stop: bool,
    },
    /// Sets the class bytes that the reader uses for its own T=0 commands (CCID 1.1, 6.1.10).
    T0Apdu {
        /// bmChanges.
        changes: u8,
        /// bClassGetResponse.
        get_response: u8,
        /// bClassEnvelope.
        envelope: u8,
    },
    /// Starts a PIN entry at the reader.
    Secure {
        /// bBWI.
        bwi: u8,
        /// wLevelParameter.
        level_parameter: u16,
        /// abData: bPINOperation and its structure.
        data: &'a [u8],
    },
    /// Moves the card (CCID 1.1, 6.1.12).
    Mechanical {
        /// bFunction.
        function: u8,
    },
    /// Aborts the running command. The request to the control pipe has the same sequence number.
    Abort,
    /// Sets clock and data rate.
    SetDataRateAndClockFrequency {
        /// dwClockFrequency in kHz.
        clock_khz: u32,
        /// dwDataRate in bit/s.
        rate_bps: u32,
    },
}

impl Command<'_> {
    /// bMessageType.
    #[must_use]
    pub const fn message_type(&self) -> u8 {
        match self {
            Self::SetParameters { .. } => 0x61,
            Self::IccPowerOn { .. } => 0x62,
            Self::IccPowerOff => 0x63,
            Self::GetSlotStatus => 0x65,
            Self::Secure { .. } => 0x69,
            Self::T0Apdu { .. } => 0x6A,
            Self::Escape(_) => 0x6B,
            Self::GetParameters => 0x6C,
            Self::ResetParameters => 0x6D,
            Self::IccClock { .. } => 0x6E,
            Self::XfrBlock { .. } => 0x6F,
            Self::Mechanical { .. } => 0x71,
            Self::Abort => 0x72,
            Self::SetDataRateAndClockFrequency { .. } => 0x73,
        }
    }

    /// Returns the type of the response.
    #[must_use]
    pub const fn response_kind(&self) -> ResponseKind {
        match self {
            Self::IccPowerOn { .. } | Self::XfrBlock { .. } | Self::Secure { .. } => {
                ResponseKind::DataBlock
            }
            Self::GetParameters | Self::ResetParameters | Self::SetParameters { .. } => {
                ResponseKind::Parameters
            }
            Self::Escape(_) => ResponseKind::Escape,
            Self::SetDataRateAndClockFrequency { .. } => ResponseKind::DataRateAndClockFrequency,
            Self::IccPowerOff
            | Self::GetSlotStatus
            | Self::IccClock { .. }
            | Self::T0Apdu { .. }
            | Self::Mechanical { .. }
            | Self::Abort => ResponseKind::SlotStatus,
        }
    }

    /// Returns the three command-specific bytes of the header.
    const fn specific(&self) -> [u8; 3] {
        match self {
            Self::IccPowerOn { voltage } => [
                match voltage {
                    Voltage::Automatic => 0,
                    Voltage::V5 => 1,
                    Voltage::V3 => 2,
                    Voltage::V18 => 3,
                },
                0,
                0,
            ],
            Self::XfrBlock {
                bwi,
                level_parameter,
                ..
            }
            | Self::Secure {
                bwi,
                level_parameter,
                ..
            } => {
                let [low, high] = level_parameter.to_le_bytes();
                [*bwi, low, high]
            }
            Self::SetParameters { protocol, .. } => [*protocol, 0, 0],
            Self::IccClock { stop } => [*stop as u8, 0, 0],
            Self::T0Apdu {
                changes,
                get_response,
                envelope,
            } => [*changes, *get_response, *envelope],
            Self::Mechanical { function } => [*function, 0, 0],
            _ => [0; 3],
        }
    }

    /// Returns the whole message to `slot`, with the sequence number `sequence` (bSeq).
    #[must_use]
    pub fn message(&self, slot: u8, sequence: u8) -> Secret {
        let rates;
        let data: &[u8] = match self {
            Self::XfrBlock { data, .. }
            | Self::Secure { data, .. }
            | Self::SetParameters { data, .. }
            | Self::Escape(data) => data,
            Self::SetDataRateAndClockFrequency {
                clock_khz,
                rate_bps,
            } => {
                rates = eight(*clock_khz, *rate_bps);
                &rates
            }
            _ => &[],
        };
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let mut message = Vec::with_capacity(HEADER + data.len());
        message.push(self.message_type());
        message.extend(length.to_le_bytes());
        message.extend([slot, sequence]);
        message.extend(self.specific());
        message.extend_from_slice(data);
        Secret::new(message)
    }
}

impl fmt::Debug for Command<'_> {
    /// Shows the message type, never the data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({:02X})", self.message_type())
    }
}

const fn eight(first: u32, second: u32) -> [u8; 8] {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_le_bytes(), second.to_le_bytes());
    [a, b, c, d, e, f, g, h]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_ten_bytes_of_header_and_its_data() {
        let block = Command::XfrBlock {
            bwi: 2,
            level_parameter: 0x0103,
            data: &[0xDE, 0xAD],
        };
        let message = block.message(1, 0x42);
        let bytes = [0x6F, 2, 0, 0, 0, 1, 0x42, 2, 0x03, 0x01, 0xDE, 0xAD];
        assert_eq!(message.expose(), bytes);
    }

    #[test]
    fn every_command_has_its_message_type_and_response_type() {
        use ResponseKind::{DataBlock, DataRateAndClockFrequency, Escape, Parameters, SlotStatus};
        let voltage = Voltage::V3;
        let data = &[0; 5][..];
        let (bwi, level_parameter) = (0, 0);
        for (command, message_type, answer) in [
            (
                Command::SetParameters { protocol: 0, data },
                0x61,
                Parameters,
            ),
            (Command::IccPowerOn { voltage }, 0x62, DataBlock),
            (Command::IccPowerOff, 0x63, SlotStatus),
            (Command::GetSlotStatus, 0x65, SlotStatus),
            (
                Command::Secure {
                    bwi,
                    level_parameter,
                    data,
                },
                0x69,
                DataBlock,
            ),
            (
                Command::T0Apdu {
                    changes: 3,
                    get_response: 0,
                    envelope: 0,
                },
                0x6A,
                SlotStatus,
            ),
            (Command::Escape(data), 0x6B, Escape),
            (Command::GetParameters, 0x6C, Parameters),
            (Command::ResetParameters, 0x6D, Parameters),
            (Command::IccClock { stop: true }, 0x6E, SlotStatus),
            (
                Command::XfrBlock {
                    bwi,
                    level_parameter,
                    data,
                },
                0x6F,
                DataBlock,
            ),
            (Command::Mechanical { function: 1 }, 0x71, SlotStatus),
            (Command::Abort, 0x72, SlotStatus),
            (
                Command::SetDataRateAndClockFrequency {
                    clock_khz: 4_000,
                    rate_bps: 10_753,
                },
                0x73,
                DataRateAndClockFrequency,
            ),
        ] {
            let message = command.message(0, 7);
            assert_eq!(message.expose()[0], message_type);
            assert_eq!(command.response_kind(), answer, "{message_type:02X}");
            let stated = u32::from_le_bytes(message.expose()[1..5].try_into().unwrap());
            assert_eq!(
                stated as usize,
                message.len() - HEADER,
                "{message_type:02X}"
            );
        }
    }

    #[test]
    fn rates_are_little_endian() {
        let (clock_khz, rate_bps) = (0x0102_0304, 0x0506_0708);
        let command = Command::SetDataRateAndClockFrequency {
            clock_khz,
            rate_bps,
        };
        assert_eq!(
            &command.message(0, 0).expose()[10..],
            [4, 3, 2, 1, 8, 7, 6, 5]
        );
    }

    #[test]
    fn a_command_does_not_print_its_data() {
        let command = Command::XfrBlock {
            bwi: 0,
            level_parameter: 0,
            data: &[0x31, 0x32, 0x33, 0x34],
        };
        assert_eq!(format!("{command:?}"), "Command(6F)");
    }
}
