//! A user's login and the PIN kept for it.

use claviger_apdu::Secret;

/// The PIN of a logged-in user, kept in memory that is not swapped, so that a login survives another
/// program's applet switch.
///
/// It has proved right once. After one failure it is gone, so it can never cost more than one try.
pub(crate) struct CachedPin {
    pin: Secret,
    /// Tries when it proved right; fewer later mean that somebody else failed or changed it.
    pub(crate) tries: Option<u8>,
    /// Unlocks the pages on drop; the field order wipes the PIN first.
    _lock: Option<region::LockGuard>,
}

impl CachedPin {
    pub(crate) fn new(pin: &Secret, tries: Option<u8>) -> Self {
        let pin = pin.duplicate();
        let lock = region::lock(pin.expose().as_ptr(), pin.len())
            .map_err(|error| tracing::debug!("the PIN's memory could not be locked: {error}"))
            .ok();
        Self {
            pin,
            tries,
            _lock: lock,
        }
    }

    /// The same after `tries` are left for a reason that is known; `None` when the card did not say how many.
    pub(crate) fn with_tries(mut self, tries: Option<u8>) -> Self {
        self.tries = tries.or(self.tries);
        self
    }

    pub(crate) const fn pin(&self) -> &Secret {
        &self.pin
    }

    /// Whether it may be tried without being asked: not when tries have gone since.
    pub(crate) fn may_be_tried(&self, tries_left: Option<u8>) -> bool {
        match (tries_left, self.tries) {
            (Some(left), Some(then)) => left >= then,
            // The card said nothing then; cards have three tries or more when none is gone.
            (Some(left), None) => left >= 3,
            (None, _) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cached_pin_is_not_tried_when_the_counter_has_fallen() {
        let cached = CachedPin::new(&Secret::copy_from(b"123456"), Some(3));
        assert!(cached.may_be_tried(Some(3)));
        assert!(!cached.may_be_tried(Some(2)));
        assert!(cached.may_be_tried(None));
        let cached = CachedPin::new(&Secret::copy_from(b"123456"), None);
        assert!(cached.may_be_tried(Some(3)));
        assert!(!cached.may_be_tried(Some(2)), "tries may have gone since");
    }
}
