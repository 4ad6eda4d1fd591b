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
        claim::Grip,
        discovery::reader_info::Site,
        host::transfer::{Completion, EndpointAddress, Pipes, TransferError},
    },
};

/// Transfers in a row that may fail before the pipe is given up.
const FAILURES: usize = 8;
/// A pipe at full speed is asked each 255 ms at the latest: what is first said so soon was there to be said before anybody listened.
const FIRST_WORD: Duration = Duration::from_millis(500);
/// Notifications read at one go.
const AT_ONCE: usize = 64;

/// The pipe, while the reader is claimed.
#[derive(Debug)]
pub(super) struct Ear {
    // Before the claim it needs.
    pipes: Box<dyn Pipes>,
    _grip: Arc<Grip>,
    endpoint: EndpointAddress,
    len: usize,
    slots: usize,
    failures: usize,
    begun: Instant,
    has_spoken: bool,
}

/// What was heard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// What each slot holds now, and whether that changed, as far as it was said.
    pub(super) slots: Vec<Option<SlotState>>,
    /// Something was said that could not be understood.
    pub(super) is_lost: bool,
    /// The pipe is of no more use.
    pub(super) is_over: bool,
}

impl Ear {
    /// Begins to listen for `slots` slots; `None` for a reader without an interrupt endpoint.
    ///
    /// # Errors
    /// [`TransferError`].
    pub(super) fn new(
        site: &Site,
        grip: Arc<Grip>,
        slots: usize,
    ) -> Result<Option<Self>, TransferError> {
        let Some((endpoint, packet)) = site.interrupt else {
            return Ok(None);
        };
        let mut ear = Self {
            pipes: grip.interface().pipes(&[endpoint])?,
            _grip: grip,
            endpoint,
            len: packet.max(1),
            slots,
            failures: 0,
            begun: Instant::now(),
            has_spoken: false,
        };
        ear.listen();
        Ok(Some(ear))
    }

    fn listen(&mut self) {
        self.pipes.submit_in(self.endpoint, self.len);
    }

    pub(super) fn descriptors(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        self.pipes.descriptors()
    }

    pub(super) fn due(&self) -> Option<Duration> {
        self.pipes.due()
    }

    /// Takes in what has come.
    pub(super) fn hear(&mut self) -> Heard {
        let mut heard = Heard::default();
        for _ in 0..AT_ONCE {
            let Some(completion) = self.pipes.completed() else {
                break;
            };
            if !self.take(&completion, &mut heard) {
                heard.is_over = true;
                break;
            }
            self.listen();
        }
        heard
    }

    /// Whether to go on.
    fn take(&mut self, completion: &Completion, heard: &mut Heard) -> bool {
        match completion.result {
            Ok(()) => self.failures = 0,
            Err(TransferError::Gone) => return false,
            Err(error) => {
                self.failures += 1;
                if self.failures > FAILURES {
                    tracing::warn!("usb: notifications of a reader are lost: {error}");
                    return false;
                }
                if error == TransferError::Stall && self.pipes.clear_halt(self.endpoint).is_err() {
                    return false;
                }
                heard.is_lost = true;
                return true;
            }
        }
        // Bits of slots that do not exist are dropped.
        let slots = u8::try_from(self.slots).unwrap_or(u8::MAX);
        match Notification::parse(completion.buffer.expose(), slots) {
            Ok(Notification::SlotChange(mut states)) => {
                // That the card was put in, which nobody had been told: the look came after that.
                let is_old = !self.has_spoken && self.begun.elapsed() < FIRST_WORD;
                self.has_spoken = true;
                for state in &mut states {
                    state.changed &= !is_old || !state.present;
                }
                heard.take(&states);
            }
            Ok(other) => tracing::warn!("usb: a reader says {other:?}"),
            // An empty transfer says nothing, and one of too many bytes nothing that can be relied on.
            Err(error) => tracing::debug!("usb: {error}"),
        }
        true
    }
}

impl Heard {
    /// Takes in one message; a change stays one though a later message says nothing of it.
    fn take(&mut self, states: &[SlotState]) {
        if self.slots.len() < states.len() {
            self.slots.resize(states.len(), None);
        }
        for (slot, state) in self.slots.iter_mut().zip(states) {
            let changed = state.changed || slot.is_some_and(|before| before.changed);
            *slot = Some(SlotState { changed, ..*state });
        }
    }
}
