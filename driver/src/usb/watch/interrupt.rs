//! Reads a reader's interrupt endpoint. One transfer stays queued while the claim lasts.

use std::{
    os::fd::BorrowedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::event::PollFlags;

use crate::{
    ccid::notification::{Notification, SlotState},
    usb::{
        claim::ReaderClaim,
        discovery::reader_info::ReaderInfo,
        host::transfer::{Completion, EndpointAddress, EndpointQueue, TransferError},
    },
};

/// How many transfers in a row may fail before the endpoint is no longer read.
const MAX_FAILURES: usize = 8;
/// A full-speed endpoint is polled every 255 ms at least. A first notification within this time may report an older change.
const INITIAL_REPORT_TIME: Duration = Duration::from_millis(500);
/// Notifications read in one go.
const MAX_NOTIFICATIONS: usize = 64;

/// The interrupt endpoint of a claimed reader.
#[derive(Debug)]
pub(super) struct InterruptListener {
    // Before the claim it needs.
    queue: Box<dyn EndpointQueue>,
    _claim: Arc<ReaderClaim>,
    endpoint: EndpointAddress,
    len: usize,
    slots: usize,
    failures: usize,
    started: Instant,
    has_reported: bool,
}

/// The content of the notifications.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct InterruptReport {
    /// State and change of each slot that was reported.
    pub(super) slots: Vec<Option<SlotState>>,
    /// A notification was lost or malformed.
    pub(super) has_gap: bool,
    /// The endpoint is no longer read.
    pub(super) is_closed: bool,
}

impl InterruptListener {
    /// Queues the first transfer. Returns `None` for a reader without an interrupt endpoint.
    ///
    /// # Errors
    /// [`TransferError`].
    pub(super) fn new(
        info: &ReaderInfo,
        reader_claim: Arc<ReaderClaim>,
        slots: usize,
    ) -> Result<Option<Self>, TransferError> {
        let Some((endpoint, packet)) = info.interrupt else {
            return Ok(None);
        };
        let mut listener = Self {
            queue: reader_claim.interface().open_queue(&[endpoint])?,
            _claim: reader_claim,
            endpoint,
            len: packet.max(1),
            slots,
            failures: 0,
            started: Instant::now(),
            has_reported: false,
        };
        listener.submit();
        Ok(Some(listener))
    }

    fn submit(&mut self) {
        self.queue.submit_in(self.endpoint, self.len);
    }

    pub(super) fn poll_fds(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        self.queue.poll_fds()
    }

    pub(super) fn next_timeout(&self) -> Option<Duration> {
        self.queue.next_timeout()
    }

    /// Takes the notifications that have arrived.
    pub(super) fn take_notifications(&mut self) -> InterruptReport {
        let mut report = InterruptReport::default();
        for _ in 0..MAX_NOTIFICATIONS {
            let Some(completion) = self.queue.next_completion() else {
                break;
            };
            if !self.handle_completion(&completion, &mut report) {
                report.is_closed = true;
                break;
            }
            self.submit();
        }
        report
    }

    /// Returns whether the endpoint is still usable.
    fn handle_completion(&mut self, completion: &Completion, report: &mut InterruptReport) -> bool {
        match completion.result {
            Ok(()) => self.failures = 0,
            Err(TransferError::Disconnected) => return false,
            Err(error) => {
                self.failures += 1;
                if self.failures > MAX_FAILURES {
                    tracing::warn!(
                        "usb: the interrupt endpoint of a reader keeps failing ({error}); it is no longer read"
                    );
                    return false;
                }
                if error == TransferError::Stall && self.queue.clear_halt(self.endpoint).is_err() {
                    return false;
                }
                report.has_gap = true;
                return true;
            }
        }
        // Bits of slots that do not exist are dropped.
        let slots = u8::try_from(self.slots).unwrap_or(u8::MAX);
        match Notification::parse(completion.buffer.expose(), slots) {
            Ok(Notification::SlotChange(mut states)) => {
                // An insertion before the claim, which the first poll has seen.
                let is_old = !self.has_reported && self.started.elapsed() < INITIAL_REPORT_TIME;
                self.has_reported = true;
                for state in &mut states {
                    state.changed &= !is_old || !state.present;
                }
                report.add(&states);
            }
            Ok(other) => tracing::warn!("usb: a reader sent {other:?}"),
            // An empty transfer has no content. A transfer of too many bytes is unreliable.
            Err(error) => tracing::debug!("usb: {error}"),
        }
        true
    }
}

impl InterruptReport {
    /// Adds one notification. A change stays one even if a later notification does not repeat it.
    fn add(&mut self, states: &[SlotState]) {
        if self.slots.len() < states.len() {
            self.slots.resize(states.len(), None);
        }
        for (slot, state) in self.slots.iter_mut().zip(states) {
            let changed = state.changed || slot.is_some_and(|before| before.changed);
            *slot = Some(SlotState { changed, ..*state });
        }
    }
}
