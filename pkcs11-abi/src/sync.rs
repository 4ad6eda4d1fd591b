//! The locks that `event_queue` and `lifecycle` use. The models replace this module by loom's locks.

pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
