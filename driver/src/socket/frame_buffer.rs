//! Collects received bytes until they form a frame.

use zeroize::Zeroize;

use super::frame::{self, FrameError, Reply};

/// First size of the buffer. Only long responses need more.
const USUAL: usize = 1024;

/// Collects the bytes of a socket and returns whole frames. The buffer is wiped behind each frame.
pub(super) struct FrameBuffer {
    buffer: Vec<u8>,
    filled: usize,
}

impl FrameBuffer {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; USUAL],
            filled: 0,
        }
    }

    /// Returns the free part of the buffer for the next bytes. The free part is never empty, and never larger than
    /// the longest frame needs.
    pub(super) fn spare(&mut self) -> Result<&mut [u8], FrameError> {
        if let Some(whole) = self.frame_len()?
            && whole > self.buffer.len()
        {
            self.enlarge(whole);
        }
        Ok(self.buffer.get_mut(self.filled..).unwrap_or(&mut []))
    }

    /// Counts `len` more bytes as received.
    pub(super) fn received(&mut self, len: usize) {
        self.filled = self.filled.saturating_add(len).min(self.buffer.len());
    }

    /// Returns whether the buffer holds no bytes.
    pub(super) fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Returns the next frame, or `None` while it is incomplete.
    pub(super) fn next_reply(&mut self) -> Result<Option<Reply>, FrameError> {
        let Some(whole) = self.frame_len()?.filter(|whole| *whole <= self.filled) else {
            return Ok(None);
        };
        let reply = Reply::parse(self.buffer.get(4..whole).unwrap_or(&[]));
        self.buffer.copy_within(whole..self.filled, 0);
        let left = self.filled - whole;
        if let Some(stale) = self.buffer.get_mut(left..self.filled) {
            stale.zeroize();
        }
        self.filled = left;
        reply.map(Some)
    }

    /// Returns the length of the frame at the start of the buffer, its length field included.
    fn frame_len(&self) -> Result<Option<usize>, FrameError> {
        let Some(length) = self
            .buffer
            .get(..self.filled)
            .and_then(|filled| filled.first_chunk::<4>())
        else {
            return Ok(None);
        };
        Ok(Some(4 + frame::body_len(*length)?))
    }

    /// Moves the bytes to a larger buffer and wipes the old one. Growing in place could leave a copy behind.
    fn enlarge(&mut self, len: usize) {
        let mut larger = vec![0; len];
        if let Some(start) = larger.get_mut(..self.buffer.len()) {
            start.copy_from_slice(&self.buffer);
        }
        self.buffer.zeroize();
        self.buffer = larger;
    }
}

impl Drop for FrameBuffer {
    fn drop(&mut self) {
        self.buffer.zeroize();
    }
}

/// Feeds arbitrary bytes in pieces.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn fuzz(bytes: &[u8]) {
    let mut frames = FrameBuffer::new();
    for piece in bytes.chunks(97) {
        let mut piece = piece;
        while !piece.is_empty() {
            let Ok(spare) = frames.spare() else { return };
            assert!(!spare.is_empty(), "free space is never empty");
            let (now, later) = piece.split_at(spare.len().min(piece.len()));
            spare.iter_mut().zip(now).for_each(|(to, from)| *to = *from);
            frames.received(now.len());
            piece = later;
            while let Ok(Some(_)) = frames.next_reply() {}
        }
        assert!(frames.buffer.len() <= 4 + frame::MAX, "bounded");
    }
}

#[cfg(test)]
mod tests {
    use claviger_apdu::Secret;

    use super::*;

    /// Feeds `bytes` as a socket would, and takes all frames whenever the free space is used up.
    fn put(frames: &mut FrameBuffer, mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let spare = frames.spare().unwrap();
            let len = spare.len().min(bytes.len());
            spare[..len].copy_from_slice(&bytes[..len]);
            frames.received(len);
            bytes = &bytes[len..];
            while let Ok(Some(reply)) = frames.next_reply() {
                found.push(reply.encode().expose().to_vec());
            }
        }
        found
    }

    #[test]
    fn frames_are_found_however_the_bytes_are_split() {
        let one = Reply::Begun.encode();
        let two = Reply::Response(Secret::copy_from(&[0x61; 5000])).encode();
        let bytes = [one.expose(), two.expose()].concat();
        for size in [1, 3, 4, 5, 1023, bytes.len()] {
            let mut frames = FrameBuffer::new();
            let found: Vec<_> = bytes
                .chunks(size)
                .flat_map(|piece| put(&mut frames, piece))
                .collect();
            assert_eq!(found, [one.expose(), two.expose()], "pieces of {size}");
            assert!(frames.is_empty());
        }
    }

    #[test]
    fn a_length_out_of_bounds_is_refused_before_any_memory_is_taken() {
        for length in [0, 65_555, u32::MAX] {
            let mut frames = FrameBuffer::new();
            put(&mut frames, &length.to_be_bytes());
            assert_eq!(frames.next_reply().unwrap_err(), FrameError::Length(length));
            assert_eq!(frames.spare().unwrap_err(), FrameError::Length(length));
            assert_eq!(frames.buffer.len(), USUAL);
        }
    }

    #[test]
    fn taken_frame_is_zeroed_in_the_buffer() {
        let mut frames = FrameBuffer::new();
        let reply = Reply::Response(Secret::copy_from(b"\x31\x32\x33\x90\x00")).encode();
        assert_eq!(put(&mut frames, reply.expose()), [reply.expose()]);
        assert!(frames.buffer.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn arbitrary_bytes_do_not_break_the_frame_buffer() {
        let mut state = 1_u32;
        for _ in 0..200 {
            let bytes: Vec<u8> = (0..400)
                .map(|at| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    if at % 9 < 2 {
                        0
                    } else {
                        state.to_be_bytes()[0]
                    }
                })
                .collect();
            fuzz(&bytes);
        }
    }
}
