//! A reader's interrupt pipe: who waits for cards keeps a transfer queued there.

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

/// Transfers in a row that may fail before the pipe is given up.
const MAX_FAILURES: usize = 8;
/// A pipe at full speed is asked each 255 ms at the latest: what is first said so soon was there to be said before anybody listened.
const INITIAL_REPORT_TIME: Duration = Duration::from_millis(500);
/// Notifications read at one go.
const MAX_NOTIFICATIONS: usize = 64;

/// The pipe, while the reader is claimed.
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

/// What was heard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct InterruptReport {
    /// What each slot holds now, and whether that changed, as far as it was said.
    pub(super) slots: Vec<Option<SlotState>>,
    /// Something was said that could not be understood.
    pub(super) has_gap: bool,
    /// The pipe is of no more use.
    pub(super) is_closed: bool,
}

impl InterruptListener {
    /// Begins to listen for `slots` slots; `None` for a reader without an interrupt endpoint.
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

    /// Takes in what has come.
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

    /// Whether to go on.
    fn handle_completion(&mut self, completion: &Completion, report: &mut InterruptReport) -> bool {
        match completion.result {
            Ok(()) => self.failures = 0,
            Err(TransferError::Disconnected) => return false,
            Err(error) => {
                self.failures += 1;
                if self.failures > MAX_FAILURES {
                    tracing::warn!("usb: notifications of a reader are lost: {error}");
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
                // That the card was put in, which nobody had been told: the look came after that.
                let is_old = !self.has_reported && self.started.elapsed() < INITIAL_REPORT_TIME;
                self.has_reported = true;
                for state in &mut states {
                    state.changed &= !is_old || !state.present;
                }
                report.add(&states);
            }
            Ok(other) => tracing::warn!("usb: a reader says {other:?}"),
            // An empty transfer says nothing, and one of too many bytes nothing that can be relied on.
            Err(error) => tracing::debug!("usb: {error}"),
        }
        true
    }
}

impl InterruptReport {
    /// Takes in one message; a change stays one though a later message says nothing of it.
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
