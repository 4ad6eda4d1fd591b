//! Waiting on descriptors: a stop that sticks, deadlines, and pauses that grow.

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

/// How often a wait looks for the stop itself when no descriptor was left for it.
const WITHOUT_DESCRIPTOR: Duration = Duration::from_millis(50);

/// A stop that, once set, stays set: waits that begin later end at once.
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
                "no descriptor to end a wait with ({error}); waits will wake every {WITHOUT_DESCRIPTOR:?}"
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

    /// Readable once it is set; `None` where no descriptor was left, and it has to be looked at.
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
            // A counter that is full is readable too, so the one possible error does no harm.
            let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
        }
    }
}

/// Waits until `stop` is set, one of `fds` can be read or has failed, or `until` has passed. Tells which of
/// `fds` are ready; all `false` after a stop or at the deadline.
///
/// # Errors
/// Of poll(2), which has none left once the descriptors are valid and memory suffices.
pub(crate) fn wait_readable(
    fds: &[BorrowedFd<'_>],
    stop: &StopFlag,
    deadline: Option<Instant>,
) -> Result<Vec<bool>, Errno> {
    let fds: Vec<_> = fds.iter().map(|fd| (*fd, PollFlags::IN)).collect();
    wait_any(&fds, stop, deadline)
}

/// [`readable`] for descriptors that are each asked something of their own.
///
/// # Errors
/// Of poll(2).
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
            earliest(deadline, Some(Instant::now() + WITHOUT_DESCRIPTOR))
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

/// Waits until `fd` is ready for `what` or has failed; `false` once `until` has passed.
pub(crate) fn wait_one(fd: impl AsFd, what: PollFlags, deadline: Instant) -> Result<bool, Errno> {
    Ok(poll(&mut [PollFd::new(&fd, what)], Some(deadline))? > 0)
}

/// Waits until one of `fds` is ready for what it is asked or has failed, or `until`.
///
/// # Errors
/// Of poll(2).
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

/// poll(2) that goes on after a signal.
fn poll(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> Result<usize, Errno> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // A time too long for the kernel is as good as none.
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match rustix::event::poll(fds, left.as_ref()) {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}

/// The earlier of two moments, of which either may be absent.
pub(crate) fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

/// Pauses between attempts: each twice the last, up to a limit.
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

    /// The pause before the next attempt.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let pause = self.next;
        self.next = pause.saturating_mul(2).min(self.longest);
        pause
    }

    /// Whether the pauses have grown to their limit.
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
        let mut pauses = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        let taken: Vec<u128> = (0..4).map(|_| pauses.next_delay().as_millis()).collect();
        assert_eq!(taken, [100, 200, 350, 350]);
        assert!(pauses.at_limit());
        pauses.reset();
        assert_eq!(pauses.next_delay().as_millis(), 100);
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
