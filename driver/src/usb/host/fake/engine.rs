//! The state of a fake device, and the queues of transfers its user has.

use std::{
    collections::{BTreeMap, VecDeque},
    os::fd::OwnedFd,
    sync::Arc,
};

use claviger_apdu::Secret;
use rustix::io::Errno;

use super::{
    EndpointLayout, Event, Firmware, TransferCounts,
    endpoint::{Endpoint, Hold, Transfer},
    fault::Fault,
};
use crate::usb::host::transfer::{Completion, EndpointAddress, OpenError, TransferError};

/// How many events the log holds.
const MAX_LOG: usize = 4096;

/// The completions of one `EndpointQueue`.
pub(super) struct Queue {
    pub(super) done: VecDeque<Completion>,
    pub(super) event: Arc<OwnedFd>,
}

pub(super) struct DeviceState {
    pub(super) layout: EndpointLayout,
    pub(super) firmware: Box<dyn Firmware>,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) queues: BTreeMap<u64, Queue>,
    pub(super) next_queue: u64,
    pub(super) log: VecDeque<Event>,
    pub(super) counts: TransferCounts,
    /// Transfers and control requests so far.
    pub(super) transfer_count: u64,
    /// The fault to come, and how many events come before it.
    pub(super) armed: Option<(Fault, usize)>,
    /// The fault of the next response.
    pub(super) spoiled: Option<Fault>,
    pub(super) last_answer: Option<Vec<u8>>,
    /// The message that bulk-IN repeats without end.
    pub(super) endless: Option<Vec<u8>>,
    pub(super) gone: bool,
    pub(super) claimed: bool,
    pub(super) silent: bool,
    /// It is silent until it is reset.
    pub(super) hangs: bool,
    /// Interrupt transfers fail with this errno.
    pub(super) broken_interrupt: Option<i32>,
}

impl DeviceState {
    pub(super) fn new(layout: EndpointLayout, firmware: Box<dyn Firmware>) -> Self {
        let all = [
            Some(layout.bulk_out),
            Some(layout.bulk_in),
            layout.interrupt,
        ];
        let endpoints = all.into_iter().flatten();
        Self {
            layout,
            firmware,
            endpoints: endpoints
                .map(|address| Endpoint::new(address, layout.packet))
                .collect(),
            queues: BTreeMap::new(),
            next_queue: 0,
            log: VecDeque::new(),
            counts: TransferCounts::default(),
            transfer_count: 0,
            armed: None,
            spoiled: None,
            last_answer: None,
            endless: None,
            gone: false,
            claimed: false,
            silent: false,
            hangs: false,
            broken_interrupt: None,
        }
    }

    pub(super) fn claim(&mut self) -> Result<(), OpenError> {
        if self.gone {
            return Err(OpenError::Disconnected);
        }
        if self.claimed {
            return Err(OpenError::Busy("the interface is claimed".to_owned()));
        }
        self.claimed = true;
        self.note(Event::Claimed);
        Ok(())
    }

    pub(super) fn unclaim(&mut self) {
        self.claimed = false;
        self.note(Event::Released);
    }

    pub(super) fn inject(&mut self, fault: Fault, after: usize) {
        self.armed = Some((fault, after));
        self.spoiled = None;
    }

    pub(super) fn fault_struck(&self) -> bool {
        self.armed.is_none() && self.spoiled.is_none()
    }

    pub(super) fn events(&self) -> Vec<Event> {
        self.log.iter().copied().collect()
    }

    pub(super) fn forget(&mut self) {
        self.log.clear();
        self.counts = TransferCounts::default();
    }

    pub(super) fn queues(&self) -> usize {
        self.queues.len()
    }

    /// Counts a transfer, as the node of a device would.
    pub(super) const fn count_transfer(&mut self) {
        self.transfer_count = self.transfer_count.saturating_add(1);
    }

    pub(super) fn note(&mut self, event: Event) {
        if self.log.len() == MAX_LOG {
            self.log.pop_front();
        }
        self.log.push_back(event);
    }

    /// Records an event at which a fault may take effect. A fault of a response is kept for that response.
    pub(super) fn strike(&mut self, event: Event) -> Option<Fault> {
        self.note(event);
        let (fault, left) = self.armed?;
        if let Some(left) = left.checked_sub(1) {
            self.armed = Some((fault, left));
            return None;
        }
        self.armed = None;
        if fault.is_of_the_bus() {
            return Some(fault);
        }
        self.spoiled = Some(fault);
        None
    }

    pub(super) fn endpoint(&mut self, address: EndpointAddress) -> Option<&mut Endpoint> {
        self.endpoints
            .iter_mut()
            .find(|endpoint| endpoint.address == address)
    }

    /// The endpoint, if it is one of the queue's.
    fn owned(&mut self, queue: u64, address: EndpointAddress) -> Option<&mut Endpoint> {
        self.endpoint(address)
            .filter(|endpoint| endpoint.owner == Some(queue))
    }
}

/// Queues of transfers.
impl DeviceState {
    pub(super) fn open_queue(
        &mut self,
        addresses: &[EndpointAddress],
        event: Arc<OwnedFd>,
    ) -> Result<u64, TransferError> {
        if self.gone {
            return Err(TransferError::Disconnected);
        }
        for address in addresses {
            match self.endpoint(*address) {
                None => return Err(fault(Errno::NOENT)),
                Some(endpoint) if endpoint.owner.is_some() => return Err(fault(Errno::BUSY)),
                Some(_) => {}
            }
        }
        let queue = self.next_queue;
        self.next_queue = self.next_queue.wrapping_add(1);
        for address in addresses {
            if let Some(endpoint) = self.endpoint(*address) {
                endpoint.owner = Some(queue);
            }
        }
        let done = VecDeque::new();
        self.queues.insert(queue, Queue { done, event });
        Ok(queue)
    }

    pub(super) fn close_queue(&mut self, queue: u64) {
        let owned: Vec<EndpointAddress> = self
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.owner == Some(queue))
            .map(|endpoint| endpoint.address)
            .collect();
        for address in owned {
            self.cancel(queue, address);
            if let Some(endpoint) = self.endpoint(address) {
                endpoint.owner = None;
            }
        }
        self.queues.remove(&queue);
    }

    pub(super) fn completed(&mut self, queue: u64) -> Option<Completion> {
        let queue = self.queues.get_mut(&queue)?;
        let done = queue.done.pop_front();
        if done.is_none() {
            // Nothing to read is as good as read.
            let _ = rustix::io::read(&*queue.event, &mut [0_u8; 8]);
        }
        done
    }

    pub(super) fn pending(&mut self, queue: u64, address: EndpointAddress) -> usize {
        self.owned(queue, address)
            .map_or(0, |endpoint| endpoint.pending.len())
    }

    pub(super) fn submit_in(&mut self, queue: u64, address: EndpointAddress, len: usize) {
        let count = if Some(address) == self.layout.interrupt {
            &mut self.counts.interrupt
        } else {
            &mut self.counts.bulk_in
        };
        *count = count.saturating_add(1);
        self.submit(
            queue,
            address,
            Transfer::to_receive(len),
            Event::SubmitIn(address, len),
        );
    }

    pub(super) fn submit_out(&mut self, queue: u64, address: EndpointAddress, buffer: Secret) {
        self.counts.bulk_out = self.counts.bulk_out.saturating_add(1);
        let event = Event::SubmitOut(address, buffer.len());
        self.submit(queue, address, Transfer::to_send(buffer), event);
    }

    fn submit(
        &mut self,
        queue: u64,
        address: EndpointAddress,
        mut transfer: Transfer,
        event: Event,
    ) {
        self.count_transfer();
        let strikes = self.strike(event);
        let gone = self.gone || strikes == Some(Fault::Disconnected);
        let is_in = matches!(event, Event::SubmitIn(..));
        let is_interrupt = Some(address) == self.layout.interrupt;
        let broken = self.broken_interrupt.filter(|_| is_interrupt);
        let Some(endpoint) = self.owned(queue, address) else {
            return self.refuse(queue, address, transfer, fault(Errno::NOENT));
        };
        if is_in != address.is_in() || (is_in && !endpoint.takes(transfer.len)) {
            return self.refuse(queue, address, transfer, fault(Errno::INVAL));
        }
        if let Some(errno) = broken {
            transfer.ended = Some(Err(TransferError::Fault(errno)));
        }
        match strikes {
            Some(Fault::Drop) => transfer.hold = Some(Hold::Forever),
            Some(Fault::Delay) => transfer.hold = Some(Hold::UntilReleased),
            Some(Fault::Stall) => endpoint.halted = true,
            Some(Fault::Failed(errno)) => transfer.ended = Some(Err(TransferError::Fault(errno))),
            _ => {}
        }
        endpoint.pending.push_back(transfer);
        if gone {
            return self.leave();
        }
        self.pump(address);
    }

    fn refuse(
        &mut self,
        queue: u64,
        address: EndpointAddress,
        transfer: Transfer,
        error: TransferError,
    ) {
        self.deliver(Some(queue), address, transfer, Err(error));
    }

    pub(super) fn cancel(&mut self, queue: u64, address: EndpointAddress) {
        self.note(Event::Cancel(address));
        while let Some(transfer) = self
            .owned(queue, address)
            .and_then(|endpoint| endpoint.pending.pop_front())
        {
            self.deliver(
                Some(queue),
                address,
                transfer,
                Err(TransferError::Cancelled),
            );
        }
    }

    pub(super) fn clear_halt(
        &mut self,
        queue: u64,
        address: EndpointAddress,
    ) -> Result<(), TransferError> {
        self.count_transfer();
        self.note(Event::ClearHalt(address));
        if self.gone {
            return Err(TransferError::Disconnected);
        }
        let endpoint = self.owned(queue, address).ok_or(fault(Errno::NOENT))?;
        if !endpoint.pending.is_empty() {
            return Err(fault(Errno::BUSY));
        }
        endpoint.halted = false;
        Ok(())
    }
}

fn fault(errno: Errno) -> TransferError {
    TransferError::Fault(errno.raw_os_error())
}
