//! The interface of a USB library to the driver: transfers that complete, and no call that blocks.
//!
//! A thread waits in one poll(2) for the descriptors of all its queues and for its stop. One wait serves a response, a
//! notification, a deadline and a stop.

use std::{fmt, os::fd::BorrowedFd, time::Duration};

use claviger_apdu::Secret;
use rustix::event::PollFlags;

/// An endpoint address, direction bit included (USB 2.0, 9.6.6).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct EndpointAddress(pub u8);

impl EndpointAddress {
    /// Returns whether data comes from the device.
    #[must_use]
    pub const fn is_in(self) -> bool {
        self.0 & 0x80 != 0
    }
}

impl fmt::Debug for EndpointAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EndpointAddress({:02X})", self.0)
    }
}

/// The eight bytes of a control request but its length (USB 2.0, 9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetupPacket {
    /// bmRequestType. Its top bit means that data comes from the device.
    pub request_type: u8,
    /// bRequest.
    pub request: u8,
    /// wValue.
    pub value: u16,
    /// wIndex.
    pub index: u16,
}

/// How a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// The endpoint is halted until it is cleared.
    #[error("the endpoint stalled")]
    Stall,
    /// It was cancelled; a control transfer, at its limit.
    #[error("the transfer was cancelled")]
    Cancelled,
    /// The device was unplugged.
    #[error("the device was disconnected")]
    Disconnected,
    /// More data came than there was room for.
    #[error("the device sent more data than requested")]
    Overflow,
    /// The bus or the platform failed; the number is the platform's errno.
    #[error("the transfer failed (errno {0})")]
    Fault(i32),
}

/// A finished transfer. Its buffer is a secret: it may have carried a PIN.
#[derive(Debug)]
pub struct Completion {
    /// Which endpoint.
    pub endpoint: EndpointAddress,
    /// The received data. Unspecified for a transfer to the device.
    pub buffer: Secret,
    /// How many bytes were transferred in either direction, including those before an error.
    pub transferred: usize,
    /// The result. Data received before an error is in the buffer, too.
    pub result: Result<(), TransferError>,
}

/// One claimed interface of a device. When it and all its [`EndpointQueue`] are dropped the claim is released and the
/// device left as it is.
pub trait UsbInterface: Send + Sync + fmt::Debug {
    /// Opens a queue over `endpoints`. No other living queue has one of them.
    ///
    /// # Errors
    /// [`TransferError`] when the interface has no such endpoint, or the device has left.
    fn open_queue(
        &self,
        endpoints: &[EndpointAddress],
    ) -> Result<Box<dyn EndpointQueue>, TransferError>;

    /// A control transfer; `data` is sent, or filled up to its length. Takes `limit` at most. How many bytes
    /// there were.
    ///
    /// # Errors
    /// [`TransferError`].
    fn control(
        &self,
        setup: SetupPacket,
        data: &mut [u8],
        limit: Duration,
    ) -> Result<usize, TransferError>;

    /// Resets the whole device, the last resort: every interface of it, of whichever owner, starts afresh. What is
    /// pending ends, often with [`TransferError::Disconnected`] though the device stays.
    ///
    /// # Errors
    /// [`TransferError`]; [`TransferError::Disconnected`] when it does not come back the same.
    fn reset(&self) -> Result<(), TransferError>;
}

/// Transfers over some endpoints, for one thread at a time. Dropping it cancels the pending transfers and wipes the
/// buffers once the system has returned them.
pub trait EndpointQueue: Send + fmt::Debug {
    /// Queues a transfer of up to `len` bytes from `endpoint`, a multiple of its packet size. One that cannot be
    /// queued completes with its error.
    fn submit_in(&mut self, endpoint: EndpointAddress, len: usize);

    /// Queues a transfer of `buffer` to `endpoint`, without a zero-length packet after it.
    fn submit_out(&mut self, endpoint: EndpointAddress, buffer: Secret);

    /// The next completed transfer of any endpoint. Never waits. Call this until it returns `None` before waiting again.
    fn next_completion(&mut self) -> Option<Completion>;

    /// Descriptors for poll(2). One is ready when [`EndpointQueue::next_completion`] may return a transfer.
    fn poll_fds(&self) -> Vec<(BorrowedFd<'_>, PollFlags)>;

    /// Returns when to call [`EndpointQueue::next_completion`] even if no descriptor is ready.
    fn next_timeout(&self) -> Option<Duration> {
        None
    }

    /// Cancels the transfers of `endpoint`. They complete as any others.
    fn cancel(&mut self, endpoint: EndpointAddress);

    /// Number of pending transfers of `endpoint`.
    fn pending(&self, endpoint: EndpointAddress) -> usize;

    /// Clears a halt and sets the data toggle back (USB 2.0, 9.4.5); nothing may be pending on `endpoint`.
    ///
    /// # Errors
    /// [`TransferError`].
    fn clear_halt(&mut self, endpoint: EndpointAddress) -> Result<(), TransferError>;
}

/// Why a device could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The device or the interface was disconnected.
    #[error("the device was disconnected")]
    Disconnected,
    /// This user may not open the node.
    #[error("{0}")]
    Denied(String),
    /// Another program has claimed the interface.
    #[error("{0}")]
    Busy(String),
    /// Any other error.
    #[error("{0}")]
    Failed(String),
}
