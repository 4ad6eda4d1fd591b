//! One command and its answer as a value: pull frames to send, push frames received.
//!
//! ```text
//! CommandApdu ──► [frame] ──► card ──► 9000 on all but the last of a chain
//!                 GET RESPONSE ◄── 61xx        same frame, Le = xx ◄── 6Cxx
//!                 ResponseApdu ◄── anything else
//! ```

use crate::{
    command::{CommandApdu, Limits, TooLong},
    response::ResponseApdu,
    secret::Secret,
    status::StatusWord,
};

/// GET RESPONSE rounds one answer may take: 64 KiB in pieces of 256 bytes, and as many again.
pub(crate) const MAX_ROUNDS: u32 = 512;
/// Longest answer in all, the extended-length maximum.
pub(crate) const MAX_ANSWER: usize = 65_536;

/// What to do next.
#[derive(Debug)]
pub enum Step {
    /// Send [`Exchange::frame`] and hand the answer to [`Exchange::receive`].
    Send,
    /// The answer is complete.
    Done(ResponseApdu),
}

/// The answer broke ISO 7816-4 or the budget of one command; the card may have executed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExchangeError {
    /// Fewer than two bytes.
    #[error("response without a status word ({len} bytes)")]
    NoStatusWord {
        /// Bytes received.
        len: usize,
    },
    /// More data than one answer may have.
    #[error("answer longer than {MAX_ANSWER} bytes")]
    AnswerTooLong,
    /// 61xx without end.
    #[error("answer in more than {MAX_ROUNDS} pieces")]
    TooManyRounds,
    /// 6Cxx to the corrected length.
    #[error("card answered 6Cxx to the length it asked for")]
    LengthLoop,
    /// The rest of the answer was refused: somebody else came in between, and the command has been executed.
    #[error("the rest of the answer was refused with {status}")]
    RestRefused {
        /// What GET RESPONSE got.
        status: StatusWord,
    },
    /// The command does not fit the way to the card.
    #[error(transparent)]
    TooLong(#[from] TooLong),
}

/// The state of one command on its way.
#[derive(Debug)]
pub struct Exchange {
    cla: u8,
    /// Frames not yet answered, the next one last.
    pending: Vec<Secret>,
    response: Secret,
    rounds: u32,
    length_corrected: bool,
}

impl Exchange {
    /// Cuts `command` into frames for `limits`.
    ///
    /// # Errors
    /// [`ExchangeError::TooLong`] when it cannot be.
    pub fn new(command: &CommandApdu<'_>, limits: Limits) -> Result<Self, ExchangeError> {
        let mut pending = command.frames(limits)?;
        pending.reverse();
        Ok(Self {
            cla: command.header[0],
            pending,
            response: Secret::default(),
            rounds: 0,
            length_corrected: false,
        })
    }

    /// The frame to send now.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        self.pending.last().map_or(&[], Secret::expose)
    }

    /// Whether the card has executed the command and only its answer is still to be fetched.
    #[must_use]
    pub const fn is_executed(&self) -> bool {
        self.rounds > 0
    }

    /// Takes the answer to the frame last sent.
    ///
    /// # Errors
    /// [`ExchangeError`]; the exchange is then over.
    pub fn receive(&mut self, frame: &[u8]) -> Result<Step, ExchangeError> {
        let Some((data, status)) = frame.split_last_chunk::<2>() else {
            return Err(ExchangeError::NoStatusWord { len: frame.len() });
        };
        let status = StatusWord(u16::from_be_bytes(*status));
        if status.sw1() == 0x6C {
            return self.correct_length(status.sw2());
        }
        if self.is_executed() && status.sw1() > 0x63 && !status.is_ok() {
            return Err(ExchangeError::RestRefused { status });
        }
        if self.response.len() + data.len() > MAX_ANSWER {
            return Err(ExchangeError::AnswerTooLong);
        }
        self.response.extend(data);
        let answered = self.pending.pop();
        if status.sw1() == 0x61 {
            return self.ask_for_more(status.sw2());
        }
        if status.is_ok() && !self.pending.is_empty() {
            return Ok(Step::Send);
        }
        drop(answered);
        Ok(Step::Done(ResponseApdu {
            data: std::mem::take(&mut self.response),
            status,
        }))
    }

    /// ISO 7816-4, 5.1: the card did nothing and says which Le it wants.
    fn correct_length(&mut self, le: u8) -> Result<Step, ExchangeError> {
        if std::mem::replace(&mut self.length_corrected, true) {
            return Err(ExchangeError::LengthLoop);
        }
        let frame = self.pending.pop().ok_or(ExchangeError::LengthLoop)?;
        self.pending.push(with_short_le(&frame, le));
        Ok(Step::Send)
    }

    fn ask_for_more(&mut self, ne: u8) -> Result<Step, ExchangeError> {
        self.rounds += 1;
        if self.rounds > MAX_ROUNDS {
            return Err(ExchangeError::TooManyRounds);
        }
        self.length_corrected = false;
        self.pending.clear();
        self.pending.push(CommandApdu::get_response(self.cla, ne));
        Ok(Step::Send)
    }
}

/// The same frame with another Le; an extended frame gets two bytes.
fn with_short_le(frame: &Secret, le: u8) -> Secret {
    let bytes = frame.expose();
    let (keep, extended) = match bytes {
        [_, _, _, _, 0, hi, lo, rest @ ..] => {
            let lc = usize::from(u16::from_be_bytes([*hi, *lo]));
            // `00 Le2` without data, else `00 Lc2 data [Le2]`
            if rest.is_empty() {
                (5, true)
            } else {
                (7 + lc, true)
            }
        }
        [_, _, _, _, lc, _, ..] => (5 + usize::from(*lc), false),
        _ => (4, false),
    };
    let mut again = Secret::new(Vec::with_capacity(keep + 2));
    again.extend(bytes.get(..keep).unwrap_or(bytes));
    if extended {
        again.extend(&[0]);
    }
    again.extend(&[le]);
    again
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Expected;

    /// Plays a transcript of `(frame we must send, answer)` and returns how it ends.
    fn play(
        command: CommandApdu<'_>,
        limits: Limits,
        transcript: &[(&str, &str)],
    ) -> Result<(Vec<u8>, u16), ExchangeError> {
        let mut exchange = Exchange::new(&command, limits)?;
        for (number, (sent, response)) in transcript.iter().enumerate() {
            assert_eq!(exchange.frame(), hex(sent), "frame {number}");
            match exchange.receive(&hex(response))? {
                Step::Send => assert!(number + 1 < transcript.len(), "wants to send more"),
                Step::Done(response) => {
                    assert_eq!(number + 1, transcript.len(), "ended early");
                    return Ok((response.data.expose().to_vec(), response.status.0));
                }
            }
        }
        panic!("transcript ended before the exchange");
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap())
            .collect()
    }

    const READ: CommandApdu<'_> = CommandApdu {
        data: &[0x5C, 0x01, 0x7E],
        expected: Expected::All,
        ..CommandApdu::header([0x00, 0xCB, 0x3F, 0xFF])
    };

    #[test]
    fn more_data_is_fetched_with_get_response_and_joined() {
        let got = play(
            READ,
            Limits::SHORT,
            &[
                ("00CB3FFF 03 5C017E 00", "0102 6102"),
                ("00C00000 02", "0304 6100"),
                ("00C00000 00", "05 9000"),
            ],
        );
        assert_eq!(got, Ok((vec![1, 2, 3, 4, 5], 0x9000)));
    }

    #[test]
    fn wrong_le_is_corrected_once() {
        let got = play(
            READ,
            Limits::SHORT,
            &[
                ("00CB3FFF 03 5C017E 00", "6C03"),
                ("00CB3FFF 03 5C017E 03", "010203 9000"),
            ],
        );
        assert_eq!(got, Ok((vec![1, 2, 3], 0x9000)));
        let got = play(
            READ,
            Limits::SHORT,
            &[
                ("00CB3FFF 03 5C017E 00", "6C03"),
                ("00CB3FFF 03 5C017E 03", "6C03"),
            ],
        );
        assert_eq!(got, Err(ExchangeError::LengthLoop));
    }

    #[test]
    fn wrong_le_of_get_response_is_corrected_too() {
        let got = play(
            READ,
            Limits::SHORT,
            &[
                ("00CB3FFF 03 5C017E 00", "6110"),
                ("00C00000 10", "6C02"),
                ("00C00000 02", "0102 9000"),
            ],
        );
        assert_eq!(got, Ok((vec![1, 2], 0x9000)));
    }

    #[test]
    fn wrong_le_of_an_extended_command_keeps_its_data() {
        let got = play(
            READ,
            Limits::EXTENDED,
            &[
                ("00CB3FFF 000003 5C017E 0000", "6C03"),
                ("00CB3FFF 000003 5C017E 0003", "010203 9000"),
            ],
        );
        assert_eq!(got, Ok((vec![1, 2, 3], 0x9000)));
    }

    #[test]
    fn refused_get_response_is_not_the_response_to_the_command() {
        let sign = CommandApdu {
            data: &[1, 2],
            expected: Expected::UpTo(256),
            ..CommandApdu::header([0x00, 0x88, 0x00, 0x00])
        };
        let got = play(
            sign,
            Limits::SHORT,
            &[("00880000 02 0102 00", "6140"), ("00C00000 40", "6D00")],
        );
        assert_eq!(
            got,
            Err(ExchangeError::RestRefused {
                status: StatusWord(0x6D00)
            })
        );
    }

    #[test]
    fn a_chain_stops_at_the_first_block_the_card_refuses() {
        let data = [0xAA; 300];
        let command = CommandApdu {
            data: &data,
            ..CommandApdu::header([0x00, 0xDB, 0x3F, 0xFF])
        };
        let first = format!("10DB3FFF FF {}", "AA".repeat(255));
        assert_eq!(
            play(command, Limits::SHORT, &[(&first, "6884")]),
            Ok((vec![], 0x6884))
        );
    }

    #[test]
    fn get_response_of_a_chain_carries_no_chaining_bit() {
        let data = [0xAA; 256];
        let command = CommandApdu {
            data: &data,
            expected: Expected::All,
            ..CommandApdu::header([0x00, 0x2A, 0x80, 0x86])
        };
        let first = format!("102A8086 FF {}", "AA".repeat(255));
        let got = play(
            command,
            Limits::SHORT,
            &[
                (&first, "9000"),
                ("002A8086 01 AA 00", "6101"),
                ("00C00000 01", "42 9000"),
            ],
        );
        assert_eq!(got, Ok((vec![0x42], 0x9000)));
    }

    #[test]
    fn endless_responses_end_within_the_budget() {
        let mut exchange = Exchange::new(&READ, Limits::SHORT).unwrap();
        let mut frames = 0u32;
        let error = loop {
            frames += 1;
            assert!(frames <= MAX_ROUNDS + 1, "no end");
            match exchange.receive(&[0x61, 0x00]) {
                Ok(Step::Send) => {}
                Ok(Step::Done(_)) => panic!("never done"),
                Err(error) => break error,
            }
        };
        assert_eq!(error, ExchangeError::TooManyRounds);
        let mut exchange = Exchange::new(&READ, Limits::SHORT).unwrap();
        let mut piece = vec![0; 40_000];
        piece.extend([0x61, 0xFF]);
        assert!(matches!(exchange.receive(&piece), Ok(Step::Send)));
        assert_eq!(
            exchange.receive(&piece).unwrap_err(),
            ExchangeError::AnswerTooLong
        );
    }

    #[test]
    fn response_without_status_word_is_an_error() {
        let mut exchange = Exchange::new(&READ, Limits::SHORT).unwrap();
        assert_eq!(
            exchange.receive(&[0x90]).unwrap_err(),
            ExchangeError::NoStatusWord { len: 1 }
        );
    }
}
