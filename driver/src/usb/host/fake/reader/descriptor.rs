//! The descriptors a reader of a given configuration has.

use super::{Level, ReaderConfig};
use crate::usb::host::transfer::EndpointAddress;

/// The device descriptor and its one configuration (USB 2.0, 9.6; CCID 1.1, 5.1).
pub(super) fn descriptors(config: &ReaderConfig) -> Vec<u8> {
    let mut all = device(config);
    let interface = interface(config);
    let total = u16::try_from(interface.len().saturating_add(9)).unwrap_or(u16::MAX);
    all.extend([9, 2]);
    all.extend(total.to_le_bytes());
    all.extend([1, 1, 0, 0x80, 50]);
    all.extend(interface);
    all
}

fn device(config: &ReaderConfig) -> Vec<u8> {
    let (vendor, product, version) = config.product;
    let mut bytes = vec![18, 1, 0x00, 0x02, 0, 0, 0, 64];
    for number in [vendor, product, version] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend([1, 2, 0, 1]);
    bytes
}

fn interface(config: &ReaderConfig) -> Vec<u8> {
    let layout = config.layout;
    let endpoints = if layout.interrupt.is_some() { 3 } else { 2 };
    let mut bytes = vec![9, 4, 0, 0, endpoints, config.class, 0, 0, 0];
    bytes.extend(class(config));
    for address in [layout.bulk_out, layout.bulk_in] {
        bytes.extend(endpoint(address, 2, layout.packet));
    }
    if let Some(address) = layout.interrupt {
        bytes.extend(endpoint(address, 3, layout.packet));
    }
    bytes
}

fn endpoint(address: EndpointAddress, attributes: u8, packet: usize) -> Vec<u8> {
    let mut bytes = vec![7, 5, address.0, attributes];
    bytes.extend(u16::try_from(packet).unwrap_or(u16::MAX).to_le_bytes());
    bytes.push(if attributes == 3 { 16 } else { 0 });
    bytes
}

fn class(config: &ReaderConfig) -> Vec<u8> {
    let level = match config.level {
        Level::Character => 0,
        Level::Tpdu => 0x0001_0000,
        Level::ShortApdu => 0x0002_0000,
        Level::ExtendedApdu => 0x0004_0000,
    };
    let mut bytes = vec![
        54,
        0x21,
        0x10,
        0x01,
        config.slots.saturating_sub(1),
        config.voltages,
    ];
    // dwProtocols, clocks and rates, dwMaxIFSD, dwSynchProtocols, dwMechanical, dwFeatures, the longest message.
    for number in [config.protocols, 4000, 4000] {
        bytes.extend(u32::to_le_bytes(number));
    }
    bytes.push(0);
    for number in [10_752, 344_086] {
        bytes.extend(u32::to_le_bytes(number));
    }
    bytes.push(0);
    for number in [
        config.max_ifsd,
        0,
        0,
        level | config.features,
        config.max_message,
    ] {
        bytes.extend(number.to_le_bytes());
    }
    // Class bytes of GET RESPONSE and ENVELOPE as in the command, no display, no PIN pad, one slot at a time.
    bytes.extend([0xFF, 0xFF, 0, 0, 0, 1]);
    bytes
}
