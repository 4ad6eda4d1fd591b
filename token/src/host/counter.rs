//! The key stream of counter mode (NIST SP 800-38A, 6.5), which GCM uses too.

use zeroize::Zeroizing;

use super::aes_block::{Aes, BLOCK, Block, xor};

/// What plain bytes are XORed with.
pub(super) struct KeyStream {
    /// The next counter block.
    counter: u128,
    /// The bits of it that count.
    counting: u128,
    /// Blocks that may still be made.
    left: u128,
    /// The last block made, and how much of it is used.
    block: Zeroizing<Block>,
    used: usize,
}

impl KeyStream {
    /// From `block` on, whose last `bits` bits count; `left` blocks may be made.
    pub(super) fn new(block: Block, bits: usize, left: u128) -> Self {
        Self {
            counter: u128::from_be_bytes(block),
            counting: counting(bits),
            left,
            block: Zeroizing::default(),
            used: BLOCK,
        }
    }

    /// One that ends before its count would begin again; `None` unless 1 to 128 bits count.
    pub(super) fn once(block: Block, bits: usize) -> Option<Self> {
        let start = u128::from_be_bytes(block) & counting(bits);
        let left = (counting(bits) - start).saturating_add(1);
        (1..=128)
            .contains(&bits)
            .then(|| Self::new(block, bits, left))
    }

    /// Whether there is enough for `len` bytes.
    pub(super) fn reaches(&self, len: usize) -> bool {
        let missing = len.saturating_sub(BLOCK - self.used).div_ceil(BLOCK);
        u128::try_from(missing).is_ok_and(|missing| missing <= self.left)
    }

    /// Encrypts or decrypts `data`, which it must reach.
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
