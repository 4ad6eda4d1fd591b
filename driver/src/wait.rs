//! Waits on descriptors: a stop flag that stays set, deadlines, and delays that grow.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec},
    io::Errno,
};

use crate::stop::StopHandle;

/// How often a wait checks the stop flag if the flag has no descriptor.
const STOP_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A flag that ends waits. It stays set, so waits that begin later end at once.
#[derive(Debug)]
pub(crate) struct StopFlag {
    set: AtomicBool,
    event: Option<OwnedFd>,
}

impl StopFlag {
    pub(crate) fn new() -> Self {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        if let Err(error) = &event {
            tracing::warn!(
                "eventfd failed ({error}); waits poll their stop flag every {STOP_POLL_INTERVAL:?} instead"
            );
        }
        Self {
            set: AtomicBool::new(false),
            event: event.ok(),
        }
    }

    pub(crate) fn is_set(&self) -> bool {
        self.set.load(Ordering::SeqCst)
    }

    /// Returns a descriptor that becomes readable when the flag is set. Returns `None` if no descriptor could be
    /// opened; the caller must then poll [`StopFlag::is_set`].
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.event.as_ref().map(AsFd::as_fd)
    }
}

impl Default for StopFlag {
    fn default() -> Self {
        Self::new()
    }
}

impl StopHandle for StopFlag {
    fn stop(&self) {
        self.set.store(true, Ordering::SeqCst);
        if let Some(event) = &self.event {
            // The only possible error is a full counter, and a full counter is readable too.
            let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
        }
    }
}

/// Waits until `stop` is set, one of `fds` is readable or has failed, or `deadline` has passed. Returns for each of
/// `fds` whether it is ready. After a stop or at the deadline, none is.
///
/// # Errors
/// The error of poll(2). With valid descriptors, only a lack of memory is left.
pub(crate) fn wait_readable(
    fds: &[BorrowedFd<'_>],
    stop: &StopFlag,
    deadline: Option<Instant>,
) -> Result<Vec<bool>, Errno> {
    let fds: Vec<_> = fds.iter().map(|fd| (*fd, PollFlags::IN)).collect();
    wait_any(&fds, stop, deadline)
}

/// Does the same as [`wait_readable`], with separate poll flags for each descriptor.
///
/// # Errors
/// The error of poll(2).
pub(crate) fn wait_any(
    fds: &[(BorrowedFd<'_>, PollFlags)],
    stop: &StopFlag,
    deadline: Option<Instant>,
) -> Result<Vec<bool>, Errno> {
    let mut polled: Vec<PollFd<'_>> = fds
        .iter()
        .map(|(fd, what)| PollFd::from_borrowed_fd(*fd, *what))
        .collect();
    if let Some(event) = &stop.event {
        polled.push(PollFd::new(event, PollFlags::IN));
    }
    loop {
        let slice = if stop.event.is_some() {
            deadline
        } else {
            earliest(deadline, Some(Instant::now() + STOP_POLL_INTERVAL))
        };
        let count = poll(&mut polled, slice)?;
        if stop.is_set() {
            return Ok(vec![false; fds.len()]);
        }
        if count > 0 || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok(polled
                .iter()
                .take(fds.len())
                .map(|fd| !fd.revents().is_empty())
                .collect());
        }
    }
}

/// Waits until `fd` is ready for `what` or has failed. Returns false if `deadline` has passed first.
pub(crate) fn wait_one(fd: impl AsFd, what: PollFlags, deadline: Instant) -> Result<bool, Errno> {
    Ok(poll(&mut [PollFd::new(&fd, what)], Some(deadline))? > 0)
}

/// Waits until one of `fds` is ready for its flags or has failed, or until `deadline`.
///
/// # Errors
/// The error of poll(2).
pub(crate) fn poll_once(
    fds: &[(BorrowedFd<'_>, PollFlags)],
    deadline: Option<Instant>,
) -> Result<(), Errno> {
    let mut polled: Vec<PollFd<'_>> = fds
        .iter()
        .map(|(fd, what)| PollFd::from_borrowed_fd(*fd, *what))
        .collect();
    poll(&mut polled, deadline).map(drop)
}

/// Calls poll(2), again after each signal.
fn poll(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> Result<usize, Errno> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // A time that is too long for the kernel counts as no timeout.
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match rustix::event::poll(fds, left.as_ref()) {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}

/// Returns the earlier of two instants, either of which may be absent.
pub(crate) fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

/// The delays between attempts. Each delay is twice the last one, up to a limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    next: Duration,
    first: Duration,
    longest: Duration,
}

impl Backoff {
    pub(crate) const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            next: first,
            first,
            longest,
        }
    }

    /// Returns the delay before the next attempt.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = delay.saturating_mul(2).min(self.longest);
        delay
    }

    /// Returns whether the delays have reached their limit.
    pub(crate) fn at_limit(&self) -> bool {
        self.next >= self.longest
    }

    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_their_limit() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        let taken: Vec<u128> = (0..4).map(|_| backoff.next_delay().as_millis()).collect();
        assert_eq!(taken, [100, 200, 350, 350]);
        assert!(backoff.at_limit());
        backoff.reset();
        assert_eq!(backoff.next_delay().as_millis(), 100);
    }

    #[test]
    fn a_stop_set_before_the_wait_ends_it() {
        let stop = StopFlag::new();
        stop.stop();
        assert_eq!(wait_readable(&[], &stop, None), Ok(vec![]));
    }

    #[test]
    fn a_stop_without_a_descriptor_is_still_seen() {
        let stop = StopFlag {
            set: AtomicBool::new(false),
            event: None,
        };
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| wait_readable(&[], &stop, None));
            stop.stop();
            assert_eq!(waiter.join().unwrap(), Ok(vec![]));
        });
    }

    #[test]
    fn wait_with_a_past_deadline_polls_once() {
        let stop = StopFlag::new();
        assert_eq!(wait_readable(&[], &stop, Some(Instant::now())), Ok(vec![]));
        assert!(!stop.is_set());
    }
}
