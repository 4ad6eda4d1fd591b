//! One endpoint, whatever its type and direction are to nusb.

use std::{
    task::{Context, Poll},
    thread,
    time::Duration,
};

use ::nusb::{
    Endpoint, Interface, MaybeFuture as _,
    descriptors::TransferType,
    transfer::{Buffer, Bulk, BulkOrInterrupt, EndpointDirection, In, Interrupt, Out},
};
use claviger_apdu::Secret;
use rustix::io::Errno;

use super::error;
use crate::usb::host::transfer::{Completion, EndpointAddress, TransferError};

/// nusb's thread needs microseconds once it is scheduled.
const RETRY_DELAY: Duration = Duration::from_millis(1);

pub(super) trait NusbEndpoint: Send {
    fn address(&self) -> EndpointAddress;
    fn submit_in(&mut self, len: usize);
    fn submit_out(&mut self, bytes: &Secret);
    /// Returns the first completed transfer, if there is one. The waker is called when a transfer completes.
    fn poll(&mut self, context: &mut Context<'_>) -> Option<Completion>;
    fn cancel(&mut self);
    fn pending(&self) -> usize;
    fn clear_halt(&mut self) -> Result<(), TransferError>;
}

/// Opens the endpoint with that address, if no other queue uses it.
pub(super) fn open(
    interface: &Interface,
    address: EndpointAddress,
) -> Result<Box<dyn NusbEndpoint>, TransferError> {
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
) -> Result<Box<dyn NusbEndpoint>, TransferError> {
    let endpoint = retry_if_busy(|| {
        let endpoint = interface.endpoint::<Type, Direction>(number);
        endpoint.map_err(|error| error::call(&error))
    });
    Ok(Box::new(endpoint?))
}

/// Opens an endpoint, and tries once more if it is busy: nusb's thread holds the endpoint of a closed queue a moment longer than
/// the queue's owner.
fn retry_if_busy<T>(open: impl Fn() -> Result<T, TransferError>) -> Result<T, TransferError> {
    open().or_else(|error| {
        if error != error::fault(Errno::BUSY) {
            return Err(error);
        }
        thread::sleep(RETRY_DELAY);
        open()
    })
}

impl<Type: BulkOrInterrupt, Direction: EndpointDirection> NusbEndpoint
    for Endpoint<Type, Direction>
{
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Returns the number of tries and the result after so many failures.
    fn tried(failures: u32, errno: Errno) -> (u32, Result<(), TransferError>) {
        let tries = Cell::new(0);
        let result = retry_if_busy(|| {
            tries.set(tries.get() + 1);
            if tries.get() > failures {
                Ok(())
            } else {
                Err(error::fault(errno))
            }
        });
        (tries.get(), result)
    }

    #[test]
    fn busy_endpoint_is_opened_once_more_and_no_other_error_retried() {
        assert_eq!(tried(0, Errno::BUSY), (1, Ok(())));
        assert_eq!(tried(1, Errno::BUSY), (2, Ok(())));
        assert_eq!(tried(2, Errno::BUSY), (2, Err(error::fault(Errno::BUSY))));
        assert_eq!(tried(1, Errno::NOENT), (1, Err(error::fault(Errno::NOENT))));
    }
}
