//! A wait for a queue of transfers without its lock.

use std::{
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::event::PollFlags;

use crate::{
    fork_closed::ForkClosed,
    usb::host::event_fd::EventFd,
    wait::{StopFlag, wait_any},
};

/// Poll interval of a thread without descriptors.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Descriptors that live without the queue.
pub(super) type OwnedFds = Vec<(ForkClosed<OwnedFd>, PollFlags)>;

/// Descriptors that live without the pipe; `None` when there are not enough left.
pub(super) fn owned(fds: &[(BorrowedFd<'_>, PollFlags)]) -> Option<OwnedFds> {
    let own = |(fd, flags): &(BorrowedFd<'_>, PollFlags)| {
        let fd = fd.try_clone_to_owned().ok()?;
        Some((ForkClosed::new(fd), *flags))
    };
    fds.iter().map(own).collect()
}

pub(super) fn wait(
    fds: Option<OwnedFds>,
    wakeup: Option<&EventFd>,
    deadline: Instant,
    stop: &StopFlag,
) {
    let deadline = match (&fds, wakeup) {
        (Some(_), Some(_)) => deadline,
        _ => deadline.min(Instant::now() + POLL_INTERVAL),
    };
    let fds = fds.unwrap_or_default();
    let wakeup = wakeup.map(|wakeup| (wakeup.as_fd(), PollFlags::IN));
    let all: Vec<_> = fds
        .iter()
        .map(|(fd, flags)| (fd.as_fd(), *flags))
        .chain(wakeup)
        .collect();
    if let Err(errno) = wait_any(&all, stop, Some(deadline)) {
        tracing::warn!("usb: poll failed while waiting for the reader ({errno})");
        std::thread::sleep(POLL_INTERVAL);
    }
}
