//! Requests to a device's node, before a USB library gets it. Nothing is sent to the device.

use std::{
    ffi::c_uint,
    fs::Metadata,
    os::{fd::AsFd, unix::fs::MetadataExt as _},
};

use rustix::{
    io::Errno,
    ioctl::{self, Opcode, Setter},
};

/// USBDEVFS_CLAIMINTERFACE (`linux/usbdevice_fs.h`).
const CLAIM_INTERFACE: Opcode = ioctl::opcode::read::<c_uint>(b'U', 15);

/// Claims an interface for the owner of this open node. Claiming it again changes nothing.
///
/// # Errors
/// BUSY when a driver or another program has it.
pub(super) fn claim(node: impl AsFd, interface: u8) -> Result<(), Errno> {
    // SAFETY: the number is a request's, which takes a pointer to one unsigned int.
    let request = unsafe { Setter::<CLAIM_INTERFACE, c_uint>::new(interface.into()) };
    // SAFETY: the unsigned int exists until the call has returned. No driver interprets this request number with a larger
    // argument, because the number includes the size.
    unsafe { ioctl::ioctl(node, request) }
}

/// Returns when the last transfer over this node was begun, in nanoseconds.
pub(super) fn last_transfer(node: &Metadata) -> Option<u64> {
    let seconds = u64::try_from(node.mtime()).ok()?;
    let rest = u64::try_from(node.mtime_nsec()).ok()?;
    seconds.checked_mul(1_000_000_000)?.checked_add(rest)
}
