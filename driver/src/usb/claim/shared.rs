//! The claim of a reader in this process: one for all of its slots, made by one thread at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

use super::{Grip, LastSequence, Means, Taken};
use crate::usb::discovery::reader_info::Site;

/// What the slots of a reader share: the claim.
#[derive(Debug)]
pub(crate) struct Holding {
    pub(crate) means: Arc<Means>,
    /// By more than one slot.
    is_shared: bool,
    last_sequence: LastSequence,
    /// For as long as a claim is being made.
    making: Mutex<()>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    grip: Weak<Grip>,
    /// The number of this process's last use of the reader.
    uses: Option<u64>,
    /// How often other processes of ours may have used it in between.
    strangers: u64,
}

impl Holding {
    /// Of a reader with `slots` slots that nobody has had yet.
    pub(crate) fn new(means: Arc<Means>, slots: usize) -> Arc<Self> {
        Arc::new(Self {
            means,
            is_shared: slots > 1,
            last_sequence: LastSequence::default(),
            making: Mutex::default(),
            held: Mutex::default(),
        })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The claim, while somebody in this process has it: not one that is just being made, which wakes the watch when it is.
    pub(crate) fn grip(&self) -> Option<Arc<Grip>> {
        self.held().grip.upgrade()
    }

    /// How often other processes of ours may have used the reader between two uses of this one.
    pub(crate) fn strangers(&self) -> u64 {
        self.held().strangers
    }

    /// One try for the claim this process has, or for a new one.
    pub(crate) fn claim(&self, site: &Site, knocks: bool) -> Result<Arc<Grip>, Taken> {
        let _making = match self.making.try_lock() {
            Ok(making) => making,
            Err(TryLockError::Poisoned(making)) => making.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(Taken::Opening),
        };
        if let Some(grip) = self.grip() {
            // Slots that join a claim in turns would never let it go.
            let is_wanted = self.is_shared && grip.is_wanted();
            return if is_wanted {
                Err(Taken::Ours)
            } else {
                Ok(grip)
            };
        }
        if self.last_sequence.is_in_use() {
            // The claim before is being let go of by another thread.
            return Err(Taken::Ours);
        }
        let grip = Arc::new(Grip::take(site, &self.means, &self.last_sequence, knocks)?);
        self.held().take(&grip);
        // Not before the watch can see whose knock it is to hear.
        self.means.stir();
        Ok(grip)
    }
}

impl Held {
    /// Takes in a new claim, and whether anybody else has had the reader since the last.
    fn take(&mut self, grip: &Arc<Grip>) {
        let left = grip.left().map(|left| left.uses);
        let alone = self
            .uses
            .is_some_and(|uses| uses == grip.uses() || Some(uses) == left);
        self.strangers += u64::from(!alone);
        self.uses = Some(grip.uses());
        self.grip = Arc::downgrade(grip);
    }
}
