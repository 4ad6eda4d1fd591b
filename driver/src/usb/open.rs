//! Opening a device by its node, and saying who has it when that fails.

/// Why a device could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The device, or the interface, is not there any more.
    #[error("the device is gone")]
    Gone,
    /// This user may not open it.
    #[error("{0}")]
    Denied(String),
    /// Another program has claimed the interface.
    #[error("{0}")]
    Busy(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}
