//! A connection to the card in a reader that is claimed.

use std::sync::Arc;

use claviger_apdu::{
    Atr, Call, Epoch, Limits, ResponseBuffer, Transmit, Transport, TransportError,
    TransportErrorKind,
};

use super::{
    bulk::{Bulk, BulkEndpoints, SharedBulk},
    command_pipe::{CommandPipe, Common, SlotPipe},
    device::{Capabilities, Device},
    iccd::Iccd,
    transfer::{EndpointAddress, TransferError, UsbInterface},
};
use crate::{
    backend::Wake,
    ccid::{descriptor::ClassDescriptor, iccd::Version, quirks::Quirks},
    wait::Stop,
};

/// What a reader is called, and where it is reached within its device.
#[derive(Clone, Debug)]
pub struct ReaderInterface {
    /// Name for a person.
    pub name: String,
    /// bInterfaceNumber.
    pub number: u8,
    /// How commands reach it.
    pub way: Way,
    /// What the reader says of itself.
    pub class: ClassDescriptor,
    /// What is known of its model.
    pub quirks: Quirks,
}

/// How commands reach a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
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

/// See [`Transport`]. The claim is exclusive, so every exchange has the card for itself.
#[derive(Debug)]
pub struct UsbTransport {
    device: Device,
    atr: Atr,
    stop: Arc<Stop>,
    over: bool,
}

impl UsbTransport {
    /// Connects to the card in slot `slot` of a claimed reader, and powers it, which resets it.
    ///
    /// # Errors
    /// [`TransportError`]: no card, a mute one, a reader that does not answer.
    pub fn connect(
        interface: Arc<dyn UsbInterface>,
        reader: ReaderInterface,
        slot: u8,
        call: Call,
    ) -> Result<Self, TransportError> {
        let stop = Arc::new(Stop::new());
        let pipe = pipe(interface, &reader, &Arc::default(), 0)?;
        let mut device = device(pipe, reader, slot, &stop);
        device.status(call)?;
        let atr = device.power_on(call)?.clone();
        Ok(Self {
            device,
            atr,
            stop,
            over: false,
        })
    }

    /// What ends every exchange, now and later, from another thread.
    #[must_use]
    pub fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.stop) as Arc<dyn Wake>
    }

    /// Takes note of what an error says of the connection.
    fn heed(&mut self, error: &TransportError) {
        use TransportErrorKind::{Cancelled, CardRemoved, NoCard, NoReader};
        self.over |= matches!(error.kind, Cancelled | CardRemoved | NoCard | NoReader);
        if let Some(atr) = self.device.atr() {
            self.atr = atr.clone();
        }
    }
}

/// The command pipe of a claimed reader in the device that has `common`; its sequence numbers come after `first`.
///
/// # Errors
/// NoReader when it has left, Protocol when its endpoints cannot be had.
pub(super) fn pipe(
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

/// The driver of slot `slot` of a claimed reader.
pub(super) fn device(
    pipe: Arc<CommandPipe>,
    reader: ReaderInterface,
    slot: u8,
    stop: &Arc<Stop>,
) -> Device {
    let capabilities = Capabilities::new(reader.class, reader.quirks);
    let pipe = SlotPipe::new(pipe);
    Device::new(reader.name, pipe, slot, capabilities, Arc::clone(stop))
}

impl Transmit for UsbTransport {
    fn transmit(
        &mut self,
        frame: &[u8],
        response: &mut ResponseBuffer,
        call: Call,
    ) -> Result<(), TransportError> {
        let exchanged = self.device.exchange(frame, response, call);
        if let Err(error) = &exchanged {
            self.heed(error);
        }
        exchanged
    }
}

impl Transport for UsbTransport {
    fn atr(&self) -> &Atr {
        &self.atr
    }

    fn limits(&self) -> Limits {
        self.device.limits()
    }

    fn epoch(&self) -> Epoch {
        self.device.epoch()
    }

    fn is_over(&self) -> bool {
        self.over
    }

    fn transact(
        &mut self,
        _call: Call,
        body: &mut dyn FnMut(&mut dyn Transmit),
    ) -> Result<(), TransportError> {
        body(self);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usb::{
        fake::{FakeReader, Layout, reader::ReaderConfig},
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
