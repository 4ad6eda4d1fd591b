//! The locks of the protocols in `event_queue` and `lifecycle`, in one place: the models of these two put other locks
//! beneath the same code.

pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
