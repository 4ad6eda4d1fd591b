//! AES in the modes of Cryptoki, over a message that comes in parts.

use claviger_apdu::Secret;
use subtle::{ConstantTimeEq, ConstantTimeGreater, ConstantTimeLess};
use zeroize::Zeroizing;

use super::{
    aes_block::{Aes, BLOCK, Block, xor},
    counter::KeyStream,
    gcm::Gcm,
};

/// Longest GCM message that is decrypted, tag included. It is held until the tag is checked.
const MAX_HELD: usize = 8 * 1024 * 1024;

/// A mode with its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Separate blocks (NIST SP 800-38A, 6.1).
    Ecb,
    /// Chained blocks (6.2).
    Cbc {
        /// The block before the first.
        iv: [u8; 16],
    },
    /// Chained blocks, the last padded as PKCS #7 does (RFC 5652, 6.3).
    CbcPad {
        /// The block before the first.
        iv: [u8; 16],
    },
    /// Counter mode (6.5). A message that would use a counter twice is too long.
    Ctr {
        /// Number of counting bits at the end of the block, 1 to 128.
        bits: usize,
        /// The first counter block.
        block: [u8; 16],
    },
    /// GCM (NIST SP 800-38D); the tag follows the ciphertext.
    Gcm {
        /// 1 to 256 bytes.
        iv: Vec<u8>,
        /// Data that is authenticated and not encrypted.
        aad: Vec<u8>,
        /// Length of the tag: 32 to 128 in steps of 8.
        tag_bits: usize,
    },
}

/// The direction of a cipher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Plaintext to ciphertext.
    Encrypt,
    /// Ciphertext to plaintext.
    Decrypt,
}

/// Why a message cannot be encrypted or decrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CipherError {
    /// The message is not a whole number of blocks, or is shorter than its tag.
    #[error("the message is not a whole number of blocks, or is shorter than its tag")]
    Length,
    /// The message does not end in padding.
    #[error("the padding is wrong")]
    Padding,
    /// The tag does not match the message.
    #[error("the tag does not match the message")]
    Tag,
    /// The message is longer than the counter allows, or too long to be held.
    #[error("the message is longer than the mode allows")]
    TooLong,
}

/// A message that is being encrypted or decrypted. Its state is wiped when it is dropped.
pub struct Cipher {
    aes: Aes,
    direction: Direction,
    flow: Flow,
}

/// The state between one part and the next.
enum Flow {
    Blocks(Blocks),
    Counter(KeyStream),
    Gcm {
        gcm: Box<Gcm>,
        /// The ciphertext so far, when decrypting.
        held: Secret,
    },
}

struct Blocks {
    /// The last ciphertext block, in CBC.
    chain: Option<Block>,
    padded: bool,
    /// Bytes that are not a whole block yet, or that may be the padding.
    waiting: Zeroizing<Vec<u8>>,
}

impl Cipher {
    /// Returns `None` if the key or a parameter is invalid for the mode.
    #[must_use]
    pub fn new(mode: &Mode, key: &Secret, direction: Direction) -> Option<Self> {
        let aes = Aes::new(key)?;
        let flow = match mode {
            Mode::Ecb => Flow::Blocks(Blocks::new(None, false)),
            Mode::Cbc { iv } => Flow::Blocks(Blocks::new(Some(*iv), false)),
            Mode::CbcPad { iv } => Flow::Blocks(Blocks::new(Some(*iv), true)),
            Mode::Ctr { bits, block } => Flow::Counter(KeyStream::once(*block, *bits)?),
            Mode::Gcm { iv, aad, tag_bits } => Flow::Gcm {
                gcm: Box::new(Gcm::new(&aes, iv, aad, *tag_bits)?),
                held: Secret::default(),
            },
        };
        Some(Self {
            aes,
            direction,
            flow,
        })
    }

    /// Returns the number of bytes that [`Cipher::update`] returns for a part of this length.
    #[must_use]
    pub fn update_len(&self, part: usize) -> usize {
        match (&self.flow, self.direction) {
            (Flow::Blocks(blocks), direction) => blocks.ready(part, direction),
            (Flow::Gcm { .. }, Direction::Decrypt) => 0,
            (Flow::Counter(_) | Flow::Gcm { .. }, _) => part,
        }
    }

    /// Processes a part of the message. Returns the output that is available so far.
    ///
    /// # Errors
    ///
    /// An error if the message becomes too long. The part is then not processed.
    pub fn update(&mut self, part: &[u8]) -> Result<Secret, CipherError> {
        let aes = &self.aes;
        match (&mut self.flow, self.direction) {
            (Flow::Blocks(blocks), direction) => Ok(blocks.update(aes, part, direction)),
            (Flow::Counter(stream), _) if stream.reaches(part.len()) => {
                Ok(worked(part, |part| stream.apply(aes, part)))
            }
            (Flow::Gcm { gcm, .. }, Direction::Encrypt) if gcm.reaches(part.len()) => {
                Ok(worked(part, |part| gcm.encrypt(aes, part)))
            }
            (Flow::Gcm { held, .. }, Direction::Decrypt)
                if held.len().saturating_add(part.len()) <= MAX_HELD =>
            {
                held.extend(part);
                Ok(Secret::default())
            }
            (Flow::Counter(_) | Flow::Gcm { .. }, _) => Err(CipherError::TooLong),
        }
    }

    /// Returns an upper bound for the length of [`Cipher::finish`]'s output.
    #[must_use]
    pub fn finish_len(&self) -> usize {
        match (&self.flow, self.direction) {
            (Flow::Blocks(Blocks { padded: true, .. }), _) => BLOCK,
            (Flow::Blocks(_) | Flow::Counter(_), _) => 0,
            (Flow::Gcm { gcm, .. }, Direction::Encrypt) => gcm.tag_len(),
            (Flow::Gcm { gcm, held }, Direction::Decrypt) => {
                held.len().saturating_sub(gcm.tag_len())
            }
        }
    }

    /// Ends the message. Returns the rest of the output.
    ///
    /// # Errors
    ///
    /// An error if the message cannot end here, or was not encrypted with this key and mode.
    pub fn finish(self) -> Result<Secret, CipherError> {
        let aes = &self.aes;
        match (self.flow, self.direction) {
            (Flow::Blocks(blocks), direction) => blocks.finish(aes, direction),
            (Flow::Counter(_), _) => Ok(Secret::default()),
            (Flow::Gcm { gcm, .. }, Direction::Encrypt) => Ok(Secret::new(gcm.tag())),
            (Flow::Gcm { gcm, held }, Direction::Decrypt) => opened(aes, *gcm, &held),
        }
    }
}

impl std::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cipher")
            .field("direction", &self.direction)
            .finish_non_exhaustive()
    }
}

impl Blocks {
    fn new(chain: Option<Block>, padded: bool) -> Self {
        Self {
            chain,
            padded,
            waiting: Zeroizing::default(),
        }
    }

    /// Returns the number of bytes that can be output after `part` more bytes: whole blocks, except a block that may be
    /// the padding.
    fn ready(&self, part: usize, direction: Direction) -> usize {
        let len = self.waiting.len().saturating_add(part);
        let held_back = usize::from(self.padded && direction == Direction::Decrypt);
        len.saturating_sub(held_back) / BLOCK * BLOCK
    }

    fn update(&mut self, aes: &Aes, part: &[u8], direction: Direction) -> Secret {
        let ready = self.ready(part.len(), direction);
        let mut data = Zeroizing::new(Vec::with_capacity(self.waiting.len() + part.len()));
        data.extend_from_slice(&self.waiting);
        data.extend_from_slice(part);
        self.waiting = Zeroizing::new(data.get(ready..).unwrap_or_default().to_vec());
        data.truncate(ready);
        let (blocks, _) = data.as_chunks_mut();
        for block in blocks {
            self.pass(aes, block, direction);
        }
        Secret::new(std::mem::take(&mut *data))
    }

    fn pass(&mut self, aes: &Aes, block: &mut Block, direction: Direction) {
        let chain = self.chain.unwrap_or_default();
        match direction {
            Direction::Encrypt => {
                xor(block, &chain);
                aes.encrypt(block);
                self.chain = self.chain.map(|_| *block);
            }
            Direction::Decrypt => {
                self.chain = self.chain.map(|_| *block);
                aes.decrypt(block);
                xor(block, &chain);
            }
        }
    }

    fn finish(mut self, aes: &Aes, direction: Direction) -> Result<Secret, CipherError> {
        match (self.padded, direction) {
            (false, _) if self.waiting.is_empty() => Ok(Secret::default()),
            (false, _) => Err(CipherError::Length),
            (true, Direction::Encrypt) => {
                let missing = BLOCK - self.waiting.len() % BLOCK;
                let padding = vec![missing.to_le_bytes()[0]; missing];
                Ok(self.update(aes, &padding, direction))
            }
            (true, Direction::Decrypt) => {
                let mut last = Zeroizing::new(
                    Block::try_from(self.waiting.as_slice()).map_err(|_| CipherError::Length)?,
                );
                self.pass(aes, &mut last, direction);
                unpadded(&last)
            }
        }
    }
}

/// Returns the bytes before the padding. The check of the padding takes constant time; only its result shows.
fn unpadded(last: &Block) -> Result<Secret, CipherError> {
    let [.., padding] = *last;
    let mut good = padding.ct_gt(&0) & !padding.ct_gt(&16);
    for (from_end, byte) in (0u8..).zip(last.iter().rev()) {
        let outside = !from_end.ct_lt(&padding);
        good &= byte.ct_eq(&padding) | outside;
    }
    if !bool::from(good) {
        return Err(CipherError::Padding);
    }
    let len = BLOCK.saturating_sub(usize::from(padding));
    Ok(Secret::copy_from(last.get(..len).unwrap_or_default()))
}

/// Returns a copy of `part`, changed by `work`.
fn worked(part: &[u8], work: impl FnOnce(&mut [u8])) -> Secret {
    let mut part = Zeroizing::new(part.to_vec());
    work(&mut part);
    Secret::new(std::mem::take(&mut *part))
}

/// Returns the decrypted message of GCM if the tag matches.
fn opened(aes: &Aes, gcm: Gcm, held: &Secret) -> Result<Secret, CipherError> {
    let len = held.len().checked_sub(gcm.tag_len());
    let (text, tag) = len
        .and_then(|len| held.expose().split_at_checked(len))
        .ok_or(CipherError::Length)?;
    let mut text = Zeroizing::new(text.to_vec());
    gcm.decrypt(aes, &mut text, tag).ok_or(CipherError::Tag)?;
    Ok(Secret::new(std::mem::take(&mut *text)))
}
