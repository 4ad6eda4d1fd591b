//! Faults of the bus and of the reader, which a test can inject at every step.

/// A fault that happens once. The first seven affect the transfer or the request at whose event they take effect. The others
/// affect the next response on bulk-IN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The transfer never completes, unless it is cancelled; a control request reaches its limit unseen by the
    /// device. What a completed transfer had received is lost with it.
    Drop,
    /// The transfer completes when it is released or cancelled; a control request reaches its limit after the device
    /// has seen it.
    Delay,
    /// The endpoint halts.
    Stall,
    /// The transfer fails with this errno, at once.
    Failed(i32),
    /// The device leaves.
    Disconnected,
    /// The device sends more than requested.
    Overflow,
    /// The response comes twice.
    Duplicate,
    /// An empty packet comes before the response.
    ZlpFirst,
    /// The response lacks its last byte.
    Short,
    /// The response has a byte too many.
    OverLong,
    /// The response has another slot.
    WrongSlot,
    /// The response has another sequence number.
    WrongSequence,
    /// The response has another type.
    WrongType,
    /// The previous response comes again first.
    StaleFirst,
    /// Time extensions come instead of the response, until another command gets a response.
    EndlessTimeExtension,
}

impl Fault {
    /// Each of them.
    pub const ALL: [Self; 15] = [
        Self::Drop,
        Self::Delay,
        Self::Stall,
        Self::Failed(71),
        Self::Disconnected,
        Self::Overflow,
        Self::Duplicate,
        Self::ZlpFirst,
        Self::Short,
        Self::OverLong,
        Self::WrongSlot,
        Self::WrongSequence,
        Self::WrongType,
        Self::StaleFirst,
        Self::EndlessTimeExtension,
    ];

    /// Returns whether the fault affects a transfer, not the content of a message.
    pub(super) fn is_of_the_bus(self) -> bool {
        matches!(
            self,
            Self::Drop | Self::Delay | Self::Stall | Self::Failed(_) | Self::Disconnected
        )
    }

    /// Returns the messages that are sent instead of `answer`. `last` is the previous message.
    pub(super) fn spoil(self, mut answer: Vec<u8>, last: Option<&[u8]>) -> Vec<Vec<u8>> {
        match self {
            Self::Duplicate => return vec![answer.clone(), answer],
            Self::ZlpFirst => return vec![Vec::new(), answer],
            Self::StaleFirst => return vec![older(&answer, last), answer],
            Self::Short => drop(answer.pop()),
            Self::OverLong => answer.push(0xAA),
            Self::WrongSlot => change(&mut answer, 5, |slot| slot.wrapping_add(1)),
            Self::WrongSequence => change(&mut answer, 6, |sequence| sequence.wrapping_add(0x55)),
            Self::WrongType => change(
                &mut answer,
                0,
                |kind| if kind == 0x83 { 0x80 } else { 0x83 },
            ),
            Self::EndlessTimeExtension => return Vec::new(),
            Self::Drop
            | Self::Delay
            | Self::Stall
            | Self::Failed(_)
            | Self::Disconnected
            | Self::Overflow => {}
        }
        vec![answer]
    }
}

/// Returns the time extension that replaces `answer` (CCID 1.1, 6.2.6: bmCommandStatus 2, bError the factor).
pub(super) fn time_extension(answer: &[u8], multiplier: u8) -> Vec<u8> {
    let mut message = vec![0x80, 0, 0, 0, 0, 0, 0, 0x80, multiplier, 0];
    for (at, to) in message.iter_mut().enumerate() {
        if matches!(at, 0 | 5 | 6) {
            *to = answer.get(at).copied().unwrap_or(0);
        }
    }
    message
}

/// Returns the previous response. Without one, returns this response with the previous sequence number.
fn older(answer: &[u8], last: Option<&[u8]>) -> Vec<u8> {
    last.map_or_else(
        || {
            let mut older = answer.to_vec();
            change(&mut older, 6, |sequence| sequence.wrapping_sub(1));
            older
        },
        <[u8]>::to_vec,
    )
}

fn change(message: &mut [u8], at: usize, how: impl Fn(u8) -> u8) {
    if let Some(byte) = message.get_mut(at) {
        *byte = how(*byte);
    }
}
