//! The claim of a reader within this process. All slots share it, and one thread at a time makes it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

use super::{BackendContext, ClaimError, LastSequence, ReaderClaim};
use crate::usb::discovery::reader_info::ReaderInfo;

/// The claim that the slots of a reader share.
#[derive(Debug)]
pub(crate) struct SharedClaim {
    pub(crate) context: Arc<BackendContext>,
    /// The reader has several slots.
    is_shared: bool,
    last_sequence: LastSequence,
    /// Locked while a claim is made.
    claiming: Mutex<()>,
    history: Mutex<ClaimHistory>,
}

#[derive(Debug, Default)]
struct ClaimHistory {
    claim: Weak<ReaderClaim>,
    /// The number of this process's last claim.
    use_count: Option<u64>,
    /// How often other processes with this driver may have claimed the reader in between.
    peer_uses: u64,
}

impl SharedClaim {
    /// The state of a reader with `slots` slots before its first claim.
    pub(crate) fn new(context: Arc<BackendContext>, slots: usize) -> Arc<Self> {
        Arc::new(Self {
            context,
            is_shared: slots > 1,
            last_sequence: LastSequence::default(),
            claiming: Mutex::default(),
            history: Mutex::default(),
        })
    }

    fn history(&self) -> MutexGuard<'_, ClaimHistory> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The claim, if there is one. A claim in progress does not count: it wakes the watch when it is made.
    pub(crate) fn current_claim(&self) -> Option<Arc<ReaderClaim>> {
        self.history().claim.upgrade()
    }

    /// How often other processes with this driver may have claimed the reader between two claims of this process.
    pub(crate) fn peer_uses(&self) -> u64 {
        self.history().peer_uses
    }

    /// Joins the claim of this process, or tries once to make one.
    pub(crate) fn claim(
        &self,
        info: &ReaderInfo,
        request_release: bool,
    ) -> Result<Arc<ReaderClaim>, ClaimError> {
        let _making = match self.claiming.try_lock() {
            Ok(making) => making,
            Err(TryLockError::Poisoned(making)) => making.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(ClaimError::Opening),
        };
        if let Some(reader_claim) = self.current_claim() {
            // Slots that join a claim in turns would never let it go.
            let is_wanted = self.is_shared && reader_claim.release_requested();
            return if is_wanted {
                Err(ClaimError::OtherProcess)
            } else {
                Ok(reader_claim)
            };
        }
        if self.last_sequence.is_in_use() {
            // Another thread is releasing the claim before.
            return Err(ClaimError::OtherProcess);
        }
        let reader_claim = Arc::new(ReaderClaim::try_claim(
            info,
            &self.context,
            &self.last_sequence,
            request_release,
        )?);
        self.history().record(&reader_claim);
        // After the claim is stored: the watch then polls its release requests.
        self.context.wake_watch();
        Ok(reader_claim)
    }
}

impl ClaimHistory {
    /// Records a new claim, and whether another process may have claimed the reader since the last.
    fn record(&mut self, reader_claim: &Arc<ReaderClaim>) {
        let left = reader_claim.previous().map(|left| left.use_count);
        let alone = self
            .use_count
            .is_some_and(|uses| uses == reader_claim.use_count() || Some(uses) == left);
        self.peer_uses += u64::from(!alone);
        self.use_count = Some(reader_claim.use_count());
        self.claim = Arc::downgrade(reader_claim);
    }
}
