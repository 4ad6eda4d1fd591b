//! The messages of the interrupt endpoint, which the reader sends unasked (CCID 1.1, 6.3).

/// A message of the interrupt endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notification {
    /// Cards were inserted or removed. There is one entry for each slot, beginning with slot 0, up to the number of
    /// slots in the message.
    SlotChange(Vec<SlotState>),
    /// The reader's hardware failed during a command.
    HardwareError {
        /// bSlot.
        slot: u8,
        /// bSeq of the command.
        sequence: u8,
        /// bHardwareErrorCode. 01 means overcurrent.
        code: u8,
    },
}

/// The state of one slot in a notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotState {
    /// Whether the slot holds a card.
    pub present: bool,
    /// Whether the slot changed since the last notification. If the slot held a card before and holds one now, a card
    /// was removed and a card inserted.
    pub changed: bool,
}

/// A malformed notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the reader sent a malformed notification of {0} bytes")]
pub struct NotificationError(usize);

impl Notification {
    /// Parses a notification of a reader with `slots` slots. Ignores the bits of slots that do not exist. The result
    /// has fewer slots if the message is too short.
    ///
    /// # Errors
    /// [`NotificationError`].
    pub fn parse(bytes: &[u8], slots: u8) -> Result<Self, NotificationError> {
        match bytes {
            [0x50, states @ ..] if !states.is_empty() => {
                let states = states.iter().flat_map(|byte| four(*byte));
                Ok(Self::SlotChange(states.take(usize::from(slots)).collect()))
            }
            [0x51, slot, sequence, code, ..] => Ok(Self::HardwareError {
                slot: *slot,
                sequence: *sequence,
                code: *code,
            }),
            other => Err(NotificationError(other.len())),
        }
    }
}

/// Returns the states of the four slots in a byte. The first slot is in the lowest bits.
fn four(byte: u8) -> [SlotState; 4] {
    [0, 2, 4, 6].map(|shift| SlotState {
        present: byte >> shift & 1 != 0,
        changed: byte >> shift & 2 != 0,
    })
}

/// Parses arbitrary bytes, of which the first is the number of slots, for the fuzz target `ccid_notification`.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    if let [slots, bytes @ ..] = bytes
        && let Ok(Notification::SlotChange(states)) = Notification::parse(bytes, *slots)
    {
        assert!(
            states.len() <= usize::from(*slots),
            "no slot that does not exist"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REMOVED: SlotState = SlotState {
        present: false,
        changed: true,
    };
    const INSERTED: SlotState = SlotState {
        present: true,
        changed: true,
    };
    const UNCHANGED: SlotState = SlotState {
        present: true,
        changed: false,
    };

    #[test]
    fn each_slot_has_two_bits() {
        let states = |bytes: &[u8], slots| Notification::parse(bytes, slots);
        assert_eq!(
            states(&[0x50, 0x03], 1),
            Ok(Notification::SlotChange(vec![INSERTED]))
        );
        assert_eq!(
            states(&[0x50, 0x02], 1),
            Ok(Notification::SlotChange(vec![REMOVED]))
        );
        let five = vec![INSERTED, REMOVED, UNCHANGED, UNCHANGED, INSERTED];
        assert_eq!(
            states(&[0x50, 0x5B, 0x03], 5),
            Ok(Notification::SlotChange(five))
        );
    }

    #[test]
    fn slots_that_do_not_exist_are_left_out() {
        let all = Notification::parse(&[0x50, 0xFF, 0xFF, 0xFF], 2);
        assert_eq!(all, Ok(Notification::SlotChange(vec![INSERTED, INSERTED])));
        // The reader has eight slots, and the message only four.
        let some = Notification::parse(&[0x50, 0x01], 8);
        assert_eq!(
            some,
            Ok(Notification::SlotChange(vec![
                UNCHANGED,
                SlotState {
                    present: false,
                    changed: false
                },
                SlotState {
                    present: false,
                    changed: false
                },
                SlotState {
                    present: false,
                    changed: false
                }
            ]))
        );
    }

    #[test]
    fn a_hardware_error_is_not_a_slot_change() {
        let error = Notification::parse(&[0x51, 0, 9, 1], 1);
        let (slot, sequence, code) = (0, 9, 1);
        assert_eq!(
            error,
            Ok(Notification::HardwareError {
                slot,
                sequence,
                code
            })
        );
    }

    #[test]
    fn malformed_notification_is_refused() {
        for bytes in [&[][..], &[0x50], &[0x51, 0, 9], &[0x52, 0xFF], &[0x00]] {
            assert_eq!(
                Notification::parse(bytes, 1),
                Err(NotificationError(bytes.len()))
            );
        }
    }
}
