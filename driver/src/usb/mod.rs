//! Raw USB: readers without pcscd. `docs/raw-usb.md` draws the whole.
//!
//! ```text
//! UsbBackend, UsbWatch, UsbTransport     what the module sees; the same as for PC/SC and the socket
//!     Gate                               which readers are ours, and not pcscd's
//!     Device                             one claimed reader: its lock, its slots, what is known of its cards
//!     ccid, protocol                     messages, slots, T=0, T=1; no I/O
//! UsbInterface, Pipes                    transfers: nusb, rusb, or a fake that injects faults
//! ```

#[doc(hidden)]
pub mod fake;
mod nusb;
pub mod open;
mod rusb;
mod settle;
mod signal;
mod sleep;
pub mod transfer;
pub mod transport;

mod access;
pub mod arrivals;
pub mod backend;
mod bulk;
mod claim;
mod command_pipe;
mod connection;
mod demand;
mod device;
mod ear;
mod filter;
pub mod gate;
mod holding;
mod iccd;
pub mod lock;
mod place;
mod printable;
mod station;
mod strangers;
pub mod sysfs;
#[cfg(test)]
mod tests;
mod turns;
pub mod udev_data;
pub mod uevent;
mod usbfs;
mod view;
mod watch;
