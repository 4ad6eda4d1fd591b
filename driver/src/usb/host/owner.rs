//! Which other program has a device open, for the message about a reader that is in use.

use std::{
    fs::{self},
    path::{Path, PathBuf},
};

use super::printable::printable;

/// Describes the owner of a busy interface. Searches the open files of all processes.
pub(crate) fn describe_owner(node: &Path, interface: u8) -> String {
    describe_owner_in(Path::new("/proc"), node, interface)
}

/// A program that has the node open.
#[derive(Debug, PartialEq, Eq)]
struct Owner {
    process: u32,
    name: String,
}

/// The same, with `proc` as the process folder.
fn describe_owner_in(proc: &Path, node: &Path, interface: u8) -> String {
    let what = format!("interface {interface} of {} is in use", node.display());
    match owner(proc, node) {
        Some(Owner { process, name }) => {
            let cure = remedy(&name);
            format!("{what}, probably by {name} (process {process}): {cure}")
        }
        None if has_open(&proc.join("self"), &canonical(node)) => {
            format!("{what}, by another part of this program")
        }
        None => format!(
            "{what}, probably by pcscd, scdaemon or a program with this module, which may run as another user: {}, {}, \
             or end the other user's program",
            remedy("pcscd"),
            remedy("scdaemon")
        ),
    }
}

fn remedy(name: &str) -> &'static str {
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
    let node = canonical(node);
    let processes = fs::read_dir(proc).ok()?.flatten();
    let mut numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let process = numbers.find(|process: &u32| {
        *process != std::process::id() && has_open(&proc.join(process.to_string()), &node)
    })?;
    let comm = fs::read(proc.join(process.to_string()).join("comm")).ok()?;
    Some(Owner {
        process,
        name: printable(&comm, MAX_NAME),
    })
}

/// The node's path as the kernel reports it.
fn canonical(node: &Path) -> PathBuf {
    fs::canonicalize(node).unwrap_or_else(|_| node.to_owned())
}

fn has_open(process: &Path, node: &Path) -> bool {
    let files = fs::read_dir(process.join("fd")).into_iter().flatten();
    let mut targets = files
        .flatten()
        .filter_map(|file| fs::read_link(file.path()).ok());
    targets.any(|target: PathBuf| target == node)
}

/// Maximum length of a program's name in messages. Linux keeps 15 bytes.
const MAX_NAME: usize = 32;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A folder like /proc, removed when dropped.
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
        let said = describe_owner_in(&root.0, Path::new(NODE), 1);
        assert!(said.starts_with("interface 1 of /dev/bus/usb/901/004 is in use"));
        assert!(
            said.contains("scdaemon (process 77)") && said.contains("gpgconf"),
            "{said}"
        );
        assert!(!said.contains("pcscd.socket"), "{said}");
        let root = proc("open.other", 78, "evil\x1B[2J\n", Path::new(NODE));
        let said = describe_owner_in(&root.0, Path::new(NODE), 0);
        assert!(
            said.contains("evil[2J (process 78): end that program"),
            "{said}"
        );
    }

    #[test]
    fn b36_unidentified_owner_may_be_this_module_under_another_user() {
        let root = proc(
            "open.unseen",
            77,
            "scdaemon\n",
            Path::new("/dev/bus/usb/901/005"),
        );
        for root in [root.0.as_path(), Path::new("/nonexistent")] {
            let said = describe_owner_in(root, Path::new(NODE), 0);
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
    fn device_open_in_this_process_is_described_as_such() {
        let root = proc("open.own", std::process::id(), "test\n", Path::new(NODE));
        fs::create_dir_all(root.0.join("self/fd")).unwrap();
        symlink(NODE, root.0.join("self/fd/7")).unwrap();
        assert_eq!(owner(&root.0, Path::new(NODE)), None);
        let said = describe_owner_in(&root.0, Path::new(NODE), 0);
        assert!(said.ends_with("by another part of this program"), "{said}");
    }
}
