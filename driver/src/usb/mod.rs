//! Raw USB: readers without pcscd. `docs/raw-usb.md` draws the whole.
//!
//! ```text
//! UsbBackend, UsbWatch, UsbTransport     what the module sees; the same as for PC/SC and the socket
//!     Gate                               which readers are ours, and not pcscd's
//!     Device                             one claimed reader: its lock, its slots, what is known of its cards
//!     ccid, protocol                     messages, slots, T=0, T=1; no I/O
//! UsbInterface, Pipes                    transfers: nusb, rusb, or a fake that injects faults
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
