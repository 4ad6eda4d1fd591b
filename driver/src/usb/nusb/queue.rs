//! One endpoint, whatever its type and direction are to nusb.

use std::task::{Context, Poll};

use ::nusb::{
    Endpoint, Interface, MaybeFuture as _,
    descriptors::TransferType,
    transfer::{Buffer, Bulk, BulkOrInterrupt, EndpointDirection, In, Interrupt, Out},
};
use claviger_apdu::Secret;
use rustix::io::Errno;

use super::error;
use crate::usb::transfer::{Completion, EndpointAddress, TransferError};

pub(super) trait Queue: Send {
    fn address(&self) -> EndpointAddress;
    fn submit_in(&mut self, len: usize);
    fn submit_out(&mut self, bytes: &Secret);
    /// What ended first, if anything has; the waker is used when something does.
    fn poll(&mut self, context: &mut Context<'_>) -> Option<Completion>;
    fn cancel(&mut self);
    fn pending(&self) -> usize;
    fn clear_halt(&mut self) -> Result<(), TransferError>;
}

/// The endpoint of that address, if nobody else has it.
pub(super) fn open(
    interface: &Interface,
    address: EndpointAddress,
) -> Result<Box<dyn Queue>, TransferError> {
    let number = address.0;
    let kind = interface
        .descriptor()
        .and_then(|setting| setting.endpoints().find(|one| one.address() == number))
        .map(|endpoint| endpoint.transfer_type());
    match (kind, address.is_in()) {
        (Some(TransferType::Bulk), true) => boxed::<Bulk, In>(interface, number),
        (Some(TransferType::Bulk), false) => boxed::<Bulk, Out>(interface, number),
        (Some(TransferType::Interrupt), true) => boxed::<Interrupt, In>(interface, number),
        (Some(TransferType::Interrupt), false) => boxed::<Interrupt, Out>(interface, number),
        _ => Err(error::fault(Errno::NOENT)),
    }
}

fn boxed<Type: BulkOrInterrupt + 'static, Direction: EndpointDirection + 'static>(
    interface: &Interface,
    number: u8,
) -> Result<Box<dyn Queue>, TransferError> {
    let endpoint = interface.endpoint::<Type, Direction>(number);
    Ok(Box::new(endpoint.map_err(|error| error::call(&error))?))
}

impl<Type: BulkOrInterrupt, Direction: EndpointDirection> Queue for Endpoint<Type, Direction> {
    fn address(&self) -> EndpointAddress {
        EndpointAddress(self.endpoint_address())
    }

    fn submit_in(&mut self, len: usize) {
        self.submit(Buffer::new(len));
    }

    /// The copy nusb gets comes back with the completion, and is wiped there.
    fn submit_out(&mut self, bytes: &Secret) {
        self.submit(Buffer::from(bytes.expose()));
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Option<Completion> {
        // nusb does not allow the question when nothing is pending.
        if Endpoint::pending(self) == 0 {
            return None;
        }
        let Poll::Ready(done) = self.poll_next_complete(context) else {
            return None;
        };
        Some(Completion {
            endpoint: self.address(),
            buffer: Secret::new(done.buffer.into_vec()),
            transferred: done.actual_len,
            result: done.status.map_err(error::transfer),
        })
    }

    fn cancel(&mut self) {
        self.cancel_all();
    }

    fn pending(&self) -> usize {
        Endpoint::pending(self)
    }

    fn clear_halt(&mut self) -> Result<(), TransferError> {
        let cleared = Endpoint::clear_halt(self).wait();
        cleared.map_err(|error| error::call(&error))
    }
}
