//! Misbehaviour of a virtual reader on demand. What its *card* does is [`Reader::on_frame`](crate::reader::Reader::on_frame).

/// What the reader does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsbFault {
    /// Nothing comes from it but by its control endpoint, until it is healed.
    Silence,
    /// As [`UsbFault::Silence`], and its control endpoint is silent too.
    Death,
    /// The next answer of the card is lost, and the endpoint halted until the host clears that.
    Stall,
    /// The next answer of the card has the number of the command before.
    WrongSequence,
    /// An answer to the command before comes ahead of the next answer of the card.
    StaleAnswer,
    /// The next answer of the card ends before its own count says.
    ShortAnswer,
    /// A transfer without a byte comes ahead of the next answer of the card.
    EmptyPacket,
    /// The next message to the reader arrives, and no byte of it is counted.
    UncountedOut,
}

/// What a transfer from the reader gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Bytes(Vec<u8>),
    Halt,
}

impl UsbFault {
    /// Whether it lasts until the reader is healed.
    pub(super) const fn lasts(self) -> bool {
        matches!(self, Self::Silence | Self::Death)
    }

    /// What comes instead of `answer`.
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

/// The same with the number of the command before (CCID 1.1, 6.2: bSeq).
fn earlier(mut answer: Vec<u8>) -> Vec<u8> {
    if let Some(sequence) = answer.get_mut(6) {
        *sequence = sequence.wrapping_sub(1);
    }
    answer
}
