//! The errors of a command without a response.

use claviger_apdu::{Sent, TransportErrorKind};

use crate::usb::host::transfer::TransferError;

/// Why a command has no response, and whether the reader may have executed the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BulkError {
    pub(crate) kind: BulkErrorKind,
    pub(crate) sent: Sent,
}

/// Why there is no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BulkErrorKind {
    #[error("the reader was unplugged")]
    Disconnected,
    #[error("the reader did not respond in time")]
    TimedOut,
    #[error("the reader did not respond to the command in time, but responds to other commands")]
    Late,
    #[error("the reader still runs an earlier command")]
    SlotBusy,
    #[error("the call was aborted")]
    Stopped,
    #[error(
        "another slot of the reader, or another reader in the same device, was busy all the time"
    )]
    Busy,
    #[error("{0}")]
    Transfer(TransferError),
    #[error("the reader violated the CCID protocol: {0}")]
    Protocol(&'static str),
    #[error("the message is longer than the reader accepts")]
    TooLong,
}

impl BulkErrorKind {
    /// Returns whether recovery is of no use.
    pub(crate) const fn is_final(self) -> bool {
        matches!(self, Self::Disconnected | Self::Stopped | Self::Busy)
    }

    /// Returns whether the reader is slow or busy. It needs time, not a reset.
    pub(crate) const fn needs_time(self) -> bool {
        matches!(self, Self::Late | Self::SlotBusy | Self::Busy)
    }

    pub(crate) const fn transport_kind(self) -> TransportErrorKind {
        match self {
            Self::Disconnected => TransportErrorKind::NoReader,
            Self::TimedOut | Self::Late | Self::SlotBusy => TransportErrorKind::TimedOut,
            Self::Stopped => TransportErrorKind::Cancelled,
            Self::Busy => TransportErrorKind::Busy,
            Self::Transfer(_) | Self::Protocol(_) | Self::TooLong => TransportErrorKind::Protocol,
        }
    }
}
