//! Why a reader could not do something.

/// Why a reader could not do something (CCID 1.1, table 6.2-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// FF.
    #[error("the command was aborted")]
    Aborted,
    /// FE.
    #[error("the card does not answer")]
    IccMute,
    /// FD.
    #[error("the card's parity is wrong")]
    Parity,
    /// FC.
    #[error("the card sent too much")]
    Overrun,
    /// FB.
    #[error("the reader's hardware failed, or too much current was drawn")]
    Hardware,
    /// F8.
    #[error("the answer to reset begins wrongly")]
    BadAtrTs,
    /// F7.
    #[error("the check byte of the answer to reset is wrong")]
    BadAtrTck,
    /// F6.
    #[error("the reader does not speak the card's protocol")]
    ProtocolNotSupported,
    /// F5.
    #[error("the reader does not take this class byte")]
    ClassNotSupported,
    /// F4.
    #[error("the card's procedure byte makes no sense")]
    ProcedureByte,
    /// F3.
    #[error("the card's protocol is deactivated")]
    DeactivatedProtocol,
    /// F2.
    #[error("the reader is busy starting the card")]
    BusyWithAutoSequence,
    /// F0.
    #[error("nobody typed a PIN in time")]
    PinTimeout,
    /// EF.
    #[error("the PIN entry was cancelled at the reader")]
    PinCancelled,
    /// E0.
    #[error("the slot is busy with another command")]
    SlotBusy,
    /// 0.
    #[error("the reader does not know the command")]
    NotSupported,
    /// 1 to 127: the byte of the message that is wrong.
    #[error("the reader takes exception to byte {0} of the command")]
    Parameter(u8),
    /// Anything else.
    #[error("error {0:02X} of the reader's own")]
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
