//! USB/IP, as the kernel's vhci-hcd uses it over a socket. Each request gets one reply, in any order.

use std::io::{self, Read, Write};

/// Header of every request and reply.
const HEADER: usize = 48;
const ECONNRESET: i32 = -104;
const EPIPE: i32 = -32;

/// A request of the kernel.
pub(super) enum Request {
    /// A transfer.
    Submit(Transfer),
    /// Cancels the transfer `victim`.
    Unlink { number: u32, victim: u32 },
}

/// A transfer.
pub(super) struct Transfer {
    pub(super) number: u32,
    pub(super) endpoint: u8,
    pub(super) is_in: bool,
    /// Size of the buffer.
    pub(super) length: usize,
    pub(super) setup: [u8; 8],
    /// The data to the device.
    pub(super) data: Vec<u8>,
}

impl Request {
    pub(super) fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut header = [0; HEADER];
        from.read_exact(&mut header)?;
        let word = |at: usize| {
            let bytes = header.get(at..).and_then(|rest| rest.first_chunk());
            bytes.map_or(0, |bytes| u32::from_be_bytes(*bytes))
        };
        if word(0) == 2 {
            return Ok(Self::Unlink {
                number: word(4),
                victim: word(20),
            });
        }
        let is_in = word(12) == 1;
        let length = usize::try_from(word(24)).map_err(io::Error::other)?;
        let mut data = vec![0; if is_in { 0 } else { length }];
        from.read_exact(&mut data)?;
        let setup = header.last_chunk().copied().unwrap_or_default();
        Ok(Self::Submit(Transfer {
            number: word(4),
            endpoint: u8::try_from(word(16)).unwrap_or(u8::MAX),
            is_in,
            length,
            setup,
            data,
        }))
    }
}

fn reply(to: &mut impl Write, words: [u32; 6], data: &[u8]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(HEADER + data.len());
    let [kind, number, status, length, ..] = words;
    for word in [kind, number, 0, 0, 0, status, length, 0, 0, 0, 0, 0] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(data);
    to.write_all(&bytes)
}

/// Reports a successful transfer, with the `data` to the host or the number of bytes sent to the device.
pub(super) fn done(to: &mut impl Write, number: u32, sent: usize, data: &[u8]) -> io::Result<()> {
    let length = u32::try_from(sent.max(data.len())).unwrap_or(0);
    reply(to, [3, number, 0, length, 0, 0], data)
}

/// Reports a stalled transfer.
pub(super) fn stalled(to: &mut impl Write, number: u32) -> io::Result<()> {
    reply(to, [3, number, EPIPE.cast_unsigned(), 0, 0, 0], &[])
}

/// Replies to a cancellation: the transfer was cancelled, or had already completed.
pub(super) fn unlinked(to: &mut impl Write, number: u32, was_pending: bool) -> io::Result<()> {
    let status = if was_pending { ECONNRESET } else { 0 };
    reply(to, [4, number, status.cast_unsigned(), 0, 0, 0], &[])
}
