//! The PIN that is cached for a login.

use claviger_apdu::Secret;

/// The PIN of a logged-in user, cached in memory that is not swapped. It restores a login after another program has
/// selected another applet.
///
/// The card has accepted the PIN once. After one failure the PIN is dropped, so it never costs more than one try.
pub(crate) struct CachedPin {
    pin: Secret,
    /// Tries when the card accepted the PIN. Fewer tries later mean that another program failed or changed the PIN.
    pub(crate) tries: Option<u8>,
    /// Unlocks the pages on drop; the field order wipes the PIN first.
    _lock: Option<region::LockGuard>,
}

impl CachedPin {
    pub(crate) fn new(pin: &Secret, tries: Option<u8>) -> Self {
        let pin = pin.duplicate();
        let lock = region::lock(pin.expose().as_ptr(), pin.len())
            .map_err(|error| {
                tracing::debug!("the memory of the cached PIN could not be locked: {error}");
            })
            .ok();
        Self {
            pin,
            tries,
            _lock: lock,
        }
    }

    /// Returns the same PIN with a new count of tries, after a try was spent for a known reason. `None` leaves the
    /// count unchanged: the card did not report it.
    pub(crate) fn with_tries(mut self, tries: Option<u8>) -> Self {
        self.tries = tries.or(self.tries);
        self
    }

    pub(crate) const fn pin(&self) -> &Secret {
        &self.pin
    }

    /// Returns whether the PIN may be sent without asking the user. It must not be sent if tries are gone since.
    pub(crate) fn may_be_tried(&self, tries_left: Option<u8>) -> bool {
        match (tries_left, self.tries) {
            (Some(left), Some(then)) => left >= then,
            // The card reported no tries at login. Cards have three or more tries when none is spent.
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
