//! Opens a device by its node.

use std::{
    cell::Cell,
    fs::{self, File},
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
};

use claviger_apdu::{TransportError, TransportErrorKind};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use super::{
    nusb,
    owner::describe_owner,
    rusb,
    transfer::{OpenError, UsbInterface},
    usbfs,
};
use crate::fork_closed::ForkClosed;

/// Moves the transfers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UsbLibrary {
    /// nusb, with one thread for the process, which never ends. Where the thread cannot be started: as [`UsbLibrary::Rusb`].
    Nusb,
    /// libusb, on the thread that waits. Works without threads and after a fork.
    #[default]
    Rusb,
}

impl From<OpenError> for TransportError {
    fn from(error: OpenError) -> Self {
        let kind = match &error {
            OpenError::Disconnected => TransportErrorKind::NoReader,
            // Perhaps of this program, that has too many files open: the reader is there, and tried again.
            OpenError::Failed(_) => TransportErrorKind::Protocol,
            OpenError::Denied(_) => TransportErrorKind::Denied,
            OpenError::Busy(_) => TransportErrorKind::Busy,
        };
        Self::before_card(kind, error.to_string())
    }
}

/// Opens the device behind `node` (`/dev/bus/usb/BBB/DDD`) and claims its interface of that number. Does not wait. An
/// interface of a kernel driver stays with that driver.
///
/// # Errors
/// [`OpenError`], with the owner where one is known, and the cure.
pub fn open(
    node: &Path,
    interface: u8,
    stack: UsbLibrary,
) -> Result<Arc<dyn UsbInterface>, OpenError> {
    match attempt(node, interface, stack) {
        Ok(opened) => Ok(opened.interface),
        Err(OpenError::Busy(_)) => Err(OpenError::Busy(describe_owner(node, interface))),
        Err(other) => Err(other),
    }
}

/// A claimed interface.
pub(crate) struct OpenedInterface {
    pub(crate) interface: Arc<dyn UsbInterface>,
    /// When the last transfer before this claim was begun, by any program. `None` if unknown.
    pub(crate) last_transfer: Option<u64>,
}

/// Like [`open`], for a caller that tries again. Does not look for the owner of a busy interface. Sends nothing to a device
/// whose interface another program has claimed.
///
/// # Errors
/// [`OpenError`].
pub(crate) fn attempt(
    node: &Path,
    interface: u8,
    stack: UsbLibrary,
) -> Result<OpenedInterface, OpenError> {
    let last_transfer = Cell::new(None);
    let claimed_node = || {
        let file = File::from(open_node(node)?);
        match usbfs::claim(&file, interface) {
            // This is no node of usbfs. The library reports it.
            Ok(()) | Err(Errno::NOTTY) => {}
            Err(errno) => return Err(claim_error(errno)),
        }
        // Both libraries read the device's configuration when they open the node.
        last_transfer.set(file.metadata().ok().as_ref().and_then(usbfs::last_transfer));
        Ok(OwnedFd::from(file))
    };
    let by_nusb = match stack {
        UsbLibrary::Nusb => nusb::claim(claimed_node, interface),
        UsbLibrary::Rusb => None,
    };
    let claimed = by_nusb.unwrap_or_else(|| {
        ForkClosed::open(claimed_node).and_then(|node| rusb::claim(node, interface))
    });
    let claimed = claimed.map(|interface| OpenedInterface {
        interface,
        last_transfer: last_transfer.get(),
    });
    claimed.map_err(|error| match error {
        OpenError::Busy(_) => OpenError::Busy(format!("interface {interface} is in use")),
        OpenError::Failed(what) => OpenError::Failed(format!("{}: {what}", node.display())),
        other => other,
    })
}

/// Converts the error of a claim. The caller looks for the owner.
fn claim_error(errno: Errno) -> OpenError {
    match errno {
        Errno::NODEV => OpenError::Disconnected,
        Errno::BUSY => OpenError::Busy(String::new()),
        Errno::INVAL | Errno::NOENT => {
            OpenError::Failed("the device has no such interface".to_owned())
        }
        other => OpenError::Failed(other.to_string()),
    }
}

/// Returns when the last transfer to the device at `node` was begun, by any program. Returns `None` if it is unknown.
pub(crate) fn last_transfer(node: &Path) -> Option<u64> {
    usbfs::last_transfer(&fs::metadata(node).ok()?)
}

fn open_node(node: &Path) -> Result<OwnedFd, OpenError> {
    rustix::fs::open(node, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
        let node = node.display();
        match errno {
            Errno::NOENT | Errno::NODEV | Errno::NXIO => OpenError::Disconnected,
            Errno::ACCESS | Errno::PERM => OpenError::Denied(format!(
                "this user may not open {node}; the udev rule 70-claviger.rules gives readers to whoever sits at \
                 the machine, a service needs the group that owns the node"
            )),
            other => OpenError::Failed(format!("{node}: {other}")),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use claviger_apdu::{TransportError, TransportErrorKind};

    use super::*;

    const NODE: &str = "/dev/bus/usb/901/004";

    #[test]
    fn missing_device_node_means_disconnected() {
        for stack in [UsbLibrary::Nusb, UsbLibrary::Rusb] {
            let error = open(Path::new(NODE), 0, stack).unwrap_err();
            assert_eq!(error, OpenError::Disconnected);
            let error = TransportError::from(error);
            assert_eq!(error.kind, TransportErrorKind::NoReader);
        }
    }

    #[test]
    fn file_that_is_no_device_is_refused_by_both_usb_libraries() {
        let file = std::env::temp_dir().join(format!("{}-open.file", std::process::id()));
        fs::write(&file, [0; 100]).unwrap();
        for stack in [UsbLibrary::Nusb, UsbLibrary::Rusb] {
            let error = open(&file, 0, stack).unwrap_err();
            assert!(
                matches!(error, OpenError::Failed(_)),
                "{stack:?}: {error:?}"
            );
        }
        let _ = fs::remove_file(&file);
    }

    #[test]
    fn failed_open_is_not_reported_as_a_missing_reader() {
        let failed = OpenError::Failed("too many open files".to_owned());
        assert_ne!(
            TransportError::from(failed).kind,
            TransportErrorKind::NoReader
        );
    }

    #[test]
    fn device_node_of_another_user_is_denied_with_a_cure() {
        let file = std::env::temp_dir().join(format!("{}-open.denied", std::process::id()));
        fs::write(&file, []).unwrap();
        let none = std::os::unix::fs::PermissionsExt::from_mode(0o000);
        fs::set_permissions(&file, none).unwrap();
        let opened = open_node(&file);
        let _ = fs::remove_file(&file);
        if rustix::process::geteuid().is_root() {
            assert!(opened.is_ok(), "root is refused nothing");
            return;
        }
        let error = opened.unwrap_err();
        assert!(
            matches!(&error, OpenError::Denied(what) if what.contains("udev")),
            "{error}"
        );
        assert_eq!(TransportError::from(error).kind, TransportErrorKind::Denied);
    }
}
