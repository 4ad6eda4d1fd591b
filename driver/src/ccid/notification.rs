//! What comes over the interrupt endpoint unasked (CCID 1.1, 6.3).

/// A message of the interrupt endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notification {
    /// Cards came or went. One entry a slot, beginning with slot 0; as many as the message has bits for.
    SlotChange(Vec<SlotState>),
    /// The reader's hardware failed in the middle of a command.
    HardwareError {
        /// bSlot.
        slot: u8,
        /// bSeq of the command.
        sequence: u8,
        /// bHardwareErrorCode: 01 is too much current.
        code: u8,
    },
}

/// What a notification says of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotState {
    /// Whether there is a card.
    pub present: bool,
    /// Whether that changed since the last notification. With the same presence as before, a card left and one came.
    pub changed: bool,
}

/// Bytes that are no notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} bytes that are no notification")]
pub struct NotificationError(usize);

impl Notification {
    /// Reads a message from a reader with `slots` slots. Bits of slots that do not exist are left out, and so are
    /// slots the message is too short for.
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

/// The four slots of a byte, the first in the lowest bits.
fn four(byte: u8) -> [SlotState; 4] {
    [0, 2, 4, 6].map(|shift| SlotState {
        present: byte >> shift & 1 != 0,
        changed: byte >> shift & 2 != 0,
    })
}

/// Reads arbitrary bytes, the first being the count of slots; for the fuzz target beside this file.
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

    const GONE: SlotState = SlotState {
        present: false,
        changed: true,
    };
    const CAME: SlotState = SlotState {
        present: true,
        changed: true,
    };
    const STAYS: SlotState = SlotState {
        present: true,
        changed: false,
    };

    #[test]
    fn each_slot_has_two_bits() {
        let states = |bytes: &[u8], slots| Notification::parse(bytes, slots);
        assert_eq!(
            states(&[0x50, 0x03], 1),
            Ok(Notification::SlotChange(vec![CAME]))
        );
        assert_eq!(
            states(&[0x50, 0x02], 1),
            Ok(Notification::SlotChange(vec![GONE]))
        );
        let five = vec![CAME, GONE, STAYS, STAYS, CAME];
        assert_eq!(
            states(&[0x50, 0x5B, 0x03], 5),
            Ok(Notification::SlotChange(five))
        );
    }

    #[test]
    fn slots_that_do_not_exist_are_left_out() {
        let all = Notification::parse(&[0x50, 0xFF, 0xFF, 0xFF], 2);
        assert_eq!(all, Ok(Notification::SlotChange(vec![CAME, CAME])));
        // A reader with eight slots that speaks of four.
        let some = Notification::parse(&[0x50, 0x01], 8);
        assert_eq!(
            some,
            Ok(Notification::SlotChange(vec![
                STAYS,
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
