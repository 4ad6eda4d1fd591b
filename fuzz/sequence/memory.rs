//! Memory that is given to the module: each piece ends at a page that cannot be touched, or a few bytes before it.

use std::ptr;

/// Bytes before and behind a piece that must stay as they are.
const UNTOUCHED: u8 = 0xA5;
/// How many bytes before a piece are looked at.
const MARGIN: usize = 64;
const PAGE: usize = 4096;
/// Pages of a place that can be touched; one more cannot.
const PAGES: usize = 4;
const PLACE: usize = (PAGES + 1) * PAGE;
const PLACES: usize = 192;
/// Longest piece.
pub const LONGEST: usize = PAGES * PAGE - MARGIN - 8;

/// What a call may do with a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Read it.
    Input,
    /// Write it when it succeeds.
    Output,
    /// Write it when it succeeds, as many things of this size as the number in that other piece says.
    Counted { count: usize, size: usize },
    /// Write it in any case.
    Free,
    /// Write attribute values, as the template in that other piece says: entry and template.
    Value { template: usize, entry: usize },
}

#[derive(Debug)]
struct Piece {
    start: *mut u8,
    tail: usize,
    before: Vec<u8>,
    purpose: Use,
}

/// All pieces of one call.
#[derive(Debug)]
pub struct Memory {
    base: *mut u8,
    pieces: Vec<Piece>,
}

impl Memory {
    pub fn new() -> Self {
        let (len, nothing) = (PLACE * PLACES, libc::PROT_NONE);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, nothing, flags, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED, "mmap");
        let base = base.cast::<u8>();
        for place in 0..PLACES {
            let (pages, both) = (
                base.wrapping_add(place * PLACE),
                libc::PROT_READ | libc::PROT_WRITE,
            );
            // SAFETY: pages of the mapping above.
            let code = unsafe { libc::mprotect(pages.cast(), PAGES * PAGE, both) };
            assert_eq!(code, 0, "mprotect");
        }
        Self {
            base,
            pieces: Vec::new(),
        }
    }

    /// A new call begins.
    pub fn clear(&mut self) {
        self.pieces.clear();
    }

    /// A piece with this content that ends `tail` bytes before the end of its page, and its number.
    pub fn place(&mut self, content: &[u8], tail: usize, purpose: Use) -> (*mut u8, usize) {
        assert!(content.len() <= LONGEST && tail <= 8, "a piece too long");
        let number = self.pieces.len();
        assert!(number < PLACES, "too many pieces");
        let end = self.base.wrapping_add(number * PLACE + PAGES * PAGE - tail);
        let start = end.wrapping_sub(content.len());
        // SAFETY: margin, content and tail lie in the pages of this place that can be touched.
        unsafe { ptr::write_bytes(start.wrapping_sub(MARGIN), UNTOUCHED, MARGIN) };
        // SAFETY: as above.
        unsafe { ptr::copy_nonoverlapping(content.as_ptr(), start, content.len()) };
        // SAFETY: as above.
        unsafe { ptr::write_bytes(end, UNTOUCHED, tail) };
        self.pieces.push(Piece {
            start,
            tail,
            before: content.to_vec(),
            purpose,
        });
        (start, number)
    }

    /// Where a piece begins, and its length.
    pub fn at(&self, number: usize) -> (*mut u8, usize) {
        let piece = &self.pieces[number];
        (piece.start, piece.before.len())
    }

    /// Writes a piece anew.
    pub fn fill(&mut self, number: usize, content: &[u8]) {
        let piece = &mut self.pieces[number];
        assert_eq!(content.len(), piece.before.len(), "as long as before");
        // SAFETY: the piece lies in pages that can be written.
        unsafe { ptr::copy_nonoverlapping(content.as_ptr(), piece.start, content.len()) };
        piece.before.copy_from_slice(content);
    }

    /// From now on the call may write a piece that was for reading.
    pub fn release(&mut self, number: usize) {
        self.pieces[number].purpose = Use::Free;
    }

    /// What is in a piece now.
    pub fn content(&self, number: usize) -> &[u8] {
        let piece = &self.pieces[number];
        // SAFETY: the piece lies in pages that can be read.
        unsafe { std::slice::from_raw_parts(piece.start, piece.before.len()) }
    }

    /// The number at `at` of a piece.
    pub fn number(&self, piece: usize, at: usize) -> usize {
        let bytes = self.content(piece).get(at..at + size_of::<usize>());
        usize::from_ne_bytes(
            bytes
                .and_then(|bytes| bytes.try_into().ok())
                .unwrap_or_default(),
        )
    }

    /// What is wrong with the memory after a call that ended in success or not.
    pub fn fault(&self, success: bool, too_small: bool) -> Option<String> {
        let faults = (0..self.pieces.len()).filter_map(|number| {
            let fault = self.piece_fault(number, success, too_small)?;
            let piece = &self.pieces[number];
            let (len, purpose) = (piece.before.len(), piece.purpose);
            Some(format!(
                "piece {number} of {len} bytes, {purpose:?}: {fault}"
            ))
        });
        let faults: Vec<String> = faults.collect();
        (!faults.is_empty()).then(|| faults.join("; "))
    }

    fn piece_fault(&self, number: usize, success: bool, too_small: bool) -> Option<&'static str> {
        let piece = &self.pieces[number];
        let (now, room) = (self.content(number), piece.before.len());
        let start = piece.start.wrapping_sub(MARGIN);
        // SAFETY: margin, piece and tail lie in pages that can be read.
        let whole = unsafe { std::slice::from_raw_parts(start, MARGIN + room + piece.tail) };
        let around = [&whole[..MARGIN], &whole[MARGIN + room..]];
        if around.concat().iter().any(|byte| *byte != UNTOUCHED) {
            return Some("written beside it");
        }
        let untouched = |from: usize| now.get(from..) == piece.before.get(from..);
        match piece.purpose {
            Use::Input if !untouched(0) => Some("written though it is input"),
            Use::Output if !success && !untouched(0) => Some("written by a call that failed"),
            Use::Counted { count, size } => {
                let said = self.number(count, 0).saturating_mul(size);
                match (success, too_small) {
                    (true, _) if said > room => {
                        Some("more was said to be written than there is room")
                    }
                    (true, _) if !untouched(said) => Some("more was written than was said"),
                    (false, true) if said <= room => Some("too small, and large enough"),
                    (false, _) if !untouched(0) => Some("written by a call that failed"),
                    _ => None,
                }
            }
            Use::Value { template, entry } => {
                let said = self.number(template, entry * 24 + 16);
                let written = if said == usize::MAX { 0 } else { said };
                let seen = success || now != piece.before.as_slice();
                (seen && !untouched(written.min(room))).then_some("more was written than was said")
            }
            _ => None,
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made.
        unsafe { libc::munmap(self.base.cast(), PLACE * PLACES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fault that is seen when a call has written a byte at `at` of a piece of eight.
    fn fault_of(purpose: Use, at: isize, success: bool) -> Option<String> {
        let mut memory = Memory::new();
        let (_, count) = memory.place(&4_usize.to_ne_bytes(), 0, Use::Free);
        let purpose = match purpose {
            Use::Counted { size, .. } => Use::Counted { count, size },
            other => other,
        };
        let (start, _) = memory.place(&[0; 8], 3, purpose);
        // SAFETY: the piece with what is around it can be written.
        unsafe { start.wrapping_offset(at).write(1) };
        memory.fault(success, false)
    }

    #[test]
    fn forbidden_write_by_a_call_is_detected() {
        let counted = Use::Counted { count: 0, size: 1 };
        for beside in [-MARGIN.cast_signed(), -1, 8, 10] {
            let fault = fault_of(Use::Free, beside, true).unwrap();
            assert!(fault.contains("beside"), "{fault}");
        }
        assert!(fault_of(Use::Input, 0, true).is_some());
        assert!(fault_of(Use::Output, 0, false).is_some());
        assert!(fault_of(counted, 4, true).is_some());
        assert!(fault_of(counted, 0, false).is_some());
        assert_eq!(fault_of(Use::Output, 0, true), None);
        assert_eq!(fault_of(counted, 3, true), None);
        assert_eq!(fault_of(Use::Free, 7, false), None);
    }
}
