//! The card's side of T=0 (ISO 7816-3, 10 and 12.2), in front of firmware that takes APDUs.
//!
//! | command TPDU | the firmware handles it as | T=0 adds |
//! |---|---|---|
//! | header, P3 | case 2, Le = P3; case 1 for commands without response data | 6Cxx for a response of another length, which is kept |
//! | header, P3, P3 bytes | case 3, Lc = P3 | nothing: the firmware itself reports response data with 61xx |
//!
//! The command that repeats the first with the length of 6Cxx gets the kept response. It is not executed again.

/// Status word for a command whose data length differs from P3.
const WRONG_LENGTH: [u8; 2] = [0x67, 0x00];
/// SW1 before the number of available bytes.
const CORRECT_LENGTH: u8 = 0x6C;
/// Length of a status word.
const STATUS: usize = 2;

/// The T=0 state of a card between two resets.
#[derive(Debug, Default)]
pub(crate) struct T0 {
    held: Option<Held>,
}

/// A kept response, and the command that gets it.
#[derive(Debug)]
struct Held {
    command: [u8; 5],
    answer: Vec<u8>,
}

impl T0 {
    /// Returns the response to a command TPDU. Calls `firmware` once at most.
    ///
    /// # Errors
    /// The errors of `firmware`.
    pub(crate) fn answer<E>(
        &mut self,
        tpdu: &[u8],
        firmware: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
    ) -> Result<Vec<u8>, E> {
        let held = self.held.take();
        let Some((command, data)) = tpdu.split_first_chunk::<5>() else {
            return Ok(WRONG_LENGTH.to_vec());
        };
        let [header @ .., p3] = *command;
        if !data.is_empty() && data.len() != usize::from(p3) {
            return Ok(WRONG_LENGTH.to_vec());
        }
        if let Some(held) = held.filter(|held| held.command == *command && data.is_empty()) {
            return Ok(held.answer);
        }
        let answer = firmware(tpdu)?;
        let there = answer.len().saturating_sub(STATUS);
        if !data.is_empty() || there == 0 || there == usize::from(p3) || (there, p3) == (256, 0) {
            return Ok(answer);
        }
        // The firmware returns Le bytes at most, and Le is 256 at most.
        let length = u8::try_from(there).unwrap_or(0);
        let [cla, ins, p1, p2] = header;
        self.held = Some(Held {
            command: [cla, ins, p1, p2, length],
            answer,
        });
        Ok(vec![CORRECT_LENGTH, length])
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    const GET_DATA: [u8; 5] = [0x00, 0xCA, 0x00, 0x4F, 0];

    fn answers(t0: &mut T0, tpdu: &[u8], answer: &[u8]) -> Vec<u8> {
        let Ok(answer) = t0.answer(tpdu, |_| Ok::<_, Infallible>(answer.to_vec()));
        answer
    }

    fn from_memory(t0: &mut T0, tpdu: &[u8]) -> Vec<u8> {
        let Ok(answer) = t0.answer(tpdu, |_| -> Result<_, Infallible> {
            unreachable!("the firmware is asked")
        });
        answer
    }

    #[test]
    fn response_of_another_length_is_kept_until_its_length_is_requested() {
        let mut t0 = T0::default();
        let answer = [1, 2, 3, 0x90, 0x00];
        assert_eq!(answers(&mut t0, &GET_DATA, &answer), [0x6C, 3]);
        assert_eq!(from_memory(&mut t0, &[0x00, 0xCA, 0x00, 0x4F, 3]), answer);
        assert_eq!(answers(&mut t0, &GET_DATA, &[0x6A, 0x88]), [0x6A, 0x88]);
    }

    #[test]
    fn another_command_discards_the_kept_response() {
        let mut t0 = T0::default();
        assert_eq!(answers(&mut t0, &GET_DATA, &[1, 0x90, 0x00]), [0x6C, 1]);
        assert_eq!(
            answers(&mut t0, &[0, 0x20, 0, 0x80, 0], &[0x63, 0xC3]),
            [0x63, 0xC3]
        );
        let asked_again = [0x00, 0xCA, 0x00, 0x4F, 1];
        assert_eq!(
            answers(&mut t0, &asked_again, &[2, 0x90, 0x00]),
            [2, 0x90, 0x00]
        );
    }

    #[test]
    fn full_block_and_its_more_data_status_are_passed_on_unchanged() {
        let answer = [&[7; 256][..], &[0x61, 0x00]].concat();
        assert_eq!(answers(&mut T0::default(), &GET_DATA, &answer), answer);
    }

    #[test]
    fn t0_data_length_must_equal_p3() {
        for tpdu in [&[0, 0x20, 0, 0x80][..], &[0, 0x20, 0, 0x80, 2, 1]] {
            assert_eq!(from_memory(&mut T0::default(), tpdu), WRONG_LENGTH);
        }
        let verify = [0, 0x20, 0, 0x80, 1, 1];
        assert_eq!(answers(&mut T0::default(), &verify, &[0x61, 9]), [0x61, 9]);
    }
}
