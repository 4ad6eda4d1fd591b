//! Lists the readers on the USB from sysfs.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use super::udev_data;
use crate::{
    ccid::{
        configuration::{CcidDevice, CcidInterface},
        quirks::{self, UsbModel},
    },
    usb::host::printable::printable,
};

/// Devices a bus may have; USB allows 127.
const MAX_DEVICES: usize = 4096;
/// Descriptors of one device; a real one has some hundred bytes.
const MAX_DESCRIPTORS: u64 = 1 << 16;
/// Bytes of most files there.
const READ_CAPACITY: usize = 1024;
/// Bytes of an attribute; sysfs gives a page at most.
const MAX_ATTRIBUTE: u64 = 512;
/// Characters of a name.
const NAME: usize = 96;
/// The most ports between the root and a device: USB allows five hubs in a row (USB 2.0, 4.1.1).
const MAX_TIERS: usize = 6;

/// The port of a device: the bus, and the ports up to the device (`3-1.2`).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PortPath(Arc<str>);

impl PortPath {
    /// A name as sysfs gives it to devices; root hubs and interfaces have others.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let is_number = |part: &str| {
            (1..=5).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
        };
        let (bus, ports) = name.split_once('-')?;
        let mut ports = ports.split('.');
        let are_numbers = ports.by_ref().take(MAX_TIERS).all(is_number);
        (is_number(bus) && are_numbers && ports.next().is_none()).then(|| Self(name.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The controller's number.
    fn bus(&self) -> Option<u16> {
        self.0.split_once('-')?.0.parse().ok()
    }

    /// In which order ports are shown.
    fn order(&self) -> Vec<u32> {
        let numbers = self.0.split(['-', '.']);
        numbers.filter_map(|number| number.parse().ok()).collect()
    }
}

impl fmt::Display for PortPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PortPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PortPath({self})")
    }
}

/// One plugging-in of a device. Addresses are reused; the sysfs folder is made anew each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInstance {
    folder: u64,
    bus: u16,
    address: u16,
}

impl fmt::Display for DeviceInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}-{}", self.folder, self.bus, self.address)
    }
}

/// A device with at least one reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsbDevice {
    /// The port.
    pub port: PortPath,
    /// Since when.
    pub instance: DeviceInstance,
    /// Its node.
    pub node: PathBuf,
    /// idVendor, idProduct, bcdDevice.
    pub model: UsbModel,
    /// Manufacturer and product to show to a person, as the device states them, without characters that could affect a terminal.
    pub name: String,
    /// The serial number that the device states. It is not reliable.
    pub serial: Option<String>,
    /// Its active configuration.
    pub configuration: u16,
    /// The readers of that.
    pub readers: Vec<CcidInterface>,
}

/// The readers on the bus, and why the list may be incomplete.
#[derive(Debug, Default)]
pub struct Listing {
    /// The readers, by port.
    pub devices: Vec<UsbDevice>,
    /// The error of a file that could not be read.
    pub error: Option<io::Error>,
}

/// The folders that list devices, nodes and udev data.
#[derive(Clone, Debug)]
pub struct UsbBus {
    devices: PathBuf,
    nodes: PathBuf,
    udev: PathBuf,
    source: EventSource,
}

/// The source of hotplug and suspend events.
#[derive(Clone, Debug)]
pub(crate) enum EventSource {
    /// This machine.
    System,
    /// A test.
    Test(Arc<TestEvents>),
}

/// Events that a test injects, and counters that it reads.
#[derive(Debug, Default)]
pub(crate) struct TestEvents {
    /// Messages of devices come from here, and then from nowhere else.
    pub(crate) messages: Option<OwnedFd>,
    /// With `messages`: the folder of the nodes is watched beside them.
    pub(crate) nodes: bool,
    /// How long the machine was suspended, in milliseconds.
    pub(crate) suspended: AtomicU64,
    /// How often the devices were listed.
    pub(crate) lists: AtomicU64,
    /// How often the hotplug sources were drained.
    pub(crate) drains: AtomicU64,
}

impl UsbBus {
    /// That of this machine.
    #[must_use]
    pub fn system() -> Self {
        Self {
            source: EventSource::System,
            ..Self::new("/sys/bus/usb/devices", "/dev/bus/usb").with_udev("/run/udev/data")
        }
    }

    /// The same, with what udev keeps of its devices in `folder`.
    #[must_use]
    pub fn with_udev(self, folder: impl Into<PathBuf>) -> Self {
        let udev = folder.into();
        Self { udev, ..self }
    }

    /// One elsewhere, for a test.
    #[must_use]
    pub fn new(devices: impl Into<PathBuf>, nodes: impl Into<PathBuf>) -> Self {
        Self {
            devices: devices.into(),
            nodes: nodes.into(),
            udev: PathBuf::new(),
            source: EventSource::Test(Arc::default()),
        }
    }

    /// The same bus, with the events of a test.
    #[cfg(test)]
    pub(crate) fn with_test_events(self, events: Arc<TestEvents>) -> Self {
        Self {
            source: EventSource::Test(events),
            ..self
        }
    }

    /// Returns the source of events.
    pub(crate) const fn source(&self) -> &EventSource {
        &self.source
    }

    /// The folder of the nodes.
    #[must_use]
    pub fn nodes(&self) -> &Path {
        &self.nodes
    }

    /// Lists the devices that are readers, by port. A device that disconnects meanwhile is left out. A machine without USB has
    /// none. Of a device in `before`, only what may have changed is read again. A device that cannot be read is listed as in
    /// `before`.
    #[must_use]
    pub fn list(&self, before: &[UsbDevice]) -> Listing {
        if let EventSource::Test(events) = &self.source {
            events.lists.fetch_add(1, Ordering::SeqCst);
        }
        let mut listing = Listing::default();
        let entries = match fs::read_dir(&self.devices) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return listing,
            Err(error) => {
                return Listing {
                    devices: before.to_vec(),
                    error: Some(error),
                };
            }
        };
        let names = entries
            .take(MAX_DEVICES)
            .flatten()
            .map(|entry| entry.file_name());
        let ports = names.filter_map(|name: std::ffi::OsString| PortPath::parse(name.to_str()?));
        for port in ports {
            let known = before.iter().find(|known| known.port == port);
            match self.find(port, known) {
                Ok(found) => listing.devices.extend(found),
                Err(error) if is_disconnected(&error) => {}
                Err(error) => {
                    listing.devices.extend(known.cloned());
                    listing.error = Some(error);
                }
            }
        }
        listing
            .devices
            .sort_by_cached_key(|device| device.port.order());
        listing
    }

    /// Returns whether a udev rule makes pcscd ignore the device.
    pub(crate) fn is_ignored_by_pcscd(&self, device: &UsbDevice) -> bool {
        let folder = self.folder(&device.port).ok();
        let number = folder.and_then(|folder| folder.text("dev").ok());
        let data = number.and_then(|number| {
            let numbers = number.split_once(':')?;
            let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
            let is_node = is_number(numbers.0) && is_number(numbers.1);
            let file = is_node.then(|| self.udev.join(format!("c{number}")))?;
            read(File::open(file), udev_data::MAX_FILE).ok()
        });
        data.is_some_and(|data| udev_data::is_ignored_by_pcscd(&data))
    }

    /// Returns whether the device in `port` is still the same instance.
    ///
    /// # Errors
    /// [`io::Error`] when that cannot be read.
    pub(crate) fn has_instance(&self, port: &PortPath, instance: &str) -> io::Result<bool> {
        match self.folder(port).and_then(|folder| folder.instance(port)) {
            Ok(now) => Ok(now.is_some_and(|now| now.to_string() == instance)),
            Err(error) if is_disconnected(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn folder(&self, port: &PortPath) -> io::Result<Folder> {
        Folder::open(&self.devices.join(port.as_str()))
    }

    /// The device in `port`, if it is a reader. Returns `known` if the device is the same instance and did not change.
    fn find(&self, port: PortPath, known: Option<&UsbDevice>) -> io::Result<Option<UsbDevice>> {
        let folder = self.folder(&port)?;
        if let Some(known) = known
            && folder.instance(&port)? == Some(known.instance)
            && folder.configuration()? == Some(known.configuration)
        {
            return Ok(Some(known.clone()));
        }
        self.read(port, &folder)
    }

    /// Reads a device. One file shows whether the device is a reader. The other files are read of readers only.
    fn read(&self, port: PortPath, folder: &Folder) -> io::Result<Option<UsbDevice>> {
        let bytes = folder.read("descriptors", MAX_DESCRIPTORS)?;
        let is_reader = |model| quirks::for_model(model).vendor_class;
        let device = match CcidDevice::parse(&bytes, is_reader) {
            Ok(device) if !device.readers.is_empty() => device,
            _ => return Ok(None),
        };
        let (Some(instance), Some(configuration)) =
            (folder.instance(&port)?, folder.configuration()?)
        else {
            return Ok(None);
        };
        let readers = active(device.readers, configuration);
        if readers.is_empty() {
            return Ok(None);
        }
        let node = self.nodes.join(format!("{:03}", instance.bus));
        Ok(Some(UsbDevice {
            instance,
            node: node.join(format!("{:03}", instance.address)),
            model: device.model,
            name: name(folder, device.model)?,
            serial: folder.optional_text("serial")?,
            configuration,
            readers,
            port,
        }))
    }
}

/// Returns whether the error means that the device was disconnected.
fn is_disconnected(error: &io::Error) -> bool {
    let gone = [Errno::NOENT, Errno::NODEV, Errno::NXIO];
    gone.iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// The folder of one device instance. Everything read through it belongs to that instance, even if another device takes its
/// place.
struct Folder(OwnedFd);

impl Folder {
    fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.0, name, flags, Mode::empty());
        read(file.map(File::from).map_err(io::Error::from), limit)
    }

    /// An attribute for a person, which the device may have chosen.
    fn text(&self, name: &str) -> io::Result<String> {
        let bytes = self.read(name, MAX_ATTRIBUTE)?;
        Ok(printable(&bytes, NAME))
    }

    /// An attribute that not every device has.
    fn optional_text(&self, name: &str) -> io::Result<Option<String>> {
        match self.text(name) {
            Ok(text) => Ok(Some(text).filter(|text| !text.is_empty())),
            Err(error) if is_disconnected(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `None` while it is not configured; its interfaces are announced when it is.
    fn configuration(&self) -> io::Result<Option<u16>> {
        Ok(self.text("bConfigurationValue")?.parse().ok())
    }

    fn instance(&self, port: &PortPath) -> io::Result<Option<DeviceInstance>> {
        let folder = rustix::fs::fstat(&self.0)?.st_ino;
        let address = self.text("devnum")?.parse().ok();
        let instance = |(bus, address)| DeviceInstance {
            folder,
            bus,
            address,
        };
        Ok(port.bus().zip(address).map(instance))
    }
}

/// The readers of a configuration, each in its first alternate setting.
fn active(readers: Vec<CcidInterface>, configuration: u16) -> Vec<CcidInterface> {
    let is_active = |reader: &CcidInterface| {
        u16::from(reader.configuration) == configuration && reader.alternate == 0
    };
    readers.into_iter().filter(is_active).collect()
}

fn read(file: io::Result<File>, limit: u64) -> io::Result<Vec<u8>> {
    // A file of sysfs is read in one go where there is room for it.
    let mut bytes = Vec::with_capacity(READ_CAPACITY);
    file?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn name(folder: &Folder, model: UsbModel) -> io::Result<String> {
    let (maker, product) = (
        folder.optional_text("manufacturer")?,
        folder.optional_text("product")?,
    );
    Ok(match (maker, product) {
        (None, None) => format!("USB reader {:04x}:{:04x}", model.vendor, model.product),
        // Many a product's name begins with its maker's.
        (Some(maker), Some(product)) if !product.starts_with(&maker) => {
            format!("{maker} {product}")
        }
        (Some(maker), None) => format!("{maker} {:04x}", model.product),
        (_, Some(product)) => product,
    })
}

/// Parses arbitrary bytes as the name of a folder, for the fuzz target `usb_port`. A port name never leads out of the folder, and
/// stays the same when formatted.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let Some(port) = std::str::from_utf8(bytes).ok().and_then(PortPath::parse) else {
        return;
    };
    assert_eq!(PortPath::parse(&port.to_string()), Some(port.clone()));
    assert!(port.as_str().len() <= 64 && !port.as_str().contains(['/', ':']));
    let numbers = port.order();
    assert!((2..=1 + MAX_TIERS).contains(&numbers.len()), "{numbers:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_path_accepts_bus_and_port_numbers_only() {
        for name in ["1-1", "3-1.2", "12-1.2.3.4.5.6", "99999-99999"] {
            assert_eq!(
                PortPath::parse(name)
                    .map(|port| port.to_string())
                    .as_deref(),
                Some(name)
            );
        }
        for name in [
            "",
            "-",
            "1",
            "1-",
            "-1",
            "usb3",
            "3-0:1.0",
            "3-1:1.0",
            "3-1.",
            "3-.1",
            "3-1..2",
            "../3-1",
            "3-1/..",
            "3-1.2.3.4.5.6.7",
            "3-1.1.1.1.1.1.1.1/../x",
            "100000-1",
            "3-+1",
        ] {
            assert_eq!(PortPath::parse(name), None, "{name}");
        }
    }
}
