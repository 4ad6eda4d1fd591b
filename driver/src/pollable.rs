//! Waits for several watches at once, in a caller's thread.

use std::{
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::event::PollFlags;

use crate::{
    fork_closed::ForkClosed,
    reader::ReaderSnapshot,
    stop::Stopped,
    wait::{StopFlag, earliest, poll_once},
};

/// The delay after a failed wait.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// How often a stop is checked for if the stop flag has no descriptor.
const STOP_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The steps of [`Watch::next_snapshot`](crate::Watch::next_snapshot). None of them waits for a change.
pub trait Pollable {
    /// Prepares for the first wait. The watch follows the cards from now on.
    fn begin(&mut self);

    /// Handles all pending events. Returns the snapshot if it differs from the last one returned.
    ///
    /// # Errors
    /// [`Stopped`].
    fn step(&mut self) -> Result<Option<ReaderSnapshot>, Stopped>;

    /// Returns what to wait for after [`Pollable::step`] returned `None`. It includes the stop.
    fn waits_on(&self) -> WaitSet<'_>;

    /// Cleans up after the last wait.
    fn rest(&mut self) {}
}

/// Descriptors to wait for, and a deadline.
#[derive(Debug, Default)]
pub struct WaitSet<'a> {
    descriptors: Vec<(Descriptor<'a>, PollFlags)>,
    due: Option<Instant>,
}

#[derive(Debug)]
enum Descriptor<'a> {
    Borrowed(BorrowedFd<'a>),
    Shared(Arc<ForkClosed<OwnedFd>>),
}

impl<'a> WaitSet<'a> {
    /// Makes a set that waits for the stop only.
    pub(crate) fn until_stopped(stop: &'a StopFlag) -> Self {
        let mut set = Self::default();
        match stop.descriptor() {
            Some(descriptor) => set.readable([descriptor]),
            None => set.due(Some(Instant::now() + STOP_POLL_INTERVAL)),
        }
        set
    }

    /// Adds `descriptors`: the wait also ends when one of them is readable.
    pub fn readable(&mut self, descriptors: impl IntoIterator<Item = BorrowedFd<'a>>) {
        self.ready(descriptors.into_iter().map(|fd| (fd, PollFlags::IN)));
    }

    /// Adds `descriptors`: the wait also ends when one of them is ready for its flags.
    pub(crate) fn ready(
        &mut self,
        descriptors: impl IntoIterator<Item = (BorrowedFd<'a>, PollFlags)>,
    ) {
        let borrowed = descriptors.into_iter();
        self.descriptors
            .extend(borrowed.map(|(fd, what)| (Descriptor::Borrowed(fd), what)));
    }

    /// Adds `descriptor`: the wait also ends when it is readable. The set keeps it open after its owner has dropped
    /// it.
    pub(crate) fn shared(&mut self, descriptor: Arc<ForkClosed<OwnedFd>>) {
        self.descriptors
            .push((Descriptor::Shared(descriptor), PollFlags::IN));
    }

    /// Adds a deadline. The earliest deadline counts.
    pub fn due(&mut self, due: Option<Instant>) {
        self.due = earliest(self.due, due);
    }

    fn polled(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        self.descriptors.iter().map(|(descriptor, what)| {
            let fd = match descriptor {
                Descriptor::Borrowed(fd) => *fd,
                Descriptor::Shared(fd) => fd.as_fd(),
            };
            (fd, *what)
        })
    }
}

/// Waits until the snapshot of one of `watches` differs from the last one it returned. Returns the index of that
/// watch and the new snapshot, or `None` at `deadline`. The wait is idle.
///
/// # Errors
/// [`Stopped`] when one of the watches was stopped.
pub fn next_of(
    watches: &mut [&mut dyn Pollable],
    deadline: Option<Instant>,
) -> Result<Option<(usize, ReaderSnapshot)>, Stopped> {
    watches.iter_mut().for_each(|watch| watch.begin());
    let next = follow(watches, deadline);
    watches.iter_mut().for_each(|watch| watch.rest());
    next
}

fn follow(
    watches: &mut [&mut dyn Pollable],
    deadline: Option<Instant>,
) -> Result<Option<(usize, ReaderSnapshot)>, Stopped> {
    loop {
        for (number, watch) in watches.iter_mut().enumerate() {
            if let Some(readers) = watch.step()? {
                return Ok(Some((number, readers)));
            }
        }
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Ok(None);
        }
        let sets: Vec<WaitSet<'_>> = watches.iter().map(|watch| watch.waits_on()).collect();
        let deadline = sets.iter().map(|set| set.due).fold(deadline, earliest);
        let descriptors: Vec<_> = sets.iter().flat_map(WaitSet::polled).collect();
        if let Err(errno) = poll_once(&descriptors, deadline) {
            // With valid descriptors, poll(2) fails only for lack of memory.
            tracing::warn!(
                "poll failed while waiting for reader changes ({errno}); it is tried again"
            );
            std::thread::sleep(RETRY_INTERVAL);
        }
    }
}

/// Implements [`Watch::next_snapshot`](crate::Watch::next_snapshot) for a pollable watch.
///
/// # Errors
/// [`Stopped`].
pub(crate) fn next(watch: &mut dyn Pollable) -> Result<ReaderSnapshot, Stopped> {
    loop {
        if let Some((_, readers)) = next_of(&mut [watch], None)? {
            return Ok(readers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stop::StopHandle as _;

    /// A source that returns an empty snapshot once `changed` is set.
    struct Toy {
        stop: Arc<StopFlag>,
        changed: Arc<StopFlag>,
        steps: usize,
    }

    impl Toy {
        fn new() -> Self {
            Self {
                stop: Arc::default(),
                changed: Arc::default(),
                steps: 0,
            }
        }
    }

    impl Pollable for Toy {
        fn begin(&mut self) {}

        fn step(&mut self) -> Result<Option<ReaderSnapshot>, Stopped> {
            self.steps += 1;
            if self.stop.is_set() {
                return Err(Stopped);
            }
            Ok(self.changed.is_set().then(ReaderSnapshot::default))
        }

        fn waits_on(&self) -> WaitSet<'_> {
            let mut set = WaitSet::until_stopped(&self.stop);
            set.readable(self.changed.descriptor());
            set
        }
    }

    const SOON: Duration = Duration::from_millis(30);

    #[test]
    fn source_that_changes_ends_the_wait_and_is_named() {
        let (mut one, mut other) = (Toy::new(), Toy::new());
        let changed = Arc::clone(&other.changed);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(SOON);
                changed.stop();
            });
            let next = next_of(&mut [&mut one, &mut other], None).unwrap();
            assert_eq!(next.unwrap().0, 1);
        });
        assert_eq!((one.steps, other.steps), (2, 2), "one wake-up");
    }

    #[test]
    fn stop_of_any_source_or_a_deadline_ends_the_wait() {
        let (mut one, mut other) = (Toy::new(), Toy::new());
        let deadline = Instant::now() + SOON;
        let next = next_of(&mut [&mut one, &mut other], Some(deadline)).unwrap();
        assert!(next.is_none() && Instant::now() >= deadline);
        let stop = Arc::clone(&other.stop);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(SOON);
                stop.stop();
            });
            let next = next_of(&mut [&mut one, &mut other], None);
            assert_eq!(next.map(drop), Err(Stopped));
        });
    }
}
