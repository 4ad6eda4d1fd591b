//! Model tests of `event_queue` and `lifecycle`: every order of waiters, C_Finalize and a source of events.
//!
//! The files of the module are compiled here with loom's locks in place of `crate::sync`. Loom tries every order in which the
//! threads can reach a lock, and reports a deadlock or a lost wakeup. Time does not pass in a model: a wait with a timeout
//! lasts until a wakeup.
//!
//! The models of the protocol itself are exhaustive. The larger models allow as many preemptions of a thread as
//! `LOOM_MAX_PREEMPTIONS` says: 2 by default, 3 in `make races`.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a model uses a part of the files it includes, and fails loudly"
)]

mod sync {
    pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
    // Reference counts are not part of the protocols. Loom's own `Arc` would add a switch point for each count.
    pub(crate) use std::sync::{Arc, PoisonError};
}

#[path = "../src/event_queue.rs"]
mod event_queue;
#[path = "../src/lifecycle.rs"]
mod lifecycle;

use event_queue::{EventQueue, EventSource, WaitOutcome};
use lifecycle::{CallGuard, Generation, Lifecycle};
use loom::thread::{self, JoinHandle};
use sync::{Arc, Condvar, Mutex};

/// A slot table of one slot: the number of pending events.
#[derive(Debug, Default)]
struct Slot {
    pending: usize,
}

impl EventSource for Slot {
    type Event = ();

    fn take_event(&mut self) -> Option<()> {
        self.pending = self.pending.checked_sub(1)?;
        Some(())
    }
}

/// The source of events. Its watch sleeps until a change or a stop.
#[derive(Debug, Default)]
struct EventProducer {
    state: Mutex<Readers>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Readers {
    changes: usize,
    stopped: bool,
}

impl EventProducer {
    fn change(&self) {
        self.state.lock().unwrap().changes += 1;
        self.changed.notify_all();
    }

    fn stop(&self) {
        self.state.lock().unwrap().stopped = true;
        self.changed.notify_all();
    }

    /// Waits for changes beyond `seen`, as `Watch::next_snapshot`. Returns `None` after a stop.
    fn next(&self, seen: usize) -> Option<usize> {
        let mut state = self.state.lock().unwrap();
        loop {
            if state.stopped {
                return None;
            }
            if state.changes > seen {
                return Some(state.changes);
            }
            state = self.changed.wait(state).unwrap();
        }
    }
}

/// The parts of the module that matter for waits.
struct Module {
    generation: usize,
    queue: Arc<EventQueue<Slot>>,
    outside: Arc<EventProducer>,
    /// The changes that the watcher has seen, if it is a waiter.
    seen: Mutex<usize>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Generation for Module {
    fn stop(&self) {
        self.queue.stop();
        self.outside.stop();
        let thread = self.thread.lock().unwrap().take();
        thread.into_iter().for_each(|thread| thread.join().unwrap());
    }

    fn abort_calls(&self) {
        panic!("no call needs an abort");
    }

    fn release(&self) {
        assert!(self.queue.is_stopped());
    }
}

impl Module {
    fn new(generation: usize, outside: &Arc<EventProducer>) -> Self {
        Self {
            generation,
            queue: Arc::default(),
            outside: Arc::clone(outside),
            seen: Mutex::new(0),
            thread: Mutex::new(None),
        }
    }

    /// Adds a watcher thread, as `SlotEvents` has.
    fn with_thread(self) -> Self {
        let (queue, outside) = (Arc::clone(&self.queue), Arc::clone(&self.outside));
        let follow = move || {
            let mut seen = 0;
            while let Some(changes) = outside.next(seen) {
                queue.update(|slot| slot.pending += changes - seen);
                seen = changes;
            }
        };
        *self.thread.lock().unwrap() = Some(thread::spawn(follow));
        self
    }

    /// C_WaitForSlotEvent. Returns whether there was an event.
    fn wait(&self, may_watch: bool) -> bool {
        loop {
            match self.queue.wait(true, may_watch) {
                WaitOutcome::Event(()) => return true,
                WaitOutcome::Stopped => return false,
                WaitOutcome::Nothing | WaitOutcome::Broken => panic!("impossible outcome"),
                WaitOutcome::BecomeWatcher(lease) => {
                    let mut seen = self.seen.lock().unwrap();
                    if let Some(changes) = self.outside.next(*seen) {
                        self.queue.update(|slot| slot.pending += changes - *seen);
                        *seen = changes;
                    }
                    drop(seen);
                    drop(lease);
                }
            }
        }
    }
}

type TestLifecycle = Arc<Lifecycle<Module>>;

/// Starts a waiter. It must stay in the generation that it entered.
fn waiter(call: CallGuard<Module>, may_watch: bool) -> JoinHandle<bool> {
    thread::spawn(move || {
        let generation = call.generation;
        let event = call.wait(may_watch);
        assert_eq!(call.generation, generation);
        event
    })
}

/// Joins the waiters. Returns the number of events that they got.
fn wait_result(waiters: Vec<JoinHandle<bool>>) -> usize {
    let events = |waiter: JoinHandle<bool>| usize::from(waiter.join().unwrap());
    waiters.into_iter().map(events).sum()
}

fn begin(lifecycle: &TestLifecycle, module: Module) {
    assert!(lifecycle.initialize(|| module));
}

fn enter(lifecycle: &TestLifecycle) -> CallGuard<Module> {
    lifecycle.enter().expect("a generation is running")
}

/// Runs every order of the threads.
fn exhaustively(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = None;
    builder.check(model);
}

/// Runs every order in which no thread is preempted more often than the bound allows.
fn bounded(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(2));
    builder.check(model);
}

/// Starts a thread that waits on the queue and may not become the watcher.
fn wait_on(queue: &Arc<EventQueue<Slot>>) -> JoinHandle<bool> {
    let queue = Arc::clone(queue);
    thread::spawn(move || match queue.wait(true, false) {
        WaitOutcome::Event(()) => true,
        WaitOutcome::Stopped => false,
        WaitOutcome::Nothing | WaitOutcome::Broken | WaitOutcome::BecomeWatcher(_) => {
            panic!("impossible outcome")
        }
    })
}

/// The event queue alone: two waiters, a source of one event, and a stop.
#[test]
fn stop_ends_two_waiters_with_at_most_one_event() {
    exhaustively(|| {
        let queue = Arc::new(EventQueue::<Slot>::default());
        let waiters = vec![wait_on(&queue), wait_on(&queue)];
        let source = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.update(|slot| slot.pending += 1))
        };
        queue.stop();
        assert!(wait_result(waiters) <= 1, "an event goes to one waiter");
        source.join().unwrap();
        assert!(queue.is_stopped());
    });
}

/// Two waiters, one of which is the watcher, and a stop. No waiter keeps sleeping without a watcher.
#[test]
fn stop_ends_two_self_watching_waiters_without_an_event() {
    exhaustively(|| {
        let outside = Arc::new(EventProducer::default());
        let module = Arc::new(Module::new(1, &outside));
        let wait = || {
            let module = Arc::clone(&module);
            thread::spawn(move || module.wait(true))
        };
        let waiters = vec![wait(), wait()];
        module.stop();
        assert_eq!(wait_result(waiters), 0, "there was no event");
    });
}

/// C_Finalize, a call that returns, and a call that begins.
#[test]
fn finalize_waits_for_a_leaving_and_an_entering_call() {
    exhaustively(|| {
        let lifecycle = TestLifecycle::default();
        begin(&lifecycle, Module::new(1, &Arc::default()));
        let call = enter(&lifecycle);
        let returning = thread::spawn(move || drop(call));
        let beginning = {
            let lifecycle = Arc::clone(&lifecycle);
            thread::spawn(move || lifecycle.enter().is_some())
        };
        assert!(lifecycle.finalize());
        assert!(lifecycle.enter().is_none());
        returning.join().unwrap();
        beginning.join().unwrap();
    });
}

/// Waiters are counted as calls. C_Finalize returns after they have returned.
#[test]
fn finalize_ends_two_waiting_calls_with_at_most_one_event() {
    bounded(|| {
        let lifecycle = TestLifecycle::default();
        begin(&lifecycle, Module::new(1, &Arc::default()));
        let queue = Arc::clone(&enter(&lifecycle).queue);
        let waiters = vec![
            waiter(enter(&lifecycle), false),
            waiter(enter(&lifecycle), false),
        ];
        let source = thread::spawn(move || queue.update(|slot| slot.pending += 1));
        assert!(lifecycle.finalize());
        assert!(wait_result(waiters) <= 1, "an event goes to one waiter");
        source.join().unwrap();
    });
}

/// Two waiters, a watcher thread with one event, C_Finalize, and C_Initialize right after it.
#[test]
fn finalize_ends_waiters_of_a_watching_thread_and_the_next_generation_begins() {
    bounded(|| {
        let lifecycle = TestLifecycle::default();
        let outside = Arc::new(EventProducer::default());
        outside.change();
        begin(&lifecycle, Module::new(1, &outside).with_thread());
        let waiters = vec![
            waiter(enter(&lifecycle), false),
            waiter(enter(&lifecycle), false),
        ];
        assert!(lifecycle.finalize());
        // All calls have returned, so the next generation cannot affect them.
        begin(&lifecycle, Module::new(2, &Arc::default()));
        assert!(wait_result(waiters) <= 1, "an event goes to one waiter");
        assert!(lifecycle.finalize());
    });
}

/// Two waiters, one of which is the watcher, one event, and C_Finalize.
#[test]
fn finalize_ends_two_self_watching_waiters_with_at_most_one_event() {
    bounded(|| {
        let lifecycle = TestLifecycle::default();
        let outside = Arc::new(EventProducer::default());
        begin(&lifecycle, Module::new(1, &outside));
        let waiters = vec![
            waiter(enter(&lifecycle), true),
            waiter(enter(&lifecycle), true),
        ];
        let source = {
            let outside = Arc::clone(&outside);
            thread::spawn(move || outside.change())
        };
        assert!(lifecycle.finalize());
        assert!(wait_result(waiters) <= 1, "an event goes to one waiter");
        source.join().unwrap();
        assert!(lifecycle.enter().is_none());
    });
}

/// Two waiters and two events. Each waiter gets one, whichever waiter is the watcher.
#[test]
fn no_event_is_lost_when_another_waiter_becomes_watcher() {
    bounded(|| {
        let lifecycle = TestLifecycle::default();
        let outside = Arc::new(EventProducer::default());
        begin(&lifecycle, Module::new(1, &outside));
        let waiters = vec![
            waiter(enter(&lifecycle), true),
            waiter(enter(&lifecycle), true),
        ];
        outside.change();
        outside.change();
        assert_eq!(wait_result(waiters), 2);
        assert!(lifecycle.finalize());
    });
}

/// Two waiters, and a second event after the first was taken. The remaining waiter becomes the watcher.
#[test]
fn remaining_waiter_becomes_watcher() {
    bounded(|| {
        let (outside, taken) = (
            Arc::new(EventProducer::default()),
            Arc::new(EventProducer::default()),
        );
        let module = Arc::new(Module::new(1, &outside));
        let wait = || {
            let (module, taken) = (Arc::clone(&module), Arc::clone(&taken));
            thread::spawn(move || {
                let event = module.wait(true);
                taken.change();
                event
            })
        };
        let waiters = vec![wait(), wait()];
        outside.change();
        taken.next(0).unwrap();
        outside.change();
        assert_eq!(wait_result(waiters), 2);
    });
}

/// A call while C_Finalize runs in two threads. One C_Finalize ends the generation; when it returns, no call is active.
#[test]
fn one_of_two_concurrent_finalizes_ends_the_generation_and_all_calls() {
    bounded(|| {
        let lifecycle = TestLifecycle::default();
        begin(&lifecycle, Module::new(1, &Arc::default()));
        let inside = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let call = {
            let (lifecycle, inside) = (Arc::clone(&lifecycle), Arc::clone(&inside));
            thread::spawn(move || {
                if let Some(call) = lifecycle.enter() {
                    inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    assert!(!call.wait(false));
                    inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                }
            })
        };
        let other = {
            let lifecycle = Arc::clone(&lifecycle);
            thread::spawn(move || lifecycle.finalize())
        };
        let mine = lifecycle.finalize();
        if mine {
            assert_eq!(inside.load(std::sync::atomic::Ordering::SeqCst), 0);
        }
        assert!(
            mine ^ other.join().unwrap(),
            "exactly one ends the generation"
        );
        call.join().unwrap();
    });
}

/// C_Initialize during C_Finalize waits for its end.
#[test]
fn initialize_waits_for_a_running_finalize() {
    bounded(|| {
        let lifecycle = TestLifecycle::default();
        begin(&lifecycle, Module::new(1, &Arc::default()));
        let waiting = waiter(enter(&lifecycle), false);
        let again = {
            let lifecycle = Arc::clone(&lifecycle);
            thread::spawn(move || lifecycle.initialize(|| Module::new(2, &Arc::default())))
        };
        assert!(lifecycle.finalize());
        assert!(!waiting.join().unwrap());
        if again.join().unwrap() {
            assert_eq!(enter(&lifecycle).generation, 2);
            assert!(lifecycle.finalize());
        } else {
            assert!(
                lifecycle.enter().is_none(),
                "C_Initialize was first, and reported the running generation"
            );
        }
    });
}
