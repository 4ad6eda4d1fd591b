//! Raw USB: readers without pcscd. `docs/raw-usb.md` draws the whole.
//!
//! ```text
//! backend, transport    UsbBackend, UsbTransport: what the module sees, the same as for PC/SC and the socket
//! watch                 UsbWatch follows the bus, the readers and their cards
//! reader                UsbReader, CcidSlot: one reader, the saved state of its card, exchanges with the card
//! claim                 ReaderClaim: the lock file and the USB interface
//! discovery             which readers are on the bus, and which of them are left to pcscd
//! pipe                  CommandPipe: one CCID message and its response
//! host                  transfers: nusb, libusb, or in tests a fake that injects faults
//! ```

pub mod backend;
pub mod claim;
pub mod discovery;
pub mod host;
mod pipe;
mod reader;
#[cfg(test)]
mod tests;
mod transport;
mod watch;
