//! AES in the modes Cryptoki has for it, over a message that comes in parts.

use claviger_apdu::Secret;
use subtle::{ConstantTimeEq, ConstantTimeGreater, ConstantTimeLess};
use zeroize::Zeroizing;

use super::{
    aes_block::{Aes, BLOCK, Block, xor},
    counter::KeyStream,
    gcm::Gcm,
};

/// Longest message of GCM that is decrypted, tag and all: it is held until the tag is seen.
const MAX_HELD: usize = 8 * 1024 * 1024;

/// A mode with its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each block by itself (NIST SP 800-38A, 6.1).
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
    /// Counted blocks (6.5). No counter is used twice: the message is too long that would.
    Ctr {
        /// How many bits at the end of the block count, 1 to 128.
        bits: usize,
        /// The first counter block.
        block: [u8; 16],
    },
    /// GCM (NIST SP 800-38D); the tag follows the ciphertext.
    Gcm {
        /// 1 to 256 bytes.
        iv: Vec<u8>,
        /// What is authenticated and not encrypted.
        aad: Vec<u8>,
        /// 32 to 128 in steps of 8.
        tag_bits: usize,
    },
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From plain bytes.
    Encrypt,
    /// To plain bytes.
    Decrypt,
}

/// Why a message cannot be encrypted or decrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CipherError {
    /// It is not of whole blocks, or shorter than its tag.
    #[error("not of whole blocks, or shorter than a tag")]
    Length,
    /// It does not end in padding.
    #[error("bad padding")]
    Padding,
    /// The tag is not that of the message.
    #[error("the tag is not that of the message")]
    Tag,
    /// The counter does not reach so far, or the message cannot be held.
    #[error("longer than the mode allows")]
    TooLong,
}

/// A message that is being encrypted or decrypted. What it holds is wiped when it is dropped.
pub struct Cipher {
    aes: Aes,
    direction: Direction,
    flow: Flow,
}

/// What lies between one part and the next.
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
    /// What does not make a block yet, or may be the padding.
    waiting: Zeroizing<Vec<u8>>,
}

impl Cipher {
    /// `None` when the key or a parameter is none that the mode can have.
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

    /// How many bytes [`Cipher::update`] gives for a part of this length.
    #[must_use]
    pub fn update_len(&self, part: usize) -> usize {
        match (&self.flow, self.direction) {
            (Flow::Blocks(blocks), direction) => blocks.ready(part, direction),
            (Flow::Gcm { .. }, Direction::Decrypt) => 0,
            (Flow::Counter(_) | Flow::Gcm { .. }, _) => part,
        }
    }

    /// What can be told of the message with this part.
    ///
    /// # Errors
    ///
    /// When the message becomes too long. Nothing of the part is taken then.
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

    /// Room that is enough for what [`Cipher::finish`] gives.
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

    /// The rest of the message.
    ///
    /// # Errors
    ///
    /// When the message cannot end here, or was not encrypted so.
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

    /// How much can be given out after `part` more bytes: whole blocks, but not the one that may be padding.
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

/// What is before the padding, which is looked at in constant time up to the answer.
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

/// A copy of `part` that `work` was done on.
fn worked(part: &[u8], work: impl FnOnce(&mut [u8])) -> Secret {
    let mut part = Zeroizing::new(part.to_vec());
    work(&mut part);
    Secret::new(std::mem::take(&mut *part))
}

/// The message of GCM, once its tag is seen to be right.
fn opened(aes: &Aes, gcm: Gcm, held: &Secret) -> Result<Secret, CipherError> {
    let len = held.len().checked_sub(gcm.tag_len());
    let (text, tag) = len
        .and_then(|len| held.expose().split_at_checked(len))
        .ok_or(CipherError::Length)?;
    let mut text = Zeroizing::new(text.to_vec());
    gcm.decrypt(aes, &mut text, tag).ok_or(CipherError::Tag)?;
    Ok(Secret::new(std::mem::take(&mut *text)))
}
