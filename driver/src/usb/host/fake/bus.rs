//! The behaviour of the bus and of the device: packets move, transfers end, and a fault takes effect at its step.

use super::{
    DeviceMessage, Event,
    endpoint::{Hold, Transfer},
    engine::DeviceState,
    fault::{Fault, time_extension},
};
use crate::usb::host::transfer::{Completion, EndpointAddress, SetupPacket, TransferError};

impl DeviceState {
    /// Moves all packets that can move on one endpoint. Messages that a transfer causes follow after the end of the transfer.
    pub(super) fn pump(&mut self, address: EndpointAddress) {
        while let Some((transfer, answers)) = self.next_ended(address) {
            self.conclude(address, transfer);
            for answer in answers {
                self.send(answer);
            }
        }
    }

    fn conclude(&mut self, address: EndpointAddress, mut transfer: Transfer) {
        let owner = self.endpoint(address).and_then(|endpoint| endpoint.owner);
        let mut result = transfer.ended.take().unwrap_or(Ok(()));
        let strikes = if transfer.noted {
            None
        } else {
            transfer.noted = true;
            self.strike(Event::Completed(address, transfer.transferred, result))
        };
        match strikes {
            Some(Fault::Drop) => return self.hold(address, transfer, result, Hold::Forever),
            Some(Fault::Delay) => {
                return self.hold(address, transfer, result, Hold::UntilReleased);
            }
            Some(Fault::Stall) => {
                self.halt(address);
                result = Err(TransferError::Stall);
            }
            Some(Fault::Failed(errno)) => result = Err(TransferError::Fault(errno)),
            Some(Fault::Disconnected) => {
                self.leave();
                result = Err(TransferError::Disconnected);
            }
            _ => {}
        }
        self.deliver(owner, address, transfer, result);
    }

    /// Returns the first transfer of the endpoint, if it has ended, and the device's messages in response to it.
    fn next_ended(&mut self, address: EndpointAddress) -> Option<(Transfer, Vec<DeviceMessage>)> {
        if address.is_in() {
            let endless = self
                .endless
                .clone()
                .filter(|_| address == self.layout.bulk_in);
            let transfer = self.endpoint(address)?.receive(endless.as_deref())?;
            return Some((transfer, Vec::new()));
        }
        let mut transfer = self.endpoint(address)?.first_to_send()?;
        let mut answers = Vec::new();
        if transfer.ended.is_none() {
            answers = self.firmware.bulk_out(transfer.buffer.expose());
            transfer.transferred = transfer.buffer.len();
            transfer.ended = Some(Ok(()));
        }
        Some((transfer, answers))
    }

    fn hold(
        &mut self,
        address: EndpointAddress,
        mut transfer: Transfer,
        result: Result<(), TransferError>,
        hold: Hold,
    ) {
        transfer.hold = Some(hold);
        transfer.ended = Some(result);
        if hold == Hold::Forever {
            transfer.transferred = 0;
            transfer.buffer.clear();
        }
        if let Some(endpoint) = self.endpoint(address) {
            endpoint.pending.push_front(transfer);
        }
    }

    fn halt(&mut self, address: EndpointAddress) {
        if let Some(endpoint) = self.endpoint(address) {
            endpoint.halted = true;
        }
    }

    /// Hands a transfer back to the queue it came from.
    pub(super) fn deliver(
        &mut self,
        owner: Option<u64>,
        endpoint: EndpointAddress,
        transfer: Transfer,
        result: Result<(), TransferError>,
    ) {
        if !transfer.noted {
            self.note(Event::Completed(endpoint, transfer.transferred, result));
        }
        self.counts.completed = self.counts.completed.saturating_add(1);
        let Some(queue) = owner.and_then(|owner| self.queues.get_mut(&owner)) else {
            return;
        };
        queue.done.push_back(Completion {
            endpoint,
            transferred: transfer.transferred,
            buffer: transfer.buffer,
            result,
        });
        // A counter that is full is readable too.
        let _ = rustix::io::write(&*queue.event, &1_u64.to_ne_bytes());
    }

    pub(super) fn release(&mut self) {
        let addresses: Vec<EndpointAddress> =
            self.endpoints.iter().map(|one| one.address).collect();
        for address in addresses {
            if let Some(endpoint) = self.endpoint(address) {
                endpoint.release();
            }
            self.pump(address);
        }
    }

    pub(super) fn leave(&mut self) {
        self.gone = true;
        let addresses: Vec<EndpointAddress> =
            self.endpoints.iter().map(|one| one.address).collect();
        for address in addresses {
            self.end_all(address, TransferError::Disconnected);
        }
    }

    pub(super) fn end_all(&mut self, address: EndpointAddress, error: TransferError) {
        while let Some((owner, transfer)) = self
            .endpoint(address)
            .and_then(|endpoint| Some((endpoint.owner, endpoint.pending.pop_front()?)))
        {
            self.deliver(owner, address, transfer, Err(error));
        }
    }

    /// Puts a message where the next transfer finds it.
    pub(super) fn send(&mut self, answer: DeviceMessage) {
        if self.gone || self.silent {
            return;
        }
        match answer {
            DeviceMessage::Bulk(message) => self.answer(message),
            DeviceMessage::Notification(message) => {
                if let Some(address) = self.layout.interrupt {
                    self.put(address, &message);
                }
            }
        }
    }

    fn answer(&mut self, message: Vec<u8>) {
        let address = self.layout.bulk_in;
        let spoiled = self.spoiled.take();
        self.endless =
            (spoiled == Some(Fault::EndlessTimeExtension)).then(|| time_extension(&message, 1));
        let last = self.last_answer.replace(message.clone());
        match spoiled {
            Some(Fault::Overflow) => {
                let babble = vec![0xAA; self.layout.packet.saturating_add(1)];
                if let Some(endpoint) = self.endpoint(address) {
                    endpoint.packets.push_back(babble);
                }
                self.pump(address);
            }
            Some(fault) => {
                for message in fault.spoil(message, last.as_deref()) {
                    self.put(address, &message);
                }
                self.pump(address);
            }
            None => self.put(address, &message),
        }
    }

    fn put(&mut self, address: EndpointAddress, message: &[u8]) {
        let zlp = self.layout.zlp;
        if let Some(endpoint) = self.endpoint(address) {
            endpoint.put(message, zlp);
        }
        self.pump(address);
    }

    pub(super) fn control(
        &mut self,
        setup: SetupPacket,
        data: &mut [u8],
    ) -> Result<usize, TransferError> {
        self.count_transfer();
        self.counts.control = self.counts.control.saturating_add(1);
        match self.strike(Event::Control(setup)) {
            Some(Fault::Drop) => return Err(TransferError::Cancelled),
            Some(Fault::Stall) => return Err(TransferError::Stall),
            Some(Fault::Failed(errno)) => return Err(TransferError::Fault(errno)),
            Some(Fault::Disconnected) => self.leave(),
            Some(Fault::Delay) => {
                let _ = self.firmware.control(setup, data);
                return Err(TransferError::Cancelled);
            }
            _ => {}
        }
        if self.gone {
            return Err(TransferError::Disconnected);
        }
        if self.silent {
            return Err(TransferError::Cancelled);
        }
        self.firmware.control(setup, data)
    }

    pub(super) fn reset(&mut self) -> Result<(), TransferError> {
        self.note(Event::Reset);
        if self.gone {
            return Err(TransferError::Disconnected);
        }
        self.firmware.reset();
        self.silent &= !std::mem::take(&mut self.hangs);
        self.endless = None;
        self.last_answer = None;
        let addresses: Vec<EndpointAddress> =
            self.endpoints.iter().map(|one| one.address).collect();
        for address in addresses {
            // usbfs does the same, because the reset unbinds its driver.
            self.end_all(address, TransferError::Disconnected);
            if let Some(endpoint) = self.endpoint(address) {
                endpoint.halted = false;
                endpoint.packets.clear();
            }
        }
        Ok(())
    }
}
