//! Opens the command pipe of a claimed reader.

use std::sync::Arc;

use claviger_apdu::{TransportError, TransportErrorKind};

use crate::usb::{
    discovery::reader_info::{ReaderInterface, Way},
    host::transfer::{TransferError, UsbInterface},
    pipe::{
        CommandPipe, Common,
        bulk::{Bulk, BulkEndpoints, SharedBulk},
        control::Iccd,
    },
};

/// The command pipe of a claimed reader in the device that has `common`; its sequence numbers come after `first`.
///
/// # Errors
/// NoReader when it has left, Protocol when its endpoints cannot be had.
pub(crate) fn pipe(
    interface: Arc<dyn UsbInterface>,
    reader: &ReaderInterface,
    common: &Arc<Common>,
    first: u8,
) -> Result<Arc<CommandPipe>, TransportError> {
    let common = Arc::clone(common);
    let pipe = match reader.way {
        Way::Control(version) => {
            let iccd = Iccd::new(interface, reader.number, version);
            CommandPipe::new(iccd, common)
        }
        Way::Bulk {
            bulk_in,
            bulk_out,
            packet,
        } => {
            let endpoints = BulkEndpoints {
                bulk_in,
                bulk_out,
                packet,
            };
            let bulk = bulk((interface, reader), endpoints, common, first);
            bulk.map_err(|error| unusable(reader, error))?
        }
    };
    Ok(Arc::new(pipe))
}

/// The bulk pipe, for one command at a time or, where the reader can do more, for one in each slot.
fn bulk(
    (interface, reader): (Arc<dyn UsbInterface>, &ReaderInterface),
    endpoints: BulkEndpoints,
    common: Arc<Common>,
    first: u8,
) -> Result<CommandPipe, TransferError> {
    let longest = reader.class.max_message_length();
    let busy = usize::from(reader.class.busy_slots());
    if busy > 1 {
        let bulk = SharedBulk::new(interface, reader.number, endpoints, longest)?;
        return Ok(CommandPipe::shared(bulk.after(first), busy, common));
    }
    let bulk = Bulk::new(interface, reader.number, endpoints, longest)?;
    let bulk = bulk.after(first).remembering(common.no_empty_packet());
    Ok(CommandPipe::new(bulk, common))
}

fn unusable(reader: &ReaderInterface, error: TransferError) -> TransportError {
    let what = format!(
        "reader {}: its endpoints cannot be used: {error}",
        reader.name
    );
    // Anything else may be for want of descriptors or memory: the reader is there, and tried again.
    let kind = match error {
        TransferError::Gone => TransportErrorKind::NoReader,
        _ => TransportErrorKind::Protocol,
    };
    TransportError::before_card(kind, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usb::{
        host::fake::{FakeReader, Layout, reader::ReaderConfig},
        tests::interface_of,
    };

    #[test]
    fn a_reader_whose_endpoints_cannot_be_opened_has_not_left() {
        let fake = FakeReader::new(ReaderConfig::extended());
        let reader = interface_of(&fake, Layout::default());
        let kind = |error| unusable(&reader, error).kind;
        for errno in [2, 12, 16, 24] {
            let error = TransferError::Fault(errno);
            assert_eq!(kind(error), TransportErrorKind::Protocol, "{errno}");
        }
        assert_eq!(kind(TransferError::Gone), TransportErrorKind::NoReader);
    }

    #[test]
    fn a_reader_that_leaves_before_its_endpoints_are_opened_is_gone() {
        let fake = FakeReader::new(ReaderConfig::extended());
        let reader = interface_of(&fake, Layout::default());
        let interface = fake.device().claim().unwrap();
        fake.device().leave();
        let opened = pipe(interface, &reader, &Arc::default(), 0);
        assert_eq!(opened.unwrap_err().kind, TransportErrorKind::NoReader);
    }
}
