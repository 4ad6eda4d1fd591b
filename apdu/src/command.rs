//! Command APDUs (ISO 7816-4, 5.1) and how they are split into frames.

use std::time::Duration;

use crate::secret::Secret;

/// The number of response bytes that the command asks for (Ne).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// No response data: Le is absent.
    Nothing,
    /// At most this many bytes, 1 to 65 536.
    UpTo(u32),
    /// As many as the card has: Le is the largest value of the frame's form.
    All,
}

/// The kind of work that the command asks of the card. It sets the timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandBudget {
    /// The card reads, selects or compares a PIN.
    Fast,
    /// The card uses a private key, perhaps after the user touches it.
    PrivateKey,
    /// The card generates a key. RSA-4096 takes minutes on some cards.
    KeyGeneration,
}

impl CommandBudget {
    /// Returns the timeout of the command.
    #[must_use]
    pub const fn timeout(self) -> Duration {
        match self {
            Self::Fast => Duration::from_secs(10),
            Self::PrivateKey => Duration::from_secs(60),
            Self::KeyGeneration => Duration::from_secs(15 * 60),
        }
    }
}

/// A command before it is split into frames. Write it as a literal over [`CommandApdu::header`].
///
/// ```
/// use claviger_apdu::{CommandApdu, Expected};
/// let select = CommandApdu {
///     data: &[0xD2, 0x76, 0x00, 0x01, 0x24, 0x01],
///     expected: Expected::All,
///     ..CommandApdu::header([0x00, 0xA4, 0x04, 0x00])
/// };
/// assert_eq!(select.data.len(), 6);
/// ```
#[derive(Clone, Copy)]
pub struct CommandApdu<'a> {
    /// CLA INS P1 P2.
    pub header: [u8; 4],
    /// The data field, at most 65 535 bytes. Empty data means no Lc.
    pub data: &'a [u8],
    /// The response data that the command asks for.
    pub expected: Expected,
    /// The kind of work, which sets the timeout.
    pub budget: CommandBudget,
}

impl<'a> CommandApdu<'a> {
    /// The CLA bit of command chaining: more commands of the chain follow.
    pub(crate) const CHAINING: u8 = 0x10;

    /// Returns a command of four bytes: no data, no response data, [`CommandBudget::Fast`].
    #[must_use]
    pub const fn header(header: [u8; 4]) -> Self {
        Self {
            header,
            data: &[],
            expected: Expected::Nothing,
            budget: CommandBudget::Fast,
        }
    }

    /// Returns INS, the instruction byte.
    #[must_use]
    pub const fn instruction(&self) -> u8 {
        self.header[1]
    }

    /// Builds GET RESPONSE (ISO 7816-4, 7.6.1) on the channel of `cla`. `ne` 0 asks for 256 bytes.
    pub(crate) fn get_response(cla: u8, ne: u8) -> Secret {
        Secret::new(vec![cla & 0x0F, 0xC0, 0x00, 0x00, ne])
    }

    /// Returns the frames to send in this order: one short or extended APDU, or a chain of short ones.
    ///
    /// An extended APDU is used if the short form cannot hold the command or its response and the whole frame fits
    /// `limits`. Otherwise data that exceeds a short frame is chained.
    ///
    /// # Errors
    /// [`TooLong`] if the data exceeds the limit of a chain ([`Limits::CHAINED_DATA`]).
    pub fn frames(&self, limits: Limits) -> Result<Vec<Secret>, TooLong> {
        let long_response = matches!(self.expected, Expected::UpTo(n) if n > 256);
        let extended_pays =
            self.data.len() > 255 || long_response || self.expected == Expected::All;
        if limits.extended && extended_pays && self.extended_len() <= limits.command {
            return Ok(vec![self.extended_frame()]);
        }
        if self.data.len() > Limits::CHAINED_DATA {
            return Err(TooLong {
                len: self.data.len(),
            });
        }
        Ok(self.short_frames(limits.short_data()))
    }

    fn extended_len(&self) -> usize {
        4 + 1
            + if self.data.is_empty() {
                0
            } else {
                2 + self.data.len()
            }
            + 2
    }

    /// Builds `CLA INS P1 P2 | 00 Lc2 data | Le2`, with `00 Le2` if there is no data.
    fn extended_frame(&self) -> Secret {
        let mut frame = Secret::new(Vec::with_capacity(self.extended_len()));
        frame.extend(&self.header);
        frame.extend(&[0]);
        if !self.data.is_empty() {
            let len = u16::try_from(self.data.len()).unwrap_or(u16::MAX);
            frame.extend(&len.to_be_bytes());
            frame.extend(self.data);
        }
        match self.expected {
            Expected::Nothing => {}
            Expected::UpTo(n) => frame.extend(&u16::try_from(n).unwrap_or(0).to_be_bytes()),
            Expected::All => frame.extend(&[0, 0]),
        }
        frame
    }

    /// Builds frames with up to `most` bytes of data each.
    fn short_frames(&self, most: usize) -> Vec<Secret> {
        let [cla, ins, p1, p2] = self.header;
        let mut blocks: Vec<&[u8]> = self.data.chunks(most).collect();
        let last = blocks.pop().unwrap_or(&[]);
        let mut frames: Vec<Secret> = blocks
            .iter()
            .map(|block| short_frame([cla | Self::CHAINING, ins, p1, p2], block, None))
            .collect();
        let le = match self.expected {
            Expected::Nothing => None,
            // 256 and more are both written 00. GET RESPONSE fetches the rest.
            Expected::UpTo(n) => Some(u8::try_from(n).unwrap_or(0)),
            Expected::All => Some(0),
        };
        frames.push(short_frame(self.header, last, le));
        frames
    }
}

/// Builds `CLA INS P1 P2 | Lc data | Le`, with at most 255 bytes of data.
fn short_frame(header: [u8; 4], data: &[u8], le: Option<u8>) -> Secret {
    let mut frame = Secret::new(Vec::with_capacity(4 + 1 + data.len() + 1));
    frame.extend(&header);
    if !data.is_empty() {
        frame.extend(&[u8::try_from(data.len()).unwrap_or(u8::MAX)]);
        frame.extend(data);
    }
    if let Some(le) = le {
        frame.extend(&[le]);
    }
    frame
}

/// The longest frames that reader, card and backend carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Whether both the reader and the card take extended-length APDUs.
    pub extended: bool,
    /// Longest command frame in bytes that is known to arrive, header and length bytes included. Longer commands are
    /// chained.
    pub command: usize,
    /// Longest command frame in bytes that may still arrive. It applies to cards that do not support chaining.
    pub unchained: usize,
}

impl Limits {
    /// Short APDUs only, which every reader and card supports.
    pub const SHORT: Self = Self {
        extended: false,
        command: 261,
        unchained: 261,
    };
    /// Extended APDUs of any length.
    pub const EXTENDED: Self = Self {
        extended: true,
        command: 65_544,
        unchained: 65_544,
    };
    /// Most data of a chain of commands: four times the largest certificate of any known card.
    pub const CHAINED_DATA: usize = 32 * 1024;

    /// Returns limits for extended APDUs. Commands of up to `command` bytes are known to arrive, longer ones may
    /// arrive.
    #[must_use]
    pub const fn extended_known_to(command: usize) -> Self {
        Self {
            command,
            ..Self::EXTENDED
        }
    }

    /// Returns these limits for a card that takes short APDUs only.
    #[must_use]
    pub fn short(self) -> Self {
        Self {
            extended: false,
            command: self.command.min(Self::SHORT.command),
            unchained: self.unchained.min(Self::SHORT.unchained),
        }
    }

    /// Returns these limits for a card that does not support chaining. A long command is tried as one frame.
    #[must_use]
    pub const fn without_chaining(self) -> Self {
        Self {
            command: self.unchained,
            ..self
        }
    }

    /// Returns the most data of a short frame. Header, Lc and Le have to fit as well.
    fn short_data(self) -> usize {
        self.command.saturating_sub(4 + 1 + 1).clamp(1, 255)
    }
}

/// The command's data is longer than the limit of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the command has {len} bytes of data; a chain carries at most {}",
    Limits::CHAINED_DATA
)]
pub struct TooLong {
    /// Bytes of data that the caller passed.
    pub len: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(command: CommandApdu<'_>, limits: Limits) -> Vec<Vec<u8>> {
        command
            .frames(limits)
            .unwrap()
            .iter()
            .map(|f| f.expose().to_vec())
            .collect()
    }

    #[test]
    fn the_four_short_cases() {
        let header = [0x00, 0xCB, 0x3F, 0xFF];
        let base = CommandApdu::header(header);
        assert_eq!(bytes(base, Limits::SHORT), [vec![0, 0xCB, 0x3F, 0xFF]]);
        assert_eq!(
            bytes(
                CommandApdu {
                    expected: Expected::All,
                    ..base
                },
                Limits::SHORT
            ),
            [vec![0, 0xCB, 0x3F, 0xFF, 0]]
        );
        assert_eq!(
            bytes(
                CommandApdu {
                    data: &[1, 2],
                    ..base
                },
                Limits::SHORT
            ),
            [vec![0, 0xCB, 0x3F, 0xFF, 2, 1, 2]]
        );
        assert_eq!(
            bytes(
                CommandApdu {
                    data: &[1, 2],
                    expected: Expected::UpTo(3),
                    ..base
                },
                Limits::SHORT
            ),
            [vec![0, 0xCB, 0x3F, 0xFF, 2, 1, 2, 3]]
        );
    }

    #[test]
    fn data_over_255_bytes_is_chained_with_the_last_block_unmarked() {
        let data = [7u8; 266];
        let frames = bytes(
            CommandApdu {
                data: &data,
                expected: Expected::All,
                ..CommandApdu::header([0, 0x87, 7, 0x9A])
            },
            Limits::SHORT,
        );
        assert_eq!(frames.len(), 2);
        assert_eq!(frames[0][..5], [0x10, 0x87, 7, 0x9A, 255]);
        assert_eq!(frames[0].len(), 260);
        assert_eq!(frames[1][..5], [0x00, 0x87, 7, 0x9A, 11]);
        assert_eq!(frames[1].len(), 5 + 11 + 1);
    }

    #[test]
    fn extended_form_is_one_frame() {
        let data = [7u8; 266];
        let command = CommandApdu {
            data: &data,
            expected: Expected::All,
            ..CommandApdu::header([0, 0x87, 7, 0x9A])
        };
        let frames = bytes(command, Limits::EXTENDED);
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0][..7], [0, 0x87, 7, 0x9A, 0, 1, 10]);
        assert_eq!(frames[0][7 + 266..], [0, 0]);
        let read = CommandApdu {
            expected: Expected::All,
            ..CommandApdu::header([0, 0xCA, 0, 0x6E])
        };
        assert_eq!(
            bytes(read, Limits::EXTENDED),
            [vec![0, 0xCA, 0, 0x6E, 0, 0, 0]]
        );
    }

    #[test]
    fn a_frame_over_the_readers_limit_is_chained() {
        let data = [7u8; 1000];
        let command = CommandApdu {
            data: &data,
            ..CommandApdu::header([0, 0xDB, 0x3F, 0xFF])
        };
        assert_eq!(bytes(command, Limits::extended_known_to(512)).len(), 4);
    }

    #[test]
    fn a_long_command_is_one_frame_for_a_card_that_does_not_chain() {
        let command = CommandApdu {
            data: &[7; 1000],
            ..CommandApdu::header([0, 0xDB, 0x3F, 0xFF])
        };
        let limits = Limits::extended_known_to(512).without_chaining();
        assert_eq!(bytes(command, limits).len(), 1);
    }

    #[test]
    fn response_is_requested_at_full_length_under_a_command_limit() {
        let read = CommandApdu {
            data: &[0x5C, 3, 0x5F, 0xC1, 5],
            expected: Expected::All,
            ..CommandApdu::header([0, 0xCB, 0x3F, 0xFF])
        };
        let frames = bytes(read, Limits::extended_known_to(262));
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0][4..7], [0, 0, 5], "Lc of an extended APDU");
        assert!(frames[0].ends_with(&[0, 0]), "Le of an extended APDU");
    }

    #[test]
    fn short_frames_fit_the_message_limit() {
        let command = CommandApdu {
            data: &[7; 300],
            expected: Expected::All,
            ..CommandApdu::header([0, 0xDB, 0x3F, 0xFF])
        };
        for most in [54, 246, 253, 260] {
            let limits = Limits::extended_known_to(most).short();
            let frames = bytes(command, limits);
            assert!(frames.iter().all(|frame| frame.len() <= most), "{most}");
            let data: Vec<u8> = frames
                .iter()
                .flat_map(|frame| frame[5..5 + usize::from(frame[4])].to_vec())
                .collect();
            assert_eq!(data, [7; 300], "{most}");
        }
        assert_eq!(Limits::EXTENDED.short(), Limits::SHORT);
    }

    #[test]
    fn data_over_the_chain_limit_is_refused_before_the_card() {
        let data = vec![0u8; Limits::CHAINED_DATA + 1];
        let command = CommandApdu {
            data: &data,
            ..CommandApdu::header([0, 0xDB, 0x3F, 0xFF])
        };
        assert_eq!(
            command.frames(Limits::SHORT).unwrap_err(),
            TooLong { len: data.len() }
        );
    }
}
