//! Messages to and from the reader (CCID 1.1, chapter 6), collected from transfers.

/// The longest message of any reader. A longer dwLength is an error of the host.
pub const MAX_MESSAGE: usize = 65_556;

/// A command of the host.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) kind: u8,
    pub(super) slot: u8,
    pub(super) sequence: u8,
    /// The three bytes that mean something else in each message.
    pub(super) specific: [u8; 3],
    pub(super) data: Vec<u8>,
}

impl Command {
    /// wLevelParameter of an XfrBlock.
    pub(super) fn level(&self) -> u16 {
        let [_, low, high] = self.specific;
        u16::from_le_bytes([low, high])
    }
}

/// Puts transfers together until a message is whole.
#[derive(Debug, Default)]
pub(super) struct Collector {
    bytes: Vec<u8>,
}

impl Collector {
    /// Returns the message that ends with this transfer, if there is one. A message that is too long, or longer than stated, is
    /// dropped.
    pub(super) fn take(&mut self, transfer: &[u8]) -> Option<Command> {
        self.bytes.extend_from_slice(transfer);
        let [kind, a, b, c, d, slot, sequence, x, y, z, data @ ..] = self.bytes.as_slice() else {
            return None;
        };
        let length = usize::try_from(u32::from_le_bytes([*a, *b, *c, *d])).unwrap_or(usize::MAX);
        if length < data.len() || length > MAX_MESSAGE {
            self.bytes.clear();
            return None;
        }
        if length > data.len() {
            return None;
        }
        let command = Command {
            kind: *kind,
            slot: *slot,
            sequence: *sequence,
            specific: [*x, *y, *z],
            data: data.to_vec(),
        };
        self.bytes.clear();
        Some(command)
    }
}

/// The state of the card and of the command in a response (CCID 1.1, 6.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    Failed(u8),
}

/// A message of the reader; the last byte of its header is `extra`.
pub(super) fn reply(
    kind: u8,
    to: (u8, u8),
    card: u8,
    outcome: Outcome,
    extra: u8,
    data: &[u8],
) -> Vec<u8> {
    let (slot, sequence) = to;
    let (status, error) = match outcome {
        Outcome::Done => (0x00, 0x00),
        Outcome::Failed(error) => (0x40, error),
    };
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let mut message = vec![kind];
    message.extend(length.to_le_bytes());
    message.extend([slot, sequence, status | card, error, extra]);
    message.extend_from_slice(data);
    message
}

/// The types of the responses (CCID 1.1, 6.2).
pub(super) const DATA_BLOCK: u8 = 0x80;

const SLOT_STATUS: u8 = 0x81;

const PARAMETERS: u8 = 0x82;

const ESCAPE: u8 = 0x83;

const DATA_RATE: u8 = 0x84;

/// Errors of a slot (CCID 1.1, table 6.2-2).
pub(super) const NO_CARD: u8 = 0xFE;

pub(super) const UNSUPPORTED: u8 = 0;

/// Returns the type of the response to a command (CCID 1.1, table 6.1-1).
pub(super) fn response_type(kind: u8) -> u8 {
    match kind {
        0x62 | 0x6F | 0x69 => DATA_BLOCK,
        0x6C | 0x6D | 0x61 => PARAMETERS,
        0x6B => ESCAPE,
        0x73 => DATA_RATE,
        _ => SLOT_STATUS,
    }
}
