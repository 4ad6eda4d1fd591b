//! How a watch is stopped.

/// Ends a [`Watch`](crate::Watch) from another thread.
pub trait StopHandle: Send + Sync {
    /// Makes the running and every later [`Watch::next_snapshot`](crate::Watch::next_snapshot) return [`Stopped`]. A stop that comes before the
    /// wait begins still counts. Returns without waiting for the watch to notice when it can be sure that it
    /// will, else repeats itself until the watch has noticed or a short bound passed.
    fn stop(&self);
}

/// The watch was ended on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the watch was stopped")]
pub struct Stopped;
