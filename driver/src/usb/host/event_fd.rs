//! A descriptor that another thread makes readable. It is written only when it was not readable.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Wake, Waker},
};

use rustix::{event::EventfdFlags, io::Errno};

use super::transfer::TransferError;
use crate::fork_closed::ForkClosed;

#[derive(Debug)]
pub(crate) struct EventFd {
    event: ForkClosed<OwnedFd>,
    set: AtomicBool,
}

impl EventFd {
    pub(crate) fn new() -> Result<Arc<Self>, TransferError> {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| TransferError::Fault(error.raw_os_error()))?;
        let set = AtomicBool::new(false);
        let event = ForkClosed::new(event);
        Ok(Arc::new(Self { event, set }))
    }

    /// Makes the descriptor readable.
    pub(crate) fn notify(&self) {
        if !self.set.swap(true, Ordering::SeqCst) {
            // A counter that is full is readable too.
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }

    /// Clears the descriptor. Call this before looking for work: a later signal sets it again.
    pub(crate) fn clear(&self) {
        // If nothing can be read, another thread is about to write. The flag stays set until that write is read.
        if self.set.load(Ordering::SeqCst)
            && rustix::io::read(&self.event, &mut [0_u8; 8]) != Err(Errno::AGAIN)
        {
            self.set.store(false, Ordering::SeqCst);
        }
    }

    pub(crate) fn waker(self: &Arc<Self>) -> Waker {
        Waker::from(Arc::clone(self))
    }
}

impl Wake for EventFd {
    fn wake(self: Arc<Self>) {
        self.notify();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.notify();
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::event::{PollFd, PollFlags, Timespec};

    use super::*;

    fn ready(signal: &EventFd, seconds: i64) -> bool {
        let limit = Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        };
        let mut polled = [PollFd::new(signal, PollFlags::IN)];
        rustix::event::poll(&mut polled, Some(&limit)).unwrap() > 0
    }

    #[test]
    fn event_fd_is_ready_from_the_first_wake_until_it_is_cleared() {
        let signal = EventFd::new().unwrap();
        assert!(!ready(&signal, 0));
        let waker = signal.waker();
        waker.wake_by_ref();
        waker.wake_by_ref();
        assert!(ready(&signal, 0));
        signal.clear();
        assert!(!ready(&signal, 0));
        waker.wake();
        assert!(ready(&signal, 0));
    }

    #[test]
    fn second_notify_writes_nothing() {
        let signal = EventFd::new().unwrap();
        signal.notify();
        signal.notify();
        let mut count = [0; 8];
        rustix::io::read(&signal.event, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
    }

    #[test]
    fn event_fd_notified_during_a_clear_can_be_cleared_again() {
        let signal = EventFd::new().unwrap();
        // As `notify` does it, with a `clear` in between.
        signal.set.store(true, Ordering::SeqCst);
        signal.clear();
        rustix::io::write(&signal.event, &1_u64.to_ne_bytes()).unwrap();
        assert!(ready(&signal, 0));
        signal.clear();
        assert!(!ready(&signal, 0));
    }

    #[test]
    fn event_fd_loses_no_wake() {
        let signal = EventFd::new().unwrap();
        let sent = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let other = {
            let (waker, sent) = (signal.waker(), Arc::clone(&sent));
            thread::spawn(move || {
                for _ in 0..10_000 {
                    sent.fetch_add(1, Ordering::SeqCst);
                    waker.wake_by_ref();
                }
            })
        };
        let mut seen = 0;
        while seen < 10_000 {
            assert!(ready(&signal, 60), "a wake was lost after {seen}");
            signal.clear();
            seen = sent.load(Ordering::SeqCst);
        }
        other.join().unwrap();
    }
}
