//! Response APDUs: the joined data of all response frames, and the last status word.

use crate::{secret::Secret, status::StatusWord};

/// The response of a card to one command, with the GET RESPONSE rounds joined.
#[derive(Debug)]
pub struct ResponseApdu {
    /// The data field. It is wiped on drop, because it may be a plaintext or a shared secret.
    pub data: Secret,
    /// The status word of the last frame.
    pub status: StatusWord,
}

impl ResponseApdu {
    /// Returns the data if the status is 9000.
    ///
    /// # Errors
    /// The status word, if it is any other.
    pub fn ok(self) -> Result<Secret, StatusWord> {
        if self.status.is_ok() {
            Ok(self.data)
        } else {
            Err(self.status)
        }
    }
}

/// The buffer in which a transport puts one response frame: data, SW1, SW2. It is wiped before reuse.
#[derive(Debug, Default)]
pub struct ResponseBuffer(Secret);

impl ResponseBuffer {
    /// Longest response frame: 65 536 bytes of data and the status word.
    pub const MAX: usize = 65_538;

    /// Returns an empty buffer. Memory is allocated when the first frame comes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the content with `frame`.
    ///
    /// # Errors
    /// [`FrameTooLong`] if the frame is longer than [`ResponseBuffer::MAX`]. The buffer is then empty.
    pub fn set(&mut self, frame: &[u8]) -> Result<(), FrameTooLong> {
        self.0.clear();
        if frame.len() > Self::MAX {
            return Err(FrameTooLong);
        }
        self.0.extend(frame);
        Ok(())
    }

    /// Returns the frame: data and status word.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        self.0.expose()
    }
}

/// A response frame is longer than ISO 7816-4 allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the response frame is longer than {} bytes", ResponseBuffer::MAX)]
pub struct FrameTooLong;
