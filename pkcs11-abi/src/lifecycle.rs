//! Generations, from C_Initialize to C_Finalize: their active calls, and the order in which a generation ends.

use std::{
    ops::Deref,
    time::{Duration, Instant},
};

use crate::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// C_Finalize waits this long for active calls before it aborts them.
const CALL_TIMEOUT: Duration = Duration::from_secs(4);
/// C_Finalize waits this long for aborted calls. A call that does not return keeps its generation's memory.
const ABORTED_CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// The state of the module from C_Initialize to C_Finalize.
pub(crate) trait Generation {
    /// Ends all waits, those that begin later included, and joins the threads of this generation.
    fn stop(&self);

    /// Aborts every call that waits for a service or a device.
    fn abort_calls(&self);

    /// Logs out and releases everything. No call is active any more, except one that an abort did not end.
    fn release(&self);
}

/// Holds the current generation. A call keeps the generation that it entered, so a waiter never sees the next.
#[derive(Debug)]
pub(crate) struct Lifecycle<M> {
    phase: Mutex<Phase<M>>,
    ended: Condvar,
}

#[derive(Debug)]
enum Phase<M> {
    NotInitialized,
    Running(Arc<RunningGeneration<M>>),
    Ending,
}

/// A generation and the count of its active calls.
#[derive(Debug)]
struct RunningGeneration<M> {
    module: M,
    calls: Arc<ActiveCalls>,
}

impl<M> Default for Lifecycle<M> {
    fn default() -> Self {
        Self {
            phase: Mutex::new(Phase::NotInitialized),
            ended: Condvar::new(),
        }
    }
}

impl<M: Generation> Lifecycle<M> {
    fn phase(&self) -> MutexGuard<'_, Phase<M>> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a call. Returns `None` if the module is not initialized, or if a C_Finalize has begun.
    pub(crate) fn enter(&self) -> Option<CallGuard<M>> {
        match &*self.phase() {
            Phase::Running(running) => {
                // Counted under the lock of `phase`, so C_Finalize sees every call that was not refused.
                *running.calls.inside() += 1;
                Some(CallGuard {
                    running: Arc::clone(running),
                    _inside: CountedCall(Arc::clone(&running.calls)),
                })
            }
            Phase::NotInitialized | Phase::Ending => None,
        }
    }

    /// Begins a generation. Returns false if a generation is running. Waits for a generation that is ending.
    pub(crate) fn initialize(&self, make: impl FnOnce() -> M) -> bool {
        let mut phase = self.phase();
        while matches!(*phase, Phase::Ending) {
            phase = self
                .ended
                .wait(phase)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if matches!(*phase, Phase::Running(_)) {
            return false;
        }
        *phase = Phase::Running(Arc::new(RunningGeneration {
            module: make(),
            calls: Arc::default(),
        }));
        true
    }

    /// Ends the running generation: refuses new calls, ends all waits, waits until all calls have returned, and releases
    /// everything. Aborts calls that do not return in time. Returns false if no generation is running.
    pub(crate) fn finalize(&self) -> bool {
        let Some(running) = self.refuse_calls() else {
            return false;
        };
        let ending = FinalizeGuard(self);
        let RunningGeneration { module, calls } = &*running;
        module.stop();
        if !calls.wait_until_empty(CALL_TIMEOUT) {
            tracing::warn!(
                "C_Finalize: a call has not returned within {CALL_TIMEOUT:?}; aborting it"
            );
            module.abort_calls();
            if !calls.wait_until_empty(ABORTED_CALL_TIMEOUT) {
                tracing::error!("C_Finalize: an aborted call does not return; it is left behind");
            }
        }
        module.release();
        drop(running);
        drop(ending);
        true
    }

    fn refuse_calls(&self) -> Option<Arc<RunningGeneration<M>>> {
        let mut phase = self.phase();
        match std::mem::replace(&mut *phase, Phase::Ending) {
            Phase::Running(running) => Some(running),
            other => {
                *phase = other;
                None
            }
        }
    }
}

/// Sets the phase to `NotInitialized` when dropped, on every path.
struct FinalizeGuard<'a, M: Generation>(&'a Lifecycle<M>);

impl<M: Generation> Drop for FinalizeGuard<'_, M> {
    fn drop(&mut self) {
        *self.0.phase() = Phase::NotInitialized;
        self.0.ended.notify_all();
    }
}

/// An active call. It keeps its generation alive. It is counted until it has dropped the generation.
#[derive(Debug)]
pub(crate) struct CallGuard<M> {
    // Dropped in this order: the count must not fall while the call still holds the generation.
    running: Arc<RunningGeneration<M>>,
    _inside: CountedCall,
}

impl<M> Deref for CallGuard<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.running.module
    }
}

/// Counts one active call until dropped.
#[derive(Debug)]
struct CountedCall(Arc<ActiveCalls>);

impl Drop for CountedCall {
    fn drop(&mut self) {
        let mut inside = self.0.inside();
        *inside -= 1;
        if *inside == 0 {
            self.0.left.notify_all();
        }
    }
}

/// The count of active calls.
#[derive(Debug, Default)]
struct ActiveCalls {
    inside: Mutex<usize>,
    left: Condvar,
}

impl ActiveCalls {
    fn inside(&self) -> MutexGuard<'_, usize> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no call is active. Returns false if a call is still active after `timeout`.
    fn wait_until_empty(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut inside = self.inside();
        while *inside > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let woken = self.left.wait_timeout(inside, left);
            inside = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}
