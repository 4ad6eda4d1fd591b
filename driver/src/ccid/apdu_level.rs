//! Exchanges with readers of the APDU levels. A command is usually one block. A command longer than the reader's
//! longest message is split by wLevelParameter (CCID 1.1, 6.1.4 and 6.2.1).
//!
//! ```text
//! command    0001 first ── 10 ──► 0003 next ── 10 ──► 0002 last ──► response
//! response   01 first ◄── 0010 ── 03 next ◄── 0010 ── 02 last
//! ```

use claviger_apdu::Secret;

use super::budget;

/// wLevelParameter: the block is a whole command.
const WHOLE_COMMAND: u16 = 0x0000;
/// The first part of a command.
const FIRST_PART: u16 = 0x0001;
/// The last part of a command.
const LAST_PART: u16 = 0x0002;
/// A part in the middle of a command.
const MIDDLE_PART: u16 = 0x0003;
/// No command. Requests the next part of the response.
const CONTINUE: u16 = 0x0010;

/// One command and its response, in the parts that the reader accepts.
#[derive(Debug)]
pub struct ApduExchange<'a> {
    rest: &'a [u8],
    part: &'a [u8],
    level_parameter: u16,
    longest: usize,
    response: Secret,
    parts: usize,
}

/// The result of a response to a part.
#[derive(Debug)]
pub enum Progress {
    /// Send the next part.
    Send,
    /// The response is complete: data and status word.
    Done(Secret),
}

/// The reader violated the rules of chaining.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// bChainParameter is not 00, 01, 02, 03 or 10, or is not allowed at this point.
    #[error("the reader sent bChainParameter {0:02X} out of place")]
    OutOfPlace(u8),
    /// The response is longer than a response may be.
    #[error("the response has more than {} bytes", budget::ANSWER)]
    TooLong,
    /// The command or the response has too many parts.
    #[error("the exchange has more than {} parts", budget::CHAINED_PARTS)]
    TooManyParts,
}

impl<'a> ApduExchange<'a> {
    /// Begins the exchange of `command` with a reader whose messages hold `longest` bytes of data.
    #[must_use]
    pub fn new(command: &'a [u8], longest: usize) -> Self {
        let longest = longest.max(1);
        let (part, rest) = command.split_at(command.len().min(longest));
        Self {
            rest,
            part,
            level_parameter: if rest.is_empty() {
                WHOLE_COMMAND
            } else {
                FIRST_PART
            },
            longest,
            response: Secret::default(),
            parts: 0,
        }
    }

    /// Returns wLevelParameter and data of the next block.
    #[must_use]
    pub const fn block(&self) -> (u16, &'a [u8]) {
        (self.level_parameter, self.part)
    }

    /// Returns whether all bytes of the command have been returned by [`ApduExchange::block`].
    #[must_use]
    pub const fn is_all_sent(&self) -> bool {
        self.rest.is_empty()
    }

    /// Processes the response to the last block, with its bChainParameter.
    ///
    /// # Errors
    /// [`ChainError`]. The exchange is then over.
    pub fn receive(&mut self, chain: u8, data: &[u8]) -> Result<Progress, ChainError> {
        self.parts += 1;
        if self.parts > budget::CHAINED_PARTS {
            return Err(ChainError::TooManyParts);
        }
        if !self.rest.is_empty() {
            return self.next_part(chain, data);
        }
        if self.response.len().saturating_add(data.len()) > budget::ANSWER {
            return Err(ChainError::TooLong);
        }
        let is_continued = self.level_parameter == CONTINUE;
        self.response.extend(data);
        match (chain, is_continued) {
            (0x00, false) | (0x02, true) => Ok(Progress::Done(std::mem::take(&mut self.response))),
            (0x01, false) | (0x03, true) => {
                (self.level_parameter, self.part) = (CONTINUE, &[]);
                Ok(Progress::Send)
            }
            _ => Err(ChainError::OutOfPlace(chain)),
        }
    }

    /// Processes the request for the next part of the command: 10 without data.
    fn next_part(&mut self, chain: u8, data: &[u8]) -> Result<Progress, ChainError> {
        if chain != 0x10 || !data.is_empty() {
            return Err(ChainError::OutOfPlace(chain));
        }
        (self.part, self.rest) = self.rest.split_at(self.rest.len().min(self.longest));
        self.level_parameter = if self.rest.is_empty() {
            LAST_PART
        } else {
            MIDDLE_PART
        };
        Ok(Progress::Send)
    }
}

/// Exchanges a command with a reader of arbitrary behaviour, for the fuzz target `ccid_chaining`. The first two bytes
/// are the length of the command and the reader's longest block. Then each response follows: its bChainParameter, its
/// length and its data.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let [length, longest, responses @ ..] = bytes else {
        return;
    };
    let command = vec![0x5A; usize::from(*length) * 4];
    let mut exchange = ApduExchange::new(&command, usize::from(*longest));
    let mut sent = exchange.block().1.len();
    let mut rest = responses;
    while let [chain, length, after @ ..] = rest {
        let (data, after) = after.split_at(after.len().min(usize::from(*length)));
        rest = after;
        match exchange.receive(*chain, data) {
            Ok(Progress::Send) => sent += exchange.block().1.len(),
            Ok(Progress::Done(response)) => {
                assert!(
                    response.len() <= budget::ANSWER,
                    "a response within its limit"
                );
                assert_eq!(sent, command.len(), "a response to the whole command only");
                return;
            }
            Err(_) => return,
        }
        assert!(sent <= command.len(), "no byte of the command twice");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the blocks sent to a reader that returns `responses`, and the result.
    fn play(
        command: &[u8],
        longest: usize,
        responses: &[(u8, &[u8])],
    ) -> (Vec<(u16, Vec<u8>)>, String) {
        let mut exchange = ApduExchange::new(command, longest);
        let mut blocks = Vec::new();
        let mut last = "unfinished".to_owned();
        for (chain, data) in responses {
            let (level, block) = exchange.block();
            blocks.push((level, block.to_vec()));
            match exchange.receive(*chain, data) {
                Ok(Progress::Send) => {}
                Ok(Progress::Done(response)) => last = format!("{:02X?}", response.expose()),
                Err(error) => last = error.to_string(),
            }
        }
        (blocks, last)
    }

    #[test]
    fn a_command_that_fits_is_one_block() {
        let (blocks, response) = play(&[0, 0xA4, 4, 0], 54, &[(0x00, &[0x90, 0x00])]);
        assert_eq!(blocks, [(0x0000, vec![0, 0xA4, 4, 0])]);
        assert_eq!(response, "[90, 00]");
        // A command of exactly the longest block is still one block.
        assert_eq!(play(&[7; 54], 54, &[(0x00, &[0x90, 0])]).0.len(), 1);
    }

    #[test]
    fn long_command_is_split_and_each_part_acknowledged() {
        let command: Vec<u8> = (0..10).collect();
        let responses: [(u8, &[u8]); 3] = [(0x10, &[]), (0x10, &[]), (0x00, &[0x90, 0x00])];
        let (blocks, response) = play(&command, 4, &responses);
        let sent = [
            (0x0001, vec![0, 1, 2, 3]),
            (0x0003, vec![4, 5, 6, 7]),
            (0x0002, vec![8, 9]),
        ];
        assert_eq!(blocks, sent);
        assert_eq!(response, "[90, 00]");
    }

    #[test]
    fn chained_response_is_requested_part_by_part() {
        let responses: [(u8, &[u8]); 3] = [(0x01, &[1, 2]), (0x03, &[3, 4]), (0x02, &[0x90, 0x00])];
        let (blocks, response) = play(&[0, 0xCB, 0x3F, 0xFF], 54, &responses);
        let levels: Vec<u16> = blocks.iter().map(|(level, _)| *level).collect();
        assert_eq!(levels, [0x0000, 0x0010, 0x0010]);
        assert!(blocks.iter().skip(1).all(|(_, block)| block.is_empty()));
        assert_eq!(response, "[01, 02, 03, 04, 90, 00]");
    }

    #[test]
    fn response_before_the_last_command_part_is_refused() {
        for (chain, data) in [
            (0x00, &[0x90, 0x00][..]),
            (0x10, &[1]),
            (0x01, &[]),
            (0x7F, &[]),
        ] {
            let (_, response) = play(&[0; 10], 4, &[(chain, data)]);
            assert_eq!(
                response,
                format!("the reader sent bChainParameter {chain:02X} out of place")
            );
        }
    }

    #[test]
    fn response_parts_begin_once_and_end_once() {
        for chain in [0x02, 0x03, 0x10, 0x04, 0xFF] {
            let (_, response) = play(&[0; 4], 54, &[(chain, &[])]);
            assert_eq!(
                response,
                format!("the reader sent bChainParameter {chain:02X} out of place")
            );
        }
        for chain in [0x00, 0x01, 0x10] {
            let (_, response) = play(&[0; 4], 54, &[(0x01, &[1]), (chain, &[2])]);
            assert_eq!(
                response,
                format!("the reader sent bChainParameter {chain:02X} out of place")
            );
        }
    }

    #[test]
    fn endless_chained_response_ends_at_its_budget() {
        let mut exchange = ApduExchange::new(&[0; 4], 54);
        let mut chain = 0x01;
        let error = (0..1_000).find_map(|_| {
            let received = exchange.receive(chain, &[0; 256]);
            chain = 0x03;
            received.err()
        });
        assert_eq!(error, Some(ChainError::TooLong));
        let mut exchange = ApduExchange::new(&[0; 4], 54);
        let mut chain = 0x01;
        let error = (0..10_000).find_map(|_| {
            let received = exchange.receive(chain, &[]);
            chain = 0x03;
            received.err()
        });
        assert_eq!(error, Some(ChainError::TooManyParts));
    }
}
