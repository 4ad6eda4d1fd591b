//! Finds the readers among the interfaces of a USB device. The input is the `descriptors` file of sysfs: the device
//! descriptor, then each configuration with its interfaces and endpoints (USB 2.0, 9.6).

use super::{
    descriptor::{ClassDescriptor, LENGTH, TYPE},
    quirks::UsbModel,
};

/// bDescriptorType of USB 2.0, table 9-5.
const DEVICE: u8 = 1;
const CONFIGURATION: u8 = 2;
const INTERFACE: u8 = 4;
const ENDPOINT: u8 = 5;
/// bInterfaceClass of smart-card readers, and the vendor-specific class that some readers have instead.
const SMART_CARD: u8 = 0x0B;
const VENDOR: u8 = 0xFF;
/// How many descriptors of a device are read. A real device has a few dozen.
const MOST: usize = 4096;

/// An endpoint of a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// bEndpointAddress, direction bit included.
    pub address: u8,
    /// The maximum packet size in bytes (wMaxPacketSize without its upper bits).
    pub packet: u16,
    /// bInterval.
    pub interval: u8,
}

/// How commands reach the reader (bInterfaceProtocol).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterfaceProtocol {
    /// Over the bulk endpoints (CCID).
    Bulk,
    /// Over the control endpoint (ICCD, version A).
    IccdA,
    /// Over the control endpoint (ICCD, version B).
    IccdB,
}

/// An interface that is a reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CcidInterface {
    /// bConfigurationValue of its configuration.
    pub configuration: u8,
    /// bInterfaceNumber.
    pub number: u8,
    /// bAlternateSetting.
    pub alternate: u8,
    /// How commands reach the reader.
    pub way: InterfaceProtocol,
    /// The bulk endpoint to the host.
    pub bulk_in: Option<Endpoint>,
    /// The bulk endpoint to the device.
    pub bulk_out: Option<Endpoint>,
    /// The interrupt endpoint, which reports insertions and removals.
    pub interrupt: Option<Endpoint>,
    /// The class descriptor.
    pub class: ClassDescriptor,
}

/// A device and its readers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CcidDevice {
    /// idVendor, idProduct, bcdDevice.
    pub model: UsbModel,
    /// The readers, in the order of their interfaces.
    pub readers: Vec<CcidInterface>,
}

/// The bytes are not the descriptors of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the descriptors do not begin with a device descriptor")]
pub struct NoDevice;

impl CcidDevice {
    /// Parses the descriptors of a device. An interface of vendor class counts as a reader if `is_vendor_reader`
    /// returns true for the model. Parsing ends at a malformed descriptor. Readers found before it stay.
    ///
    /// # Errors
    /// [`NoDevice`] if the bytes do not begin with a device descriptor.
    pub fn parse(
        bytes: &[u8],
        is_vendor_reader: impl Fn(UsbModel) -> bool,
    ) -> Result<Self, NoDevice> {
        let (device, rest) = next(bytes).ok_or(NoDevice)?;
        let model = model(device).ok_or(NoDevice)?;
        let vendor = is_vendor_reader(model);
        let mut parser = InterfaceParser::default();
        for descriptor in descriptors(rest) {
            parser.take(descriptor, vendor);
        }
        parser.finish_interface();
        Ok(Self {
            model,
            readers: parser.readers,
        })
    }
}

/// Splits off the first descriptor, by its stated length. Returns it and the rest.
fn next(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::from(*bytes.first()?);
    // A descriptor of length 0 would never end the loop.
    (length >= 2).then(|| bytes.split_at_checked(length))?
}

fn descriptors(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (descriptor, after) = next(rest)?;
        rest = after;
        Some(descriptor)
    })
    .take(MOST)
}

fn model(device: &[u8]) -> Option<UsbModel> {
    let [_, DEVICE, _, _, _, _, _, _, rest @ ..] = device else {
        return None;
    };
    let [v0, v1, p0, p1, r0, r1, ..] = rest else {
        return None;
    };
    Some(UsbModel {
        vendor: u16::from_le_bytes([*v0, *v1]),
        product: u16::from_le_bytes([*p0, *p1]),
        release: u16::from_le_bytes([*r0, *r1]),
    })
}

/// An interface whose descriptors are being parsed.
#[derive(Clone, Copy)]
struct PartialInterface {
    number: u8,
    alternate: u8,
    way: InterfaceProtocol,
}

/// The state of the parsing.
#[derive(Default)]
struct InterfaceParser {
    readers: Vec<CcidInterface>,
    configuration: u8,
    interface: Option<PartialInterface>,
    class: Option<ClassDescriptor>,
    endpoints: [Option<Endpoint>; 3],
    /// The addresses of all endpoints of the interface, one bit each.
    addresses: u32,
    /// Two endpoints have the same address, so the address does not identify an endpoint.
    is_ambiguous: bool,
}

/// Indexes of the endpoints in [`InterfaceParser`].
const BULK_IN: usize = 0;
const BULK_OUT: usize = 1;
const INTERRUPT: usize = 2;

impl InterfaceParser {
    fn take(&mut self, descriptor: &[u8], vendor: bool) {
        match descriptor {
            [_, CONFIGURATION, _, _, _, value, ..] => {
                self.finish_interface();
                self.configuration = *value;
            }
            [_, INTERFACE, rest @ ..] => {
                self.finish_interface();
                self.interface = partial_interface(rest, vendor);
            }
            [_, ENDPOINT, address, attributes, low, high, interval, ..] => {
                let endpoint = Endpoint {
                    address: *address,
                    packet: u16::from_le_bytes([*low, *high]) & 0x07FF,
                    interval: *interval,
                };
                self.take_endpoint(endpoint, attributes & 0x03);
            }
            // Readers put the class descriptor after the interface or after any of its endpoints.
            [_, TYPE, ..] if descriptor.len() >= LENGTH && self.class.is_none() => {
                self.class = ClassDescriptor::parse(descriptor).ok();
            }
            _ => {}
        }
    }

    fn take_endpoint(&mut self, endpoint: Endpoint, transfer_type: u8) {
        let is_in = endpoint.address & 0x80 != 0;
        let bit = 1 << (endpoint.address & 0x0F) << (u32::from(is_in) * 16);
        self.is_ambiguous |= self.addresses & bit != 0;
        self.addresses |= bit;
        let index = match (transfer_type, is_in) {
            (2, true) => BULK_IN,
            (2, false) => BULK_OUT,
            (3, true) => INTERRUPT,
            _ => return,
        };
        let usable = endpoint.packet > 0 && endpoint.address & 0x0F != 0;
        if let Some(free @ None) = self.endpoints.get_mut(index)
            && usable
        {
            *free = Some(endpoint);
        }
    }

    /// Ends the current interface. Adds it to the readers if it has all required descriptors.
    fn finish_interface(&mut self) {
        let [bulk_in, bulk_out, interrupt] = std::mem::take(&mut self.endpoints);
        self.addresses = 0;
        let is_ambiguous = std::mem::take(&mut self.is_ambiguous);
        let (interface, class) = (self.interface.take(), self.class.take());
        let (Some(interface), Some(class)) = (interface, class) else {
            return;
        };
        if is_ambiguous {
            return;
        }
        let has_bulk = bulk_in.is_some() && bulk_out.is_some();
        let (way, class) = match interface.way {
            // A reader with bulk endpoints uses them, even if bInterfaceProtocol names the control pipe (ActivCard
            // Reader V2).
            _ if has_bulk => (InterfaceProtocol::Bulk, class),
            InterfaceProtocol::Bulk => return,
            InterfaceProtocol::IccdA => (InterfaceProtocol::IccdA, class.given_short_apdus()),
            InterfaceProtocol::IccdB => (InterfaceProtocol::IccdB, class),
        };
        self.readers.push(CcidInterface {
            configuration: self.configuration,
            number: interface.number,
            alternate: interface.alternate,
            way,
            bulk_in,
            bulk_out,
            interrupt,
            class,
        });
    }
}

/// Returns the interface if it may be a reader. bInterfaceSubClass does not matter.
fn partial_interface(rest: &[u8], vendor: bool) -> Option<PartialInterface> {
    let [number, alternate, _, class, _, protocol, ..] = rest else {
        return None;
    };
    if *class != SMART_CARD && !(*class == VENDOR && vendor) {
        return None;
    }
    let way = match protocol {
        1 => InterfaceProtocol::IccdA,
        2 => InterfaceProtocol::IccdB,
        _ => InterfaceProtocol::Bulk,
    };
    Some(PartialInterface {
        number: *number,
        alternate: *alternate,
        way,
    })
}

/// Parses arbitrary bytes, for the fuzz target `ccid_configuration`.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let Ok(device) = CcidDevice::parse(bytes, |_| true) else {
        return;
    };
    for reader in &device.readers {
        let bulk = reader.bulk_in.zip(reader.bulk_out);
        assert!(
            bulk.is_some() || reader.way != InterfaceProtocol::Bulk,
            "a reader can be reached"
        );
        let all = [reader.bulk_in, reader.bulk_out, reader.interrupt];
        assert!(all.iter().flatten().all(|endpoint| endpoint.packet > 0));
        let addresses = all.map(|endpoint| endpoint.map(|endpoint| endpoint.address & 0x8F));
        for (index, address) in addresses.iter().enumerate() {
            let others = addresses.iter().skip(index + 1);
            assert!(
                address.is_none() || others.into_iter().all(|other| other != address),
                "an address is one endpoint"
            );
        }
    }
    let fewer = CcidDevice::parse(bytes, |_| false).map_or(0, |device| device.readers.len());
    assert!(fewer <= device.readers.len());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usb::host::fake::{FakeReader, reader::ReaderConfig};

    const CLASS_AT: usize = 18 + 9 + 9;

    fn descriptors_of(change: impl Fn(&mut ReaderConfig)) -> Vec<u8> {
        let mut config = ReaderConfig::extended();
        change(&mut config);
        FakeReader::new(config).descriptors()
    }

    fn readers(bytes: &[u8]) -> Vec<CcidInterface> {
        CcidDevice::parse(bytes, |_| false).unwrap().readers
    }

    #[test]
    fn a_reader_has_its_endpoints_and_its_class_descriptor() {
        let device = CcidDevice::parse(&descriptors_of(|_| {}), |_| false).unwrap();
        assert_eq!(
            (device.model.vendor, device.model.product),
            (0x1209, 0xC1A5)
        );
        let [reader] = &device.readers[..] else {
            panic!("{device:?}");
        };
        assert_eq!(
            (reader.configuration, reader.number, reader.way),
            (1, 0, InterfaceProtocol::Bulk)
        );
        let address = |endpoint: Option<Endpoint>| endpoint.map(|endpoint| endpoint.address);
        assert_eq!(address(reader.bulk_in), Some(0x82));
        assert_eq!(address(reader.bulk_out), Some(0x02));
        assert_eq!(address(reader.interrupt), Some(0x83));
        assert_eq!(reader.bulk_in.unwrap().packet, 64);
        assert_eq!(reader.class.max_message_length(), 3072);
    }

    #[test]
    fn interface_without_an_interrupt_endpoint_is_a_reader() {
        let all = readers(&descriptors_of(|config| config.layout.interrupt = None));
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].interrupt, None);
    }

    #[test]
    fn an_interface_with_two_endpoints_of_one_address_is_no_reader() {
        let bulk_in = CLASS_AT + LENGTH..;
        let whole = descriptors_of(|_| {});
        let address = |bytes: &[u8], number: usize| bytes[CLASS_AT + LENGTH + 7 * number + 2];
        let addresses = [0, 1, 2].map(|number| address(&whole, number));
        for again in addresses {
            // The second endpoint has any type, with or without a packet size.
            for (attributes, packet) in [(2, 64), (2, 0), (3, 8), (1, 64), (0, 0)] {
                let mut bytes = whole.clone();
                bytes.extend([7, 5, again, attributes, packet, 0, 0]);
                assert_eq!(readers(&bytes).len(), 0, "{again:02X} {attributes}");
                // The USB libraries use the first of the two.
                let second = bytes.split_off(whole.len());
                let end = bytes.split_off(bulk_in.start);
                bytes.extend(second);
                bytes.extend(end);
                assert_eq!(readers(&bytes).len(), 0, "{again:02X} {attributes}");
            }
        }
        let mut bytes = whole.clone();
        bytes.extend([7, 5, 0x84, 1, 64, 0, 0]);
        assert_eq!(readers(&bytes).len(), 1, "an endpoint of no use");
        // Another alternate setting may use the same addresses.
        let interface = whole[27..].to_vec();
        bytes.extend(interface);
        assert_eq!(readers(&bytes).len(), 2);
    }

    #[test]
    fn the_class_descriptor_may_stand_behind_the_last_endpoint() {
        let mut bytes = descriptors_of(|_| {});
        let class: Vec<u8> = bytes.drain(CLASS_AT..CLASS_AT + LENGTH).collect();
        bytes.extend(class);
        assert_eq!(readers(&bytes), readers(&descriptors_of(|_| {})));
    }

    #[test]
    fn vendor_class_interface_is_a_reader_only_if_the_table_lists_it() {
        let bytes = descriptors_of(|config| config.class = 0xFF);
        assert_eq!(readers(&bytes).len(), 0);
        let known = |model: UsbModel| model.vendor == 0x1209;
        assert_eq!(CcidDevice::parse(&bytes, known).unwrap().readers.len(), 1);
        let keyboard = descriptors_of(|config| config.class = 0x03);
        assert_eq!(
            CcidDevice::parse(&keyboard, known).unwrap().readers.len(),
            0
        );
    }

    #[test]
    fn other_interfaces_of_a_device_are_ignored() {
        let reader = descriptors_of(|_| {});
        let keyboard = [
            9, 4, 0, 0, 1, 3, 1, 1, 0, 9, 0x21, 0x11, 1, 0, 1, 0x22, 63, 0, 7, 5, 0x81, 3, 8, 0, 10,
        ];
        let mut bytes = reader[..27].to_vec();
        bytes.extend(keyboard);
        bytes.extend(&reader[27..]);
        assert_eq!(readers(&bytes), readers(&reader));
    }

    #[test]
    fn interface_without_bulk_endpoints_is_a_reader_only_with_a_control_protocol() {
        let mut bytes = descriptors_of(|_| {});
        bytes[27 + 7] = 1;
        assert_eq!(
            readers(&bytes)[0].way,
            InterfaceProtocol::Bulk,
            "it has the endpoints"
        );
        bytes[27 + 7] = 0;
        bytes.truncate(CLASS_AT + LENGTH);
        assert_eq!(readers(&bytes).len(), 0);
        for (protocol, way) in [(1, InterfaceProtocol::IccdA), (2, InterfaceProtocol::IccdB)] {
            bytes[27 + 7] = protocol;
            assert_eq!(readers(&bytes)[0].way, way);
        }
    }

    #[test]
    fn descriptor_of_impossible_length_ends_the_parsing() {
        let whole = descriptors_of(|_| {});
        for length in [0, 1, 255] {
            let mut bytes = whole.clone();
            bytes[18 + 9] = length;
            assert_eq!(readers(&bytes).len(), 0, "{length}");
        }
        // The readers before the malformed descriptor stay.
        let mut bytes = whole.clone();
        bytes.push(0);
        assert_eq!(readers(&bytes), readers(&whole));
    }

    #[test]
    fn descriptors_of_no_device_are_refused() {
        for bytes in [
            &[][..],
            &[0],
            &[18],
            &[9, 2, 0, 0, 0, 0, 0, 0, 0],
            &[4, 1, 0, 2],
        ] {
            assert_eq!(CcidDevice::parse(bytes, |_| false), Err(NoDevice));
        }
    }

    #[test]
    fn every_truncation_and_bit_flip_is_survived() {
        let whole = descriptors_of(|_| {});
        for len in 0..whole.len() {
            fuzz(&whole[..len]);
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fuzz(&flipped);
        }
    }
}
