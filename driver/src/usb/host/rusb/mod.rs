//! Transfers by libusb, which are handled by the thread that waits for them. There is no other thread.
//!
//! Each open device has its own context, made from its file descriptor without device discovery. So an event of one device does
//! not wake a thread that waits for another device, and a child after a fork opens its own context. The descriptors of the
//! context are libusb's descriptors and an eventfd. The eventfd is written when another thread of the same device has completed a
//! transfer of this queue.

mod completions;
mod error;
mod transfers;

use std::{
    collections::VecDeque,
    fmt,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ::rusb::TransferType;
use claviger_apdu::Secret;
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
};

use self::{
    completions::CompletionQueue,
    transfers::{OpenDevice, SETUP_LENGTH, Transfer},
};
use super::{
    drain::drain,
    transfer::{
        Completion, EndpointAddress, EndpointQueue, OpenError, SetupPacket, TransferError,
        UsbInterface,
    },
};
use crate::fork_closed::ForkClosed;

/// Timeout for the kernel to return a cancelled transfer. It takes microseconds.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(1);

/// A claimed interface.
struct ClaimedInterface {
    handle: Arc<OpenDevice>,
    interface: u8,
    endpoints: Vec<Endpoint>,
    /// Endpoints that belong to a queue.
    reserved: Mutex<Vec<EndpointAddress>>,
}

#[derive(Clone, Copy)]
struct Endpoint {
    address: EndpointAddress,
    interrupt: bool,
    packet: usize,
}

/// Claims an interface of the device behind an open node.
pub(super) fn claim(
    node: ForkClosed<OwnedFd>,
    interface: u8,
) -> Result<Arc<dyn UsbInterface>, OpenError> {
    let handle = OpenDevice::open(node).map_err(error::open)?;
    let device = handle.device().map_err(error::open)?;
    device.claim_interface(interface).map_err(error::open)?;
    let endpoints = endpoints(device, interface).map_err(error::open)?;
    Ok(Arc::new(RusbInterface(Arc::new(ClaimedInterface {
        handle: Arc::new(handle),
        interface,
        endpoints,
        reserved: Mutex::default(),
    }))))
}

/// The bulk and interrupt endpoints of the interface's first setting.
fn endpoints(
    device: &::rusb::DeviceHandle<::rusb::Context>,
    number: u8,
) -> ::rusb::Result<Vec<Endpoint>> {
    let configuration = device.device().active_config_descriptor()?;
    let interface = configuration
        .interfaces()
        .find(|interface| interface.number() == number)
        .ok_or(::rusb::Error::NotFound)?;
    let setting = interface
        .descriptors()
        .next()
        .ok_or(::rusb::Error::NotFound)?;
    let usable = setting.endpoint_descriptors().filter_map(|descriptor| {
        let interrupt = match descriptor.transfer_type() {
            TransferType::Bulk => false,
            TransferType::Interrupt => true,
            TransferType::Control | TransferType::Isochronous => return None,
        };
        Some(Endpoint {
            address: EndpointAddress(descriptor.address()),
            interrupt,
            // The upper bits are the number of packets in a microframe (USB 2.0, 9.6.6).
            packet: usize::from(descriptor.max_packet_size() & 0x07FF),
        })
    });
    Ok(usable.collect())
}

impl ClaimedInterface {
    fn reserved(&self) -> MutexGuard<'_, Vec<EndpointAddress>> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn endpoint(&self, address: EndpointAddress) -> Option<Endpoint> {
        self.endpoints
            .iter()
            .find(|endpoint| endpoint.address == address)
            .copied()
    }

    fn reserve(&self, addresses: &[EndpointAddress]) -> Result<(), TransferError> {
        let mut taken = self.reserved();
        if addresses
            .iter()
            .any(|address| self.endpoint(*address).is_none())
        {
            return Err(error::fault(Errno::NOENT));
        }
        if addresses.iter().any(|address| taken.contains(address)) {
            return Err(error::fault(Errno::BUSY));
        }
        taken.extend_from_slice(addresses);
        Ok(())
    }
}

struct RusbInterface(Arc<ClaimedInterface>);

/// A setup packet (USB 2.0, 9.3) and the bytes after it.
fn request_bytes(setup: SetupPacket, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap_or(u16::MAX);
    let [value, index, length] = [setup.value, setup.index, length].map(u16::to_le_bytes);
    let mut bytes = Vec::with_capacity(SETUP_LENGTH + data.len());
    bytes.extend([setup.request_type, setup.request]);
    bytes.extend([value, index, length].as_flattened());
    bytes.extend(data);
    bytes
}

impl RusbInterface {
    /// Waits for the only transfer of a queue, and cancels it at `deadline`.
    fn wait_for(
        &self,
        transfer: Transfer,
        completions: &CompletionQueue,
        deadline: Instant,
    ) -> Result<Completion, TransferError> {
        let handle = &self.0.handle;
        let mut deadline = deadline;
        let mut is_cancelled = false;
        loop {
            if let Some(ended) = completions.take(|| handle.handle_events()) {
                return transfer.into_completion(&ended).ok_or(error::invalid());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                if is_cancelled {
                    tracing::warn!("usb: a control transfer was not returned in time");
                    return Err(TransferError::Cancelled);
                }
                is_cancelled = true;
                transfer.cancel();
                deadline = Instant::now() + CANCEL_TIMEOUT;
                continue;
            }
            let mut polled: Vec<PollFd<'_>> = Vec::new();
            let descriptors = handle.descriptors(true).into_iter();
            polled.extend(descriptors.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
            polled.push(PollFd::new(&completions.event, PollFlags::IN));
            // A signal ends the wait early, which the loop allows for.
            let _ = rustix::event::poll(&mut polled, Timespec::try_from(left).ok().as_ref());
        }
    }
}

impl fmt::Debug for RusbInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RusbInterface({})", self.0.interface)
    }
}

impl UsbInterface for RusbInterface {
    fn open_queue(
        &self,
        endpoints: &[EndpointAddress],
    ) -> Result<Box<dyn EndpointQueue>, TransferError> {
        let completions = Arc::new(CompletionQueue::new()?);
        self.0.reserve(endpoints)?;
        Ok(Box::new(RusbQueue {
            claim: Arc::clone(&self.0),
            endpoints: endpoints.to_vec(),
            completions,
            gone: false,
            pending: Vec::new(),
            refused: VecDeque::new(),
        }))
    }

    /// Callbacks of other transfers may run meanwhile in this thread. libusb's own synchronous call is not used: it would handle
    /// events, and with them the loss of the device, during a fork.
    fn control(
        &self,
        setup: SetupPacket,
        data: &mut [u8],
        limit: Duration,
    ) -> Result<usize, TransferError> {
        if u16::try_from(data.len()).is_err() {
            return Err(error::invalid());
        }
        let is_in = setup.request_type & 0x80 != 0;
        let completions = Arc::new(CompletionQueue::new()?);
        let bytes = request_bytes(setup, data);
        let transfer = Transfer::submit_control(&self.0.handle, &completions, bytes)?;
        let done = self.wait_for(transfer, &completions, Instant::now() + limit)?;
        done.result?;
        if is_in {
            let received = done.buffer.expose().iter().skip(SETUP_LENGTH);
            data.iter_mut()
                .zip(received)
                .for_each(|(to, from)| *to = *from);
        }
        Ok(done.transferred.min(data.len()))
    }

    fn reset(&self) -> Result<(), TransferError> {
        let device = self.0.handle.device().map_err(error::transfer)?;
        device.reset().map_err(error::transfer)
    }
}

/// A queue. The fields are dropped in their order: transfers before the objects that they use.
struct RusbQueue {
    pending: Vec<Transfer>,
    /// Transfers that could not be submitted.
    refused: VecDeque<Completion>,
    completions: Arc<CompletionQueue>,
    endpoints: Vec<EndpointAddress>,
    gone: bool,
    claim: Arc<ClaimedInterface>,
}

impl fmt::Debug for RusbQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "RusbQueue({:?}, {} pending)",
            self.endpoints,
            self.pending.len()
        )
    }
}

impl RusbQueue {
    fn submit(
        &mut self,
        endpoint: EndpointAddress,
        bytes: Vec<u8>,
        fits: impl Fn(&Endpoint) -> bool,
    ) {
        let own = self.endpoints.contains(&endpoint);
        let known = self.claim.endpoint(endpoint).filter(|one| own && fits(one));
        let submitted = match known {
            Some(one) => {
                let handle = &self.claim.handle;
                Transfer::submit(handle, &self.completions, endpoint, one.interrupt, bytes)
            }
            None => {
                drop(Secret::new(bytes));
                Err(error::invalid())
            }
        };
        match submitted {
            Ok(transfer) => self.pending.push(transfer),
            Err(error) => self.refuse(endpoint, error),
        }
    }

    fn refuse(&mut self, endpoint: EndpointAddress, error: TransferError) {
        self.refused.push_back(Completion {
            endpoint,
            buffer: Secret::default(),
            transferred: 0,
            result: Err(error),
        });
        self.completions.wake();
    }
}

impl EndpointQueue for RusbQueue {
    fn submit_in(&mut self, endpoint: EndpointAddress, len: usize) {
        let fits = |one: &Endpoint| {
            one.address.is_in() && len > 0 && one.packet > 0 && len.is_multiple_of(one.packet)
        };
        self.submit(endpoint, vec![0; len], fits);
    }

    fn submit_out(&mut self, endpoint: EndpointAddress, buffer: Secret) {
        let bytes = buffer.expose().to_vec();
        self.submit(endpoint, bytes, |one| !one.address.is_in());
    }

    fn next_completion(&mut self) -> Option<Completion> {
        if let Some(refused) = self.refused.pop_front() {
            return Some(refused);
        }
        let Some(ended) = self.completions.take(|| self.claim.handle.handle_events()) else {
            self.gone = self.gone || self.claim.handle.is_gone();
            return None;
        };
        let at = self.pending.iter().position(|one| one.is(&ended))?;
        self.pending.remove(at).into_completion(&ended)
    }

    fn poll_fds(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        // While a transfer is pending, the node reports its end, also after the device was disconnected.
        let with_node = !(self.gone && self.pending.is_empty());
        let mut descriptors = self.claim.handle.descriptors(with_node);
        descriptors.push((self.completions.event.as_fd(), PollFlags::IN));
        descriptors
    }

    fn cancel(&mut self, endpoint: EndpointAddress) {
        // The last first, so that none of those behind begins when one before it ends.
        for transfer in self.pending.iter().rev() {
            if transfer.endpoint == endpoint {
                transfer.cancel();
            }
        }
    }

    fn pending(&self, endpoint: EndpointAddress) -> usize {
        self.pending
            .iter()
            .filter(|transfer| transfer.endpoint == endpoint)
            .count()
    }

    fn clear_halt(&mut self, endpoint: EndpointAddress) -> Result<(), TransferError> {
        if !self.endpoints.contains(&endpoint) {
            return Err(error::fault(Errno::NOENT));
        }
        if self.pending(endpoint) > 0 {
            return Err(error::fault(Errno::BUSY));
        }
        let device = self.claim.handle.device().map_err(error::transfer)?;
        device.clear_halt(endpoint.0).map_err(error::transfer)
    }
}

impl Drop for RusbQueue {
    fn drop(&mut self) {
        if !self.claim.handle.is_inherited() {
            let endpoints = self.endpoints.clone();
            drain(self, &endpoints);
        }
        let endpoints = std::mem::take(&mut self.endpoints);
        self.claim.reserved().retain(|one| !endpoints.contains(one));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_request_bytes_match_the_standard() {
        let setup = SetupPacket {
            request_type: 0x21,
            request: 1,
            value: 0x0302,
            index: 0x0504,
        };
        let bytes = request_bytes(setup, &[9, 8]);
        assert_eq!(bytes, [0x21, 1, 2, 3, 4, 5, 2, 0, 9, 8]);
    }
}
