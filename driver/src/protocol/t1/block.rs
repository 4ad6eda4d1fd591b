//! Blocks (ISO 7816-3, 11.3).
//!
//! ```text
//! | NAD | PCB | LEN | information field, LEN bytes | EDC, 1 or 2 bytes |
//! ```

use claviger_apdu::Secret;

use crate::protocol::parameters::ErrorDetection;

/// NAD, PCB and LEN.
pub const PROLOGUE: usize = 3;
/// The longest information field. 255 is reserved.
pub const MAX_INFORMATION: u8 = 254;
/// Both node addresses are 0: there is one host and one card.
const NAD: u8 = 0;

/// The function of an S-block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// Both sides return to their initial state.
    Resynch,
    /// The longest information field that its sender accepts.
    Ifs,
    /// The chain is aborted.
    Abort,
    /// The card needs more time.
    Wtx,
}

/// The error code of an R-block, about the block before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RBlockError {
    /// The block was free of errors.
    None,
    /// The parity or the error detection code was wrong.
    Redundancy,
    /// There was another error.
    Other,
}

/// A protocol control byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// I(N(S), M): a piece of an APDU.
    I {
        /// N(S).
        number: bool,
        /// M: more pieces follow.
        more: bool,
    },
    /// R(N(R)): the I-block of this number is expected next.
    R {
        /// N(R).
        number: bool,
        /// The error.
        error: RBlockError,
    },
    /// A request, or the response to one.
    S {
        /// The function.
        function: Function,
        /// Whether the block is the response.
        response: bool,
    },
}

impl Control {
    /// Returns the control byte of an R-block.
    #[must_use]
    pub const fn r(number: bool, error: RBlockError) -> Self {
        Self::R { number, error }
    }

    /// Returns the control byte of a request.
    #[must_use]
    pub const fn request(function: Function) -> Self {
        Self::S {
            function,
            response: false,
        }
    }

    /// Returns the control byte of a response.
    #[must_use]
    pub const fn response(function: Function) -> Self {
        Self::S {
            function,
            response: true,
        }
    }

    const fn byte(self) -> u8 {
        match self {
            Self::I { number, more } => (number as u8) << 6 | (more as u8) << 5,
            Self::R { number, error } => 0x80 | (number as u8) << 4 | error as u8,
            Self::S { function, response } => 0xC0 | (response as u8) << 5 | function as u8,
        }
    }

    /// Parses a protocol control byte. Reserved bits make a block invalid, except in the error code of an R-block,
    /// which is only informative.
    const fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            0x00 | 0x20 | 0x40 | 0x60 => Self::I {
                number: byte & 0x40 != 0,
                more: byte & 0x20 != 0,
            },
            0x80..=0x9F => Self::r(
                byte & 0x10 != 0,
                match byte & 0x0F {
                    0 => RBlockError::None,
                    1 => RBlockError::Redundancy,
                    _ => RBlockError::Other,
                },
            ),
            0xC0 | 0xE0 => Self::s(Function::Resynch, byte),
            0xC1 | 0xE1 => Self::s(Function::Ifs, byte),
            0xC2 | 0xE2 => Self::s(Function::Abort, byte),
            0xC3 | 0xE3 => Self::s(Function::Wtx, byte),
            _ => return None,
        })
    }

    const fn s(function: Function, byte: u8) -> Self {
        Self::S {
            function,
            response: byte & 0x20 != 0,
        }
    }

    /// Returns whether such a block may have an information field of `len` bytes.
    const fn fits(self, len: usize) -> bool {
        match self {
            Self::I { .. } => true,
            Self::R { .. } => len == 0,
            Self::S { function, .. } => match function {
                Function::Ifs | Function::Wtx => len == 1,
                Function::Resynch | Function::Abort => len == 0,
            },
        }
    }
}

/// A block without its epilogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block<'a> {
    /// The type of the block.
    pub control: Control,
    /// The information field.
    pub information: &'a [u8],
}

impl<'a> Block<'a> {
    /// Parses `bytes` as one block.
    ///
    /// # Errors
    /// The error code for an R-block: [`RBlockError::Redundancy`] if the error detection code is wrong, else
    /// [`RBlockError::Other`].
    pub fn parse(bytes: &'a [u8], detection: ErrorDetection) -> Result<Self, RBlockError> {
        let (body, code) = bytes
            .split_at_checked(bytes.len().wrapping_sub(detection.epilogue()))
            .ok_or(RBlockError::Other)?;
        let [nad, pcb, len, information @ ..] = body else {
            return Err(RBlockError::Other);
        };
        if usize::from(*len) != information.len() || *len > MAX_INFORMATION {
            return Err(RBlockError::Other);
        }
        if detection.code(body).get(..detection.epilogue()) != Some(code) {
            return Err(RBlockError::Redundancy);
        }
        let control = Control::of(*pcb).ok_or(RBlockError::Other)?;
        if *nad != NAD || !control.fits(information.len()) {
            return Err(RBlockError::Other);
        }
        Ok(Self {
            control,
            information,
        })
    }

    /// Returns the bytes to send. The information field must not exceed [`MAX_INFORMATION`] bytes.
    #[must_use]
    pub fn encode(&self, detection: ErrorDetection) -> Secret {
        let len = u8::try_from(self.information.len()).unwrap_or(u8::MAX);
        let capacity = PROLOGUE + self.information.len() + detection.epilogue();
        let mut bytes = Secret::new(Vec::with_capacity(capacity));
        bytes.extend(&[NAD, self.control.byte(), len]);
        bytes.extend(self.information);
        let code = detection.code(bytes.expose());
        bytes.extend(code.get(..detection.epilogue()).unwrap_or(&code));
        bytes
    }
}

impl ErrorDetection {
    /// Returns the length of the epilogue.
    #[must_use]
    pub const fn epilogue(self) -> usize {
        match self {
            Self::Lrc => 1,
            Self::Crc => 2,
        }
    }

    /// Returns the epilogue, first byte first. With an LRC, the second byte is 0.
    pub(super) fn code(self, body: &[u8]) -> [u8; 2] {
        match self {
            Self::Lrc => [body.iter().fold(0, |sum, byte| sum ^ byte), 0],
            Self::Crc => crc(body).to_be_bytes(),
        }
    }
}

/// The CRC that real readers and cards compute: the bit-reversed polynomial 1021 of ISO/IEC 13239, begun with FFFF
/// and not complemented at the end, its high byte sent first.
fn crc(body: &[u8]) -> u16 {
    body.iter().fold(0xFFFF, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 0 { 0 } else { 0x8408 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_detection_codes_of_known_blocks() {
        assert_eq!(
            ErrorDetection::Lrc.code(&[0x00, 0xC1, 0x01, 0xFE]),
            [0x3E, 0]
        );
        // The check value of CRC-16/MCRF4XX.
        assert_eq!(crc(b"123456789"), 0x6F91);
    }

    #[test]
    fn every_control_byte_is_read_as_it_is_written_or_refused() {
        let mut known = 0;
        for byte in 0..=255u8 {
            let Some(control) = Control::of(byte) else {
                continue;
            };
            let exact = byte & 0xEF == control.byte() & 0xEF || byte & 0xE0 == 0x80;
            assert!(exact, "{byte:02X} is taken for {:02X}", control.byte());
            known += 1;
        }
        assert_eq!(known, 4 + 32 + 8);
    }

    #[test]
    fn each_bit_flip_and_each_truncation_of_a_block_is_detected() {
        for detection in [ErrorDetection::Lrc, ErrorDetection::Crc] {
            let control = Control::I {
                number: true,
                more: false,
            };
            let information = &[1, 2, 3];
            let block = Block {
                control,
                information,
            };
            let good = block.encode(detection);
            assert_eq!(Block::parse(good.expose(), detection), Ok(block));
            for bit in 0..good.len() * 8 {
                let mut bad = good.expose().to_vec();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(Block::parse(&bad, detection).is_err(), "bit {bit}");
            }
            for len in 0..good.len() {
                assert!(Block::parse(&good.expose()[..len], detection).is_err());
            }
        }
    }

    #[test]
    fn t1_blocks_with_forbidden_content_are_refused() {
        for bad in [
            [0x00, 0x90, 1, 7].as_slice(),
            &[0x00, 0xC0, 1, 7],
            &[0x00, 0xC3, 0],
            &[0x00, 0xE1, 2, 7, 7],
            &[0x12, 0x00, 1, 7],
            &[0x00, 0x01, 1, 7],
            &[0x00, 0xE4, 0],
        ] {
            let mut block = bad.to_vec();
            block.push(bad.iter().fold(0, |sum, byte| sum ^ byte));
            let read = Block::parse(&block, ErrorDetection::Lrc);
            assert_eq!(read, Err(RBlockError::Other), "{bad:02X?}");
        }
    }
}
