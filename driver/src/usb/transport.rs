//! A connection to the card in a reader that is claimed.

use std::sync::Arc;

use claviger_apdu::{
    Atr, Call, Epoch, Limits, ResponseBuffer, Transmit, Transport, TransportError,
    TransportErrorKind,
};

use super::{
    bulk::{Bulk, BulkEndpoints},
    device::Device,
    transfer::{EndpointAddress, UsbInterface},
};
use crate::{
    backend::Wake,
    ccid::descriptor::{ClassDescriptor, ExchangeLevel},
    wait::Stop,
};

/// What a reader is called, and where it is reached within its device.
#[derive(Clone, Debug)]
pub struct ReaderInterface {
    /// Name for a person.
    pub name: String,
    /// bInterfaceNumber.
    pub number: u8,
    /// The bulk endpoint to the host.
    pub bulk_in: EndpointAddress,
    /// The bulk endpoint to the device.
    pub bulk_out: EndpointAddress,
    /// wMaxPacketSize of `bulk_in`.
    pub packet: usize,
    /// What the reader says of itself.
    pub class: ClassDescriptor,
}

/// See [`Transport`]. The claim is exclusive, so every exchange has the card for itself.
#[derive(Debug)]
pub struct UsbTransport {
    device: Device,
    atr: Atr,
    limits: Limits,
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
        let limits = limits(&reader.class);
        let mut device = device(interface, reader, slot, &stop)?;
        device.status(call)?;
        let atr = device.power_on(call)?.clone();
        Ok(Self {
            device,
            atr,
            limits,
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

/// The driver of slot `slot` of a claimed reader.
///
/// # Errors
/// NoReader when it has not the endpoints it says.
pub(super) fn device(
    interface: Arc<dyn UsbInterface>,
    reader: ReaderInterface,
    slot: u8,
    stop: &Arc<Stop>,
) -> Result<Device, TransportError> {
    let endpoints = BulkEndpoints {
        bulk_in: reader.bulk_in,
        bulk_out: reader.bulk_out,
        packet: reader.packet,
    };
    let longest = reader.class.max_message_length();
    let bulk = Bulk::new(interface, reader.number, endpoints, longest).map_err(|error| {
        let what = format!(
            "reader {}: its endpoints cannot be used: {error}",
            reader.name
        );
        TransportError::before_card(TransportErrorKind::NoReader, what)
    })?;
    Ok(Device::new(
        reader.name,
        bulk,
        slot,
        reader.class,
        Arc::clone(stop),
    ))
}

/// Longer APDUs than a message go in parts, so only the exchange level counts.
pub(super) const fn limits(class: &ClassDescriptor) -> Limits {
    match class.exchange_level() {
        ExchangeLevel::ExtendedApdu => Limits::EXTENDED,
        _ => Limits::SHORT,
    }
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
        self.limits
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
