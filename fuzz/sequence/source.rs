//! The bytes that decide.

/// Bytes taken one after the other; past their end everything is 0.
#[derive(Debug)]
pub(crate) struct Source<'a>(&'a [u8]);

impl<'a> Source<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((byte, rest)) => {
                self.0 = rest;
                *byte
            }
            None => 0,
        }
    }

    /// Up to `len` bytes as they come.
    pub(crate) fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        let low = usize::from(self.byte());
        let number = if end > 256 {
            low << 8 | usize::from(self.byte())
        } else {
            low
        };
        number % end
    }

    /// True once in `times`; false past the end.
    pub(crate) fn once_in(&mut self, times: u8) -> bool {
        self.byte() % times == times - 1
    }

    pub(crate) fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        let at = self.below(among.len());
        among[at]
    }

    pub(crate) fn word(&mut self) -> usize {
        let bytes = self.take(size_of::<usize>());
        bytes
            .iter()
            .fold(0, |word, byte| word << 8 | usize::from(*byte))
    }
}
