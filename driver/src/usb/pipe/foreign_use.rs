//! Whether anybody else has used a device between two claims of this process.
//!
//! Linux sets the modification time of a device's node at each transfer that is begun over it and at each control request, whoever
//! begins it: another user, also in a container that has the same `/dev`. A time other than the last claim left is somebody
//! else's transfer, if only of descriptors that were read again; a reset of the device without any transfer does not show. The time
//! is that of the kernel's clock tick: what was begun within the tick of our own last transfer does not show either.
//!
//! Claims of several readers in one device overlap, and change the time for each other. While one lasts, what another
//! finds is taken for that one's.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The strangers of one device. A clone is of the same device.
#[derive(Clone, Debug, Default)]
pub(crate) struct Strangers(Arc<Mutex<Noticed>>);

#[derive(Debug, Default)]
struct Noticed {
    /// How often somebody else may have used the device.
    count: u64,
    /// Claims of this process.
    claims: usize,
    /// When the last transfer had been begun as a claim of this process ended, as far as that could be told, and whether one has.
    left: Option<u64>,
    has_left: bool,
}

/// A claim of this process, or one that is being made.
#[derive(Debug)]
pub(crate) struct Stay {
    strangers: Strangers,
    is_alone: bool,
}

impl Strangers {
    fn noticed(&self) -> MutexGuard<'_, Noticed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often somebody else may have used the device since this process first did.
    pub(crate) fn count(&self) -> u64 {
        self.noticed().count
    }

    /// Somebody else has it at the moment.
    pub(crate) fn notice(&self) {
        let mut noticed = self.noticed();
        noticed.count = noticed.count.wrapping_add(1);
    }

    /// A claim is about to be made.
    pub(crate) fn enter(&self) -> Stay {
        let mut noticed = self.noticed();
        let is_alone = noticed.claims == 0;
        noticed.claims = noticed.claims.saturating_add(1);
        Stay {
            strangers: self.clone(),
            is_alone,
        }
    }
}

impl Stay {
    /// The claim is made, and nothing sent yet; the last transfer was begun at `last`, as far as that can be told.
    pub(crate) fn begin(&self, last: Option<u64>) {
        let mut noticed = self.strangers.noticed();
        let is_same = last.is_some() && noticed.left == last;
        if self.is_alone && noticed.has_left && !is_same {
            noticed.count = noticed.count.wrapping_add(1);
        }
    }

    /// The claim ends; nothing more is sent. `last` tells when the last transfer was begun.
    pub(crate) fn end(&self, last: impl FnOnce() -> Option<u64>) -> Option<u64> {
        // Asked under the lock: of two claims that end, the later notes the later time.
        let mut noticed = self.strangers.noticed();
        let last = last();
        noticed.left = last;
        noticed.has_left = true;
        last
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let mut noticed = self.strangers.noticed();
        noticed.claims = noticed.claims.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(strangers: &Strangers, found: Option<u64>, left: Option<u64>) {
        let stay = strangers.enter();
        stay.begin(found);
        stay.end(|| left);
    }

    #[test]
    fn a_time_other_than_the_last_claim_left_is_a_stranger() {
        let strangers = Strangers::default();
        claim(&strangers, Some(7), Some(9));
        assert_eq!(strangers.count(), 0, "nothing was known before");
        claim(&strangers, Some(9), Some(12));
        assert_eq!(strangers.count(), 0);
        claim(&strangers, Some(13), Some(15));
        assert_eq!(strangers.count(), 1);
        claim(&strangers, Some(15), Some(16));
        claim(&strangers, Some(14), Some(17));
        assert_eq!(strangers.count(), 2, "a clock may be set back");
        strangers.notice();
        assert_eq!(strangers.count(), 3);
    }

    #[test]
    fn a_time_that_cannot_be_told_is_a_stranger_each_time() {
        let strangers = Strangers::default();
        claim(&strangers, None, None);
        claim(&strangers, None, None);
        assert_eq!(strangers.count(), 1);
        claim(&strangers, None, Some(3));
        claim(&strangers, Some(3), None);
        assert_eq!(strangers.count(), 2);
        claim(&strangers, Some(3), None);
        assert_eq!(strangers.count(), 3);
    }

    #[test]
    fn claims_of_one_process_that_overlap_are_no_strangers_to_each_other() {
        let strangers = Strangers::default();
        claim(&strangers, Some(1), Some(2));
        let first = strangers.enter();
        first.begin(Some(2));
        for time in 3..6 {
            claim(&strangers, Some(time), Some(time));
        }
        let second = strangers.enter();
        second.begin(Some(7));
        first.end(|| Some(8));
        drop(first);
        second.end(|| Some(9));
        drop(second);
        assert_eq!(strangers.count(), 0);
        claim(&strangers, Some(9), Some(10));
        assert_eq!(strangers.count(), 0);
        claim(&strangers, Some(11), Some(12));
        assert_eq!(strangers.count(), 1, "of all readers of the device");
    }
}
