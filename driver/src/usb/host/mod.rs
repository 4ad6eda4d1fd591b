//! Transfers to and from a device: nusb, libusb, or in tests a fake that injects faults.

pub(crate) mod drain;
pub(crate) mod event_fd;
#[cfg(test)]
pub mod fake;
mod nusb;
pub mod open;
pub(crate) mod owner;
pub(crate) mod printable;
mod rusb;
pub mod transfer;
mod usbfs;
