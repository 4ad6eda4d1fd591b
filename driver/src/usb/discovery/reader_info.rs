//! The description of a reader, from its descriptors: its identity and its command channel.

use std::{path::PathBuf, sync::Arc};

use super::sysfs::{PortPath, UsbDevice};
use crate::{
    ccid::{
        budget,
        configuration::{self, CcidInterface},
        descriptor::ClassDescriptor,
        iccd::Version,
        quirks::{self, Quirks},
    },
    reader::ReaderId,
    usb::{host::transfer::EndpointAddress, pipe::DeviceShared},
};

/// Identifies one CCID slot of a reader, within one device instance.
#[derive(Clone, Debug)]
pub(crate) struct ReaderInfo {
    /// Name within the process.
    pub(crate) id: ReaderId,
    /// Name among processes, which all slots share.
    pub(crate) lock_name: String,
    /// The port of the device.
    pub(crate) port: PortPath,
    /// The model, which does not depend on the port.
    pub(crate) model: String,
    /// The device instance.
    pub(crate) instance: String,
    /// The device's node.
    pub(crate) node: PathBuf,
    /// Name, interface number and descriptors.
    pub(crate) interface: ReaderInterface,
    /// The CCID slot.
    pub(crate) slot: u8,
    /// State shared by all readers of the device.
    pub(crate) device: Arc<DeviceShared>,
    /// The interrupt endpoint and its packet size.
    pub(crate) interrupt: Option<(EndpointAddress, usize)>,
    /// The card cannot be removed.
    pub(crate) is_fixed: bool,
}

impl ReaderInfo {
    /// Returns whether this is the same slot within the same device instance.
    pub(crate) fn is_same_instance(&self, other: &Self) -> bool {
        self.lock_name == other.lock_name
            && self.instance == other.instance
            && self.slot == other.slot
    }
}

/// The name of a reader, and how its device carries its commands.
#[derive(Clone, Debug)]
pub(crate) struct ReaderInterface {
    /// Name for a person.
    pub(crate) name: String,
    /// bInterfaceNumber.
    pub(crate) number: u8,
    /// The channel of the commands.
    pub(crate) channel: CommandChannel,
    /// The class descriptor.
    pub(crate) class: ClassDescriptor,
    /// The quirks of the model.
    pub(crate) quirks: Quirks,
}

/// The channel of the commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommandChannel {
    /// Over bulk endpoints.
    Bulk {
        /// To the host.
        bulk_in: EndpointAddress,
        /// To the device.
        bulk_out: EndpointAddress,
        /// wMaxPacketSize of `bulk_in`.
        packet: usize,
    },
    /// Over the control pipe.
    Control(Version),
}

/// The backend's name, in the configuration and in [`ReaderId`].
pub(crate) const NAME: &str = "usb";

/// The readers of a device that can be driven, each with its slots.
pub(crate) fn readers_of(device: &UsbDevice) -> Vec<Vec<ReaderInfo>> {
    let several = device.readers.len() > 1;
    let common = Arc::new(DeviceShared::with_quirks(quirks::for_model(device.model)));
    let driven = device.readers.iter().filter_map(|reader| {
        let slots = slot_infos(device, reader, several, &common);
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

/// Returns the slots of a reader. The interface number distinguishes `several` readers of a device.
fn slot_infos(
    device: &UsbDevice,
    reader: &CcidInterface,
    several: bool,
    common: &Arc<DeviceShared>,
) -> Option<Vec<ReaderInfo>> {
    let whole = reader_info(device, reader, several, common)?;
    let count = reader.class.slots().min(budget::SLOTS);
    if count < 2 || matches!(whole.interface.channel, CommandChannel::Control(_)) {
        return Some(vec![whole]);
    }
    let slot = |slot: u8| {
        let mut info = whole.clone();
        let id = format!("{}:{}:{slot}", device.port, reader.number);
        info.id = ReaderId::new(NAME, &id);
        info.slot = slot;
        // People count from one.
        info.interface.name = format!("{} [slot {}]", whole.interface.name, slot.saturating_add(1));
        info.model = format!("{} slot {slot}", whole.model);
        info
    };
    Some((0..count).map(slot).collect())
}

/// The reader, as if it had one slot.
fn reader_info(
    device: &UsbDevice,
    reader: &CcidInterface,
    several: bool,
    common: &Arc<DeviceShared>,
) -> Option<ReaderInfo> {
    let way = command_channel(reader)?;
    let quirks = quirks::for_model(device.model);
    let watched = format!("{}.{}", device.port, reader.number);
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
    Some(ReaderInfo {
        id: ReaderId::new(NAME, &id),
        lock_name: watched,
        port: device.port.clone(),
        model: format!("{} {:?} {:?}", name, device.model, device.serial),
        instance: device.instance.to_string(),
        node: device.node.clone(),
        interface: ReaderInterface {
            name,
            number: reader.number,
            channel: way,
            class: reader.class.clone(),
            quirks,
        },
        slot: 0,
        device: Arc::clone(common),
        interrupt,
        // A token that does not report insertions always has its card.
        is_fixed: quirks.card_fixed
            || matches!(way, CommandChannel::Control(_)) && reader.interrupt.is_none(),
    })
}

fn command_channel(reader: &CcidInterface) -> Option<CommandChannel> {
    Some(match reader.way {
        configuration::InterfaceProtocol::Bulk => {
            let (bulk_in, bulk_out) = (reader.bulk_in?, reader.bulk_out?);
            CommandChannel::Bulk {
                bulk_in: EndpointAddress(bulk_in.address),
                bulk_out: EndpointAddress(bulk_out.address),
                packet: usize::from(bulk_in.packet),
            }
        }
        configuration::InterfaceProtocol::IccdA => CommandChannel::Control(Version::A),
        configuration::InterfaceProtocol::IccdB => CommandChannel::Control(Version::B),
    })
}
