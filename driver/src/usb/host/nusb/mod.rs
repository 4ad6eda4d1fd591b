//! Transfers by nusb, moved by its own thread: one for the process, named `nusb-events`, started with the first device and never
//! ended.
//!
//! The thread may be forbidden, or fail to start, and a child after fork has none: [`super::rusb`] is used then. The thread wakes
//! ours through an eventfd. nusb does not report babble, which is [`TransferError::Fault`] as any other bus fault. nusb does not
//! wipe the buffers of control transfers.

mod endpoint;
mod error;
mod thread;

use std::{
    collections::VecDeque,
    fmt,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Waker},
    time::Duration,
};

use ::nusb::{
    Device, Interface, MaybeFuture as _,
    transfer::{ControlIn, ControlOut, ControlType, Recipient},
};
use claviger_apdu::Secret;
use rustix::{event::PollFlags, io::Errno};

use self::{endpoint::NusbEndpoint, thread::EventThread};
use super::{
    drain::drain,
    event_fd::EventFd,
    transfer::{
        Completion, EndpointAddress, EndpointQueue, OpenError, SetupPacket, TransferError,
        UsbInterface,
    },
};
use crate::{fork_closed::Registration, fork_guard};

/// A claimed interface. nusb releases it with the last of its clones, of which every endpoint has one.
struct ClaimedInterface {
    _registration: Registration,
    interface: Interface,
    /// Claims made anew after a reset, which takes the first away.
    again: Mutex<Vec<Interface>>,
    device: Device,
}

static EVENTS: EventThread = EventThread::new();

/// Claims an interface of the device whose node `open` opens. Returns `None` where nusb's thread cannot be started.
pub(super) fn claim(
    open: impl FnOnce() -> Result<OwnedFd, OpenError>,
    interface: u8,
) -> Option<Result<Arc<dyn UsbInterface>, OpenError>> {
    let opened = EVENTS.with(thread::can_start, || self::open(open))?;
    Some(opened.and_then(|device| claim_interface(device, interface)))
}

/// An open device and its registration. They are dropped in this order.
struct OpenedDevice {
    registration: Registration,
    device: Device,
}

fn open(open: impl FnOnce() -> Result<OwnedFd, OpenError>) -> Result<OpenedDevice, OpenError> {
    let _pass = fork_guard::enter();
    let node = open()?;
    let number = node.as_raw_fd();
    let device = Device::from_fd(node).wait();
    let device = device.map_err(|error| error::open(&error))?;
    Ok(OpenedDevice {
        registration: Registration::new(number),
        device,
    })
}

fn claim_interface(
    opened: OpenedDevice,
    interface: u8,
) -> Result<Arc<dyn UsbInterface>, OpenError> {
    let interface = opened
        .device
        .claim_interface(interface)
        .wait()
        .map_err(|error| error::open(&error))?;
    Ok(Arc::new(NusbInterface(Arc::new(ClaimedInterface {
        _registration: opened.registration,
        interface,
        again: Mutex::default(),
        device: opened.device,
    }))))
}

struct NusbInterface(Arc<ClaimedInterface>);

impl fmt::Debug for NusbInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NusbInterface({})", self.0.interface.interface_number())
    }
}

impl UsbInterface for NusbInterface {
    fn open_queue(
        &self,
        endpoints: &[EndpointAddress],
    ) -> Result<Box<dyn EndpointQueue>, TransferError> {
        let signal = EventFd::new()?;
        let queues = endpoints
            .iter()
            .map(|address| endpoint::open(&self.0.interface, *address));
        Ok(Box::new(NusbQueue {
            queues: queues.collect::<Result<_, _>>()?,
            ready: VecDeque::new(),
            waker: signal.waker(),
            signal,
            _claim: Arc::clone(&self.0),
        }))
    }

    fn control(
        &self,
        setup: SetupPacket,
        data: &mut [u8],
        limit: Duration,
    ) -> Result<usize, TransferError> {
        let length = u16::try_from(data.len()).map_err(|_| error::fault(Errno::INVAL))?;
        let (control_type, recipient) = request_kind(setup.request_type)?;
        let SetupPacket {
            request,
            value,
            index,
            ..
        } = setup;
        if setup.request_type & 0x80 == 0 {
            let request = ControlOut {
                control_type,
                recipient,
                request,
                value,
                index,
                data,
            };
            let sent = self.0.interface.control_out(request, limit).wait();
            return sent.map(|()| data.len()).map_err(error::transfer);
        }
        let request = ControlIn {
            control_type,
            recipient,
            request,
            value,
            index,
            length,
        };
        let received = self.0.interface.control_in(request, limit).wait();
        let received = Secret::new(received.map_err(error::transfer)?);
        for (to, from) in data.iter_mut().zip(received.expose()) {
            *to = *from;
        }
        Ok(received.len().min(data.len()))
    }

    fn reset(&self) -> Result<(), TransferError> {
        let ClaimedInterface { device, again, .. } = &*self.0;
        device.reset().wait().map_err(|error| error::call(&error))?;
        let number = self.0.interface.interface_number();
        let claimed = device
            .claim_interface(number)
            .wait()
            .map_err(|error| error::call(&error))?;
        again
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(claimed);
        Ok(())
    }
}

/// bmRequestType in nusb's words, without the direction (USB 2.0, table 9-2).
fn request_kind(request_type: u8) -> Result<(ControlType, Recipient), TransferError> {
    let control_type = match request_type & 0x60 {
        0x00 => ControlType::Standard,
        0x20 => ControlType::Class,
        0x40 => ControlType::Vendor,
        _ => return Err(error::fault(Errno::INVAL)),
    };
    let recipient = match request_type & 0x1F {
        0 => Recipient::Device,
        1 => Recipient::Interface,
        2 => Recipient::Endpoint,
        3 => Recipient::Other,
        _ => return Err(error::fault(Errno::INVAL)),
    };
    Ok((control_type, recipient))
}

/// A queue. The endpoints go before the claim, which is released with the last of them.
struct NusbQueue {
    queues: Vec<Box<dyn NusbEndpoint>>,
    /// Transfers that ended while they were submitted.
    ready: VecDeque<Completion>,
    waker: Waker,
    signal: Arc<EventFd>,
    _claim: Arc<ClaimedInterface>,
}

impl fmt::Debug for NusbQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<EndpointAddress> = self.addresses();
        write!(f, "NusbQueue({addresses:?})")
    }
}

impl NusbQueue {
    fn addresses(&self) -> Vec<EndpointAddress> {
        self.queues.iter().map(|queue| queue.address()).collect()
    }

    fn queue(&mut self, endpoint: EndpointAddress) -> Option<&mut Box<dyn NusbEndpoint>> {
        self.queues
            .iter_mut()
            .find(|queue| queue.address() == endpoint)
    }

    /// After a submission: sees to it that the end of the transfer wakes us, unless it has come.
    fn arm(&mut self, endpoint: EndpointAddress) {
        let waker = self.waker.clone();
        let ended = self
            .queue(endpoint)
            .and_then(|queue| queue.poll(&mut Context::from_waker(&waker)));
        if let Some(ended) = ended {
            self.ready.push_back(ended);
            self.signal.notify();
        }
    }

    fn refuse(&mut self, endpoint: EndpointAddress, error: TransferError) {
        self.ready.push_back(Completion {
            endpoint,
            buffer: Secret::default(),
            transferred: 0,
            result: Err(error),
        });
        self.signal.notify();
    }
}

impl EndpointQueue for NusbQueue {
    fn submit_in(&mut self, endpoint: EndpointAddress, len: usize) {
        match self.queue(endpoint).filter(|_| endpoint.is_in()) {
            Some(queue) if u32::try_from(len).is_ok() => {
                queue.submit_in(len);
                self.arm(endpoint);
            }
            _ => self.refuse(endpoint, error::fault(Errno::INVAL)),
        }
    }

    fn submit_out(&mut self, endpoint: EndpointAddress, buffer: Secret) {
        match self.queue(endpoint).filter(|_| !endpoint.is_in()) {
            Some(queue) => {
                queue.submit_out(&buffer);
                self.arm(endpoint);
            }
            None => self.refuse(endpoint, error::fault(Errno::INVAL)),
        }
    }

    fn next_completion(&mut self) -> Option<Completion> {
        if let Some(ready) = self.ready.pop_front() {
            return Some(ready);
        }
        self.signal.clear();
        let mut context = Context::from_waker(&self.waker);
        self.queues
            .iter_mut()
            .find_map(|queue| queue.poll(&mut context))
    }

    fn poll_fds(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        vec![(self.signal.as_fd(), PollFlags::IN)]
    }

    fn cancel(&mut self, endpoint: EndpointAddress) {
        if let Some(queue) = self.queue(endpoint) {
            queue.cancel();
        }
    }

    fn pending(&self, endpoint: EndpointAddress) -> usize {
        let queue = self.queues.iter().find(|queue| queue.address() == endpoint);
        queue.map_or(0, |queue| queue.pending())
    }

    fn clear_halt(&mut self, endpoint: EndpointAddress) -> Result<(), TransferError> {
        let queue = self.queue(endpoint).ok_or(error::fault(Errno::NOENT))?;
        if queue.pending() > 0 {
            return Err(error::fault(Errno::BUSY));
        }
        queue.clear_halt()
    }
}

impl Drop for NusbQueue {
    fn drop(&mut self) {
        let endpoints = self.addresses();
        drain(self, &endpoints);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_type_is_split_into_type_and_recipient() {
        assert_eq!(
            request_kind(0x21),
            Ok((ControlType::Class, Recipient::Interface))
        );
        assert_eq!(
            request_kind(0xA1),
            Ok((ControlType::Class, Recipient::Interface))
        );
        assert_eq!(
            request_kind(0x80),
            Ok((ControlType::Standard, Recipient::Device))
        );
        assert_eq!(
            request_kind(0x42),
            Ok((ControlType::Vendor, Recipient::Endpoint))
        );
        assert_eq!(request_kind(0x60), Err(error::fault(Errno::INVAL)));
        assert_eq!(request_kind(0x04), Err(error::fault(Errno::INVAL)));
    }
}
