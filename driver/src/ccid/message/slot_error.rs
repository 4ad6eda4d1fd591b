//! The errors with which a reader reports a failed command.

/// Why a command failed (CCID 1.1, table 6.2-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// FF.
    #[error("the command was aborted")]
    Aborted,
    /// FE.
    #[error("the card does not respond")]
    IccMute,
    /// FD.
    #[error("the card sent a byte with a parity error")]
    Parity,
    /// FC.
    #[error("the card sent too much data")]
    Overrun,
    /// FB.
    #[error("the reader's hardware failed, or too much current was drawn")]
    Hardware,
    /// F8.
    #[error("the first byte of the answer to reset is wrong")]
    BadAtrTs,
    /// F7.
    #[error("the check byte of the answer to reset is wrong")]
    BadAtrTck,
    /// F6.
    #[error("the reader does not support the card's protocol")]
    ProtocolNotSupported,
    /// F5.
    #[error("the reader does not support this class byte")]
    ClassNotSupported,
    /// F4.
    #[error("the card sent an invalid procedure byte")]
    ProcedureByte,
    /// F3.
    #[error("the card's protocol is deactivated")]
    DeactivatedProtocol,
    /// F2.
    #[error("the reader is busy activating the card")]
    BusyWithAutoSequence,
    /// F0.
    #[error("no PIN was typed in time")]
    PinTimeout,
    /// EF.
    #[error("the PIN entry was cancelled at the reader")]
    PinCancelled,
    /// E0.
    #[error("the slot is busy with another command")]
    SlotBusy,
    /// 0.
    #[error("the reader does not support the command")]
    NotSupported,
    /// 1 to 127: the offset of the wrong byte in the message.
    #[error("the reader rejected the command: bad value at offset {0}")]
    Parameter(u8),
    /// Any other code.
    #[error("the reader reported error {0:02X}")]
    Other(u8),
}

impl SlotError {
    pub(in crate::ccid) const fn from_code(code: u8) -> Self {
        match code {
            0xFF => Self::Aborted,
            0xFE => Self::IccMute,
            0xFD => Self::Parity,
            0xFC => Self::Overrun,
            0xFB => Self::Hardware,
            0xF8 => Self::BadAtrTs,
            0xF7 => Self::BadAtrTck,
            0xF6 => Self::ProtocolNotSupported,
            0xF5 => Self::ClassNotSupported,
            0xF4 => Self::ProcedureByte,
            0xF3 => Self::DeactivatedProtocol,
            0xF2 => Self::BusyWithAutoSequence,
            0xF0 => Self::PinTimeout,
            0xEF => Self::PinCancelled,
            0xE0 => Self::SlotBusy,
            0x00 => Self::NotSupported,
            1..=127 => Self::Parameter(code),
            _ => Self::Other(code),
        }
    }
}
