//! The driver's end of a fake device's transfers.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, MutexGuard},
};

use claviger_apdu::Secret;
use rustix::event::{EventfdFlags, PollFlags};

use super::{ClaimedInterface, engine::DeviceState};
use crate::usb::host::transfer::{Completion, EndpointAddress, EndpointQueue, TransferError};

#[derive(Debug)]
pub(super) struct FakeQueue {
    claim: Arc<ClaimedInterface>,
    queue: u64,
    event: Arc<OwnedFd>,
}

impl FakeQueue {
    pub(super) fn new(
        claim: Arc<ClaimedInterface>,
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

    fn state(&self) -> MutexGuard<'_, DeviceState> {
        self.claim.device.state()
    }
}

impl EndpointQueue for FakeQueue {
    fn submit_in(&mut self, endpoint: EndpointAddress, len: usize) {
        self.state().submit_in(self.queue, endpoint, len);
    }

    fn submit_out(&mut self, endpoint: EndpointAddress, buffer: Secret) {
        self.state().submit_out(self.queue, endpoint, buffer);
    }

    fn next_completion(&mut self) -> Option<Completion> {
        self.state().completed(self.queue)
    }

    fn poll_fds(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
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

impl Drop for FakeQueue {
    fn drop(&mut self) {
        self.state().close_queue(self.queue);
    }
}
