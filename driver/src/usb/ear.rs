//! A reader's interrupt pipe: who waits for cards keeps a transfer queued there.

use std::{os::fd::BorrowedFd, sync::Arc, time::Duration};

use rustix::event::PollFlags;

use super::{
    claim::{Grip, Site},
    transfer::{Completion, EndpointAddress, Pipes, TransferError},
};
use crate::ccid::notification::{Notification, SlotState};

/// Transfers in a row that may fail before the pipe is given up.
const FAILURES: usize = 8;
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
    slots: u8,
    failures: usize,
}

/// What was heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// What the slot holds now, and whether that changed.
    pub(super) slot: Option<SlotState>,
    /// The pipe is of no more use.
    pub(super) is_over: bool,
}

impl Ear {
    /// Begins to listen; `None` for a reader without an interrupt endpoint.
    ///
    /// # Errors
    /// [`TransferError`].
    pub(super) fn new(site: &Site, grip: Arc<Grip>) -> Result<Option<Self>, TransferError> {
        let Some((endpoint, packet)) = site.interrupt else {
            return Ok(None);
        };
        let mut ear = Self {
            pipes: grip.interface().pipes(&[endpoint])?,
            _grip: grip,
            endpoint,
            len: packet.max(1),
            slots: site.interface.class.slots(),
            failures: 0,
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

    /// Takes in what has come about slot `slot`.
    pub(super) fn hear(&mut self, slot: u8) -> Heard {
        let mut heard = Heard::default();
        for _ in 0..AT_ONCE {
            let Some(completion) = self.pipes.completed() else {
                break;
            };
            if !self.take(&completion, slot, &mut heard) {
                heard.is_over = true;
                break;
            }
            self.listen();
        }
        heard
    }

    /// Whether to go on.
    fn take(&mut self, completion: &Completion, slot: u8, heard: &mut Heard) -> bool {
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
                // What was lost may have been anything.
                heard.slot = Some(SlotState {
                    present: true,
                    changed: true,
                });
                return true;
            }
        }
        match Notification::parse(completion.buffer.expose(), self.slots) {
            Ok(Notification::SlotChange(states)) => {
                if let Some(state) = states.get(usize::from(slot)) {
                    let changed = state.changed || heard.slot.is_some_and(|slot| slot.changed);
                    heard.slot = Some(SlotState {
                        present: state.present,
                        changed,
                    });
                }
            }
            Ok(other) => tracing::warn!("usb: a reader says {other:?}"),
            // An empty transfer says nothing, and one of too many bytes nothing that can be relied on.
            Err(error) => tracing::debug!("usb: {error}"),
        }
        true
    }
}
