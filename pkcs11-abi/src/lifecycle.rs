//! From C_Initialize to C_Finalize: generations, the calls inside each, and the order in which one ends.

use std::{
    ops::Deref,
    time::{Duration, Instant},
};

use crate::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// How long C_Finalize waits for calls that are inside before it ends them.
const CALL_TIMEOUT: Duration = Duration::from_secs(4);
/// How long calls that were ended may take to leave; one that does not keeps its own memory.
const ABORTED_CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// What lives from C_Initialize to C_Finalize.
pub(crate) trait Generation {
    /// Ends all waiting, now and later. When it returns no thread of this generation is left.
    fn stop(&self);

    /// Ends every call that is stuck outside.
    fn abort_calls(&self);

    /// Lets go of everything; nobody is inside any more.
    fn release(&self);
}

/// Where the generations of this process succeed each other. A call holds the one it came with, so that a waiter
/// of an old one can never mistake the next for its own.
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

/// A generation and how many calls are inside.
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

    /// Begins a call; none while no generation lives, nor while one ends.
    pub(crate) fn enter(&self) -> Option<CallGuard<M>> {
        match &*self.phase() {
            Phase::Running(running) => {
                // Counted under the lock: the end of a generation sees every call that was not refused.
                *running.calls.inside() += 1;
                Some(CallGuard {
                    running: Arc::clone(running),
                    _inside: CountedCall(Arc::clone(&running.calls)),
                })
            }
            Phase::NotInitialized | Phase::Ending => None,
        }
    }

    /// Begins a generation, unless one lives. One that is ending is waited for.
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

    /// Ends the generation that lives, if one does: refuse new calls, end all waiting, wait until everybody has
    /// left, let go.
    pub(crate) fn finalize(&self) -> bool {
        let Some(running) = self.refuse_calls() else {
            return false;
        };
        let ending = FinalizeGuard(self);
        let RunningGeneration { module, calls } = &*running;
        module.stop();
        if !calls.wait_until_empty(CALL_TIMEOUT) {
            tracing::warn!(
                "C_Finalize: a call has not come back for {CALL_TIMEOUT:?}; it is ended"
            );
            module.abort_calls();
            if !calls.wait_until_empty(ABORTED_CALL_TIMEOUT) {
                tracing::error!("C_Finalize: a call does not come back; it is left behind");
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

/// Ends the phase of ending on every path.
struct FinalizeGuard<'a, M: Generation>(&'a Lifecycle<M>);

impl<M: Generation> Drop for FinalizeGuard<'_, M> {
    fn drop(&mut self) {
        *self.0.phase() = Phase::NotInitialized;
        self.0.ended.notify_all();
    }
}

/// A call that is inside: keeps its generation alive, and is counted until that is let go.
#[derive(Debug)]
pub(crate) struct CallGuard<M> {
    // Dropped in this order: the end must not come while a call still holds the generation.
    running: Arc<RunningGeneration<M>>,
    _inside: CountedCall,
}

impl<M> Deref for CallGuard<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.running.module
    }
}

/// Counted as inside until dropped.
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

/// Calls that are inside.
#[derive(Debug, Default)]
struct ActiveCalls {
    inside: Mutex<usize>,
    left: Condvar,
}

impl ActiveCalls {
    fn inside(&self) -> MutexGuard<'_, usize> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody is inside; false when somebody still is after `patience`.
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
