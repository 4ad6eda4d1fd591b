//! One endpoint: the transfers queued for it and the packets that wait for them.

use std::collections::VecDeque;

use claviger_apdu::Secret;

use crate::usb::host::transfer::{EndpointAddress, TransferError};

/// The reason why a transfer does not move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    Forever,
    UntilReleased,
}

pub(super) struct Transfer {
    /// The room there is.
    pub(super) len: usize,
    pub(super) buffer: Secret,
    pub(super) transferred: usize,
    pub(super) hold: Option<Hold>,
    /// The result of the transfer, if it has ended.
    pub(super) ended: Option<Result<(), TransferError>>,
    /// Whether its end was recorded as an event.
    pub(super) noted: bool,
}

impl Transfer {
    pub(super) fn to_receive(len: usize) -> Self {
        Self {
            len,
            buffer: Secret::default(),
            transferred: 0,
            hold: None,
            ended: None,
            noted: false,
        }
    }

    pub(super) fn to_send(buffer: Secret) -> Self {
        Self {
            len: buffer.len(),
            buffer,
            ..Self::to_receive(0)
        }
    }

    /// Takes one packet in; `None` while more may come.
    fn take(&mut self, packet: &[u8], size: usize) -> Option<Result<(), TransferError>> {
        let room = self.len.saturating_sub(self.buffer.len());
        let fits = packet.get(..room).unwrap_or(packet);
        self.buffer.extend(fits);
        self.transferred = self.buffer.len();
        if packet.len() > room || packet.len() > size {
            return Some(Err(TransferError::Overflow));
        }
        (packet.len() < size || self.transferred == self.len).then_some(Ok(()))
    }
}

pub(super) struct Endpoint {
    pub(super) address: EndpointAddress,
    packet: usize,
    pub(super) halted: bool,
    pub(super) packets: VecDeque<Vec<u8>>,
    pub(super) pending: VecDeque<Transfer>,
    /// The queue it belongs to.
    pub(super) owner: Option<u64>,
}

impl Endpoint {
    pub(super) fn new(address: EndpointAddress, packet: usize) -> Self {
        Self {
            address,
            packet: packet.max(1),
            halted: false,
            packets: VecDeque::new(),
            pending: VecDeque::new(),
            owner: None,
        }
    }

    /// Returns whether a transfer of `len` bytes from the device is allowed.
    pub(super) fn takes(&self, len: usize) -> bool {
        len > 0 && len.is_multiple_of(self.packet)
    }

    /// Cuts a message into packets, the last of them short.
    pub(super) fn put(&mut self, message: &[u8], zlp: bool) {
        let packets = message.chunks(self.packet).map(<[u8]>::to_vec);
        self.packets.extend(packets);
        let full = message.len().is_multiple_of(self.packet);
        if message.is_empty() || (full && zlp) {
            self.packets.push_back(Vec::new());
        }
    }

    pub(super) fn release(&mut self) {
        for transfer in &mut self.pending {
            if transfer.hold == Some(Hold::UntilReleased) {
                transfer.hold = None;
            }
        }
    }

    /// The first transfer, filled with what has come or, where nothing has, with `endless`; if that ends it.
    pub(super) fn receive(&mut self, endless: Option<&[u8]>) -> Option<Transfer> {
        if !self.first_ends()? {
            self.fill(endless);
        }
        if self.first_ends()? {
            return self.pending.pop_front();
        }
        None
    }

    fn fill(&mut self, endless: Option<&[u8]>) {
        if self.packets.is_empty() {
            self.packets.extend(endless.map(<[u8]>::to_vec));
        }
        let size = self.packet;
        let Some(first) = self.pending.front_mut() else {
            return;
        };
        while first.ended.is_none() {
            let Some(packet) = self.packets.pop_front() else {
                return;
            };
            first.ended = first.take(&packet, size);
        }
    }

    /// The first transfer to the device, if nothing holds it.
    pub(super) fn first_to_send(&mut self) -> Option<Transfer> {
        self.first_ends()?;
        self.pending.pop_front()
    }

    /// Returns whether the first transfer has ended. Returns `None` if there is none, or if it is held.
    fn first_ends(&mut self) -> Option<bool> {
        let halted = self.halted;
        let first = self.pending.front_mut()?;
        if first.hold.is_some() {
            return None;
        }
        if halted && first.ended.is_none() {
            first.ended = Some(Err(TransferError::Stall));
        }
        Some(first.ended.is_some())
    }
}
