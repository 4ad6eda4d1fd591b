//! A bus of fake readers: folders like sysfs, files for the nodes, and devices that open through them.

use std::{
    collections::{HashMap, HashSet},
    fmt, fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering},
    },
    time::Duration,
};

use claviger_apdu::{Call, ResponseBuffer, Transport, TransportError};

use super::command;
use crate::{
    backend::{Backend, Watch},
    reader::{Presence, ReaderId, ReaderSnapshot, ReaderState},
    usb::{
        backend::{UsbBackend, UsbOptions},
        claim::DeviceOpener,
        discovery::{reader_info::ReaderInfo, sysfs::UsbBus},
        host::{
            fake::{FakeReader, reader::ReaderConfig},
            open::{OpenedInterface, UsbLibrary},
            transfer::OpenError,
        },
    },
};

/// The timeout of an action that succeeds.
pub(super) const STEP_TIMEOUT: Duration = Duration::from_secs(30);

/// A token: its model is in the table of readers.
pub(super) fn token() -> ReaderConfig {
    ReaderConfig {
        product: (0x20A0, 0x42B2, 0x0100),
        ..ReaderConfig::extended()
    }
}

/// A reader cards are put into, which does not power them by itself.
pub(super) fn reader() -> ReaderConfig {
    ReaderConfig {
        features: 0x0000_00BA,
        ..ReaderConfig::extended()
    }
}

/// The readers that are plugged in, by their nodes.
type DevicesByNode = Arc<Mutex<HashMap<PathBuf, FakeReader>>>;

/// A machine with a bus, removed when dropped.
pub(super) struct FakeMachine {
    root: PathBuf,
    devices: DevicesByNode,
    /// Locked for as long as opening a device is to take.
    opening: Arc<Mutex<()>>,
    blocked: Arc<BlockedNodes>,
    address: AtomicU16,
    /// How often a device was tried.
    open_attempts: Arc<AtomicUsize>,
    /// How often the owner of a device was searched for.
    owner_searches: Arc<AtomicUsize>,
}

impl FakeMachine {
    pub(super) fn new(test: &str) -> Self {
        let root = std::env::temp_dir().join(format!("{}-usb.{test}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("sys")).unwrap();
        fs::create_dir_all(root.join("dev/003")).unwrap();
        Self {
            root,
            devices: DevicesByNode::default(),
            opening: Arc::default(),
            blocked: Arc::default(),
            address: AtomicU16::new(1),
            open_attempts: Arc::default(),
            owner_searches: Arc::default(),
        }
    }

    /// Puts a reader into a port, under a new address.
    pub(super) fn plug(&self, port: &str, reader: &FakeReader, config: &ReaderConfig) {
        let address = self.address.fetch_add(1, Ordering::SeqCst);
        self.plug_at(port, address, reader, config);
    }

    pub(super) fn plug_at(
        &self,
        port: &str,
        address: u16,
        reader: &FakeReader,
        config: &ReaderConfig,
    ) {
        let folder = self.root.join("sys").join(port);
        fs::create_dir_all(&folder).unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).unwrap();
        write("descriptors", &reader.descriptors());
        write("devnum", format!("{address}\n").as_bytes());
        write("bConfigurationValue", b"1\n");
        write("manufacturer", b"Maker\n");
        write(
            "product",
            format!("Key {:04x}\n", config.product.1).as_bytes(),
        );
        let node = self.node(address);
        self.devices
            .lock()
            .unwrap()
            .insert(node.clone(), reader.clone());
        fs::write(node, []).unwrap();
    }

    fn node(&self, address: u16) -> PathBuf {
        self.root.join(format!("dev/003/{address:03}"))
    }

    /// Takes the reader out of a port.
    pub(super) fn unplug(&self, port: &str) {
        let folder = self.root.join("sys").join(port);
        let address = fs::read_to_string(folder.join("devnum")).unwrap();
        let node = self.node(address.trim().parse().unwrap());
        if let Some(reader) = self.devices.lock().unwrap().remove(&node) {
            reader.device().leave();
        }
        fs::remove_dir_all(folder).unwrap();
        fs::remove_file(node).unwrap();
    }

    /// Has pcscd leave the next device in a port to us, as a rule of udev's would.
    pub(super) fn mark(&self, port: &str) {
        let folder = self.root.join("sys").join(port);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("dev"), b"189:258\n").unwrap();
        fs::create_dir_all(self.root.join("udev")).unwrap();
        let data = "I:8411312\nE:ID_MODEL=Key\nE:PCSCLITE_IGNORE=1\nV:1\n";
        fs::write(self.root.join("udev/c189:258"), data).unwrap();
    }

    /// A program with the driver: another of them is another process, as far as locks are concerned.
    pub(super) fn new_backend(&self) -> UsbBackend {
        self.new_backend_on(self.bus())
    }

    pub(super) fn bus(&self) -> UsbBus {
        UsbBus::new(self.root.join("sys"), self.root.join("dev")).with_udev(self.root.join("udev"))
    }

    /// A program without threads. The readers are followed only by a thread that waits for events.
    pub(super) fn new_backend_without_threads(&self) -> UsbBackend {
        self.new_backend_without_threads_on(self.bus())
    }

    /// The same, which learns of this bus as `bus` has it.
    pub(super) fn new_backend_without_threads_on(&self, bus: UsbBus) -> UsbBackend {
        self.new_backend_as(bus, false)
    }

    /// A program that learns of this bus as `bus` has it.
    pub(super) fn new_backend_on(&self, bus: UsbBus) -> UsbBackend {
        self.new_backend_as(bus, true)
    }

    /// A program that finds no folder for locks, and learns of this bus as `bus` has it.
    pub(super) fn new_backend_without_locks(&self, bus: UsbBus) -> UsbBackend {
        self.new_backend_with(bus, true, Vec::new())
    }

    fn new_backend_as(&self, bus: UsbBus, is_followed: bool) -> UsbBackend {
        self.new_backend_with(bus, is_followed, vec![self.root.join("locks")])
    }

    fn new_backend_with(&self, bus: UsbBus, is_followed: bool, locks: Vec<PathBuf>) -> UsbBackend {
        let opener = FakeOpener {
            devices: Arc::clone(&self.devices),
            opening: Arc::clone(&self.opening),
            blocked: Arc::clone(&self.blocked),
            open_attempts: Arc::clone(&self.open_attempts),
            owner_searches: Arc::clone(&self.owner_searches),
        };
        let options = UsbOptions {
            library: UsbLibrary::default(),
            has_watch_thread: is_followed,
            lock_folders: locks,
        };
        UsbBackend::with_bus(bus, Box::new(opener), &options)
    }

    /// Returns how often a device was tried to be opened.
    pub(super) fn open_attempts(&self) -> usize {
        self.open_attempts.load(Ordering::SeqCst)
    }

    /// Returns how often the owner of a device was searched for.
    pub(super) fn owner_searches(&self) -> usize {
        self.owner_searches.load(Ordering::SeqCst)
    }

    /// Makes every opening of a device wait until the value is dropped.
    pub(super) fn block_opening(&self) -> MutexGuard<'_, ()> {
        self.opening.lock().unwrap()
    }

    /// Blocks the opening of the device with this address until the value is dropped.
    pub(super) fn block_opening_of(&self, address: u16) -> BlockedOpening {
        let node = self.node(address);
        self.blocked.nodes().insert(node.clone());
        BlockedOpening {
            blocked: Arc::clone(&self.blocked),
            node,
        }
    }

    /// Makes every opening of a device panic from now on.
    pub(super) fn panic_when_opened(&self) {
        self.blocked.panics.store(true, Ordering::SeqCst);
    }

    /// The largest number of threads that waited at the same time for blocked openings.
    pub(super) fn most_blocked(&self) -> usize {
        self.blocked.most.load(Ordering::SeqCst)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.root
    }
}

impl Drop for FakeMachine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// The devices whose opening is blocked, by their nodes.
#[derive(Default)]
struct BlockedNodes {
    nodes: Mutex<HashSet<PathBuf>>,
    unblocked: Condvar,
    waiting: AtomicUsize,
    most: AtomicUsize,
    panics: AtomicBool,
}

impl BlockedNodes {
    fn nodes(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.nodes.lock().unwrap()
    }

    fn wait(&self, node: &Path) {
        assert!(!self.panics.load(Ordering::SeqCst), "as told");
        let nodes = self.nodes();
        let waiting = self.waiting.fetch_add(1, Ordering::SeqCst) + 1;
        if nodes.contains(node) {
            self.most.fetch_max(waiting, Ordering::SeqCst);
        }
        let is_blocked = |nodes: &mut HashSet<PathBuf>| nodes.contains(node);
        drop(self.unblocked.wait_while(nodes, is_blocked).unwrap());
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// See [`FakeMachine::block_opening_of`].
pub(super) struct BlockedOpening {
    blocked: Arc<BlockedNodes>,
    node: PathBuf,
}

impl Drop for BlockedOpening {
    fn drop(&mut self) {
        self.blocked.nodes().remove(&self.node);
        self.blocked.unblocked.notify_all();
    }
}

/// Opens devices by their nodes, if the file is not without rights.
struct FakeOpener {
    devices: DevicesByNode,
    opening: Arc<Mutex<()>>,
    blocked: Arc<BlockedNodes>,
    open_attempts: Arc<AtomicUsize>,
    owner_searches: Arc<AtomicUsize>,
}

impl fmt::Debug for FakeOpener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeOpener")
    }
}

impl DeviceOpener for FakeOpener {
    fn open(&self, info: &ReaderInfo) -> Result<OpenedInterface, OpenError> {
        self.open_attempts.fetch_add(1, Ordering::SeqCst);
        let node = fs::metadata(&info.node).map_err(|_| OpenError::Disconnected)?;
        if std::os::unix::fs::PermissionsExt::mode(&node.permissions()) & 0o777 == 0 {
            return Err(OpenError::Denied("no rights".to_owned()));
        }
        let devices = self.devices.lock().unwrap();
        let reader = devices
            .get(&info.node)
            .ok_or(OpenError::Disconnected)?
            .clone();
        drop(devices);
        drop(self.opening.lock().unwrap());
        self.blocked.wait(&info.node);
        let interface = reader.device().claim()?;
        Ok(OpenedInterface {
            interface,
            last_transfer: self.last_transfer(&info.node),
        })
    }

    fn last_transfer(&self, node: &Path) -> Option<u64> {
        let devices = self.devices.lock().unwrap();
        devices
            .get(node)
            .map(|reader| reader.device().transfer_count())
    }

    fn owner(&self, _info: &ReaderInfo) -> Option<String> {
        self.owner_searches.fetch_add(1, Ordering::SeqCst);
        None
    }
}

pub(super) fn id(port: &str) -> ReaderId {
    ReaderId::new("usb", port)
}

/// Returns the current readers.
pub(super) fn take_snapshot(watch: &mut dyn Watch) -> ReaderSnapshot {
    watch.snapshot(Call::within(STEP_TIMEOUT))
}

/// Returns the single reader of a snapshot.
#[track_caller]
pub(super) fn single_reader(readers: &ReaderSnapshot) -> &ReaderState {
    match readers.readers.as_slice() {
        [only] => only,
        other => panic!("one reader expected: {other:?}, {:?}", readers.error),
    }
}

pub(super) fn holds_card(state: &ReaderState) -> bool {
    matches!(state.presence, Presence::Card(_))
}

/// A connection that must work.
#[track_caller]
pub(super) fn connect(program: &UsbBackend, port: &str) -> Box<dyn Transport> {
    let connected = program.connect(&id(port), Call::within(STEP_TIMEOUT));
    connected.unwrap()
}

/// Sends a command whose data is its response.
pub(super) fn echo(card: &mut dyn Transport, data: &[u8]) -> Result<Vec<u8>, TransportError> {
    echo_within(card, data, STEP_TIMEOUT)
}

/// The same, within so long.
pub(super) fn echo_within(
    card: &mut dyn Transport,
    data: &[u8],
    limit: Duration,
) -> Result<Vec<u8>, TransportError> {
    let mut response = ResponseBuffer::new();
    card.transmit(&command(data), &mut response, Call::within(limit))?;
    Ok(response.frame().to_vec())
}
