//! Completed transfers, on their way from the libusb callback to the queue that owns them.

use std::{
    collections::VecDeque,
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::event::EventfdFlags;

use crate::{fork_closed::ForkClosed, usb::host::transfer::TransferError};

/// The address of a transfer whose callback has run.
pub(super) struct CompletedTransfer(pub(super) usize);

/// The completed transfers of one queue. Its descriptor is readable when another thread completed one.
pub(super) struct CompletionQueue {
    state: Mutex<State>,
    pub(super) event: ForkClosed<OwnedFd>,
}

#[derive(Default)]
struct State {
    ended: VecDeque<CompletedTransfer>,
    /// The queue's own thread handles events and takes the transfers itself.
    polling: bool,
    signalled: bool,
}

impl CompletionQueue {
    pub(super) fn new() -> Result<Self, TransferError> {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| TransferError::Fault(error.raw_os_error()))?;
        Ok(Self {
            state: Mutex::default(),
            event: ForkClosed::new(event),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, ended: CompletedTransfer) {
        let mut state = self.state();
        state.ended.push_back(ended);
        if !state.polling {
            self.signal(&mut state);
        }
    }

    /// Makes the descriptor readable until a call finds nothing.
    pub(super) fn wake(&self) {
        self.signal(&mut self.state());
    }

    fn signal(&self, state: &mut State) {
        if !state.signalled {
            state.signalled = true;
            // A counter that is full is readable too.
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }

    /// The next that ended. When there is none, `handle` is called to find some; what ends meanwhile needs no signal.
    pub(super) fn take(&self, handle: impl FnOnce()) -> Option<CompletedTransfer> {
        {
            let mut state = self.state();
            if let Some(ended) = state.ended.pop_front() {
                return Some(ended);
            }
            state.polling = true;
        }
        handle();
        let mut state = self.state();
        state.polling = false;
        let ended = state.ended.pop_front();
        if ended.is_none() && state.signalled {
            state.signalled = false;
            let _ = rustix::io::read(&self.event, &mut [0_u8; 8]);
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec};

    use super::*;

    fn ready(completions: &CompletionQueue) -> bool {
        let mut polled = [PollFd::new(&completions.event, PollFlags::IN)];
        rustix::event::poll(&mut polled, Some(&Timespec::default())).unwrap() > 0
    }

    #[test]
    fn completed_transfers_keep_the_descriptor_ready_until_all_are_taken() {
        let completions = CompletionQueue::new().unwrap();
        completions.push(CompletedTransfer(1));
        completions.push(CompletedTransfer(2));
        assert!(ready(&completions));
        assert_eq!(completions.take(|| panic!("not needed")).unwrap().0, 1);
        assert_eq!(completions.take(|| ()).unwrap().0, 2);
        assert!(ready(&completions));
        assert!(completions.take(|| ()).is_none());
        assert!(!ready(&completions));
    }

    #[test]
    fn completion_found_by_the_thread_handling_events_needs_no_wake() {
        let completions = CompletionQueue::new().unwrap();
        let found = completions.take(|| completions.push(CompletedTransfer(7)));
        assert_eq!(found.unwrap().0, 7);
        assert!(!ready(&completions));
        completions.push(CompletedTransfer(8));
        assert!(ready(&completions));
    }

    #[test]
    fn queue_wake_lasts_until_the_next_take() {
        let completions = CompletionQueue::new().unwrap();
        completions.wake();
        assert!(ready(&completions));
        assert!(completions.take(|| ()).is_none());
        assert!(!ready(&completions));
    }
}
