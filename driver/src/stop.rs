//! The handle that stops a watch.

/// Ends a [`Watch`](crate::Watch) from another thread.
pub trait StopHandle: Send + Sync {
    /// Makes the running and every later [`Watch::next_snapshot`](crate::Watch::next_snapshot) return [`Stopped`],
    /// also a call that begins after the stop. Returns at once if the watch is certain to notice the stop. Otherwise
    /// repeats the stop until the watch has noticed it or a short timeout has passed.
    fn stop(&self);
}

/// The error of a watch that was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the watch was stopped")]
pub struct Stopped;
