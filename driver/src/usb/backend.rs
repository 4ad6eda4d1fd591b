//! The readers on the USB, without pcscd.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use claviger_apdu::{Call, Transport, TransportError, TransportErrorKind};

use super::{
    claim::{Means, Opener, Site},
    command_pipe::Common,
    connection::{Ends, UsbConnection},
    gate::Gate,
    lock::Locks,
    open::Stack,
    signal::Signal,
    station::Station,
    sysfs::{Bus, Found},
    transfer::EndpointAddress,
    transport::{ReaderInterface, Way},
    watch::UsbWatch,
};
use crate::{
    backend::{Backend, Wake as _, Watch},
    ccid::{
        budget,
        configuration::{self, CcidInterface},
        iccd::Version,
        quirks,
    },
    reader::ReaderId,
};

/// The backend's name, in the configuration and in [`ReaderId`].
const NAME: &str = "usb";
/// How long all that is left may take when the backend is wound up.
const LAST: Duration = Duration::from_secs(1);

/// How the readers are reached.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who moves the transfers. Under CKF_LIBRARY_CANT_CREATE_OS_THREADS and after a fork: [`Stack::Rusb`].
    pub stack: Stack,
    /// Whether a thread follows the watch all the time, and [`Watch::demand`] says whether cards are watched; else they are
    /// while somebody is in [`Watch::next`].
    pub is_followed: bool,
    /// Where locks may be kept, the best place first; each is made if its parent is there. See `docs/raw-usb.md`.
    pub locks: Vec<PathBuf>,
}

/// The readers on the USB.
#[derive(Debug)]
pub struct UsbBackend {
    bus: Bus,
    means: Arc<Means>,
    registry: Arc<Registry>,
    ends: Arc<Ends>,
    is_followed: bool,
    gate: Option<Arc<Gate>>,
}

impl UsbBackend {
    /// Asks nothing of any device yet.
    #[must_use]
    pub fn new(options: &Options) -> Self {
        Self::over(Bus::system(), Box::new(options.stack), options)
    }

    pub(super) fn over(bus: Bus, opener: Box<dyn Opener>, options: &Options) -> Self {
        Self {
            means: Arc::new(Means {
                bus: bus.clone(),
                opener,
                locks: Locks::in_first_of(&options.locks),
                is_followed: options.is_followed,
                stir: Signal::new().ok(),
            }),
            bus,
            registry: Arc::default(),
            ends: Arc::default(),
            is_followed: options.is_followed,
            gate: None,
        }
    }

    /// Shows and touches only the readers that `gate` says are ours; else all are.
    #[must_use]
    pub fn behind(self, gate: Arc<Gate>) -> Self {
        Self {
            gate: Some(gate),
            ..self
        }
    }
}

impl Backend for UsbBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn watch(&self) -> Box<dyn Watch> {
        Box::new(UsbWatch::new(
            self.bus.clone(),
            Arc::clone(&self.means),
            Arc::clone(&self.registry),
            self.gate.clone(),
            self.is_followed,
        ))
    }

    fn connect(&self, reader: &ReaderId, call: Call) -> Result<Box<dyn Transport>, TransportError> {
        if self.ends.stop.is_set() {
            let what = format!("{reader}: the module is being finalised");
            let kind = TransportErrorKind::Cancelled;
            return Err(TransportError::before_card(kind, what));
        }
        let Some(station) = self.registry.station(reader) else {
            let what = format!("{reader}: no such reader on the USB");
            let kind = TransportErrorKind::NoReader;
            return Err(TransportError::before_card(kind, what));
        };
        let connection = UsbConnection::connect(station, &self.ends, call)?;
        Ok(Box::new(connection))
    }

    fn cut(&self) {
        let _ = self.ends.last.set(Instant::now());
        self.ends.stop.stop();
    }

    fn wind_up(&self) {
        let _ = self.ends.last.set(Instant::now() + LAST);
    }
}

/// The readers the watch saw last.
#[derive(Debug, Default)]
pub(super) struct Registry(Mutex<Vec<Arc<Station>>>);

impl Registry {
    fn stations(&self) -> MutexGuard<'_, Vec<Arc<Station>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, stations: Vec<Arc<Station>>) {
        *self.stations() = stations;
    }

    fn station(&self, id: &ReaderId) -> Option<Arc<Station>> {
        let stations = self.stations();
        stations
            .iter()
            .find(|station| station.site.id == *id)
            .cloned()
    }
}

/// The readers of a device that can be driven, each with its slots.
pub(super) fn sites(device: &Found) -> Vec<Vec<Site>> {
    let several = device.readers.len() > 1;
    let common = Arc::new(Common::of(quirks::of(device.model)));
    let driven = device.readers.iter().filter_map(|reader| {
        let slots = slots(device, reader, several, &common);
        if slots.is_none() {
            tracing::debug!(
                "usb: interface {} of the device in port {} is not driven",
                reader.number,
                device.port
            );
        }
        slots
    });
    driven.collect()
}

/// The slots of a reader; `several` readers of the device are told apart by their interfaces.
fn slots(
    device: &Found,
    reader: &CcidInterface,
    several: bool,
    common: &Arc<Common>,
) -> Option<Vec<Site>> {
    let whole = site(device, reader, several, common)?;
    let count = reader.class.slots().min(budget::SLOTS);
    if count < 2 || matches!(whole.interface.way, Way::Control(_)) {
        return Some(vec![whole]);
    }
    let slot = |slot: u8| {
        let mut site = whole.clone();
        let id = format!("{}:{}:{slot}", device.port, reader.number);
        site.id = ReaderId::new(NAME, &id);
        site.slot = slot;
        // People count from one.
        site.interface.name = format!("{} [slot {}]", whole.interface.name, slot.saturating_add(1));
        site.model = format!("{} slot {slot}", whole.model);
        site
    };
    Some((0..count).map(slot).collect())
}

/// The reader, as if it had one slot.
fn site(
    device: &Found,
    reader: &CcidInterface,
    several: bool,
    common: &Arc<Common>,
) -> Option<Site> {
    let way = way(reader)?;
    let quirks = quirks::of(device.model);
    let place = format!("{}.{}", device.port, reader.number);
    let (id, name) = if several {
        let name = format!("{} [{}]", device.name, reader.number);
        (format!("{}:{}", device.port, reader.number), name)
    } else {
        (device.port.to_string(), device.name.clone())
    };
    let interrupt = reader.interrupt.map(|endpoint| {
        let address = EndpointAddress(endpoint.address);
        (address, usize::from(endpoint.packet))
    });
    Some(Site {
        id: ReaderId::new(NAME, &id),
        place,
        port: device.port.clone(),
        model: format!("{} {:?} {:?}", name, device.model, device.serial),
        life: device.life.to_string(),
        node: device.node.clone(),
        interface: ReaderInterface {
            name,
            number: reader.number,
            way,
            class: reader.class.clone(),
            quirks,
        },
        slot: 0,
        common: Arc::clone(common),
        interrupt,
        // A token that never tells of its card is never without it.
        is_fixed: quirks.card_fixed || matches!(way, Way::Control(_)) && reader.interrupt.is_none(),
    })
}

fn way(reader: &CcidInterface) -> Option<Way> {
    Some(match reader.way {
        configuration::Way::Bulk => {
            let (bulk_in, bulk_out) = (reader.bulk_in?, reader.bulk_out?);
            Way::Bulk {
                bulk_in: EndpointAddress(bulk_in.address),
                bulk_out: EndpointAddress(bulk_out.address),
                packet: usize::from(bulk_in.packet),
            }
        }
        configuration::Way::ControlA => Way::Control(Version::A),
        configuration::Way::ControlB => Way::Control(Version::B),
    })
}
