//! The place of raw USB: what a CCID driver asks of one claimed interface.
//!
//! Nothing implements [`UsbInterface`] yet. It is written down now because it decides the shape of the driver
//! above it: completions, not blocking calls, so that an answer and a slot-change notification are awaited
//! together and another thread can end the wait.
//!
//! ```text
//! Backend, Watch, Transport        what the module sees; the same as for PC/SC and the socket
//!         CCID                     commands, slots, T=0, T=1; no I/O
//!     UsbInterface                 transfers: nusb, rusb, or a fake that injects faults
//! ```

use std::time::Instant;

use claviger_apdu::Secret;

/// An endpoint address, direction bit included (USB 2.0, 9.6.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndpointAddress(pub u8);

/// The eight bytes of a control request (USB 2.0, 9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// bmRequestType.
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
    /// It was cancelled.
    #[error("the transfer was cancelled")]
    Cancelled,
    /// The device has left.
    #[error("the device is gone")]
    Gone,
    /// More data came than there was room for, or the bus failed; the number is the platform's.
    #[error("the transfer failed ({0})")]
    Fault(i32),
}

/// A finished transfer. Its buffer is a secret: it may have carried a PIN.
#[derive(Debug)]
pub struct Completion {
    /// Which endpoint.
    pub endpoint: EndpointAddress,
    /// What was received, or the buffer that was sent.
    pub buffer: Secret,
    /// How it ended; data received before an error is in the buffer all the same.
    pub result: Result<(), TransferError>,
}

/// One claimed interface of a device. Dropping it releases the claim and leaves the device as it is.
pub trait UsbInterface: Send {
    /// Queues a transfer of up to `len` bytes from `endpoint`, a multiple of its packet size.
    fn submit_in(&mut self, endpoint: EndpointAddress, len: usize);

    /// Queues a transfer of `buffer` to `endpoint`.
    fn submit_out(&mut self, endpoint: EndpointAddress, buffer: Secret);

    /// The next completion of any endpoint; `None` at the deadline, or when woken from another thread.
    fn wait(&mut self, until: Option<Instant>) -> Option<Completion>;

    /// Asks for the end of what is queued for `endpoint`; completions come through [`UsbInterface::wait`].
    fn cancel(&mut self, endpoint: EndpointAddress);

    /// A control transfer to the device; `data` is sent, or filled up to its length.
    ///
    /// # Errors
    /// [`TransferError`]; [`TransferError::Cancelled`] at the deadline.
    fn control(
        &mut self,
        setup: Setup,
        data: &mut [u8],
        until: Instant,
    ) -> Result<usize, TransferError>;

    /// Clears a halt.
    ///
    /// # Errors
    /// [`TransferError`].
    fn clear_halt(&mut self, endpoint: EndpointAddress) -> Result<(), TransferError>;
}
