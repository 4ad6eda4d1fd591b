//! Drains a queue: cancels its transfers and waits until the system has returned each buffer.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec};

use super::transfer::{EndpointAddress, EndpointQueue};

/// Timeout of the wait. The kernel takes microseconds. A buffer that is not returned by then is leaked to it.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Cancels the transfers of `endpoints` and takes all completions. Returns whether all transfers have ended.
pub(crate) fn drain(pipes: &mut dyn EndpointQueue, endpoints: &[EndpointAddress]) -> bool {
    endpoints
        .iter()
        .for_each(|endpoint| pipes.cancel(*endpoint));
    let deadline = Instant::now() + DRAIN_TIMEOUT;
    loop {
        while pipes.next_completion().is_some() {}
        if endpoints
            .iter()
            .all(|endpoint| pipes.pending(*endpoint) == 0)
        {
            return true;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            tracing::warn!("transfers of {endpoints:?} were not returned within {DRAIN_TIMEOUT:?}");
            return false;
        }
        wait(pipes, left);
    }
}

/// Waits for a completion, at most `left`.
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
