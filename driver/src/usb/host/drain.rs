//! The end of a queue of transfers: cancelled, and waited for until the system has given every buffer back.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec};

use super::transfer::{EndpointAddress, EndpointQueue};

/// How long the kernel may take; it takes microseconds, and what it does not give back then is left to it.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Cancels what is pending on `endpoints` and takes all completions; whether everything has ended.
pub(crate) fn drain(pipes: &mut dyn EndpointQueue, endpoints: &[EndpointAddress]) -> bool {
    endpoints
        .iter()
        .for_each(|endpoint| pipes.cancel(*endpoint));
    let until = Instant::now() + DRAIN_TIMEOUT;
    loop {
        while pipes.next_completion().is_some() {}
        if endpoints
            .iter()
            .all(|endpoint| pipes.pending(*endpoint) == 0)
        {
            return true;
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            tracing::warn!(
                "transfers of {endpoints:?} were not given back within {DRAIN_TIMEOUT:?}"
            );
            return false;
        }
        wait(pipes, left);
    }
}

/// Waits for a completion, `left` at most.
pub(crate) fn wait(pipes: &dyn EndpointQueue, left: Duration) {
    let left = pipes.next_timeout().map_or(left, |due| due.min(left));
    let descriptors = pipes.poll_fds();
    let mut polled: Vec<PollFd<'_>> = descriptors
        .iter()
        .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
        .collect();
    // A signal ends the wait early, which the caller's loop allows for.
    let _ = rustix::event::poll(&mut polled, Timespec::try_from(left).ok().as_ref());
}
