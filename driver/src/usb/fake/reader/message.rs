//! Messages to and from the reader (CCID 1.1, chapter 6), collected from transfers.

/// What no reader takes; a longer dwLength is the host's mistake.
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
    /// The message that ends with this transfer, if one does. What is too long, or longer than it says, is dropped.
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

/// What a slot says of its card and of the command (CCID 1.1, 6.2.6).
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
