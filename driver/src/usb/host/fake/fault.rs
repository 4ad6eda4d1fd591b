//! What may go wrong on a bus and in a reader, to be tried at every step.

/// One thing that goes wrong, once. The first seven befall the transfer or request at whose event they strike; the
/// others spoil the next answer on bulk-IN.
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
    /// The device sends more than was asked for.
    Overflow,
    /// The answer comes twice.
    Duplicate,
    /// An empty packet comes before the answer.
    ZlpFirst,
    /// The answer lacks its last byte.
    Short,
    /// The answer has a byte too many.
    OverLong,
    /// The answer names another slot.
    WrongSlot,
    /// The answer names another sequence number.
    WrongSequence,
    /// The answer is of another type.
    WrongType,
    /// The answer before it comes again first.
    StaleFirst,
    /// Instead of the answer come requests for more time, until another command is answered.
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

    /// Whether it befalls a transfer, rather than what a message says.
    pub(super) fn is_of_the_bus(self) -> bool {
        matches!(
            self,
            Self::Drop | Self::Delay | Self::Stall | Self::Failed(_) | Self::Disconnected
        )
    }

    /// The messages sent instead of `answer`; `last` is the one before it.
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

/// The request for more time that stands for `answer` (CCID 1.1, 6.2.6: bmCommandStatus 2, bError the factor).
pub(super) fn time_extension(answer: &[u8], multiplier: u8) -> Vec<u8> {
    let mut message = vec![0x80, 0, 0, 0, 0, 0, 0, 0x80, multiplier, 0];
    for (at, to) in message.iter_mut().enumerate() {
        if matches!(at, 0 | 5 | 6) {
            *to = answer.get(at).copied().unwrap_or(0);
        }
    }
    message
}

/// The answer before, or where there is none this one as it would have been a sequence number earlier.
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
