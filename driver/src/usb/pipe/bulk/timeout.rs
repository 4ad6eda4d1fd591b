//! Until when an answer is waited for.

use std::time::{Duration, Instant};

use crate::ccid::budget;

/// Until when one answer is waited for: the caller's deadline, and within it the time that the message has, which
/// begins anew, multiplied, when the reader asks for more. Never longer than [`budget::MESSAGE`]. A message without a time of its
/// own has [`budget::EXTENSION`] from then on: a reader that has asked once asks again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    last: Instant,
    each: Option<Duration>,
}

impl Limit {
    /// `each` for the answer, and again for each request for more time; no longer than until `last`.
    pub(crate) fn each(each: Duration, last: Instant) -> Self {
        Self {
            last,
            each: Some(each),
        }
    }

    /// When to give up, if nothing more is asked for, from `now` on.
    pub(crate) fn begin(self, now: Instant) -> Instant {
        self.last
            .min(now + self.each.unwrap_or(budget::MESSAGE).min(budget::MESSAGE))
    }

    /// When to give up after a request for `multiplier` times the time at `now` (CCID 1.1, 6.2.6: bError).
    pub(crate) fn extended(self, multiplier: u8, now: Instant) -> Instant {
        let each = self.each.unwrap_or(budget::EXTENSION);
        let asked = each.saturating_mul(u32::from(multiplier.max(1)));
        self.last.min(now + asked.min(budget::MESSAGE))
    }
}

/// Until then, whatever is asked for.
impl From<Instant> for Limit {
    fn from(last: Instant) -> Self {
        Self { last, each: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_time_is_a_multiple_and_ends_at_the_callers_deadline() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let limit = Limit::each(second, now + second * 100);
        assert_eq!(limit.begin(now), now + second);
        assert_eq!(limit.extended(0, now), now + second);
        assert_eq!(limit.extended(30, now + second), now + second * 31);
        assert_eq!(limit.extended(255, now), now + second * 100);
    }

    #[test]
    fn nobody_is_waited_for_longer_than_the_budget() {
        let now = Instant::now();
        let day = Duration::from_secs(86_400);
        for limit in [Limit::from(now + day), Limit::each(day, now + day)] {
            assert_eq!(limit.begin(now), now + budget::MESSAGE);
            assert_eq!(limit.extended(255, now), now + budget::MESSAGE);
        }
        let asked = Limit::from(now + day).extended(1, now);
        assert_eq!(asked, now + budget::EXTENSION, "B18: it has to ask again");
        let soon = now + Duration::from_secs(1);
        assert_eq!(Limit::from(soon).extended(255, now), soon);
    }
}
