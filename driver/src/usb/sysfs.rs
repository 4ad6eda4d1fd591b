//! The devices on the USB that are readers, as sysfs shows them.

use std::{
    ffi::OsStr,
    fmt,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::ccid::{
    configuration::{CcidInterface, Device},
    quirks::{self, Model},
};

/// Devices a bus may have; USB allows 127.
const DEVICES: usize = 4096;
/// Descriptors of one device; a real one has some hundred bytes.
const DESCRIPTORS: u64 = 1 << 16;
/// Bytes of an attribute; sysfs gives a page at most.
const ATTRIBUTE: u64 = 512;
/// Characters of a name.
const NAME: usize = 96;

/// A device's place on the bus: the controller, and the ports on the way (`3-1.2`).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Port(Arc<str>);

impl Port {
    /// A name as sysfs gives it to devices; root hubs and interfaces have others.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let is_number = |part: &str| {
            (1..=5).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
        };
        let (bus, ports) = name.split_once('-')?;
        // Six hubs in a row are the limit (USB 2.0, 4.1.1).
        let mut ports_are_numbers = ports.split('.').take(8).map(is_number);
        (is_number(bus) && name.len() <= 64 && ports_are_numbers.all(|number| number))
            .then(|| Self(name.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// In which order ports are shown.
    fn order(&self) -> Vec<u32> {
        let numbers = self.0.split(['-', '.']);
        numbers.filter_map(|number| number.parse().ok()).collect()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Port({self})")
    }
}

/// One plugging in of a device. Addresses are used again; the folder in sysfs is made anew each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    folder: u64,
    bus: u16,
    address: u16,
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}-{}", self.folder, self.bus, self.address)
    }
}

/// A device with at least one reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it is.
    pub port: Port,
    /// Since when.
    pub life: Life,
    /// Its node.
    pub node: PathBuf,
    /// idVendor, idProduct, bcdDevice.
    pub model: Model,
    /// Maker and product for a person, as the device tells them, without what could harm a terminal.
    pub name: String,
    /// What it calls its serial number. Devices lie about it.
    pub serial: Option<String>,
    /// The readers of its active configuration.
    pub readers: Vec<CcidInterface>,
}

/// Where devices are listed, and where their nodes are.
#[derive(Clone, Debug)]
pub struct Bus {
    devices: PathBuf,
    nodes: PathBuf,
    is_real: bool,
}

impl Bus {
    /// That of this machine.
    #[must_use]
    pub fn system() -> Self {
        Self {
            is_real: true,
            ..Self::new("/sys/bus/usb/devices", "/dev/bus/usb")
        }
    }

    /// One elsewhere, for a test.
    #[must_use]
    pub fn new(devices: impl Into<PathBuf>, nodes: impl Into<PathBuf>) -> Self {
        Self {
            devices: devices.into(),
            nodes: nodes.into(),
            is_real: false,
        }
    }

    /// Whether the kernel tells of its devices.
    pub(super) const fn is_real(&self) -> bool {
        self.is_real
    }

    /// The folder of the nodes.
    #[must_use]
    pub fn nodes(&self) -> &Path {
        &self.nodes
    }

    /// All devices that are readers, by port. One that leaves meanwhile is left out. A machine without USB has none.
    ///
    /// # Errors
    /// [`io::Error`] when the devices cannot be listed.
    pub fn list(&self) -> io::Result<Vec<Found>> {
        let entries = match fs::read_dir(&self.devices) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let names = entries
            .take(DEVICES)
            .flatten()
            .map(|entry| entry.file_name());
        let ports = names.filter_map(|name: std::ffi::OsString| Port::parse(name.to_str()?));
        let mut found: Vec<Found> = ports.filter_map(|port| self.find(port)).collect();
        found.sort_by_cached_key(|device| device.port.order());
        Ok(found)
    }

    /// The device in `port`, if it is a reader.
    fn find(&self, port: Port) -> Option<Found> {
        let folder = self.devices.join(port.as_str());
        let inode = || fs::metadata(&folder).ok().map(|folder| folder.ino());
        let before = inode()?;
        let device = Device::parse(&read(&folder.join("descriptors"), DESCRIPTORS)?, |model| {
            quirks::of(model).vendor_class
        })
        .ok()?;
        let number = |name: &str| -> Option<u16> { text(&folder, name)?.parse().ok() };
        let (bus, address) = (number("busnum")?, number("devnum")?);
        // None while it is not configured; its interfaces are announced then.
        let configuration = number("bConfigurationValue")?;
        let found = Found {
            life: Life {
                folder: before,
                bus,
                address,
            },
            node: self
                .nodes
                .join(format!("{bus:03}"))
                .join(format!("{address:03}")),
            model: device.model,
            name: name(&folder, device.model),
            serial: text(&folder, "serial").filter(|serial| !serial.is_empty()),
            readers: active(device.readers, configuration),
            port,
        };
        // What was read belongs to one device only if none took its place meanwhile.
        (!found.readers.is_empty() && inode() == Some(before)).then_some(found)
    }
}

/// The readers of a configuration, each in its first alternate setting.
fn active(readers: Vec<CcidInterface>, configuration: u16) -> Vec<CcidInterface> {
    let is_active = |reader: &CcidInterface| {
        u16::from(reader.configuration) == configuration && reader.alternate == 0
    };
    readers.into_iter().filter(is_active).collect()
}

fn read(path: &Path, limit: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .ok()?
        .take(limit)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(bytes)
}

/// An attribute for a person, which the device may have chosen.
fn text(folder: &Path, name: impl AsRef<OsStr>) -> Option<String> {
    let bytes = read(&folder.join(name.as_ref()), ATTRIBUTE)?;
    let text = String::from_utf8_lossy(&bytes);
    let shown = text.trim().chars().filter(|one| !one.is_control());
    Some(shown.take(NAME).collect())
}

fn name(folder: &Path, model: Model) -> String {
    let told = |name| text(folder, name).filter(|text| !text.is_empty());
    let (maker, product) = (told("manufacturer"), told("product"));
    match (maker, product) {
        (None, None) => format!("USB reader {:04x}:{:04x}", model.vendor, model.product),
        // Many a product's name begins with its maker's.
        (Some(maker), Some(product)) if !product.starts_with(&maker) => {
            format!("{maker} {product}")
        }
        (Some(maker), None) => format!("{maker} {:04x}", model.product),
        (_, Some(product)) => product,
    }
}
