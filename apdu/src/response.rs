//! Response APDUs: the data of all frames of an answer, and the last status word.

use crate::{secret::Secret, status::StatusWord};

/// What a card answered to one command, GET RESPONSE rounds joined.
#[derive(Debug)]
pub struct ResponseApdu {
    /// The data field; wiped on drop, because it may be a plaintext or a shared secret.
    pub data: Secret,
    /// The status word of the last frame.
    pub status: StatusWord,
}

impl ResponseApdu {
    /// The data when the status is 9000.
    ///
    /// # Errors
    /// The status word otherwise.
    pub fn ok(self) -> Result<Secret, StatusWord> {
        if self.status.is_ok() {
            Ok(self.data)
        } else {
            Err(self.status)
        }
    }
}

/// Where a transport puts one response frame, data and SW1 SW2; wiped before reuse.
#[derive(Debug, Default)]
pub struct ResponseBuffer(Secret);

impl ResponseBuffer {
    /// Longest response frame: 65 536 bytes of data and the status word.
    pub const MAX: usize = 65_538;

    /// An empty buffer; memory is taken when the first frame comes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the content by `frame`; bytes past [`ResponseBuffer::MAX`] are refused.
    ///
    /// # Errors
    /// [`FrameTooLong`] when the frame is longer; the buffer is then empty.
    pub fn set(&mut self, frame: &[u8]) -> Result<(), FrameTooLong> {
        self.0.clear();
        if frame.len() > Self::MAX {
            return Err(FrameTooLong);
        }
        self.0.extend(frame);
        Ok(())
    }

    /// The frame, data and status word.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        self.0.expose()
    }
}

/// A response frame longer than ISO 7816-4 allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("response frame longer than {} bytes", ResponseBuffer::MAX)]
pub struct FrameTooLong;
