//! Opening a device by its node, and saying who has it when that fails.

use std::{
    cell::Cell,
    fs::{self, File},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use claviger_apdu::{TransportError, TransportErrorKind};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use super::{nusb, printable::printable, rusb, transfer::UsbInterface, usbfs};
use crate::fork_closed::ForkClosed;

/// Who moves the transfers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stack {
    /// A thread of nusb's, one for the process, which nobody can end. Where it cannot be started: as [`Stack::Rusb`].
    Nusb,
    /// The thread that waits; so also where threads are not allowed, and after a fork.
    #[default]
    Rusb,
}

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

impl From<OpenError> for TransportError {
    fn from(error: OpenError) -> Self {
        let kind = match &error {
            OpenError::Gone => TransportErrorKind::NoReader,
            // Perhaps of this program, that has too many files open: the reader is there, and tried again.
            OpenError::Failed(_) => TransportErrorKind::Protocol,
            OpenError::Denied(_) => TransportErrorKind::Denied,
            OpenError::Busy(_) => TransportErrorKind::Busy,
        };
        Self::before_card(kind, error.to_string())
    }
}

/// Opens the device behind `node` (`/dev/bus/usb/BBB/DDD`) and claims its interface of that number. Waits for nobody;
/// a driver of the kernel's that has the interface keeps it.
///
/// # Errors
/// [`OpenError`], with the owner where one is known, and the cure.
pub fn open(node: &Path, interface: u8, stack: Stack) -> Result<Arc<dyn UsbInterface>, OpenError> {
    match attempt(node, interface, stack) {
        Ok(opened) => Ok(opened.interface),
        Err(OpenError::Busy(_)) => Err(OpenError::Busy(owned(node, interface))),
        Err(other) => Err(other),
    }
}

/// What is said of an interface that somebody else has claimed; the files of all processes are looked through.
pub(super) fn owned(node: &Path, interface: u8) -> String {
    busy(Path::new("/proc"), node, interface)
}

/// A claimed interface.
pub(super) struct Opened {
    pub(super) interface: Arc<dyn UsbInterface>,
    /// When the last transfer to the device had been begun before this claim, by whomever, as far as that can be told.
    pub(super) last_transfer: Option<u64>,
}

/// The same as [`open`], for whoever tries again: who has the device is not looked for. One that somebody else has claimed is
/// sent nothing.
///
/// # Errors
/// [`OpenError`].
pub(super) fn attempt(node: &Path, interface: u8, stack: Stack) -> Result<Opened, OpenError> {
    let last_transfer = Cell::new(None);
    let claimed_node = || {
        let file = File::from(open_node(node)?);
        usbfs::claim(&file, interface).map_err(refused)?;
        // Either library asks the device for its configuration as it is given the node.
        last_transfer.set(file.metadata().ok().as_ref().and_then(usbfs::last_transfer));
        Ok(OwnedFd::from(file))
    };
    let by_nusb = match stack {
        Stack::Nusb => nusb::claim(claimed_node, interface),
        Stack::Rusb => None,
    };
    let claimed = by_nusb.unwrap_or_else(|| {
        ForkClosed::open(claimed_node).and_then(|node| rusb::claim(node, interface))
    });
    let claimed = claimed.map(|interface| Opened {
        interface,
        last_transfer: last_transfer.get(),
    });
    claimed.map_err(|error| match error {
        OpenError::Busy(_) => OpenError::Busy(format!("interface {interface} is in use")),
        OpenError::Failed(what) => OpenError::Failed(format!("{}: {what}", node.display())),
        other => other,
    })
}

/// Why an interface was not claimed; who has it is for the caller to find.
fn refused(errno: Errno) -> OpenError {
    match errno {
        Errno::NODEV => OpenError::Gone,
        Errno::BUSY => OpenError::Busy(String::new()),
        Errno::INVAL | Errno::NOENT => {
            OpenError::Failed("the device has no such interface".to_owned())
        }
        other => OpenError::Failed(other.to_string()),
    }
}

/// When the last transfer to the device behind `node` was begun, by whomever, as far as that can be told.
pub(super) fn last_transfer(node: &Path) -> Option<u64> {
    usbfs::last_transfer(&fs::metadata(node).ok()?)
}

fn open_node(node: &Path) -> Result<OwnedFd, OpenError> {
    rustix::fs::open(node, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
        let node = node.display();
        match errno {
            Errno::NOENT | Errno::NODEV | Errno::NXIO => OpenError::Gone,
            Errno::ACCESS | Errno::PERM => OpenError::Denied(format!(
                "this user may not open {node}; the udev rule 70-claviger.rules gives readers to whoever sits at \
                 the machine, a service needs the group that owns the node"
            )),
            other => OpenError::Failed(format!("{node}: {other}")),
        }
    })
}

/// Characters of a program's name that are shown; Linux keeps 15 bytes.
const COMM: usize = 32;

/// A program that has the node open.
#[derive(Debug, PartialEq, Eq)]
struct Owner {
    process: u32,
    name: String,
}

/// What is said of an interface that somebody else has claimed.
fn busy(proc: &Path, node: &Path, interface: u8) -> String {
    let what = format!("interface {interface} of {} is in use", node.display());
    match owner(proc, node) {
        Some(Owner { process, name }) => {
            let cure = cure(&name);
            format!("{what}, probably by {name} (process {process}): {cure}")
        }
        None if has_open(&proc.join("self"), &whole(node)) => {
            format!("{what}, by another part of this program")
        }
        None => format!(
            "{what}, probably by pcscd, scdaemon or a program with this module, which may run as another user: {}, {}, \
             or end the other user's program",
            cure("pcscd"),
            cure("scdaemon")
        ),
    }
}

fn cure(name: &str) -> &'static str {
    match name {
        "pcscd" => "reach the reader through pcscd, or stop it (systemctl stop pcscd.socket pcscd)",
        "scdaemon" => {
            "end it (gpgconf --kill scdaemon); disable-ccid in scdaemon.conf makes it use pcscd"
        }
        _ => "end that program",
    }
}

/// Another process that has the node open, as far as this user may see.
fn owner(proc: &Path, node: &Path) -> Option<Owner> {
    let node = whole(node);
    let processes = fs::read_dir(proc).ok()?.flatten();
    let mut numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let process = numbers.find(|process: &u32| {
        *process != std::process::id() && has_open(&proc.join(process.to_string()), &node)
    })?;
    let comm = fs::read(proc.join(process.to_string()).join("comm")).ok()?;
    Some(Owner {
        process,
        name: printable(&comm, COMM),
    })
}

/// The node's path as the kernel tells it.
fn whole(node: &Path) -> PathBuf {
    fs::canonicalize(node).unwrap_or_else(|_| node.to_owned())
}

fn has_open(process: &Path, node: &Path) -> bool {
    let files = fs::read_dir(process.join("fd")).into_iter().flatten();
    let mut targets = files
        .flatten()
        .filter_map(|file| fs::read_link(file.path()).ok());
    targets.any(|target: PathBuf| target == node)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A folder that looks like /proc, for as long as the value lives.
    struct Proc(PathBuf);

    impl Drop for Proc {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// One process that has `node` open.
    fn proc(test: &str, process: u32, comm: &str, node: &Path) -> Proc {
        let root = std::env::temp_dir().join(format!("{}-{test}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let folder = root.join(process.to_string());
        fs::create_dir_all(folder.join("fd")).unwrap();
        fs::create_dir_all(root.join("self")).unwrap();
        fs::create_dir_all(root.join("4294967294")).unwrap();
        symlink("/dev/null", folder.join("fd/0")).unwrap();
        symlink(node, folder.join("fd/7")).unwrap();
        fs::write(folder.join("comm"), comm).unwrap();
        Proc(root)
    }

    const NODE: &str = "/dev/bus/usb/901/004";

    #[test]
    fn the_owner_of_a_busy_reader_is_named_with_the_cure() {
        let root = proc("open.scdaemon", 77, "scdaemon\n", Path::new(NODE));
        let said = busy(&root.0, Path::new(NODE), 1);
        assert!(said.starts_with("interface 1 of /dev/bus/usb/901/004 is in use"));
        assert!(
            said.contains("scdaemon (process 77)") && said.contains("gpgconf"),
            "{said}"
        );
        assert!(!said.contains("pcscd.socket"), "{said}");
        let root = proc("open.other", 78, "evil\x1B[2J\n", Path::new(NODE));
        let said = busy(&root.0, Path::new(NODE), 0);
        assert!(
            said.contains("evil[2J (process 78): end that program"),
            "{said}"
        );
    }

    #[test]
    fn an_owner_that_cannot_be_seen_may_be_this_module_under_another_user_as_well() {
        let root = proc(
            "open.unseen",
            77,
            "scdaemon\n",
            Path::new("/dev/bus/usb/901/005"),
        );
        for root in [root.0.as_path(), Path::new("/nonexistent")] {
            let said = busy(root, Path::new(NODE), 0);
            assert!(
                said.contains(
                    "pcscd, scdaemon or a program with this module, which may run as another user"
                ),
                "{said}"
            );
            assert!(said.contains("end the other user's program"), "{said}");
            assert!(!said.contains("  "), "{said}");
        }
    }

    #[test]
    fn a_claim_of_this_very_program_is_said_to_be_so() {
        let root = proc("open.own", std::process::id(), "test\n", Path::new(NODE));
        fs::create_dir_all(root.0.join("self/fd")).unwrap();
        symlink(NODE, root.0.join("self/fd/7")).unwrap();
        assert_eq!(owner(&root.0, Path::new(NODE)), None);
        let said = busy(&root.0, Path::new(NODE), 0);
        assert!(said.ends_with("by another part of this program"), "{said}");
    }

    #[test]
    fn a_node_that_is_not_there_is_a_device_that_left() {
        for stack in [Stack::Nusb, Stack::Rusb] {
            let error = open(Path::new(NODE), 0, stack).unwrap_err();
            assert_eq!(error, OpenError::Gone);
            let error = TransportError::from(error);
            assert_eq!(error.kind, TransportErrorKind::NoReader);
        }
    }

    #[test]
    fn a_file_that_is_no_device_is_refused_by_either_stack() {
        let file = std::env::temp_dir().join(format!("{}-open.file", std::process::id()));
        fs::write(&file, [0; 100]).unwrap();
        for stack in [Stack::Nusb, Stack::Rusb] {
            let error = open(&file, 0, stack).unwrap_err();
            assert!(
                matches!(error, OpenError::Failed(_)),
                "{stack:?}: {error:?}"
            );
        }
        let _ = fs::remove_file(&file);
    }

    #[test]
    fn a_reader_that_could_not_be_opened_has_not_left() {
        let failed = OpenError::Failed("too many open files".to_owned());
        assert_ne!(
            TransportError::from(failed).kind,
            TransportErrorKind::NoReader
        );
    }

    #[test]
    fn a_node_of_somebody_else_is_denied_with_the_cure() {
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
