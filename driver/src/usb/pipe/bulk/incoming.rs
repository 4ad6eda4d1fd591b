//! Assembles incoming messages: the size of each IN transfer, and the end of each message.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use claviger_apdu::Secret;

use crate::{
    ccid::{budget, message::HEADER},
    usb::host::transfer::Completion,
};

/// Assembles the messages of the bulk IN endpoint.
#[derive(Debug)]
pub(super) struct IncomingMessage {
    packet: usize,
    /// Bytes that one IN transfer requests.
    read: usize,
    /// The reader does not end a message of whole packets by a zero-length packet. Shared by all claims of the device.
    omits_zlp: Arc<AtomicBool>,
    collected: Secret,
}

impl IncomingMessage {
    /// Messages of at most `longest` bytes, in packets of `packet` bytes.
    pub(super) fn new(longest: usize, packet: usize) -> Self {
        let packet = packet.max(1);
        Self {
            packet,
            read: read_size(longest, packet),
            omits_zlp: Arc::default(),
            collected: Secret::default(),
        }
    }

    /// Sets the device's flag for readers that omit zero-length packets.
    pub(super) fn share_omits_zlp(&mut self, omits_zlp: Arc<AtomicBool>) {
        self.omits_zlp = omits_zlp;
    }

    pub(super) fn reads_exact_sizes(&self) -> bool {
        self.omits_zlp.load(Ordering::Relaxed)
    }

    /// A message of whole packets came without a zero-length packet.
    pub(super) fn note_omitted_zlp(&self) {
        if !self.omits_zlp.swap(true, Ordering::Relaxed) {
            tracing::debug!(
                "usb: the reader omits zero-length packets; exact sizes are requested from now on"
            );
        }
    }

    /// Returns how many bytes the next IN transfer requests.
    pub(super) fn next_len(&self) -> usize {
        if !self.reads_exact_sizes() {
            return self.read;
        }
        let missing = self.bytes_missing().unwrap_or(1);
        missing.div_ceil(self.packet) * self.packet
    }

    pub(super) fn collect(&mut self, completion: Completion) {
        let mut part = completion.buffer;
        part.truncate(completion.transferred);
        if self.collected.is_empty() {
            self.collected = part;
            return;
        }
        // One byte more than any message has shows that there was too much.
        let most = budget::ANSWER + HEADER + 1;
        part.truncate(most.saturating_sub(self.collected.len()));
        self.collected.extend(part.expose());
    }

    /// Returns whether the message continues, although its last transfer has ended.
    pub(super) fn awaits_more(&self) -> bool {
        self.reads_exact_sizes() && self.bytes_missing().is_some_and(|missing| missing > 0)
    }

    /// Returns whether the whole message has arrived, by its own length field.
    pub(super) fn is_complete(&self) -> bool {
        self.bytes_missing() == Some(0) && !self.collected.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.collected.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.collected = Secret::default();
    }

    /// Takes what has arrived.
    pub(super) fn take(&mut self) -> Secret {
        std::mem::take(&mut self.collected)
    }

    /// Takes the first message. Without a zero-length packet one transfer may hold a message of whole packets and the next one.
    pub(super) fn take_first(&mut self) -> Secret {
        let all = self.take();
        let first = message_len(all.expose()).filter(|first| first.is_multiple_of(self.packet));
        let Some((first, rest)) = first.and_then(|first| all.expose().split_at_checked(first))
        else {
            return all;
        };
        if rest.is_empty() {
            return all;
        }
        self.collected = Secret::copy_from(rest);
        let first = Secret::copy_from(first);
        self.note_omitted_zlp();
        first
    }

    /// Bytes of the message that have not arrived, by its own length field. Returns `None` before the header.
    fn bytes_missing(&self) -> Option<usize> {
        let whole = message_len(self.collected.expose())?.min(budget::ANSWER + HEADER);
        Some(whole.saturating_sub(self.collected.len()))
    }
}

/// The length of a message, by its own length field.
fn message_len(message: &[u8]) -> Option<usize> {
    let [_, a, b, c, d, ..] = message else {
        return None;
    };
    let data = usize::try_from(u32::from_le_bytes([*a, *b, *c, *d])).ok()?;
    data.checked_add(HEADER)
}

/// Returns the size of an IN transfer. A size that is no multiple of the packet size overflows when the reader sends too much,
/// and the endpoint fails. One more packet lets a message of whole packets end with a short one.
fn read_size(longest: usize, packet: usize) -> usize {
    let packets = longest.div_ceil(packet).saturating_add(1);
    packets.saturating_mul(packet)
}
