//! Devices that differ in their interfaces: tokens without endpoints, and several readers in one device.

use std::{
    collections::HashMap,
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use crate::usb::{
    backend::{UsbBackend, UsbOptions},
    claim::DeviceOpener,
    discovery::{reader_info::ReaderInfo, sysfs::UsbBus},
    host::{
        fake::FakeDevice,
        open::{OpenedInterface, UsbLibrary},
        transfer::OpenError,
    },
};

/// The connected devices: the interfaces of a device, by its node.
type Plugged = Arc<Mutex<HashMap<PathBuf, Vec<FakeDevice>>>>;

/// See the module.
pub(super) struct MultiInterfaceMachine {
    root: PathBuf,
    plugged: Plugged,
}

impl MultiInterfaceMachine {
    pub(super) fn new(test: &str) -> Self {
        let root = std::env::temp_dir().join(format!("{}-usb-devices.{test}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("sys")).unwrap();
        fs::create_dir_all(root.join("dev/003")).unwrap();
        Self {
            root,
            plugged: Plugged::default(),
        }
    }

    /// Puts a device into port `3-<port>`; the interfaces are numbered from 0.
    pub(super) fn plug(&self, port: u8, descriptors: &[u8], interfaces: Vec<FakeDevice>) {
        let folder = self.root.join(format!("sys/3-{port}"));
        fs::create_dir_all(&folder).unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).unwrap();
        write("devnum", format!("{port}\n").as_bytes());
        write("bConfigurationValue", b"1\n");
        write("product", b"Device\n");
        write("descriptors", descriptors);
        let node = self.node(port);
        self.plugged
            .lock()
            .unwrap()
            .insert(node.clone(), interfaces);
        fs::write(node, []).unwrap();
    }

    pub(super) fn unplug(&self, port: u8) {
        let node = self.node(port);
        for interface in self
            .plugged
            .lock()
            .unwrap()
            .remove(&node)
            .into_iter()
            .flatten()
        {
            interface.leave();
        }
        fs::remove_dir_all(self.root.join(format!("sys/3-{port}"))).unwrap();
        fs::remove_file(node).unwrap();
    }

    fn node(&self, port: u8) -> PathBuf {
        self.root.join(format!("dev/003/{port:03}"))
    }

    pub(super) fn new_backend(&self) -> UsbBackend {
        let bus = UsbBus::new(self.root.join("sys"), self.root.join("dev"));
        let options = UsbOptions {
            library: UsbLibrary::default(),
            has_watch_thread: true,
            lock_folders: vec![self.root.join("locks")],
        };
        UsbBackend::with_bus(
            bus,
            Box::new(InterfaceOpener(Arc::clone(&self.plugged))),
            &options,
        )
    }
}

impl Drop for MultiInterfaceMachine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

struct InterfaceOpener(Plugged);

impl fmt::Debug for InterfaceOpener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InterfaceOpener")
    }
}

impl DeviceOpener for InterfaceOpener {
    fn open(&self, info: &ReaderInfo) -> Result<OpenedInterface, OpenError> {
        let last_transfer = self.last_transfer(&info.node);
        let plugged = self.0.lock().unwrap();
        let interfaces = plugged.get(&info.node).ok_or(OpenError::Disconnected)?;
        let number = usize::from(info.interface.number);
        let interface = interfaces
            .get(number)
            .ok_or(OpenError::Disconnected)?
            .claim()?;
        Ok(OpenedInterface {
            interface,
            last_transfer,
        })
    }

    fn last_transfer(&self, node: &Path) -> Option<u64> {
        let plugged = self.0.lock().unwrap();
        let interfaces = plugged.get(node)?.iter();
        Some(interfaces.map(FakeDevice::transfer_count).sum())
    }
}
