//! The driver's end of a fake device's transfers.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, MutexGuard},
};

use claviger_apdu::Secret;
use rustix::event::{EventfdFlags, PollFlags};

use super::{Claim, engine::State};
use crate::usb::host::transfer::{Completion, EndpointAddress, Pipes, TransferError};

#[derive(Debug)]
pub(super) struct FakePipes {
    claim: Arc<Claim>,
    queue: u64,
    event: Arc<OwnedFd>,
}

impl FakePipes {
    pub(super) fn new(
        claim: Arc<Claim>,
        endpoints: &[EndpointAddress],
    ) -> Result<Self, TransferError> {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| TransferError::Fault(error.raw_os_error()))?;
        let event = Arc::new(event);
        let queue = claim
            .device
            .state()
            .open_queue(endpoints, Arc::clone(&event))?;
        Ok(Self {
            claim,
            queue,
            event,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.claim.device.state()
    }
}

impl Pipes for FakePipes {
    fn submit_in(&mut self, endpoint: EndpointAddress, len: usize) {
        self.state().submit_in(self.queue, endpoint, len);
    }

    fn submit_out(&mut self, endpoint: EndpointAddress, buffer: Secret) {
        self.state().submit_out(self.queue, endpoint, buffer);
    }

    fn completed(&mut self) -> Option<Completion> {
        self.state().completed(self.queue)
    }

    fn descriptors(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        vec![(self.event.as_fd(), PollFlags::IN)]
    }

    fn cancel(&mut self, endpoint: EndpointAddress) {
        self.state().cancel(self.queue, endpoint);
    }

    fn pending(&self, endpoint: EndpointAddress) -> usize {
        self.state().pending(self.queue, endpoint)
    }

    fn clear_halt(&mut self, endpoint: EndpointAddress) -> Result<(), TransferError> {
        self.state().clear_halt(self.queue, endpoint)
    }
}

impl Drop for FakePipes {
    fn drop(&mut self) {
        self.state().close_queue(self.queue);
    }
}
