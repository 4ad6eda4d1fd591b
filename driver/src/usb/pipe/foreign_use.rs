//! Detects whether another program has used a device between two claims of this process.
//!
//! Linux sets the modification time of a device's node when a transfer over it or a control request is begun, by any user, also
//! in a container with the same `/dev`. A time other than the one at the end of the last claim means a transfer of another
//! program, perhaps only for descriptors. A reset of the device without a transfer does not show. The time is that of the
//! kernel's clock tick: a transfer within the tick of our own last transfer does not show either.
//!
//! Claims of several readers in one device overlap, and change the time for each other. While one claim lasts, a change that
//! another claim finds is attributed to the first.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Uses of one device by other programs. Clones share the state.
#[derive(Clone, Debug, Default)]
pub(crate) struct ForeignUse(Arc<Mutex<UseState>>);

#[derive(Debug, Default)]
struct UseState {
    /// How often another program may have used the device.
    count: u64,
    /// Number of claims of this process.
    claims: usize,
    /// When the last transfer was begun, as of the end of the last claim. `None` if unknown.
    last_transfer: Option<u64>,
    /// A claim of this process has ended.
    had_claim: bool,
}

/// A claim of this process, made or in progress.
#[derive(Debug)]
pub(crate) struct OwnClaim {
    foreign_use: ForeignUse,
    is_only_claim: bool,
}

impl ForeignUse {
    fn state(&self) -> MutexGuard<'_, UseState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often another program may have used the device since this process first did.
    pub(crate) fn count(&self) -> u64 {
        self.state().count
    }

    /// Another program has the device claimed.
    pub(crate) fn record(&self) {
        let mut state = self.state();
        state.count = state.count.wrapping_add(1);
    }

    /// A claim is about to be made.
    pub(crate) fn begin_claim(&self) -> OwnClaim {
        let mut state = self.state();
        let is_alone = state.claims == 0;
        state.claims = state.claims.saturating_add(1);
        OwnClaim {
            foreign_use: self.clone(),
            is_only_claim: is_alone,
        }
    }
}

impl OwnClaim {
    /// The claim is made, and nothing was sent yet. The last transfer was begun at `last`; `None` if unknown.
    pub(crate) fn note_claimed(&self, last: Option<u64>) {
        let mut state = self.foreign_use.state();
        let is_same = last.is_some() && state.last_transfer == last;
        if self.is_only_claim && state.had_claim && !is_same {
            state.count = state.count.wrapping_add(1);
        }
    }

    /// The claim ends, and nothing more is sent. `last` returns when the last transfer was begun.
    pub(crate) fn note_released(&self, last: impl FnOnce() -> Option<u64>) -> Option<u64> {
        // Asked under the lock: of two claims that end, the later notes the later time.
        let mut state = self.foreign_use.state();
        let last = last();
        state.last_transfer = last;
        state.had_claim = true;
        last
    }
}

impl Drop for OwnClaim {
    fn drop(&mut self) {
        let mut state = self.foreign_use.state();
        state.claims = state.claims.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(foreign_use: &ForeignUse, found: Option<u64>, left: Option<u64>) {
        let own_claim = foreign_use.begin_claim();
        own_claim.note_claimed(found);
        own_claim.note_released(|| left);
    }

    #[test]
    fn changed_time_between_claims_counts_as_foreign_use() {
        let foreign_use = ForeignUse::default();
        claim(&foreign_use, Some(7), Some(9));
        assert_eq!(foreign_use.count(), 0, "nothing was known before");
        claim(&foreign_use, Some(9), Some(12));
        assert_eq!(foreign_use.count(), 0);
        claim(&foreign_use, Some(13), Some(15));
        assert_eq!(foreign_use.count(), 1);
        claim(&foreign_use, Some(15), Some(16));
        claim(&foreign_use, Some(14), Some(17));
        assert_eq!(foreign_use.count(), 2, "a clock may be set back");
        foreign_use.record();
        assert_eq!(foreign_use.count(), 3);
    }

    #[test]
    fn unknown_time_counts_as_foreign_use_each_time() {
        let foreign_use = ForeignUse::default();
        claim(&foreign_use, None, None);
        claim(&foreign_use, None, None);
        assert_eq!(foreign_use.count(), 1);
        claim(&foreign_use, None, Some(3));
        claim(&foreign_use, Some(3), None);
        assert_eq!(foreign_use.count(), 2);
        claim(&foreign_use, Some(3), None);
        assert_eq!(foreign_use.count(), 3);
    }

    #[test]
    fn overlapping_claims_of_one_process_are_no_foreign_use() {
        let foreign_use = ForeignUse::default();
        claim(&foreign_use, Some(1), Some(2));
        let first = foreign_use.begin_claim();
        first.note_claimed(Some(2));
        for time in 3..6 {
            claim(&foreign_use, Some(time), Some(time));
        }
        let second = foreign_use.begin_claim();
        second.note_claimed(Some(7));
        first.note_released(|| Some(8));
        drop(first);
        second.note_released(|| Some(9));
        drop(second);
        assert_eq!(foreign_use.count(), 0);
        claim(&foreign_use, Some(9), Some(10));
        assert_eq!(foreign_use.count(), 0);
        claim(&foreign_use, Some(11), Some(12));
        assert_eq!(foreign_use.count(), 1, "of all readers of the device");
    }
}
