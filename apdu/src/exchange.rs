//! One command and its response as a state machine: the caller takes frames to send and passes in frames received.
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

/// Most GET RESPONSE rounds of one response: 64 KiB in pieces of 256 bytes, and as many again.
pub(crate) const MAX_ROUNDS: u32 = 512;
/// Longest response, the maximum of extended length.
pub(crate) const MAX_RESPONSE: usize = 65_536;

/// What the caller does next.
#[derive(Debug)]
pub enum Step {
    /// Send [`Exchange::frame`] and pass the response to [`Exchange::receive`].
    Send,
    /// The response is complete.
    Done(ResponseApdu),
}

/// The response violates ISO 7816-4 or a limit of one command. The card may have executed the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExchangeError {
    /// Fewer than two bytes.
    #[error("the response has {len} bytes, too few for a status word")]
    NoStatusWord {
        /// Bytes received.
        len: usize,
    },
    /// More data than one response may have.
    #[error("the response is longer than {MAX_RESPONSE} bytes")]
    ResponseTooLong,
    /// More than `MAX_ROUNDS` times 61xx.
    #[error("the response came in more than {MAX_ROUNDS} pieces")]
    TooManyRounds,
    /// 6Cxx again, after Le was corrected.
    #[error("the card rejected the Le that it asked for (6Cxx again)")]
    LengthLoop,
    /// GET RESPONSE was refused. Another program came in between; the command itself has been executed.
    #[error("the card executed the command, but refused the rest of the response: {status}")]
    RestRefused {
        /// The status word that GET RESPONSE got.
        status: StatusWord,
    },
    /// The command does not fit a chain.
    #[error(transparent)]
    TooLong(#[from] TooLong),
}

/// The state of one exchange.
#[derive(Debug)]
pub struct Exchange {
    cla: u8,
    /// The frames that have no response yet. The next one to send is last.
    pending: Vec<Secret>,
    response: Secret,
    rounds: u32,
    length_corrected: bool,
}

impl Exchange {
    /// Splits `command` into frames for `limits`.
    ///
    /// # Errors
    /// [`ExchangeError::TooLong`] if the command has too much data.
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

    /// Returns the frame to send now.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        self.pending.last().map_or(&[], Secret::expose)
    }

    /// Returns whether the card has executed the command and only the rest of the response is missing.
    #[must_use]
    pub const fn is_executed(&self) -> bool {
        self.rounds > 0
    }

    /// Takes the response to the frame sent last.
    ///
    /// # Errors
    /// [`ExchangeError`]. The exchange has then failed and ends.
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
        if self.response.len() + data.len() > MAX_RESPONSE {
            return Err(ExchangeError::ResponseTooLong);
        }
        self.response.extend(data);
        let sent = self.pending.pop();
        if status.sw1() == 0x61 {
            return self.request_more(status.sw2());
        }
        if status.is_ok() && !self.pending.is_empty() {
            return Ok(Step::Send);
        }
        drop(sent);
        Ok(Step::Done(ResponseApdu {
            data: std::mem::take(&mut self.response),
            status,
        }))
    }

    /// Sends the frame again with the Le that the card wants. The card did nothing so far (ISO 7816-4, 5.1).
    fn correct_length(&mut self, le: u8) -> Result<Step, ExchangeError> {
        if std::mem::replace(&mut self.length_corrected, true) {
            return Err(ExchangeError::LengthLoop);
        }
        let frame = self.pending.pop().ok_or(ExchangeError::LengthLoop)?;
        self.pending.push(with_short_le(&frame, le));
        Ok(Step::Send)
    }

    fn request_more(&mut self, ne: u8) -> Result<Step, ExchangeError> {
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

/// Returns the same frame with another Le. An extended frame gets two bytes.
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
    let mut corrected = Secret::new(Vec::with_capacity(keep + 2));
    corrected.extend(bytes.get(..keep).unwrap_or(bytes));
    if extended {
        corrected.extend(&[0]);
    }
    corrected.extend(&[le]);
    corrected
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Expected;

    /// Plays a transcript of `(frame to send, response)` and returns how the exchange ends.
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
            ExchangeError::ResponseTooLong
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
