//! Opens the command pipe of a claimed reader.

use std::sync::Arc;

use claviger_apdu::{TransportError, TransportErrorKind};

use crate::usb::{
    discovery::reader_info::{CommandChannel, ReaderInterface},
    host::transfer::{TransferError, UsbInterface},
    pipe::{
        CommandPipe, DeviceShared,
        bulk::{BulkEndpoints, BulkPipe, ConcurrentBulkPipe},
        control::ControlPipe,
    },
};

/// Opens the command pipe of a claimed reader. Sequence numbers follow `first`.
///
/// # Errors
/// NoReader when it has left, Protocol when its endpoints cannot be had.
pub(crate) fn open_pipe(
    interface: Arc<dyn UsbInterface>,
    reader: &ReaderInterface,
    device: &Arc<DeviceShared>,
    first: u8,
) -> Result<Arc<CommandPipe>, TransportError> {
    let device = Arc::clone(device);
    let pipe = match reader.channel {
        CommandChannel::Control(version) => {
            let iccd = ControlPipe::new(interface, reader.number, version);
            CommandPipe::new(iccd, device)
        }
        CommandChannel::Bulk {
            bulk_in,
            bulk_out,
            packet,
        } => {
            let endpoints = BulkEndpoints {
                bulk_in,
                bulk_out,
                packet,
            };
            let bulk = open_bulk_pipe((interface, reader), endpoints, device, first);
            bulk.map_err(|error| unusable(reader, error))?
        }
    };
    Ok(Arc::new(pipe))
}

/// Opens the bulk pipe, for one command at a time or for one in each slot.
fn open_bulk_pipe(
    (interface, reader): (Arc<dyn UsbInterface>, &ReaderInterface),
    endpoints: BulkEndpoints,
    device: Arc<DeviceShared>,
    first: u8,
) -> Result<CommandPipe, TransferError> {
    let longest = reader.class.max_message_length();
    let busy = usize::from(reader.class.busy_slots());
    if busy > 1 {
        let bulk = ConcurrentBulkPipe::new(interface, reader.number, endpoints, longest)?;
        let bulk = bulk.after(first).with_omits_zlp(device.omits_zlp());
        return Ok(CommandPipe::shared(bulk, busy, device));
    }
    let bulk = BulkPipe::new(interface, reader.number, endpoints, longest)?;
    let bulk = bulk.after(first).with_omits_zlp(device.omits_zlp());
    Ok(CommandPipe::new(bulk, device))
}

fn unusable(reader: &ReaderInterface, error: TransferError) -> TransportError {
    let what = format!(
        "reader {}: its endpoints cannot be used: {error}",
        reader.name
    );
    // Any other error may be a lack of descriptors or memory. The reader is present, and the claim is tried again.
    let kind = match error {
        TransferError::Disconnected => TransportErrorKind::NoReader,
        _ => TransportErrorKind::Protocol,
    };
    TransportError::before_card(kind, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usb::{
        host::fake::{EndpointLayout, FakeReader, reader::ReaderConfig},
        tests::interface_of,
    };

    #[test]
    fn failed_endpoint_open_means_unplugged_only_when_disconnected() {
        let fake = FakeReader::new(ReaderConfig::extended());
        let reader = interface_of(&fake, EndpointLayout::default());
        let kind = |error| unusable(&reader, error).kind;
        for errno in [2, 12, 16, 24] {
            let error = TransferError::Fault(errno);
            assert_eq!(kind(error), TransportErrorKind::Protocol, "{errno}");
        }
        assert_eq!(
            kind(TransferError::Disconnected),
            TransportErrorKind::NoReader
        );
    }

    #[test]
    fn reader_unplugged_before_its_endpoints_are_opened_is_missing() {
        let fake = FakeReader::new(ReaderConfig::extended());
        let reader = interface_of(&fake, EndpointLayout::default());
        let interface = fake.device().claim().unwrap();
        fake.device().leave();
        let opened = open_pipe(interface, &reader, &Arc::default(), 0);
        assert_eq!(opened.unwrap_err().kind, TransportErrorKind::NoReader);
    }
}
