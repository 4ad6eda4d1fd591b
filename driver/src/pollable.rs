//! Several watches followed in one wait, by a caller's thread.

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

/// A wait that fails is tried again after so long.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// How often a stop is looked for when no descriptor was left for it.
const WITHOUT_DESCRIPTOR: Duration = Duration::from_millis(50);

/// [`Watch::next_snapshot`](crate::Watch::next_snapshot) in parts, none of which waits for a change.
pub trait Pollable {
    /// What is done before the first wait: cards are watched from now on.
    fn begin(&mut self);

    /// Takes in what has happened; the readers if they differ from the picture last returned.
    ///
    /// # Errors
    /// [`Stopped`].
    fn step(&mut self) -> Result<Option<ReaderSnapshot>, Stopped>;

    /// What to wait for after [`Pollable::step`] has returned none, the stop included.
    fn waits_on(&self) -> WaitSet<'_>;

    /// What is done after the last wait.
    fn rest(&mut self) {}
}

/// What a watch waits for: descriptors, and a moment.
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
    /// Nothing but the stop.
    pub(crate) fn until_stopped(stop: &'a StopFlag) -> Self {
        let mut set = Self::default();
        match stop.descriptor() {
            Some(descriptor) => set.readable([descriptor]),
            None => set.due(Some(Instant::now() + WITHOUT_DESCRIPTOR)),
        }
        set
    }

    /// Until one of `descriptors` can be read, too.
    pub fn readable(&mut self, descriptors: impl IntoIterator<Item = BorrowedFd<'a>>) {
        self.ready(descriptors.into_iter().map(|fd| (fd, PollFlags::IN)));
    }

    /// Until one of `descriptors` is ready for what it is asked, too.
    pub(crate) fn ready(
        &mut self,
        descriptors: impl IntoIterator<Item = (BorrowedFd<'a>, PollFlags)>,
    ) {
        let borrowed = descriptors.into_iter();
        self.descriptors
            .extend(borrowed.map(|(fd, what)| (Descriptor::Borrowed(fd), what)));
    }

    /// Until `descriptor` can be read, too, whatever becomes of its owner meanwhile.
    pub(crate) fn shared(&mut self, descriptor: Arc<ForkClosed<OwnedFd>>) {
        self.descriptors
            .push((Descriptor::Shared(descriptor), PollFlags::IN));
    }

    /// Until `due` at most.
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

/// Waits until the readers of one of `watches` differ from the picture it last returned, or `until`; that watch's
/// number and picture. Costs nothing while it waits.
///
/// # Errors
/// [`Stopped`] once one of the watches was stopped.
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
            // Out of memory is all that is left for poll(2) to complain of.
            tracing::warn!("the readers cannot be waited for ({errno})");
            std::thread::sleep(RETRY_INTERVAL);
        }
    }
}

/// [`Watch::next_snapshot`](crate::Watch::next_snapshot) of a watch that is pollable.
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

    /// Says what it holds once `told` is ready.
    struct Toy {
        stop: Arc<StopFlag>,
        told: Arc<StopFlag>,
        steps: usize,
    }

    impl Toy {
        fn new() -> Self {
            Self {
                stop: Arc::default(),
                told: Arc::default(),
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
            Ok(self.told.is_set().then(ReaderSnapshot::default))
        }

        fn waits_on(&self) -> WaitSet<'_> {
            let mut set = WaitSet::until_stopped(&self.stop);
            set.readable(self.told.descriptor());
            set
        }
    }

    const SOON: Duration = Duration::from_millis(30);

    #[test]
    fn source_that_changes_ends_the_wait_and_is_named() {
        let (mut one, mut other) = (Toy::new(), Toy::new());
        let told = Arc::clone(&other.told);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(SOON);
                told.stop();
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
