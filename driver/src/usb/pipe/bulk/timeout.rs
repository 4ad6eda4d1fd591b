//! The timeout of one response.

use std::time::{Duration, Instant};

use crate::ccid::budget;

/// The timeout of one response: within the caller's deadline, a time per message that a time extension request restarts
/// and multiplies. Never longer than [`budget::MESSAGE`]. After a request, a message without a time of its own has
/// [`budget::EXTENSION`]: a reader that has requested more time once requests it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResponseTimeout {
    deadline: Instant,
    per_message: Option<Duration>,
}

impl ResponseTimeout {
    /// `each` for the response and for each time extension, until `last` at most.
    pub(crate) fn per_message(each: Duration, last: Instant) -> Self {
        Self {
            deadline: last,
            per_message: Some(each),
        }
    }

    /// The deadline without time extensions, from `now` on.
    pub(crate) fn start(self, now: Instant) -> Instant {
        self.deadline.min(
            now + self
                .per_message
                .unwrap_or(budget::MESSAGE)
                .min(budget::MESSAGE),
        )
    }

    /// The deadline after a request for `multiplier` times the time at `now` (CCID 1.1, 6.2.6: bError).
    pub(crate) fn extended(self, multiplier: u8, now: Instant) -> Instant {
        let each = self.per_message.unwrap_or(budget::EXTENSION);
        let asked = each.saturating_mul(u32::from(multiplier.max(1)));
        self.deadline.min(now + asked.min(budget::MESSAGE))
    }
}

/// The deadline, regardless of time extensions.
impl From<Instant> for ResponseTimeout {
    fn from(last: Instant) -> Self {
        Self {
            deadline: last,
            per_message: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_extension_multiplies_the_timeout_up_to_the_callers_deadline() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let limit = ResponseTimeout::per_message(second, now + second * 100);
        assert_eq!(limit.start(now), now + second);
        assert_eq!(limit.extended(0, now), now + second);
        assert_eq!(limit.extended(30, now + second), now + second * 31);
        assert_eq!(limit.extended(255, now), now + second * 100);
    }

    #[test]
    fn no_response_is_waited_for_longer_than_the_budget() {
        let now = Instant::now();
        let day = Duration::from_secs(86_400);
        for limit in [
            ResponseTimeout::from(now + day),
            ResponseTimeout::per_message(day, now + day),
        ] {
            assert_eq!(limit.start(now), now + budget::MESSAGE);
            assert_eq!(limit.extended(255, now), now + budget::MESSAGE);
        }
        let asked = ResponseTimeout::from(now + day).extended(1, now);
        assert_eq!(asked, now + budget::EXTENSION, "B18: it has to ask again");
        let soon = now + Duration::from_secs(1);
        assert_eq!(ResponseTimeout::from(soon).extended(255, now), soon);
    }
}
