//! Faults of a virtual reader that a test injects. For faults of its card see
//! [`Reader::on_frame`](crate::reader::Reader::on_frame).

/// A fault of the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsbFault {
    /// The bulk and interrupt endpoints send nothing until [`UsbReader::heal`](super::UsbReader::heal).
    Silence,
    /// As [`UsbFault::Silence`], and the control endpoint does not reply either.
    Death,
    /// The next response of the card is lost, and the endpoint is halted until the host clears that.
    Stall,
    /// The next response of the card has the sequence number of the previous command.
    WrongSequence,
    /// A response to the previous command precedes the next response of the card.
    StaleAnswer,
    /// The next response of the card is shorter than its own length field.
    ShortAnswer,
    /// An empty transfer precedes the next response of the card.
    EmptyPacket,
    /// The next message to the reader arrives, but the completion reports zero bytes.
    UncountedOut,
}

/// The result of one transfer from the reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Bytes(Vec<u8>),
    Halt,
}

impl UsbFault {
    /// Returns whether the fault lasts until it is cleared.
    pub(super) const fn lasts(self) -> bool {
        matches!(self, Self::Silence | Self::Death)
    }

    /// The transfers that replace `answer`.
    pub(super) fn instead_of(self, answer: Vec<u8>) -> Vec<Part> {
        match self {
            Self::Stall => vec![Part::Halt],
            Self::WrongSequence => vec![Part::Bytes(earlier(answer))],
            Self::StaleAnswer => vec![Part::Bytes(earlier(answer.clone())), Part::Bytes(answer)],
            Self::ShortAnswer => {
                let mut answer = answer;
                answer.pop();
                vec![Part::Bytes(answer)]
            }
            Self::EmptyPacket => vec![Part::Bytes(Vec::new()), Part::Bytes(answer)],
            Self::Silence | Self::Death | Self::UncountedOut => vec![Part::Bytes(answer)],
        }
    }
}

/// The response with the sequence number of the previous command (CCID 1.1, 6.2: bSeq).
fn earlier(mut answer: Vec<u8>) -> Vec<u8> {
    if let Some(sequence) = answer.get_mut(6) {
        *sequence = sequence.wrapping_sub(1);
    }
    answer
}
