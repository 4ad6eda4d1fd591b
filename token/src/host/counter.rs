//! The key stream of counter mode (NIST SP 800-38A, 6.5), which GCM also uses.

use zeroize::Zeroizing;

use super::aes_block::{Aes, BLOCK, Block, xor};

/// The key stream, which is XORed with the message.
pub(super) struct KeyStream {
    /// The next counter block.
    counter: u128,
    /// Mask of the counting bits.
    counting: u128,
    /// Blocks that may still be generated.
    left: u128,
    /// The last block generated, and the number of its bytes that are used.
    block: Zeroizing<Block>,
    used: usize,
}

impl KeyStream {
    /// Begins at `block`. Its last `bits` bits count, and `left` blocks may be generated.
    pub(super) fn new(block: Block, bits: usize, left: u128) -> Self {
        Self {
            counter: u128::from_be_bytes(block),
            counting: counting(bits),
            left,
            block: Zeroizing::default(),
            used: BLOCK,
        }
    }

    /// Begins a stream that ends before its counter repeats. Returns `None` unless 1 to 128 bits count.
    pub(super) fn once(block: Block, bits: usize) -> Option<Self> {
        let start = u128::from_be_bytes(block) & counting(bits);
        let left = (counting(bits) - start).saturating_add(1);
        (1..=128)
            .contains(&bits)
            .then(|| Self::new(block, bits, left))
    }

    /// Returns whether the stream has `len` more bytes.
    pub(super) fn reaches(&self, len: usize) -> bool {
        let missing = len.saturating_sub(BLOCK - self.used).div_ceil(BLOCK);
        u128::try_from(missing).is_ok_and(|missing| missing <= self.left)
    }

    /// Encrypts or decrypts `data`. The stream must have enough bytes.
    pub(super) fn apply(&mut self, aes: &Aes, data: &mut [u8]) {
        let waiting = (BLOCK - self.used).min(data.len());
        let (head, rest) = data.split_at_mut(waiting);
        xor(head, self.block.get(self.used..).unwrap_or_default());
        self.used += waiting;
        for chunk in rest.chunks_mut(BLOCK) {
            self.next(aes);
            xor(chunk, &*self.block);
            self.used = chunk.len();
        }
    }

    fn next(&mut self, aes: &Aes) {
        *self.block = self.counter.to_be_bytes();
        aes.encrypt(&mut self.block);
        let counted = self.counter.wrapping_add(1) & self.counting;
        self.counter = self.counter & !self.counting | counted;
        self.left = self.left.saturating_sub(1);
    }
}

fn counting(bits: usize) -> u128 {
    let fixed = u32::try_from(bits)
        .ok()
        .and_then(|bits| u128::MAX.checked_shl(bits));
    !fixed.unwrap_or(0)
}
